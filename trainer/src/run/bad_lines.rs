//! The lines of bad samples of several ranks, in one list as of one rank. Each rank's loader lists
//! its own in a file of its own; what is new in it goes to rank 0 with each step.
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use nepa_pipeline::{BadSampleList, Place};

use crate::checkpoint::{CheckpointError, io};
use crate::output::Scratch;

/// The list of one rank's loader.
#[derive(Debug)]
pub(super) struct BadLines {
    _folder: Scratch,
    path: PathBuf,
    /// Bytes that were taken.
    taken: u64,
}

impl BadLines {
    pub(super) fn new() -> Result<Self, CheckpointError> {
        let folder = Scratch::new()?;
        Ok(Self {
            path: folder.path().join("bad_samples.jsonl"),
            _folder: folder,
            taken: 0,
        })
    }

    /// Where the loader lists them.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What was added since the last time.
    pub(super) fn take(&mut self) -> Result<String, CheckpointError> {
        let length = std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        if length <= self.taken {
            return Ok(String::new());
        }
        let mut text = String::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.taken))?;
            file.read_to_string(&mut text)
        });
        read.map_err(io("read", &self.path))?;
        self.taken += text.len() as u64;
        Ok(text)
    }
}

/// Where the first samples of such lines lie, and why each is bad.
pub(super) fn first_of(lines: &str) -> Vec<(Place, String)> {
    let read = lines
        .lines()
        .take(BadSampleList::MOST_TOLD)
        .filter_map(|line| {
            let line = serde_json::from_str::<serde_json::Value>(line).ok()?;
            let number = |key: &str| Some(line[key].as_u64()? as usize);
            let place = Place {
                object: line["object"].as_str()?.to_owned(),
                row_group: number("row_group"),
                row: number("row"),
                bytes: None,
            };
            Some((place, line["reason"].as_str()?.to_owned()))
        });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_once_from_a_loader_to_the_list() {
        let mut lines = BadLines::new().unwrap();
        assert_eq!(lines.take().unwrap(), "");
        let line = r#"{"epoch":0,"object":"a","row_group":1,"row":2,"reason":"cut"}"#;
        std::fs::write(lines.path(), format!("{line}\n")).unwrap();
        let taken = lines.take().unwrap();
        assert_eq!(taken, format!("{line}\n"));
        assert_eq!(lines.take().unwrap(), "");
        let (place, reason) = first_of(&taken).remove(0);
        assert_eq!((place.object.as_str(), place.row), ("a", Some(2)));
        assert_eq!(reason, "cut");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad_samples.jsonl");
        std::fs::write(&path, "1\n2\n3\n").unwrap();
        let mut list = BadSampleList::open(&path, 2).unwrap();
        list.append(b"4\n").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "1\n2\n4\n");
    }
}
