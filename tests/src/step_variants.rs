//! What every comparison of a training step with the f32 engine shares, on an emulated device and on a GPU: variants of a model, and how far gradients are
//! apart.
use nepa_model::{HiddenAct, NepaConfig};

/// Two heads of 64, 16 patches, two blocks; LayerScale such that the blocks matter.
pub fn small() -> NepaConfig {
    NepaConfig {
        hidden_size: 128,
        num_attention_heads: 2,
        num_hidden_layers: 2,
        intermediate_size: 192,
        layerscale_value: Some(0.5),
        ..NepaConfig::tiny()
    }
}

/// A model as it is, with every other part of the architecture, and without the causal mask.
pub fn variants_of(model: &NepaConfig) -> [(&'static str, NepaConfig); 3] {
    [
        ("gelu", model.clone()),
        (
            "gated, norms of heads with parameters",
            NepaConfig {
                use_gated_mlp: true,
                hidden_act: HiddenAct::Silu,
                qk_norm_affine: true,
                qk_norm_bias: true,
                ..model.clone()
            },
        ),
        (
            "bidirectional",
            NepaConfig {
                is_causal: false,
                ..model.clone()
            },
        ),
    ]
}

/// The Euclidean norm.
pub fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// The norm of the difference over the norm.
pub fn off(found: &[f32], expected: &[f32]) -> f64 {
    norm(found.iter().zip(expected).map(|(a, b)| a - b)) / norm(expected.iter().copied())
}
