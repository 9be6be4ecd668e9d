//! What lies below a prefix, as the store or the disk gives it.
use object_store::ObjectMeta;
use object_store::path::Path;

use super::OddKeys;

/// What lies below a prefix.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub entries: Vec<Entry>,
    /// Folders in it, of a local or a flat listing.
    pub folders: Vec<Path>,
    /// Parquet files that cannot be named.
    pub odd: OddKeys,
}

/// One object; a local file or folder that is no data has no size.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub path: Path,
    pub size: u64,
}

impl From<ObjectMeta> for Entry {
    fn from(meta: ObjectMeta) -> Self {
        Self {
            path: meta.location,
            size: meta.size,
        }
    }
}
