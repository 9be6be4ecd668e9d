//! Every region of a step's memory: counted first, then placed one after the other.
use super::device::{Device, MemoryMap, RedZone, Region};
use super::options::{Shape, StepOptions};
use super::places::Layout;
use super::plan::MemoryPlan;
use crate::NepaConfig;

/// Bytes to whose multiples regions are aligned.
const ALIGNMENT: u64 = 256;

/// What the forward pass leaves of one block; wide where nothing else is said.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockRegions {
    /// The stream before the block, `[N, D]`.
    pub(super) input: Region,
    /// Mean and inverse deviation of its rows, `[N]` each.
    pub(super) before: [Region; 2],
    /// `[N, D]`, narrow: the block's own where norms are kept, else the same for all.
    pub(super) normed_before: Region,
    /// `[N, 3 D]`, narrow.
    pub(super) qkv: Region,
    /// What attention wants to know of each softmax.
    pub(super) softmax: Region,
    /// What the heads found, `[N, D]`, narrow.
    pub(super) attention: Region,
    /// The stream after attention, `[N, D]`.
    pub(super) middle: Region,
    pub(super) after: [Region; 2],
    pub(super) normed_after: Region,
    /// The MLP before its activation, `[N, up]`, narrow.
    pub(super) up: Region,
    /// After it, `[N, mlp]`, narrow: the block's own where it is kept, else the same for all.
    pub(super) hidden: Region,
}

/// All regions; wide where nothing else is said. Those of the backward pass are empty in a step
/// that does not train.
#[derive(Debug)]
pub(super) struct Regions {
    pub(super) weights: Region,
    /// The weights themselves where narrow values are no type of their own.
    pub(super) narrow: Region,
    pub(super) m: Region,
    pub(super) v: Region,
    pub(super) average: Region,
    pub(super) gradient: Region,
    /// Sums of some micro-batches, as large.
    pub(super) partial_sums: Vec<Region>,
    /// Images of the host, for a device that wants them in its memory.
    pub(super) pixels: Region,
    /// `[B P, columns]`, narrow.
    pub(super) patches: Region,
    /// `[B P, D]`.
    pub(super) embedding: Region,
    /// Cosines and sines, `[T, d / 2]` each, or one of them an image.
    pub(super) rotary: [Region; 2],
    /// Which patches are tokens, and which token a patch is, where only some are.
    pub(super) kept_patches: Option<[Region; 2]>,
    /// Drop path: `[blocks, 2, B]`.
    pub(super) factors: Option<Region>,
    pub(super) blocks: Vec<BlockRegions>,
    /// The stream behind the last block, `[N, D]`.
    pub(super) output: Region,
    pub(super) output_statistics: [Region; 2],
    /// The final norm of it, narrow, in memory that is free then.
    pub(super) normed_output: Region,
    /// Of a classifier, `[B, D]` each: what its head gets, and the gradient of that.
    pub(super) pooled: Region,
    pub(super) d_pooled: Region,
    /// `[N, D]`, narrow: what a branch adds, or a gradient of that width.
    pub(super) product: Region,
    /// Gradient of an activation, `[N, mlp]`, or of queries, keys and values, `[N, 3 D]`; narrow.
    pub(super) d_wide: Region,
    /// `[N, up]`, narrow.
    pub(super) d_up: Region,
    /// Gradient of the stream, `[N, D]`.
    pub(super) dx: Region,
    /// The same times the factors of a branch, narrow, where that is not `dx` itself.
    pub(super) factored_dx: Option<Region>,
    /// The same times a LayerScale, narrow.
    pub(super) scaled_dx: Option<Region>,
    /// Sums of pieces of rows.
    pub(super) partials: Region,
}

/// Counts and places regions.
struct Taker {
    map: MemoryMap,
    plan: MemoryPlan,
    red_zone_bytes: u64,
}

impl Taker {
    fn take(&mut self, name: &'static str, len: usize, value_bytes: u64) -> Region {
        if len == 0 {
            return Region::default();
        }
        let region = Region {
            start: self.map.num_bytes,
            len,
            value_bytes,
        };
        let bytes = region.num_bytes().next_multiple_of(ALIGNMENT);
        self.plan.add(name, bytes);
        self.map.num_bytes += bytes;
        if self.red_zone_bytes > 0 {
            self.plan.add("red zones", self.red_zone_bytes);
            self.map.num_bytes += self.red_zone_bytes;
            self.map.red_zones.push(RedZone {
                behind: name,
                bytes: region.start + region.num_bytes()..self.map.num_bytes,
            });
        }
        region
    }
}

impl Regions {
    pub(super) fn new<D: Device>(
        config: &NepaConfig,
        options: &StepOptions,
    ) -> (Self, MemoryMap, MemoryPlan) {
        let (shape, layout) = (Shape::new(config, options), Layout::new(config));
        let (trains, kept) = (options.trains, options.kept.unwrap_or(D::KEPT));
        let (wide, narrow) = (size_of::<D::Wide>() as u64, D::NARROW_BYTES);
        let (rows, width, len) = (shape.rows(), shape.width, layout.len());
        let embedded = shape.images * shape.patches;
        let in_training = |len| if trains { len } else { 0 };
        let mut taker = Taker {
            map: MemoryMap::default(),
            plan: MemoryPlan::default(),
            red_zone_bytes: D::RED_ZONE_BYTES,
        };
        let mut take = |name, len, bytes| taker.take(name, len, bytes);

        let state = "weights, moments, average";
        let weights = take(state, len, wide);
        let [m, v, average] = [0; 3].map(|_| take(state, in_training(len), wide));
        let narrow_weights = if D::HAS_NARROW {
            take("bf16 weights", len, narrow)
        } else {
            weights
        };
        let gradient = take("gradient", in_training(len), wide);
        let partial_sums = (0..options.partial_sums)
            .map(|_| take("sums of micro-batches", in_training(len), wide))
            .collect();

        let shared_norm =
            (!(trains && kept.norms)).then(|| take("workspace", rows * width, narrow));
        let shared_hidden =
            (!(trains && kept.activations)).then(|| take("workspace", rows * shape.mlp, narrow));
        let mut blocks: Vec<BlockRegions> = Vec::with_capacity(shape.blocks);
        for _ in 0..shape.blocks {
            let input = take("residual stream", rows * width, wide);
            // Without a backward pass, blocks leave nothing but what goes into the next.
            if let Some(first) = blocks.first().filter(|_| !trains) {
                let next = BlockRegions { input, ..*first };
                blocks.push(next);
                continue;
            }
            let softmax = D::SOFTMAX_VALUES * rows * shape.heads;
            let mut norm = || shared_norm.unwrap_or_else(|| take("norms", rows * width, narrow));
            let normed = [norm(), norm()];
            blocks.push(BlockRegions {
                input,
                before: [0; 2].map(|_| take("statistics", rows, wide)),
                normed_before: normed[0],
                qkv: take("queries, keys, values", 3 * rows * width, narrow),
                softmax: take("statistics", softmax, wide),
                attention: take("attention outputs", rows * width, narrow),
                middle: take("residual stream", rows * width, wide),
                after: [0; 2].map(|_| take("statistics", rows, wide)),
                normed_after: normed[1],
                up: take("MLP activations", rows * shape.up, narrow),
                hidden: shared_hidden
                    .unwrap_or_else(|| take("MLP activations", rows * shape.mlp, narrow)),
            });
        }

        let pixels = config.num_channels * shape.patches * config.patch_size.pow(2);
        let staged = if D::STAGES_PIXELS {
            shape.images * pixels
        } else {
            0
        };
        let tables = options.kept_patches.map_or(1, |_| shape.images);
        let table = tables * shape.tokens * shape.head_size() / 2;
        let partials = D::partial_values(rows.max(embedded), 3 * width)
            .max(D::partial_values(rows, shape.up))
            .max(D::attention_partial_values(
                shape.images,
                shape.heads,
                shape.head_size(),
            ));
        let has_scale = trains && config.layerscale_value.is_some();
        let has_copy = trains && (D::HAS_NARROW || options.drop_path);
        let pooled = layout.head.as_ref().map_or(0, |_| shape.images * width);
        let d_wide = shape.mlp.max(3 * width);
        let mut regions = Self {
            weights,
            narrow: narrow_weights,
            m,
            v,
            average,
            gradient,
            partial_sums,
            pixels: take("pixels", staged, wide),
            patches: take("patches", embedded * layout.patch_columns, narrow),
            embedding: take("embeddings", embedded * width, wide),
            rotary: [0; 2].map(|_| take("rotary table", table, wide)),
            kept_patches: options.kept_patches.map(|kept| {
                [kept, shape.patches].map(|each| take("kept patches", shape.images * each, wide))
            }),
            factors: options
                .drop_path
                .then(|| take("drop path", 2 * shape.blocks * shape.images, wide)),
            blocks,
            output: take("residual stream", rows * width, wide),
            output_statistics: [0; 2].map(|_| take("statistics", rows, wide)),
            normed_output: Region::default(),
            pooled: take("pooled outputs", pooled, wide),
            d_pooled: take("pooled outputs", in_training(pooled), wide),
            product: take("workspace", rows.max(embedded) * width, narrow),
            d_wide: take("workspace", in_training(rows * d_wide), narrow),
            d_up: take("workspace", in_training(rows * shape.up), narrow),
            dx: take("workspace", in_training(rows * width), wide),
            factored_dx: has_copy.then(|| take("workspace", rows * width, narrow)),
            scaled_dx: has_scale.then(|| take("workspace", rows * width, narrow)),
            partials: take("workspace", in_training(partials), wide),
        };
        regions.normed_output = shared_norm.unwrap_or(regions.d_wide).first(rows * width);
        let own = D::own_bytes(rows, len, layout.num_weights());
        taker.map.own = taker.take("workspace", own as usize, 1);
        let mut plan = taker.plan;
        plan.extend(&D::beside(config, options));
        (regions, taker.map, plan)
    }
}
