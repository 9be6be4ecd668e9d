//! The sample trace (`--trace-samples`): one JSON line for each sample that was trained on.
use std::path::Path;

use nepa_pipeline::{EraseBox, ImageMix, MixPlan, Operation, SampleId, SampleRecord, Shard};
use serde::Serialize;

use super::error::LogError;
use super::file::{LogFile, push_json_line};
use crate::data::names_below_root;

/// The file that the lines go to.
#[derive(Debug)]
pub(crate) struct TraceFile(LogFile);

/// Makes the lines: one JSON line a sample, the same from disk and from a bucket.
#[derive(Debug)]
pub(crate) struct TraceLines {
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
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    operations: &'a [Operation],
    #[serde(skip_serializing_if = "Option::is_none")]
    erase: Option<EraseBox>,
    /// How it was mixed, and with which sample, where that was so.
    #[serde(skip_serializing_if = "Option::is_none")]
    mix: Option<ImageMix>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partner: Option<SampleId>,
    /// The bad sample that stood here, if this one replaces it.
    replaces: Option<SampleId>,
}

impl TraceFile {
    /// Opens the trace cut back to `length` bytes; `None` begins one, and refuses a file with
    /// content.
    pub(crate) fn open(path: &Path, length: Option<u64>) -> Result<Self, LogError> {
        if length.is_none() {
            Self::check_free(path)?;
        }
        Ok(Self(LogFile::open(path, length.unwrap_or(0))?))
    }

    /// Refuses a file with content, for a trace that is begun.
    pub(crate) fn check_free(path: &Path) -> Result<(), LogError> {
        if path.metadata().is_ok_and(|metadata| metadata.len() > 0) {
            let path = path.to_owned();
            return Err(LogError::Exists { path });
        }
        Ok(())
    }

    /// Appends the lines of a step.
    pub(crate) fn append(&mut self, lines: &[u8]) -> Result<(), LogError> {
        self.0.append(lines)
    }

    /// Forces everything to the disk and gives the length.
    pub(crate) fn sync(&mut self) -> Result<u64, LogError> {
        self.0.sync()
    }
}

impl TraceLines {
    /// Of samples of these shards.
    pub(crate) fn new(shards: &[Shard]) -> Self {
        let urls = shards.iter().map(|shard| shard.url.as_str());
        Self {
            shard_names: names_below_root(&urls.collect::<Vec<_>>()),
        }
    }

    /// The lines of one step's samples, or of a rank's part of them, which were mixed by the plans
    /// of its micro-batches, if any.
    pub(crate) fn of_step(&self, step: u64, samples: &[SampleRecord], mixes: &[MixPlan]) -> String {
        let mut lines = Vec::new();
        let of_plan = samples.len() / mixes.len().max(1);
        for (index, sample) in samples.iter().enumerate() {
            let mix = mixes.get(index / of_plan.max(1)).and_then(|plan| {
                let (mix, partner) = (plan.images[index % of_plan], plan.partner(index % of_plan));
                let partner = samples[index / of_plan * of_plan + partner].id;
                (mix != ImageMix::Alone).then_some((mix, partner))
            });
            let SampleId {
                shard,
                row_group,
                row,
            } = sample.id;
            let file = &self.shard_names[shard as usize];
            // A recipe has one view: checked when it is read.
            let plan = &sample.views[0];
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
                    operations: &plan.operations,
                    erase: plan.erase,
                    mix: mix.map(|(mix, _)| mix),
                    partner: mix.map(|(_, partner)| partner),
                    replaces,
                },
            );
        }
        String::from_utf8(lines).expect("JSON is UTF-8")
    }
}
