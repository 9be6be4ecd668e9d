//! A file that only grows. A checkpoint records its length, and a resumed run cuts it back to that,
//! so that the joined file is that of an uninterrupted run (but for fields that hold times).
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::LogError;

/// A file that only grows.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// Whether what cannot be written now is kept in memory.
    keeps: bool,
    /// What is kept: the end of the log, which is not in the file.
    kept: Vec<u8>,
}

impl LogFile {
    /// Opens the file cut back to `length` bytes; it is made if `length` is 0.
    pub(crate) fn open(path: &Path, length: u64) -> Result<Self, LogError> {
        let failed = |source| LogError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed)?;
        let found = file.metadata().map_err(failed)?.len();
        if found < length {
            return Err(LogError::TooShort {
                path: path.to_owned(),
                found,
                expected: length,
            });
        }
        file.set_len(length).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            keeps: false,
            kept: Vec::new(),
        })
    }

    /// From now on a full disk is no error, as the file is a copy of what is kept elsewhere: what
    /// does not fit in stays in memory.
    pub(crate) fn keep_what_does_not_fit(&mut self) {
        self.keeps = true;
    }

    /// Appends `bytes` in one call, so that a killed process leaves whole lines as a rule.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        self.length += bytes.len() as u64;
        self.kept.extend_from_slice(bytes);
        let had_room = self.kept.len() == bytes.len();
        let written = self.write_kept();
        match written {
            Err(source) if self.keeps => {
                if had_room {
                    tracing::warn!(
                        "{} cannot be written ({source}); its lines are kept in memory until it \
                         can",
                        self.path.display()
                    );
                }
                Ok(())
            }
            other => other.map_err(|source| LogError::Io {
                path: self.path.clone(),
                source,
            }),
        }
    }

    fn write_kept(&mut self) -> std::io::Result<()> {
        while !self.kept.is_empty() {
            match self.file.write(&self.kept) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(written) => drop(self.kept.drain(..written)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Forces everything to the disk and gives the length.
    pub(crate) fn sync(&mut self) -> Result<u64, LogError> {
        match self.file.sync_data() {
            Err(source) if !self.keeps => Err(LogError::Io {
                path: self.path.clone(),
                source,
            }),
            _ => Ok(self.length),
        }
    }

    /// All that was written, and the file if it is all there.
    pub(crate) fn content(&self) -> Result<(Vec<u8>, Option<PathBuf>), LogError> {
        let mut content = std::fs::read(&self.path).map_err(|source| LogError::Io {
            path: self.path.clone(),
            source,
        })?;
        content.extend_from_slice(&self.kept);
        Ok((content, self.kept.is_empty().then(|| self.path.clone())))
    }
}

/// Appends one value as a JSON line to `buffer`.
pub(super) fn push_json_line(buffer: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(&mut *buffer, value).expect("metrics are plain data with string keys");
    buffer.push(b'\n');
}
