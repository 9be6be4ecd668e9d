//! URLs to object stores: local paths, `file://`, `s3://`, `gs://`, `az://`, `http(s)://`.
use std::sync::Arc;

use object_store::{ObjectStore, path::Path};

use crate::{DatasetError, IoConfig};

/// A place in an object store: an object or a prefix.
#[derive(Debug, Clone)]
pub struct StoreUrl {
    /// The store, with timeouts and retries set.
    pub store: Arc<dyn ObjectStore>,
    /// The path in the store.
    pub path: Path,
    /// The URL for people: without user, password and query.
    pub url: String,
}

/// Opens the store behind `url` (no glob). Nothing is sent yet. The store must be used inside a tokio runtime
/// ([`crate::IoRuntime::block_on`]).
pub fn open_url(_url: &str, _io: &IoConfig) -> Result<StoreUrl, DatasetError> {
    unimplemented!()
}
