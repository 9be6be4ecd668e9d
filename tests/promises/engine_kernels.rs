//! The kernels of the training step, run on the CPU: each writes its outputs and nothing else, and gives the same bits whatever the order of its threads.
//! Some agree with a twin in f64; all are compared with the CPU as operations of the step (`operations.rs`).
//!
//! How near is near: a bf16 is off by at most 2^-8 of its value, and whatever a kernel computes in f32 by a few 2^-24 of the terms that it adds.
use nepa_tests::engine_kernels::twins::Sum;
use nepa_tests::engine_kernels::{Bf16, Launch, bf16, widen};

mod activation;
mod attention;
mod embed;
mod loss;
mod norm;
mod optimizer;
mod shim;

/// Half a unit in the last place of a bf16, relative to its value.
const BF16: f64 = 1.0 / 256.0;
/// Relative error of a few operations in f32.
const F32: f64 = 1e-6;

/// Random numbers of these tests (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Mean 0, variance 1, between -3.5 and 3.5.
    fn normal(&mut self) -> f64 {
        let uniform = |bits: u64| bits as f64 / 2f64.powi(64);
        let sum: f64 = (0..4).map(|_| uniform(self.next()) - 0.5).sum();
        sum * 3f64.sqrt()
    }

    pub(super) fn f32s(&mut self, len: usize, mean: f64, deviation: f64) -> Vec<f32> {
        (0..len)
            .map(|_| (mean + deviation * self.normal()) as f32)
            .collect()
    }

    fn bf16s(&mut self, len: usize, deviation: f64) -> Vec<Bf16> {
        self.f32s(len, 0.0, deviation)
            .into_iter()
            .map(bf16)
            .collect()
    }

    /// Drop path's factors: some images are dropped, the others count for more.
    pub(super) fn factors(&mut self, images: usize) -> Vec<f32> {
        let mut factors = self.f32s(images, 1.3, 0.1);
        factors.iter_mut().skip(1).step_by(3).for_each(|f| *f = 0.0);
        factors
    }

    /// Numbers below `end`, each once, in some order.
    pub(super) fn order(&mut self, end: u32) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..end).collect();
        numbers.sort_by_cached_key(|_| self.next());
        numbers
    }
}

/// As the twins read them.
trait Wide {
    fn wide(&self) -> Vec<f64>;
}

impl Wide for [f32] {
    fn wide(&self) -> Vec<f64> {
        self.iter().map(|value| f64::from(*value)).collect()
    }
}

impl Wide for [Bf16] {
    fn wide(&self) -> Vec<f64> {
        self.iter().map(|value| f64::from(widen(*value))).collect()
    }
}

/// Makes a launch in every way; its result, if it is always the same.
#[track_caller]
fn launched<Output: PartialEq>(run: impl Fn(Launch) -> Output) -> Output {
    let [first, others @ ..] = Launch::ALL;
    let output = run(first);
    for other in others {
        assert!(run(other) == output, "{other:?} gives another result");
    }
    output
}

/// Each value is off by at most `relative` of the expected one and `absolute`.
#[track_caller]
fn assert_close<Values: Wide + ?Sized>(
    name: &str,
    got: &Values,
    expected: &[f64],
    relative: f64,
    absolute: f64,
) {
    let got = got.wide();
    assert_eq!(got.len(), expected.len(), "{name}: number of values");
    for (place, (got, expected)) in got.iter().zip(expected).enumerate() {
        let bound = relative * expected.abs() + absolute;
        assert!(
            (got - expected).abs() <= bound,
            "{name}[{place}] is {got}, not {expected} (+- {bound})"
        );
    }
}

/// Each sum is off by at most [`F32`] of the size of its terms, and by `of_terms` of it where the terms themselves are not exact.
#[track_caller]
fn assert_sums(name: &str, got: &[f32], expected: &[Sum], of_terms: f64) {
    assert_eq!(got.len(), expected.len(), "{name}: number of sums");
    for (place, (got, expected)) in got.iter().zip(expected).enumerate() {
        let bound = (F32 + of_terms) * expected.size + f64::from(f32::MIN_POSITIVE);
        assert!(
            (f64::from(*got) - expected.value).abs() <= bound,
            "{name}[{place}] is {got}, not {} (+- {bound})",
            expected.value
        );
    }
}

/// Holds a gradient to finite differences of the function, both in f64.
#[track_caller]
fn assert_gradient(name: &str, at: &[f64], gradient: &[f64], function: impl Fn(&[f64]) -> f64) {
    assert_eq!(at.len(), gradient.len());
    let step = 1e-5;
    let size = gradient.iter().fold(0.0, |most: f64, g| most.max(g.abs()));
    for i in 0..at.len() {
        let moved = |by: f64| {
            let mut at = at.to_vec();
            at[i] += by;
            function(&at)
        };
        let difference = (moved(step) - moved(-step)) / (2.0 * step);
        assert!(
            (difference - gradient[i]).abs() <= 1e-6 * size.max(1e-3),
            "{name}[{i}] is {}, by differences {difference}",
            gradient[i]
        );
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
