//! What a run writes down: `metrics.jsonl`, TensorBoard events and the sample trace.
//!
//! The files only grow; a checkpoint records their lengths, and a resumed run cuts them back to
//! these, so that the joined files are those of an uninterrupted run (but for the fields that hold
//! times).
use crate::messages::quoted_path;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nepa_pipeline::{DecoderStats, SampleId, SampleRecord, Shard};
use serde::{Deserialize, Serialize};

use crate::events;

/// Who decoded images for a GPU since the line before. They are those of batches ahead, not of the
/// step; the sum over all lines is what was decoded in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecodedImages {
    /// By the GPU's JPEG engines.
    pub hardware: u64,
    /// By nvJPEG on the decode threads.
    pub hybrid: u64,
    /// By the processor alone.
    pub cpu: u64,
    /// What nvJPEG refused, by engine, phase and status, as in `"hybrid host 8"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, u64>,
}

impl From<DecoderStats> for DecodedImages {
    fn from(stats: DecoderStats) -> Self {
        Self {
            hardware: stats.hardware,
            hybrid: stats.hybrid,
            cpu: stats.cpu,
            refused: stats.refusals_by_name(),
        }
    }
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimiser steps done, this one included.
    pub step: u64,
    /// Epoch of the batch, from 0.
    pub epoch: u64,
    /// Images trained on so far.
    pub samples: u64,
    /// Mean loss of the batch.
    pub loss: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Images over the time of the whole step, waiting included.
    pub images_per_second: f64,
    /// Time the step waited for its batch.
    pub data_wait_ms: f64,
    /// Time of forward, backward and update.
    pub step_ms: f64,
    /// Mean cosine of the prediction with the next embedding.
    pub cos_target: f64,
    /// Mean cosine of the prediction with the current embedding.
    pub cos_previous: f64,
    /// Share of positions where the second is greater.
    pub copy_win: f64,
    /// Who decoded, on a GPU; absent on the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoders: Option<DecodedImages>,
}

impl StepMetrics {
    /// The values that TensorBoard draws.
    fn scalars(&self) -> [(&'static str, f64); 9] {
        [
            ("train/loss", self.loss),
            ("train/lr", self.lr),
            ("train/grad_norm", self.grad_norm),
            ("copy/cos_target", self.cos_target),
            ("copy/cos_previous", self.cos_previous),
            ("copy/copy_win", self.copy_win),
            ("speed/images_per_second", self.images_per_second),
            ("speed/data_wait_ms", self.data_wait_ms),
            ("speed/step_ms", self.step_ms),
        ]
    }
}

/// A file of the run cannot be written, or is not the one that the checkpoint knew.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Reading or writing failed.
    #[error(
        "cannot write {}. The last checkpoint is whole; make room and go on with --resume",
        quoted_path(path)
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Shorter than it was when the checkpoint was made.
    #[error(
        "{} has {found} bytes, but had {expected} when the checkpoint was made: lines are missing, so it cannot be continued. \
         Give the file back, or name another one",
        quoted_path(path)
    )]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// Its length at the checkpoint.
        expected: u64,
    },
    /// A trace of something else.
    #[error(
        "{} exists already and is not this run's; name another file or remove it",
        quoted_path(path)
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
}

/// A file that only grows.
#[derive(Debug)]
pub struct LogFile {
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
    pub fn open(path: &Path, length: u64) -> Result<Self, LogError> {
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
    pub fn keep_what_does_not_fit(&mut self) {
        self.keeps = true;
    }

    /// Appends `bytes` in one call, so that a killed process leaves whole lines as a rule.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        self.length += bytes.len() as u64;
        self.kept.extend_from_slice(bytes);
        let had_room = self.kept.len() == bytes.len();
        let written = self.write_kept();
        match written {
            Err(source) if self.keeps => {
                if had_room {
                    tracing::warn!(
                        "{} cannot be written ({source}); its lines are kept in memory until it can",
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
    pub fn sync(&mut self) -> Result<u64, LogError> {
        match self.file.sync_data() {
            Err(source) if !self.keeps => Err(LogError::Io {
                path: self.path.clone(),
                source,
            }),
            _ => Ok(self.length),
        }
    }

    /// All that was written, and the file if it is all there.
    pub fn content(&self) -> Result<(Vec<u8>, Option<PathBuf>), LogError> {
        let mut content = std::fs::read(&self.path).map_err(|source| LogError::Io {
            path: self.path.clone(),
            source,
        })?;
        content.extend_from_slice(&self.kept);
        Ok((content, self.kept.is_empty().then(|| self.path.clone())))
    }
}

/// Appends one value as a JSON line to `buffer`.
fn push_json_line(buffer: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(&mut *buffer, value).expect("metrics are plain data with string keys");
    buffer.push(b'\n');
}

/// `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsFile(pub LogFile);

impl MetricsFile {
    /// Appends one step.
    pub fn write(&mut self, metrics: &StepMetrics) -> Result<(), LogError> {
        let mut line = Vec::new();
        push_json_line(&mut line, metrics);
        self.0.append(&line)
    }
}

/// The lines of steps up to `step`, as far as they stand one after the other.
pub fn lines_up_to(text: &str, step: u64) -> usize {
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        let of = serde_json::from_str::<StepMetrics>(line);
        if !line.ends_with('\n') || of.map_or(u64::MAX, |metrics| metrics.step) > step {
            break;
        }
        end += line.len();
    }
    end
}

/// One TensorBoard event file for the whole run.
#[derive(Debug)]
pub struct EventFile(pub LogFile);

impl EventFile {
    /// Name of the file; TensorBoard looks for `tfevents` in it.
    pub const NAME: &str = "events.out.tfevents.nepa";

    /// Opens the file cut back to `length` bytes; a new one gets its head.
    pub fn open(path: &Path, length: u64) -> Result<Self, LogError> {
        let mut file = Self(LogFile::open(path, length)?);
        if length == 0 {
            let mut records = Vec::new();
            events::push_version(&mut records, wall_time());
            file.0.append(&records)?;
        }
        Ok(file)
    }

    /// Appends one step.
    pub fn write(&mut self, metrics: &StepMetrics) -> Result<(), LogError> {
        let mut records = Vec::new();
        for (tag, value) in metrics.scalars() {
            events::push_scalar(&mut records, wall_time(), metrics.step, tag, value as f32);
        }
        self.0.append(&records)
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0.0, |time| time.as_secs_f64())
}

/// The sample trace: one JSON line a sample, the same from disk and from a bucket.
#[derive(Debug)]
pub struct TraceFile {
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
    pub fn open(path: &Path, length: Option<u64>, shards: &[Shard]) -> Result<Self, LogError> {
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
    pub fn check_free(path: &Path) -> Result<(), LogError> {
        if path.metadata().is_ok_and(|metadata| metadata.len() > 0) {
            let path = path.to_owned();
            return Err(LogError::Exists { path });
        }
        Ok(())
    }

    /// Appends the samples of one step.
    pub fn write(&mut self, step: u64, samples: &[SampleRecord]) -> Result<(), LogError> {
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
    pub fn sync(&mut self) -> Result<u64, LogError> {
        self.file.sync()
    }
}

/// Names relative to the deepest folder that holds all of `urls`.
pub(crate) fn names_below_root(urls: &[&str]) -> Vec<String> {
    let folder = |url: &str| url.rfind('/').map_or(0, |slash| slash + 1);
    let Some(first) = urls.first() else {
        return Vec::new();
    };
    let mut root = &first[..folder(first)];
    while !urls.iter().all(|url| url.starts_with(root)) {
        root = &root[..folder(root.trim_end_matches('/'))];
    }
    urls.iter()
        .map(|url| url[root.len()..].to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use nepa_pipeline::{JpegEngine, RefusalPhase, Refusals};

    use super::*;

    fn metrics(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: 0,
            samples: 8 * step,
            loss: -0.1 * step as f64,
            lr: 1e-3,
            grad_norm: 0.5,
            images_per_second: 10.0,
            data_wait_ms: 1.0,
            step_ms: 2.0,
            cos_target: 0.1,
            cos_previous: 0.2,
            copy_win: 0.75,
            decoders: None,
        }
    }

    #[test]
    fn who_decoded_is_told_where_several_can() {
        let line = |metrics: &StepMetrics| {
            let line = serde_json::to_value(metrics).unwrap();
            assert_eq!(
                serde_json::from_value::<StepMetrics>(line.clone()).unwrap(),
                *metrics
            );
            line
        };
        assert!(line(&metrics(1)).get("decoders").is_none());
        let decoders = DecodedImages::from(DecoderStats {
            hybrid: 7,
            cpu: 1,
            refusals: vec![Refusals {
                engine: JpegEngine::Hybrid,
                phase: RefusalPhase::Host,
                status: 8,
                images: 1,
            }],
            ..DecoderStats::default()
        });
        let told = line(&StepMetrics {
            decoders: Some(decoders),
            ..metrics(1)
        });
        assert_eq!(
            told["decoders"],
            serde_json::json!({
                "hardware": 0,
                "hybrid": 7,
                "cpu": 1,
                "refused": {"hybrid host 8": 1},
            })
        );
    }

    #[test]
    fn a_reopened_file_is_cut_back_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut file = MetricsFile(LogFile::open(&path, 0).unwrap());
        file.write(&metrics(1)).unwrap();
        let length = file.0.sync().unwrap();
        file.write(&metrics(2)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        drop(file);
        let mut file = MetricsFile(LogFile::open(&path, length).unwrap());
        file.write(&metrics(2)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        let error = LogFile::open(&path, 1 << 20).unwrap_err().to_string();
        assert!(error.contains("lines are missing"), "{error}");
        let first = String::from_utf8(whole).unwrap();
        let keys = "step epoch samples loss lr grad_norm images_per_second data_wait_ms step_ms cos_target cos_previous copy_win";
        let line: serde_json::Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
        assert_eq!(line.as_object().unwrap().len(), keys.split(' ').count());
        assert!(keys.split(' ').all(|key| line.get(key).is_some()));
    }

    #[test]
    fn event_files_hold_a_head_once_and_a_record_for_each_scalar() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(EventFile::NAME);
        let mut events = EventFile::open(&path, 0).unwrap();
        events.write(&metrics(7)).unwrap();
        let length = events.0.sync().unwrap();
        let mut events = EventFile::open(&path, length).unwrap();
        events.write(&metrics(8)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (mut at, mut found) = (0, Vec::new());
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            found.push(&bytes[at + 12..at + 12 + length]);
            at += 16 + length;
        }
        assert!(found[0].ends_with(b"brain.Event:2"));
        assert_eq!(found.len(), 1 + 2 * metrics(7).scalars().len());
        // After the time: the step, then the summary with its tag and number.
        let loss = [
            b"\x10\x07\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15",
            &(-0.7f32).to_le_bytes()[..],
        ]
        .concat();
        assert_eq!(found[1][9..], loss);
    }

    #[test]
    fn shard_names_do_not_depend_on_where_the_data_set_lies() {
        let names = ["train-0.parquet", "train-1.parquet"];
        assert_eq!(
            names_below_root(&["s3://b/in1k/train-0.parquet", "s3://b/in1k/train-1.parquet"]),
            names
        );
        assert_eq!(
            names_below_root(&["/data/train-0.parquet", "/data/train-1.parquet"]),
            names
        );
        assert_eq!(
            names_below_root(&["/d/a/0.parquet", "/d/b/0.parquet"]),
            ["a/0.parquet", "b/0.parquet"]
        );
        assert_eq!(
            names_below_root(&["file:///d/only.parquet"]),
            ["only.parquet"]
        );
        assert_eq!(
            names_below_root(&["/a/0.parquet", "s3://b/0.parquet"]),
            ["/a/0.parquet", "s3://b/0.parquet"]
        );
    }
}
