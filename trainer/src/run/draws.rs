//! A step's draws: what each forward pass drops and turns, how images are mixed with one another,
//! and what the model should say of them.
use std::ops::Range;

use candle_core::{DType, Tensor};
use nepa_pipeline::{ImageMix, MixPlan};
use rayon::prelude::*;

use super::batches::TrainBatch;
use crate::engine::{Engine, EngineError, Images, PassDraw, StepInput, StepReport};
use crate::ranks::Ranks;
use crate::recipe::ResolvedRecipe;

/// The micro-batches of each step that a rank computes. What is drawn for one depends on its number
/// among all, and not on the rank.
pub(crate) fn micro_batches(recipe: &ResolvedRecipe, ranks: &Ranks) -> Range<usize> {
    let own = recipe.train.accumulation / ranks.size();
    ranks.rank() * own..(ranks.rank() + 1) * own
}

/// All that a step needs beside its images.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepDraws {
    /// One a micro-batch.
    pub passes: Vec<PassDraw>,
    /// How the images of each micro-batch are mixed; empty where none are.
    pub mixes: Vec<MixPlan>,
    /// What a classifier should say, `[B, K]`.
    pub targets: Option<Vec<f32>>,
}

impl StepDraws {
    /// Of images that are not mixed, and have no labels.
    pub(crate) fn of(passes: Vec<PassDraw>) -> Self {
        Self {
            passes,
            mixes: Vec::new(),
            targets: None,
        }
    }

    /// Mixes and computes a step. `scratch` is memory for mixed images, kept from step to step.
    pub(crate) fn step(
        &self,
        engine: &mut dyn Engine,
        batch: &TrainBatch,
        scratch: &mut Vec<f32>,
    ) -> Result<StepReport, EngineError> {
        batch.with_images(|images| {
            let with = |engine: &mut dyn Engine, images: Images<'_>| {
                engine.step(&StepInput {
                    images,
                    targets: self.targets.as_deref(),
                    passes: &self.passes,
                })
            };
            let is_alone = |plan: &MixPlan| plan.images.iter().all(|mix| *mix == ImageMix::Alone);
            if self.mixes.iter().all(is_alone) {
                return with(engine, *images);
            }
            match images {
                Images::Host(images) => {
                    mix(images, &self.mixes, scratch);
                    let len = scratch.len() / images.len();
                    let mixed = scratch.chunks_exact(len).collect::<Vec<_>>();
                    with(engine, Images::Host(&mixed))
                }
                Images::Device(images) => {
                    let mixed = mix_tensor(images, &self.mixes)?;
                    with(engine, Images::Device(&mixed))
                }
            }
        })
    }
}

/// Mixes images that lie in host memory into `output`, image by image.
fn mix(images: &[&[f32]], plans: &[MixPlan], output: &mut Vec<f32>) {
    let (len, of_plan) = (images[0].len(), images.len() / plans.len());
    output.resize(images.len() * len, 0.0);
    output
        .par_chunks_exact_mut(len)
        .enumerate()
        .for_each(|(i, output)| {
            let (number, position) = (i / of_plan, i % of_plan);
            let plan = &plans[number];
            let partner = number * of_plan + plan.partner(position);
            plan.mix_image(position, images[i], images[partner], output);
        });
}

/// Mixes images `[B, 3, S, S]` where they lie, by operations of tensors: a share and a mask of each
/// image, `x * own + partner * other`.
fn mix_tensor(images: &Tensor, plans: &[MixPlan]) -> candle_core::Result<Tensor> {
    let (batch, _, side, _) = images.dims4()?;
    let (device, of_plan) = (images.device(), batch / plans.len());
    let mut partners = Vec::with_capacity(batch);
    let mut shares = vec![1f32; batch * side * side];
    for (i, shares) in shares.chunks_exact_mut(side * side).enumerate() {
        let (number, position) = (i / of_plan, i % of_plan);
        let plan = &plans[number];
        partners.push((number * of_plan + plan.partner(position)) as u32);
        match &plan.images[position] {
            ImageMix::Alone => {}
            ImageMix::Mixup { lambda } => shares.fill(*lambda as f32),
            ImageMix::CutMix(cut) => {
                let columns = cut.left as usize..cut.right as usize;
                for row in cut.top as usize..cut.bottom as usize {
                    shares[row * side..][columns.clone()].fill(0.0);
                }
            }
        }
    }
    let partners = Tensor::from_vec(partners, batch, device)?;
    let own = Tensor::from_vec(shares, (batch, 1, side, side), device)?;
    let rest = own.affine(-1.0, 1.0)?;
    let wide = images.to_dtype(DType::F32)?;
    let partner = wide.index_select(&partners, 0)?;
    let mixed = (wide.broadcast_mul(&own)? + partner.broadcast_mul(&rest)?)?;
    mixed.to_dtype(images.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use nepa_pipeline::random::{Purpose, micro_batch_stream};
    use nepa_pipeline::{MixConfig, MixMode};

    use super::*;

    /// Two micro-batches of four images, mixed in memory and as a tensor.
    #[test]
    fn images_are_mixed_alike_wherever_they_lie() {
        let side = 6usize;
        let len = 3 * side * side;
        let pixels = (0..8 * len).map(|i| (i * 37 % 251) as f32 / 125.0 - 1.0);
        let pixels = pixels.collect::<Vec<f32>>();
        let images = pixels.chunks_exact(len).collect::<Vec<_>>();
        let tensor = Tensor::from_slice(&pixels, (8, 3, side, side), &Device::Cpu).unwrap();
        let config = MixConfig {
            mixup_alpha: 0.8,
            cutmix_alpha: 1.0,
            mode: MixMode::Elem,
            ..MixConfig::default()
        };
        let mut seen = [0; 2];
        for step in 0..20 {
            let plans = [0, 1].map(|micro_batch| {
                let mut stream = micro_batch_stream(1, step, micro_batch, Purpose::MixImages);
                MixPlan::draw(&config, 4, side as u32, &mut stream).unwrap()
            });
            let mut mixed = Vec::new();
            mix(&images, &plans, &mut mixed);
            let of_tensor = mix_tensor(&tensor, &plans).unwrap();
            let of_tensor = of_tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (found, expected) in of_tensor.iter().zip(&mixed) {
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
            // The partner is of the same micro-batch.
            for (number, plan) in plans.iter().enumerate() {
                let half = number * 4 * len..(number + 1) * 4 * len;
                let mut alone = pixels[half.clone()].to_vec();
                plan.apply(&mut alone);
                assert_eq!(alone, mixed[half]);
                for mix in &plan.images {
                    seen[usize::from(matches!(mix, ImageMix::CutMix(_)))] += 1;
                }
            }
        }
        assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
    }
}
