//! The rules of `[ablation]`: what it makes of the model, and what is refused.
use nepa_model::Ablation;

use super::ablation::is_none;
use super::{EngineChoice, Recipe, RecipeError};

impl Recipe {
    /// Makes the model what its ablations ask for, so that whoever reads the weights later knows.
    pub(super) fn ablate_model(&mut self) {
        self.model.use_rope = self.ablation.rope;
        self.model.use_mask_token = self.ablation.mask_ratio > 0.0;
    }

    pub(super) fn check_ablation(&self) -> Result<(), RecipeError> {
        let Ablation { mask_ratio, .. } = self.ablation;
        if self.finetune.is_some() && !is_none(&self.ablation) {
            let rule = "these switches are of pretraining, and [finetune] trains a classifier";
            return Err(self.wrong("ablation", "{..}".to_owned(), rule.to_owned()));
        }
        let wrong_ratio =
            |rule: String| Err(self.wrong("ablation.mask_ratio", mask_ratio.to_string(), rule));
        if !(0.0..1.0).contains(&mask_ratio) {
            return wrong_ratio("it must be a share of patches, from 0 to less than 1".to_owned());
        }
        let (masked, patches) = (
            self.ablation.num_masked(&self.model),
            self.model.num_patches(),
        );
        if mask_ratio > 0.0 && (masked == 0 || masked == patches) {
            return wrong_ratio(format!("of {patches} patches that is none, or all"));
        }
        match self.train.engine {
            Some(engine @ (EngineChoice::Cpu | EngineChoice::Cuda))
                if self.ablation.changes_the_loss() =>
            {
                let engine = if engine == EngineChoice::Cpu {
                    "cpu"
                } else {
                    "cuda"
                };
                Err(RecipeError::Value {
                    key: "train.engine".to_owned(),
                    value: format!("\"{engine}\""),
                    rule: "it computes the published loss only; shift, stop_gradient and \
                           mask_ratio of [ablation] need \"autograd\""
                        .to_owned(),
                    place: self.origin.of("train.engine"),
                    tip: Some("--set train.engine=none takes the engine that can".to_owned()),
                })
            }
            _ => Ok(()),
        }
    }
}
