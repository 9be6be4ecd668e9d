//! The published `config.json`. Every key that is known takes effect or is refused; keys that are
//! not known (Hugging Face writes many: `dtype`, `transformers_version`, ...) are kept as they are
//! and written back.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

mod classes;
mod validate;

pub use classes::Classes;
pub(crate) use classes::number_given_twice;

/// The architecture of pretraining.
pub(crate) const PRETRAINING: &str = "ViTNepaForPreTraining";
/// The architecture of fine-tuning.
pub(crate) const CLASSIFIER: &str = "ViTNepaForImageClassification";
/// The `model_type` of both.
pub(crate) const MODEL_TYPE: &str = "vit_nepa";

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
    /// `ViTNepaForPreTraining` or `ViTNepaForImageClassification`.
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
    /// Greatest rate at which branches are dropped while training, in `[0, 1)`: it rises from 0 in
    /// the first block to this in the last.
    #[serde(default)]
    pub drop_path_prob: f64,
    /// Whether a classifier takes the mean of the patches and norms it (`fc_norm`), instead of the
    /// last token. Without effect in pretraining.
    #[serde(default)]
    pub add_pooling_layer: bool,
    /// Whether tokens have rotary positions; false is an ablation of the paper, which the published
    /// class does not know.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub use_rope: bool,
    /// Whether there is a token that takes the place of masked patches in pretraining, an ablation
    /// of the paper; in the published code an argument of the model, not a key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_mask_token: bool,
    /// Keys that are not known here; kept. Of a classifier `id2label` and `num_labels` are read
    /// ([`Self::num_classes`]), else they have no effect.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

fn default_architectures() -> Vec<String> {
    vec![PRETRAINING.to_owned()]
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
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_true(value: &bool) -> bool {
    *value
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
            drop_path_prob: 0.0,
            add_pooling_layer: true,
            use_rope: true,
            use_mask_token: false,
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
}

#[cfg(test)]
mod tests;
