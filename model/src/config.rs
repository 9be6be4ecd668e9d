//! The published `config.json`. Every key that is known takes effect or is refused; keys that are
//! not known (Hugging Face writes many: `dtype`, `transformers_version`, ...) are kept as they are
//! and written back.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ModelError;

/// The architecture that this crate implements.
pub(crate) const ARCHITECTURE: &str = "ViTNepaForPreTraining";
/// Its `model_type`.
pub(crate) const MODEL_TYPE: &str = "vit_nepa";
/// Keys of the published family that must be absent, null or 0: a model that needs them would
/// compute something else here.
const MUST_BE_ZERO: [&str; 6] = [
    "attention_dropout",
    "attention_probs_dropout_prob",
    "drop_path",
    "drop_path_prob",
    "drop_path_rate",
    "hidden_dropout_prob",
];

/// Activation of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// Exact (erf) GELU.
    Gelu,
    /// SiLU; with `use_gated_mlp` this is SwiGLU.
    #[serde(alias = "swish")]
    Silu,
    /// Rectifier.
    Relu,
}

/// Architecture of a NEPA model, in the published layout; where a key is absent, it is what the
/// published class takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the published layout has them"
)]
pub struct NepaConfig {
    /// Must name `ViTNepaForPreTraining`.
    #[serde(default = "default_architectures")]
    pub architectures: Vec<String>,
    /// Must be `vit_nepa`.
    #[serde(default = "default_model_type")]
    pub model_type: String,
    /// Token width D.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads H; D / H must be a multiple of 4 (the rotary positions take a quarter each).
    pub num_attention_heads: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Activation of the MLP.
    #[serde(default = "default_hidden_act")]
    pub hidden_act: HiddenAct,
    /// Whether the MLP is `act(gate(x)) * up(x)`.
    #[serde(default)]
    pub use_gated_mlp: bool,
    /// Side of the square image in pixels.
    #[serde(default = "default_image_size")]
    pub image_size: usize,
    /// Side of a patch in pixels.
    #[serde(default = "default_patch_size")]
    pub patch_size: usize,
    /// Colour channels.
    #[serde(default = "default_num_channels")]
    pub num_channels: usize,
    /// Standard deviation of initial weights.
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
    /// Initial value of LayerScale; null is a model without LayerScale.
    #[serde(default = "default_layerscale_value")]
    pub layerscale_value: Option<f64>,
    /// Added to the variance in every LayerNorm.
    #[serde(default = "default_layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// Whether a token sees only itself and those before it.
    #[serde(default = "yes")]
    pub is_causal: bool,
    /// Whether queries and keys have biases, and values.
    #[serde(default = "yes")]
    pub qkv_bias: bool,
    /// Whether queries and keys are normalised per head.
    #[serde(default)]
    pub qk_norm: bool,
    /// Whether that norm has a weight.
    #[serde(default)]
    pub qk_norm_affine: bool,
    /// Whether that norm has a bias; without `qk_norm_affine` it has none, as in PyTorch's
    /// `LayerNorm`.
    #[serde(default)]
    pub qk_norm_bias: bool,
    /// Base of the rotary frequencies.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// While training, one factor for all coordinates, log-uniform in `[1 / r, r]`.
    #[serde(default = "default_pos_embed_rescale")]
    pub pos_embed_rescale: Option<f64>,
    /// While training, added to y and to x, uniform in `[-s, s]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pos_embed_shift: Option<f64>,
    /// While training, one factor each for y and x, log-uniform in `[1 / j, j]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pos_embed_jitter: Option<f64>,
    /// Keys that are not known here; kept, without effect.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

fn default_architectures() -> Vec<String> {
    vec![ARCHITECTURE.to_owned()]
}
fn default_model_type() -> String {
    MODEL_TYPE.to_owned()
}
fn default_hidden_act() -> HiddenAct {
    HiddenAct::Gelu
}
fn default_image_size() -> usize {
    224
}
fn default_patch_size() -> usize {
    16
}
fn default_num_channels() -> usize {
    3
}
fn default_initializer_range() -> f64 {
    0.02
}
#[expect(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn default_layerscale_value() -> Option<f64> {
    Some(1e-5)
}
fn default_layer_norm_eps() -> f64 {
    1e-12
}
#[expect(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn default_pos_embed_rescale() -> Option<f64> {
    Some(2.0)
}
fn default_rope_theta() -> f64 {
    100.0
}
fn yes() -> bool {
    true
}

impl NepaConfig {
    /// ViT-B/14 as published: 86 M weights.
    pub fn base_14() -> Self {
        Self {
            architectures: default_architectures(),
            model_type: default_model_type(),
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: HiddenAct::Gelu,
            use_gated_mlp: false,
            image_size: default_image_size(),
            patch_size: 14,
            num_channels: default_num_channels(),
            initializer_range: default_initializer_range(),
            layerscale_value: default_layerscale_value(),
            layer_norm_eps: default_layer_norm_eps(),
            is_causal: true,
            qkv_bias: true,
            qk_norm: true,
            qk_norm_affine: false,
            qk_norm_bias: false,
            rope_theta: default_rope_theta(),
            pos_embed_rescale: default_pos_embed_rescale(),
            pos_embed_shift: None,
            pos_embed_jitter: None,
            other: BTreeMap::new(),
        }
    }

    /// ViT-L/14 as published: 304 M weights.
    pub fn large_14() -> Self {
        Self {
            hidden_size: 1024,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            intermediate_size: 4096,
            qk_norm_affine: true,
            ..Self::base_14()
        }
    }

    /// ViT-B/14 with the SwiGLU MLP of the paper, its width chosen so that the MLP has as many
    /// weights.
    pub fn base_14_gated() -> Self {
        Self {
            intermediate_size: 2048,
            hidden_act: HiddenAct::Silu,
            use_gated_mlp: true,
            ..Self::base_14()
        }
    }

    /// A model for tests: 16 patches of 7 pixels, width 48, three blocks.
    pub fn tiny() -> Self {
        Self {
            hidden_size: 48,
            num_hidden_layers: 3,
            num_attention_heads: 3,
            intermediate_size: 96,
            image_size: 28,
            patch_size: 7,
            ..Self::base_14()
        }
    }

    /// Width d of a head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Patches along one side.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches P of an image.
    pub fn num_patches(&self) -> usize {
        self.patches_per_side() * self.patches_per_side()
    }

    /// Operations (FLOPs) of training on one image: two for each multiply-add of a product, three
    /// times for forward and backward. Attention counts half where it is causal, the patch
    /// embedding twice, as images take no gradient. Norms, softmax and the optimiser are left out.
    pub fn training_flops_per_image(&self) -> f64 {
        let (d, mlp, p) = (
            self.hidden_size as f64,
            self.intermediate_size as f64,
            self.num_patches() as f64,
        );
        let mlp_products = if self.use_gated_mlp { 3.0 } else { 2.0 };
        let seen = if self.is_causal { p / 2.0 } else { p };
        let block = 2.0 * (4.0 * d * d + mlp_products * d * mlp) + 4.0 * seen * d;
        let patch_values = (self.num_channels * self.patch_size * self.patch_size) as f64;
        p * (3.0 * self.num_hidden_layers as f64 * block + 2.0 * 2.0 * d * patch_values)
    }

    /// Checks that the values fit each other and that nothing is asked for that is not done here.
    pub fn validate(&self) -> Result<(), ModelError> {
        let check = |holds: bool, key: &'static str, value: &dyn std::fmt::Display, rule: &str| {
            if holds {
                Ok(())
            } else {
                Err(ModelError::Config {
                    key,
                    value: value.to_string(),
                    rule: rule.to_owned(),
                })
            }
        };
        check(
            self.architectures.iter().any(|name| name == ARCHITECTURE),
            "architectures",
            &format!("{:?}", self.architectures),
            &format!("only {ARCHITECTURE} is implemented"),
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
        for key in MUST_BE_ZERO {
            if let Some(value) = self.other.get(key) {
                check(
                    value.is_null() || value.as_f64() == Some(0.0),
                    key,
                    value,
                    "dropout is not implemented; pretraining uses none",
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ParamSpec;

    fn refused(change: impl FnOnce(&mut NepaConfig)) -> String {
        let mut config = NepaConfig::tiny();
        change(&mut config);
        config.validate().expect_err("must be refused").to_string()
    }

    #[test]
    fn presets_are_valid() {
        for config in [
            NepaConfig::base_14(),
            NepaConfig::large_14(),
            NepaConfig::base_14_gated(),
            NepaConfig::tiny(),
        ] {
            config.validate().expect("a preset");
        }
    }

    #[test]
    fn impossible_values_are_refused_by_key() {
        assert!(refused(|c| c.image_size = 30).contains("multiple of patch_size = 7"));
        assert!(
            refused(|c| c.num_attention_heads = 5).contains("multiple of num_attention_heads = 5")
        );
        assert!(refused(|c| c.num_attention_heads = 8).contains("multiple of 4"));
        assert!(refused(|c| c.patch_size = 0).contains("patch_size = 0"));
        assert!(refused(|c| c.layer_norm_eps = -1.0).contains("layer_norm_eps"));
        assert!(refused(|c| c.rope_theta = 0.0).contains("rope_theta"));
        assert!(refused(|c| c.pos_embed_rescale = Some(0.5)).contains("pos_embed_rescale"));
        assert!(refused(|c| c.initializer_range = f64::NAN).contains("initializer_range"));
        assert!(refused(|c| c.model_type = "vit".into()).contains("vit_nepa"));
        assert!(
            refused(|c| c.architectures = vec!["ViTNepaForImageClassification".into()])
                .contains("architectures")
        );
        let dropout = ("hidden_dropout_prob".to_owned(), serde_json::json!(0.1));
        assert!(refused(|c| c.other = BTreeMap::from([dropout])).contains("hidden_dropout_prob"));
    }

    #[test]
    fn absent_keys_are_those_of_the_published_class() {
        let needed = r#"{"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 64"#;
        let read = |more: &str| -> NepaConfig {
            serde_json::from_str(&format!("{needed}{more}}}")).expect("parses")
        };
        let config = read("");
        assert_eq!((config.qk_norm, config.patch_size), (false, 16));
        assert_eq!(config.pos_embed_rescale, Some(2.0));
        assert_eq!(config.layerscale_value, Some(1e-5));
        let config = read(r#", "pos_embed_rescale": null, "layerscale_value": null"#);
        assert_eq!(
            (config.pos_embed_rescale, config.layerscale_value),
            (None, None)
        );
        let names = ParamSpec::all(&config).into_iter().map(|spec| spec.name);
        assert!(names.into_iter().all(|name| !name.contains("lambda1")));
        let written = serde_json::to_string(&config).expect("serialises");
        assert!(written.contains(r#""layerscale_value":null"#), "{written}");
        let again: NepaConfig = serde_json::from_str(&written).expect("parses");
        assert_eq!(again, config);
    }

    #[test]
    fn unknown_keys_survive_a_round_trip() {
        let mut value = serde_json::to_value(NepaConfig::tiny()).expect("serialises");
        value["transformers_version"] = "4.56.1".into();
        value["dtype"] = "float32".into();
        let config: NepaConfig = serde_json::from_value(value.clone()).expect("parses");
        assert_eq!(config.other.len(), 2);
        assert_eq!(serde_json::to_value(&config).expect("serialises"), value);
        value["hidden_act"] = "tanhshrink".into();
        let error = serde_json::from_value::<NepaConfig>(value)
            .expect_err("no such activation")
            .to_string();
        assert!(
            error.contains("tanhshrink") && error.contains("gelu"),
            "{error}"
        );
    }
}
