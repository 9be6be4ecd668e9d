//! The cosine of each prediction with its target, a constant.
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use super::{ROWS_PER_PIECE, Real, Values, dtype, for_real, lanes, operand};

const NAME: &str = "cosine_rows";
/// Least length that a vector is divided by, as in `torch.nn.functional.normalize`.
const LEAST_LENGTH: f64 = 1e-12;

/// Cosines of the rows of `prediction` and `target`, both `[.., D]`; no gradient flows to `target`.
pub(crate) fn cosine_rows(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    prediction
        .contiguous()?
        .apply_op2(&target.detach().contiguous()?, CosineRows)
}

#[derive(Debug, Clone, Copy)]
struct CosineRows;

/// Inverse length of a row and whether the row is long enough to be divided by its own length.
fn inverse_length<T: Real>(row: &[T]) -> (T, bool) {
    let length = lanes(row, row, |x, y| x * y).sqrt();
    let least = T::from_f64(LEAST_LENGTH);
    if length > least {
        (T::one() / length, true)
    } else {
        (T::one() / least, false)
    }
}

impl CustomOp2 for CosineRows {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        p: &CpuStorage,
        lp: &Layout,
        z: &CpuStorage,
        lz: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if lp.shape() != lz.shape() {
            candle_core::bail!("cosine_rows: {:?} against {:?}", lp.dims(), lz.dims());
        }
        let mut dims = lp.dims().to_vec();
        let width = dims.pop().unwrap_or(1);
        for_real!(dtype(p), NAME, T => {
            let (p, z) = (operand::<T>(p, lp, NAME)?, operand::<T>(z, lz, NAME)?);
            let mut out = vec![T::from_f64(0.0); p.len() / width];
            out.par_iter_mut().zip(p.par_chunks(width)).zip(z.par_chunks(width)).with_min_len(ROWS_PER_PIECE).for_each(
                |((out, p), z)| *out = lanes(p, z, |p, z| p * z) * inverse_length(p).0 * inverse_length(z).0,
            );
            Ok((T::to_cpu_storage_owned(out), dims.into()))
        })
    }

    /// d cos / d p = (z / |z| - cos * p / |p|) / |p|; below the least length, p is divided by a
    /// constant.
    fn bwd(
        &self,
        p: &Tensor,
        z: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let width = p.dim(candle_core::D::Minus1)?;
        let values = (
            Values::of(p, NAME)?,
            Values::of(z, NAME)?,
            Values::of(&grad, NAME)?,
        );
        for_real!(p.dtype(), NAME, T => {
            let (p_values, z, grad) = (values.0.get::<T>()?, values.1.get::<T>()?, values.2.get::<T>()?);
            let mut dp = vec![T::from_f64(0.0); p_values.len()];
            dp.par_chunks_mut(width).enumerate().with_min_len(ROWS_PER_PIECE).for_each(|(row, dp)| {
                let (p, z) = (&p_values[row * width..][..width], &z[row * width..][..width]);
                let ((p_inverse, divided), (z_inverse, _)) = (inverse_length(p), inverse_length(z));
                let cosine = lanes(p, z, |p, z| p * z) * p_inverse * z_inverse;
                let along = if divided { cosine * p_inverse } else { T::from_f64(0.0) };
                for (i, dp) in dp.iter_mut().enumerate() {
                    *dp = grad[row] * p_inverse * (z[i] * z_inverse - along * p[i]);
                }
            });
            Ok((Some(Tensor::from_vec(dp, p.shape(), p.device())?), None))
        })
    }
}
