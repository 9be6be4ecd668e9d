//! What can be wrong with a schema, a batch, or a row.
//! Each message says what was looked for, what was found, and which option to set.

/// The schema or a record batch cannot be read as an image shard: the run is bad.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// No column looks like encoded images.
    #[error(
        "no column with encoded images: expected struct<bytes, path> (Hugging Face) or a binary column named {}; \
         the columns are [{}]{}",
        crate::flat::USUAL_NAMES.join(", "),
        columns.join(", "),
        other_binary(binary_columns)
    )]
    NoImageColumn {
        /// All columns, as `name: type`.
        columns: Vec<String>,
        /// Binary columns under other names, which `image_column` could name.
        binary_columns: Vec<String>,
    },
    /// The images are given by URL only.
    #[error(
        "the column `{column}` holds URLs and no column holds image bytes: download the images first \
         (for example with img2dataset, output_format=parquet) and read the shards that it writes"
    )]
    UrlOnly {
        /// The column of URLs.
        column: String,
    },
    /// The images are given by path only.
    #[error(
        "the column `{column}` holds strings, by its name the paths of images, and no column holds image bytes: write the bytes of the files into \
         the shards (`nepa pack FOLDER` writes such shards of folders of images)"
    )]
    PathsOnly {
        /// The column of paths.
        column: String,
    },
    /// A column that is called like one of images holds strings.
    #[error("the column `{column}` holds strings, not binary{}", crate::text::advice(column, value.as_deref()))]
    TextColumn {
        /// Its name.
        column: String,
        /// The beginning of one of its values, where it is known.
        value: Option<Vec<u8>>,
    },
    /// All columns that would hold images are of no type.
    #[error(
        "the column `{column}` holds no image in any row of any shard: write the bytes of the images into the shards"
    )]
    NoBytes {
        /// Its name.
        column: String,
    },
    /// Several columns look like encoded images.
    #[error(
        "{} columns could hold the images: {}; set image_column to one of them (--image-column {} on the command line)",
        candidates.len(),
        candidates.join(", "),
        candidates[0]
    )]
    AmbiguousImageColumn {
        /// Their names, in the schema's order.
        candidates: Vec<String>,
    },
    /// The column that an option names does not exist.
    #[error("there is no column `{column}`, which {option} names; the columns are [{}]", columns.join(", "))]
    MissingColumn {
        /// `image_column`, `label_column` or `extra_columns`.
        option: &'static str,
        /// The name asked for.
        column: String,
        /// All columns, as `name: type`.
        columns: Vec<String>,
    },
    /// The column that an option names has a type that cannot be read so.
    #[error("the column `{column}`, which {option} names, is {found}; expected {expected}")]
    UnreadableColumn {
        /// `image_column`, `label_column` or `extra_columns`.
        option: &'static str,
        /// The name asked for.
        column: String,
        /// Its type.
        found: String,
        /// What is read.
        expected: &'static str,
    },
    /// A record batch lacks a column of the mapping.
    #[error(
        "the column `{column}` is missing in this shard, though the data set's mapping reads it: the shards differ"
    )]
    BatchLacksColumn {
        /// The missing column, dotted for a child of a struct.
        column: String,
    },
    /// A record batch has a column of another type than the mapping.
    #[error(
        "the column `{column}` is {found} in this shard; the data set's mapping reads {expected}: the shards differ"
    )]
    BatchColumnType {
        /// The column, dotted for a child of a struct.
        column: String,
        /// Its type in the batch.
        found: String,
        /// What the mapping reads.
        expected: &'static str,
    },
    /// A label is none that is read.
    #[error(
        "the label in column `{column}`, row {row}, is {value}: {problem}; choose another column with --label-column (label_column), or none with \
         an empty one"
    )]
    LabelValue {
        /// The label column.
        column: String,
        /// The row in the batch; in the row group, where that is known.
        row: usize,
        /// What stands there.
        value: String,
        /// What a label must be.
        problem: &'static str,
    },
}

impl SchemaError {
    /// The same error of a batch that begins with row `first_row` of its row group.
    #[must_use]
    pub fn in_rows_from(mut self, first_row: usize) -> Self {
        if let Self::LabelValue { row, .. } = &mut self {
            *row += first_row;
        }
        self
    }
}

fn other_binary(columns: &[String]) -> String {
    match columns {
        [] => String::new(),
        [first, ..] => format!(
            "; if the images are in one of the binary columns ({}), set image_column (--image-column {first})",
            crate::column_path::listed(columns).join(", ")
        ),
    }
}

/// One row holds no usable image bytes: the sample is bad.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The image, or its bytes, are null.
    #[error("the image is null")]
    Null,
    /// The bytes are null and only a path or URL is given.
    #[error("the image has no bytes, only the path {path:?}")]
    PathOnly {
        /// The path or URL that stands in the row.
        path: String,
    },
    /// The bytes have length zero.
    #[error("the image has zero bytes")]
    Empty,
    /// The text is cut off, or is no base64 after its beginning.
    #[error("the text begins as base64 of an image, and is none")]
    NotBase64,
}

impl RowError {
    /// Whether the row has no image at all. Zero bytes are an image that is damaged.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Null | Self::PathOnly { .. } => true,
            Self::Empty | Self::NotBase64 => false,
        }
    }
}
