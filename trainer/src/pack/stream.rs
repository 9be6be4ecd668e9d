//! Packing images one after the other, whose number is not known before. A shard is cut when it has
//! its size, so names hold no total: `train-00000.parquet`, `train-00001.parquet`, ...
use std::collections::HashMap;
use std::slice;

use bytes::Bytes;
use nepa_pipeline::{IoConfig, IoRuntime, StoreUrl, open_url, read_header};

use super::existing::listed_shards;
use super::{Labels, PackError, PackedImage, ShardWriter};

/// How to pack a stream of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptions {
    /// The first part of the shards' names.
    pub split: String,
    /// Names of the classes: a label is then an index into them, or one of them. `None`: labels
    /// are numbers that mean what they mean.
    pub classes: Option<Vec<String>>,
    /// Row groups reach this size, of images as they are encoded.
    pub row_group_bytes: u64,
    /// Shards are at most about this large.
    pub shard_bytes: u64,
    /// Whether each image's header is read, and an image that has none that can be read refused.
    pub check: bool,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            split: "train".to_owned(),
            classes: None,
            row_group_bytes: 8 << 20,
            shard_bytes: 256 << 20,
            check: true,
        }
    }
}

/// The label of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemLabel {
    /// Index of its class, or a number.
    Number(i64),
    /// The name of its class, which has to be one of [`StreamOptions::classes`].
    Name(String),
}

/// A shard that is whole and visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedShard {
    /// `train-00000.parquet`.
    pub name: String,
    /// Its images.
    pub num_rows: u64,
    /// Its size.
    pub num_bytes: u64,
}

/// Packs images into shards below a URL.
///
/// [`Packer::add`] only holds an image; where [`Packer::is_full`], [`Packer::write`] is to be
/// called and blocks while the store is busy. A shard appears when it is complete. Whoever drops a packer
/// gives up the shard in hand, of which nothing is left in the store; those before stay.
///
/// Where `classes` are given, or an image of the first row group has a label, the shards have a
/// column `label`.
pub struct Packer {
    runtime: IoRuntime,
    folder: StoreUrl,
    options: StreamOptions,
    class_numbers: HashMap<String, i64>,
    /// Whether shards have labels; decided when the first row group is written.
    is_labelled: Option<bool>,
    row_group: Vec<PackedImage>,
    held_bytes: u64,
    num_items: u64,
    shard: Option<OpenShard>,
    written: Vec<PackedShard>,
    has_failed: bool,
}

/// A shard that is being written.
struct OpenShard {
    name: String,
    num_rows: u64,
    writer: ShardWriter,
}

impl Packer {
    /// Packs below `url`, a local folder or a prefix of a store. Refused where there are shards of
    /// this split already.
    pub fn open(url: &str, io: &IoConfig, options: StreamOptions) -> Result<Self, PackError> {
        let class_numbers = check(&options)?;
        let folder = open_url(url, io)?;
        let runtime = IoRuntime::new(2).map_err(PackError::Threads)?;
        let existing = listed_shards(&runtime, &folder, slice::from_ref(&options.split))?;
        if let Some((example, _)) = existing.first() {
            return Err(PackError::Exists {
                url: folder.url.clone(),
                count: existing.len(),
                example: example.clone(),
            });
        }
        Ok(Self {
            runtime,
            folder,
            options,
            class_numbers,
            is_labelled: None,
            row_group: Vec::new(),
            held_bytes: 0,
            num_items: 0,
            shard: None,
            written: Vec::new(),
            has_failed: false,
        })
    }

    /// Holds the next image, an encoded file that is kept byte for byte. An image that is refused
    /// is not held, and packing may go on without it.
    pub fn add(
        &mut self,
        bytes: Bytes,
        label: Option<ItemLabel>,
        path: Option<String>,
    ) -> Result<(), PackError> {
        let item = self.num_items;
        self.num_items += 1;
        if self.options.check
            && let Err(source) = read_header(&bytes)
        {
            return Err(PackError::Image { item, path, source });
        }
        let label = match label {
            Some(label) => Some(self.number(item, label, path.as_deref())?),
            None => None,
        };
        if label.is_some() && self.is_labelled == Some(false) {
            return Err(PackError::LateLabel { item, path });
        }
        self.held_bytes += bytes.len() as u64;
        self.row_group.push(PackedImage { bytes, path, label });
        Ok(())
    }

    /// Whether a row group has its size and is to be written.
    pub fn is_full(&self) -> bool {
        self.held_bytes >= self.row_group_bytes()
    }

    /// Writes what is held as a row group, and ends the shard where another row group would make
    /// it too large. After an error nothing more can be written.
    pub fn write(&mut self) -> Result<(), PackError> {
        self.unless_failed(Self::write_row_group)
    }

    /// Writes the rest and ends the shard. Gives all shards; none where nothing was added.
    pub fn finish(&mut self) -> Result<&[PackedShard], PackError> {
        self.unless_failed(|packer| {
            packer.write_row_group()?;
            packer.end_shard()
        })?;
        Ok(&self.written)
    }

    /// The shards that are whole.
    pub fn written(&self) -> &[PackedShard] {
        &self.written
    }

    fn unless_failed(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<(), PackError>,
    ) -> Result<(), PackError> {
        if self.has_failed {
            return Err(PackError::Ended);
        }
        let written = write(self);
        if written.is_err() {
            self.has_failed = true;
            // Gives up the upload.
            self.shard = None;
        }
        written
    }

    fn row_group_bytes(&self) -> u64 {
        self.options.row_group_bytes.min(self.options.shard_bytes)
    }

    fn number(&self, item: u64, label: ItemLabel, path: Option<&str>) -> Result<i64, PackError> {
        let path = path.map(str::to_owned);
        let num_classes = self.options.classes.as_ref().map(Vec::len);
        match (label, num_classes) {
            (ItemLabel::Number(label), None) => Ok(label),
            (ItemLabel::Number(label), Some(num_classes)) => {
                let is_index = usize::try_from(label).is_ok_and(|label| label < num_classes);
                is_index.then_some(label).ok_or(PackError::LabelIndex {
                    item,
                    path,
                    label,
                    num_classes,
                })
            }
            (ItemLabel::Name(label), named) => match self.class_numbers.get(&label) {
                Some(number) => Ok(*number),
                None => Err(PackError::LabelName {
                    item,
                    path,
                    label,
                    named: named.is_some(),
                }),
            },
        }
    }

    fn write_row_group(&mut self) -> Result<(), PackError> {
        let images = std::mem::take(&mut self.row_group);
        self.held_bytes = 0;
        if images.is_empty() {
            return Ok(());
        }
        let is_labelled = *self.is_labelled.get_or_insert_with(|| {
            self.options.classes.is_some() || images.iter().any(|image| image.label.is_some())
        });
        let shard = match &mut self.shard {
            Some(shard) => shard,
            none => {
                let name = format!("{}-{:05}.parquet", self.options.split, self.written.len());
                let labels = match &self.options.classes {
                    Some(classes) => Labels::Classes(classes),
                    None if is_labelled => Labels::Numbers,
                    None => Labels::Absent,
                };
                // Row groups are cut here, not there.
                let (runtime, folder) = (&self.runtime, &self.folder);
                let writer = ShardWriter::new(runtime, folder, &name, None, labels, u64::MAX)?;
                none.insert(OpenShard {
                    name,
                    num_rows: 0,
                    writer,
                })
            }
        };
        shard.num_rows += images.len() as u64;
        shard.writer.write(images)?;
        let with_another = shard
            .writer
            .written_bytes()
            .saturating_add(self.row_group_bytes());
        if with_another > self.options.shard_bytes {
            self.end_shard()?;
        }
        Ok(())
    }

    fn end_shard(&mut self) -> Result<(), PackError> {
        let Some(shard) = self.shard.take() else {
            return Ok(());
        };
        let num_bytes = shard.writer.finish()?;
        self.written.push(PackedShard {
            name: shard.name,
            num_rows: shard.num_rows,
            num_bytes,
        });
        Ok(())
    }
}

/// Checks the options; gives the classes by name.
fn check(options: &StreamOptions) -> Result<HashMap<String, i64>, PackError> {
    let split = &options.split;
    if split.is_empty() || split.contains(['/', '\\']) || split.starts_with(['_', '.']) {
        return Err(PackError::Split {
            split: split.clone(),
        });
    }
    for (setting, bytes) in [
        ("row_group_bytes", options.row_group_bytes),
        ("shard_bytes", options.shard_bytes),
    ] {
        if bytes == 0 {
            return Err(PackError::Size { setting });
        }
    }
    let classes = options.classes.as_deref();
    if classes.is_some_and(<[String]>::is_empty) {
        return Err(PackError::NoClasses);
    }
    let mut numbers = HashMap::new();
    for (number, class) in (0..).zip(classes.unwrap_or_default()) {
        if numbers.insert(class.clone(), number).is_some() {
            return Err(PackError::RepeatedClass {
                class: class.clone(),
            });
        }
    }
    Ok(numbers)
}
