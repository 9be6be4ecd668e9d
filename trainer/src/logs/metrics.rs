//! `metrics.jsonl`: one line a step.
use std::collections::BTreeMap;

use nepa_pipeline::DecoderStats;
use serde::{Deserialize, Serialize};

use super::error::LogError;
use super::file::{LogFile, push_json_line};
use super::loader::LoaderMetrics;
use crate::engine::{Found, Spread};

/// Who decoded images for a GPU since the line before. They are those of batches ahead, not of the
/// step; the sum over all lines is what was decoded in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DecodedImages {
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

/// What is told beside the loss: means over the batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Measured {
    /// In pretraining.
    Pretraining {
        /// Mean cosine of the prediction with the next embedding.
        cos_target: f64,
        /// Mean cosine of the prediction with the current embedding.
        cos_previous: f64,
        /// Share of positions where the second is greater.
        copy_win: f64,
    },
    /// In fine-tuning.
    Classification {
        /// Share of images whose greatest logit is that of their greatest target. Where images are
        /// mixed, it is not comparable with that of an evaluation.
        accuracy: f64,
    },
}

impl From<Found> for Measured {
    fn from(found: Found) -> Self {
        match found {
            Found::Pretraining {
                cos_target,
                cos_previous,
                copy_win,
            } => Self::Pretraining {
                cos_target,
                cos_previous,
                copy_win,
            },
            Found::Classification { accuracy } => Self::Classification { accuracy },
        }
    }
}

/// How the ranks of a run differed in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct RankMetrics {
    /// Their number.
    pub count: usize,
    /// Time that each waited for its part of the batch.
    pub data_wait_ms: Spread,
    /// Time of forward and backward of its micro-batches, without waiting for the others.
    pub compute_ms: Spread,
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepMetrics {
    /// Optimiser steps done, this one included.
    pub step: u64,
    /// Epoch of the batch, from 0.
    pub epoch: u64,
    /// Images trained on so far.
    pub samples: u64,
    /// Mean loss of the batch.
    pub loss: f64,
    /// Learning rate of this step; of several that of the last block.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Images over the time of the whole step, waiting included.
    pub images_per_second: f64,
    /// Time the step waited for its batch.
    pub data_wait_ms: f64,
    /// Time of forward, backward and update.
    pub step_ms: f64,
    /// What is told beside the loss.
    #[serde(flatten)]
    pub measured: Measured,
    /// Who decoded, on a GPU; absent on the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoders: Option<DecodedImages>,
    /// What the loader did, of several ranks that of rank 0; absent in lines of older programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader: Option<LoaderMetrics>,
    /// Where there are several ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<RankMetrics>,
}

impl StepMetrics {
    /// The values that TensorBoard draws.
    pub(super) fn scalars(&self) -> Vec<(&'static str, f64)> {
        let mut scalars = vec![
            ("train/loss", self.loss),
            ("train/lr", self.lr),
            ("train/grad_norm", self.grad_norm),
        ];
        match self.measured {
            Measured::Pretraining {
                cos_target,
                cos_previous,
                copy_win,
            } => scalars.extend([
                ("copy/cos_target", cos_target),
                ("copy/cos_previous", cos_previous),
                ("copy/copy_win", copy_win),
            ]),
            Measured::Classification { accuracy } => scalars.push(("train/accuracy", accuracy)),
        }
        scalars.extend([
            ("speed/images_per_second", self.images_per_second),
            ("speed/data_wait_ms", self.data_wait_ms),
            ("speed/step_ms", self.step_ms),
        ]);
        let loader = self.loader.as_ref().map(LoaderMetrics::scalars);
        scalars.extend(loader.into_iter().flatten());
        scalars
    }
}

/// `metrics.jsonl`.
#[derive(Debug)]
pub(crate) struct MetricsFile(pub LogFile);

impl MetricsFile {
    pub(crate) fn write(&mut self, metrics: &StepMetrics) -> Result<(), LogError> {
        let mut line = Vec::new();
        push_json_line(&mut line, metrics);
        self.0.append(&line)
    }
}

/// The lines of steps up to `step`, as far as they stand one after the other.
pub(crate) fn lines_up_to(text: &str, step: u64) -> usize {
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

#[cfg(test)]
pub(super) mod tests {
    use nepa_pipeline::{JpegEngine, RefusalPhase, Refusals};

    use super::*;

    pub(in super::super) fn metrics(step: u64) -> StepMetrics {
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
            measured: Measured::Pretraining {
                cos_target: 0.1,
                cos_previous: 0.2,
                copy_win: 0.75,
            },
            decoders: None,
            loader: Some(LoaderMetrics {
                fetch: 0.25,
                ..LoaderMetrics::default()
            }),
            ranks: None,
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
        let keys = "step epoch samples loss lr grad_norm images_per_second data_wait_ms step_ms \
            cos_target cos_previous copy_win loader";
        let line: serde_json::Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
        assert_eq!(line.as_object().unwrap().len(), keys.split(' ').count());
        assert!(keys.split(' ').all(|key| line.get(key).is_some()));
    }

    #[test]
    fn a_line_of_an_older_program_has_no_loader() {
        let mut line = serde_json::to_value(metrics(1)).unwrap();
        assert_eq!(line["loader"]["fetch"], 0.25);
        line.as_object_mut().unwrap().remove("loader");
        let older = serde_json::from_value::<StepMetrics>(line).unwrap();
        assert_eq!(older.loader, None);
        assert_eq!(older.scalars().len() + 11, metrics(1).scalars().len());
    }

    #[test]
    fn a_line_of_fine_tuning_has_the_accuracy_instead() {
        let tuned = StepMetrics {
            measured: Measured::Classification { accuracy: 0.5 },
            ..metrics(3)
        };
        let line = serde_json::to_string(&tuned).unwrap();
        assert!(
            line.contains("\"accuracy\":0.5") && !line.contains("copy_win"),
            "{line}"
        );
        assert_eq!(serde_json::from_str::<StepMetrics>(&line).unwrap(), tuned);
        assert_eq!(lines_up_to(&format!("{line}\n"), 3), line.len() + 1);
    }
}
