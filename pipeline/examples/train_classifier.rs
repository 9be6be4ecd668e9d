//! Trains a small convolutional classifier from labelled shards, through the loader's public API alone.
//!
//! `cargo run --release -p nepa-pipeline --example train_classifier -- TRAIN_URL VAL_URL STEPS`
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{
    AdamW, Conv2d, Conv2dConfig, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap,
};
use nepa_pipeline::render::Normalize;
use nepa_pipeline::{
    AugmentConfig, Dataset, DatasetConfig, Filter, HostBatch, IoConfig, IoRuntime, Loader,
    LoaderConfig,
};
use nepa_schemas::Label;

const SIZE: u32 = 48;
const BATCH: usize = 32;

/// Convolutions of stride 2, then the mean over all places, then a linear layer.
struct Classifier {
    convolutions: Vec<Conv2d>,
    head: Linear,
}

impl Classifier {
    fn new(num_classes: usize, vars: &VarBuilder) -> Result<Self> {
        let config = Conv2dConfig {
            padding: 1,
            stride: 2,
            ..Conv2dConfig::default()
        };
        let widths = [3, 16, 32, 64];
        let convolutions = widths.windows(2).enumerate().map(|(i, width)| {
            candle_nn::conv2d(width[0], width[1], 3, config, vars.pp(format!("conv{i}")))
        });
        let convolutions = convolutions.collect::<candle_core::Result<_>>()?;
        let head = candle_nn::linear(64, num_classes, vars.pp("head"))?;
        Ok(Self { convolutions, head })
    }

    fn logits(&self, pixels: &Tensor) -> candle_core::Result<Tensor> {
        let mut x = pixels.clone();
        for convolution in &self.convolutions {
            x = convolution.forward(&x)?.relu()?;
        }
        self.head.forward(&x.mean((2, 3))?)
    }
}

fn loader(dataset: &Arc<Dataset>, training: bool) -> Result<Loader> {
    let augment = if training {
        let (scale, ratio) = ([0.5, 1.0], [3.0 / 4.0, 4.0 / 3.0]);
        let filter = Filter::Bilinear;
        AugmentConfig::RandomResizedCrop {
            size: SIZE,
            scale,
            ratio,
            flip: 0.5,
            filter,
        }
    } else {
        AugmentConfig::CenterCrop {
            size: SIZE,
            resize: SIZE,
            filter: Filter::Bilinear,
        }
    };
    let config = LoaderConfig {
        seed: 1337,
        global_batch: BATCH,
        rank: 0,
        world_size: 1,
        epochs: (!training).then_some(1),
        shuffle: training,
        drop_last: training,
        augment,
        normalize: Normalize::default(),
        exif_orientation: true,
        decode_threads: 2,
        prefetch_batches: 2,
        shuffle_window_bytes: 256 << 20,
        max_bad_fraction: 0.01,
        bad_samples_path: None,
    };
    Ok(Loader::new(Arc::clone(dataset), config, None)?)
}

/// Pixels `[B, 3, S, S]` and class indices `[B]`.
fn tensors(batch: &HostBatch) -> Result<(Tensor, Tensor)> {
    let side = batch.image_size() as usize;
    let labels = batch.samples().iter().map(|sample| match &sample.label {
        Some(Label::Index(index)) => Ok(u32::try_from(*index)?),
        label => bail!("{}: the label {label:?} is no class index", sample.id),
    });
    let labels = labels.collect::<Result<Vec<u32>>>()?;
    let pixels = Tensor::from_vec(batch.to_vec(), (batch.len(), 3, side, side), &Device::Cpu)?;
    Ok((pixels, Tensor::from_vec(labels, batch.len(), &Device::Cpu)?))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [train, val, steps] = arguments.as_slice() else {
        bail!("usage: train_classifier TRAIN_URL VAL_URL STEPS");
    };
    let steps: usize = steps.parse().context("STEPS is a number")?;
    let runtime = IoRuntime::new(2)?;
    let open = |url: &String| {
        let config = DatasetConfig {
            urls: vec![url.clone()],
            ..DatasetConfig::default()
        };
        Dataset::open(&config, &IoConfig::default(), &runtime)
    };
    let (train, val) = (open(train)?, open(val)?);
    let num_classes = train
        .class_names()
        .context("the shards name no classes")?
        .len();

    let vars = VarMap::new();
    let model = Classifier::new(
        num_classes,
        &VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu),
    )?;
    let mut optimizer = AdamW::new(
        vars.all_vars(),
        ParamsAdamW {
            lr: 3e-3,
            ..ParamsAdamW::default()
        },
    )?;
    let mut batches = loader(&train, true)?;
    for step in 1..=steps {
        let batch = batches
            .next_batch()?
            .context("training has no end of its own")?;
        let (pixels, labels) = tensors(&batch)?;
        let loss = candle_nn::loss::cross_entropy(&model.logits(&pixels)?, &labels)?;
        optimizer.backward_step(&loss)?;
        if step % 20 == 0 || step == steps {
            println!("step {step}: loss {:.3}", loss.to_scalar::<f32>()?);
        }
    }
    let (mut right, mut total) = (0.0, 0);
    let mut batches = loader(&val, false)?;
    while let Some(batch) = batches.next_batch()? {
        let (pixels, labels) = tensors(&batch)?;
        let hits = model.logits(&pixels)?.argmax(D::Minus1)?.eq(&labels)?;
        right += hits.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        total += batch.len();
    }
    println!(
        "held-out accuracy {:.3} ({total} images)",
        right / total as f32
    );
    Ok(())
}
