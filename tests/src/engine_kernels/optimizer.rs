//! The kernels of `optimizer.cu`.
pub use nepa_model::cuda::arguments::Segment;
use nepa_model::cuda::arguments::{AdamW, CopyToBf16, GradientNorm, LayerScale};

use super::{Bf16, Launch, Plain, optional, optional_mut};

/// Mirror of `NormResult`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormResult {
    /// Before clipping.
    pub norm: f64,
    /// To multiply gradients by.
    pub clip: f32,
    /// 0 or 1.
    pub finite: u32,
}
const _: () = assert!(size_of::<NormResult>() == 16);

impl super::sealed::Sealed for NormResult {}
impl Plain for NormResult {
    const UNWRITTEN: Self = Self {
        norm: f64::UNWRITTEN,
        clip: f32::UNWRITTEN,
        finite: u32::MAX,
    };
    fn is_unwritten(self) -> bool {
        self.norm.is_unwritten() || self.clip.is_unwritten() || self.finite == u32::MAX
    }
}

impl super::sealed::Sealed for Segment {}
impl Plain for Segment {
    const UNWRITTEN: Self = Self {
        start: u64::MAX,
        end: 0,
        keep: 0.0,
        step_size: 0.0,
        frozen: 0,
        unused: 0,
    };
    fn is_unwritten(self) -> bool {
        self == Self::UNWRITTEN
    }
}

/// A linear layer `[D, K]`, or its gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaledLinear {
    /// `[D, K]`.
    pub weight: Vec<f32>,
    /// `[D]`.
    pub bias: Option<Vec<f32>>,
    /// `[D]`.
    pub scale: Vec<f32>,
}

/// `layer_scale_finish`: the gradients of weight, bias and LayerScale from those of the layer without it.
pub fn layer_scale_finish(
    launch: Launch,
    linear: &ScaledLinear,
    gradient: &ScaledLinear,
) -> ScaledLinear {
    let rows = linear.scale.len();
    let weight = launch.input(&linear.weight);
    let bias = linear.bias.as_ref().map(|bias| launch.input(bias));
    let scale = launch.input(&linear.scale);
    let mut d_weight = launch.changed(&gradient.weight);
    let mut d_bias = gradient.bias.as_ref().map(|bias| launch.changed(bias));
    let mut d_scale = launch.changed(&gradient.scale);
    let args = LayerScale {
        weight: weight.address(),
        d_weight: d_weight.address_mut(),
        bias: optional(bias.as_ref()),
        d_bias: optional_mut(d_bias.as_mut()),
        scale: scale.address(),
        d_scale: d_scale.address_mut(),
        columns: (linear.weight.len() / rows) as u32,
    };
    launch.run(args.launch(rows as u32));
    ScaledLinear {
        weight: d_weight.written(),
        bias: d_bias.map(super::Memory::written),
        scale: d_scale.written(),
    }
}

/// `norm_partials` and `norm_final`.
pub fn gradient_norm(launch: Launch, gradient: &[f32], max_norm: f64) -> NormResult {
    // Not the other way round: a gradient may hold a NaN, which is not what it was.
    let mut memory = launch.changed(gradient);
    let mut partials = launch.output::<f64>(gradient.len().div_ceil(16384));
    let mut result = launch.output::<NormResult>(1);
    let args = GradientNorm {
        gradient: memory.address_mut(),
        partials: partials.address_mut(),
        result: result.address_mut(),
        max_norm,
        len: gradient.len() as u64,
    };
    for kernel in args.launches() {
        launch.run(kernel);
    }
    partials.written();
    result.written()[0]
}

/// Numbers of an update that are the same for all weights.
#[derive(Debug, Clone, Copy)]
pub struct AdamWNumbers {
    /// Updates so far, with this one.
    pub step: u64,
    /// Decays of the moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Of the average.
    pub decay: f64,
}

/// What an update changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Updated {
    /// Masters.
    pub weights: Vec<f32>,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// Moving average, if one is kept.
    pub average: Option<Vec<f32>>,
    /// The masters as bf16, if they are wanted.
    pub copy: Option<Vec<Bf16>>,
}

/// `adamw_update`. In the first step the average may hold anything.
pub fn adamw_update(
    launch: Launch,
    before: &Updated,
    gradient: &[f32],
    segments: &[Segment],
    norm: NormResult,
    numbers: AdamWNumbers,
) -> Updated {
    let len = before.weights.len();
    assert!(segments[0].start == 0 && segments[segments.len() - 1].end == len as u64);
    assert!(segments.windows(2).all(|two| two[0].end == two[1].start));
    let gradient = launch.input(gradient);
    let (segments_memory, norm) = (launch.input(segments), launch.input(&[norm]));
    let mut weights = launch.changed(&before.weights);
    let (mut m, mut v) = (launch.changed(&before.m), launch.changed(&before.v));
    let mut average = before
        .average
        .as_ref()
        .map(|average| launch.changed(average));
    let mut copy = before.copy.as_ref().map(|copy| launch.changed(copy));
    let AdamWNumbers {
        step,
        betas: (beta1, beta2),
        eps,
        decay,
    } = numbers;
    let decay = if step == 1 { 0.0 } else { decay };
    let args = AdamW {
        weights: weights.address_mut(),
        gradient: gradient.address(),
        m: m.address_mut(),
        v: v.address_mut(),
        average: optional_mut(average.as_mut()),
        copy: optional_mut(copy.as_mut()),
        segments: segments_memory.address(),
        norm: norm.address(),
        len: len as u64,
        correction2: (1.0 - beta2.powf(step as f64)).sqrt() as f32,
        beta1: beta1 as f32,
        rest1: (1.0 - beta1) as f32,
        beta2: beta2 as f32,
        rest2: (1.0 - beta2) as f32,
        eps: eps as f32,
        decay: decay as f32,
        rest: (1.0 - decay) as f32,
        num_segments: segments.len() as u32,
    };
    launch.run(args.launch());
    Updated {
        weights: weights.written(),
        m: m.written(),
        v: v.written(),
        average: average.map(super::Memory::written),
        copy: copy.map(super::Memory::written),
    }
}

/// `copy_to_bf16`.
pub fn copy_to_bf16(launch: Launch, values: &[f32]) -> Vec<Bf16> {
    let len = values.len();
    let values = launch.input(values);
    let mut copy = launch.output(len);
    let args = CopyToBf16 {
        values: values.address(),
        copy: copy.address_mut(),
        len: len as u64,
    };
    launch.run(args.launch());
    copy.written()
}
