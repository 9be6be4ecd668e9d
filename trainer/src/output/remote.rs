//! A prefix of an object store that holds a run: objects found, read and deleted, blocking. The
//! store itself waits for outages, for `io.outage_s`. Checkpoints and logs are written in the
//! background, by `sender`.
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;
use nepa_pipeline::{Action, IoConfig, IoRuntime, Place, StoreUrl, classify, open_url, redact};
use object_store::{ObjectStore, ObjectStoreExt};

use super::names::{CHECKPOINTS, CheckpointName, parse_folder_name};
use super::upload::Pace;
use crate::checkpoint::{CheckpointError, MANIFEST, Manifest, io};
use crate::console::progress::{Progress, Unit};

#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub place: StoreUrl,
    pub pace: Arc<Pace>,
    pub runtime: IoRuntime,
}

impl Remote {
    pub(super) fn open(
        url: &str,
        io_config: &IoConfig,
        runtime: &IoRuntime,
    ) -> Result<Self, CheckpointError> {
        let place = open_url(url, io_config).map_err(|source| CheckpointError::Open {
            url: redact(url),
            source: Box::new(source),
        })?;
        Ok(Self {
            place,
            pace: Arc::default(),
            runtime: runtime.clone(),
        })
    }

    /// The prefix, without secrets.
    pub(super) fn url(&self) -> &str {
        &self.place.url
    }

    pub(super) fn object(&self, name: &str) -> object_store::path::Path {
        object_store::path::Path::parse(format!("{}/{name}", self.place.path)).unwrap_or_else(
            |_| {
                name.split('/')
                    .fold(self.place.path.clone(), object_store::path::Path::join)
            },
        )
    }

    /// The URL of an object, for people.
    pub(super) fn url_of(&self, name: &str) -> String {
        format!("{}/{name}", self.url().trim_end_matches('/'))
    }

    /// What an error of the store means.
    pub(super) fn failed(
        &self,
        action: Action,
        name: &str,
        error: &object_store::Error,
    ) -> CheckpointError {
        let object = self.url_of(name);
        let place = Place {
            object: object.clone(),
            ..Place::default()
        };
        CheckpointError::Store {
            action,
            url: object,
            source: Box::new(classify(error, action, &self.place.location, place)),
        }
    }

    fn ask<T, F>(
        &self,
        action: Action,
        name: &str,
        request: impl FnOnce(Arc<dyn ObjectStore>, object_store::path::Path) -> F,
    ) -> Result<T, CheckpointError>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        let request = request(Arc::clone(&self.place.store), self.object(name));
        let answer = self.runtime.block_on(request);
        answer.map_err(|error| self.failed(action, name, &error))
    }

    /// Writes a small object.
    pub(super) fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), CheckpointError> {
        self.ask(Action::Write, name, |store, object| async move {
            store.put(&object, bytes.into()).await.map(drop)
        })
    }

    pub(super) fn get_if_there(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        self.ask(Action::Read, name, |store, object| async move {
            match store.get(&object).await {
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                answer => Ok(Some(answer?.bytes().await?.to_vec())),
            }
        })
    }

    /// Reads an object of any size into a file.
    fn download(
        &self,
        name: &str,
        path: &Path,
        progress: Arc<Progress>,
    ) -> Result<(), CheckpointError> {
        let mut file = File::create(path).map_err(io("create", path))?;
        let written = self.ask(Action::Read, name, |store, object| async move {
            let mut body = store.get(&object).await?.into_stream();
            while let Some(bytes) = body.try_next().await? {
                if let Err(error) = file.write_all(&bytes) {
                    return Ok(Err(error));
                }
                progress.add(bytes.len() as u64);
            }
            Ok(Ok(()))
        })?;
        written.map_err(io("write", path))
    }

    /// All whole checkpoints, in no order.
    pub(super) fn checkpoints(&self) -> Result<Vec<CheckpointName>, CheckpointError> {
        let objects = self.ask(Action::List, CHECKPOINTS, |store, prefix| async move {
            store.list(Some(&prefix)).try_collect::<Vec<_>>().await
        })?;
        let mut found = Vec::new();
        for object in &objects {
            let mut parts = object.location.as_ref().rsplit('/');
            let (Some(MANIFEST), Some(name)) = (parts.next(), parts.next()) else {
                continue;
            };
            let Some(step) = parse_folder_name(name) else {
                continue;
            };
            let place = format!("{CHECKPOINTS}/{name}");
            let manifest = self.get_if_there(&format!("{place}/{MANIFEST}"))?;
            let Some(manifest) = manifest.and_then(|text| Manifest::parse(&text, &place).ok())
            else {
                continue;
            };
            let is_whole = manifest.files.iter().all(|(file, expected)| {
                let location = self.object(&format!("{place}/{file}"));
                objects
                    .iter()
                    .any(|object| object.location == location && object.size == expected.bytes)
            });
            if is_whole {
                found.push(CheckpointName::new(step));
            } else {
                tracing::warn!(
                    "ignoring {}: it is no whole checkpoint",
                    self.url_of(&place)
                );
            }
        }
        Ok(found)
    }

    /// Brings a checkpoint's files, which lie below `prefix`, to a folder.
    pub(super) fn fetch_files(&self, prefix: &str, folder: &Path) -> Result<(), CheckpointError> {
        std::fs::create_dir_all(folder).map_err(io("create", folder))?;
        let Some(text) = self.get_if_there(&format!("{prefix}{MANIFEST}"))? else {
            return Err(CheckpointError::NoManifest {
                place: self.url_of(prefix),
            });
        };
        let manifest = Manifest::parse(&text, &self.url_of(prefix))?;
        let sizes = manifest.known_files().map(|(_, file)| file.bytes);
        let progress = Progress::new("fetching checkpoint", Some(sizes.sum()), Unit::Bytes);
        let progress = Arc::new(progress);
        for (file, _) in manifest.known_files() {
            let object = format!("{prefix}{file}");
            self.download(&object, &folder.join(file), Arc::clone(&progress))?;
        }
        // Last, as it makes the folder a checkpoint.
        let path = folder.join(MANIFEST);
        std::fs::write(&path, text).map_err(io("write", &path))
    }
}
