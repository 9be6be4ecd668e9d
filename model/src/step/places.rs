//! Where each weight lies in a device's flat arenas: weights, their bf16 copies, gradients,
//! moments and average share one order, so that the optimiser sees one buffer.
//!
//! It is not the order of [`crate::Weights`]: query, key and value follow each other, so that one
//! matmul makes all three; every weight starts at a multiple of [`ALIGNMENT`] values; and the
//! patch embedding's rows are filled up to a multiple of 8, as a matmul in bf16 wants. What lies
//! between is zero and stays zero: its gradient is zero, and decay keeps it.
use std::ops::Range;

use crate::{NepaConfig, ParamSpec};

/// Values to whose multiples weights are aligned: 128 bytes in bf16.
const ALIGNMENT: usize = 64;

/// One weight's place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// In the order of [`crate::Weights`].
    source: Range<usize>,
    offset: usize,
    /// Values of a row there, and from one row to the next here.
    row: usize,
    stride: usize,
}

/// Where a block's weights start; an absent one is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockPlaces {
    pub(super) norm_before: [usize; 2],
    /// Weights of query, key and value, one below the other, and their biases.
    pub(super) qkv: usize,
    pub(super) qkv_bias: Option<usize>,
    /// Weight and bias of the query's norm, then of the key's.
    pub(super) head_norms: [Option<usize>; 4],
    pub(super) attention_output: [usize; 2],
    /// LayerScale, if the model has it.
    pub(super) attention_scale: Option<usize>,
    pub(super) norm_after: [usize; 2],
    /// Up, then gate if there is one, one below the other.
    pub(super) up: [usize; 2],
    pub(super) down: [usize; 2],
    pub(super) mlp_scale: Option<usize>,
}

/// Where the head of a classifier is: `all` in the arenas, behind all else, and each weight in that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeadPlaces {
    pub(crate) all: Range<usize>,
    /// Weight and bias of the norm of what is pooled, `[D]` each, if the model has it.
    pub(crate) norm: Option<[Range<usize>; 2]>,
    /// `[K, D]`.
    pub(crate) weight: Range<usize>,
    /// `[K]`.
    pub(crate) bias: Range<usize>,
}

/// The order of the arenas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    places: Vec<Place>,
    names: Vec<String>,
    pub(super) class_token: usize,
    pub(super) projection: [usize; 2],
    pub(super) blocks: Vec<BlockPlaces>,
    pub(super) norm: [usize; 2],
    /// Of a classifier.
    pub(super) head: Option<HeadPlaces>,
    /// Values of a row of patches, and of the patch embedding.
    pub(super) patch_columns: usize,
    len: usize,
}

impl HeadPlaces {
    /// Of the offsets of the norm's weight and bias and the linear layer's.
    fn new(offsets: [Option<usize>; 4], places: &[Place]) -> Option<Self> {
        let start = offsets.into_iter().flatten().next()?;
        let range = |offset: usize| {
            let place = places.iter().find(|place| place.offset == offset)?;
            let first = offset - start;
            Some(first..first + place.source.len())
        };
        let [norm_weight, norm_bias, weight, bias] = offsets.map(|offset| range(offset?));
        let bias = bias?;
        Some(Self {
            all: start..start + bias.end,
            norm: norm_weight
                .zip(norm_bias)
                .map(|(weight, bias)| [weight, bias]),
            weight: weight?,
            bias,
        })
    }
}

impl Layout {
    /// The layout of a model's weights.
    pub fn new(config: &NepaConfig) -> Self {
        let mut specs = ParamSpec::all(config)
            .into_iter()
            .map(|spec| (spec.name.clone(), spec))
            .collect::<std::collections::BTreeMap<_, _>>();
        let mut places = Vec::new();
        let mut names = Vec::new();
        let mut len = 0;
        // Puts a weight behind the last one; `joined` to it without a gap.
        let mut put = |name: String, joined: bool| -> Option<usize> {
            let spec = specs.remove(&name)?;
            if !joined {
                len = usize::next_multiple_of(len, ALIGNMENT);
            }
            let offset = len;
            let (row, stride) = if name.ends_with("projection.weight") {
                let row = spec.len() / spec.shape[0];
                (row, row.next_multiple_of(8))
            } else {
                (spec.len(), spec.len())
            };
            len += spec.len() / row * stride;
            places.push(Place {
                source: spec.range(),
                offset,
                row,
                stride,
            });
            names.push(name);
            Some(offset)
        };
        let embeddings = "vit_nepa.embeddings";
        let projection = format!("{embeddings}.patch_embeddings.projection");
        let class_token = put(format!("{embeddings}.cls_token"), false);
        let mut both =
            |name: &str| ["weight", "bias"].map(|part| put(format!("{name}.{part}"), false));
        let projection = both(&projection);
        let norm = both("vit_nepa.layernorm");
        let blocks = (0..config.num_hidden_layers).map(|n| {
            let layer = format!("vit_nepa.encoder.layer.{n}");
            let attention = format!("{layer}.attention.attention");
            let mut stacked = |folder: &str, names: &[&str], part: &str| {
                let offsets = names
                    .iter()
                    .enumerate()
                    .map(|(number, name)| put(format!("{folder}.{name}.{part}"), number > 0));
                offsets.collect::<Vec<_>>().swap_remove(0)
            };
            let parts = ["query", "key", "value"];
            let (qkv, qkv_bias) = (
                stacked(&attention, &parts, "weight"),
                stacked(&attention, &parts, "bias"),
            );
            let ups: &[&str] = if config.use_gated_mlp {
                &["up_proj", "gate_proj"]
            } else {
                &["up_proj"]
            };
            let mlp = format!("{layer}.intermediate");
            let up = ["weight", "bias"].map(|part| stacked(&mlp, ups, part));
            let mut one = |name: &str| put(format!("{layer}.{name}"), false);
            let there = |offset: Option<usize>| offset.expect("every model has it");
            let mut pair =
                |name: &str| ["weight", "bias"].map(|part| there(one(&format!("{name}.{part}"))));
            BlockPlaces {
                norm_before: pair("layernorm_before"),
                attention_output: pair("attention.output.dense"),
                norm_after: pair("layernorm_after"),
                down: pair("output.dense"),
                qkv: there(qkv),
                qkv_bias,
                up: up.map(there),
                head_norms: [
                    "q_norm.weight",
                    "q_norm.bias",
                    "k_norm.weight",
                    "k_norm.bias",
                ]
                .map(|name| one(&format!("attention.attention.{name}"))),
                attention_scale: one("layer_scale.lambda1"),
                mlp_scale: one("output.layer_scale.lambda1"),
            }
        });
        let blocks = blocks.collect();
        let head = [
            "fc_norm.weight",
            "fc_norm.bias",
            "classifier.weight",
            "classifier.bias",
        ]
        .map(|name| put(name.to_owned(), false));
        // Of an ablation, which no step computes.
        put(format!("{embeddings}.mask_token"), false);
        let there = |offset: Option<usize>| offset.expect("every model has it");
        let patch_columns = places[1].stride;
        let layout = Self {
            class_token: there(class_token),
            projection: projection.map(there),
            norm: norm.map(there),
            blocks,
            head: HeadPlaces::new(head, &places),
            patch_columns,
            len: len.next_multiple_of(ALIGNMENT),
            places,
            names,
        };
        assert!(specs.is_empty(), "weights without a place: {specs:?}");
        layout
    }

    /// Values of an arena.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no weight.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Values of all weights.
    pub fn num_values(&self) -> usize {
        self.places.iter().map(|place| place.source.len()).sum()
    }

    /// Number of weights with a name.
    pub fn num_weights(&self) -> usize {
        self.places.len()
    }

    /// Flat values in the order of [`crate::Weights`] as an arena.
    pub fn to_arena<T: Copy + Default>(&self, flat: &[T]) -> Vec<T> {
        let mut arena = vec![T::default(); self.len];
        for place in &self.places {
            let rows = flat[place.source.clone()].chunks_exact(place.row);
            let places = arena[place.offset..].chunks_mut(place.stride);
            for (row, to) in rows.zip(places) {
                to[..place.row].copy_from_slice(row);
            }
        }
        arena
    }

    /// The opposite.
    pub fn from_arena<T: Copy + Default>(&self, arena: &[T]) -> Vec<T> {
        let mut flat = vec![T::default(); self.num_values()];
        for place in &self.places {
            let rows = flat[place.source.clone()].chunks_exact_mut(place.row);
            for (row, from) in rows.zip(arena[place.offset..].chunks(place.stride)) {
                row.copy_from_slice(&from[..place.row]);
            }
        }
        flat
    }

    /// How deep a gradient must go for all weights that are trained: 0 to the embeddings, n + 1 to
    /// block n, and no further than the final norm where all below is frozen.
    pub(super) fn depth(&self, is_trained: impl Fn(&str) -> bool) -> usize {
        let depth = |name: &String| {
            if name.contains(".embeddings.") {
                return 0;
            }
            let block = name.split_once(".layer.").and_then(|(_, rest)| {
                let number = rest.split('.').next()?;
                number.parse::<usize>().ok()
            });
            block.map_or(self.blocks.len() + 1, |block| block + 1)
        };
        let trained = self.names.iter().filter(|name| is_trained(name));
        trained.map(depth).min().unwrap_or(self.blocks.len() + 1)
    }

    /// Consecutive parts of an arena whose weights `of` puts into the same class, with it: start,
    /// end, class. What lies between two weights belongs to the first.
    pub fn runs<C: PartialEq>(&self, of: impl Fn(&str) -> C) -> Vec<(Range<usize>, C)> {
        let mut runs: Vec<(Range<usize>, C)> = Vec::new();
        for (place, name) in self.places.iter().zip(&self.names) {
            let class = of(name);
            match runs.last_mut() {
                Some((_, last)) if *last == class => {}
                Some((range, _)) => {
                    range.end = place.offset;
                    runs.push((place.offset..self.len, class));
                }
                None => runs.push((0..self.len, class)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configs() -> [NepaConfig; 3] {
        [
            NepaConfig::base_14(),
            NepaConfig {
                use_gated_mlp: true,
                qk_norm_affine: true,
                qk_norm_bias: true,
                ..NepaConfig::tiny()
            },
            NepaConfig {
                qkv_bias: false,
                qk_norm: false,
                ..NepaConfig::tiny()
            },
        ]
    }

    #[test]
    fn every_value_has_a_place_of_its_own() {
        for config in configs() {
            let layout = Layout::new(&config);
            let num_weights = ParamSpec::all(&config).iter().map(ParamSpec::len).sum();
            let flat: Vec<f32> = (0..num_weights)
                .map(|i| (1 + i % 8_000_000) as f32)
                .collect();
            let arena = layout.to_arena(&flat);
            assert_eq!(layout.from_arena(&arena), flat);
            assert_eq!(arena.iter().filter(|v| **v != 0.0).count(), num_weights);
        }
        assert_eq!(Layout::new(&NepaConfig::base_14()).patch_columns, 592);
    }

    #[test]
    fn queries_keys_and_values_are_one_matrix() {
        let config = NepaConfig::tiny();
        let layout = Layout::new(&config);
        let specs = ParamSpec::all(&config);
        let flat: Vec<f32> = (0..specs.last().map_or(0, |spec| spec.range().end))
            .map(|i| i as f32)
            .collect();
        let arena = layout.to_arena(&flat);
        let d = config.hidden_size;
        for (n, block) in layout.blocks.iter().enumerate() {
            for (number, part) in ["query", "key", "value"].into_iter().enumerate() {
                let name = format!("vit_nepa.encoder.layer.{n}.attention.attention.{part}");
                for (offset, size, kind) in [
                    (block.qkv, d * d, "weight"),
                    (block.qkv_bias.expect("a bias"), d, "bias"),
                ] {
                    let name = format!("{name}.{kind}");
                    let spec = specs.iter().find(|spec| spec.name == name);
                    let range = spec.expect("a weight").range();
                    assert_eq!(arena[offset + number * size..][..size], flat[range]);
                }
            }
        }
    }

    #[test]
    fn a_gradient_goes_no_deeper_than_what_is_trained() {
        let layout = Layout::new(&NepaConfig::tiny());
        let blocks = layout.blocks.len();
        assert_eq!(layout.depth(|_| true), 0);
        assert_eq!(layout.depth(|name| name.ends_with("cls_token")), 0);
        assert_eq!(layout.depth(|name| !name.contains(".embeddings.")), 1);
        assert_eq!(layout.depth(|name| name.contains(".layer.1.output")), 2);
        assert_eq!(
            layout.depth(|name| name == "vit_nepa.layernorm.bias"),
            blocks + 1
        );
        assert_eq!(layout.depth(|_| false), blocks + 1);
    }

    #[test]
    fn runs_cover_the_arena() {
        let layout = Layout::new(&NepaConfig::tiny());
        let runs = layout.runs(|name| name.contains("bias"));
        assert!(runs.len() > 10);
        assert_eq!(
            (runs[0].0.start, runs[runs.len() - 1].0.end),
            (0, layout.len())
        );
        for pair in runs.windows(2) {
            assert!(pair[0].0.end == pair[1].0.start && pair[0].1 != pair[1].1);
        }
    }
}
