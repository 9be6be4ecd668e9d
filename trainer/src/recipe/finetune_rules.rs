//! The rules of `[finetune]`: what is refused, and what is made of it when a recipe is resolved.
use nepa_model::NepaConfig;
use nepa_pipeline::{MixConfig, storable_url};
use serde_json::{Map, Value};

use super::error::RecipeError;
use super::finetune::{EvalSection, FinetuneSection, ResolvedEval, ResolvedFinetune};
use super::{Recipe, ResolvedTrain};
use crate::finetune::{Freeze, LayerRates};
use crate::transform::Transform;

/// Keys of `[model]` in which a fine-tuned model may differ from the weights that it begins with.
pub(super) const MAY_DIFFER: [&str; 7] = [
    "add_pooling_layer",
    "drop_path_prob",
    "is_causal",
    "pos_embed_jitter",
    "pos_embed_rescale",
    "pos_embed_shift",
    "qk_norm_affine",
];

impl ResolvedFinetune {
    /// The factors of all rates over a run.
    pub fn rates(&self, train: &ResolvedTrain) -> LayerRates {
        LayerRates {
            schedule: self.schedule,
            layer_decay: self.layer_decay,
            layer_decay_end: self.layer_decay_end,
            warmup_steps: train.warmup_steps,
            total_steps: train.steps,
        }
    }
}

impl EvalSection {
    /// With every rule applied, on a data set of that fingerprint and size.
    pub(crate) fn resolve(
        &self,
        train: &ResolvedTrain,
        side: usize,
        (dataset, num_samples): (String, u64),
    ) -> ResolvedEval {
        let side = side as u32;
        ResolvedEval {
            urls: self.urls.iter().map(|url| storable_url(url)).collect(),
            split: self.split.clone(),
            dataset,
            num_samples,
            every_steps: self.every_steps.unwrap_or(train.steps_per_epoch),
            batch: self.batch.unwrap_or(train.micro_batch),
            transform: self
                .transform
                .map_or_else(|| Transform::usual(side), |name| name.of(side)),
        }
    }
}

/// The configuration that `changes`, `[model]` of a fine-tuning recipe, make of that of the weights.
/// What may not differ and does is refused with `wrong`, which is given the key and both values.
pub(super) fn change_model(
    base: &NepaConfig,
    changes: &Map<String, Value>,
    wrong: impl Fn(&str, &Value, &Value) -> RecipeError,
) -> Result<Map<String, Value>, RecipeError> {
    let base = serde_json::to_value(base).expect("a configuration is plain data");
    let Value::Object(mut keys) = base else {
        unreachable!("a configuration is a table");
    };
    for (key, value) in changes {
        let own = keys.get(key).unwrap_or(&Value::Null);
        if !MAY_DIFFER.contains(&key.as_str()) && !is_same(own, value) {
            return Err(wrong(key, value, own));
        }
        keys.insert(key.clone(), value.clone());
    }
    Ok(keys)
}

/// Whether two values are the same to who writes them: 1 and 1.0 are.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one.to_bits() == other.to_bits(),
        _ => one == other,
    }
}

impl Recipe {
    /// `[finetune]` alone, without the data.
    pub(super) fn check_finetune(&self) -> Result<(), RecipeError> {
        let Some(finetune) = &self.finetune else {
            return Ok(());
        };
        let share = "more than 0, at most 1";
        let is_share = |value: f64| value > 0.0 && value <= 1.0;
        for (key, value, holds, rule) in [
            (
                "layer_decay",
                finetune.layer_decay,
                is_share(finetune.layer_decay),
                share,
            ),
            (
                "layer_decay_end",
                finetune.layer_decay_end(),
                is_share(finetune.layer_decay_end()),
                share,
            ),
            (
                "head_lr",
                finetune.head_lr,
                finetune.head_lr.is_finite() && finetune.head_lr >= 0.0,
                "a finite number, 0 or more",
            ),
        ] {
            self.require(holds, &format!("finetune.{key}"), &value, rule)?;
        }
        if let Some(end) = finetune.layer_decay_end
            && !finetune.schedule.is_rising()
        {
            let rule = "it has no effect with finetune.schedule = \"layerwise_warmup\", whose \
                        factor is fixed; leave it out, or take \"rising_linear\" or \
                        \"rising_cosine\"";
            let key = "finetune.layer_decay_end";
            return Err(self.wrong(key, end.to_string(), rule.to_owned()));
        }
        if let Freeze::Blocks(blocks) = finetune.freeze {
            let all = self.model.num_hidden_layers;
            self.require(
                blocks <= all,
                "finetune.freeze",
                &blocks,
                &format!("at most {all}, the blocks of the model"),
            )?;
        }
        let factor = self.optimizer.embedding_lr_factor;
        if (factor - 1.0).abs() > 0.0 {
            let rule = "it has no effect with [finetune], where finetune.layer_decay gives the \
                        embeddings their rate; leave it out";
            let key = "optimizer.embedding_lr_factor";
            return Err(self.wrong(key, factor.to_string(), rule.to_owned()));
        }
        self.check_classes(finetune)?;
        self.check_mix(&finetune.mix)?;
        self.check_eval(&finetune.eval)
    }

    fn check_classes(&self, finetune: &FinetuneSection) -> Result<(), RecipeError> {
        if let Some(names) = &finetune.classes {
            if names.len() < 2 {
                let value = format!("{names:?}");
                let rule = "it must name two classes or more".to_owned();
                return Err(self.wrong("finetune.classes", value, rule));
            }
            if let Some(count) = finetune.num_classes.filter(|count| *count != names.len()) {
                let rule = format!("finetune.classes names {}; leave one out", names.len());
                return Err(self.wrong("finetune.num_classes", count.to_string(), rule));
            }
        }
        let count = finetune.num_classes.unwrap_or(2);
        self.require(count >= 2, "finetune.num_classes", &count, "at least 2")
    }

    fn check_mix(&self, mix: &MixConfig) -> Result<(), RecipeError> {
        mix.check().map_err(|source| RecipeError::Mix {
            source,
            place: self.origin.of("finetune.mix"),
        })?;
        let micro_batch = self.train.micro_batch;
        self.require(
            !mix.mixes() || micro_batch.is_multiple_of(2),
            "train.micro_batch",
            &micro_batch,
            "even with [finetune.mix], which mixes the images of a micro-batch in pairs",
        )
    }

    fn check_eval(&self, eval: &EvalSection) -> Result<(), RecipeError> {
        for (key, count) in [
            ("finetune.eval.every_steps", eval.every_steps),
            ("finetune.eval.batch", eval.batch.map(|batch| batch as u64)),
        ] {
            self.require(count != Some(0), key, &0, "at least 1")?;
        }
        Ok(())
    }
}
