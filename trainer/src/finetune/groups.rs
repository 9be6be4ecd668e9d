//! Which weights of a classifier share a rate, decay and are trained at all, by their names (the
//! published trainer's `run_image_classification.py:155-245`).
use std::fmt;

use nepa_model::step::adamw::WeightGroup;
use nepa_model::{NepaConfig, ParamSpec};
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::schedule::LayerRates;
use crate::optimizer::OptimizerConfig;

/// What is not trained: no gradient, no share in the gradient's norm, no update. It is in the
/// moving average.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Freeze {
    /// All is trained.
    Nothing,
    /// The patch embedding, as published; the class token is trained.
    #[default]
    PatchEmbedding,
    /// The embeddings, class token included, and so many blocks, the lowest first.
    Blocks(usize),
    /// All but the classifier and the norm before it: a linear probe.
    Backbone,
}

/// The names of [`Freeze`] in a recipe; blocks are a number.
const NAMES: [(&str, Freeze); 3] = [
    ("nothing", Freeze::Nothing),
    ("patch_embedding", Freeze::PatchEmbedding),
    ("backbone", Freeze::Backbone),
];

impl Freeze {
    fn holds(self, part: Part) -> bool {
        match (self, part) {
            (_, Part::FcNorm | Part::Classifier) | (Self::Nothing, _) => false,
            (Self::Backbone, _)
            | (_, Part::PatchEmbedding)
            | (Self::Blocks(_), Part::ClassToken) => true,
            (Self::Blocks(blocks), Part::Block(block)) => block < blocks,
            (Self::PatchEmbedding | Self::Blocks(_), _) => false,
        }
    }
}

/// For people, after "frozen:".
impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::PatchEmbedding => f.write_str("the patch embedding"),
            Self::Blocks(1) => f.write_str("the embeddings and the first block"),
            Self::Blocks(blocks) => write!(f, "the embeddings and the first {blocks} blocks"),
            Self::Backbone => f.write_str("the whole backbone"),
        }
    }
}

impl Serialize for Freeze {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Blocks(blocks) => serializer.serialize_u64(*blocks as u64),
            named => {
                let found = NAMES.iter().find(|(_, freeze)| freeze == named);
                serializer.serialize_str(found.map_or("", |(name, _)| name))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Freeze {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNumber;
        impl Visitor<'_> for NameOrNumber {
            type Value = Freeze;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "\"nothing\", \"patch_embedding\", \"backbone\" or a number of blocks from 1",
                )
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Freeze, E> {
                let found = NAMES.iter().find(|(known, _)| *known == name);
                let names = &["nothing", "patch_embedding", "backbone"];
                found.map_or_else(|| Err(E::unknown_variant(name, names)), |(_, one)| Ok(*one))
            }

            fn visit_u64<E: serde::de::Error>(self, blocks: u64) -> Result<Freeze, E> {
                let wrong = || E::invalid_value(Unexpected::Unsigned(blocks), &self);
                let number = usize::try_from(blocks).ok().filter(|blocks| *blocks > 0);
                number.map(Freeze::Blocks).ok_or_else(wrong)
            }

            fn visit_i64<E: serde::de::Error>(self, blocks: i64) -> Result<Freeze, E> {
                let number = u64::try_from(blocks);
                self.visit_u64(
                    number
                        .map_err(|_| E::invalid_value(Unexpected::Signed(blocks), &NameOrNumber))?,
                )
            }
        }
        deserializer.deserialize_any(NameOrNumber)
    }
}

/// The part of the model that a weight belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    PatchEmbedding,
    ClassToken,
    Block(usize),
    FinalNorm,
    FcNorm,
    Classifier,
}

impl Part {
    fn of(name: &str) -> Self {
        if let Some(rest) = name.strip_prefix("vit_nepa.encoder.layer.") {
            let number = rest
                .split('.')
                .next()
                .and_then(|number| number.parse().ok());
            return Self::Block(number.expect("a block's weight has its number"));
        }
        let parts = [
            (
                "vit_nepa.embeddings.patch_embeddings.",
                Self::PatchEmbedding,
            ),
            ("vit_nepa.embeddings.", Self::ClassToken),
            ("vit_nepa.layernorm.", Self::FinalNorm),
            ("fc_norm.", Self::FcNorm),
        ];
        let found = parts.iter().find(|(prefix, _)| name.starts_with(prefix));
        found.map_or(Self::Classifier, |(_, part)| *part)
    }
}

/// Groups of one fine-tuning run. The rates of a step are those of the exponents 0 to L, of L
/// blocks, then the head's.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerGroups {
    num_blocks: usize,
    weight_decay: f64,
    freeze: Freeze,
    /// Names of one-dimensional weights, which do not decay.
    vectors: Vec<String>,
}

impl LayerGroups {
    /// The groups of a classifier.
    pub fn new(config: &NepaConfig, optimizer: &OptimizerConfig, freeze: Freeze) -> Self {
        let specs = ParamSpec::all(config);
        let vectors = specs.into_iter().filter(|spec| spec.shape.len() == 1);
        Self {
            num_blocks: config.num_hidden_layers,
            weight_decay: optimizer.weight_decay,
            freeze,
            vectors: vectors.map(|spec| spec.name).collect(),
        }
    }

    /// The group of the weight of that name.
    pub fn group(&self, name: &str) -> WeightGroup {
        let part = Part::of(name);
        let is_vector = self.vectors.iter().any(|vector| vector == name);
        WeightGroup {
            weight_decay: if is_vector { 0.0 } else { self.weight_decay },
            rate: match part {
                Part::PatchEmbedding | Part::ClassToken => self.num_blocks,
                Part::Block(block) => self.num_blocks - 1 - block,
                // The published trainer takes it for a part of the backbone's end, at the base rate.
                Part::FcNorm => 0,
                Part::FinalNorm | Part::Classifier => self.num_blocks + 1,
            },
            frozen: self.freeze.holds(part),
        }
    }
}

/// The rates of one step, by [`WeightGroup::rate`]: `base_lr` is the peak of the backbone's last
/// block, `head_lr` that of the head and the final norm.
pub fn rates(
    factors: &LayerRates,
    num_blocks: usize,
    (base_lr, head_lr): (f64, f64),
    step: u64,
) -> Vec<f64> {
    let of_backbone = (0..=num_blocks).map(|exponent| base_lr * factors.factor(step, exponent));
    of_backbone
        .chain([head_lr * factors.factor(step, 0)])
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::finetune::LayerSchedule;

    /// `info.json` of the classifiers of `NEPA_GOLDEN`: names, rates, decay and exponents that the
    /// published trainer had, and its rates step by step.
    #[test]
    fn groups_and_rates_are_the_published_ones() {
        let Some(root) = std::env::var_os("NEPA_GOLDEN") else {
            eprintln!("SKIPPED: optimiser groups: NEPA_GOLDEN is not set");
            return;
        };
        for (folder, freeze, num_groups) in [
            ("cls_gelu", Freeze::PatchEmbedding, 9),
            ("cls_gated", Freeze::Nothing, 10),
        ] {
            let read = |name: &str| {
                std::fs::read(Path::new(&root).join(folder).join(name)).expect("a golden file")
            };
            let config: NepaConfig = serde_json::from_slice(&read("config.json")).unwrap();
            let info: serde_json::Value = serde_json::from_slice(&read("info.json")).unwrap();
            let run = &info["trajectory"];
            let number = |key: &str| run[key].as_f64().unwrap();
            let whole = |key: &str| run[key].as_u64().unwrap();
            let optimizer = OptimizerConfig {
                weight_decay: number("weight_decay"),
                ..OptimizerConfig::default()
            };
            let groups = LayerGroups::new(&config, &optimizer, freeze);
            let factors = LayerRates {
                schedule: LayerSchedule::LayerwiseWarmup,
                layer_decay: number("llrd"),
                layer_decay_end: number("llrd"),
                warmup_steps: whole("warmup_steps"),
                total_steps: whole("total_steps"),
            };
            let published = run["groups"].as_array().unwrap();
            assert_eq!(published.len(), num_groups, "{folder}");
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            let mut seen = Vec::new();
            for group in published {
                let exponent = group["llrd_scale"].as_u64().unwrap() as usize;
                let peak = group["lr"].as_f64().unwrap();
                for name in group["names"].as_array().unwrap().iter().map(text) {
                    let found = groups.group(&name);
                    let decay = group["weight_decay"].as_f64().unwrap();
                    assert!(!found.frozen, "{name}");
                    assert!((found.weight_decay - decay).abs() < 1e-15, "{name}");
                    for step in 0..whole("total_steps") {
                        let all = rates(
                            &factors,
                            config.num_hidden_layers,
                            (number("lr"), number("head_lr")),
                            step,
                        );
                        let expected = peak * factors.factor(step, exponent);
                        assert!((all[found.rate] - expected).abs() < 1e-15, "{name}, {step}");
                    }
                    seen.push(name);
                }
            }
            let frozen = info["frozen"].as_array().unwrap().iter().map(text);
            for name in frozen {
                assert!(groups.group(&name).frozen, "{name}");
                seen.push(name);
            }
            seen.sort();
            let all = ParamSpec::all(&config).into_iter().map(|spec| spec.name);
            assert_eq!(seen, all.collect::<Vec<_>>(), "{folder}: every weight once");
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Section {
        freeze: Freeze,
    }

    #[test]
    fn parts_are_frozen_by_name_or_number() {
        let frozen = |freeze: Freeze| {
            let groups = LayerGroups::new(&NepaConfig::tiny(), &OptimizerConfig::default(), freeze);
            let names = [
                "vit_nepa.embeddings.patch_embeddings.projection.weight",
                "vit_nepa.embeddings.cls_token",
                "vit_nepa.encoder.layer.0.output.dense.weight",
                "vit_nepa.encoder.layer.1.output.dense.weight",
                "vit_nepa.layernorm.weight",
                "fc_norm.weight",
                "classifier.bias",
            ];
            names.map(|name| u8::from(groups.group(name).frozen))
        };
        assert_eq!(frozen(Freeze::Nothing), [0; 7]);
        assert_eq!(frozen(Freeze::PatchEmbedding), [1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(frozen(Freeze::Blocks(1)), [1, 1, 1, 0, 0, 0, 0]);
        assert_eq!(frozen(Freeze::Backbone), [1, 1, 1, 1, 1, 0, 0]);
        for (text, freeze) in [
            ("freeze = \"nothing\"\n", Freeze::Nothing),
            ("freeze = \"patch_embedding\"\n", Freeze::PatchEmbedding),
            ("freeze = \"backbone\"\n", Freeze::Backbone),
            ("freeze = 3\n", Freeze::Blocks(3)),
        ] {
            let section: Section = toml::from_str(text).unwrap();
            assert_eq!(section, Section { freeze });
            assert_eq!(toml::to_string(&section).unwrap(), text);
        }
        for wrong in [
            "freeze = 0",
            "freeze = -1",
            "freeze = \"all\"",
            "freeze = 1.5",
        ] {
            assert!(toml::from_str::<Section>(wrong).is_err(), "{wrong}");
        }
    }
}
