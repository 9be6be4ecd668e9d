//! `x W^T + b`, and the residual sum `x + scale * y` of LayerScale.
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use super::{ROWS_PER_PIECE, Real, Values, dtype, for_real, map_rows, operand, sum_rows};

const LINEAR: &str = "linear";
const ADD_SCALED: &str = "add_scaled";

/// `x [.., in]` times `weight [out, in]` transposed, plus `bias [out]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let x = x.contiguous()?;
    match bias {
        Some(bias) => x.apply_op3(weight, bias, Linear),
        None => x.apply_op2(weight, Linear),
    }
}

/// `x + scale * y` with `scale [D]` over the last dimension.
pub(crate) fn add_scaled(x: &Tensor, y: &Tensor, scale: &Tensor) -> Result<Tensor> {
    x.contiguous()?
        .apply_op3(&y.contiguous()?, scale, AddScaled)
}

#[derive(Debug, Clone, Copy)]
struct Linear;

impl Linear {
    /// One matrix product over all rows, whatever the leading dimensions.
    fn product(
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (start, end) = lx
            .contiguous_offsets()
            .ok_or_else(|| candle_core::Error::RequiresContiguous { op: LINEAR }.bt())?;
        let (num_out, num_in) = lw.shape().dims2()?;
        let rows = (end - start) / num_in;
        let as_matrix = Layout::contiguous_with_offset((rows, num_in), start);
        let out = x.matmul(
            w,
            (1, rows, num_out, num_in),
            &as_matrix,
            &lw.transpose(0, 1)?,
        )?;
        let mut dims = lx.dims().to_vec();
        if dims.pop() != Some(num_in) {
            candle_core::bail!(
                "linear: input {:?} against weight {:?}",
                lx.dims(),
                lw.dims()
            );
        }
        dims.push(num_out);
        Ok((out, dims.into()))
    }

    fn gradients(x: &Tensor, w: &Tensor, grad: &Tensor, bias: bool) -> Result<[Option<Tensor>; 3]> {
        let (num_out, num_in) = w.dims2()?;
        let grad = grad.contiguous()?.reshape(((), num_out))?;
        let rows = grad.dim(0)?;
        // Constants (the pixels) need no gradient.
        let dx = if x.track_op() {
            Some(grad.matmul(&w.detach())?.reshape(x.shape())?)
        } else {
            None
        };
        let dw = grad.t()?.matmul(&x.detach().reshape((rows, num_in))?)?;
        let db = if bias {
            let values = Values::of(&grad, LINEAR)?;
            Some(for_real!(grad.dtype(), LINEAR, T => {
                let values = values.get::<T>()?;
                let sums = sum_rows::<T>(rows, num_out, |row, sums| {
                    sums.iter_mut().zip(&values[row * num_out..]).for_each(|(sum, g)| *sum += *g);
                });
                Tensor::from_vec(sums, num_out, grad.device())
            })?)
        } else {
            None
        };
        Ok([dx, Some(dw), db])
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        LINEAR
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::product(x, lx, w, lw)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = Self::gradients(x, w, grad, false)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        LINEAR
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
        let (out, shape) = Self::product(x, lx, w, lw)?;
        for_real!(dtype(&out), LINEAR, T => {
            let bias = operand::<T>(b, lb, LINEAR)?;
            let mut values = T::cpu_storage_data(out)?;
            values.par_chunks_mut(bias.len() * ROWS_PER_PIECE).for_each(|rows| {
                for row in rows.chunks_exact_mut(bias.len()) {
                    row.iter_mut().zip(bias).for_each(|(value, b)| *value += *b);
                }
            });
            Ok((T::to_cpu_storage_owned(values), shape))
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
        let [dx, dw, db] = Self::gradients(x, w, grad, true)?;
        Ok((dx, dw, db))
    }
}

#[derive(Debug, Clone, Copy)]
struct AddScaled;

impl AddScaled {
    /// Gradients of y and scale; x's is the incoming one.
    fn backward<T: Real>(y: &[T], scale: &[T], grad: &[T]) -> (Vec<T>, Vec<T>) {
        let width = scale.len();
        let dy = map_rows(grad, grad, scale, |g, _, s| g * s);
        let d_scale = sum_rows(y.len() / width, width, |row, sums| {
            let first = row * width;
            for ((sum, grad), y) in sums.iter_mut().zip(&grad[first..]).zip(&y[first..]) {
                *sum += *grad * *y;
            }
        });
        (dy, d_scale)
    }
}

impl CustomOp3 for AddScaled {
    fn name(&self) -> &'static str {
        ADD_SCALED
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        y: &CpuStorage,
        ly: &Layout,
        s: &CpuStorage,
        ls: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if lx.shape() != ly.shape() || lx.dims().last() != ls.dims().last() {
            candle_core::bail!(
                "add_scaled: {:?} + {:?} * {:?}",
                lx.dims(),
                ls.dims(),
                ly.dims()
            );
        }
        for_real!(dtype(x), ADD_SCALED, T => {
            let (x, y) = (operand::<T>(x, lx, ADD_SCALED)?, operand::<T>(y, ly, ADD_SCALED)?);
            let scale = operand::<T>(s, ls, ADD_SCALED)?;
            let out = map_rows(x, y, scale, |x, y, s| x + s * y);
            Ok((T::to_cpu_storage_owned(out), lx.shape().clone()))
        })
    }

    fn bwd(
        &self,
        _x: &Tensor,
        y: &Tensor,
        s: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let values = (
            Values::of(y, ADD_SCALED)?,
            Values::of(s, ADD_SCALED)?,
            Values::of(&grad, ADD_SCALED)?,
        );
        for_real!(y.dtype(), ADD_SCALED, T => {
            let (dy, ds) = Self::backward(values.0.get::<T>()?, values.1.get::<T>()?, values.2.get::<T>()?);
            let dy = Tensor::from_vec(dy, y.shape(), y.device())?;
            let ds = Tensor::from_vec(ds, s.shape(), s.device())?;
            Ok((Some(grad.clone()), Some(dy), Some(ds)))
        })
    }
}
