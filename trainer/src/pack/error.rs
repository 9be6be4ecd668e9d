//! Why images cannot be packed.
use nepa_pipeline::{ImageError, StoreError};
use parquet::errors::ParquetError;

/// Images cannot be packed. Items are counted from 0, in the order in which they were added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The name of the split cannot begin a shard's name.
    #[error(
        "split {split:?} must be a name that can begin a file name, such as train: without / and \
         \\, and with neither _ nor . in front, which marks what is no data"
    )]
    Split {
        /// The name.
        split: String,
    },
    /// A size is 0.
    #[error("{setting} must be at least 1")]
    Size {
        /// `row_group_bytes` or `shard_bytes`.
        setting: &'static str,
    },
    /// No class is named.
    #[error("classes is empty: name the classes in the order of their labels, or leave it out")]
    NoClasses,
    /// A class is named twice.
    #[error("classes names {class:?} twice: each class has one name of its own")]
    RepeatedClass {
        /// The name.
        class: String,
    },
    /// The store cannot be opened, or its shards cannot be listed.
    #[error(transparent)]
    Open(#[from] StoreError),
    /// The I/O threads cannot be started.
    #[error("cannot start the I/O threads")]
    Threads(#[source] std::io::Error),
    /// Shards of this split are there already.
    #[error(
        "{url} already holds {count} shards of this split, such as {example}, and nothing is \
         overwritten: remove them, or choose another URL or split"
    )]
    Exists {
        /// The folder, without secrets.
        url: String,
        /// How many there are.
        count: usize,
        /// The name of the first.
        example: String,
    },
    /// Bytes that are no image.
    #[error(
        "item {item}{} cannot be read as an image: leave it out, or pack it unchecked",
        called(path.as_deref())
    )]
    Image {
        /// Number of the item.
        item: u64,
        /// What the item is called.
        path: Option<String>,
        /// What the decoder says.
        source: ImageError,
    },
    /// A label that is no index into the classes.
    #[error(
        "label {label} of item {item}{} is not one of 0 to {}: the {num_classes} classes are \
         counted from 0, and an item without a label has none",
        called(path.as_deref()), num_classes - 1
    )]
    LabelIndex {
        /// Number of the item.
        item: u64,
        /// What the item is called.
        path: Option<String>,
        /// The label.
        label: i64,
        /// How many classes there are, at least 1.
        num_classes: usize,
    },
    /// A label that is the name of no class.
    #[error(
        "label {label:?} of item {item}{} is none of the names in classes; {}",
        called(path.as_deref()),
        if *named { "add it there, or correct it" } else {
            "give classes, the names of all classes in order, or numbers as labels"
        }
    )]
    LabelName {
        /// Number of the item.
        item: u64,
        /// What the item is called.
        path: Option<String>,
        /// The label.
        label: String,
        /// Whether the classes have names.
        named: bool,
    },
    /// A label after a whole row group without any.
    #[error(
        "item {item}{} has a label, and none of the images of the first row group has one, so that \
         the shards have no column of labels: give classes, begin with images that have labels, or \
         pack both kinds as two splits",
        called(path.as_deref())
    )]
    LateLabel {
        /// Number of the item.
        item: u64,
        /// What the item is called.
        path: Option<String>,
    },
    /// A shard cannot be written.
    #[error("cannot write {url}")]
    Store {
        /// The shard, without secrets.
        url: String,
        /// What the store says.
        source: StoreError,
    },
    /// A shard's bytes cannot be made.
    #[error("cannot write {url}")]
    Parquet {
        /// The shard, without secrets.
        url: String,
        /// What the writer says.
        source: ParquetError,
    },
    /// Something could not be written before.
    #[error("an image could not be written before, and packing ended there")]
    Ended,
}

impl PackError {
    /// The URL of what cannot be written or is there already, without secrets.
    pub fn object(&self) -> Option<&str> {
        match self {
            Self::Exists { url, .. } | Self::Store { url, .. } | Self::Parquet { url, .. } => {
                Some(url)
            }
            _ => None,
        }
    }
}

fn called(path: Option<&str>) -> String {
    path.map(|path| format!(" ({path})")).unwrap_or_default()
}
