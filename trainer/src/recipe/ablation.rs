//! `[ablation]` of a recipe: what of pretraining is taken away, to see what it is for. What each
//! switch does, [`Ablation`] says.
use nepa_model::Ablation;

/// Keys of a saved model that `[ablation]` sets; a recipe's `[model]` does not have them.
pub(super) const OF_MODEL: [&str; 2] = ["use_rope", "use_mask_token"];

/// For serde: nothing is taken away.
pub(super) fn is_none(ablation: &Ablation) -> bool {
    *ablation == Ablation::default()
}
