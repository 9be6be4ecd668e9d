//! The sample trace (`--trace-samples`): one JSON line for each sample that was trained on.
use std::path::Path;

use nepa_pipeline::{SampleId, SampleRecord, Shard};
use serde::Serialize;

use super::error::LogError;
use super::file::{LogFile, push_json_line};
use crate::data::names_below_root;

/// The sample trace: one JSON line a sample, the same from disk and from a bucket.
#[derive(Debug)]
pub(crate) struct TraceFile {
    file: LogFile,
    shard_names: Vec<String>,
}

#[derive(Serialize)]
struct TraceLine<'a> {
    step: u64,
    shard: u32,
    file: &'a str,
    row_group: u32,
    row: u32,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    flip: bool,
    /// The bad sample that stood here, if this one replaces it.
    replaces: Option<SampleId>,
}

impl TraceFile {
    /// Opens the trace cut back to `length` bytes; `None` begins one, and refuses a file with
    /// content.
    pub(crate) fn open(
        path: &Path,
        length: Option<u64>,
        shards: &[Shard],
    ) -> Result<Self, LogError> {
        if length.is_none() {
            Self::check_free(path)?;
        }
        let urls = shards
            .iter()
            .map(|shard| shard.url.as_str())
            .collect::<Vec<_>>();
        Ok(Self {
            file: LogFile::open(path, length.unwrap_or(0))?,
            shard_names: names_below_root(&urls),
        })
    }

    /// Refuses a file with content, for a trace that is begun.
    pub(crate) fn check_free(path: &Path) -> Result<(), LogError> {
        if path.metadata().is_ok_and(|metadata| metadata.len() > 0) {
            let path = path.to_owned();
            return Err(LogError::Exists { path });
        }
        Ok(())
    }

    /// Appends the samples of one step.
    pub(crate) fn write(&mut self, step: u64, samples: &[SampleRecord]) -> Result<(), LogError> {
        let mut lines = Vec::new();
        for sample in samples {
            let SampleId {
                shard,
                row_group,
                row,
            } = sample.id;
            let file = &self.shard_names[shard as usize];
            // A recipe has one view: checked when it is read.
            let plan = sample.views[0];
            let rect = plan.rect;
            let (x, y, width, height) = (rect.x, rect.y, rect.width, rect.height);
            let (flip, replaces) = (plan.flip, sample.replaces);
            push_json_line(
                &mut lines,
                &TraceLine {
                    step,
                    shard,
                    file,
                    row_group,
                    row,
                    x,
                    y,
                    width,
                    height,
                    flip,
                    replaces,
                },
            );
        }
        self.file.append(&lines)
    }

    /// Forces everything to the disk and gives the length.
    pub(crate) fn sync(&mut self) -> Result<u64, LogError> {
        self.file.sync()
    }
}
