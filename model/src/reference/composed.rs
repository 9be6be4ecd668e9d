//! The model's operations, composed of candle's. Residual stream, norms and softmax stay in the
//! model's type; only the operands of matmuls may be bfloat16, whose sums candle keeps in f32.
use candle_core::{D, DType, Device, Result, Tensor};

use crate::HiddenAct;
use crate::rotary::RotaryTable;

/// What one forward pass needs on the device.
#[derive(Debug, Clone)]
pub(super) struct Composed {
    matmul: DType,
    /// `[T, d]`, the second half of a head as the first.
    cos: Tensor,
    sin: Tensor,
    /// `[T, T]`: 0 where a token sees another, minus infinity where not.
    mask: Option<Tensor>,
}

impl Composed {
    /// For passes of the first T = `num_tokens` tokens of the table, heads of `half` * 2 values, in
    /// `dtype`; operands of matmuls are cast to `matmul`.
    pub(super) fn new(
        table: &RotaryTable,
        half: usize,
        num_tokens: usize,
        causal: bool,
        dtype: DType,
        matmul: DType,
        device: &Device,
    ) -> Result<Self> {
        let whole = |values: &[f64]| {
            let values = values[..num_tokens * half].to_vec();
            let values = Tensor::from_vec(values, (num_tokens, half), device)?.to_dtype(dtype)?;
            Tensor::cat(&[&values, &values], 1)
        };
        let mask = causal.then(|| {
            let values = (0..num_tokens)
                .flat_map(|row| (0..num_tokens).map(move |column| (row, column)))
                .map(
                    |(row, column)| {
                        if column > row { f32::NEG_INFINITY } else { 0.0 }
                    },
                )
                .collect::<Vec<_>>();
            Tensor::from_vec(values, (num_tokens, num_tokens), device)?.to_dtype(dtype)
        });
        Ok(Self {
            matmul,
            cos: whole(&table.cos)?,
            sin: whole(&table.sin)?,
            mask: mask.transpose()?,
        })
    }

    fn matmul(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        if self.matmul == x.dtype() {
            return x.matmul(y);
        }
        x.to_dtype(self.matmul)?
            .matmul(&y.to_dtype(self.matmul)?)?
            .to_dtype(x.dtype())
    }

    pub(super) fn linear(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (num_out, num_in) = weight.dims2()?;
        let mut shape = x.dims().to_vec();
        let rows = x.elem_count() / num_in;
        let out = self.matmul(&x.contiguous()?.reshape((rows, num_in))?, &weight.t()?)?;
        let out = match bias {
            Some(bias) => out.broadcast_add(bias)?,
            None => out,
        };
        if let Some(last) = shape.last_mut() {
            *last = num_out;
        }
        out.reshape(shape)
    }

    pub(super) fn split_heads(&self, x: &Tensor, heads: usize, rotated: bool) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let head = width / heads;
        let x = x
            .reshape((batch, tokens, heads, head))?
            .transpose(1, 2)?
            .contiguous()?;
        if !rotated {
            return Ok(x);
        }
        let (first, second) = (
            x.narrow(D::Minus1, 0, head / 2)?,
            x.narrow(D::Minus1, head / 2, head / 2)?,
        );
        let turned = Tensor::cat(&[&second.neg()?, &first], D::Minus1)?;
        x.broadcast_mul(&self.cos)? + turned.broadcast_mul(&self.sin)?
    }

    pub(super) fn attention_scores(&self, q: &Tensor, k: &Tensor) -> Result<Tensor> {
        self.matmul(q, &k.t()?.contiguous()?)
    }

    pub(super) fn softmax(&self, scores: &Tensor, scale: f64) -> Result<Tensor> {
        let scores = (scores * scale)?;
        let scores = match &self.mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let largest = scores.max_keepdim(D::Minus1)?.detach();
        let powers = scores.broadcast_sub(&largest)?.exp()?;
        powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
    }

    pub(super) fn attend(&self, seen: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.matmul(seen, &v.contiguous()?)
    }
}

pub(super) fn merge_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, tokens, head) = x.dims4()?;
    x.transpose(1, 2)?
        .contiguous()?
        .reshape((batch, tokens, heads * head))
}

pub(super) fn layer_norm(
    x: &Tensor,
    width: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let rows = x.contiguous()?.reshape((x.elem_count() / width, width))?;
    let centred = rows.broadcast_sub(&rows.mean_keepdim(1)?)?;
    let variance = centred.sqr()?.mean_keepdim(1)?;
    let mut out = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    if let Some(weight) = weight {
        out = out.broadcast_mul(weight)?;
    }
    if let Some(bias) = bias {
        out = out.broadcast_add(bias)?;
    }
    out.reshape(x.shape())
}

pub(super) fn activate(x: &Tensor, act: HiddenAct) -> Result<Tensor> {
    match act {
        // Not candle's `gelu_erf`, whose gradient is good to seven digits.
        HiddenAct::Gelu => (x * 0.5)? * ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?,
        HiddenAct::Silu => x.silu(),
        HiddenAct::Relu => x.relu(),
    }
}

/// Cosines of the rows of both, `[.., D]`. A row shorter than 1e-12 is divided by that, as in
/// `torch.nn.functional.normalize`.
pub(super) fn cosine_rows(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    let unit = |x: &Tensor| {
        let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
        x.broadcast_div(&length.maximum(1e-12)?)
    };
    (unit(prediction)? * unit(target)?)?.sum(D::Minus1)
}

/// The logarithm of softmax over the last axis.
pub(super) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let largest = x.max_keepdim(D::Minus1)?.detach();
    let x = x.broadcast_sub(&largest)?;
    x.broadcast_sub(&x.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
