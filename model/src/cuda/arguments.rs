//! Arguments of the kernels in `cuda/kernels/*.cu`, mirrors of their structs, and how each is
//! launched. Plain numbers, here and not behind the feature `cuda`, so that a test can launch the
//! very same on the CPU. Addresses are of the device; 0 is none.
#![expect(
    missing_docs,
    reason = "the fields are those of the kernels' structs, and are explained there"
)]
use crate::step::adamw::{AdamW as Rule, Group};

/// Grid and block of a launch, and bytes of dynamic shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// One launch of a kernel; only the structs below make one, so kernel and argument belong together.
#[derive(Debug, Clone, Copy)]
pub struct Launch<A> {
    kernel: &'static str,
    geometry: Geometry,
    work: Work,
    arguments: A,
}

/// What a launch must do at the least, for its distance from what the device can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes between memory and the device: each value read or written once.
    pub bytes: u64,
    /// Floating-point operations of matmuls, two for a multiplication and an addition.
    pub flops: u64,
}

/// Work that moves `bytes_each` bytes for each of `values` values.
fn moves(values: u64, bytes_each: u64) -> Work {
    Work {
        bytes: values * bytes_each,
        flops: 0,
    }
}

/// The product of two numbers that fit.
fn times(a: u32, b: u32) -> u64 {
    u64::from(a) * u64::from(b)
}

impl<A> Launch<A> {
    /// The kernel's name.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }
    /// How it is launched.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }
    /// What it must do at the least.
    pub fn work(&self) -> Work {
        self.work
    }
    /// Its only argument, passed by value.
    pub fn arguments(&self) -> &A {
        &self.arguments
    }
}

fn launch<A>(kernel: &'static str, geometry: Geometry, work: Work, arguments: A) -> Launch<A> {
    Launch {
        kernel,
        geometry,
        work,
        arguments,
    }
}

const THREADS: u32 = 256;
/// Rows that a block of the norms works on at once.
const ROW_WARPS: u32 = 8;

fn blocks(grid: [u32; 2]) -> Geometry {
    Geometry {
        grid: [grid[0], grid[1], 1],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
    }
}

/// A block for every `each` of so many values.
fn blocks_for(values: u64, each: u64) -> Geometry {
    blocks([values.div_ceil(each) as u32, 1])
}

/// Mirror of `NormForward`: `layer_norm_forward`, or with a `y` `residual_norm_forward`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct NormForward {
    pub x: u64,
    pub y: u64,
    pub scale: u64,
    pub factors: u64,
    pub x_out: u64,
    pub weight: u64,
    pub bias: u64,
    pub h: u64,
    pub mean: u64,
    pub rstd: u64,
    pub rows: u32,
    pub width: u32,
    pub tokens: u32,
    pub eps: f32,
}
const _: () = assert!(size_of::<NormForward>() == 96);

impl NormForward {
    /// How it is launched.
    pub fn launch(self) -> Launch<Self> {
        let kernel = if self.y == 0 {
            "layer_norm_forward"
        } else {
            "residual_norm_forward"
        };
        // x; with a y, that and the new x; with a weight, h.
        let each = 4 + if self.y == 0 { 0 } else { 6 } + if self.weight == 0 { 0 } else { 2 };
        let work = moves(times(self.rows, self.width), each);
        launch(
            kernel,
            blocks([self.rows.div_ceil(ROW_WARPS), 1]),
            work,
            self,
        )
    }
}

/// Mirror of `NormBackward`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct NormBackward {
    pub dh: u64,
    pub x: u64,
    pub mean: u64,
    pub rstd: u64,
    pub weight: u64,
    pub scale: u64,
    pub factors: u64,
    pub dx: u64,
    pub dx_bf16: u64,
    pub scaled_dx: u64,
    pub partials: u64,
    pub rows: u32,
    pub width: u32,
    pub rows_per_piece: u32,
    pub tokens: u32,
}
const _: () = assert!(size_of::<NormBackward>() == 104);

/// Bytes a value of the copies of a stream's gradient; without a LayerScale the second is the
/// first, and not written.
fn copies_bytes(dx_bf16: u64, scaled_dx: u64, scale: u64) -> u64 {
    let alone = if dx_bf16 == 0 { 0 } else { 2 };
    alone + if scaled_dx == 0 || scale == 0 { 0 } else { 2 }
}

impl NormBackward {
    /// How it is launched.
    pub fn launch(self) -> Launch<Self> {
        let pieces = self.rows.div_ceil(self.rows_per_piece);
        // dh, x, dx twice, its copies.
        let copies = copies_bytes(self.dx_bf16, self.scaled_dx, self.scale);
        let work = moves(times(self.rows, self.width), 2 + 4 + 8 + copies);
        launch("layer_norm_backward", blocks([pieces, 1]), work, self)
    }
}

/// Mirror of `AddPartials`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct AddPartials {
    pub partials: u64,
    pub out: [u64; 4],
    pub stride: u64,
    pub pieces: u32,
    pub width: u32,
    pub outputs: u32,
}
const _: () = assert!(size_of::<AddPartials>() == 64);

impl AddPartials {
    /// How it is launched.
    pub fn launch(self) -> Launch<Self> {
        let geometry = Geometry {
            grid: [(self.outputs * self.width).div_ceil(32), 1, 1],
            block: [32, 32, 1],
            shared_bytes: 0,
        };
        let work = moves(times(self.pieces, self.outputs * self.width), 4);
        launch("add_partials", geometry, work, self)
    }
}

/// Mirror of `Activation`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Activation {
    pub x: u64,
    pub grad: u64,
    pub result: u64,
    pub dx: u64,
    pub partials: u64,
    pub rows: u32,
    pub width: u32,
    pub rows_per_piece: u32,
    pub kind: u32,
}
const _: () = assert!(size_of::<Activation>() == 56);

impl Activation {
    /// How it is launched: backward if there is a `dx`.
    pub fn launch(self, gated: bool) -> Launch<Self> {
        let values = u64::from(self.rows) * u64::from(self.width);
        let forward = blocks_for(values, 8 * u64::from(THREADS));
        if self.dx == 0 {
            let kernel = if gated {
                "gated_activation_forward"
            } else {
                "activation_forward"
            };
            let work = moves(values, if gated { 4 + 2 } else { 2 + 2 });
            return launch(kernel, forward, work, self);
        }
        let pieces = self.rows.div_ceil(self.rows_per_piece);
        let kernel = if gated {
            "gated_activation_backward"
        } else {
            "activation_backward"
        };
        // x, its gradient, the result's gradient, and the result if it is not kept.
        let result = if self.result == 0 { 0 } else { 2 };
        let work = moves(values, if gated { 4 + 4 + 2 } else { 2 + 2 + 2 } + result);
        let grid = [self.width.div_ceil(256), pieces];
        launch(kernel, blocks(grid), work, self)
    }
}

/// Mirror of `Patchify`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Patchify {
    pub pixels: u64,
    pub patches: u64,
    pub batch: u32,
    pub height: u32,
    pub width: u32,
    pub patch: u32,
    pub columns: u32,
    pub layout: u32,
}
const _: () = assert!(size_of::<Patchify>() == 40);

impl Patchify {
    /// How it is launched, of pixels in bf16 or f32.
    pub fn launch(self, bf16: bool) -> Launch<Self> {
        let patches = times(self.height / self.patch, self.width / self.patch);
        let values = u64::from(self.batch) * patches * u64::from(self.columns);
        let kernel = if bf16 {
            "patchify_bf16"
        } else {
            "patchify_f32"
        };
        let pixels = 3 * times(self.height, self.width) * u64::from(self.batch);
        let work = Work {
            bytes: pixels * if bf16 { 2 } else { 4 } + 2 * values,
            flops: 0,
        };
        launch(
            kernel,
            blocks_for(values, 8 * u64::from(THREADS)),
            work,
            self,
        )
    }
}

/// Mirror of `Assemble`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Assemble {
    pub embedding: u64,
    pub class_token: u64,
    pub kept: u64,
    pub x: u64,
    pub batch: u32,
    pub patches: u32,
    pub tokens: u32,
    pub width: u32,
}
const _: () = assert!(size_of::<Assemble>() == 48);

impl Assemble {
    /// How it is launched.
    pub fn launch(self) -> Launch<Self> {
        let values = u64::from(self.batch) * u64::from(self.tokens) * u64::from(self.width);
        let geometry = blocks_for(values, 4 * u64::from(THREADS));
        launch("assemble", geometry, moves(values, 8), self)
    }
}

/// Mirror of `Disassemble`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Disassemble {
    pub dx: u64,
    pub token_of: u64,
    pub d_embedding: u64,
    pub partials: u64,
    pub batch: u32,
    pub patches: u32,
    pub tokens: u32,
    pub width: u32,
    pub rows_per_piece: u32,
}
const _: () = assert!(size_of::<Disassemble>() == 56);

impl Disassemble {
    /// How it is launched.
    pub fn launch(self) -> Launch<Self> {
        let pieces = (self.batch * self.patches).div_ceil(self.rows_per_piece);
        let grid = [self.width.div_ceil(256), pieces];
        let rows = 4 * self.batch * self.tokens + 2 * self.batch * self.patches;
        let work = moves(times(rows, self.width), 1);
        launch("disassemble", blocks(grid), work, self)
    }
}

/// Width of the heads that the attention kernels are written for.
pub const HEAD: usize = 64;
/// Most tokens of an image: a head's keys and values must fit into a block's shared memory.
pub const MAX_TOKENS: usize = 512;

/// Mirror of `Attention`: forward, or with a `d_qkv` backward.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Attention {
    pub qkv: u64,
    pub cos: u64,
    pub sin: u64,
    pub query_weight: u64,
    pub query_bias: u64,
    pub key_weight: u64,
    pub key_bias: u64,
    pub out: u64,
    pub lse: u64,
    pub d_out: u64,
    pub d_qkv: u64,
    pub bias_partials: u64,
    pub norm_partials: u64,
    pub tokens: u32,
    pub heads: u32,
    pub causal: u32,
    pub qk_norm: u32,
    pub eps: f32,
    pub table_stride: u32,
}
const _: () = assert!(size_of::<Attention>() == 128);

impl Attention {
    /// How it is launched, for so many images.
    pub fn launch(self, batch: u32) -> Launch<Self> {
        let rows = self.tokens.next_multiple_of(16);
        let (kernel, shared_bytes) = if self.d_qkv == 0 {
            ("attention_forward", 288 * rows)
        } else {
            ("attention_backward", 296 * rows + 14_336)
        };
        let geometry = Geometry {
            grid: [self.heads, batch, 1],
            block: [THREADS, 1, 1],
            shared_bytes,
        };
        // Queries, keys, values and the output; backward their gradients too.
        let values = times(batch * self.tokens, self.heads * HEAD as u32);
        let backward = self.d_qkv != 0;
        let bytes = values * if backward { 16 } else { 8 };
        // Two matmuls of each query with the keys that it sees, backward seven.
        let seen = if self.causal == 0 {
            2 * self.tokens
        } else {
            self.tokens + 1
        };
        let flops = values * u64::from(seen) * if backward { 7 } else { 2 };
        launch(kernel, geometry, Work { bytes, flops }, self)
    }
}

/// Mirror of `Loss`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Loss {
    pub x: u64,
    pub weight: u64,
    pub bias: u64,
    pub next: u64,
    pub current: u64,
    pub scale: u64,
    pub factors: u64,
    pub dx: u64,
    pub dx_bf16: u64,
    pub scaled_dx: u64,
    pub partials: u64,
    pub report: u64,
    pub rows: u32,
    pub patches: u32,
    pub tokens: u32,
    pub width: u32,
    pub rows_per_piece: u32,
    pub eps: f32,
    pub factor: f32,
}
const _: () = assert!(size_of::<Loss>() == 128);

impl Loss {
    /// How it is launched.
    pub fn launch(self) -> Launch<Self> {
        let pieces = self.rows.div_ceil(self.rows_per_piece);
        // x, both embeddings, dx and its copies.
        let copies = copies_bytes(self.dx_bf16, self.scaled_dx, self.scale);
        let work = moves(times(self.rows, self.width), 12 + 4 + copies);
        launch("cosine_loss", blocks([pieces, 1]), work, self)
    }
}

/// Mirror of `Pool`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Pool {
    pub x: u64,
    pub weight: u64,
    pub bias: u64,
    pub pooled: u64,
    pub tokens: u32,
    pub taken: u32,
    pub width: u32,
    pub eps: f32,
}
const _: () = assert!(size_of::<Pool>() == 48);

impl Pool {
    /// How it is launched, for so many images.
    pub fn launch(self, images: u32) -> Launch<Self> {
        let work = moves(times(images * (self.taken + 1), self.width), 4);
        launch("pool_forward", blocks([images, 1]), work, self)
    }
}

/// Mirror of `PoolBackward`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct PoolBackward {
    pub x: u64,
    pub weight: u64,
    pub d_pooled: u64,
    pub scale: u64,
    pub factors: u64,
    pub dx: u64,
    pub dx_bf16: u64,
    pub scaled_dx: u64,
    pub partials: u64,
    pub rows: u32,
    pub tokens: u32,
    pub taken: u32,
    pub width: u32,
    pub rows_per_piece: u32,
    pub eps: f32,
}
const _: () = assert!(size_of::<PoolBackward>() == 96);

impl PoolBackward {
    /// How it is launched.
    pub fn launch(self) -> Launch<Self> {
        let pieces = self.rows.div_ceil(self.rows_per_piece);
        // x of what is taken, dx and its copies of all.
        let copies = copies_bytes(self.dx_bf16, self.scaled_dx, self.scale);
        let images = self.rows / self.tokens;
        let bytes = 4 * times(images * self.taken, self.width)
            + (4 + copies) * times(self.rows, self.width);
        launch("pool_backward", blocks([pieces, 1]), moves(bytes, 1), self)
    }
}

/// Mirror of `LayerScale`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct LayerScale {
    pub weight: u64,
    pub d_weight: u64,
    pub bias: u64,
    pub d_bias: u64,
    pub scale: u64,
    pub d_scale: u64,
    pub columns: u32,
}
const _: () = assert!(size_of::<LayerScale>() == 56);

impl LayerScale {
    /// How it is launched, for a layer of so many outputs.
    pub fn launch(self, outputs: u32) -> Launch<Self> {
        let work = moves(times(outputs, self.columns), 4 + 8);
        launch("layer_scale_finish", blocks([outputs, 1]), work, self)
    }
}

/// Values of one partial sum of the norm.
pub const NORM_PIECE: u64 = 16_384;
/// Bytes of `NormResult`: the norm (f64), the clip factor (f32), whether it is finite (u32).
pub const NORM_RESULT_BYTES: usize = 16;

/// Mirror of `GradientNorm`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct GradientNorm {
    pub gradient: u64,
    pub partials: u64,
    pub result: u64,
    pub max_norm: f64,
    pub len: u64,
}
const _: () = assert!(size_of::<GradientNorm>() == 40);

impl GradientNorm {
    /// Both launches, one after the other.
    pub fn launches(self) -> [Launch<Self>; 2] {
        let one_block = Geometry {
            grid: [1, 1, 1],
            block: [1024, 1, 1],
            shared_bytes: 0,
        };
        [
            launch(
                "norm_partials",
                blocks_for(self.len, NORM_PIECE),
                moves(self.len, 4),
                self,
            ),
            launch(
                "norm_final",
                one_block,
                moves(self.len.div_ceil(NORM_PIECE), 8),
                self,
            ),
        ]
    }
}

/// Mirror of `Segment`: consecutive weights with the same settings, of one update.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub struct Segment {
    pub start: u64,
    pub end: u64,
    pub keep: f32,
    pub step_size: f32,
    pub frozen: u32,
    pub unused: u32,
}
const _: () = assert!(size_of::<Segment>() == 32);

impl Segment {
    /// What an update by that rule does with a group.
    pub fn new(group: &Group, rule: &Rule<'_>) -> Self {
        let numbers = rule.of_group(&group.of);
        let (keep, step_size) = numbers.unwrap_or((1.0, 0.0));
        Self {
            start: group.range.start as u64,
            end: group.range.end as u64,
            keep: keep as f32,
            step_size: step_size as f32,
            frozen: numbers.is_none().into(),
            unused: 0,
        }
    }

    /// As it lies in memory.
    pub fn bytes(&self) -> [u8; 32] {
        let pair = |low: u32, high: u32| [low.to_ne_bytes(), high.to_ne_bytes()];
        let words = [
            self.start.to_ne_bytes(),
            self.end.to_ne_bytes(),
            bytemuck::cast(pair(self.keep.to_bits(), self.step_size.to_bits())),
            bytemuck::cast(pair(self.frozen, self.unused)),
        ];
        bytemuck::cast(words)
    }
}

/// Mirror of `AdamW`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct AdamW {
    pub weights: u64,
    pub gradient: u64,
    pub m: u64,
    pub v: u64,
    pub average: u64,
    pub copy: u64,
    pub segments: u64,
    pub norm: u64,
    pub len: u64,
    pub correction2: f32,
    pub beta1: f32,
    pub rest1: f32,
    pub beta2: f32,
    pub rest2: f32,
    pub eps: f32,
    pub decay: f32,
    pub rest: f32,
    pub num_segments: u32,
}
const _: () = assert!(size_of::<AdamW>() == 112);

impl AdamW {
    /// How it is launched.
    pub fn launch(self) -> Launch<Self> {
        // Weights, moments and average twice, the gradient, the copy.
        let average = if self.average == 0 { 0 } else { 8 };
        launch(
            "adamw_update",
            blocks_for(self.len, 4 * u64::from(THREADS)),
            moves(self.len, 8 + 16 + average + 4 + 2),
            self,
        )
    }
}

/// Mirror of `CopyToBf16`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct CopyToBf16 {
    pub values: u64,
    pub copy: u64,
    pub len: u64,
}
const _: () = assert!(size_of::<CopyToBf16>() == 24);

impl CopyToBf16 {
    /// How it is launched.
    pub fn launch(self) -> Launch<Self> {
        launch(
            "copy_to_bf16",
            blocks_for(self.len, 4 * u64::from(THREADS)),
            moves(self.len, 4 + 2),
            self,
        )
    }
}

/// Mirror of `AddValues`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct AddValues {
    pub sums: u64,
    pub values: u64,
    pub len: u64,
}
const _: () = assert!(size_of::<AddValues>() == 24);

impl AddValues {
    /// How it is launched.
    pub fn launch(self) -> Launch<Self> {
        launch(
            "add_values",
            blocks_for(self.len, 4 * u64::from(THREADS)),
            moves(self.len, 4 + 4 + 4),
            self,
        )
    }
}
