//! The models that are measured and compared, and their pixels.
use std::sync::Arc;

use candle_core::Device;
use nepa_model::cuda::{CudaLauncher, KernelDevice};
use nepa_model::{NepaConfig, Step, Weights, init_weights};
use nepa_pipeline::{cuda::cudarc::driver::CudaContext, cuda::cudarc::driver::CudaStream};
use nepa_tests::step_variants::variants_of;
use nepa_tests::stepping;
use nepa_trainer::device::{self, DeviceChoice};

/// A published model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Model {
    B14,
    L14,
}

impl Model {
    /// Its name and architecture, or with `tiny` a small one in its place.
    pub(crate) fn config(self, tiny: bool) -> (&'static str, NepaConfig) {
        match (self, tiny) {
            (Self::B14, false) => ("B/14", NepaConfig::base_14()),
            (Self::L14, false) => ("L/14", NepaConfig::large_14()),
            (Self::B14, true) => ("tiny for B/14", small(true)),
            (Self::L14, true) => (
                "tiny for L/14",
                NepaConfig {
                    qk_norm_affine: true,
                    ..small(true)
                },
            ),
        }
    }
}

/// Heads of 64, 64 patches or with `tiny` 16; LayerScale such that the blocks matter.
pub(crate) fn small(tiny: bool) -> NepaConfig {
    let small = NepaConfig {
        hidden_size: 192,
        num_attention_heads: 3,
        num_hidden_layers: 3,
        intermediate_size: 384,
        image_size: 112,
        patch_size: 14,
        layerscale_value: Some(0.5),
        ..NepaConfig::base_14()
    };
    if !tiny {
        return small;
    }
    NepaConfig {
        hidden_size: 128,
        num_attention_heads: 2,
        num_hidden_layers: 2,
        intermediate_size: 192,
        image_size: 32,
        patch_size: 8,
        ..small
    }
}

/// The small model with every other part of the architecture, and with as many tokens as B/14.
pub(crate) fn variants(tiny: bool) -> [(&'static str, NepaConfig); 4] {
    let small = small(tiny);
    let [gelu, gated, bidirectional] = variants_of(&small);
    let many = NepaConfig {
        num_hidden_layers: 1,
        image_size: 16 * small.patch_size,
        ..small
    };
    [gelu, gated, bidirectional, ("256 tokens", many)]
}

/// `batch` images `[3, S, S]` that differ.
pub(crate) fn pixels(config: &NepaConfig, batch: usize) -> Vec<Vec<f32>> {
    let len = 3 * config.image_size * config.image_size;
    let value = |image: usize, i: usize| {
        let noise = (i * 31 + image * 7919) % 255;
        ((i * (image + 3)) as f32 / 997.0).sin() * 0.7 + noise as f32 / 255.0 - 0.5
    };
    let image = |image| (0..len).map(|i| value(image, i)).collect();
    (0..batch).map(image).collect()
}

pub(crate) fn weights(config: &NepaConfig) -> Weights {
    let mut weights = init_weights(config, 3);
    for spec in weights.specs.clone() {
        if spec.shape.len() > 1 {
            for value in &mut weights.flat[spec.range()] {
                *value *= 2.0;
            }
        }
    }
    weights
}

/// The device as a run opens it, with a stream of its own.
pub(crate) fn device() -> anyhow::Result<Device> {
    Ok(device::open(DeviceChoice::Cuda(0))?)
}

pub(crate) fn stream() -> anyhow::Result<Arc<CudaStream>> {
    Ok(CudaContext::new(0)?.new_stream()?)
}

/// A step that holds these weights.
pub(crate) fn step(
    config: &NepaConfig,
    weights: &Weights,
    batch: usize,
) -> anyhow::Result<Step<KernelDevice<CudaLauncher>>> {
    let device = KernelDevice::new(CudaLauncher::new(stream()?)?);
    Ok(stepping::pretraining(config, &weights.flat, batch, device)?)
}
