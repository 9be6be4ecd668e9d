//! The model, its gradients and the optimiser agree with tensors computed by the published code, in f32 as a run computes; a
//! folder with one weight changed, a tensor missing or another value of a key does not.
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use nepa_model::{ParamSpec, Weights, read_published, write_published};
use nepa_trainer::golden::{Comparison, GoldenError, compare};
use nepa_trainer::recipe::EngineChoice;

fn golden() -> Option<PathBuf> {
    let root = std::env::var_os("NEPA_GOLDEN").map(PathBuf::from);
    if root.is_none() {
        eprintln!("SKIPPED: golden tensors: NEPA_GOLDEN is not set");
    }
    root
}

/// A writable copy of a golden folder.
fn copy(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(folder).expect("lists") {
        let entry = entry.expect("an entry");
        fs::write(
            copy.path().join(entry.file_name()),
            fs::read(entry.path()).expect("reads"),
        )
        .expect("writes");
    }
    copy
}

fn beyond(comparisons: &[Comparison]) -> Vec<&'static str> {
    let mut what: Vec<&'static str> = comparisons
        .iter()
        .filter(|comparison| !comparison.holds())
        .map(|comparison| comparison.what)
        .collect();
    what.dedup();
    what
}

#[test]
fn all_folders_agree() {
    let Some(root) = golden() else { return };
    let folders = [("gelu", true), ("gated", false), ("large_style", false)];
    let engines = [EngineChoice::Cpu, EngineChoice::Autograd];
    for ((folder, trajectory), engine) in folders
        .into_iter()
        .flat_map(|folder| engines.map(|engine| (folder, engine)))
    {
        let comparisons = compare(&root.join(folder), engine).expect("compares");
        let off: Vec<&Comparison> = comparisons
            .iter()
            .filter(|comparison| !comparison.holds())
            .collect();
        assert!(off.is_empty(), "{folder}: {off:?}");
        assert_eq!(
            comparisons
                .iter()
                .any(|c| c.what == "trajectory: moving average"),
            trajectory,
            "{folder}"
        );
        assert!(
            comparisons.iter().filter(|c| c.what == "gradients").count() > 40,
            "{folder}"
        );
    }
}

/// The published tensors with each LayerScale multiplied into the linear layer before it: the same
/// function without LayerScale, so all sequences, the loss and all other gradients stay; those of
/// that layer are the published ones divided by the scale, row by row.
fn without_layer_scale(folder: &Path) -> tempfile::TempDir {
    let (mut config, weights) = read_published(folder).expect("reads");
    let path = folder.join("reference.safetensors");
    let mut reference = candle_core::safetensors::load(path, &Device::Cpu).expect("reads");
    config.layerscale_value = None;
    let mut folded = Weights {
        specs: ParamSpec::all(&config),
        flat: Vec::new(),
    };
    for spec in &folded.specs {
        let (_, values) = weights.get(&spec.name).expect("is published");
        let scale = ["attention.output.dense", "output.dense"]
            .iter()
            .find_map(|layer| {
                let (block, part) = spec.name.split_once(&format!("{layer}."))?;
                let scale = if *layer == "output.dense" && !block.ends_with("attention.") {
                    format!("{block}output.layer_scale.lambda1")
                } else {
                    format!(
                        "{}layer_scale.lambda1",
                        block.trim_end_matches("attention.")
                    )
                };
                ["weight", "bias"].contains(&part).then_some(scale)
            });
        let Some(scale) = scale else {
            folded.flat.extend(values);
            continue;
        };
        let (_, scale) = weights.get(&scale).expect("is published");
        let row = spec.len() / scale.len();
        let of_row = |i: usize| scale[i / row];
        folded.flat.extend(
            values
                .iter()
                .enumerate()
                .map(|(i, value)| value * of_row(i)),
        );
        let name = format!("grad.{}", spec.name);
        let gradient = reference[&name].to_dtype(DType::F64);
        let gradient = gradient.and_then(|all| all.flatten_all()?.to_vec1::<f64>());
        let gradient = gradient.expect("values").into_iter().enumerate();
        let gradient = gradient.map(|(i, value)| value / f64::from(of_row(i)));
        let gradient = Tensor::from_iter(gradient, &Device::Cpu).expect("a tensor");
        let gradient = gradient.reshape(spec.shape.as_slice()).expect("its shape");
        reference.insert(name, gradient);
    }
    reference.retain(|name, _| !name.ends_with("lambda1"));
    let made = tempfile::tempdir().expect("a folder");
    write_published(made.path(), &config, &folded).expect("writes");
    let path = made.path().join("reference.safetensors");
    candle_core::safetensors::save(&reference, path).expect("writes");
    made
}

#[test]
fn classifiers_agree() {
    let Some(root) = golden() else { return };
    for folder in ["cls_gelu", "cls_gated"] {
        for engine in [EngineChoice::Cpu, EngineChoice::Autograd] {
            let comparisons = compare(&root.join(folder), engine).expect("compares");
            let off: Vec<_> = comparisons.iter().filter(|one| !one.holds()).collect();
            assert!(off.is_empty(), "{folder}, {engine:?}: {off:?}");
            let counted = |what| comparisons.iter().filter(|one| one.what == what).count();
            for what in [
                "pooled output",
                "logits",
                "logits in evaluation",
                "loss",
                "loss in evaluation",
                "trajectory: losses",
                "trajectory: learning rates",
                "trajectory: groups of weights",
                "trajectory: weights that stay",
                "rates of drop path",
            ] {
                assert_eq!(counted(what), 1, "{folder}: {what}");
            }
            for what in [
                "gradients",
                "trajectory: final weights",
                "trajectory: moving average",
            ] {
                assert!(counted(what) > 40, "{folder}: {what}");
            }
        }
    }
}

#[test]
fn what_is_changed_in_a_classifiers_folder_is_found() {
    let Some(root) = golden() else { return };
    let changed = |file: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let copy = copy(&root.join("cls_gelu"));
        let path = copy.path().join(file);
        let text = fs::read(&path).expect("reads");
        let mut value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        change(&mut value);
        fs::write(&path, value.to_string()).expect("writes");
        beyond(&compare(copy.path(), EngineChoice::Cpu).expect("compares"))
    };
    for (key, value, what) in [
        ("is_causal", true.into(), "logits"),
        ("rope_theta", 200.0.into(), "logits"),
        ("drop_path_prob", 0.31.into(), "rates of drop path"),
    ] {
        let value: serde_json::Value = value;
        let found = changed("config.json", &|config| config[key] = value.clone());
        assert!(found.contains(&what), "{key}: {found:?}");
    }
    for (key, value, what) in [
        ("llrd", 0.66, "trajectory: learning rates"),
        ("head_lr", 0.002, "trajectory: learning rates"),
        ("warmup_steps", 3.0, "trajectory: learning rates"),
        ("ema_decay", 0.8, "trajectory: moving average"),
        ("weight_decay", 0.04, "trajectory: groups of weights"),
        ("beta2", 0.99, "trajectory: final weights"),
        // Between the norms: AdamW does not see a factor of all gradients.
        ("max_grad_norm", 4.0, "trajectory: final weights"),
    ] {
        let found = changed("info.json", &|info| {
            let value = if key == "warmup_steps" {
                3.into()
            } else {
                value.into()
            };
            info["trajectory"][key] = value;
        });
        assert!(found.contains(&what), "{key}: {found:?}");
    }
    let found = changed("info.json", &|info| info["frozen"] = serde_json::json!([]));
    assert!(
        found.contains(&"trajectory: groups of weights"),
        "{found:?}"
    );
    // A pooling layer that is not there is a norm that is missing.
    let copy = copy(&root.join("cls_gelu"));
    let path = copy.path().join("config.json");
    let text = fs::read_to_string(&path).expect("reads");
    let text = text.replace(
        "\"add_pooling_layer\": true",
        "\"add_pooling_layer\": false",
    );
    fs::write(&path, text).expect("writes");
    let error = compare(copy.path(), EngineChoice::Cpu).expect_err("surplus weights");
    assert!(error.to_string().contains("fc_norm"), "{error}");
}

#[test]
fn a_folder_without_layer_scale_agrees() {
    let Some(root) = golden() else { return };
    for folder in ["gelu", "gated", "large_style"] {
        let made = without_layer_scale(&root.join(folder));
        let config = fs::read_to_string(made.path().join("config.json")).expect("reads");
        let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        assert!(config["layerscale_value"].is_null());
        for engine in [EngineChoice::Cpu, EngineChoice::Autograd] {
            let comparisons = compare(made.path(), engine).expect("compares");
            let off: Vec<_> = comparisons.iter().filter(|one| !one.holds()).collect();
            assert!(off.is_empty(), "{folder}, {engine:?}: {off:?}");
            assert!(comparisons.iter().filter(|c| c.what == "gradients").count() > 36);
        }
    }
}

#[test]
fn one_changed_weight_is_found_and_written_weights_agree_again() {
    let Some(root) = golden() else { return };
    for folder in ["gelu", "gated", "large_style"] {
        let copy = copy(&root.join(folder));
        let (config, mut weights) = read_published(copy.path()).expect("reads");
        write_published(copy.path(), &config, &weights).expect("writes");
        assert!(
            beyond(&compare(copy.path(), EngineChoice::Cpu).expect("compares")).is_empty(),
            "{folder}: our own file agrees"
        );
        let middle = weights.flat.len() / 2;
        weights.flat[middle] += 0.05;
        write_published(copy.path(), &config, &weights).expect("writes");
        let found = beyond(&compare(copy.path(), EngineChoice::Cpu).expect("compares"));
        assert!(found.contains(&"gradients"), "{folder}: {found:?}");
    }
}

#[test]
fn each_key_of_the_configuration_takes_effect() {
    let Some(root) = golden() else { return };
    let changed = |key: &str, value: serde_json::Value| {
        let copy = copy(&root.join("gelu"));
        let path = copy.path().join("config.json");
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).expect("reads")).expect("JSON");
        config[key] = value;
        fs::write(&path, config.to_string()).expect("writes");
        compare(copy.path(), EngineChoice::Cpu)
    };
    for (key, value) in [
        ("hidden_act", "silu".into()),
        ("hidden_act", "relu".into()),
        ("is_causal", false.into()),
        ("layer_norm_eps", 1e-2.into()),
        ("num_attention_heads", 4.into()),
        ("qk_norm", false.into()),
        ("rope_theta", 200.0.into()),
    ] {
        let comparisons = changed(key, value).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert!(!beyond(&comparisons).is_empty(), "{key} has no effect");
    }
    for (key, value, part) in [
        ("qk_norm_affine", true.into(), "q_norm.weight"),
        ("qkv_bias", false.into(), "query.bias"),
        ("use_gated_mlp", true.into(), "gate_proj.weight"),
        ("num_hidden_layers", 2.into(), "layer.2"),
        ("hidden_size", 24.into(), "cls_token"),
        ("intermediate_size", 64.into(), "up_proj.weight"),
        ("num_channels", 1.into(), "projection.weight"),
        ("patch_size", 14.into(), "projection.weight"),
        ("image_size", 30.into(), "multiple of patch_size"),
        ("model_type", "vit".into(), "vit_nepa"),
        (
            "architectures",
            serde_json::json!(["ViTNepaForImageClassification"]),
            "classifier.weight",
        ),
        ("hidden_act", "quick_gelu".into(), "quick_gelu"),
    ] {
        let message = changed(key, value).expect_err(key).to_string();
        assert!(message.contains(part), "{key}: {part} in {message}");
    }
    // Another image size has other positions, but the same weights: the reference's pixels no longer fit.
    let message = changed("image_size", 35.into())
        .expect_err("other pixels")
        .to_string();
    assert!(message.contains("[batch, 3, 35, 35]"), "{message}");
}

#[test]
fn missing_parts_are_named() {
    let Some(root) = golden() else { return };
    let copy = copy(&root.join("gelu"));
    fs::remove_file(copy.path().join("info.json")).expect("removes");
    let message = compare(copy.path(), EngineChoice::Cpu)
        .expect_err("no info.json")
        .to_string();
    assert!(message.contains("info.json"), "{message}");
    fs::write(copy.path().join("reference.safetensors"), b"no").expect("writes");
    let message = compare(copy.path(), EngineChoice::Cpu)
        .expect_err("damaged")
        .to_string();
    assert!(
        message.contains("reference.safetensors") && message.contains("safetensors file"),
        "{message}"
    );
    fs::copy(
        copy.path().join("model.safetensors"),
        copy.path().join("reference.safetensors"),
    )
    .expect("copies");
    match compare(copy.path(), EngineChoice::Cpu).expect_err("other tensors") {
        GoldenError::Names {
            missing, surplus, ..
        } => {
            assert!(
                missing.contains(&"pixel_values".to_owned()) && missing.len() == 4 + surplus.len()
            );
        }
        other => panic!("{other}"),
    }
}
