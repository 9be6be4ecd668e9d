//! Going on from the newest checkpoint of an output, which must be of the same run: the same data,
//! and everything that decides the run's numbers.
use super::data_list::{DataList, shown};
use super::files::{DATA_LIST, LOGS};
use super::init;
use super::lengthen::lengthen;
use super::options::Options;
use crate::checkpoint::{Checkpoint, RunState};
use crate::device::DeviceChoice;
use crate::error::RunError;
use crate::output::{CheckpointName, Loaded, Output};
use crate::recipe::{CheckpointSection, EngineChoice, LogSection, ResolvedRecipe, SumChoice};

/// The newest checkpoint, and what is to be said of a run that is lengthened.
type GoesOn = (Option<(CheckpointName, Checkpoint)>, Option<String>);

/// The newest whole checkpoint of an output that holds a run, proven to be of the same run as
/// `recipe`; the logs are then as they were. Where the run is lengthened by the recipe, also lines
/// that say so.
pub(super) fn continue_from(
    output: &Output,
    recipe: &mut ResolvedRecipe,
    data_list: &DataList,
    options: &Options,
) -> Result<GoesOn, RunError> {
    if !options.dry_run {
        output.clean_up();
    }
    let newest = output.checkpoints()?.pop();
    let Some(newest) = newest else {
        // Stopped before its first checkpoint: the recipe alone says what it was.
        if let Some(text) = output.read_recipe()? {
            let place = output.place().to_owned();
            let saved: ResolvedRecipe =
                toml::from_str(&text).map_err(|source| RunError::SavedRecipe {
                    place,
                    source: Box::new(source),
                })?;
            init::adopt(options, &saved, recipe);
            same_kind(output.place(), &saved, recipe)?;
            let longer = lengthened(output.place(), &saved, recipe, 0)?;
            same_run(output.place(), &saved, recipe)?;
            return Ok((None, longer));
        }
        return Ok((None, None));
    };
    let Loaded { checkpoint, more } = output.load(&newest)?;
    same_kind(output.place(), &checkpoint.state.recipe, recipe)?;
    // What an earlier program has saved has no list, and a damaged one says nothing.
    let saved_list = more.get(DATA_LIST).map(|text| serde_json::from_slice(text));
    if let Some(Ok(saved)) = saved_list {
        same_data(
            output.place(),
            &checkpoint.state,
            &saved,
            recipe,
            data_list,
            options.accept_data,
        )?;
    }
    let saved = &checkpoint.state.recipe;
    let step = checkpoint.state.step;
    init::adopt(options, saved, recipe);
    let longer = lengthened(output.place(), saved, recipe, step)?;
    same_run(output.place(), saved, recipe)?;
    if !options.dry_run {
        output.restore_logs(&more, &LOGS)?;
    }
    Ok((Some((newest, checkpoint)), longer))
}

/// [`lengthen`]; a run that fine-tunes keeps its length, as the warm-up of each layer follows from
/// it.
fn lengthened(
    place: &str,
    saved: &ResolvedRecipe,
    recipe: &mut ResolvedRecipe,
    step: u64,
) -> Result<Option<String>, RunError> {
    if recipe.finetune.is_some() {
        return Ok(None);
    }
    lengthen(place, &saved.train, &mut recipe.train, step)
}

/// Compares the shards of a checkpoint with those that are there.
fn same_data(
    place: &str,
    state: &RunState,
    saved: &DataList,
    recipe: &ResolvedRecipe,
    current: &DataList,
    accept: bool,
) -> Result<(), RunError> {
    let (place, changes) = (place.to_owned(), saved.changes(current));
    // The fingerprint decides whether it is another data set; the list only says in what.
    if state.recipe.dataset != recipe.dataset && !changes.layout.is_empty() {
        return Err(RunError::OtherData {
            place,
            changes: shown(&changes.layout),
        });
    }
    if changes.content.is_empty() {
        return Ok(());
    }
    let shards = shown(&changes.content);
    if !accept {
        return Err(RunError::ReplacedData {
            place,
            step: state.step,
            shards,
        });
    }
    tracing::warn!("going on with shards that have other content than before: {shards}");
    Ok(())
}

/// A run goes on by the command that began it.
fn same_kind(
    place: &str,
    saved: &ResolvedRecipe,
    current: &ResolvedRecipe,
) -> Result<(), RunError> {
    if saved.finetune.is_some() != current.finetune.is_some() {
        return Err(RunError::OtherKind {
            place: place.to_owned(),
            command: if saved.finetune.is_some() {
                "nepa finetune"
            } else {
                "nepa pretrain"
            },
        });
    }
    Ok(())
}

/// Compares all that decides a run's numbers; what only decides its speed or its logs may differ.
fn same_run(place: &str, saved: &ResolvedRecipe, current: &ResolvedRecipe) -> Result<(), RunError> {
    let schedule = |recipe: &ResolvedRecipe| recipe.finetune.as_ref().map(|it| it.schedule);
    let is_other_schedule = schedule(saved) != schedule(current);
    let numbers_only = |recipe| numbers(recipe, is_other_schedule);
    match first_difference("", &numbers_only(saved), &numbers_only(current)) {
        None => Ok(()),
        Some((key, saved, current)) => Err(RunError::OtherRun {
            place: place.to_owned(),
            key,
            saved,
            current,
        }),
    }
}

/// All of a recipe that decides a run's numbers, but its length.
pub(super) fn numbers(recipe: &ResolvedRecipe, is_other_schedule: bool) -> serde_json::Value {
    let mut recipe = recipe.clone();
    // It follows from the schedule, which an error should name.
    if let Some(finetune) = recipe.finetune.as_mut().filter(|_| is_other_schedule) {
        finetune.layer_decay_end = 0.0;
    }
    recipe.name = String::new();
    // A run may move between the processor and a GPU, between engines, and between ways to add.
    recipe.device = DeviceChoice::default();
    recipe.train.engine = EngineChoice::default();
    recipe.train.sum = SumChoice::default();
    recipe.train.wire = None;
    recipe.decode_threads = 0;
    recipe.prefetch_batches = 0;
    (recipe.jpeg, recipe.jpeg_largest) = (None, None);
    recipe.checkpoint = CheckpointSection::default();
    recipe.log = LogSection::default();
    recipe.io = nepa_pipeline::IoConfig::default();
    match &mut recipe.finetune {
        // A run of pretraining may be lengthened.
        None => (recipe.train.steps, recipe.train.lengthened) = (0, Vec::new()),
        Some(finetune) => {
            // Where the same images lie may change.
            if let Some(eval) = &mut finetune.eval {
                (eval.urls, eval.split) = (Vec::new(), None);
            }
        }
    }
    // These follow from others, which an error should name.
    (recipe.train.accumulation, recipe.train.steps_per_epoch) = (0, 0);
    // Where the data lies may change; `dataset` tells whether it is the same.
    recipe.data.urls = Vec::new();
    recipe.data.mixture = Vec::new();
    (recipe.data.split, recipe.data.strict) = (None, false);
    recipe.data.index = None;
    // It only decides whether the run ends.
    recipe.data.max_bad_fraction = 0.0;
    serde_json::to_value(recipe).expect("a resolved recipe is plain data with string keys")
}

/// The dotted key, saved and current value of the first difference.
pub(super) fn first_difference(
    key: &str,
    saved: &serde_json::Value,
    current: &serde_json::Value,
) -> Option<(String, String, String)> {
    use serde_json::Value;
    match (saved, current) {
        (Value::Object(saved), Value::Object(current)) => {
            let keys = saved
                .keys()
                .chain(current.keys().filter(|key| !saved.contains_key(*key)));
            keys.into_iter().find_map(|name| {
                let dotted = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(name).cloned().unwrap_or(Value::Null)
                };
                first_difference(&dotted, &of(saved), &of(current))
            })
        }
        _ if saved == current => None,
        _ => {
            let key = if key == "dataset" {
                "data set (fingerprint)"
            } else {
                key
            };
            Some((key.to_owned(), saved.to_string(), current.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn a_run_may_go_on_on_another_device_and_with_other_threads_only() {
        let recipe = include_str!("../../recipes/tiny.toml");
        let recipe = Recipe::parse(recipe, Path::new("tiny.toml"), &[]).unwrap();
        let saved = recipe.resolve(1000, "digest".to_owned()).unwrap();
        let mut current = saved.clone();
        current.device = DeviceChoice::Cuda(1);
        current.decode_threads += 1;
        current.jpeg = Some(crate::recipe::JpegChoice::Fixed);
        current.train.wire = Some(crate::recipe::WireChoice::Host);
        current.data.index = Some("scenes.index".to_owned());
        same_run("a", &saved, &current).unwrap();
        current.seed += 1;
        let error = same_run("a", &saved, &current).unwrap_err().to_string();
        assert!(error.contains("another seed"), "{error}");
    }
}
