//! Tests of checkpoints: what goes in comes out, every kind of damage is named, and only our own
//! files are removed.
use std::path::Path;
use std::sync::LazyLock;

use nepa_model::{ParamSpec, init_weights};
use nepa_pipeline::{IoConfig, IoRuntime, LoaderState};

use super::files::VERSION;
use super::manifest::digest;
use super::tensors::tensors;
use super::write::json;
use super::*;
use crate::engine::TrainingState;
use crate::output::{Output, Retention};
use crate::recipe::{CheckpointSection, Recipe};

static RUNTIME: LazyLock<IoRuntime> = LazyLock::new(|| IoRuntime::new(1).unwrap());

fn sample(step: u64) -> Checkpoint {
    let recipe = Recipe::parse(
        include_str!("../../recipes/tiny.toml"),
        Path::new("tiny.toml"),
        &[],
    )
    .unwrap();
    let recipe = recipe.resolve(100, "digest".to_owned()).unwrap();
    let mut training = TrainingState::new(init_weights(&recipe.model, 5));
    for (i, value) in training.optimizer.m.iter_mut().enumerate() {
        *value = i as f32 * 1e-3 + step as f32;
    }
    training.optimizer.step = step;
    training.optimizer.ema.clone_from(&training.weights.flat);
    training.optimizer.ema[3] = 7.0;
    let loader = LoaderState {
        version: 4,
        dataset: "digest".to_owned(),
        seed: 1337,
        global_batch: 8,
        lanes: 1,
        shuffle: true,
        shuffle_window_bytes: 1 << 30,
        drop_last: true,
        epoch: 0,
        batch_in_epoch: step,
        samples_tried: 8 * step,
        samples_bad: 0,
    };
    let files = FileLengths {
        metrics_bytes: 10,
        events_bytes: None,
        trace_bytes: Some(3),
        evals_bytes: None,
    };
    Checkpoint {
        state: RunState {
            version: VERSION,
            step,
            samples: 8 * step,
            loader,
            files,
            recipe,
            engine: Some(serde_json::json!({"chosen": [1, 2]})),
            evaluated: None,
        },
        training,
    }
}

fn open(folder: &Path) -> Result<Output, crate::output::OutputError> {
    let (io, settings) = (IoConfig::default(), CheckpointSection::default());
    Output::open(folder.to_str().unwrap(), &io, &settings, &RUNTIME)
}

fn output(folder: &Path) -> Output {
    open(folder).unwrap()
}

fn save(output: &Output, step: u64, newest: usize) {
    let retention = Retention {
        newest,
        milestone_steps: None,
    };
    output
        .save(&sample(step), MoreFiles::new(), Vec::new(), retention)
        .unwrap();
}

#[test]
fn a_checkpoint_is_read_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let output = output(folder.path());
    save(&output, 5, 2);
    let found = output.checkpoints().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(output.load(&found[0]).unwrap().checkpoint, sample(5));
    let (config, ema) =
        read_weights(&folder.path().join("checkpoints/step-00000005"), true).unwrap();
    assert_eq!(
        (config, ema.flat),
        (
            sample(5).state.recipe.model,
            sample(5).training.optimizer.ema
        )
    );
}

#[test]
fn the_last_k_stay_and_foreign_files_are_never_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let output = output(folder.path());
    let checkpoints = folder.path().join("checkpoints");
    save(&output, 1, 2);
    std::fs::write(checkpoints.join("step-00000001/notes.txt"), "mine").unwrap();
    std::fs::create_dir(checkpoints.join("best")).unwrap();
    std::fs::write(checkpoints.join("best/manifest.json"), "{}").unwrap();
    for step in 2..=4 {
        save(&output, step, 2);
    }
    let steps = output
        .checkpoints()
        .unwrap()
        .iter()
        .map(|checkpoint| checkpoint.step)
        .collect::<Vec<_>>();
    assert_eq!(steps, [3, 4]);
    assert!(!checkpoints.join("step-00000002").exists());
    assert_eq!(
        std::fs::read_to_string(checkpoints.join("step-00000001/notes.txt")).unwrap(),
        "mine"
    );
    assert!(!checkpoints.join("step-00000001/model.safetensors").exists());
    assert!(checkpoints.join("best/manifest.json").exists());
}

#[test]
fn half_checkpoints_are_left_out_and_cleaned_up() {
    let folder = tempfile::tempdir().unwrap();
    let output = output(folder.path());
    let checkpoints = folder.path().join("checkpoints");
    for step in 1..=4 {
        save(&output, step, 9);
    }
    std::fs::remove_file(checkpoints.join("step-00000004/manifest.json")).unwrap();
    let path = checkpoints.join("step-00000003/optimizer.safetensors");
    std::fs::write(&path, &std::fs::read(&path).unwrap()[..100]).unwrap();
    std::fs::rename(
        checkpoints.join("step-00000001"),
        checkpoints.join(".saving-step-00000001"),
    )
    .unwrap();
    let steps = output
        .checkpoints()
        .unwrap()
        .iter()
        .map(|checkpoint| checkpoint.step)
        .collect::<Vec<_>>();
    assert_eq!(steps, [2]);
    output.clean_up();
    assert!(!checkpoints.join(".saving-step-00000001").exists());
    // The damaged one of the same step is set aside, not deleted.
    save(&output, 3, 9);
    assert!(
        checkpoints
            .join("replaced-1-step-00000003/optimizer.safetensors")
            .exists()
    );
    assert_eq!(
        output
            .load(&output.checkpoints().unwrap()[1])
            .unwrap()
            .checkpoint,
        sample(3)
    );
}

#[test]
fn damage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &sample(1), &MoreFiles::new()).unwrap();
    let file = |name: &str| folder.path().join(name);
    let message = || read_folder(folder.path()).unwrap_err().to_string();

    let path = file("ema.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    let error = message();
    assert!(error.contains("SHA-256 of ema.safetensors"), "{error}");
    std::fs::write(&path, &whole[1..]).unwrap();
    let error = message();
    assert!(
        error.contains("ema.safetensors has") && error.contains("damaged"),
        "{error}"
    );
    std::fs::remove_file(&path).unwrap();
    let error = message();
    assert!(error.contains("ema.safetensors has no bytes"), "{error}");
    std::fs::remove_file(file(MANIFEST)).unwrap();
    let error = message();
    assert!(error.contains("no whole checkpoint"), "{error}");
}

/// Writes `training` of one model under the configuration of another, with digests that fit.
fn with_tensors_of(change: impl FnOnce(&mut Vec<ParamSpec>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = sample(1);
    write_folder(folder.path(), &checkpoint, &MoreFiles::new()).unwrap();
    let mut specs = checkpoint.training.weights.specs.clone();
    change(&mut specs);
    let path = folder.path().join("ema.safetensors");
    let content = tensors(&path, &specs, &[("", &checkpoint.training.optimizer.ema)]).unwrap();
    std::fs::write(&path, content).unwrap();
    let mut manifest = read_manifest(folder.path()).unwrap();
    manifest
        .files
        .insert("ema.safetensors".to_owned(), digest(&path).unwrap());
    let path = folder.path().join(MANIFEST);
    std::fs::write(&path, json(&path, &manifest).unwrap()).unwrap();
    read_folder(folder.path()).unwrap_err().to_string()
}

#[test]
fn missing_surplus_and_misshapen_tensors_are_named() {
    let error = with_tensors_of(|specs| drop(specs.pop()));
    assert!(
        error.contains("ema.safetensors lacks the tensor vit_nepa."),
        "{error}"
    );
    let error = with_tensors_of(|specs| {
        let surplus = ParamSpec {
            name: "vit_nepa.extra".to_owned(),
            ..specs[0].clone()
        };
        specs.push(surplus);
    });
    assert!(
        error.contains("vit_nepa.extra, which this model does not have"),
        "{error}"
    );
    let error = with_tensors_of(|specs| specs[0].shape = vec![specs[0].len()]);
    assert!(
        error.contains("the tensor") && error.contains("the model's is F32"),
        "{error}"
    );
}

#[test]
fn an_output_is_held_by_one_run_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = output(folder.path());
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("in use by another process"), "{error}");
    assert!(!first.holds_run().unwrap());
    first.write_recipe("x = 1").unwrap();
    assert!(first.holds_run().unwrap());
}
