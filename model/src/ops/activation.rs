//! The MLP's activations, plain and gated (`act(gate) * up`).
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

use super::{Real, Values, dtype, for_real, map2, map3, operand};
use crate::HiddenAct;

const NAME: &str = "activation";

/// `act(x)`.
pub(crate) fn activate(x: &Tensor, act: HiddenAct) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Activation { act })
}

/// `act(gate) * up`.
pub(crate) fn activate_gated(gate: &Tensor, up: &Tensor, act: HiddenAct) -> Result<Tensor> {
    gate.contiguous()?
        .apply_op2(&up.contiguous()?, Activation { act })
}

#[derive(Debug, Clone, Copy)]
struct Activation {
    act: HiddenAct,
}

#[expect(
    clippy::inline_always,
    reason = "a call would keep the caller's loop from being vectorised"
)]
impl HiddenAct {
    #[inline(always)]
    pub(crate) fn value<T: Real>(self, x: T) -> T {
        match self {
            Self::Gelu => {
                T::from_f64(0.5)
                    * x
                    * (T::one() + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
            }
            Self::Silu => x / (T::one() + (-x).exp()),
            Self::Relu => {
                if x > T::zero() {
                    x
                } else {
                    T::zero()
                }
            }
        }
    }

    #[inline(always)]
    pub(crate) fn slope<T: Real>(self, x: T) -> T {
        let half = T::from_f64(0.5);
        match self {
            Self::Gelu => {
                // The normal distribution's function and its density.
                let below =
                    half * (T::one() + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf());
                let density = (-half * x * x).exp() * T::from_f64(0.398_942_280_401_432_7);
                below + x * density
            }
            Self::Silu => {
                let sigmoid = T::one() / (T::one() + (-x).exp());
                sigmoid * (T::one() + x * (T::one() - sigmoid))
            }
            Self::Relu => {
                if x > T::zero() {
                    T::one()
                } else {
                    T::zero()
                }
            }
        }
    }
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype(x), NAME, T => {
            let x = operand::<T>(x, lx, NAME)?;
            let out = map2(x, x, |x, _| self.act.value(x));
            Ok((T::to_cpu_storage_owned(out), lx.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let values = (Values::of(x, NAME)?, Values::of(&grad, NAME)?);
        for_real!(x.dtype(), NAME, T => {
            let (x_values, grad) = (values.0.get::<T>()?, values.1.get::<T>()?);
            let dx = map2(x_values, grad, |x, grad| grad * self.act.slope(x));
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

impl CustomOp2 for Activation {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        g: &CpuStorage,
        lg: &Layout,
        u: &CpuStorage,
        lu: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if lg.shape() != lu.shape() {
            candle_core::bail!("activation: gate {:?} against {:?}", lg.dims(), lu.dims());
        }
        for_real!(dtype(g), NAME, T => {
            let (gate, up) = (operand::<T>(g, lg, NAME)?, operand::<T>(u, lu, NAME)?);
            let out = map2(gate, up, |gate, up| self.act.value(gate) * up);
            Ok((T::to_cpu_storage_owned(out), lg.shape().clone()))
        })
    }

    fn bwd(
        &self,
        g: &Tensor,
        u: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let values = (
            Values::of(g, NAME)?,
            Values::of(u, NAME)?,
            Values::of(&grad, NAME)?,
        );
        for_real!(g.dtype(), NAME, T => {
            let (gate, up, grad) = (values.0.get::<T>()?, values.1.get::<T>()?, values.2.get::<T>()?);
            let d_gate = map3(gate, up, grad, |gate, up, grad| grad * up * self.act.slope(gate));
            let d_up = map2(gate, grad, |gate, grad| grad * self.act.value(gate));
            let tensor = |values: Vec<T>| Tensor::from_vec(values, g.shape(), g.device());
            Ok((Some(tensor(d_gate)?), Some(tensor(d_up)?)))
        })
    }
}
