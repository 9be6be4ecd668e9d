//! Values that are possible, for a model and for its training.
use serde_json::Value;

use super::{CLASSIFIER, MODEL_TYPE, NepaConfig, PRETRAINING};
use crate::ModelError;

/// Keys of drop-outs that are not implemented. They change training alone, so weights trained with
/// them are read and evaluated. The published family's key of drop path is `drop_path_prob`; the
/// others are what other models call it, without effect there, too.
const DROPOUTS: [&str; 5] = [
    "attention_dropout",
    "attention_probs_dropout_prob",
    "drop_path",
    "drop_path_rate",
    "hidden_dropout_prob",
];
/// Number of learned tokens of visual prompt tuning; an idea of the published class.
const PROMPT: &str = "num_prompt_token";

fn wrong(key: &'static str, value: impl std::fmt::Display, rule: impl Into<String>) -> ModelError {
    ModelError::Config {
        key,
        value: value.to_string(),
        rule: rule.into(),
    }
}

impl NepaConfig {
    /// Checks that the values fit each other and that nothing is asked for that is not done here.
    pub fn validate(&self) -> Result<(), ModelError> {
        let check = |holds: bool, key: &'static str, value: &dyn std::fmt::Display, rule: &str| {
            if holds {
                Ok(())
            } else {
                Err(wrong(key, value, rule))
            }
        };
        let named = |architecture: &str| self.architectures.iter().any(|name| name == architecture);
        check(
            named(PRETRAINING) != named(CLASSIFIER),
            "architectures",
            &format!("{:?}", self.architectures),
            &format!("it must name {PRETRAINING} or {CLASSIFIER}"),
        )?;
        check(
            self.model_type == MODEL_TYPE,
            "model_type",
            &self.model_type,
            &format!("only {MODEL_TYPE} is implemented"),
        )?;
        for (key, value) in [
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("num_channels", self.num_channels),
        ] {
            check(value > 0, key, &value, "it must be at least 1")?;
        }
        check(
            self.image_size.is_multiple_of(self.patch_size),
            "image_size",
            &self.image_size,
            &format!("it must be a multiple of patch_size = {}", self.patch_size),
        )?;
        check(
            self.hidden_size.is_multiple_of(self.num_attention_heads),
            "hidden_size",
            &self.hidden_size,
            &format!(
                "it must be a multiple of num_attention_heads = {}",
                self.num_attention_heads
            ),
        )?;
        check(
            self.head_size().is_multiple_of(4),
            "hidden_size",
            &self.hidden_size,
            &format!(
                "the width of a head, hidden_size / num_attention_heads = {}, must be a multiple of 4 for the two-dimensional rotary positions",
                self.head_size()
            ),
        )?;
        check(
            (0.0..=10.0).contains(&self.initializer_range),
            "initializer_range",
            &self.initializer_range,
            "a standard deviation from 0 to 10 (the weights are cut at +-2)",
        )?;
        let layerscale = self.layerscale_value.unwrap_or(0.0);
        check(
            layerscale.is_finite(),
            "layerscale_value",
            &layerscale,
            "it must be finite",
        )?;
        check(
            self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0,
            "layer_norm_eps",
            &self.layer_norm_eps,
            "it must be finite and not negative",
        )?;
        check(
            self.rope_theta.is_finite() && self.rope_theta > 0.0,
            "rope_theta",
            &self.rope_theta,
            "it must be finite and positive",
        )?;
        for (key, range) in [
            ("pos_embed_rescale", self.pos_embed_rescale),
            ("pos_embed_jitter", self.pos_embed_jitter),
        ] {
            let value = range.unwrap_or(1.0);
            check(
                value.is_finite() && value >= 1.0,
                key,
                &value,
                "the end of a range [1 / r, r] must be at least 1",
            )?;
        }
        let shift = self.pos_embed_shift.unwrap_or(0.0);
        check(
            shift.is_finite() && shift >= 0.0,
            "pos_embed_shift",
            &shift,
            "it must be finite and not negative",
        )?;
        check(
            (0.0..1.0).contains(&self.drop_path_prob),
            "drop_path_prob",
            &self.drop_path_prob,
            "a share of images, from 0 to less than 1",
        )?;
        let prompt = self.other.get(PROMPT).unwrap_or(&Value::Null);
        check(
            is_zero(prompt),
            PROMPT,
            prompt,
            "prompt tokens are not implemented: it must be 0",
        )?;
        match self.wrong_classes() {
            Some((key, value, rule)) => Err(wrong(key, value, rule)),
            None => Ok(()),
        }
    }

    /// [`Self::validate`], and that training needs nothing that is not done here. Weights that were
    /// trained with drop-out are evaluated all the same.
    pub fn validate_for_training(&self) -> Result<(), ModelError> {
        self.validate()?;
        for key in DROPOUTS {
            if let Some(value) = self.other.get(key).filter(|value| !is_zero(value)) {
                let rule = "this drop-out is not implemented, so training needs 0 here (evaluation \
                    does not mind); drop path is drop_path_prob";
                return Err(wrong(key, value, rule));
            }
        }
        Ok(())
    }
}

/// Whether the value of a key is 0, or null as if it were absent.
fn is_zero(value: &Value) -> bool {
    value.is_null() || value.as_f64() == Some(0.0)
}
