//! `manifest.json`: the other files of a checkpoint with their sizes and digests. It is written
//! last, and so makes a checkpoint whole.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{CheckpointError, io};
use super::files::{FILES, MANIFEST, MORE_FILES, VERSION};

const MANIFEST_FORMAT: &str = "nepa-checkpoint";

/// Size and digest of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileEntry {
    pub bytes: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Always `nepa-checkpoint`.
    pub format: String,
    pub version: u32,
    /// Optimiser steps done.
    pub step: u64,
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// The manifest that this program writes.
    pub(super) fn new(step: u64, files: BTreeMap<String, FileEntry>) -> Self {
        Self {
            format: MANIFEST_FORMAT.to_owned(),
            version: VERSION,
            step,
            files,
        }
    }

    /// Reads a manifest; `place` is for messages.
    pub(crate) fn parse(text: &[u8], place: &str) -> Result<Self, CheckpointError> {
        let manifest: Self =
            serde_json::from_slice(text).map_err(|source| CheckpointError::Json {
                path: format!("{place}/{MANIFEST}"),
                source,
            })?;
        if manifest.format != MANIFEST_FORMAT || manifest.version != VERSION {
            let found = format!("{} {}", manifest.format, manifest.version);
            return Err(CheckpointError::Version {
                place: place.to_owned(),
                found,
            });
        }
        Ok(manifest)
    }

    /// The files that this program knows.
    pub(crate) fn known_files(&self) -> impl Iterator<Item = (&str, &FileEntry)> {
        let names = FILES.into_iter().chain(MORE_FILES);
        names.filter_map(|name| Some((name, self.files.get(name)?)))
    }
}

/// Compares a folder with its manifest, byte for byte.
pub(crate) fn verify_folder(folder: &Path) -> Result<Manifest, CheckpointError> {
    let manifest = read_manifest(folder)?;
    let place = folder.display().to_string();
    if let Some(name) = FILES
        .into_iter()
        .find(|name| !manifest.files.contains_key(*name))
    {
        return Err(CheckpointError::NotListed {
            place,
            file: name.to_owned(),
        });
    }
    for (name, expected) in manifest.known_files() {
        let path = folder.join(name);
        let found = std::fs::metadata(&path).ok().map(|metadata| metadata.len());
        if found != Some(expected.bytes) {
            let (file, expected) = (name.to_owned(), expected.bytes);
            return Err(CheckpointError::WrongSize {
                place,
                file,
                found,
                expected,
            });
        }
        if digest(&path)? != *expected {
            return Err(CheckpointError::WrongDigest {
                place,
                file: name.to_owned(),
            });
        }
    }
    Ok(manifest)
}

/// Reads a folder's manifest.
pub(crate) fn read_manifest(folder: &Path) -> Result<Manifest, CheckpointError> {
    let path = folder.join(MANIFEST);
    match std::fs::read(&path) {
        Ok(text) => Manifest::parse(&text, &folder.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(CheckpointError::NoManifest {
                place: folder.display().to_string(),
            })
        }
        Err(source) => Err(CheckpointError::Io {
            action: "read",
            path,
            source,
        }),
    }
}

/// Size and digest of a file.
pub(super) fn digest(path: &Path) -> Result<FileEntry, CheckpointError> {
    let mut file = File::open(path).map_err(io("read", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut num_bytes = 0;
    loop {
        let read = file.read(&mut buffer).map_err(io("read", path))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        num_bytes += read as u64;
    }
    Ok(FileEntry {
        bytes: num_bytes,
        sha256: format!("{:x}", hasher.finalize()),
    })
}

/// Size and digest of what will be a file.
pub(super) fn entry(content: &[u8]) -> FileEntry {
    FileEntry {
        bytes: content.len() as u64,
        sha256: format!("{:x}", Sha256::digest(content)),
    }
}
