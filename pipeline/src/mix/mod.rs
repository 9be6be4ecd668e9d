//! Mixup (Zhang et al., <https://arxiv.org/abs/1710.09412>) and CutMix (Yun et al.,
//! <https://arxiv.org/abs/1905.04899>) of the images of a micro-batch, and their soft targets, as
//! timm 1.0.22 has them.
//!
//! Everything random is drawn into a [`MixPlan`] first, from a stream that the caller makes
//! ([`crate::random::micro_batch_stream`]); then pixels are mixed and targets made by the plan
//! alone. For whoever trains a classifier from the loader's batches; the loader itself mixes
//! nothing. Shapes: B images, S side in pixels, K classes.

mod apply;
mod config;
mod plan;
#[cfg(test)]
mod tests;

pub use config::{MixConfig, MixError, MixMode};
pub use plan::{CutBox, ImageMix, MixPlan};
