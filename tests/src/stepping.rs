//! One training step on any device, as every comparison of devices does it.
use nepa_model::objective::{NextEmbedding, PretrainReport};
use nepa_model::step::adamw::AdamWSettings;
use nepa_model::step::device::Device;
use nepa_model::{FlatState, NepaConfig, Pass, RopeDraw, Step, StepOptions};

/// A published optimiser.
pub const ADAMW: AdamWSettings = AdamWSettings {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    average_decay: Some(0.99),
};

/// NEPA's pretraining step of these weights, for micro-batches of so many images.
pub fn pretraining<D: Device<Wide = f32>>(
    config: &NepaConfig,
    weights: &[f32],
    images: usize,
    device: D,
) -> Result<Step<D>, D::Error> {
    of_options(
        &StepOptions::pretraining(config, images),
        config,
        weights,
        device,
    )
}

/// A step of these weights and options.
pub fn of_options<D: Device<Wide = f32>>(
    options: &StepOptions,
    config: &NepaConfig,
    weights: &[f32],
    device: D,
) -> Result<Step<D>, D::Error> {
    let mut step = Step::new(config, options, device)?;
    step.load(&FlatState::new(weights.to_vec()))?;
    step.set_groups(|_| (0.1, 1.0))?;
    step.clear_gradient()?;
    Ok(step)
}

/// Adds the gradient of a micro-batch of the host.
pub fn add<D: Device<Wide = f32>>(
    step: &mut Step<D>,
    images: &[&[f32]],
    rope: &RopeDraw,
    share: f64,
) -> Result<PretrainReport, D::Error> {
    let staged = step.stage(images)?;
    let pass = Pass::of(rope);
    step.add_gradient(staged, images.len(), &pass, share, &mut NextEmbedding)
}
