//! What can go wrong in the pipeline. A sample can be bad (counted, replaced, reported) or a run can be bad (it ends).
use crate::SampleId;

/// Where something happened, as far as known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// URL of the object, without secrets.
    pub object: String,
    /// Row group in the object.
    pub row_group: Option<usize>,
    /// Row in the row group.
    pub row: Option<usize>,
    /// Byte range in the object.
    pub bytes: Option<std::ops::Range<u64>>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.object)?;
        if let Some(row_group) = self.row_group {
            write!(f, ", row group {row_group}")?;
        }
        if let Some(row) = self.row {
            write!(f, ", row {row}")?;
        }
        if let Some(bytes) = &self.bytes {
            write!(f, ", bytes {}..{}", bytes.start, bytes.end)?;
        }
        Ok(())
    }
}

/// A data set cannot be opened or read: the run is bad.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {}

/// One image cannot be decoded or cropped: the sample is bad.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {}

/// The loader cannot go on: the run is bad.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// Reading the data set failed.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Placeholder for the loader's own variants.
    #[error("{0}")]
    Placeholder(SampleId),
}
