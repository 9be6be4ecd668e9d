//! What a run is for: the part in which pretraining and fine-tuning differ. Loop, logs, checkpoints
//! and going on are the same for both.
use std::ops::Range;

use nepa_model::step::adamw::WeightGroup;
use nepa_model::{DropPath, RopeDraw, Weights, init_weights};
use nepa_pipeline::{IoRuntime, SampleRecord};

use super::draws::StepDraws;
use super::init;
use super::options::Options;
use super::steps::Summary;
use crate::checkpoint::EvalState;
use crate::console::messages::quoted;
use crate::console::words;
use crate::engine::{PassDraw, TrainingState};
use crate::error::RunError;
use crate::logs::EvalRecord;
use crate::recipe::ResolvedRecipe;

/// A label and what stands behind it, as in the recap.
pub(crate) type Line = (&'static str, String);

/// A step that an evaluation belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    /// Optimiser steps done.
    pub step: u64,
    /// Epochs done, the present one included.
    pub epoch: u64,
}

/// Pretraining or fine-tuning.
pub(crate) trait Phase: std::fmt::Debug {
    /// Weights before the first step.
    fn weights(&mut self, recipe: &ResolvedRecipe) -> Result<Weights, RunError>;

    /// What updates do with the weight of a name.
    fn group(&self, recipe: &ResolvedRecipe, name: &str) -> WeightGroup;

    /// The learning rates of a step, by [`WeightGroup::rate`]; the first is the one that is told.
    fn rates(&self, recipe: &ResolvedRecipe, step: u64) -> Vec<f64>;

    /// All that these micro-batches of a step need beside their images, which are `samples`.
    fn draws(
        &self,
        recipe: &ResolvedRecipe,
        samples: &[SampleRecord],
        step: u64,
        micro_batches: Range<usize>,
    ) -> Result<StepDraws, RunError>;

    /// How the learning rate goes, for the recap: "to 0.001 in 30 steps".
    fn rate(&self, recipe: &ResolvedRecipe) -> String;

    /// What the recap says beside that.
    fn recap(&self, _recipe: &ResolvedRecipe) -> Vec<Line> {
        Vec::new()
    }

    /// What is said at the end of a run into `out`: of what came out, and what to do next.
    fn end(&self, recipe: &ResolvedRecipe, summary: &Summary, out: &str) -> Vec<Line>;

    /// Whether the weights after a step are to be evaluated and were not yet.
    fn is_evaluation_due(&self, _recipe: &ResolvedRecipe, _step: u64) -> bool {
        false
    }

    /// Evaluates; none where `go_on`, which is told how many images are done, of how many, said
    /// that there is no time.
    fn evaluate(
        &mut self,
        _recipe: &ResolvedRecipe,
        _at: At,
        _training: &TrainingState,
        _go_on: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Option<EvalRecord>, RunError> {
        Ok(None)
    }

    /// What is remembered of evaluations, for a checkpoint.
    fn eval_state(&self) -> Option<EvalState> {
        None
    }

    /// Goes on from what a checkpoint remembers.
    fn set_eval_state(&mut self, _state: Option<EvalState>) {}
}

/// What is drawn for each of these micro-batches of a step.
pub(crate) fn passes(
    recipe: &ResolvedRecipe,
    step: u64,
    micro_batches: Range<usize>,
) -> Vec<PassDraw> {
    let (model, seed, images) = (&recipe.model, recipe.seed, recipe.train.micro_batch);
    let ablation = recipe.ablation;
    let draw = |micro_batch| PassDraw {
        rope: RopeDraw::draw(model, seed, step, micro_batch),
        drop_path: DropPath::draw(model, seed, step, micro_batch, images),
        masked: ablation.draw_masked(model, seed, step, micro_batch, images),
    };
    (micro_batches.start as u64..micro_batches.end as u64)
        .map(draw)
        .collect()
}

/// The next embedding is learned from images alone.
#[derive(Debug)]
pub(crate) struct Pretraining {
    /// What it begins with, as it was named, which may hold secrets.
    init: Option<String>,
    runtime: IoRuntime,
    /// What it has begun with.
    begun: Option<String>,
}

impl Pretraining {
    /// As the command line says.
    pub(super) fn new(options: &Options, runtime: &IoRuntime) -> Self {
        Self {
            init: options.init.as_ref().map(|init| init.url.clone()),
            runtime: runtime.clone(),
            begun: None,
        }
    }
}

impl Phase for Pretraining {
    fn weights(&mut self, recipe: &ResolvedRecipe) -> Result<Weights, RunError> {
        let Some(init) = &recipe.init else {
            return Ok(init_weights(&recipe.model, recipe.seed));
        };
        let (weights, begun) = init::read(init, self.init.as_deref(), recipe, &self.runtime)?;
        self.begun = Some(begun);
        Ok(weights)
    }

    fn recap(&self, _recipe: &ResolvedRecipe) -> Vec<Line> {
        let line = |begun: &String| ("begins", format!("with the {begun}"));
        self.begun.iter().map(line).collect()
    }

    fn group(&self, recipe: &ResolvedRecipe, name: &str) -> WeightGroup {
        recipe.optimizer.group(name)
    }

    fn rates(&self, recipe: &ResolvedRecipe, step: u64) -> Vec<f64> {
        let lr = recipe.train.schedule().at(step);
        recipe.optimizer.rates(lr).to_vec()
    }

    fn draws(
        &self,
        recipe: &ResolvedRecipe,
        _samples: &[SampleRecord],
        step: u64,
        micro_batches: Range<usize>,
    ) -> Result<StepDraws, RunError> {
        Ok(StepDraws::of(passes(recipe, step, micro_batches)))
    }

    fn rate(&self, recipe: &ResolvedRecipe) -> String {
        let train = &recipe.train;
        let warmup = words::count(train.warmup_steps);
        format!("to {} in {warmup} steps", words::small(train.lr))
    }

    fn end(&self, recipe: &ResolvedRecipe, summary: &Summary, out: &str) -> Vec<Line> {
        let mut lines = vec![(
            "saved",
            format!("{out}: checkpoints, metrics.jsonl, recipe.toml"),
        )];
        // Of a few steps it says nothing.
        if let Some(copies) = summary.copies.filter(|copies| *copies > 0.5)
            && summary.losses.is_some()
        {
            lines.insert(0, (
                "note",
                format!(
                    "at {} of the positions the prediction is still nearer to the current patch \
                     than to the next",
                    words::percent(copies)
                ),
            ));
        }
        let train = match &recipe.data.urls[..] {
            [url] => quoted(url),
            _ => "URL".to_owned(),
        };
        let next = format!("nepa eval all --checkpoint {out} --train {train} --test URL");
        lines.push(("next", next));
        lines.push(("", format!("nepa report {out}")));
        lines.push(("", format!("nepa export {out} FOLDER")));
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{DType, Device, Tensor};
    use nepa_model::{Nepa, PretrainDraw};

    use super::*;
    use crate::engine::{Images, StepInput};
    use crate::ranks::Ranks;
    use crate::recipe::Recipe;
    use crate::run::setup::engine;

    /// What a run's first step computes is the loss that its recipe's ablation says.
    #[test]
    fn an_ablation_reaches_the_step() {
        let text = include_str!("../../recipes/tiny.toml");
        for set in [
            "ablation.shift=false",
            "ablation.stop_gradient=false",
            "ablation.mask_ratio=0.4",
        ] {
            let sets = [set, "train.batch=4", "train.micro_batch=2"].map(str::to_owned);
            let recipe = Recipe::parse(text, Path::new("tiny.toml"), &sets).expect("a recipe");
            let recipe = recipe.resolve(100, String::new()).expect("resolves");
            let weights = init_weights(&recipe.model, recipe.seed);
            let model = Nepa::new(&recipe.model, &weights, DType::F32, &Device::Cpu);
            let model = model.expect("a model");
            let training = TrainingState::new(weights);
            let pretraining = Pretraining {
                init: None,
                runtime: IoRuntime::new(1).expect("a runtime"),
                begun: None,
            };
            let alone = Ranks::alone();
            let engine = engine(&recipe, &pretraining, training, &Device::Cpu, &alone);
            let mut engine = engine.expect("an engine");

            let values = 3 * recipe.model.image_size * recipe.model.image_size;
            let pixels: Vec<f32> = (0..4 * values)
                .map(|place| ((place * 37) % 101) as f32 / 50.0 - 1.0)
                .collect();
            let images: Vec<&[f32]> = pixels.chunks_exact(values).collect();
            let passes = passes(&recipe, 7, 0..2);
            assert_eq!(passes[0].masked.is_some(), set.contains("mask"));
            assert!(passes[0].masked.is_none() || passes[0].masked != passes[1].masked);
            let input = StepInput::unlabelled(Images::Host(&images), &passes);
            let report = engine.step(&input).expect("a step");
            let found = engine.gradient().expect("a gradient");

            let side = recipe.model.image_size;
            let mut expected = vec![0.0; found.len()];
            let mut plain = vec![0.0; found.len()];
            let mut loss = 0.0;
            for (pass, pixels) in passes.iter().zip(pixels.chunks_exact(2 * values)) {
                let pixels = Tensor::from_slice(pixels, (2, 3, side, side), &Device::Cpu);
                let pixels = pixels.expect("pixels");
                let draw = PretrainDraw {
                    rope: pass.rope,
                    drop_path: None,
                    masked: pass.masked.as_deref(),
                };
                let own = model
                    .ablated_loss(&pixels, &draw, &recipe.ablation)
                    .expect("a loss");
                loss += 0.5 * own.report().expect("a report").loss;
                model
                    .backward_into(&own.loss, 0.5, &mut expected)
                    .expect("gradients");
                // The published loss of the same batch has another gradient; it has no mask token.
                if !recipe.model.use_mask_token {
                    let own = model.pretrain_loss(&pixels, &pass.rope).expect("a loss");
                    model
                        .backward_into(&own.loss, 0.5, &mut plain)
                        .expect("gradients");
                }
            }
            assert!((report.loss - loss).abs() < 1e-7, "{set}");
            assert_eq!(found, expected, "{set}");
            assert_ne!(found, plain, "{set}");
        }
    }
}
