//! What can be wrong with a schema, a batch, or a row.

/// The schema or a record batch cannot be read as an image shard: the run is bad.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {}

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
}
