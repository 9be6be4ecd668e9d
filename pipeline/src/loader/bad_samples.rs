//! Bad samples: counted in the order of batches, listed in a file, and a run that has too many of
//! them ends.
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::LoaderError;
use crate::Place;

/// Samples tried before the share of bad ones is judged.
const JUDGED_AFTER: u64 = 1_000;

/// The file that lists bad samples, a line of JSON each.
#[derive(Debug)]
pub struct BadSampleList {
    path: PathBuf,
    file: File,
}

impl BadSampleList {
    /// Bad samples that [`LoaderError::TooManyBad`] tells of, at the most.
    pub const MOST_TOLD: usize = 20;

    /// Opens the list for appending, cut back to its first `lines` lines: those that a restored
    /// state knows of. Makes it where there is none.
    pub fn open(path: &Path, lines: u64) -> Result<Self, LoaderError> {
        let file = cut_to_lines(path, lines).map_err(|source| list_error(path, source))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends whole lines.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), LoaderError> {
        let written = self.file.write_all(lines);
        written.map_err(|source| list_error(&self.path, source))
    }

    /// Whether so many bad ones of `tried` samples are more than the share `max_fraction`, which is
    /// judged after the first thousand.
    pub fn is_too_long(bad: u64, tried: u64, max_fraction: f64) -> bool {
        tried >= JUDGED_AFTER && bad as f64 > max_fraction * tried as f64
    }
}

/// One line of `bad_samples.jsonl`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct BadSample {
    pub epoch: u64,
    pub object: String,
    pub row_group: u32,
    pub row: u32,
    pub reason: String,
    pub replaced_by: Replacement,
}

impl BadSample {
    /// Where it lies, and why it is bad.
    fn told(&self) -> (Place, String) {
        let place = Place {
            object: self.object.clone(),
            row_group: Some(self.row_group as usize),
            row: Some(self.row as usize),
            bytes: None,
        };
        (place, self.reason.clone())
    }
}

/// The sample that stands in for a bad one.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Replacement {
    pub shard: u32,
    pub row_group: u32,
    pub row: u32,
}

/// The count, the list and the budget.
#[derive(Debug)]
pub(super) struct BadSamples {
    pub tried: u64,
    pub bad: u64,
    max_fraction: f64,
    list: Option<BadSampleList>,
    first: Vec<BadSample>,
}

impl BadSamples {
    /// Opens the list for appending, cut back to the `bad` lines that a restored state knows of.
    pub(super) fn open(
        path: Option<&Path>,
        max_fraction: f64,
        tried: u64,
        bad: u64,
    ) -> Result<Self, LoaderError> {
        let list = path
            .map(|path| BadSampleList::open(path, bad))
            .transpose()?;
        Ok(Self {
            tried,
            bad,
            max_fraction,
            list,
            first: Vec::new(),
        })
    }

    /// Lists the bad ones of a batch of `tried` samples and counts them, or fails where they are
    /// too many.
    pub(super) fn record(&mut self, tried: u64, bad: Vec<BadSample>) -> Result<(), LoaderError> {
        let (tried, num_bad) = (self.tried + tried, self.bad + bad.len() as u64);
        for sample in bad {
            if let Some(list) = &mut self.list {
                let mut line = serde_json::to_vec(&sample).expect("a bad sample is plain data");
                line.push(b'\n');
                list.append(&line)?;
            } else {
                let (place, reason) = sample.told();
                tracing::warn!("bad sample replaced: {place}: {reason}");
            }
            if self.first.len() < BadSampleList::MOST_TOLD {
                self.first.push(sample);
            }
        }
        if BadSampleList::is_too_long(num_bad, tried, self.max_fraction) {
            return Err(LoaderError::TooManyBad {
                bad: num_bad,
                tried,
                max_fraction: self.max_fraction,
                first: self.first.iter().map(BadSample::told).collect(),
                list: self
                    .list
                    .as_ref()
                    .map(|list| list.path.display().to_string()),
            });
        }
        (self.tried, self.bad) = (tried, num_bad);
        Ok(())
    }
}

fn list_error(path: &Path, source: std::io::Error) -> LoaderError {
    LoaderError::BadSampleList {
        path: path.to_owned(),
        source,
    }
}

/// Keeps the first `lines` lines of a file, creating it if there is none, and opens it for
/// appending.
fn cut_to_lines(path: &Path, lines: u64) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)?;
    let mut reader = BufReader::new(&file);
    let (mut kept, mut line) = (0, Vec::new());
    for _ in 0..lines {
        line.clear();
        kept += reader.read_until(b'\n', &mut line)? as u64;
    }
    file.set_len(kept)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(row: u32) -> BadSample {
        BadSample {
            epoch: 0,
            object: "s3://b/x.parquet".to_owned(),
            row_group: 1,
            row,
            reason: "truncated".to_owned(),
            replaced_by: Replacement {
                shard: 0,
                row_group: 1,
                row: 0,
            },
        }
    }

    #[test]
    fn the_list_is_cut_to_what_the_state_knows() {
        let path = std::env::temp_dir().join(format!("nepa-bad-samples-{}", std::process::id()));
        let mut list = BadSamples::open(Some(&path), 1.0, 0, 0).unwrap();
        list.record(10, vec![bad(1), bad(2), bad(3)]).unwrap();
        let mut list = BadSamples::open(Some(&path), 1.0, 10, 2).unwrap();
        list.record(10, vec![bad(4)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let rows: Vec<u64> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["row"]
                    .as_u64()
                    .unwrap()
            })
            .collect();
        assert_eq!(rows, [1, 2, 4]);
    }

    #[test]
    fn the_budget_is_judged_after_the_first_thousand() {
        let mut list = BadSamples::open(None, 0.01, 0, 0).unwrap();
        list.record(990, (0..20).map(bad).collect())
            .expect("not judged yet");
        let error = list
            .record(10, Vec::new())
            .expect_err("20 of 1,000 are more than 1 %")
            .to_string();
        assert!(
            error.contains("20 of 1000")
                && error.contains("s3://b/x.parquet, row group 1, row 0: truncated"),
            "{error}"
        );
        let mut list = BadSamples::open(None, 0.02, 0, 0).unwrap();
        list.record(1000, (0..20).map(bad).collect())
            .expect("exactly the budget is allowed");
    }
}
