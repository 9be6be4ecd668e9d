//! Every region of the device's memory: counted first, then placed one after the other in one
//! allocation.
use std::ops::Range;

use super::arguments::{NORM_PIECE, NORM_RESULT_BYTES, Segment};
use super::layout::Layout;
use crate::MemoryPlan;
use crate::NepaConfig;
use crate::explicit::Shape;

/// Rows whose sums one block adds.
pub(super) const ROWS_PER_PIECE: usize = 128;
/// Bytes to whose multiples regions are aligned.
const ALIGNMENT: u64 = 256;

/// One flat arena each, in the order of [`Layout`]; f32 but for the copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flat {
    pub(super) weights: u64,
    pub(super) weights_bf16: u64,
    pub(super) gradient: u64,
    pub(super) m: u64,
    pub(super) v: u64,
    pub(super) average: u64,
}

/// What the forward pass leaves of one block: the stream in f32, what products read in bf16.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockRegions {
    /// `[N, D]` f32.
    pub(super) input: u64,
    /// `[N]` f32 twice: mean and inverse deviation.
    pub(super) before: [u64; 2],
    /// `[N, D]`.
    pub(super) normed_before: u64,
    /// `[N, 3, H, d]`.
    pub(super) qkv: u64,
    /// `[B, H, T]` f32.
    pub(super) lse: u64,
    /// `[N, D]`.
    pub(super) attention: u64,
    /// `[N, D]` f32.
    pub(super) middle: u64,
    pub(super) after: [u64; 2],
    pub(super) normed_after: u64,
    /// `[N, up]`.
    pub(super) up: u64,
    /// `[N, mlp]`: the block's own where it is kept, else the same for all.
    pub(super) hidden: u64,
}

/// All regions.
#[derive(Debug)]
pub(super) struct Regions {
    pub(super) flat: Flat,
    /// `[B, 3, S, S]`, bf16 or f32: only where pixels come from the host.
    pub(super) pixels: u64,
    /// `[B P, columns]`.
    pub(super) patches: u64,
    /// `[B P, D]` f32.
    pub(super) embedding: u64,
    /// `[T, d / 2]` f32 each.
    pub(super) cos: u64,
    pub(super) sin: u64,
    pub(super) blocks: Vec<BlockRegions>,
    /// `[N, D]` f32.
    pub(super) output: u64,
    /// `[N, D]`: what a block adds, or a gradient of that width.
    pub(super) product: u64,
    /// `[N, mlp]`.
    pub(super) d_hidden: u64,
    /// `[N, up]`.
    pub(super) d_up: u64,
    /// `[N, 3 D]`.
    pub(super) d_qkv: u64,
    /// `[N, D]` f32, bf16, and bf16 times a LayerScale.
    pub(super) dx: u64,
    pub(super) dx_bf16: u64,
    pub(super) scaled_dx: u64,
    /// Sums of pieces of rows.
    pub(super) partials: u64,
    /// `[pieces, 3]`, and `[3]`: cosines and copies.
    pub(super) report_pieces: u64,
    pub(super) report: u64,
    /// f64, one a piece of the gradient; and `NormResult`.
    pub(super) norm_partials: u64,
    pub(super) norm_result: u64,
    /// `Segment`s of the optimiser, at most one a weight.
    pub(super) segments: u64,
}

/// Bytes behind a region that are of no region; see [`super::StepDevice::red_zone_bytes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedZone {
    /// The region that ends where it begins.
    pub behind: &'static str,
    /// Addresses.
    pub addresses: Range<u64>,
}

/// Where regions go, and which there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placing {
    pub(super) base: u64,
    pub(super) red_zone_bytes: u64,
    /// Whether each block has its MLP's activation for the backward pass, which else computes it
    /// again.
    pub(super) keeps_hidden: bool,
}

/// Counts or places regions.
struct Taker<'a> {
    next: u64,
    plan: &'a mut MemoryPlan,
    red_zone_bytes: u64,
    red_zones: Vec<RedZone>,
}

impl Taker<'_> {
    fn take(&mut self, name: &'static str, values: usize, value_bytes: u64) -> u64 {
        let own_bytes = values as u64 * value_bytes;
        let bytes = own_bytes.next_multiple_of(ALIGNMENT);
        self.plan.add(name, bytes);
        let start = self.next;
        self.next += bytes;
        if self.red_zone_bytes > 0 {
            self.plan.add("red zones", self.red_zone_bytes);
            self.next += self.red_zone_bytes;
            self.red_zones.push(RedZone {
                behind: name,
                addresses: start + own_bytes..self.next,
            });
        }
        start
    }
}

impl Regions {
    /// The regions in memory from `base` on, each with a red zone behind it, and how much that is.
    pub(super) fn new(
        config: &NepaConfig,
        shape: &Shape,
        layout: &Layout,
        Placing {
            base,
            red_zone_bytes,
            keeps_hidden,
        }: Placing,
    ) -> (Self, MemoryPlan, Vec<RedZone>) {
        const F32: u64 = 4;
        const BF16: u64 = 2;
        let mut plan = MemoryPlan::default();
        let mut taker = Taker {
            next: base,
            plan: &mut plan,
            red_zone_bytes,
            red_zones: Vec::new(),
        };
        let mut take = |name, values, bytes| taker.take(name, values, bytes);
        let (rows, width) = (shape.rows(), shape.width);
        let flat = Flat {
            weights: take("weights, moments, average", layout.len(), F32),
            m: take("weights, moments, average", layout.len(), F32),
            v: take("weights, moments, average", layout.len(), F32),
            average: take("weights, moments, average", layout.len(), F32),
            weights_bf16: take("bf16 weights", layout.len(), BF16),
            gradient: take("gradient", layout.len(), F32),
        };
        let hidden = (!keeps_hidden).then(|| take("workspace", rows * shape.mlp, BF16));
        let blocks = (0..shape.blocks).map(|_| BlockRegions {
            input: take("residual stream", rows * width, F32),
            before: [0; 2].map(|_| take("statistics", rows, F32)),
            normed_before: take("norms", rows * width, BF16),
            qkv: take("queries, keys, values", 3 * rows * width, BF16),
            lse: take("statistics", rows * shape.heads, F32),
            attention: take("attention outputs", rows * width, BF16),
            middle: take("residual stream", rows * width, F32),
            after: [0; 2].map(|_| take("statistics", rows, F32)),
            normed_after: take("norms", rows * width, BF16),
            up: take("MLP activations", rows * shape.up, BF16),
            hidden: hidden.unwrap_or_else(|| take("MLP activations", rows * shape.mlp, BF16)),
        });
        let blocks = blocks.collect();
        let pieces = rows
            .max(shape.batch * shape.patches)
            .div_ceil(ROWS_PER_PIECE);
        let of_heads = shape.batch * (3 * width + shape.heads * 4 * shape.head());
        let sums = (pieces * (3 * width).max(shape.up)).max(of_heads);
        let image = config.num_channels * config.image_size * config.image_size;
        let regions = Self {
            flat,
            blocks,
            pixels: take("pixels", shape.batch * image, F32),
            patches: take(
                "patches",
                shape.batch * shape.patches * layout.patch_columns,
                BF16,
            ),
            embedding: take("embeddings", shape.batch * shape.patches * width, F32),
            cos: take("rotary table", shape.tokens * shape.head() / 2, F32),
            sin: take("rotary table", shape.tokens * shape.head() / 2, F32),
            output: take("residual stream", rows * width, F32),
            product: take(
                "workspace",
                rows.max(shape.batch * shape.patches) * width,
                BF16,
            ),
            d_hidden: take("workspace", rows * shape.mlp, BF16),
            d_up: take("workspace", rows * shape.up, BF16),
            d_qkv: take("workspace", 3 * rows * width, BF16),
            dx: take("workspace", rows * width, F32),
            dx_bf16: take("workspace", rows * width, BF16),
            scaled_dx: take("workspace", rows * width, BF16),
            partials: take("workspace", sums, F32),
            report_pieces: take("workspace", 3 * pieces, F32),
            report: take("workspace", 3, F32),
            norm_partials: take("workspace", layout.len().div_ceil(NORM_PIECE as usize), 8),
            norm_result: take("workspace", NORM_RESULT_BYTES, 1),
            segments: take(
                "workspace",
                layout.num_weights(),
                size_of::<Segment>() as u64,
            ),
        };
        let red_zones = taker.red_zones;
        (regions, plan, red_zones)
    }
}
