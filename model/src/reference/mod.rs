//! The model of candle's operations and its autograd, on any device: slower and hungrier than a
//! [`crate::Step`], and independent of it. It is the oracle of tests and of `nepa verify`, draws
//! attention maps, and trains what a device's step cannot compute. Shapes: B batch, P patches, T
//! tokens (P + 1, or P in pretraining), D width, H heads, d = D / H.
mod classification;
mod composed;
mod forward;
mod model;
mod pass;
mod pretraining;

pub use classification::soft_cross_entropy;
pub use model::{Nepa, NepaOutput};
pub use pretraining::{PretrainDraw, PretrainLoss, pretrain_loss_of};

#[cfg(test)]
mod tests;
