//! The evaluation at the end of an epoch: the weights and their average on images that are not
//! trained on, and which epoch was the best so far.
use std::time::Instant;

use candle_core::Device;
use nepa_model::Weights;
use nepa_pipeline::{DatasetConfig, IoRuntime};
use nepa_schemas::SchemaOptions;

use crate::checkpoint::{BestEval, EvalState};
use crate::engine::TrainingState;
use crate::error::RunError;
use crate::eval::{ClassMatch, ImageSet, ReadOptions, Top1, Top1Scores};
use crate::logs::{Accuracy, EvalRecord};
use crate::recipe::{FinetuneSection, Recipe, ResolvedRecipe};
use crate::run::At;

/// What a run is evaluated on, and what was found so far.
#[derive(Debug)]
pub(super) struct Evaluation {
    set: ImageSet,
    device: Device,
    state: EvalState,
    told_left_out: bool,
}

fn failed(source: anyhow::Error) -> RunError {
    RunError::Evaluation {
        source: source.into(),
    }
}

impl Evaluation {
    /// Opens the images; none where the recipe names none.
    pub(super) fn open(
        section: &FinetuneSection,
        recipe: &Recipe,
        device: &Device,
        runtime: &IoRuntime,
    ) -> Result<Option<Self>, RunError> {
        if section.eval.urls.is_empty() {
            return Ok(None);
        }
        let config = DatasetConfig {
            urls: section.eval.urls.clone(),
            schema: SchemaOptions {
                image_column: recipe.data.image_column.clone(),
                label_column: section.label_column.clone(),
                ..SchemaOptions::default()
            },
            split: section.eval.split.clone(),
            strict: recipe.data.strict,
            ..DatasetConfig::default()
        };
        let set = ImageSet::open(&config, &recipe.io, runtime).map_err(failed)?;
        Ok(Some(Self {
            set,
            device: device.clone(),
            state: EvalState::default(),
            told_left_out: false,
        }))
    }

    /// Fingerprint of the data set, and its images.
    pub(super) fn identity(&self) -> (String, u64) {
        (self.set.fingerprint(), self.set.len())
    }

    /// Fails where no label can be a class of the model.
    pub(super) fn check(&self, recipe: &ResolvedRecipe) -> Result<(), RunError> {
        ClassMatch::new(&recipe.model, &self.set, None)
            .map(drop)
            .map_err(failed)
    }

    /// What is remembered.
    pub(super) fn state(&self) -> EvalState {
        self.state
    }

    pub(super) fn set_state(&mut self, state: EvalState) {
        self.state = state;
    }

    /// Whether a step is to be evaluated, and was not.
    pub(super) fn is_due(&self, recipe: &ResolvedRecipe, step: u64) -> bool {
        let eval = recipe.finetune.as_ref().and_then(|tune| tune.eval.as_ref());
        let is_due = |every: u64| step.is_multiple_of(every) || step == recipe.train.steps;
        step > self.state.last_step && eval.is_some_and(|eval| is_due(eval.every_steps))
    }

    /// Evaluates the weights of a step, raw and average.
    pub(super) fn run(
        &mut self,
        recipe: &ResolvedRecipe,
        at: At,
        training: &TrainingState,
        go_on: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Option<EvalRecord>, RunError> {
        let Some(eval) = recipe.finetune.as_ref().and_then(|tune| tune.eval.as_ref()) else {
            return Ok(None);
        };
        let started = Instant::now();
        let top1 = Top1 {
            read: ReadOptions {
                transform: eval.transform,
                normalize: recipe.data.normalize,
                exif_orientation: recipe.data.exif_orientation,
                batch: eval.batch,
                threads: recipe.decode_threads,
                limit: usize::MAX,
            },
            device: &self.device,
        };
        let raw = &training.weights;
        let average = Some(&training.optimizer.ema).filter(|ema| !ema.is_empty());
        let average = average.map(|ema| Weights {
            specs: raw.specs.clone(),
            flat: ema.clone(),
        });
        let both = [raw].into_iter().chain(&average).collect::<Vec<_>>();
        let mut classes = ClassMatch::new(&recipe.model, &self.set, None).map_err(failed)?;
        let report = top1.evaluate_while(&recipe.model, &both, &mut classes, go_on);
        let Some(report) = report.map_err(failed)? else {
            return Ok(None);
        };
        if !std::mem::replace(&mut self.told_left_out, true) {
            let warnings = report.left_out.warnings(self.set.len());
            for warning in warnings.into_iter().chain(classes.warning()) {
                crate::console::print::message("warning: ", &warning);
            }
        }
        let scores = |scores: &Top1Scores| Accuracy {
            top1: scores.top1.share(),
            top5: scores.top5.map(crate::eval::Accuracy::share),
            loss: scores.loss,
        };
        let mut record = EvalRecord {
            step: at.step,
            epoch: at.epoch,
            images: report.weights[0].top1.total as u64,
            raw: scores(&report.weights[0]),
            ema: report.weights.get(1).map(scores),
            best: false,
            seconds: started.elapsed().as_secs_f64(),
        };
        record.best = self.state.note(BestEval {
            step: at.step,
            epoch: at.epoch,
            top1: record.top1(),
        });
        Ok(Some(record))
    }
}
