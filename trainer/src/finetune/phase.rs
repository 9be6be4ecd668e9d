//! Fine-tuning as a phase of training: weights that are there become a classifier's, images are
//! mixed with their labels, each layer has its rate.
use std::ops::Range;

use nepa_model::step::adamw::WeightGroup;
use nepa_model::{NepaConfig, Weights, classifier_weights, init_weights};
use nepa_pipeline::random::{Purpose, micro_batch_stream};
use nepa_pipeline::{IoConfig, IoRuntime, MixPlan, SampleRecord, storable_url};

use super::classes::LabelClasses;
use super::evaluation::Evaluation;
use super::groups::{LayerGroups, rates};
use crate::checkpoint::EvalState;
use crate::console::messages::quoted;
use crate::console::words;
use crate::engine::TrainingState;
use crate::error::RunError;
use crate::logs::EvalRecord;
use crate::output::{Bring, fetch_run};
use crate::ranks::Ranks;
use crate::recipe::{Draft, FromWeights, Recipe, RecipeError, ResolvedFinetune, ResolvedRecipe};
use crate::run::{
    At, Line, Options, Phase, Setup, StartingPoint, StepDraws, Summary, open_dataset, open_device,
    passes, take_data,
};
use crate::weights::{self, WeightsFolder, Which};

/// A fine-tuning run.
#[derive(Debug)]
pub(crate) struct Finetuning {
    from: StartingPoint,
    /// The weights themselves, where they were opened for their architecture.
    opened: Option<WeightsFolder>,
    io: IoConfig,
    runtime: IoRuntime,
    classes: LabelClasses,
    groups: LayerGroups,
    evaluation: Option<Evaluation>,
    /// What became of the weights in the conversion, where this process made it.
    converted: Option<String>,
}

/// `[finetune]` of a recipe that has it.
fn section(recipe: &ResolvedRecipe) -> &ResolvedFinetune {
    let finetune = recipe.finetune.as_ref();
    finetune.expect("the recipe of a fine-tuning run has its section")
}

impl Finetuning {
    /// Reads and checks the recipe, finds the architecture of the weights and the classes of the
    /// labels, and opens the data sets.
    pub(crate) fn set_up(
        draft: Draft,
        from: &StartingPoint,
        options: &Options,
        ranks: &Ranks,
    ) -> Result<Setup, RunError> {
        // What is wrong with the recipe is said before anything is fetched.
        let mut sketch = draft.check_finetuning()?;
        take_data(&mut sketch, options);
        sketch.check_data_given()?;
        let (device, runtime) = open_device(&sketch, ranks)?;
        let (base, opened) = base(from, options, &sketch, &runtime)?;

        let mut recipe = draft.finetuning(&base)?;
        take_data(&mut recipe, options);
        let mut tune = recipe
            .finetune
            .clone()
            .unwrap_or_else(|| unreachable!("`finetuning` refuses a recipe without its section"));
        if !from.eval_data.is_empty() {
            tune.eval.urls.clone_from(&from.eval_data);
        }
        recipe.check(ranks.size())?;
        let labels = tune.label_column.clone();
        let dataset = open_dataset(&recipe, labels, &runtime, ranks)?;
        let classes = LabelClasses::new(&tune, &dataset, &base)?;
        recipe.model = recipe.model.to_classifier(classes.classes());
        recipe
            .model
            .validate_for_training()
            .map_err(RecipeError::from)?;
        let evaluation = Evaluation::open(&tune, &recipe, &device, &runtime)?;
        let groups = LayerGroups::new(&recipe.model, &recipe.optimizer, tune.freeze);

        let mut resolved = recipe.resolve(dataset.num_samples(), dataset.fingerprint())?;
        let eval = evaluation.as_ref().map(|evaluation| {
            let side = resolved.model.image_size;
            tune.eval
                .resolve(&resolved.train, side, evaluation.identity())
        });
        resolved.finetune = Some(ResolvedFinetune {
            from: storable_url(&from.url),
            weights: from.weights,
            schedule: tune.schedule,
            layer_decay: tune.layer_decay,
            layer_decay_end: tune.layer_decay_end(),
            head_lr: tune.head_lr,
            freeze: tune.freeze,
            mix: tune.mix,
            label_column: tune.label_column,
            eval,
        });
        if let Some(evaluation) = &evaluation {
            evaluation.check(&resolved)?;
        }
        let phase = Self {
            from: from.clone(),
            opened,
            io: resolved.io.clone(),
            runtime: runtime.clone(),
            classes,
            groups,
            evaluation,
            converted: None,
        };
        Ok(Setup {
            recipe: resolved,
            phase: Box::new(phase),
            dataset,
            device,
            runtime,
        })
    }
}

/// The configuration that the run's model follows from: that of the weights, or, of a run that goes
/// on, its own, as the weights may be gone. With the weights, where they were opened.
fn base(
    from: &StartingPoint,
    options: &Options,
    sketch: &Recipe,
    runtime: &IoRuntime,
) -> Result<(NepaConfig, Option<WeightsFolder>), RunError> {
    if options.resume
        && let Ok(run) = fetch_run(&options.out, Bring::None, &sketch.io, runtime)
        && let Ok(saved) = toml::from_str::<ResolvedRecipe>(&run.recipe)
        && saved.finetune.is_some()
    {
        return Ok((saved.model, None));
    }
    let weights = weights::open(&from.url, &sketch.io, runtime)?;
    Ok((weights.config().clone(), Some(weights)))
}

impl Phase for Finetuning {
    fn weights(&mut self, recipe: &ResolvedRecipe) -> Result<Weights, RunError> {
        if self.from.weights == FromWeights::Random {
            return Ok(init_weights(&recipe.model, recipe.seed));
        }
        let folder = match self.opened.take() {
            Some(folder) => folder,
            None => weights::open(&self.from.url, &self.io, &self.runtime)?,
        };
        let which = Which::from(self.from.weights);
        let source = folder.weights(which)?;
        let pretrained = (folder.config(), &source);
        let converted = classifier_weights(pretrained, &recipe.model, recipe.seed);
        let (weights, conversion) = converted.map_err(|source| RunError::From {
            place: folder.place().to_owned(),
            source,
        })?;
        self.converted = Some(format!("{}; {conversion}", folder.describe(which)));
        Ok(weights)
    }

    fn group(&self, _recipe: &ResolvedRecipe, name: &str) -> WeightGroup {
        self.groups.group(name)
    }

    fn rates(&self, recipe: &ResolvedRecipe, step: u64) -> Vec<f64> {
        let tune = section(recipe);
        let peaks = (recipe.train.lr, tune.head_lr);
        let factors = tune.rates(&recipe.train);
        rates(&factors, recipe.model.num_hidden_layers, peaks, step)
    }

    fn draws(
        &self,
        recipe: &ResolvedRecipe,
        samples: &[SampleRecord],
        step: u64,
        micro_batches: Range<usize>,
    ) -> Result<StepDraws, RunError> {
        let labels = self.classes.labels(samples, step)?;
        let (images, side) = (recipe.train.micro_batch, recipe.model.image_size as u32);
        let (mix, seed) = (section(recipe).mix, recipe.seed);
        let num_classes = recipe.model.num_classes().unwrap_or_default();
        let mut targets = Vec::with_capacity(labels.len() * num_classes);
        let mut mixes = Vec::with_capacity(micro_batches.len());
        let first = micro_batches.start as u64;
        for (number, labels) in (first..).zip(labels.chunks_exact(images)) {
            let mut stream = micro_batch_stream(seed, step, number, Purpose::MixImages);
            let plan = MixPlan::draw(&mix, images, side, &mut stream)?;
            targets.extend(plan.targets(labels, num_classes)?);
            mixes.push(plan);
        }
        Ok(StepDraws {
            passes: passes(recipe, step, micro_batches),
            mixes,
            targets: Some(targets),
        })
    }

    fn rate(&self, recipe: &ResolvedRecipe) -> String {
        let (train, tune) = (&recipe.train, section(recipe));
        let factors = tune.rates(train);
        let warmup = match (
            factors.warmup_of(0),
            factors.warmup_of(recipe.model.num_hidden_layers),
        ) {
            (all, lowest) if all == lowest => words::count(all),
            (head, lowest) => format!("{} to {}", words::count(head), words::count(lowest)),
        };
        let decay = if tune.schedule.is_rising() {
            format!("{} rising to {}", tune.layer_decay, tune.layer_decay_end)
        } else {
            tune.layer_decay.to_string()
        };
        format!(
            "to {} (head {}) in {warmup} steps, times {decay} for each block below the last",
            words::small(train.lr),
            words::small(tune.head_lr),
        )
    }

    fn recap(&self, recipe: &ResolvedRecipe) -> Vec<Line> {
        let tune = section(recipe);
        let from = quoted(&tune.from);
        let from = match (tune.weights, &self.converted) {
            (FromWeights::Random, _) => {
                format!("fresh weights in the architecture of {from}")
            }
            (_, Some(converted)) => format!("{from}: {converted}"),
            (_, None) => from,
        };
        let attention = if recipe.model.is_causal {
            "causal"
        } else {
            "bidirectional"
        };
        let eval = match &tune.eval {
            Some(eval) => format!(
                "{} every {}, {}",
                words::counted(eval.num_samples, "image"),
                words::counted(eval.every_steps, "step"),
                eval.transform
            ),
            None => "none: no --test, so that no epoch is the best".to_owned(),
        };
        vec![
            ("from", from),
            (
                "classes",
                format!(
                    "{}; attention {attention}, frozen: {}",
                    self.classes, tune.freeze
                ),
            ),
            ("eval", eval),
        ]
    }

    fn end(&self, recipe: &ResolvedRecipe, _summary: &Summary, out: &str) -> Vec<Line> {
        let best = self
            .evaluation
            .as_ref()
            .and_then(|evaluation| evaluation.state().best);
        let mut lines = Vec::new();
        let mut weights = out.to_owned();
        if let Some(best) = best {
            weights = format!("{}/best", out.trim_end_matches('/'));
            lines.push((
                "best",
                format!(
                    "{:.2} % top-1 after step {} (epoch {}): {weights}",
                    100.0 * best.top1,
                    words::count(best.step),
                    words::count(best.epoch)
                ),
            ));
        }
        lines.push((
            "saved",
            format!("{out}: checkpoints, metrics.jsonl, evals.jsonl, recipe.toml"),
        ));
        let eval = section(recipe).eval.as_ref().map(|eval| &eval.urls[..]);
        let data = match eval {
            Some([url]) => quoted(url),
            _ => "URL".to_owned(),
        };
        lines.push((
            "next",
            format!("nepa eval top1 --checkpoint {weights} --test {data}"),
        ));
        lines.push(("", format!("nepa predict {weights} IMAGE")));
        lines.push(("", format!("nepa export {weights} FOLDER")));
        lines
    }

    fn is_evaluation_due(&self, recipe: &ResolvedRecipe, step: u64) -> bool {
        let evaluation = self.evaluation.as_ref();
        evaluation.is_some_and(|evaluation| evaluation.is_due(recipe, step))
    }

    fn evaluate(
        &mut self,
        recipe: &ResolvedRecipe,
        at: At,
        training: &TrainingState,
        go_on: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Option<EvalRecord>, RunError> {
        match &mut self.evaluation {
            Some(evaluation) => evaluation.run(recipe, at, training, go_on),
            None => Ok(None),
        }
    }

    fn eval_state(&self) -> Option<EvalState> {
        self.evaluation.as_ref().map(Evaluation::state)
    }

    fn set_eval_state(&mut self, state: Option<EvalState>) {
        if let (Some(evaluation), Some(state)) = (&mut self.evaluation, state) {
            evaluation.set_state(state);
        }
    }
}
