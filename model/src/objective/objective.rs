//! What an objective is, and how a step follows one.
use crate::ModelError;
use crate::step::device::Device;
use crate::step::{Pass, Step};

/// A loss of the encoder's output.
pub trait Objective<D: Device> {
    /// What is told of one micro-batch.
    type Report;

    /// After a forward pass: writes the gradient of the stream behind the last block, times
    /// `share`, with what its last branch needs; adds the gradient of the final norm.
    fn backward(&mut self, step: &mut Step<D>, share: f64) -> Result<(), D::Error>;

    /// After the backward pass: what was found. May wait for the device.
    fn report(&mut self, step: &mut Step<D>) -> Result<Self::Report, D::Error>;
}

impl<D: Device> Step<D> {
    /// Adds `share` times the gradient of an objective's loss on a micro-batch of `images` images.
    /// It is not yet the gradient of the weights around LayerScale: before the first micro-batch of
    /// a step comes [`Self::begin_gradient`] (or [`Self::clear_gradient`], which adds each to all
    /// before it), after the last one [`Self::finish`].
    pub fn add_gradient<O: Objective<D>>(
        &mut self,
        pixels: D::Pixels<'_>,
        images: usize,
        pass: &Pass<'_>,
        share: f64,
        objective: &mut O,
    ) -> Result<O::Report, D::Error> {
        if !self.options().trains {
            return Err(D::Error::from(ModelError::Step {
                reason: "it was made for inference and has no gradient",
            }));
        }
        self.check_sum()?;
        self.begin_micro_batch()?;
        self.forward(pixels, images, pass)?;
        objective.backward(self, share)?;
        self.backward()?;
        self.end_micro_batch()?;
        objective.report(self)
    }
}
