//! Values that are possible and those that are not; keys kept, added and left out.
use super::*;
use crate::ParamSpec;

fn refused(change: impl FnOnce(&mut NepaConfig)) -> String {
    let mut config = NepaConfig::tiny();
    change(&mut config);
    config.validate().expect_err("must be refused").to_string()
}

#[test]
fn presets_are_valid() {
    for config in [
        NepaConfig::base_14(),
        NepaConfig::large_14(),
        NepaConfig::base_14_gated(),
        NepaConfig::tiny(),
    ] {
        config.validate().expect("a preset");
    }
}

#[test]
fn impossible_values_are_refused_by_key() {
    assert!(refused(|c| c.image_size = 30).contains("multiple of patch_size = 7"));
    assert!(refused(|c| c.num_attention_heads = 5).contains("multiple of num_attention_heads = 5"));
    assert!(refused(|c| c.num_attention_heads = 8).contains("multiple of 4"));
    assert!(refused(|c| c.patch_size = 0).contains("patch_size = 0"));
    assert!(refused(|c| c.layer_norm_eps = -1.0).contains("layer_norm_eps"));
    assert!(refused(|c| c.rope_theta = 0.0).contains("rope_theta"));
    assert!(refused(|c| c.pos_embed_rescale = Some(0.5)).contains("pos_embed_rescale"));
    assert!(refused(|c| c.initializer_range = f64::NAN).contains("initializer_range"));
    assert!(refused(|c| c.model_type = "vit".into()).contains("vit_nepa"));
    assert!(refused(|c| c.drop_path_prob = 1.0).contains("drop_path_prob = 1 "));
    assert!(refused(|c| c.drop_path_prob = f64::NAN).contains("drop_path_prob"));
    let other = |key: &'static str, value: serde_json::Value| {
        refused(move |c| c.other = BTreeMap::from([(key.to_owned(), value)]))
    };
    assert!(other("num_prompt_token", 4.into()).contains("num_prompt_token = 4"));
    assert!(other("num_prompt_token", "0".into()).contains("num_prompt_token"));
    let architectures = |names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        refused(|c| c.architectures = names)
    };
    for names in [
        &[][..],
        &["ViTForImageClassification"],
        &["ViTNepaForPreTraining", "ViTNepaForImageClassification"],
    ] {
        let message = architectures(names);
        assert!(
            message.contains("ViTNepaForImageClassification"),
            "{message}"
        );
    }
}

#[test]
fn drop_out_matters_to_training_alone() {
    for key in [
        "attention_probs_dropout_prob",
        "hidden_dropout_prob",
        "drop_path_rate",
    ] {
        let with = |value: serde_json::Value| NepaConfig {
            other: BTreeMap::from([(key.to_owned(), value)]),
            ..NepaConfig::tiny()
        };
        with(0.1.into())
            .validate()
            .expect("evaluation does not mind");
        let message = with(0.1.into())
            .validate_for_training()
            .expect_err(key)
            .to_string();
        assert!(message.contains(&format!("{key} = 0.1")), "{message}");
        for nothing in [0.into(), 0.0.into(), serde_json::Value::Null] {
            with(nothing).validate_for_training().expect("no drop-out");
        }
    }
    let drop_path = NepaConfig {
        drop_path_prob: 0.3,
        ..NepaConfig::tiny()
    };
    drop_path
        .validate_for_training()
        .expect("drop path is done");
}

/// A classifier whose keys about classes are these.
fn classifier(keys: serde_json::Value) -> NepaConfig {
    NepaConfig {
        architectures: vec![CLASSIFIER.to_owned()],
        other: serde_json::from_value(keys).expect("a map"),
        ..NepaConfig::tiny()
    }
}

#[test]
fn classes_are_those_of_id2label_else_num_labels_else_two() {
    use serde_json::json;
    let names = json!({"1": "dog", "0": "cat", "2": "cat"});
    for (keys, count, named) in [
        (json!({}), 2, false),
        (json!({"num_labels": 7}), 7, false),
        (json!({"id2label": null, "num_labels": 7}), 7, false),
        (
            json!({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}),
            2,
            false,
        ),
        (
            json!({"id2label": {"0": "LABEL_1", "1": "LABEL_0"}}),
            2,
            true,
        ),
        (
            json!({"id2label": names, "num_labels": null, "label2id": {"cat": 0}}),
            3,
            true,
        ),
        (json!({"id2label": names, "num_labels": 3}), 3, true),
    ] {
        let config = classifier(keys.clone());
        config
            .validate()
            .unwrap_or_else(|error| panic!("{keys}: {error}"));
        assert_eq!(config.num_classes(), Some(count), "{keys}");
        assert_eq!(config.class_names().is_some(), named, "{keys}");
    }
    let config = classifier(json!({"id2label": names}));
    // Two classes of one name, as ImageNet-1k has them, are two classes.
    assert_eq!(config.class_names().expect("names"), ["cat", "dog", "cat"]);
    let pretraining = NepaConfig {
        other: config.other.clone(),
        ..NepaConfig::tiny()
    };
    assert!(!pretraining.is_classifier());
    assert_eq!(
        (pretraining.num_classes(), pretraining.class_names()),
        (None, None)
    );
}

#[test]
fn classes_that_cannot_be_are_refused() {
    use serde_json::json;
    let ten: serde_json::Map<_, _> = (0..10)
        .map(|class| (class.to_string(), class.to_string().into()))
        .collect();
    let mut hole = ten.clone();
    hole.remove("4");
    hole.insert("10".into(), "ten".into());
    let mut twice = ten.clone();
    twice.insert("04".into(), "four".into());
    for (keys, parts) in [
        (json!({"id2label": hole}), ["id2label", "none is number 4"]),
        (
            json!({"id2label": twice}),
            ["04", "(0, 1, 2, ..., as text)"],
        ),
        (json!({"id2label": {"0": 1}}), ["{\"0\": 1}", "to its name"]),
        (
            json!({"id2label": {"cat": "0"}}),
            ["{\"cat\": \"0\"}", "to its name"],
        ),
        (json!({"id2label": ["cat"]}), ["[\"cat\"]", "map"]),
        (json!({"id2label": {}}), ["id2label", "at least one class"]),
        (
            json!({"id2label": ten, "num_labels": 9}),
            ["num_labels = 9", "10 classes"],
        ),
        (json!({"num_labels": 0}), ["num_labels = 0", "from 1 to"]),
        (json!({"num_labels": -3}), ["num_labels = -3", "from 1 to"]),
        (json!({"num_labels": 1e15}), ["num_labels", "from 1 to"]),
        (
            json!({"num_labels": "ten"}),
            ["num_labels = \"ten\"", "from 1 to"],
        ),
    ] {
        let message = classifier(keys.clone())
            .validate()
            .expect_err("refused")
            .to_string();
        for part in parts {
            assert!(message.contains(part), "{keys}: {part} in {message}");
        }
    }
    assert_eq!(
        number_given_twice(br#"{"id2label": {"0": "a", "1": "b", "0": "c"}}"#).as_deref(),
        Some("0")
    );
    assert_eq!(
        number_given_twice(br#"{"id2label": {"0": "a", "1": "b"}, "x": {}}"#),
        None
    );
}

#[test]
fn a_classifier_is_made_of_a_model_of_pretraining() {
    let names = ["fish", "dog"].map(str::to_owned);
    let mut pretraining = NepaConfig::large_14();
    pretraining.use_mask_token = true;
    pretraining.other.insert("num_labels".into(), 9.into());
    pretraining.other.insert("dtype".into(), "float32".into());
    let config = pretraining.to_classifier(Classes::Named(&names));
    config.validate().expect("is valid");
    assert_eq!(config.class_names().expect("names"), names);
    assert_eq!(config.other["label2id"]["dog"], 1);
    assert_eq!(config.other["dtype"], "float32");
    assert_eq!(config.hidden_size, 1024);
    assert!(!config.use_mask_token);
    let names: Vec<String> = ParamSpec::all(&config)
        .into_iter()
        .map(|spec| spec.name)
        .collect();
    let head = [
        "classifier.bias",
        "classifier.weight",
        "fc_norm.bias",
        "fc_norm.weight",
    ];
    assert_eq!(names[..4], head);
    assert!(names[4..].iter().all(|name| name.starts_with("vit_nepa.")));
    let numbered = config.to_classifier(Classes::Count(11));
    assert_eq!(numbered.num_classes(), Some(11));
    assert_eq!(numbered.class_names(), None);
    numbered.validate().expect("is valid");
}

#[test]
fn absent_keys_are_those_of_the_published_class() {
    let needed = r#"{"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 64"#;
    let read = |more: &str| -> NepaConfig {
        serde_json::from_str(&format!("{needed}{more}}}")).expect("parses")
    };
    let config = read("");
    assert_eq!((config.qk_norm, config.patch_size), (false, 16));
    assert_eq!(config.pos_embed_rescale, Some(2.0));
    assert_eq!(config.layerscale_value, Some(1e-5));
    let config = read(r#", "pos_embed_rescale": null, "layerscale_value": null"#);
    assert_eq!(
        (config.pos_embed_rescale, config.layerscale_value),
        (None, None)
    );
    let names = ParamSpec::all(&config).into_iter().map(|spec| spec.name);
    assert!(names.into_iter().all(|name| !name.contains("lambda1")));
    let written = serde_json::to_string(&config).expect("serialises");
    assert!(written.contains(r#""layerscale_value":null"#), "{written}");
    let again: NepaConfig = serde_json::from_str(&written).expect("parses");
    assert_eq!(again, config);
}

#[test]
fn unknown_keys_survive_a_round_trip() {
    let mut value = serde_json::to_value(NepaConfig::tiny()).expect("serialises");
    value["transformers_version"] = "4.56.1".into();
    value["dtype"] = "float32".into();
    let config: NepaConfig = serde_json::from_value(value.clone()).expect("parses");
    assert_eq!(config.other.len(), 2);
    assert_eq!(serde_json::to_value(&config).expect("serialises"), value);
    value["hidden_act"] = "tanhshrink".into();
    let error = serde_json::from_value::<NepaConfig>(value)
        .expect_err("no such activation")
        .to_string();
    assert!(
        error.contains("tanhshrink") && error.contains("gelu"),
        "{error}"
    );
}
