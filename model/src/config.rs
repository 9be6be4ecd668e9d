//! The published `config.json`; every key takes effect.
use serde::{Deserialize, Serialize};

/// Activation of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// Exact (erf) GELU.
    Gelu,
    /// SiLU; with `use_gated_mlp` this is SwiGLU.
    Silu,
}

/// Architecture of a NEPA model, in the published layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NepaConfig {
    /// Token width D.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads H.
    pub num_attention_heads: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
    /// Side of the square image in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
}
