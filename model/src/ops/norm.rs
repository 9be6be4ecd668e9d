//! LayerNorm over the last dimension, with or without weight and bias, statistics in two passes.
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{ROWS_PER_PIECE, Real, Values, dtype, for_real, lanes, operand, sum_rows};

const NAME: &str = "layer_norm";

/// `(x - mean) / sqrt(var + eps) * weight + bias` over each `width` consecutive values of `x` (a
/// token, or one head of it).
pub(crate) fn layer_norm(
    x: &Tensor,
    width: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let op = LayerNorm { eps, width };
    match (weight, bias) {
        (None, None) => x.apply_op1(op),
        (Some(weight), None) => x.apply_op2(weight, op),
        (Some(weight), Some(bias)) => x.apply_op3(weight, bias, op),
        (None, Some(_)) => candle_core::bail!("layer_norm: a bias without a weight"),
    }
}

#[derive(Debug, Clone, Copy)]
struct LayerNorm {
    eps: f64,
    width: usize,
}

/// Mean and inverse standard deviation of one row.
fn statistics<T: Real>(row: &[T], eps: f64) -> (T, T) {
    let n = T::from_f64(row.len() as f64);
    let mean = lanes(row, row, |x, _| x) / n;
    let variance = lanes(row, row, |x, _| (x - mean) * (x - mean)) / n;
    (mean, T::one() / (variance + T::from_f64(eps)).sqrt())
}

impl LayerNorm {
    fn forward<T: Real>(self, x: &[T], weight: Option<&[T]>, bias: Option<&[T]>) -> Vec<T> {
        let width = self.width;
        let mut out = vec![T::zero(); x.len()];
        let piece = width * ROWS_PER_PIECE;
        out.par_chunks_mut(piece)
            .zip(x.par_chunks(piece))
            .for_each(|(out, x)| {
                for (out, row) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let (mean, scale) = statistics(row, self.eps);
                    for (value, x) in out.iter_mut().zip(row) {
                        *value = (*x - mean) * scale;
                    }
                    if let Some(weight) = weight {
                        out.iter_mut()
                            .zip(weight)
                            .for_each(|(value, w)| *value *= *w);
                    }
                    if let Some(bias) = bias {
                        out.iter_mut().zip(bias).for_each(|(value, b)| *value += *b);
                    }
                }
            });
        out
    }

    /// Gradients of x, weight and bias. With n = normalised x and h = grad * weight: dx = scale *
    /// (h - mean(h) - n * mean(h n)).
    fn backward<T: Real>(
        self,
        x: &[T],
        weight: Option<&[T]>,
        grad: &[T],
    ) -> (Vec<T>, Vec<T>, Vec<T>) {
        let width = self.width;
        let n = T::from_f64(width as f64);
        let mut dx = vec![T::zero(); x.len()];
        let piece = width * ROWS_PER_PIECE;
        dx.par_chunks_mut(piece)
            .enumerate()
            .for_each(|(index, dx)| {
                let ones = vec![T::one(); width];
                let weight = weight.unwrap_or(&ones);
                for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
                    let first = index * piece + row * width;
                    let (x, grad) = (&x[first..first + width], &grad[first..first + width]);
                    let (mean, scale) = statistics(x, self.eps);
                    // h in place of dx, then dx.
                    for ((h, grad), weight) in dx.iter_mut().zip(grad).zip(weight) {
                        *h = *grad * *weight;
                    }
                    let mean_h = lanes(dx, dx, |h, _| h) / n;
                    let mean_hn = lanes(dx, x, |h, x| h * ((x - mean) * scale)) / n;
                    for (dx, x) in dx.iter_mut().zip(x) {
                        *dx = scale * (*dx - mean_h - (*x - mean) * scale * mean_hn);
                    }
                }
            });
        if weight.is_none() {
            return (dx, Vec::new(), Vec::new());
        }
        let sums = sum_rows(x.len() / width, 2 * width, |row, sums| {
            let (x, grad) = (
                &x[row * width..(row + 1) * width],
                &grad[row * width..(row + 1) * width],
            );
            let (mean, scale) = statistics(x, self.eps);
            let (for_weight, for_bias) = sums.split_at_mut(width);
            for (((for_weight, for_bias), grad), x) in
                for_weight.iter_mut().zip(for_bias).zip(grad).zip(x)
            {
                *for_weight += *grad * (*x - mean) * scale;
                *for_bias += *grad;
            }
        });
        let (for_weight, for_bias) = sums.split_at(width);
        (dx, for_weight.to_vec(), for_bias.to_vec())
    }

    fn gradients(
        self,
        x: &Tensor,
        weight: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let grad = grad.contiguous()?;
        let (x_values, grad_values) = (Values::of(x, NAME)?, Values::of(&grad, NAME)?);
        let weight_values = weight.map(|weight| Values::of(weight, NAME)).transpose()?;
        for_real!(x.dtype(), NAME, T => {
            let weight = weight_values.as_ref().map(Values::get::<T>).transpose()?;
            let (dx, dw, db) = self.backward(x_values.get::<T>()?, weight, grad_values.get::<T>()?);
            let vector = |values: Vec<T>| Tensor::from_vec(values, self.width, x.device());
            let (dw, db) = if weight.is_some() { (Some(vector(dw)?), Some(vector(db)?)) } else { (None, None) };
            Ok([Some(Tensor::from_vec(dx, x.shape(), x.device())?), dw, db])
        })
    }
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype(x), NAME, T => {
            let out = self.forward(operand::<T>(x, lx, NAME)?, None, None);
            Ok((candle_core::WithDType::to_cpu_storage_owned(out), lx.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [dx, _, _] = self.gradients(x, None, grad)?;
        Ok(dx)
    }
}

impl CustomOp2 for LayerNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype(x), NAME, T => {
            let weight = operand::<T>(w, lw, NAME)?;
            let out = self.forward(operand::<T>(x, lx, NAME)?, Some(weight), None);
            Ok((candle_core::WithDType::to_cpu_storage_owned(out), lx.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = self.gradients(x, Some(w), grad)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype(x), NAME, T => {
            let (weight, bias) = (operand::<T>(w, lw, NAME)?, operand::<T>(b, lb, NAME)?);
            let out = self.forward(operand::<T>(x, lx, NAME)?, Some(weight), Some(bias));
            Ok((candle_core::WithDType::to_cpu_storage_owned(out), lx.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _b: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = self.gradients(x, Some(w), grad)?;
        Ok((dx, dw, db))
    }
}
