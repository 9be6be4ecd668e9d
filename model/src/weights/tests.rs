//! The published layout: what is written is read, in one file or several and in each type of floats;
//! what is wrong is told by file and name.
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::*;
use crate::{Classes, ModelError, init_weights};

fn count(config: &NepaConfig) -> usize {
    ParamSpec::all(config).iter().map(ParamSpec::len).sum()
}

fn classifier() -> NepaConfig {
    NepaConfig::tiny().to_classifier(Classes::Count(4))
}

fn refused(folder: &Path) -> String {
    let refused = read_published(folder).expect_err("must be refused");
    refused.to_string()
}

#[test]
fn specs_are_sorted_contiguous_and_of_published_size() {
    let specs = ParamSpec::all(&NepaConfig::base_14());
    assert!(specs.windows(2).all(|pair| pair[0].name < pair[1].name));
    assert!(
        specs
            .windows(2)
            .all(|pair| pair[0].range().end == pair[1].offset)
    );
    assert_eq!(specs.len(), 5 + 12 * 18, "as in the published file");
    assert!((85_000_000..87_000_000).contains(&count(&NepaConfig::base_14())));
    assert!((302_500_000..305_000_000).contains(&count(&NepaConfig::large_14())));
}

#[test]
fn published_layout_round_trips() {
    let folder = tempfile::tempdir().expect("a folder");
    for config in [
        NepaConfig::tiny(),
        NepaConfig {
            use_gated_mlp: true,
            qk_norm_affine: true,
            qk_norm_bias: true,
            ..NepaConfig::tiny()
        },
        NepaConfig {
            qkv_bias: false,
            qk_norm: false,
            layerscale_value: None,
            ..NepaConfig::tiny()
        },
        classifier(),
        NepaConfig {
            add_pooling_layer: false,
            drop_path_prob: 0.1,
            ..classifier()
        },
        NepaConfig {
            use_mask_token: true,
            use_rope: false,
            ..NepaConfig::tiny()
        },
    ] {
        let weights = init_weights(&config, 3);
        write_published(folder.path(), &config, &weights).expect("writes");
        assert_eq!(
            read_published(folder.path()).expect("reads"),
            (config, weights)
        );
    }
}

#[test]
fn each_offending_weight_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = NepaConfig::tiny();
    let mut weights = init_weights(&config, 3);
    let last = weights.specs.len() - 1;
    weights.specs[0].name = "fc_norm.weight".into();
    weights.specs[1].name = "classifier.weight".into();
    weights.specs[last].shape = vec![8, 6];
    write_published(folder.path(), &config, &weights).expect("writes");
    let message = refused(folder.path());
    for part in [
        "missing (2): vit_nepa.embeddings.cls_token, vit_nepa.embeddings.patch_embeddings.projection.bias",
        "surplus (2): classifier.weight, fc_norm.weight",
        "vit_nepa.layernorm.weight is f32 [8, 6], should be floats [48]",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[test]
fn damaged_and_missing_files_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let message = refused(folder.path());
    assert!(message.contains("config.json"), "{message}");
    write_published(
        folder.path(),
        &NepaConfig::tiny(),
        &init_weights(&NepaConfig::tiny(), 1),
    )
    .expect("writes");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).expect("reads");
    for damaged in [
        &bytes[..bytes.len() / 2],
        &bytes[..bytes.len() - 1],
        &[&bytes[..], &[0]].concat(),
        &bytes[..5],
        &[],
        &[255; 64],
        b"version https://git-lfs.github.com/spec/v1",
    ] {
        fs::write(&path, damaged).expect("writes");
        assert!(matches!(
            read_published(folder.path()),
            Err(ModelError::WeightFormat { .. })
        ));
        assert!(refused(folder.path()).contains("model.safetensors"));
    }
}

/// Writes the weights whose name `keeps` as a safetensors file of one type.
fn write_as(path: &Path, weights: &Weights, kind: Dtype, keeps: impl Fn(&str) -> bool) {
    let tensors: Vec<(&ParamSpec, Vec<u8>)> = weights
        .specs
        .iter()
        .filter(|spec| keeps(&spec.name))
        .map(|spec| {
            let values = weights.flat[spec.range()].iter();
            let bytes = values.flat_map(|value| match kind {
                Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
                Dtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
                Dtype::F64 => f64::from(*value).to_le_bytes().to_vec(),
                Dtype::I32 => (*value as i32).to_le_bytes().to_vec(),
                _ => value.to_le_bytes().to_vec(),
            });
            (spec, bytes.collect())
        })
        .collect();
    let views = tensors.iter().map(|(spec, bytes)| {
        let view = TensorView::new(kind, spec.shape.clone(), bytes).expect("a view");
        (spec.name.as_str(), view)
    });
    let bytes = safetensors::serialize(views, None).expect("serialises");
    fs::write(path, bytes).expect("writes");
}

#[test]
fn floats_of_each_type_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = classifier();
    // Values that each type has exactly.
    let mut weights = init_weights(&config, 5);
    for value in &mut weights.flat {
        *value = bf16::from_f32((*value * 64.0).round() / 64.0).to_f32();
    }
    write_published(folder.path(), &config, &weights).expect("writes");
    let path = folder.path().join("model.safetensors");
    for kind in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
        write_as(&path, &weights, kind, |_| true);
        let (_, read) = read_published(folder.path()).expect("reads");
        assert_eq!(read, weights, "{kind:?}");
    }
    write_as(&path, &weights, Dtype::I32, |_| true);
    let message = refused(folder.path());
    assert!(
        message.contains("classifier.bias is i32 [4], should be floats [4]"),
        "{message}"
    );
    assert!(
        message.contains("and 57 more"),
        "the first few only: {message}"
    );
}

/// A classifier in two files by an index that says so.
fn sharded(folder: &Path) -> (Weights, serde_json::Value) {
    let config = classifier();
    let weights = init_weights(&config, 6);
    write_published(folder, &config, &weights).expect("writes");
    fs::remove_file(folder.join("model.safetensors")).expect("removes");
    let in_first = |name: &str| name.contains("layer.1.") || name.starts_with("classifier");
    let files = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    write_as(&folder.join(files[0]), &weights, Dtype::F32, in_first);
    write_as(&folder.join(files[1]), &weights, Dtype::F32, |name| {
        !in_first(name)
    });
    let map: serde_json::Map<_, _> = weights
        .specs
        .iter()
        .map(|spec| {
            (
                spec.name.clone(),
                files[usize::from(!in_first(&spec.name))].into(),
            )
        })
        .collect();
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    write_index(folder, &index);
    (weights, index)
}

fn write_index(folder: &Path, index: &serde_json::Value) {
    fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .expect("writes");
}

#[test]
fn a_model_in_several_files_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (weights, index) = sharded(folder);
    assert_eq!(read_published(folder).expect("reads").1, weights);
    let text = index.to_string();
    let files = shard_files("index".as_ref(), text.as_bytes()).expect("an index");
    assert_eq!(files.len(), 2);
    assert!(files.is_sorted() && files[0].starts_with("model-00001"));

    // What is not where the index says it is.
    let mut wrong = index.clone();
    wrong["weight_map"]["classifier.bias"] = files[1].as_str().into();
    write_index(folder, &wrong);
    let message = refused(folder);
    for part in [
        "model.safetensors.index.json",
        "missing (1): classifier.bias",
        "surplus (1)",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
    // A weight that the index does not name.
    let mut wrong = index.clone();
    wrong["weight_map"]
        .as_object_mut()
        .expect("a map")
        .remove("fc_norm.bias");
    write_index(folder, &wrong);
    assert!(refused(folder).contains("missing (1): fc_norm.bias"));
    // A file that is not there, or not of this folder.
    let mut wrong = index.clone();
    wrong["weight_map"]["fc_norm.bias"] = "model-00003-of-00002.safetensors".into();
    write_index(folder, &wrong);
    assert!(refused(folder).contains("model-00003-of-00002.safetensors"));
    for elsewhere in [
        "../model.safetensors",
        "/etc/passwd",
        "a/b",
        "a/",
        r"a\b",
        "",
        ".",
    ] {
        let mut wrong = index.clone();
        wrong["weight_map"]["fc_norm.bias"] = elsewhere.into();
        write_index(folder, &wrong);
        assert!(
            refused(folder).contains("no file of this folder"),
            "{elsewhere}"
        );
    }
    for damaged in [
        "{",
        "{}",
        r#"{"weight_map": {}}"#,
        r#"{"weight_map": {"a": 1}}"#,
    ] {
        fs::write(folder.join("model.safetensors.index.json"), damaged).expect("writes");
        let message = refused(folder);
        assert!(
            message.contains("not an index of weight files"),
            "{damaged}: {message}"
        );
    }
}

#[test]
fn pickles_are_refused_with_the_command_that_converts_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("it's here");
    write_published(&folder, &classifier(), &init_weights(&classifier(), 1)).expect("writes");
    fs::remove_file(folder.join("model.safetensors")).expect("removes");
    let touch = |name: &str| fs::write(folder.join(name), "PK").expect("writes");
    touch("training_args.bin");
    assert!(
        refused(&folder).contains("training_args.bin"),
        "no weights at all"
    );
    touch("pytorch_model_ema.bin");
    let message = refused(&folder);
    assert!(
        message.contains("a Python pickle (pytorch_model_ema.bin)"),
        "{message}"
    );
    touch("pytorch_model.bin");
    let message = refused(&folder);
    for part in [
        "a Python pickle (pytorch_model.bin)",
        "python3 -c 'import sys, torch; from safetensors.torch import save_file;",
        r#"torch.load(path, map_location="cpu", weights_only=True)"#,
        ".clone().contiguous()",
        r"it'\''s here/model.safetensors'",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(
        !message.contains("_ema"),
        "the average is another model: {message}"
    );
    // One line, to be pasted into a shell.
    let command = message.lines().last().expect("a line");
    assert!(command.trim().starts_with("python3 -c '"), "{command}");
}

#[test]
fn a_folder_of_something_else_says_what_it_has() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("no");
    assert!(refused(&missing).contains("there is no such folder"));
    assert!(refused(folder.path()).contains("found: nothing"));
    for name in ["b.parquet", "a.parquet"] {
        fs::write(folder.path().join(name), "").expect("writes");
    }
    let message = refused(folder.path());
    assert!(message.contains("found: a.parquet, b.parquet"), "{message}");
    for name in ["config.json", "model.safetensors", "index.json"] {
        assert!(message.contains(name), "{name} in {message}");
    }
    let text = serde_json::to_string(&classifier()).expect("serialises");
    fs::write(folder.path().join("config.json"), text).expect("writes");
    assert!(refused(folder.path()).contains("found: a.parquet, b.parquet, config.json"));
}

#[test]
fn what_is_wrong_with_a_configuration_is_told_with_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    let text = serde_json::to_string(&classifier()).expect("serialises");
    for (from, to, part) in [
        (r#""patch_size":7"#, r#""patch_size":0"#, "patch_size = 0"),
        (
            r#""0":"LABEL_0""#,
            r#""0":"a","0":"b""#,
            "class 0 has two names",
        ),
        (
            r#""model_type":"vit_nepa""#,
            r#""model_type":"vit""#,
            "vit_nepa",
        ),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&path, text.replace(from, to)).expect("writes");
        let message = refused(folder.path());
        assert!(
            message.contains(part) && message.contains("config.json"),
            "{message}"
        );
    }
}

#[test]
fn weights_of_another_head_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let unpooled = NepaConfig {
        add_pooling_layer: false,
        ..classifier()
    };
    let more = NepaConfig::tiny().to_classifier(Classes::Count(9));
    for (config, of, parts) in [
        (
            NepaConfig::tiny(),
            classifier(),
            ["surplus (4)", "\"architectures\""],
        ),
        (
            classifier(),
            NepaConfig::tiny(),
            ["missing (4)", "\"architectures\""],
        ),
        (
            classifier(),
            unpooled.clone(),
            ["missing (2)", "add_pooling_layer"],
        ),
        (unpooled, classifier(), ["surplus (2)", "add_pooling_layer"]),
        (
            classifier(),
            more,
            ["classifier.weight is f32 [9, 48]", "4 classes (id2label"],
        ),
    ] {
        write_published(folder.path(), &config, &init_weights(&of, 1)).expect("writes");
        let message = refused(folder.path());
        for part in parts {
            assert!(message.contains(part), "{part} in {message}");
        }
    }
}

#[test]
fn a_configuration_is_written_with_sorted_keys() {
    let files = published_files("x".as_ref(), &classifier(), &init_weights(&classifier(), 1));
    let [(_, text), _] = files.expect("files");
    let text = String::from_utf8(text).expect("text");
    let keys: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("  \"")?.split('"').next())
        .collect();
    assert!(
        keys.is_sorted() && keys.contains(&"add_pooling_layer"),
        "{keys:?}"
    );
    assert!(!keys.contains(&"use_rope") && !keys.contains(&"use_mask_token"));
}
