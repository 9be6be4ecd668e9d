//! Shards and their parts, and what makes several shards one data set.
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use nepa_schemas::{ColumnMapping, SchemaError};
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use sha2::{Digest, Sha256};

use super::names::common_root;
use super::reading::Reading;
use super::{LeaveOut, leave_out};
use crate::store::Object;
use crate::{DatasetError, Place};

/// Memory that a row takes beside the bytes of its image: where they lie, its label, its place in
/// the order.
pub(super) const ROW_BYTES: u64 = 64;

/// Rows that are fetched together: a row group, or the rows of some pages of a large one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The row group in the file.
    pub row_group: u32,
    /// First row in the row group; 0 unless that has several parts.
    pub first_row: u32,
    /// Rows.
    pub num_rows: u32,
    /// Rows of them that hold no image, as far as the footer counts them: they are no samples.
    /// Which ones they are is known when the part is unpacked.
    pub num_absent: u32,
    /// Bytes to fetch for the columns that are read (compressed).
    pub fetch_bytes: u64,
    /// Bytes that the unpacked part holds: those of its pages after decompression, or of its values
    /// and rows where these are more.
    pub memory_bytes: u64,
    /// Whether `memory_bytes` is more than the footer's plain sum of uncompressed pages; then it is
    /// part of the fingerprint.
    pub(super) counted_by_values: bool,
    /// Byte ranges of the columns that are read, sorted.
    pub(super) ranges: Vec<Range<u64>>,
}

impl Part {
    /// Rows that are samples.
    pub fn num_samples(&self) -> u32 {
        self.num_rows - self.num_absent
    }
}

/// One Parquet object.
#[derive(Debug)]
pub struct Shard {
    /// URL without secrets.
    pub url: String,
    /// Size in bytes.
    pub size: u64,
    /// ETag, if the store gives one.
    pub e_tag: Option<String>,
    /// Its row groups, or parts of them, in the order of the file.
    pub parts: Vec<Part>,
    /// Its columns; shared by shards that have the same.
    pub mapping: Arc<ColumnMapping>,
    /// The object, in the version whose footer was read.
    pub(super) object: Object,
    /// Its footer, as far as it is needed.
    pub(super) metadata: ArrowReaderMetadata,
    /// How it is read.
    pub(super) reading: Arc<Reading>,
    /// Where its page indexes begin, and their bytes, if they were needed.
    pub(super) pages: Option<(u64, Bytes)>,
}

impl Shard {
    /// Where one of its parts lies, for messages.
    pub(super) fn place(&self, part: &Part) -> Place {
        Place {
            object: self.url.clone(),
            row_group: Some(part.row_group as usize),
            ..Place::default()
        }
    }
}

/// An opened data set of a mixture; the only one where nothing is mixed.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Its shards, as indices in [`crate::Dataset::shards`].
    pub shards: Range<u32>,
    /// Rows in them that hold an image, as far as the footers say.
    pub num_samples: u64,
    /// Rows without an image, which are left out of the order.
    pub num_absent: u64,
    /// Its weight as configured; 1 where nothing is mixed.
    pub weight: f64,
    /// Class names, which those of its shards agree on that have any.
    pub class_names: Option<Vec<String>>,
}

/// Checks that the shards of one data set, the first of which has number `first`, read alike and
/// hold images.
pub(super) fn opened_source(
    shards: &[Shard],
    first: u32,
    weight: f64,
) -> Result<Source, DatasetError> {
    // Metadata is lost on the way: names that some shards give hold for all.
    let named = |shard: &&Shard| shard.mapping.class_names.is_some();
    let naming = shards.iter().find(named);
    for shard in &shards[1..] {
        let same = same_mapping(&shards[0], shard);
        same.map_err(|error| without_few(error, &shards[0], shards))?;
        if let Some(naming) = naming {
            let named = same_mapping(naming, shard);
            named.map_err(|error| without_few(error, naming, shards))?;
        }
    }
    if shards.iter().all(|shard| shard.mapping.is_empty()) {
        let column = shards[0].mapping.images[0].path.to_string();
        return Err(DatasetError::Schema {
            place: Place {
                object: shards[0].url.clone(),
                ..Place::default()
            },
            source: Box::new(SchemaError::NoBytes { column }),
            leave_out: LeaveOut::Nothing,
        });
    }
    let sum = |of: fn(&Part) -> u32| -> u64 {
        let parts = shards.iter().flat_map(|shard| &shard.parts);
        parts.map(|part| u64::from(of(part))).sum()
    };
    let (num_samples, num_absent) = (sum(Part::num_samples), sum(|part| part.num_absent));
    let url = || shards[0].url.clone();
    if num_samples == 0 {
        return Err(match num_absent {
            0 => DatasetError::NoRows { url: url() },
            num_rows => DatasetError::NoImages {
                url: url(),
                column: shards[0].mapping.images[0].path.to_string(),
                num_rows,
            },
        });
    }
    Ok(Source {
        shards: first..first + shards.len() as u32,
        num_samples,
        num_absent,
        weight,
        class_names: naming.and_then(|shard| shard.mapping.class_names.clone()),
    })
}

/// Says how most shards can be read without the few that differ.
fn without_few(mut error: DatasetError, first: &Shard, shards: &[Shard]) -> DatasetError {
    if let DatasetError::SchemasDiffer { leave_out, .. } = &mut error {
        let differs = |shard| same_mapping(first, shard).is_err();
        let differs = shards.iter().map(differs).collect::<Vec<_>>();
        let few = differs.iter().filter(|differs| **differs).count() * 2 < shards.len();
        let is_odd = |index: usize| differs[index] == few;
        let objects = shards.iter().map(|shard| shard.object.listed.clone());
        let objects = objects.collect::<Vec<_>>();
        if let Some(odd) = (0..shards.len()).find(|&index| is_odd(index)) {
            *leave_out = leave_out::leave_out(&objects, odd, is_odd);
        }
    }
    error
}

/// Shards of one data set must read alike, or a sample would mean different things in different
/// shards.
fn same_mapping(first: &Shard, second: &Shard) -> Result<(), DatasetError> {
    if Arc::ptr_eq(&first.mapping, &second.mapping) {
        return Ok(());
    }
    match first.mapping.difference(&second.mapping) {
        None => Ok(()),
        Some(difference) => Err(DatasetError::SchemasDiffer {
            first: first.url.clone(),
            second: second.url.clone(),
            difference,
            leave_out: LeaveOut::Nothing,
        }),
    }
}

/// A digest of what decides the order of the samples of one data set.
pub(super) fn digest(shards: &[Shard]) -> sha2::digest::Output<Sha256> {
    let mut digest = Sha256::new();
    digest.update(b"nepa data set 1");
    for path in shards[0].mapping.leaf_paths() {
        update_text(&mut digest, &path.to_string());
    }
    let urls = shards.iter().map(|shard| shard.url.as_str());
    let root = common_root(&urls.collect::<Vec<_>>());
    for shard in shards {
        update_text(&mut digest, &shard.url[root..]);
        let mut number = |number: u64| digest.update(number.to_le_bytes());
        number(shard.size);
        number(shard.parts.len() as u64);
        for part in &shard.parts {
            number(u64::from(part.num_rows));
            // Only where there is something to say, so that other data sets keep their digests.
            if part.num_absent > 0 {
                number(u64::from_le_bytes(*b"  absent"));
                number(u64::from(part.num_absent));
            }
            if part.counted_by_values {
                number(u64::from_le_bytes(*b"  memory"));
                number(part.memory_bytes);
            }
        }
    }
    digest.finalize()
}

fn update_text(digest: &mut Sha256, text: &str) {
    digest.update((text.len() as u64).to_le_bytes());
    digest.update(text.as_bytes());
}
