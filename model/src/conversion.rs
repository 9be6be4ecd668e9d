//! From the weights of pretraining (or of another classifier) to those of a classifier, as the
//! published conversion makes them: the encoder is kept, the head is new.
use std::collections::BTreeSet;
use std::fmt;

use crate::{ModelError, NepaConfig, ParamSpec, Weights, fold_layerscale, init_weights};

/// What a conversion made of the weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversion {
    /// Weights that the source has not, at their initial values.
    pub new: Vec<String>,
    /// Weights of the source that the classifier has not.
    pub left_out: Vec<String>,
    /// Whether LayerScale was multiplied into the linear layers before it.
    pub folded_layerscale: bool,
    /// Whether the source is a classifier of the same classes, whose head was kept.
    pub kept_head: bool,
}

impl fmt::Display for Conversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = if self.kept_head {
            "the head is the source's"
        } else {
            "the head is new"
        };
        f.write_str(head)?;
        let parts = |names: &[String]| {
            let parts: BTreeSet<&str> = names.iter().filter_map(|name| part(name)).collect();
            parts.into_iter().collect::<Vec<_>>().join(", ")
        };
        let (new, left_out) = (parts(&self.new), parts(&self.left_out));
        if !new.is_empty() {
            write!(f, "; new: {new}")?;
        }
        if !left_out.is_empty() {
            write!(f, "; left out: {left_out}")?;
        }
        if self.folded_layerscale {
            f.write_str("; LayerScale is part of the linear layers before it")?;
        }
        Ok(())
    }
}

/// The part of the model that a weight belongs to, if models may differ in it: what a classifier
/// may have anew, or do without.
fn part(name: &str) -> Option<&'static str> {
    const PARTS: [(&str, &str); 9] = [
        ("classifier.", "classifier"),
        ("fc_norm.", "fc_norm"),
        (".mask_token", "mask_token"),
        (".q_norm.", "q_norm"),
        (".k_norm.", "k_norm"),
        // A bias that is new is 0, so the model is the same.
        (".query.bias", "query.bias"),
        (".key.bias", "key.bias"),
        (".value.bias", "value.bias"),
        (".lambda1", "LayerScale"),
    ];
    let found = PARTS.iter().find(|(piece, _)| name.contains(piece))?;
    Some(found.1)
}

/// The weights of a classifier `target` whose encoder is that of `pretrained`: a configuration and
/// its weights, which may be a classifier's themselves. Surplus weights (another head, norms of
/// queries and keys, a mask token) are left out; new ones have their initial values, the head 0,
/// norms 1 and 0. If `target` has no LayerScale, it is folded. Encoders of another shape are an
/// error.
///
/// A source that is a classifier of the same classes and pooling keeps its head.
pub fn classifier_weights(
    pretrained: (&NepaConfig, &Weights),
    target: &NepaConfig,
    seed: u64,
) -> Result<(Weights, Conversion), ModelError> {
    let (source, weights) = pretrained;
    target.validate()?;
    if !target.is_classifier() {
        return Err(ModelError::Config {
            key: "architectures",
            value: format!("{:?}", target.architectures),
            rule: "the target of this conversion is a classifier".to_owned(),
        });
    }
    let folded_layerscale = source.layerscale_value.is_some() && target.layerscale_value.is_none();
    let folded = folded_layerscale.then(|| fold_layerscale(source, weights).1);
    let weights = folded.as_ref().unwrap_or(weights);
    let kept_head = source.is_classifier()
        && source.num_classes() == target.num_classes()
        && source.class_names() == target.class_names()
        && source.add_pooling_layer == target.add_pooling_layer;
    let is_head = |name: &str| matches!(part(name), Some("classifier" | "fc_norm"));

    let mut made = init_weights(target, seed);
    let mut conversion = Conversion {
        folded_layerscale,
        kept_head,
        ..Conversion::default()
    };
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    let of_source = |name: &str| weights.get(name).filter(|_| kept_head || !is_head(name));
    for spec in &made.specs {
        match of_source(&spec.name) {
            Some((own, values)) if own.shape == spec.shape => {
                made.flat[spec.range()].copy_from_slice(values);
            }
            Some((own, _)) => misshapen.push(format!(
                "{} is {:?}, should be {:?}",
                spec.name, own.shape, spec.shape
            )),
            // LayerScale that is new would all but switch its block off.
            None if part(&spec.name).is_some_and(|part| part != "LayerScale") => {
                conversion.new.push(spec.name.clone());
            }
            None => missing.push(spec.name.clone()),
        }
    }
    let mut surplus = Vec::new();
    for ParamSpec { name, .. } in &weights.specs {
        if is_head(name) && !kept_head || made.get(name).is_none() {
            let list = match part(name) {
                Some(_) => &mut conversion.left_out,
                None => &mut surplus,
            };
            list.push(name.clone());
        }
    }
    if missing.is_empty() && misshapen.is_empty() && surplus.is_empty() {
        Ok((made, conversion))
    } else {
        Err(ModelError::Conversion {
            missing,
            surplus,
            misshapen,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Classes;

    /// Weights that differ everywhere from the initial ones.
    fn trained(config: &NepaConfig) -> Weights {
        let mut weights = init_weights(config, 1);
        for (place, value) in weights.flat.iter_mut().enumerate() {
            *value += 0.5 + (place % 7) as f32 * 0.125;
        }
        weights
    }

    fn target() -> NepaConfig {
        NepaConfig {
            is_causal: false,
            drop_path_prob: 0.1,
            qk_norm_affine: true,
            ..NepaConfig::tiny().to_classifier(Classes::Count(5))
        }
    }

    #[test]
    fn the_encoder_is_kept_and_the_head_is_new() {
        let config = NepaConfig::tiny();
        let weights = trained(&config);
        let (made, conversion) =
            classifier_weights((&config, &weights), &target(), 3).expect("converts");
        assert_eq!(made.specs, ParamSpec::all(&target()));
        let mut new = Vec::new();
        for spec in &made.specs {
            let values = &made.flat[spec.range()];
            if let Some((_, own)) = weights.get(&spec.name) {
                assert_eq!(values, own, "{}", spec.name);
                continue;
            }
            new.push(spec.name.clone());
            let is_one = spec.name.ends_with("_norm.weight");
            let expected = vec![if is_one { 1.0 } else { 0.0 }; spec.len()];
            assert_eq!(values, expected, "{}", spec.name);
        }
        assert_eq!(new.len(), 4 + 2 * 3, "head, and norms of queries and keys");
        assert_eq!(conversion.new, new);
        assert!(conversion.left_out.is_empty() && !conversion.kept_head);
        let text = conversion.to_string();
        assert_eq!(
            text,
            "the head is new; new: classifier, fc_norm, k_norm, q_norm"
        );
    }

    #[test]
    fn a_head_of_the_same_classes_is_kept() {
        let named = |names: [&str; 3]| {
            NepaConfig::tiny().to_classifier(Classes::Named(&names.map(str::to_owned)))
        };
        let source = named(["a", "b", "c"]);
        let weights = trained(&source);
        let convert = |target: &NepaConfig| {
            classifier_weights((&source, &weights), target, 3).expect("converts")
        };
        let (made, conversion) = convert(&source);
        assert!(conversion.kept_head && conversion.new.is_empty());
        assert_eq!(made, weights);
        let unpooled = NepaConfig {
            add_pooling_layer: false,
            ..source.clone()
        };
        let more = source.to_classifier(Classes::Count(4));
        for other in [named(["b", "a", "c"]), unpooled, more] {
            let (made, conversion) = convert(&other);
            let (_, head) = made.get("classifier.weight").expect("a head");
            assert!(!conversion.kept_head && head.iter().all(|value| *value == 0.0));
            let all = conversion
                .left_out
                .iter()
                .any(|name| name == "classifier.weight");
            assert!(all, "{conversion:?}");
        }
    }

    #[test]
    fn what_a_classifier_does_not_have_is_left_out() {
        let source = NepaConfig {
            qk_norm_affine: true,
            use_mask_token: true,
            ..NepaConfig::tiny()
        };
        let target = NepaConfig {
            qk_norm_affine: false,
            layerscale_value: None,
            ..target()
        };
        let weights = trained(&source);
        let (made, conversion) =
            classifier_weights((&source, &weights), &target, 3).expect("converts");
        assert!(conversion.folded_layerscale);
        let name = "vit_nepa.encoder.layer.2.output.dense.bias";
        let values = |weights: &Weights, name: &str| weights.get(name).expect("exists").1[9];
        let scale = values(
            &weights,
            "vit_nepa.encoder.layer.2.output.layer_scale.lambda1",
        );
        let expected = values(&weights, name) * scale;
        assert!((values(&made, name) - expected).abs() < 1e-6);
        assert_eq!(
            conversion.to_string(),
            "the head is new; new: classifier, fc_norm; left out: k_norm, mask_token, q_norm; \
             LayerScale is part of the linear layers before it"
        );
    }

    #[test]
    fn an_encoder_of_another_shape_is_refused_by_name() {
        let config = NepaConfig::tiny();
        let weights = trained(&config);
        let unscaled = NepaConfig {
            layerscale_value: None,
            ..config.clone()
        };
        let wide = NepaConfig {
            hidden_size: 96,
            ..target()
        };
        let shallow = NepaConfig {
            num_hidden_layers: 2,
            ..target()
        };
        let gated = NepaConfig {
            use_gated_mlp: true,
            ..target()
        };
        for (source, target, parts) in [
            (
                &config,
                wide,
                [
                    "wrong shape",
                    "cls_token is [1, 1, 48], should be [1, 1, 96]",
                ],
            ),
            (&config, shallow, ["surplus (13)", "layer.2."]),
            (&config, gated, ["missing (6)", "gate_proj"]),
            (&unscaled, target(), ["missing (6)", "lambda1"]),
        ] {
            let weights = if source == &config {
                weights.clone()
            } else {
                trained(source)
            };
            let refused = classifier_weights((source, &weights), &target, 3);
            let message = refused.expect_err("refused").to_string();
            for part in parts {
                assert!(message.contains(part), "{part} in {message}");
            }
        }
        let refused = classifier_weights((&config, &weights), &config, 3).expect_err("no head");
        assert!(refused.to_string().contains("is a classifier"), "{refused}");
    }
}
