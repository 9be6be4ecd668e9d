//! Small classifiers in the published layout, made in code, and labelled shards to ask them about.
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use nepa_model::{Classes, NepaConfig, Weights, init_weights, write_published};

use crate::shards::write;

/// A classifier of these classes with pooling, whose logits differ from image to image: of new
/// weights the head is zero.
pub fn classifier(classes: Classes<'_>, seed: u64) -> (NepaConfig, Weights) {
    let config = NepaConfig {
        is_causal: false,
        add_pooling_layer: true,
        ..NepaConfig::tiny().to_classifier(classes)
    };
    let mut weights = init_weights(&config, seed);
    for spec in &weights.specs {
        let step = if spec.name.starts_with("classifier") {
            3.0
        } else {
            0.05
        };
        for (index, value) in weights.flat[spec.range()].iter_mut().enumerate() {
            let phase = (index * 7919 + spec.offset) as f32 + seed as f32;
            *value += step * phase.sin();
        }
    }
    (config, weights)
}

/// Writes a classifier and gives it back.
///
/// # Panics
///
/// If it cannot be written.
pub fn write_classifier(folder: &Path, classes: Classes<'_>, seed: u64) -> (NepaConfig, Weights) {
    let made = classifier(classes, seed);
    write_published(folder, &made.0, &made.1).expect("a writable folder");
    made
}

/// Writes a model of pretraining and gives it back.
///
/// # Panics
///
/// If it cannot be written.
pub fn write_pretrained(folder: &Path, seed: u64) -> (NepaConfig, Weights) {
    let config = NepaConfig::tiny();
    let weights = init_weights(&config, seed);
    write_published(folder, &config, &weights).expect("a writable folder");
    (config, weights)
}

/// The labels of a shard.
#[derive(Debug, Clone)]
pub enum Labels {
    /// Numbers, and the names that the metadata gives them.
    Numbers(Vec<Option<i64>>, Option<Vec<String>>),
    /// Names themselves.
    Names(Vec<Option<String>>),
}

/// A shard of these images with their labels.
///
/// # Panics
///
/// If there is not a label for each.
pub fn labelled_images(images: &[Vec<u8>], labels: &Labels) -> Vec<u8> {
    let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(images));
    let (kind, labels, names): (_, ArrayRef, _) = match labels {
        Labels::Numbers(labels, names) => (
            DataType::Int64,
            Arc::new(labels.iter().copied().collect::<Int64Array>()),
            names.clone(),
        ),
        Labels::Names(labels) => (
            DataType::Utf8,
            Arc::new(labels.iter().cloned().collect::<StringArray>()),
            None,
        ),
    };
    let fields = vec![
        Field::new("image", DataType::Binary, true),
        Field::new("label", kind, true),
    ];
    let metadata = names.map(|names| {
        let features = serde_json::json!({
            "info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}
        });
        ("huggingface".to_owned(), features.to_string())
    });
    let metadata: HashMap<String, String> = metadata.into_iter().collect();
    let schema = Schema::new_with_metadata(fields, metadata);
    let schema = Arc::new(schema);
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![images, labels]);
    write(&schema, [batch.expect("a label for each image")])
}
