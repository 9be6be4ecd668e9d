//! What can be wrong with a data set: its configuration, its shards, their footers and pages.
use super::{Beginning, LeaveOut};
use crate::{Place, StoreError};

fn shown(urls: &[String]) -> String {
    let urls: Vec<String> = urls
        .iter()
        .map(|url| crate::store::shown_url(url))
        .collect();
    urls.join(", ")
}

/// What the index of a data set lacks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexProblem {
    /// It cannot be read.
    #[error(
        "it is cut off, damaged, or no index; write it again (`nepa inspect URL --index FILE`)"
    )]
    Damaged {
        /// What the reader says.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// It holds something else.
    #[error("it is no index of a data set; `nepa inspect URL --index FILE` writes one")]
    NoIndex,
    /// It was changed.
    #[error(
        "it does not hold what was written (wrong checksum); write it again \
         (`nepa inspect URL --index FILE`)"
    )]
    Checksum,
    /// Another program has written it.
    #[error(
        "its format has version {found}, and this program reads version {known}; write it again \
         (`nepa inspect URL --index FILE`)"
    )]
    Version {
        /// Its version.
        found: u32,
        /// The version that is read.
        known: u32,
    },
    /// It is of other URLs or of another split.
    #[error(
        "it is of {indexed}, and {asked} is to be read; write one of that, or leave the index out \
         (--set data.index=none)"
    )]
    OtherData {
        /// What it is of.
        indexed: String,
        /// What is to be read.
        asked: String,
    },
    /// It was written for other columns.
    #[error(
        "it does not have the column `{column}`, which is to be read; write it again with the same \
         columns (`nepa inspect URL --index FILE --image-column NAME --label-column NAME`)"
    )]
    Column {
        /// Dotted path.
        column: String,
    },
}

impl IndexProblem {
    /// As the reader says.
    pub(super) fn damaged(source: parquet::errors::ParquetError) -> Self {
        Self::Damaged { source }
    }
}

/// A data set cannot be opened or read: the run is bad.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// The store behind it failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A data set and a mixture are named at once.
    #[error(
        "both a data set ({}) and a mixture are named: name the data set as one more source of the mixture, or leave the mixture out",
        shown(urls)
    )]
    UrlsBesideMixture {
        /// The data set's URLs.
        urls: Vec<String>,
    },
    /// One index is named for several data sets.
    #[error(
        "the index {index} is named for a whole mixture: give each data set of the mixture an `index` of its own, or none"
    )]
    IndexBesideMixture {
        /// The index, without secrets.
        index: String,
    },
    /// The index of the data set cannot be used.
    #[error("cannot open the data set by its index {index}")]
    Index {
        /// Its path or URL, without secrets.
        index: String,
        /// Why.
        #[source]
        source: IndexProblem,
    },
    /// An index of the data set cannot be written.
    #[error(
        "there can be no index of {data}: its schema cannot be written again, as some column has a \
         type that is not known; read it without an index"
    )]
    NotIndexed {
        /// Its URLs, without secrets.
        data: String,
        /// What the writer says.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// An object is not the one that the index describes.
    #[error(
        "{object} {change}, and the index {index} is of before that: write the index again \
         (`nepa inspect URL --index {index}`)"
    )]
    Stale {
        /// The object, or the place in it that was read.
        object: String,
        /// What became of it.
        change: String,
        /// The index, without secrets.
        index: String,
    },
    /// A weight of a mixture is of no use.
    #[error(
        "the weight of {} in the mixture is {weight}, but it must be positive and finite; leave a data set out to read nothing of it",
        shown(urls)
    )]
    MixtureWeight {
        /// The data set's URLs.
        urls: Vec<String>,
        /// Its weight.
        weight: f64,
    },
    /// No shard is of the split that was asked for.
    #[error("no shard is of the split `{split}`: {}", splits_found(found, *unnamed, example))]
    NoSuchSplit {
        /// The split.
        split: String,
        /// The splits that there are, with their numbers of shards.
        found: Vec<(String, usize)>,
        /// Shards whose names say no split.
        unnamed: usize,
        /// The first shard.
        example: String,
    },
    /// Something about the data set is doubtful, and the configuration is strict.
    #[error(
        "strict: {}; mend it, or leave --strict (data.strict in a recipe) out to go on with a warning",
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; and ")
    )]
    Strict {
        /// All of it.
        warnings: Vec<super::DatasetWarning>,
    },
    /// The object is not Parquet.
    #[error("{place} is not a Parquet file: it {start}")]
    NotParquet {
        /// Which.
        place: Place,
        /// How it begins.
        start: Beginning,
    },
    /// The object begins as Parquet and ends elsewhere.
    #[error("{place} is truncated: {what}; upload it again ({size} bytes are there)")]
    Truncated {
        /// Which.
        place: Place,
        /// How that is known.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
    },
    /// The object is encrypted.
    #[error(
        "{place} is encrypted (Parquet modular encryption), which is not supported; write it again without"
    )]
    Encrypted {
        /// Which.
        place: Place,
    },
    /// The file uses what the reader lacks; it need not be damaged.
    #[error(
        "{place} is written with a feature of Parquet that is not supported: {feature}; write the file again with usual settings \
         (such as pyarrow's defaults)"
    )]
    Unsupported {
        /// Which.
        place: Place,
        /// What the reader lacks.
        feature: String,
    },
    /// The footer cannot be read.
    #[error("the footer of {place} is damaged; write or upload the file again")]
    BadFooter {
        /// Which.
        place: Place,
        /// What the reader says.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// The footer contradicts itself or the file.
    #[error("the footer of {place} is damaged: {problem}; write or upload the file again")]
    BadMetadata {
        /// Where.
        place: Place,
        /// The contradiction.
        problem: &'static str,
    },
    /// The schema is none that we read.
    #[error("cannot read images from {place}{leave_out}")]
    Schema {
        /// Which.
        place: Place,
        /// Why.
        #[source]
        source: Box<nepa_schemas::SchemaError>,
        /// How the others can be read without it.
        leave_out: LeaveOut,
    },
    /// Two shards read differently.
    #[error(
        "the shards do not go together: {difference} (first {first}, then {second}); read them as separate data sets{leave_out}"
    )]
    SchemasDiffer {
        /// The first shard's URL.
        first: String,
        /// The URL of the one that differs.
        second: String,
        /// In what.
        difference: String,
        /// How most can be read without the few.
        leave_out: LeaveOut,
    },
    /// All shards are empty.
    #[error("{url} and all other shards hold no rows")]
    NoRows {
        /// The first shard's URL.
        url: String,
    },
    /// All rows are without an image.
    #[error(
        "none of the {num_rows} rows of {url} and the other shards holds an image: `{column}` is null in all of them; if a path or URL stands \
         instead, download the images first (for example with img2dataset, output_format=parquet), or name another column (--image-column)"
    )]
    NoImages {
        /// The first shard's URL.
        url: String,
        /// The image column.
        column: String,
        /// Rows.
        num_rows: u64,
    },
    /// A page's checksum does not match its bytes.
    #[error(
        "a page of {place} has a wrong checksum: the bytes were damaged in storage; upload the file again"
    )]
    PageChecksum {
        /// Where.
        place: Place,
        /// What the reader says.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// A page cannot be decompressed or decoded.
    #[error("a page of {place} is damaged; write or upload the file again")]
    BadPage {
        /// Where.
        place: Place,
        /// What the reader says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A row group holds other rows than its footer says.
    #[error("{place} holds {found} rows, and its footer says {expected}; write the file again")]
    RowCount {
        /// Where.
        place: Place,
        /// Rows in the footer.
        expected: u64,
        /// Rows read.
        found: u64,
    },
    /// More rows hold an image than the statistics leave.
    #[error(
        "the statistics of {place} count {said} rows without an image, and {found} are: which rows are samples cannot be known; write the file \
         again"
    )]
    AbsentCount {
        /// Where.
        place: Place,
        /// Rows without an image by the statistics.
        said: u64,
        /// Rows without an image.
        found: u64,
    },
    /// A column would take much more memory than the footer says.
    #[error(
        "the column `{column}` of {place} unpacks to at least {found} bytes, and its footer says {said}: it was not unpacked. If the file is sound, \
         write it again with plain or dictionary encoding; otherwise it was damaged, or made to exhaust memory"
    )]
    UnpacksLarger {
        /// Where.
        place: Place,
        /// Dotted path of the column.
        column: String,
        /// Bytes that it would take, as far as counted.
        found: u64,
        /// Bytes that the part takes by the footer.
        said: u64,
    },
    /// A row group claims more rows than can be images.
    #[error(
        "{place} claims {num_rows} rows in {num_bytes} bytes, fewer than one byte a row: its footer is damaged, or the rows all hold the same few \
         images; write row groups of at most {most} rows"
    )]
    TooManyRows {
        /// Where.
        place: Place,
        /// Rows in the footer.
        num_rows: u64,
        /// Bytes of the columns that are read, as stored.
        num_bytes: u64,
        /// Rows that are always read.
        most: u64,
    },
}

impl DatasetError {
    /// Where it happened, where that is one place.
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::Store(error) => error.place(),
            Self::NotParquet { place, .. }
            | Self::Truncated { place, .. }
            | Self::Encrypted { place }
            | Self::Unsupported { place, .. }
            | Self::BadFooter { place, .. }
            | Self::BadMetadata { place, .. }
            | Self::Schema { place, .. }
            | Self::PageChecksum { place, .. }
            | Self::BadPage { place, .. }
            | Self::RowCount { place, .. }
            | Self::AbsentCount { place, .. }
            | Self::UnpacksLarger { place, .. }
            | Self::TooManyRows { place, .. } => Some(place.clone()),
            Self::Index { index: object, .. }
            | Self::Stale { object, .. }
            | Self::NoRows { url: object }
            | Self::NoImages { url: object, .. } => Some(Place::of(object)),
            Self::UrlsBesideMixture { .. }
            | Self::IndexBesideMixture { .. }
            | Self::NotIndexed { .. }
            | Self::MixtureWeight { .. }
            | Self::NoSuchSplit { .. }
            | Self::Strict { .. }
            | Self::SchemasDiffer { .. } => None,
        }
    }

    /// What it means that an object cannot be read which `index` describes.
    pub(super) fn by_index(error: StoreError, index: &str) -> Self {
        let (object, change) = match error {
            StoreError::Replaced { place, expected } => (
                place.to_string(),
                format!("was replaced (expected {expected})"),
            ),
            StoreError::NotFound { url, .. } => (url, "does not exist any more".to_owned()),
            other => return other.into(),
        };
        Self::Stale {
            object,
            change,
            index: index.to_owned(),
        }
    }
}

fn splits_found(found: &[(String, usize)], unnamed: usize, example: &str) -> String {
    let mut parts = found
        .iter()
        .map(|(split, count)| format!("{split} ({count})"))
        .collect::<Vec<_>>();
    if unnamed > 0 {
        parts.push(format!(
            "{unnamed} whose name says no split, such as {example}"
        ));
    }
    format!(
        "there are {}; choose one of them, or give a glob",
        parts.join(", ")
    )
}
