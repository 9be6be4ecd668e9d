//! The setup of a run by its kind: pretraining, or fine-tuning, which sets up its own.
use super::options::{Init, Kind, Options};
use super::phase::Pretraining;
use super::setup::{Setup, open_dataset, open_device, take_data};
use crate::error::RunError;
use crate::finetune::Finetuning;
use crate::ranks::Ranks;
use crate::recipe::{Draft, Recipe};

/// Reads and checks the recipe for these ranks, then opens the device and the data sets.
pub(super) fn set_up(options: &Options, ranks: &Ranks) -> Result<Setup, RunError> {
    let draft = Draft::read(&options.recipe, &options.sets)?;
    match &options.kind {
        Kind::Pretrain => pretraining(draft.pretraining()?, options, ranks),
        Kind::Finetune(from) => Finetuning::set_up(draft, from, options, ranks),
    }
}

fn pretraining(mut recipe: Recipe, options: &Options, ranks: &Ranks) -> Result<Setup, RunError> {
    take_data(&mut recipe, options);
    recipe.check(ranks.size())?;
    let (device, runtime) = open_device(&recipe, ranks)?;
    // Pretraining reads no labels.
    let dataset = open_dataset(&recipe, Some(String::new()), &runtime, ranks)?;
    let mut recipe = recipe.resolve(dataset.num_samples(), dataset.fingerprint())?;
    recipe.init = options.init.as_ref().map(Init::saved);
    Ok(Setup {
        phase: Box::new(Pretraining::new(options, &runtime)),
        recipe,
        dataset,
        device,
        runtime,
    })
}
