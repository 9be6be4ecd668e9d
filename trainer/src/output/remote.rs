//! A prefix of an object store that holds a run: whole files put, read, listed and deleted, blocking.
use std::fs::File;
use std::io::Read;
use std::path::Path;

use futures::TryStreamExt;
use nepa_pipeline::{IoConfig, IoRuntime, StoreUrl, open_url};
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};

use super::{CHECKPOINTS, CheckpointName, parse_folder_name};
use crate::checkpoint::{CheckpointError, FILES, MANIFEST, Manifest, io};

/// Objects larger than this are put in parts of this size.
const PART_BYTES: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Remote {
    location: StoreUrl,
    runtime: IoRuntime,
}

impl Remote {
    pub(super) fn open(
        url: &str,
        io_config: &IoConfig,
        runtime: &IoRuntime,
    ) -> Result<Self, CheckpointError> {
        let location = open_url(url, io_config).map_err(|source| CheckpointError::Open {
            url: url.to_owned(),
            source: Box::new(source),
        })?;
        let runtime = runtime.clone();
        Ok(Self { location, runtime })
    }

    /// The prefix, without secrets.
    pub(super) fn url(&self) -> &str {
        &self.location.url
    }

    fn object(&self, name: &str) -> object_store::path::Path {
        object_store::path::Path::parse(format!("{}/{name}", self.location.path)).unwrap_or_else(
            |_| {
                name.split('/')
                    .fold(self.location.path.clone(), object_store::path::Path::join)
            },
        )
    }

    fn failed(
        &self,
        action: &'static str,
        name: &str,
    ) -> impl FnOnce(object_store::Error) -> CheckpointError + use<> {
        let url = format!("{}/{name}", self.location.url.trim_end_matches('/'));
        move |source| CheckpointError::Store {
            action,
            url,
            source,
        }
    }

    pub(super) fn put(&self, name: &str, file: &Path) -> Result<(), CheckpointError> {
        let mut reader = File::open(file).map_err(io("read", file))?;
        let length = reader.metadata().map_err(io("read", file))?.len();
        let (store, object) = (self.location.store.clone(), self.object(name));
        if length <= PART_BYTES as u64 {
            let mut bytes = Vec::with_capacity(length as usize);
            reader.read_to_end(&mut bytes).map_err(io("read", file))?;
            let put = self
                .runtime
                .block_on(async move { store.put(&object, bytes.into()).await });
            return put.map(drop).map_err(self.failed("write", name));
        }
        let put = self.runtime.block_on(async move {
            let upload = store.put_multipart(&object).await?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
            match write_all(&mut upload, reader).await {
                Ok(()) => upload.finish().await.map(drop),
                Err(error) => {
                    // Parts that stay would be paid for; why writing failed tells more than why this did.
                    let _ = upload.abort().await;
                    Err(error)
                }
            }
        });
        put.map_err(self.failed("write", name))
    }

    pub(super) fn get_if_there(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        let (store, object) = (self.location.store.clone(), self.object(name));
        let got = self
            .runtime
            .block_on(async move { store.get(&object).await?.bytes().await });
        match got {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", name)(error)),
        }
    }

    pub(super) fn checkpoints(&self) -> Result<Vec<CheckpointName>, CheckpointError> {
        let (store, prefix) = (self.location.store.clone(), self.object(CHECKPOINTS));
        let listed = self
            .runtime
            .block_on(async move { store.list(Some(&prefix)).try_collect::<Vec<_>>().await });
        let objects = listed.map_err(self.failed("list", CHECKPOINTS))?;
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
                found.push(CheckpointName {
                    step,
                    name: name.to_owned(),
                });
            } else {
                tracing::warn!(
                    "ignoring {}/{place}: it is no whole checkpoint",
                    self.location.url
                );
            }
        }
        Ok(found)
    }

    pub(super) fn fetch_checkpoint(
        &self,
        name: &str,
        folder: &Path,
    ) -> Result<(), CheckpointError> {
        self.fetch_files(&format!("{CHECKPOINTS}/{name}/"), folder)
    }

    pub(super) fn fetch_files(&self, prefix: &str, folder: &Path) -> Result<(), CheckpointError> {
        std::fs::create_dir_all(folder).map_err(io("create", folder))?;
        for file in FILES.into_iter().chain([MANIFEST]) {
            if let Some(bytes) = self.get_if_there(&format!("{prefix}{file}"))? {
                let path = folder.join(file);
                std::fs::write(&path, bytes).map_err(io("write", &path))?;
            }
        }
        Ok(())
    }

    /// Deletes the manifest first, so that a checkpoint that is deleted by half is no checkpoint.
    pub(super) fn delete_checkpoint(&self, name: &str) -> Result<(), CheckpointError> {
        for file in [MANIFEST].into_iter().chain(FILES) {
            let object_name = format!("{CHECKPOINTS}/{name}/{file}");
            let (store, object) = (self.location.store.clone(), self.object(&object_name));
            match self
                .runtime
                .block_on(async move { store.delete(&object).await })
            {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed("delete", &object_name)(error)),
            }
        }
        Ok(())
    }
}

/// Puts a file in parts, few of them at a time.
async fn write_all(upload: &mut WriteMultipart, mut reader: File) -> object_store::Result<()> {
    let mut buffer = vec![0u8; PART_BYTES];
    loop {
        upload.wait_for_capacity(4).await?;
        let read = reader
            .read(&mut buffer)
            .map_err(|source| object_store::Error::Generic {
                store: "local file",
                source: Box::new(source),
            })?;
        if read == 0 {
            return Ok(());
        }
        upload.write(&buffer[..read]);
    }
}
