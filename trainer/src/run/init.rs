//! Pretraining that begins with weights that are there already, not with new ones.
use nepa_model::{NepaConfig, Weights};
use nepa_pipeline::{IoRuntime, storable_url};

use super::options::{Init, Options};
use crate::error::RunError;
use crate::recipe::{FromWeights, InitWeights, ResolvedRecipe};
use crate::weights::{self, Which};

impl Init {
    /// As the run's recipe has it, without secrets.
    pub(super) fn saved(&self) -> InitWeights {
        InitWeights {
            from: storable_url(&self.url),
            weights: match self.which {
                Which::Raw => FromWeights::Raw,
                Which::Ema => FromWeights::Ema,
            },
        }
    }
}

/// A run that goes on without being told how it began began as it is saved.
pub(super) fn adopt(options: &Options, saved: &ResolvedRecipe, recipe: &mut ResolvedRecipe) {
    if options.init.is_none() {
        recipe.init.clone_from(&saved.init);
    }
}

/// The weights that a run begins with, and what is said of them. They must be of the recipe's very
/// architecture. `url` is the place with its secrets, where it is known.
pub(super) fn read(
    init: &InitWeights,
    url: Option<&str>,
    recipe: &ResolvedRecipe,
    runtime: &IoRuntime,
) -> Result<(Weights, String), RunError> {
    let folder = weights::open(url.unwrap_or(&init.from), &recipe.io, runtime)?;
    let place = folder.place().to_owned();
    if folder.config().is_classifier() {
        return Err(RunError::InitClassifier { place });
    }
    if let Some((key, theirs, ours)) = difference(folder.config(), &recipe.model) {
        return Err(RunError::InitArchitecture {
            place,
            key,
            theirs,
            ours,
        });
    }
    let which = Which::from(init.weights);
    let said = format!("{} in {place}", folder.describe(which));
    Ok((folder.weights(which)?, said))
}

/// The first key in which two architectures differ, with both values. What decides only how new
/// weights are drawn or how a model is trained may differ.
fn difference(theirs: &NepaConfig, ours: &NepaConfig) -> Option<(String, String, String)> {
    let compared = |config: &NepaConfig| {
        let config = NepaConfig {
            initializer_range: 0.0,
            // Its initial value; whether there is one is the architecture's.
            layerscale_value: config.layerscale_value.map(|_| 1.0),
            pos_embed_rescale: None,
            pos_embed_shift: None,
            pos_embed_jitter: None,
            drop_path_prob: 0.0,
            add_pooling_layer: true,
            other: std::collections::BTreeMap::new(),
            ..config.clone()
        };
        serde_json::to_value(config).expect("a configuration is plain data")
    };
    let (theirs, ours) = (compared(theirs), compared(ours));
    let keys = theirs.as_object().into_iter().flat_map(|keys| keys.keys());
    let keys = keys.chain(ours.as_object().into_iter().flat_map(|keys| keys.keys()));
    let differs = |key: &&String| theirs.get(key.as_str()) != ours.get(key.as_str());
    keys.clone().find(differs).map(|key| {
        let value =
            |of: &serde_json::Value| of.get(key).map_or("unset".to_owned(), ToString::to_string);
        (key.clone(), value(&theirs), value(&ours))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_the_function_must_be_the_same_and_nothing_else() {
        let ours = NepaConfig::tiny();
        let other = NepaConfig {
            initializer_range: 0.5,
            layerscale_value: Some(0.1),
            pos_embed_rescale: None,
            pos_embed_shift: Some(0.1),
            add_pooling_layer: true,
            ..NepaConfig::tiny()
        };
        assert_eq!(difference(&other, &ours), None);
        let differing = |change: fn(&mut NepaConfig)| {
            let mut theirs = NepaConfig::tiny();
            change(&mut theirs);
            difference(&theirs, &ours).expect("another architecture").0
        };
        assert_eq!(differing(|c| c.qk_norm_affine = true), "qk_norm_affine");
        assert_eq!(differing(|c| c.layerscale_value = None), "layerscale_value");
        assert_eq!(differing(|c| c.is_causal = false), "is_causal");
        assert_eq!(differing(|c| c.rope_theta = 10.0), "rope_theta");
        assert_eq!(
            difference(&NepaConfig::base_14(), &ours),
            Some(("hidden_size".into(), "768".into(), "48".into()))
        );
    }
}
