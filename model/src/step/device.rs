//! What a training step asks of a device: memory in regions, and one method an operation.
//!
//! Shapes: B images, P patches, T tokens, N = B T rows, D width, H heads, d = D / H. All matrices
//! are row-major. Operations are done in the order in which they are asked for.
use std::fmt::Debug;
use std::ops::Range;

use super::adamw::{AdamW, Group};
use super::options::{Kept, StepOptions};
use super::plan::MemoryPlan;
use crate::real::Real;
use crate::{HiddenAct, ModelError, NepaConfig};

/// A run of values in a device's memory. The default is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    /// Bytes from the start of the memory to the first value.
    pub start: u64,
    /// Number of values.
    pub len: usize,
    /// Bytes of a value.
    pub value_bytes: u64,
}

impl Region {
    /// `len` of its values, from the one at `first` on.
    #[must_use]
    pub fn part(self, first: usize, len: usize) -> Self {
        assert!(first + len <= self.len, "a part of a region");
        Self {
            start: self.start + first as u64 * self.value_bytes,
            len,
            ..self
        }
    }

    /// Its first `len` values.
    #[must_use]
    pub fn first(self, len: usize) -> Self {
        self.part(0, len)
    }

    /// Its bytes.
    pub fn num_bytes(self) -> u64 {
        self.len as u64 * self.value_bytes
    }
}

/// Bytes behind a region that belong to none; see [`Device::RED_ZONE_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedZone {
    /// What the region before them holds.
    pub behind: &'static str,
    /// From the start of the memory.
    pub bytes: Range<u64>,
}

/// What a device is told about its memory when it takes it.
#[derive(Debug, Clone, Default)]
pub struct MemoryMap {
    /// All of it.
    pub num_bytes: u64,
    /// Where no operation may write.
    pub red_zones: Vec<RedZone>,
    /// The device's own, of [`Device::own_bytes`].
    pub own: Region,
}

/// A factor of a matmul.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// Narrow values.
    pub region: Region,
    /// Values from one row in memory to the next.
    pub stride: usize,
    /// Whether the operand is the transpose of what lies in memory.
    pub transposed: bool,
}

impl Operand {
    /// A matrix of rows of `columns` values without gaps.
    pub fn rows(region: Region, columns: usize) -> Self {
        Self {
            region,
            stride: columns,
            transposed: false,
        }
    }

    /// The transpose of such a matrix.
    pub fn transposed(region: Region, columns: usize) -> Self {
        Self {
            transposed: true,
            ..Self::rows(region, columns)
        }
    }
}

/// Where the result of a matmul goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Narrow values, with a narrow bias `[n]`, or none.
    Narrow(Option<Region>),
    /// Wide values, with a wide bias `[n]`, or none.
    Wide(Option<Region>),
    /// Added to the wide values that are there.
    Sum,
}

/// `C [m, n] = A [m, k] B [k, n]`, sums in wide values.
#[derive(Debug, Clone, Copy)]
pub struct Matmul {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Left factor.
    pub a: Operand,
    /// Right factor.
    pub b: Operand,
    /// `[m, n]` without gaps.
    pub c: Region,
    /// Its kind.
    pub output: Output,
}

/// Images to rows of patches.
#[derive(Debug, Clone, Copy)]
pub struct Patchify {
    /// `[B P, columns]`, narrow: a patch's channels, in each its rows of pixels; then zeros.
    pub patches: Region,
    /// B.
    pub images: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Rows and columns of patches of an image.
    pub grid: [usize; 2],
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Values of a row of `patches`.
    pub columns: usize,
}

/// Which tokens an image has: token 0 is the class token, token 1 + k its k-th patch, or its k-th
/// kept one.
#[derive(Debug, Clone, Copy)]
pub struct Tokens {
    /// B.
    pub images: usize,
    /// P.
    pub patches: usize,
    /// T.
    pub tokens: usize,
    /// D.
    pub width: usize,
    /// Which patches each image keeps, `[B, T - 1]` indices, and which token each patch is,
    /// `[B, P]` indices, 0 where it is none. `None`: the first T - 1 patches.
    pub kept: Option<[Region; 2]>,
}

/// Patch embeddings to the first stream: `x = [class token, embeddings]`.
#[derive(Debug, Clone, Copy)]
pub struct Assemble {
    /// Which and how many.
    pub tokens: Tokens,
    /// `[B P, D]`, wide.
    pub embedding: Region,
    /// `[D]`, wide.
    pub class_token: Region,
    /// `[N, D]`, wide.
    pub x: Region,
}

/// The backward of [`Assemble`].
#[derive(Debug, Clone, Copy)]
pub struct Disassemble {
    /// Which and how many.
    pub tokens: Tokens,
    /// `[N, D]`, wide: the gradient of the stream.
    pub dx: Region,
    /// `[B P, D]`, narrow: zero for patches that are no token.
    pub d_embedding: Region,
    /// `[D]`, wide, added to: gradient of the class token.
    pub d_class_token: Region,
    /// `[D]`, wide, added to: sum of the rows of `d_embedding`.
    pub d_bias: Region,
    /// See [`Device::partial_values`].
    pub partials: Region,
}

/// Sizes of an operation over rows of the stream.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// N.
    pub rows: usize,
    /// D.
    pub width: usize,
    /// T: row r belongs to image r / T.
    pub tokens: usize,
    /// Added to a variance.
    pub eps: f64,
}

/// A LayerNorm: weights, result, and what its backward wants to know.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// `[D]`, wide.
    pub weight: Region,
    /// `[D]`, wide.
    pub bias: Region,
    /// `[N, D]`, narrow: `(x - mean) * rstd * weight + bias`.
    pub normed: Region,
    /// `[N]`, wide.
    pub mean: Region,
    /// `[N]`, wide: one over the standard deviation.
    pub rstd: Region,
}

/// What scales a branch on its way into the stream: `x + factor * scale * y`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Branch {
    /// LayerScale, `[D]`, wide; none is 1.
    pub scale: Option<Region>,
    /// Drop path: a factor an image, `[B]`, wide; none is 1.
    pub factors: Option<Region>,
}

/// `x_out = x + factor * scale * y`, and perhaps the norm of that.
#[derive(Debug, Clone, Copy)]
pub struct AddBranch {
    /// Sizes.
    pub rows: Rows,
    /// `[N, D]`, wide.
    pub x: Region,
    /// `[N, D]`, narrow: the branch.
    pub y: Region,
    /// What scales it.
    pub branch: Branch,
    /// `[N, D]`, wide.
    pub x_out: Region,
    /// Of `x_out`.
    pub norm: Option<Norm>,
}

/// What the gradient of the stream becomes for the branch that was added to it last.
#[derive(Debug, Clone, Copy)]
pub struct BranchGradient {
    /// What scales it.
    pub branch: Branch,
    /// `[N, D]`, narrow: `factor * dx`. `None` where `dx` itself serves.
    pub factored: Option<Region>,
    /// `[N, D]`, narrow: `factor * scale * dx`. `None` without a scale.
    pub scaled: Option<Region>,
    /// `[D]`, wide, added to: sum of the rows of `factor * dx`.
    pub d_bias: Region,
}

/// The backward of a [`Norm`] of the stream.
#[derive(Debug, Clone, Copy)]
pub struct NormBackward {
    /// Sizes.
    pub rows: Rows,
    /// `[N, D]`, wide: the norm's input.
    pub x: Region,
    /// The norm.
    pub norm: Norm,
    /// Whether `norm.normed` was not kept and is to be written again.
    pub again: bool,
    /// `[N, D]`, narrow: gradient of `norm.normed`.
    pub d_normed: Region,
    /// `[N, D]`, wide: gradient of the stream, to which that of `x` is added.
    pub dx: Region,
    /// `[D]`, wide, added to.
    pub d_weight: Region,
    /// `[D]`, wide, added to.
    pub d_bias: Region,
    /// The branch whose sum with the stream `x` is.
    pub added: Option<BranchGradient>,
    /// See [`Device::partial_values`].
    pub partials: Region,
}

/// The activation of an MLP: `result = act(x)`, or `act(gate) * up` of rows that hold up, then
/// gate.
#[derive(Debug, Clone, Copy)]
pub struct Activation {
    /// N.
    pub rows: usize,
    /// Width of the result.
    pub width: usize,
    /// Whether there is a gate.
    pub gated: bool,
    /// Which.
    pub act: HiddenAct,
    /// `[N, width]`, or with a gate twice as wide; narrow.
    pub x: Region,
    /// `[N, width]`, narrow.
    pub result: Region,
}

/// The backward of an [`Activation`].
#[derive(Debug, Clone, Copy)]
pub struct ActivationBackward {
    /// The forward.
    pub forward: Activation,
    /// Whether `forward.result` was not kept and is to be written again.
    pub again: bool,
    /// `[N, width]`, narrow: gradient of the result.
    pub d_result: Region,
    /// Gradient of x, narrow.
    pub dx: Region,
    /// Wide, added to: sum of the rows of `dx`.
    pub d_bias: Region,
    /// See [`Device::partial_values`].
    pub partials: Region,
}

/// Attention: of queries, keys and values side by side to what the heads find. Queries and keys are
/// normalised (QK-norm) where the model asks for it, then rotated.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// B.
    pub images: usize,
    /// T.
    pub tokens: usize,
    /// H.
    pub heads: usize,
    /// d.
    pub head_size: usize,
    /// Whether a token sees itself and those before only.
    pub causal: bool,
    /// Whether queries and keys are normalised.
    pub qk_norm: bool,
    /// Added to a variance of theirs.
    pub eps: f64,
    /// Weight and bias of the query's norm, then of the key's, `[d]` each, wide.
    pub head_norms: [Option<Region>; 4],
    /// Cosines and sines, `[T, d / 2]` each, wide; with `table_per_image` `[B, T, d / 2]`.
    pub rotary: [Region; 2],
    /// Whether each image has a table of its own.
    pub table_per_image: bool,
    /// `[N, 3 D]`, narrow.
    pub qkv: Region,
    /// `[N, D]`, narrow.
    pub out: Region,
    /// [`Device::SOFTMAX_VALUES`] for each query of each head, wide.
    pub softmax: Region,
}

/// The backward of [`Attention`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionBackward {
    /// The forward.
    pub forward: Attention,
    /// `[N, D]`, narrow.
    pub d_out: Region,
    /// `[N, 3 D]`, narrow.
    pub d_qkv: Region,
    /// `[3 D]`, wide, added to: sum of the rows of `d_qkv`.
    pub d_qkv_bias: Option<Region>,
    /// As [`Attention::head_norms`]; added to.
    pub d_head_norms: [Option<Region>; 4],
    /// See [`Device::attention_partial_values`].
    pub partials: Region,
}

/// The final norm, NEPA's cosine loss and the gradient of the stream before the norm, which is
/// written anew. As a target, the embedding is a constant.
#[derive(Debug, Clone, Copy)]
pub struct CosineLoss {
    /// Sizes; B is `rows.rows / rows.tokens`.
    pub rows: Rows,
    /// P: the first P tokens of an image predict, of T = P or P + 1.
    pub patches: usize,
    /// `[N, D]`, wide: the stream behind the last block.
    pub x: Region,
    /// Of the final norm, `[D]`, wide.
    pub weight: Region,
    /// Of the final norm, `[D]`, wide.
    pub bias: Region,
    /// `[B P, D]`, wide: row t of an image is what token t predicts.
    pub next: Region,
    /// `[N, D]`, wide: what token t is.
    pub current: Region,
    /// The gradient of the loss by one cosine.
    pub factor: f64,
    /// `[N, D]`, wide.
    pub dx: Region,
    /// `[D]`, wide, added to.
    pub d_weight: Region,
    /// `[D]`, wide, added to.
    pub d_bias: Region,
    /// The last branch.
    pub added: Option<BranchGradient>,
    /// See [`Device::partial_values`].
    pub partials: Region,
}

/// What a classifier takes of each image: `pooled = mean over its last tokens of Norm(x)`. The
/// normed stream itself is not written.
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    /// Sizes; B is `rows.rows / rows.tokens`.
    pub rows: Rows,
    /// M: the last so many tokens of an image are taken, at least one.
    pub taken: usize,
    /// `[N, D]`, wide: the stream behind the last block.
    pub x: Region,
    /// Of the final norm, `[D]`, wide.
    pub weight: Region,
    /// Of the final norm, `[D]`, wide.
    pub bias: Region,
    /// `[B, D]`, wide.
    pub pooled: Region,
}

impl Pool {
    /// B.
    pub fn images(&self) -> usize {
        self.rows.rows / self.rows.tokens
    }
}

/// The backward of [`Pool`]: the gradient of the stream before the final norm, written anew, and
/// zero for the tokens that are not taken.
#[derive(Debug, Clone, Copy)]
pub struct PoolBackward {
    /// As in [`Pool`].
    pub rows: Rows,
    /// As in [`Pool`].
    pub taken: usize,
    /// As in [`Pool`].
    pub x: Region,
    /// As in [`Pool`].
    pub weight: Region,
    /// `[B, D]`, wide: the gradient of `pooled`.
    pub d_pooled: Region,
    /// `[N, D]`, wide.
    pub dx: Region,
    /// `[D]`, wide, added to.
    pub d_weight: Region,
    /// `[D]`, wide, added to.
    pub d_bias: Region,
    /// The last branch.
    pub added: Option<BranchGradient>,
    /// See [`Device::partial_values`].
    pub partials: Region,
}

/// The end of the gradient of a linear layer inside of a LayerScale, `y = scale * (W a + b)`.
///
/// The backward sums G = (dx)^T a and g = sum dx, and never needs y: d scale = rows of G . W + g b,
/// dW = scale G, db = scale g.
#[derive(Debug, Clone, Copy)]
pub struct LayerScale {
    /// `[D, columns]`, wide.
    pub weight: Region,
    /// G, becomes dW.
    pub d_weight: Region,
    /// `[D]`.
    pub bias: Region,
    /// g, becomes db.
    pub d_bias: Region,
    /// `[D]`.
    pub scale: Region,
    /// Added to.
    pub d_scale: Region,
    /// Inputs of the layer.
    pub columns: usize,
}

/// One flat arena each, wide, in the order of [`super::Layout`].
#[derive(Debug, Clone, Copy)]
pub struct Arenas {
    /// Weights.
    pub weights: Region,
    /// Sums of their gradients.
    pub gradient: Region,
    /// First moments.
    pub m: Region,
    /// Second moments.
    pub v: Region,
    /// Moving average of the weights.
    pub average: Region,
    /// The weights in narrow values; the weights themselves where both are one type.
    pub narrow: Region,
}

/// It has memory, and does the operations of a step on it.
///
/// It computes in two types: weights, the stream, statistics and sums are "wide" (f32 on a GPU),
/// what matmuls read and write is "narrow" (bf16 there). On the CPU both are one.
pub trait Device {
    /// The wide type.
    type Wide: Real;
    /// Where some images are, `[C, height, width]` each, normalised.
    type Pixels<'a>: Copy;
    /// What can go wrong.
    type Error: From<ModelError> + Debug;

    /// Whether narrow values are a type of their own.
    const HAS_NARROW: bool;
    /// Bytes of a narrow value.
    const NARROW_BYTES: u64;
    /// Values that the forward pass of attention leaves of each query's softmax.
    const SOFTMAX_VALUES: usize;
    /// Whether images of the host are copied into a region first.
    const STAGES_PIXELS: bool;
    /// What is kept without being asked for.
    const KEPT: Kept;
    /// Bytes to leave behind each region, a multiple of 256, for a device that looks whether
    /// something was written past a region's end.
    const RED_ZONE_BYTES: u64 = 0;

    /// Whether it can compute a model.
    fn check(config: &NepaConfig, options: &StepOptions) -> Result<(), ModelError>;
    /// Values that an operation needs for the sums of pieces of `rows` rows, `columns` a piece.
    fn partial_values(rows: usize, columns: usize) -> usize;
    /// The same for the backward of attention.
    fn attention_partial_values(images: usize, heads: usize, head_size: usize) -> usize;
    /// Bytes of memory that it wants for itself, for so many rows, weights and groups of them.
    fn own_bytes(_rows: usize, _weights: usize, _groups: usize) -> u64 {
        0
    }
    /// What it takes outside of this memory.
    fn beside(_config: &NepaConfig, _options: &StepOptions) -> MemoryPlan {
        MemoryPlan::default()
    }

    /// Takes the memory, once, for such passes of a model. It may hold anything.
    fn allocate(
        &mut self,
        map: MemoryMap,
        config: &NepaConfig,
        options: &StepOptions,
    ) -> Result<(), Self::Error>;
    /// Copies wide values to the device; they may be changed when it returns.
    fn write(&mut self, to: Region, values: &[Self::Wide]) -> Result<(), Self::Error>;
    /// Copies wide values from the device, after all that was asked for before.
    fn read(&mut self, from: Region, values: &mut [Self::Wide]) -> Result<(), Self::Error>;
    /// Copies values to a region of narrow ones.
    fn write_narrow(&mut self, to: Region, values: &[Self::Wide]) -> Result<(), Self::Error>;
    /// Copies values from a region of narrow ones.
    fn read_narrow(&mut self, from: Region, values: &mut [Self::Wide]) -> Result<(), Self::Error>;
    /// Copies indices to a region of as many wide values.
    fn write_indices(&mut self, to: Region, indices: &[u32]) -> Result<(), Self::Error>;
    /// Writes zeros.
    fn zero(&mut self, region: Region) -> Result<(), Self::Error>;
    /// Adds wide values to as many others, value by value.
    fn add(&mut self, sums: Region, values: Region) -> Result<(), Self::Error>;
    /// Makes narrow copies of wide values; nothing where both are one type.
    fn narrow(&mut self, wide: Region, narrow: Region) -> Result<(), Self::Error>;
    /// Images of the host as pixels; copied into a region of wide values if the device does that.
    fn stage<'a>(
        &mut self,
        images: &'a [&'a [Self::Wide]],
        region: Region,
    ) -> Result<Self::Pixels<'a>, Self::Error>;

    /// See [`Patchify`].
    fn patchify(&mut self, pixels: Self::Pixels<'_>, args: &Patchify) -> Result<(), Self::Error>;
    /// See [`Matmul`].
    fn matmul(&mut self, args: &Matmul) -> Result<(), Self::Error>;
    /// See [`Assemble`].
    fn assemble(&mut self, args: &Assemble) -> Result<(), Self::Error>;
    /// See [`Disassemble`].
    fn disassemble(&mut self, args: &Disassemble) -> Result<(), Self::Error>;
    /// The [`Norm`] of rows `x [N, D]`, wide.
    fn layer_norm(&mut self, rows: &Rows, x: Region, norm: &Norm) -> Result<(), Self::Error>;
    /// See [`AddBranch`].
    fn add_branch(&mut self, args: &AddBranch) -> Result<(), Self::Error>;
    /// See [`NormBackward`].
    fn norm_backward(&mut self, args: &NormBackward) -> Result<(), Self::Error>;
    /// See [`Activation`].
    fn activation(&mut self, args: &Activation) -> Result<(), Self::Error>;
    /// See [`ActivationBackward`].
    fn activation_backward(&mut self, args: &ActivationBackward) -> Result<(), Self::Error>;
    /// See [`Attention`].
    fn attention(&mut self, args: &Attention) -> Result<(), Self::Error>;
    /// See [`AttentionBackward`].
    fn attention_backward(&mut self, args: &AttentionBackward) -> Result<(), Self::Error>;
    /// See [`CosineLoss`].
    fn cosine_loss(&mut self, args: &CosineLoss) -> Result<(), Self::Error>;
    /// What the last [`Self::cosine_loss`] found: sums of the cosines with what comes next and with
    /// what is there, and how often the second is greater.
    fn cosine_sums(&mut self) -> Result<[f64; 3], Self::Error>;
    /// See [`Pool`].
    fn pool(&mut self, args: &Pool) -> Result<(), Self::Error>;
    /// See [`PoolBackward`].
    fn pool_backward(&mut self, args: &PoolBackward) -> Result<(), Self::Error>;
    /// See [`LayerScale`].
    fn layer_scale(&mut self, args: &LayerScale) -> Result<(), Self::Error>;
    /// The norm of the gradient; the device remembers by how much it is to be clipped.
    fn gradient_norm(
        &mut self,
        gradient: Region,
        max_norm: Option<f64>,
    ) -> Result<f64, Self::Error>;
    /// Clips and applies the gradient by the rule of each group, and makes narrow copies of the new
    /// weights. The groups are in order and without gaps. Where the norm is not finite, nothing is
    /// changed.
    fn adamw(
        &mut self,
        arenas: &Arenas,
        groups: &[Group],
        rule: &AdamW<'_>,
    ) -> Result<(), Self::Error>;
}
