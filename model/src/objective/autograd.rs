//! Any other loss of the encoder's output, as a small graph on candle's autograd: a classifier, a
//! decoder. The output goes to the host and its gradient comes back.
use candle_core::{Device as CandleDevice, Tensor, Var};

use super::objective::Objective;
use crate::ModelError;
use crate::step::Step;
use crate::step::device::{Device, NormBackward};

/// A scalar loss, and what is told of it.
#[derive(Debug)]
pub struct HeadLoss<R> {
    /// The mean over the micro-batch; a graph over the output.
    pub loss: Tensor,
    /// Told of the micro-batch.
    pub report: R,
    /// Weights of the head itself, whose gradients are wanted.
    pub weights: Vec<Var>,
}

/// `head` maps the final norm's output, `[B, T, D]`, to its loss.
#[derive(Debug)]
pub struct Autograd<F, R> {
    head: F,
    report: Option<R>,
    /// Of the head's own weights, times the share of the micro-batch, since they were taken last.
    gradients: Vec<Tensor>,
}

impl<F, R> Autograd<F, R>
where
    F: FnMut(&Tensor) -> Result<HeadLoss<R>, ModelError>,
{
    /// An objective of that head.
    pub fn new(head: F) -> Self {
        Self {
            head,
            report: None,
            gradients: Vec::new(),
        }
    }

    /// The sums of the gradients of the head's own weights since the last call, in the order of
    /// [`HeadLoss::weights`].
    pub fn take_gradients(&mut self) -> Vec<Tensor> {
        std::mem::take(&mut self.gradients)
    }

    /// The gradient of the output, times `share`.
    fn output_gradient(&mut self, output: &Var, share: f64) -> Result<Tensor, ModelError> {
        let HeadLoss {
            loss,
            report,
            weights,
        } = (self.head)(output.as_tensor())?;
        let mut store = (loss * share)?.backward()?;
        let missing = |name: &str| ModelError::MissingGradient { name: name.into() };
        let of_output = store.remove(output).ok_or_else(|| missing("the output"))?;
        for (number, weight) in weights.iter().enumerate() {
            let gradient = store.remove(weight);
            let gradient = gradient.ok_or_else(|| missing(&format!("head {number}")))?;
            match self.gradients.get_mut(number) {
                Some(sum) => *sum = (&*sum + gradient)?,
                None => self.gradients.push(gradient),
            }
        }
        self.report = Some(report);
        Ok(of_output)
    }
}

impl<D, F, R> Objective<D> for Autograd<F, R>
where
    D: Device,
    F: FnMut(&Tensor) -> Result<HeadLoss<R>, ModelError>,
{
    type Report = R;

    fn backward(&mut self, step: &mut Step<D>, share: f64) -> Result<(), D::Error> {
        let model = |error: candle_core::Error| D::Error::from(ModelError::Candle(error));
        let shape = step.shape();
        let dims = (shape.images, shape.tokens, shape.width);
        let output = Tensor::from_vec(step.read_output()?, dims, &CandleDevice::Cpu);
        let output = output.and_then(|output| Var::from_tensor(&output));
        let gradient = self.output_gradient(&output.map_err(model)?, share)?;
        let gradient = gradient.flatten_all().and_then(|flat| flat.to_vec1());
        let gradient: Vec<D::Wide> = gradient.map_err(model)?;

        let (norm, [d_weight, d_bias]) = (step.final_norm(), step.final_norm_gradients());
        let (d_normed, dx) = (step.product(), step.d_stream());
        let backward = NormBackward {
            rows: step.rows(),
            x: step.stream(shape.blocks),
            norm,
            again: false,
            d_normed,
            dx,
            d_weight,
            d_bias,
            added: step.last_branch_gradient(),
            partials: step.partials(),
        };
        let device = step.device_mut();
        device.write_narrow(d_normed, &gradient)?;
        device.zero(dx)?;
        device.norm_backward(&backward)
    }

    fn report(&mut self, _: &mut Step<D>) -> Result<R, D::Error> {
        self.report.take().ok_or_else(|| {
            D::Error::from(ModelError::Step {
                reason: "there was no backward pass",
            })
        })
    }
}
