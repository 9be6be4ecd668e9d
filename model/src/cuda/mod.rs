//! The step's device on an NVIDIA GPU: the stream, statistics, weights and all sums are f32, what
//! matmuls read and write is bf16. Each operation is one launch of a kernel in `kernels/`, or two,
//! or a matmul by cuBLASLt.
//!
//! Generic over what launches ([`Launcher`]), so that a test runs the very same launches on the
//! CPU; with the feature `cuda`, [`driver`] has the GPU's.
pub mod arguments;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod error;
pub mod launcher;
#[cfg(feature = "cuda")]
mod matmuls;
#[cfg(feature = "cuda")]
mod memory;

use half::bf16;

use crate::step::adamw::{AdamW, Group};
use crate::step::device::{
    Activation, ActivationBackward, AddBranch, Arenas, Assemble, Attention, AttentionBackward,
    BranchGradient, CosineLoss, Device, Disassemble, LayerScale, Matmul, MemoryMap, Norm,
    NormBackward, Output, Patchify, Pool, PoolBackward, Region, Rows,
};
use crate::step::{Kept, Layout, MemoryPlan, Shape, StepOptions};
use crate::{HiddenAct, ModelError, NepaConfig};

use arguments::{
    AddPartials, AddValues, CopyToBf16, GradientNorm, HEAD, MAX_TOKENS, NORM_PIECE,
    NORM_RESULT_BYTES, NormForward, Segment,
};
#[cfg(feature = "cuda")]
pub use driver::CudaLauncher;
#[cfg(feature = "cuda")]
pub use error::CudaStepError;
use launcher::Launcher;
#[cfg(feature = "cuda")]
pub use matmuls::ChosenAlgorithms;

/// Rows whose sums one block of a kernel adds.
const ROWS_PER_PIECE: usize = 128;
/// Cosines with what comes next, with what is there, and wins of the second.
const NUM_REPORTED: usize = 3;
const F32: u64 = 4;
const BF16: u64 = 2;

/// Pixels of some images on the device, `[B, 3, height, width]`, normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pixels {
    /// Of the first value.
    pub address: u64,
    /// bf16, or f32.
    pub bf16: bool,
}

/// Kernels and matmuls as the operations of a step.
#[derive(Debug)]
pub struct KernelDevice<L> {
    launcher: L,
    /// Address of the memory.
    base: u64,
    own: Own,
    /// Of the last loss.
    report_pieces: u32,
}

/// Where the device's own values are, from the start of its memory.
#[derive(Debug, Clone, Copy, Default)]
struct Own {
    /// f64, one a piece of the gradient.
    norm_partials: u64,
    /// `NormResult`.
    norm: u64,
    /// `Segment`s, at most one a weight.
    segments: u64,
    /// `[pieces, 3]` and `[3]`, f32: what a loss tells.
    report_pieces: u64,
    report: u64,
    /// Behind all.
    num_bytes: u64,
}

impl Own {
    fn new(rows: usize, weights: usize, groups: usize) -> Self {
        let mut next = 0;
        let mut take = |num_bytes: usize| {
            let start = next;
            next += (num_bytes as u64).next_multiple_of(256);
            start
        };
        Self {
            norm_partials: take(8 * weights.div_ceil(NORM_PIECE as usize)),
            norm: take(NORM_RESULT_BYTES),
            segments: take(size_of::<Segment>() * groups),
            report_pieces: take(4 * NUM_REPORTED * rows.div_ceil(ROWS_PER_PIECE)),
            report: take(4 * NUM_REPORTED),
            num_bytes: next,
        }
    }
}

impl<L: Launcher> KernelDevice<L> {
    /// A device of what launches.
    pub fn new(launcher: L) -> Self {
        Self {
            launcher,
            base: 0,
            own: Own::default(),
            report_pieces: 0,
        }
    }

    /// What launches.
    pub fn launcher(&self) -> &L {
        &self.launcher
    }

    /// The same, to change how it computes.
    pub fn launcher_mut(&mut self) -> &mut L {
        &mut self.launcher
    }

    /// The address of a region; 0 if it is empty.
    pub fn address(&self, region: Region) -> u64 {
        if region.len == 0 {
            0
        } else {
            self.base + region.start
        }
    }

    fn optional(&self, region: Option<Region>) -> u64 {
        region.map_or(0, |region| self.address(region))
    }

    /// Adds the sums of all pieces at `partials`, `width` values for each of `outputs`, to those
    /// that are there.
    fn add_partials(
        &mut self,
        partials: u64,
        pieces: usize,
        width: usize,
        outputs: &[u64],
    ) -> Result<(), L::Error> {
        if outputs.iter().all(|output| *output == 0) {
            return Ok(());
        }
        let mut out = [0; 4];
        out[..outputs.len()].copy_from_slice(outputs);
        let sums = AddPartials {
            partials,
            out,
            stride: (outputs.len() * width) as u64,
            pieces: pieces as u32,
            width: width as u32,
            outputs: outputs.len() as u32,
        };
        self.launcher.launch(sums.launch())
    }

    /// What a norm's backward and a loss want to know of the last branch: scale, factors, both
    /// copies and the sum.
    fn branch(&self, added: Option<&BranchGradient>) -> [u64; 5] {
        added.map_or([0; 5], |added| {
            [
                self.optional(added.branch.scale),
                self.optional(added.branch.factors),
                self.optional(added.factored),
                self.optional(added.scaled),
                self.address(added.d_bias),
            ]
        })
    }

    fn attention_arguments(&self, args: &Attention) -> arguments::Attention {
        let [query_weight, query_bias, key_weight, key_bias] =
            args.head_norms.map(|norm| self.optional(norm));
        let table = (args.tokens * args.head_size / 2) as u32;
        arguments::Attention {
            qkv: self.address(args.qkv),
            cos: self.address(args.rotary[0]),
            sin: self.address(args.rotary[1]),
            query_weight,
            query_bias,
            key_weight,
            key_bias,
            out: self.address(args.out),
            lse: self.address(args.softmax),
            tokens: args.tokens as u32,
            heads: args.heads as u32,
            causal: args.causal.into(),
            qk_norm: args.qk_norm.into(),
            eps: args.eps as f32,
            table_stride: if args.table_per_image { table } else { 0 },
            ..arguments::Attention::default()
        }
    }

    fn activation_arguments(&self, args: &Activation) -> arguments::Activation {
        arguments::Activation {
            x: self.address(args.x),
            rows: args.rows as u32,
            width: args.width as u32,
            rows_per_piece: ROWS_PER_PIECE as u32,
            kind: match args.act {
                HiddenAct::Gelu => 0,
                HiddenAct::Silu => 1,
                HiddenAct::Relu => 2,
            },
            ..arguments::Activation::default()
        }
    }
}

/// Whether the kernels can compute a model's training.
pub fn check(config: &NepaConfig) -> Result<(), ModelError> {
    check_options(config, &StepOptions::training(config, 1))
}

fn check_options(config: &NepaConfig, options: &StepOptions) -> Result<(), ModelError> {
    config.validate()?;
    let rules = [
        (
            config.head_size() == HEAD,
            "num_attention_heads",
            config.num_attention_heads,
            "the kernels compute heads of 64 values: hidden_size / 64 of them",
        ),
        (
            config.hidden_size <= 1024,
            "hidden_size",
            config.hidden_size,
            "the kernels' norms take at most 1024",
        ),
        (
            config.intermediate_size.is_multiple_of(8),
            "intermediate_size",
            config.intermediate_size,
            "the kernels take a multiple of 8",
        ),
        (
            Shape::new(config, options).tokens <= MAX_TOKENS,
            "image_size",
            config.image_size,
            "the attention kernels take at most 512 tokens an image: choose larger patches or smaller images",
        ),
        (
            config.num_channels == 3,
            "num_channels",
            config.num_channels,
            "the kernels take images of three channels",
        ),
    ];
    for (holds, key, value, rule) in rules {
        if !holds {
            return Err(ModelError::Config {
                key,
                value: value.to_string(),
                rule: rule.to_owned(),
            });
        }
    }
    Ok(())
}

impl<L: Launcher> Device for KernelDevice<L> {
    type Wide = f32;
    type Pixels<'a> = Pixels;
    type Error = L::Error;

    const HAS_NARROW: bool = true;
    const NARROW_BYTES: u64 = BF16;
    const SOFTMAX_VALUES: usize = 1;
    const STAGES_PIXELS: bool = true;
    const KEPT: Kept = Kept {
        norms: true,
        activations: false,
    };
    const RED_ZONE_BYTES: u64 = L::RED_ZONE_BYTES;

    fn check(config: &NepaConfig, options: &StepOptions) -> Result<(), ModelError> {
        check_options(config, options)
    }

    fn partial_values(rows: usize, columns: usize) -> usize {
        rows.div_ceil(ROWS_PER_PIECE) * columns
    }

    fn attention_partial_values(images: usize, heads: usize, head_size: usize) -> usize {
        images * heads * (3 + 4) * head_size
    }

    fn own_bytes(rows: usize, weights: usize, groups: usize) -> u64 {
        Own::new(rows, weights, groups).num_bytes
    }

    fn beside(config: &NepaConfig, options: &StepOptions) -> MemoryPlan {
        L::beside(config, options.images)
    }

    fn allocate(
        &mut self,
        map: MemoryMap,
        config: &NepaConfig,
        options: &StepOptions,
    ) -> Result<(), L::Error> {
        self.base = self.launcher.allocate(map.num_bytes)?;
        let layout = Layout::new(config);
        let rows = Shape::new(config, options).rows();
        let own = Own::new(rows, layout.len(), layout.num_weights());
        let start = self.base + map.own.start;
        self.own = Own {
            norm_partials: start + own.norm_partials,
            norm: start + own.norm,
            segments: start + own.segments,
            report_pieces: start + own.report_pieces,
            report: start + own.report,
            num_bytes: own.num_bytes,
        };
        let red_zones = map.red_zones.into_iter().map(|zone| {
            let addresses = self.base + zone.bytes.start..self.base + zone.bytes.end;
            (zone.behind, addresses)
        });
        self.launcher.watch(red_zones.collect())
    }

    fn write(&mut self, to: Region, values: &[f32]) -> Result<(), L::Error> {
        assert_eq!((to.len, to.value_bytes), (values.len(), F32));
        let address = self.address(to);
        self.launcher.write(address, bytemuck::cast_slice(values))
    }

    fn read(&mut self, from: Region, values: &mut [f32]) -> Result<(), L::Error> {
        assert_eq!((from.len, from.value_bytes), (values.len(), F32));
        let address = self.address(from);
        self.launcher
            .read(address, bytemuck::cast_slice_mut(values))
    }

    fn write_narrow(&mut self, to: Region, values: &[f32]) -> Result<(), L::Error> {
        assert_eq!((to.len, to.value_bytes), (values.len(), BF16));
        let narrow: Vec<u16> = values
            .iter()
            .map(|value| bf16::from_f32(*value).to_bits())
            .collect();
        let address = self.address(to);
        self.launcher.write(address, bytemuck::cast_slice(&narrow))
    }

    fn read_narrow(&mut self, from: Region, values: &mut [f32]) -> Result<(), L::Error> {
        assert_eq!((from.len, from.value_bytes), (values.len(), BF16));
        let mut narrow = vec![0u16; values.len()];
        let address = self.address(from);
        self.launcher
            .read(address, bytemuck::cast_slice_mut(&mut narrow))?;
        for (value, narrow) in values.iter_mut().zip(narrow) {
            *value = bf16::from_bits(narrow).to_f32();
        }
        Ok(())
    }

    fn write_indices(&mut self, to: Region, indices: &[u32]) -> Result<(), L::Error> {
        assert_eq!((to.len, to.value_bytes), (indices.len(), F32));
        let address = self.address(to);
        self.launcher.write(address, bytemuck::cast_slice(indices))
    }

    fn zero(&mut self, region: Region) -> Result<(), L::Error> {
        let address = self.address(region);
        self.launcher.zero(address, region.num_bytes())
    }

    fn add(&mut self, sums: Region, values: Region) -> Result<(), L::Error> {
        assert_eq!((sums.len, sums.value_bytes), (values.len, F32));
        let add = AddValues {
            sums: self.address(sums),
            values: self.address(values),
            len: sums.len as u64,
        };
        self.launcher.launch(add.launch())
    }

    fn narrow(&mut self, wide: Region, narrow: Region) -> Result<(), L::Error> {
        let copy = CopyToBf16 {
            values: self.address(wide),
            copy: self.address(narrow),
            len: wide.len as u64,
        };
        self.launcher.launch(copy.launch())
    }

    fn stage<'a>(&mut self, images: &'a [&'a [f32]], region: Region) -> Result<Pixels, L::Error> {
        let mut first = 0;
        for image in images {
            self.write(region.part(first, image.len()), image)?;
            first += image.len();
        }
        Ok(Pixels {
            address: self.address(region),
            bf16: false,
        })
    }

    fn patchify(&mut self, pixels: Pixels, args: &Patchify) -> Result<(), L::Error> {
        let [height, width] = args.grid.map(|patches| (patches * args.patch) as u32);
        let patchify = arguments::Patchify {
            pixels: pixels.address,
            patches: self.address(args.patches),
            batch: args.images as u32,
            height,
            width,
            patch: args.patch as u32,
            columns: args.columns as u32,
            layout: 0,
        };
        self.launcher.launch(patchify.launch(pixels.bf16))
    }

    fn matmul(&mut self, args: &Matmul) -> Result<(), L::Error> {
        let [a, b] = [args.a, args.b].map(|operand| launcher::Operand {
            address: self.address(operand.region),
            stride: operand.stride,
            transposed: operand.transposed,
        });
        let matmul = launcher::Matmul {
            m: args.m,
            n: args.n,
            k: args.k,
            a,
            b,
            c: self.address(args.c),
            output: match args.output {
                Output::Narrow(bias) => launcher::Output::Bf16 {
                    bias: self.optional(bias),
                },
                Output::Wide(bias) => launcher::Output::F32 {
                    bias: self.optional(bias),
                },
                Output::Sum => launcher::Output::SumF32,
            },
        };
        self.launcher.matmul(&matmul)
    }

    fn assemble(&mut self, args: &Assemble) -> Result<(), L::Error> {
        let tokens = args.tokens;
        let assemble = arguments::Assemble {
            embedding: self.address(args.embedding),
            class_token: self.address(args.class_token),
            kept: self.optional(tokens.kept.map(|kept| kept[0])),
            x: self.address(args.x),
            batch: tokens.images as u32,
            patches: tokens.patches as u32,
            tokens: tokens.tokens as u32,
            width: tokens.width as u32,
        };
        self.launcher.launch(assemble.launch())
    }

    fn disassemble(&mut self, args: &Disassemble) -> Result<(), L::Error> {
        let tokens = args.tokens;
        let class_token = AddPartials {
            partials: self.address(args.dx),
            out: [self.address(args.d_class_token), 0, 0, 0],
            stride: (tokens.tokens * tokens.width) as u64,
            pieces: tokens.images as u32,
            width: tokens.width as u32,
            outputs: 1,
        };
        self.launcher.launch(class_token.launch())?;
        let partials = self.address(args.partials);
        let disassemble = arguments::Disassemble {
            dx: self.address(args.dx),
            token_of: self.optional(tokens.kept.map(|kept| kept[1])),
            d_embedding: self.address(args.d_embedding),
            partials,
            batch: tokens.images as u32,
            patches: tokens.patches as u32,
            tokens: tokens.tokens as u32,
            width: tokens.width as u32,
            rows_per_piece: ROWS_PER_PIECE as u32,
        };
        self.launcher.launch(disassemble.launch())?;
        let pieces = (tokens.images * tokens.patches).div_ceil(ROWS_PER_PIECE);
        let d_bias = self.address(args.d_bias);
        self.add_partials(partials, pieces, tokens.width, &[d_bias])
    }

    fn layer_norm(&mut self, rows: &Rows, x: Region, norm: &Norm) -> Result<(), L::Error> {
        let norm = NormForward {
            x: self.address(x),
            weight: self.address(norm.weight),
            bias: self.address(norm.bias),
            h: self.address(norm.normed),
            mean: self.address(norm.mean),
            rstd: self.address(norm.rstd),
            rows: rows.rows as u32,
            width: rows.width as u32,
            eps: rows.eps as f32,
            ..NormForward::default()
        };
        self.launcher.launch(norm.launch())
    }

    fn add_branch(&mut self, args: &AddBranch) -> Result<(), L::Error> {
        let mut add = NormForward {
            x: self.address(args.x),
            y: self.address(args.y),
            scale: self.optional(args.branch.scale),
            factors: self.optional(args.branch.factors),
            x_out: self.address(args.x_out),
            rows: args.rows.rows as u32,
            width: args.rows.width as u32,
            tokens: args.rows.tokens as u32,
            eps: args.rows.eps as f32,
            ..NormForward::default()
        };
        if let Some(norm) = args.norm {
            (add.weight, add.bias) = (self.address(norm.weight), self.address(norm.bias));
            add.h = self.address(norm.normed);
            (add.mean, add.rstd) = (self.address(norm.mean), self.address(norm.rstd));
        }
        self.launcher.launch(add.launch())
    }

    fn norm_backward(&mut self, args: &NormBackward) -> Result<(), L::Error> {
        if args.again {
            self.layer_norm(&args.rows, args.x, &args.norm)?;
        }
        let [scale, factors, dx_bf16, scaled_dx, d_branch] = self.branch(args.added.as_ref());
        let partials = self.address(args.partials);
        let Rows {
            rows,
            width,
            tokens,
            ..
        } = args.rows;
        let backward = arguments::NormBackward {
            dh: self.address(args.d_normed),
            x: self.address(args.x),
            mean: self.address(args.norm.mean),
            rstd: self.address(args.norm.rstd),
            weight: self.address(args.norm.weight),
            scale,
            factors,
            dx: self.address(args.dx),
            dx_bf16,
            scaled_dx,
            partials,
            rows: rows as u32,
            width: width as u32,
            rows_per_piece: ROWS_PER_PIECE as u32,
            tokens: tokens as u32,
        };
        self.launcher.launch(backward.launch())?;
        let outputs = [
            self.address(args.d_weight),
            self.address(args.d_bias),
            d_branch,
        ];
        self.add_partials(partials, rows.div_ceil(ROWS_PER_PIECE), width, &outputs)
    }

    fn activation(&mut self, args: &Activation) -> Result<(), L::Error> {
        let activation = arguments::Activation {
            result: self.address(args.result),
            ..self.activation_arguments(args)
        };
        self.launcher.launch(activation.launch(args.gated))
    }

    fn activation_backward(&mut self, args: &ActivationBackward) -> Result<(), L::Error> {
        let forward = &args.forward;
        let partials = self.address(args.partials);
        let activation = arguments::Activation {
            grad: self.address(args.d_result),
            result: if args.again {
                self.address(forward.result)
            } else {
                0
            },
            dx: self.address(args.dx),
            partials,
            ..self.activation_arguments(forward)
        };
        self.launcher.launch(activation.launch(forward.gated))?;
        let pieces = forward.rows.div_ceil(ROWS_PER_PIECE);
        let d_bias = self.address(args.d_bias);
        self.add_partials(partials, pieces, args.d_bias.len, &[d_bias])
    }

    fn attention(&mut self, args: &Attention) -> Result<(), L::Error> {
        let attention = self.attention_arguments(args);
        self.launcher.launch(attention.launch(args.images as u32))
    }

    fn attention_backward(&mut self, args: &AttentionBackward) -> Result<(), L::Error> {
        let forward = &args.forward;
        let width = forward.heads * forward.head_size;
        // Both sums of the kernel, one behind the other.
        let biases = self.address(args.partials);
        let norms = biases + F32 * (forward.images * 3 * width) as u64;
        let attention = arguments::Attention {
            d_out: self.address(args.d_out),
            d_qkv: self.address(args.d_qkv),
            bias_partials: biases,
            norm_partials: norms,
            ..self.attention_arguments(forward)
        };
        self.launcher
            .launch(attention.launch(forward.images as u32))?;
        let d_bias = self.optional(args.d_qkv_bias);
        self.add_partials(biases, forward.images, 3 * width, &[d_bias])?;
        let pieces = forward.images * forward.heads;
        let d_norms = args.d_head_norms.map(|norm| self.optional(norm));
        self.add_partials(norms, pieces, forward.head_size, &d_norms)
    }

    fn cosine_loss(&mut self, args: &CosineLoss) -> Result<(), L::Error> {
        let [scale, factors, dx_bf16, scaled_dx, d_branch] = self.branch(args.added.as_ref());
        let partials = self.address(args.partials);
        let Rows {
            rows,
            width,
            tokens,
            eps,
        } = args.rows;
        let pieces = rows.div_ceil(ROWS_PER_PIECE);
        self.report_pieces = pieces as u32;
        let loss = arguments::Loss {
            x: self.address(args.x),
            weight: self.address(args.weight),
            bias: self.address(args.bias),
            next: self.address(args.next),
            current: self.address(args.current),
            scale,
            factors,
            dx: self.address(args.dx),
            dx_bf16,
            scaled_dx,
            partials,
            report: self.own.report_pieces,
            rows: rows as u32,
            patches: args.patches as u32,
            tokens: tokens as u32,
            width: width as u32,
            rows_per_piece: ROWS_PER_PIECE as u32,
            eps: eps as f32,
            factor: args.factor as f32,
        };
        self.launcher.launch(loss.launch())?;
        let outputs = [
            self.address(args.d_weight),
            self.address(args.d_bias),
            d_branch,
        ];
        self.add_partials(partials, pieces, width, &outputs)?;
        let reported = 4 * NUM_REPORTED as u64;
        self.launcher.zero(self.own.report, reported)?;
        let Own {
            report_pieces,
            report,
            ..
        } = self.own;
        self.add_partials(report_pieces, pieces, NUM_REPORTED, &[report])
    }

    fn cosine_sums(&mut self) -> Result<[f64; 3], L::Error> {
        let mut sums = [0.0f32; NUM_REPORTED];
        self.launcher
            .read(self.own.report, bytemuck::cast_slice_mut(&mut sums))?;
        Ok(sums.map(f64::from))
    }

    fn pool(&mut self, args: &Pool) -> Result<(), L::Error> {
        let pool = arguments::Pool {
            x: self.address(args.x),
            weight: self.address(args.weight),
            bias: self.address(args.bias),
            pooled: self.address(args.pooled),
            tokens: args.rows.tokens as u32,
            taken: args.taken as u32,
            width: args.rows.width as u32,
            eps: args.rows.eps as f32,
        };
        self.launcher.launch(pool.launch(args.images() as u32))
    }

    fn pool_backward(&mut self, args: &PoolBackward) -> Result<(), L::Error> {
        let [scale, factors, dx_bf16, scaled_dx, d_branch] = self.branch(args.added.as_ref());
        let partials = self.address(args.partials);
        let Rows {
            rows,
            width,
            tokens,
            eps,
        } = args.rows;
        let backward = arguments::PoolBackward {
            x: self.address(args.x),
            weight: self.address(args.weight),
            d_pooled: self.address(args.d_pooled),
            scale,
            factors,
            dx: self.address(args.dx),
            dx_bf16,
            scaled_dx,
            partials,
            rows: rows as u32,
            tokens: tokens as u32,
            taken: args.taken as u32,
            width: width as u32,
            rows_per_piece: ROWS_PER_PIECE as u32,
            eps: eps as f32,
        };
        self.launcher.launch(backward.launch())?;
        let outputs = [
            self.address(args.d_weight),
            self.address(args.d_bias),
            d_branch,
        ];
        self.add_partials(partials, rows.div_ceil(ROWS_PER_PIECE), width, &outputs)
    }

    fn layer_scale(&mut self, args: &LayerScale) -> Result<(), L::Error> {
        let finish = arguments::LayerScale {
            weight: self.address(args.weight),
            d_weight: self.address(args.d_weight),
            bias: self.address(args.bias),
            d_bias: self.address(args.d_bias),
            scale: self.address(args.scale),
            d_scale: self.address(args.d_scale),
            columns: args.columns as u32,
        };
        self.launcher.launch(finish.launch(args.scale.len as u32))
    }

    fn gradient_norm(&mut self, gradient: Region, max_norm: Option<f64>) -> Result<f64, L::Error> {
        let norm = GradientNorm {
            gradient: self.address(gradient),
            partials: self.own.norm_partials,
            result: self.own.norm,
            max_norm: max_norm.unwrap_or(f64::INFINITY),
            len: gradient.len as u64,
        };
        for launch in norm.launches() {
            self.launcher.launch(launch)?;
        }
        let mut result = [0; NORM_RESULT_BYTES];
        self.launcher.read(self.own.norm, &mut result)?;
        let [norm, ..] = *result.as_chunks::<8>().0 else {
            unreachable!("16 bytes are two words")
        };
        Ok(f64::from_ne_bytes(norm))
    }

    fn adamw(
        &mut self,
        arenas: &Arenas,
        groups: &[Group],
        rule: &AdamW<'_>,
    ) -> Result<(), L::Error> {
        let segments = groups.iter().map(|group| Segment::new(group, rule));
        let segments: Vec<[u8; 32]> = segments.map(|segment| segment.bytes()).collect();
        self.launcher
            .write(self.own.segments, segments.as_flattened())?;
        let decay = rule.average_decay.unwrap_or(0.0);
        let average = rule.average_decay.map(|_| arenas.average);
        let adamw = arguments::AdamW {
            weights: self.address(arenas.weights),
            gradient: self.address(arenas.gradient),
            m: self.address(arenas.m),
            v: self.address(arenas.v),
            average: self.optional(average),
            copy: self.address(arenas.narrow),
            segments: self.own.segments,
            norm: self.own.norm,
            len: arenas.weights.len as u64,
            correction2: rule.correction2 as f32,
            beta1: rule.beta1 as f32,
            rest1: (1.0 - rule.beta1) as f32,
            beta2: rule.beta2 as f32,
            rest2: (1.0 - rule.beta2) as f32,
            eps: rule.eps as f32,
            decay: decay as f32,
            rest: (1.0 - decay) as f32,
            num_segments: segments.len() as u32,
        };
        self.launcher.launch(adamw.launch())
    }
}
