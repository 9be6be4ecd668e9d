//! Small and large files of a folder in a store, by their names alone: a web server cannot be
//! listed, and not everybody who may read a bucket may list it.
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;
use nepa_pipeline::{Action, IoConfig, IoRuntime, Place, StoreError, StoreUrl, classify, open_url};
use object_store::ObjectStoreExt;

use super::error::WeightsError;
use super::names::CONFIG;
use crate::checkpoint::io;
use crate::console::progress::Progress;

/// A folder in a store.
#[derive(Debug)]
pub(super) struct Store {
    place: StoreUrl,
    runtime: IoRuntime,
}

/// What became of asking for a file.
#[derive(Debug)]
pub(super) enum Look<T> {
    There(T),
    Absent,
    /// Refused: without the right to list a bucket, a name that is not there is refused, too.
    Denied(WeightsError),
}

impl Store {
    pub(super) fn open(
        url: &str,
        io_config: &IoConfig,
        runtime: &IoRuntime,
    ) -> Result<Self, WeightsError> {
        // A web server's root is no object to the store; a file in it is.
        let root = web_root(url);
        let opened = open_url(root.as_deref().unwrap_or(url), io_config);
        let mut place = opened.map_err(|source| WeightsError::Open {
            url: nepa_pipeline::redact(url),
            source: Box::new(source),
        })?;
        if root.is_some() {
            place.path = object_store::path::Path::default();
            let shown = place.url.trim_end_matches(CONFIG).to_owned();
            place.url = shown;
        }
        Ok(Self {
            place,
            runtime: runtime.clone(),
        })
    }

    /// The folder, without secrets.
    pub(super) fn url(&self) -> &str {
        &self.place.url
    }

    /// Whether it is a web server, which cannot be listed.
    pub(super) fn is_web(&self) -> bool {
        self.place.location.provider == nepa_pipeline::Provider::Http
    }

    /// Reads a small file, if it is there.
    pub(super) fn read(&self, name: &str) -> Result<Look<Vec<u8>>, WeightsError> {
        let (store, path) = self.object(name);
        let answer = self
            .runtime
            .block_on(async move { store.get(&path).await?.bytes().await });
        self.looked(name, answer.map(|bytes| bytes.to_vec()))
    }

    /// Whether a file is there, as far as whoever asks may know.
    pub(super) fn has(&self, name: &str) -> Result<bool, WeightsError> {
        let (store, path) = self.object(name);
        let answer = self
            .runtime
            .block_on(async move { store.head(&path).await });
        Ok(matches!(self.looked(name, answer)?, Look::There(_)))
    }

    /// Brings a file of any size to this machine, if it is there.
    pub(super) fn fetch(
        &self,
        name: &str,
        to: &Path,
        progress: &Arc<Progress>,
    ) -> Result<Look<()>, WeightsError> {
        let (store, path) = self.object(name);
        let (target, progress) = (to.to_owned(), Arc::clone(progress));
        let answer = self.runtime.block_on(async move {
            let found = store.get(&path).await?;
            progress.add_total(found.meta.size);
            let mut file = match File::create(&target) {
                Ok(file) => file,
                Err(error) => return Ok(Err(error)),
            };
            let mut body = found.into_stream();
            while let Some(bytes) = body.try_next().await? {
                if let Err(error) = file.write_all(&bytes) {
                    return Ok(Err(error));
                }
                progress.add(bytes.len() as u64);
            }
            Ok(Ok(()))
        });
        match self.looked(name, answer)? {
            Look::There(written) => {
                written.map_err(io("write", to))?;
                Ok(Look::There(()))
            }
            Look::Absent => Ok(Look::Absent),
            Look::Denied(error) => Ok(Look::Denied(error)),
        }
    }

    fn object(&self, name: &str) -> (Arc<dyn object_store::ObjectStore>, object_store::path::Path) {
        let path = name.split('/');
        let path = path.fold(self.place.path.clone(), object_store::path::Path::join);
        (Arc::clone(&self.place.store), path)
    }

    fn looked<T>(
        &self,
        name: &str,
        answer: object_store::Result<T>,
    ) -> Result<Look<T>, WeightsError> {
        let error = match answer {
            Ok(found) => return Ok(Look::There(found)),
            Err(error) => error,
        };
        let url = format!("{}/{name}", self.url().trim_end_matches('/'));
        let place = Place {
            object: url.clone(),
            ..Place::default()
        };
        let source = classify(&error, Action::Read, &self.place.location, place);
        let (absent, denied) = (
            matches!(source, StoreError::NotFound { .. }),
            matches!(source, StoreError::Denied { .. }),
        );
        let source = Box::new(source);
        let error = WeightsError::Store { url, source };
        match (absent, denied) {
            (true, _) => Ok(Look::Absent),
            (_, true) => Ok(Look::Denied(error)),
            _ => Err(error),
        }
    }
}

/// The URL of a file in a web server's root, if `url` is that root.
fn web_root(url: &str) -> Option<String> {
    let mut parsed = url::Url::parse(url).ok()?;
    let is_root = matches!(parsed.scheme(), "http" | "https") && parsed.path() == "/";
    is_root.then(|| {
        parsed.set_path(CONFIG);
        parsed.to_string()
    })
}
