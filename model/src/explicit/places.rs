//! Where each weight lies in the flat buffer.
use std::ops::Range;

use crate::{NepaConfig, ParamSpec};

/// A linear layer's.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub(super) weight: Range<usize>,
    pub(super) bias: Option<Range<usize>>,
}

/// A LayerNorm's.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    pub(super) weight: Option<Range<usize>>,
    pub(super) bias: Option<Range<usize>>,
}

/// One block's.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) norm_before: Norm,
    /// Query, key, value.
    pub(super) projections: [Linear; 3],
    /// Of queries and of keys.
    pub(super) head_norms: [Norm; 2],
    pub(super) attention_output: Linear,
    pub(super) attention_scale: Range<usize>,
    pub(super) norm_after: Norm,
    pub(super) up: Linear,
    pub(super) gate: Option<Linear>,
    pub(super) down: Linear,
    pub(super) mlp_scale: Range<usize>,
}

/// A whole model's.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) class_token: Range<usize>,
    pub(super) projection: Linear,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    /// Number of weights.
    pub(super) len: usize,
}

impl Places {
    pub(super) fn new(config: &NepaConfig) -> Self {
        let specs = ParamSpec::all(config);
        let optional = |name: String| {
            let index = specs.binary_search_by(|spec| spec.name.cmp(&name)).ok()?;
            Some(specs[index].range())
        };
        let place =
            |name: String| optional(name.clone()).unwrap_or_else(|| panic!("no weight {name}"));
        let linear = |name: String| Linear {
            weight: place(format!("{name}.weight")),
            bias: optional(format!("{name}.bias")),
        };
        let norm = |name: String| Norm {
            weight: optional(format!("{name}.weight")),
            bias: optional(format!("{name}.bias")),
        };
        let blocks = (0..config.num_hidden_layers).map(|n| {
            let layer = format!("vit_nepa.encoder.layer.{n}");
            let attention = |part: &str| format!("{layer}.attention.attention.{part}");
            Block {
                norm_before: norm(format!("{layer}.layernorm_before")),
                projections: ["query", "key", "value"].map(|part| linear(attention(part))),
                head_norms: ["q_norm", "k_norm"].map(|part| norm(attention(part))),
                attention_output: linear(format!("{layer}.attention.output.dense")),
                attention_scale: place(format!("{layer}.layer_scale.lambda1")),
                norm_after: norm(format!("{layer}.layernorm_after")),
                up: linear(format!("{layer}.intermediate.up_proj")),
                gate: config
                    .use_gated_mlp
                    .then(|| linear(format!("{layer}.intermediate.gate_proj"))),
                down: linear(format!("{layer}.output.dense")),
                mlp_scale: place(format!("{layer}.output.layer_scale.lambda1")),
            }
        });
        Self {
            class_token: place("vit_nepa.embeddings.cls_token".into()),
            projection: linear("vit_nepa.embeddings.patch_embeddings.projection".into()),
            blocks: blocks.collect(),
            norm: norm("vit_nepa.layernorm".into()),
            len: specs.last().map_or(0, |spec| spec.range().end),
        }
    }
}
