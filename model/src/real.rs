//! The floating point types of the CPU's steps, with functions that the compiler can vectorise.
use candle_core::WithDType;

/// What a step computes in on the CPU: f32, and f64 for proofs.
pub trait Real: WithDType + Default + std::ops::Neg<Output = Self> + std::iter::Sum {
    /// The square root.
    #[must_use]
    fn sqrt(self) -> Self;
    /// e to this power.
    #[must_use]
    fn exp(self) -> Self;
    /// The error function.
    #[must_use]
    fn erf(self) -> Self;
    /// The values, if they are f32.
    fn as_f32(values: &[Self]) -> Option<&[f32]>;
    /// The values, if they are f32.
    fn as_f32_mut(values: &mut [Self]) -> Option<&mut [f32]>;
}

#[expect(
    clippy::inline_always,
    reason = "a call would keep the caller's loop from being vectorised"
)]
impl Real for f32 {
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    /// By halves of the exponent and a polynomial (that of Cephes), which the compiler can
    /// vectorise; off by less than 2e-7 of the value, and at least 1e-38.
    #[inline(always)]
    fn exp(self) -> Self {
        let x = self.clamp(-87.3, 88.3);
        // Adding this puts the nearest integer into the lowest bits.
        let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
        let n = shifted - 12_582_912.0;
        let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
        let p = 1.987_569_2e-4 * r + 1.398_199_9e-3;
        let p = p * r + 8.333_452e-3;
        let p = p * r + 4.166_579_6e-2;
        let p = p * r + 1.666_666_5e-1;
        let p = p * r + 5e-1;
        let y = p * (r * r) + r + 1.0;
        y * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
    }
    /// A rational approximation on [-4, 4] (the one of Eigen and XLA), which the compiler can
    /// vectorise; off by less than 5e-7.
    #[inline(always)]
    fn erf(self) -> Self {
        let x = self.clamp(-4.0, 4.0);
        let s = x * x;
        let p = -2.726_142e-10 * s + 2.770_681_4e-8;
        let p = p * s - 2.101_024e-6;
        let p = p * s - 5.692_506_4e-5;
        let p = p * s - 7.349_906_3e-4;
        let p = p * s - 2.954_6e-3;
        let p = p * s - 1.609_603_3e-2;
        let q = -1.456_607_2e-5 * s - 2.133_740_5e-4;
        let q = q * s - 1.682_827e-3;
        let q = q * s - 7.373_329_2e-3;
        let q = q * s - 1.426_473_9e-2;
        x * p / q
    }
    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
    fn as_f32_mut(values: &mut [Self]) -> Option<&mut [f32]> {
        Some(values)
    }
}

impl Real for f64 {
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
    fn as_f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
}
