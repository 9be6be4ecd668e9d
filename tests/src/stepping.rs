//! One training step on any device, as every comparison of devices does it.
use nepa_model::objective::{Classification, ClassificationReport, NextEmbedding, PretrainReport};
use nepa_model::step::adamw::{AdamWSettings, WeightGroup};
use nepa_model::step::device::Device;
use nepa_model::{FlatState, NepaConfig, Pass, RopeDraw, Step, StepOptions};

/// A published optimiser.
pub const ADAMW: AdamWSettings = AdamWSettings {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    average_decay: Some(0.99),
};

/// The group of every weight.
pub const ONE_GROUP: WeightGroup = WeightGroup {
    weight_decay: 0.1,
    rate: 0,
    frozen: false,
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
    step.set_groups(|_| ONE_GROUP);
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

/// A fine-tuned classifier's step of a batch that comes in one micro-batch: what it reports, its
/// logits, the gradient and its norm, and all that an update leaves. The patch embedding is frozen,
/// the head has a rate of its own.
pub fn classify<D: Device<Wide = f32>>(
    config: &NepaConfig,
    weights: &[f32],
    images: &[&[f32]],
    targets: &[f32],
    pass: &Pass<'_>,
    device: D,
) -> Result<Classified, D::Error> {
    // Room for one image more.
    let options = StepOptions::training(config, images.len() + 1);
    let mut step = of_options(&options, config, weights, device)?;
    step.set_groups(|name| WeightGroup {
        rate: name.starts_with("classifier").into(),
        frozen: name.contains("patch_embeddings"),
        ..ONE_GROUP
    });
    let staged = step.stage(images)?;
    let mut objective = Classification::new(targets);
    let report = step.add_gradient(staged, images.len(), pass, 1.0, &mut objective)?;
    let logits = step.logits()?;
    let norm = step.finish(Some(1.0))?;
    let gradient = step.read_gradient()?;
    step.update(&ADAMW, &[1e-3, 1e-2])?;
    Ok(Classified {
        report,
        logits,
        norm,
        gradient,
        state: step.export()?,
    })
}

/// What [`classify`] gives.
#[derive(Debug, PartialEq)]
pub struct Classified {
    /// Of the micro-batch.
    pub report: ClassificationReport,
    /// `[B, K]`.
    pub logits: Vec<f32>,
    /// Before clipping.
    pub norm: f64,
    /// Of every weight.
    pub gradient: Vec<f32>,
    /// After the update.
    pub state: FlatState,
}
