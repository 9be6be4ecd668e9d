//! The kernels of `optimizer.cu`.
use super::{Bf16, Launch, Plain, optional, optional_mut};

/// Mirror of `LayerScale`.
#[repr(C)]
#[derive(Debug)]
struct LayerScale {
    weight: *const f32,
    d_weight: *mut f32,
    bias: *const f32,
    d_bias: *mut f32,
    scale: *const f32,
    d_scale: *mut f32,
    columns: u32,
}
const _: () = assert!(size_of::<LayerScale>() == 56);

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

/// Mirror of `GradientNorm`.
#[repr(C)]
#[derive(Debug)]
struct GradientNorm {
    gradient: *const f32,
    partials: *mut f64,
    result: *mut NormResult,
    max_norm: f64,
    len: u64,
}
const _: () = assert!(size_of::<GradientNorm>() == 40);

/// Mirror of `Segment`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Segment {
    /// First element.
    pub start: u64,
    /// Behind the last one.
    pub end: u64,
    /// Decoupled.
    pub weight_decay: f64,
    /// Of the learning rate.
    pub lr_factor: f64,
}
const _: () = assert!(size_of::<Segment>() == 32);

impl super::sealed::Sealed for Segment {}
impl Plain for Segment {
    const UNWRITTEN: Self = Self {
        start: u64::MAX,
        end: 0,
        weight_decay: 0.0,
        lr_factor: 0.0,
    };
    fn is_unwritten(self) -> bool {
        self == Self::UNWRITTEN
    }
}

/// Mirror of `AdamW`.
#[repr(C)]
#[derive(Debug)]
struct AdamW {
    weights: *mut f32,
    gradient: *const f32,
    m: *mut f32,
    v: *mut f32,
    average: *mut f32,
    copy: *mut Bf16,
    segments: *const Segment,
    norm: *const NormResult,
    len: u64,
    lr: f64,
    correction1: f64,
    correction2: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    eps: f32,
    decay: f32,
    rest: f32,
    num_segments: u32,
}
const _: () = assert!(size_of::<AdamW>() == 128);

/// Mirror of `CopyToBf16`.
#[repr(C)]
#[derive(Debug)]
struct CopyToBf16 {
    values: *const f32,
    copy: *mut Bf16,
    len: u64,
}
const _: () = assert!(size_of::<CopyToBf16>() == 24);

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
        weight: weight.as_ptr(),
        d_weight: d_weight.as_mut_ptr(),
        bias: optional(bias.as_ref()),
        d_bias: optional_mut(d_bias.as_mut()),
        scale: scale.as_ptr(),
        d_scale: d_scale.as_mut_ptr(),
        columns: (linear.weight.len() / rows) as u32,
    };
    // SAFETY: all memory is as large as the kernel's file says for these rows and columns.
    unsafe {
        ffi::engine_shim_layer_scale_finish(&raw const args, rows as u32, launch.backward());
    }
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
    let mut partials = launch.output(gradient.len().div_ceil(16384));
    let mut result = launch.output(1);
    let args = GradientNorm {
        gradient: memory.as_mut_ptr(),
        partials: partials.as_mut_ptr(),
        result: result.as_mut_ptr(),
        max_norm,
        len: gradient.len() as u64,
    };
    // SAFETY: all memory is as large as the kernels' file says for this length.
    unsafe { ffi::engine_shim_gradient_norm(&raw const args, launch.backward()) };
    partials.written();
    result.written()[0]
}

/// Numbers of an update that are the same for all weights.
#[derive(Debug, Clone, Copy)]
pub struct AdamWNumbers {
    /// Learning rate.
    pub lr: f64,
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
        lr,
        step,
        betas: (beta1, beta2),
        eps,
        decay,
    } = numbers;
    let decay = if step == 1 { 0.0 } else { decay };
    let args = AdamW {
        weights: weights.as_mut_ptr(),
        gradient: gradient.as_ptr(),
        m: m.as_mut_ptr(),
        v: v.as_mut_ptr(),
        average: optional_mut(average.as_mut()),
        copy: optional_mut(copy.as_mut()),
        segments: segments_memory.as_ptr(),
        norm: norm.as_ptr(),
        len: len as u64,
        lr,
        correction1: 1.0 - beta1.powf(step as f64),
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
    // SAFETY: all memory is as large as the kernel's file says for this length, and the segments cover it.
    unsafe { ffi::engine_shim_adamw_update(&raw const args, launch.backward()) };
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
        values: values.as_ptr(),
        copy: copy.as_mut_ptr(),
        len: len as u64,
    };
    // SAFETY: both hold `len` values.
    unsafe { ffi::engine_shim_copy_to_bf16(&raw const args, launch.backward()) };
    copy.written()
}

mod ffi {
    use super::{AdamW, CopyToBf16, GradientNorm, LayerScale};

    unsafe extern "C" {
        pub(super) fn engine_shim_layer_scale_finish(
            args: *const LayerScale,
            rows: u32,
            backward: bool,
        );
        pub(super) fn engine_shim_gradient_norm(args: *const GradientNorm, backward: bool);
        pub(super) fn engine_shim_adamw_update(args: *const AdamW, backward: bool);
        pub(super) fn engine_shim_copy_to_bf16(args: *const CopyToBf16, backward: bool);
    }
}
