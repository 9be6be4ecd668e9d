//! Trains a small convolutional classifier from labelled shards, through the loader's public API
//! alone; docs/loader.md walks through it.
//!
//! `cargo run --release -p nepa-pipeline --example train_classifier -- TRAIN_URL VAL_URL STEPS`
use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{Module, Optimizer, VarBuilder, VarMap};
use nepa_pipeline::{AugmentConfig, HostBatch, Loader};

/// Three convolutions of stride 2, the mean over all places, a linear layer.
fn classifier(num_classes: usize, vars: &VarBuilder) -> candle_core::Result<impl Module> {
    let mut layers = candle_nn::seq();
    for (i, width) in [3, 16, 32, 64].windows(2).enumerate() {
        let config = candle_nn::Conv2dConfig {
            padding: 1,
            stride: 2,
            ..Default::default()
        };
        let vars = vars.pp(format!("conv{i}"));
        layers = layers.add(candle_nn::conv2d(width[0], width[1], 3, config, vars)?);
        layers = layers.add_fn(Tensor::relu);
    }
    layers = layers.add_fn(|x| x.mean((2, 3)));
    Ok(layers.add(candle_nn::linear(64, num_classes, vars.pp("head"))?))
}

/// Pixels `[B, 3, S, S]` and class indices `[B]`.
fn tensors(batch: &HostBatch) -> Result<(Tensor, Tensor)> {
    let (num_images, side) = (batch.len(), batch.image_size() as usize);
    let pixels = Tensor::from_slice(batch.array(), (num_images, 3, side, side), &Device::Cpu)?;
    let labels = Tensor::from_vec(batch.class_indices()?, num_images, &Device::Cpu)?;
    Ok((pixels, labels))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [train, val, steps] = &arguments[..] else {
        bail!("usage: train_classifier TRAIN_URL VAL_URL STEPS");
    };
    let loader = Loader::builder(train)
        .batch_size(32)
        .augment(AugmentConfig::random_resized_crop(48, [0.5, 1.0]))
        .open()?;
    let names = loader.dataset().class_names();
    let num_classes = names.context("the shards name no classes")?.len();

    let vars = VarMap::new();
    let builder = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let model = classifier(num_classes, &builder)?;
    let mut optimizer = candle_nn::AdamW::new_lr(vars.all_vars(), 3e-3)?;
    for (step, batch) in (1..=steps.parse()?).zip(loader) {
        let (pixels, labels) = tensors(&batch?)?;
        let loss = candle_nn::loss::cross_entropy(&model.forward(&pixels)?, &labels)?;
        optimizer.backward_step(&loss)?;
        if step % 20 == 0 {
            println!("step {step}: loss {:.3}", loss.to_scalar::<f32>()?);
        }
    }

    let (mut right, mut total) = (0.0, 0);
    let loader = Loader::builder(val)
        .batch_size(32)
        .augment(AugmentConfig::center_crop(48, 48))
        .shuffle(false)
        .drop_last(false)
        .epochs(1)
        .open()?;
    for batch in loader {
        let batch = batch?;
        let (pixels, labels) = tensors(&batch)?;
        let hits = model.forward(&pixels)?.argmax(D::Minus1)?.eq(&labels)?;
        right += hits.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        total += batch.len();
    }
    let accuracy = right / total as f32;
    println!("held-out accuracy {accuracy:.3} ({total} images)");
    Ok(())
}
