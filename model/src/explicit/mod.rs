//! Forward and backward of pretraining written out by hand, over buffers that are made once: no
//! tape, nothing allocated in a step, no matrix of T x T scores in memory. Shapes: B images, P
//! patches, T tokens, N = B T rows, D width, H heads, d = D / H.
//!
//! It computes what [`crate::Nepa`] computes; that one is its oracle in tests. Work is split into
//! fixed pieces, so the number of threads changes no bit. Called by the trainer's engine.
mod attention;
mod backward;
mod forward;
mod matmul;
mod memory;
mod places;
mod vectorized;

use rayon::prelude::*;

use crate::ops::Real;
use crate::{ModelError, NepaConfig, RopeDraw};

pub use memory::MemoryPlan;

use matmul::Matrix;
pub(crate) use memory::Shape;
use memory::{Buffers, Scratches};
use places::{Linear, Norm, Places};
use vectorized::{Affine, HeadNorm, Rotary};

/// What the engine computes in: f32, and f64 for proofs.
pub trait Scalar: Real + Default {}
impl Scalar for f32 {}
impl Scalar for f64 {}

/// The mean loss of a micro-batch and its copy diagnostics, as in [`crate::PretrainLoss`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PretrainReport {
    /// `-mean cos(output[t], embedding[t + 1])`.
    pub loss: f64,
    /// Mean cosine of the prediction with the next embedding.
    pub cos_target: f64,
    /// Mean cosine of the prediction with the current embedding.
    pub cos_previous: f64,
    /// Share of positions where the second is greater.
    pub copy_win: f64,
}

/// The model's pretraining step with a forward and a backward of its own. Weights and gradient are
/// the caller's, flat, in the order of [`crate::Weights`].
#[derive(Debug)]
pub struct ExplicitNepa<T> {
    config: NepaConfig,
    shape: Shape,
    places: Places,
    buffers: Buffers<Vec<T>>,
    scratches: Scratches<T>,
}

impl<T: Scalar> ExplicitNepa<T> {
    /// Takes all memory for micro-batches of `micro_batch` images.
    pub fn new(config: &NepaConfig, micro_batch: usize) -> Result<Self, ModelError> {
        config.validate()?;
        let shape = Shape::new(config, micro_batch);
        Ok(Self {
            config: config.clone(),
            places: Places::new(config),
            buffers: Buffers::new(&shape, &mut |_, len| vec![T::default(); len]),
            scratches: Scratches::new(&shape),
            shape,
        })
    }

    /// The memory that [`Self::new`] takes.
    pub fn plan(config: &NepaConfig, micro_batch: usize) -> MemoryPlan {
        MemoryPlan::new(&Shape::new(config, micro_batch), size_of::<T>())
    }

    /// Loss of one micro-batch of images, `[C, S, S]` each, normalised. Adds `share` times its
    /// gradient to `gradient`, which is not yet the gradient of the weights around LayerScale:
    /// after the last micro-batch of a step call [`Self::finish`].
    pub fn add_gradient(
        &mut self,
        weights: &[T],
        images: &[&[T]],
        rope: &RopeDraw,
        share: f64,
        gradient: &mut [T],
    ) -> Result<PretrainReport, ModelError> {
        let config = &self.config;
        for got in [weights.len(), gradient.len()] {
            if got != self.places.len {
                return Err(ModelError::FlatLength {
                    got,
                    expected: self.places.len,
                });
            }
        }
        let (channels, size) = (config.num_channels, config.image_size);
        let wrong = images
            .iter()
            .find(|image| image.len() != channels * size * size);
        if images.len() != self.shape.batch || wrong.is_some() {
            return Err(ModelError::PixelShape {
                got: vec![
                    images.len(),
                    wrong.map_or(channels * size * size, |image| image.len()),
                ],
                channels,
                image_size: size,
            });
        }
        self.forward(weights, images, rope);
        Ok(self.backward(weights, share, gradient))
    }

    /// Turns what [`Self::add_gradient`] summed into the gradient of every weight.
    ///
    /// A block adds `scale * y`, `y = W a + b`. Its backward sums G = (dx)^T a and g = sum dx and
    /// never needs `y`: d scale = rows of G . W + g b, dW = scale G, db = scale g.
    pub fn finish(&mut self, weights: &[T], gradient: &mut [T]) {
        let dots = &mut self.buffers.partial_sums[..self.shape.width];
        for block in &self.places.blocks {
            for (linear, scale) in [
                (&block.attention_output, &block.attention_scale),
                (&block.down, &block.mlp_scale),
            ] {
                let scales = &weights[scale.clone()];
                let columns = linear.weight.len() / scales.len();
                dots.par_iter_mut()
                    .zip(gradient[linear.weight.clone()].par_chunks_mut(columns))
                    .zip(weights[linear.weight.clone()].par_chunks(columns))
                    .zip(scales)
                    .for_each(|(((dot, gradient), weights), scale)| {
                        vectorized::dot_rows(gradient, weights, columns, std::slice::from_mut(dot));
                        for value in gradient {
                            *value *= *scale;
                        }
                    });
                if let Some(bias) = &linear.bias {
                    let values = gradient[bias.clone()]
                        .iter_mut()
                        .zip(&weights[bias.clone()]);
                    for ((dot, scale), (gradient, bias)) in dots.iter_mut().zip(scales).zip(values)
                    {
                        *dot += *gradient * *bias;
                        *gradient *= *scale;
                    }
                }
                for (gradient, dot) in gradient[scale.clone()].iter_mut().zip(&*dots) {
                    *gradient += *dot;
                }
            }
        }
    }

    fn eps(&self) -> T {
        T::from_f64(self.config.layer_norm_eps)
    }
}

/// A LayerNorm's values.
fn affine<'a, T>(weights: &'a [T], norm: &Norm) -> Affine<'a, T> {
    let get = |range: &Option<std::ops::Range<usize>>| range.clone().map(|range| &weights[range]);
    Affine {
        weight: get(&norm.weight),
        bias: get(&norm.bias),
    }
}

/// QK-norm of queries and of keys, if the model has it.
fn head_norms<'a, T: Scalar>(
    config: &NepaConfig,
    weights: &'a [T],
    norms: &[Norm; 2],
) -> [Option<HeadNorm<'a, T>>; 2] {
    let eps = T::from_f64(config.layer_norm_eps);
    norms.each_ref().map(|norm| {
        config.qk_norm.then(|| HeadNorm {
            affine: affine(weights, norm),
            eps,
        })
    })
}

/// A linear layer's weight, `[out, inputs]`.
fn weight<'a, T>(weights: &'a [T], linear: &Linear, inputs: usize) -> Matrix<'a, T> {
    Matrix::new(&weights[linear.weight.clone()], inputs)
}

/// The table in the buffer.
fn rotary<T>(buffer: &[T]) -> Rotary<'_, T> {
    let (cos, sin) = buffer.split_at(buffer.len() / 2);
    Rotary { cos, sin }
}

#[cfg(test)]
mod tests;
