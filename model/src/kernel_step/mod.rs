//! The pretraining step in launches of our kernels and products of bf16 matrices: what is computed where, in which order, over which memory. Generic over
//! the device, so that a test runs the very same launches on the CPU; [`crate::cuda`] has the GPU. Shapes as in [`crate::explicit`], whose backward this
//! is: the residual stream, statistics, weights and all sums are f32, what products read and write is bf16.
pub mod arguments;
pub mod layout;
mod memory;
mod update;

use crate::explicit::Shape;
use crate::{HiddenAct, MemoryPlan, ModelError, NepaConfig, PretrainReport, RopeDraw};

use arguments::{
    Activation, AddPartials, Assemble, Attention, Disassemble, HEAD, Launch, Loss, MAX_TOKENS,
    NormBackward, NormForward, Patchify,
};
use layout::Layout;
use memory::{ROWS_PER_PIECE, Regions};
pub use update::{FlatState, Update};

/// A matrix in row-major memory, of bf16.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// Of its first value.
    pub address: u64,
    /// Values from one row in memory to the next.
    pub stride: usize,
    /// Whether the operand is the transpose of what lies in memory.
    pub transposed: bool,
}

/// Where a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// Rounded to bf16, with a bias of bf16 for each column, or none (0).
    Bf16 {
        /// Its address.
        bias: u64,
    },
    /// Added to what is there, f32.
    SumF32,
    /// f32, with a bias of f32 for each column, or none (0).
    F32 {
        /// Its address.
        bias: u64,
    },
}

/// `C [m, n] = A [m, k] B [k, n]`, sums in f32.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Left operand.
    pub a: Operand,
    /// Right operand.
    pub b: Operand,
    /// Address of the result, whose rows have no gaps.
    pub c: u64,
    /// Its type.
    pub into: Into,
}

/// What the step asks of a device. All calls are done in order.
pub trait StepDevice {
    /// What can go wrong.
    type Error;
    /// Takes memory, once; its address, a multiple of 256. It may hold anything.
    fn allocate(&mut self, num_bytes: u64) -> Result<u64, Self::Error>;
    /// Launches a kernel.
    fn launch<A: Copy>(&mut self, launch: Launch<A>) -> Result<(), Self::Error>;
    /// Multiplies.
    fn multiply(&mut self, product: Product) -> Result<(), Self::Error>;
    /// Writes zeros.
    fn zero(&mut self, address: u64, num_bytes: u64) -> Result<(), Self::Error>;
    /// Copies to the device; the bytes may be changed when it returns.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Copies from the device, after all that was asked before.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;
}

/// Pixels of a micro-batch on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pixels {
    /// `[B, 3, S, S]`, normalised.
    pub address: u64,
    /// bf16, or f32.
    pub bf16: bool,
}

/// The step on one device.
#[derive(Debug)]
pub struct KernelStep<D> {
    device: D,
    config: NepaConfig,
    shape: Shape,
    layout: Layout,
    regions: Regions,
    plan: MemoryPlan,
    num_segments: u32,
    has_average: bool,
}

impl<D: StepDevice> KernelStep<D> {
    /// Checks that the kernels can compute the model, and takes all memory for micro-batches of `micro_batch` images.
    pub fn new(config: &NepaConfig, micro_batch: usize, mut device: D) -> Result<Self, D::Error>
    where
        D::Error: From<ModelError>,
    {
        check(config)?;
        let shape = Shape::new(config, micro_batch);
        let layout = Layout::new(config);
        let (_, plan) = Regions::new(config, &shape, &layout, 0);
        let base = device.allocate(plan.total_bytes())?;
        let (regions, plan) = Regions::new(config, &shape, &layout, base);
        Ok(Self {
            device,
            config: config.clone(),
            shape,
            layout,
            regions,
            plan,
            num_segments: 0,
            has_average: false,
        })
    }

    /// Memory of an engine for such micro-batches.
    pub fn plan(config: &NepaConfig, micro_batch: usize) -> MemoryPlan {
        let shape = Shape::new(config, micro_batch);
        Regions::new(config, &shape, &Layout::new(config), 0).1
    }

    /// The memory that it took.
    pub fn memory(&self) -> &MemoryPlan {
        &self.plan
    }

    /// The device.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// Copies images from the host, `[3, S, S]` each.
    pub fn stage(&mut self, images: &[&[f32]]) -> Result<Pixels, D::Error>
    where
        D::Error: From<ModelError>,
    {
        let (channels, size) = (self.config.num_channels, self.config.image_size);
        let len = channels * size * size;
        if images.len() != self.shape.batch || images.iter().any(|image| image.len() != len) {
            let got = images.iter().map(|image| image.len()).collect();
            return Err(D::Error::from(ModelError::PixelShape {
                got,
                channels,
                image_size: size,
            }));
        }
        for (number, image) in images.iter().enumerate() {
            let address = self.regions.pixels + (4 * number * len) as u64;
            self.device.write(address, bytemuck::cast_slice(image))?;
        }
        Ok(Pixels {
            address: self.regions.pixels,
            bf16: false,
        })
    }

    /// Forgets the gradient.
    pub fn clear_gradient(&mut self) -> Result<(), D::Error> {
        let num_bytes = 4 * self.layout.len() as u64;
        self.device.zero(self.regions.flat.gradient, num_bytes)
    }

    /// Adds `share` times the gradient of one micro-batch's loss, as [`crate::ExplicitNepa::add_gradient`] does.
    pub fn add_gradient(
        &mut self,
        pixels: Pixels,
        rope: &RopeDraw,
        share: f64,
    ) -> Result<PretrainReport, D::Error> {
        self.embed(pixels, rope)?;
        for index in 0..self.shape.blocks {
            self.block(index)?;
        }
        self.loss(share)?;
        for index in (0..self.shape.blocks).rev() {
            self.mlp_backward(index)?;
            self.attention_backward(index)?;
        }
        self.embedding_backward()?;
        self.report()
    }

    fn weight(&self, offset: usize) -> u64 {
        self.regions.flat.weights + 4 * offset as u64
    }

    fn weight_bf16(&self, offset: usize) -> u64 {
        self.regions.flat.weights_bf16 + 2 * offset as u64
    }

    fn gradient(&self, offset: usize) -> u64 {
        self.regions.flat.gradient + 4 * offset as u64
    }

    /// `out [m, outputs] = x [m, inputs] W^T + b`.
    fn linear(
        &mut self,
        m: usize,
        (inputs, outputs): (usize, usize),
        x: u64,
        weight: usize,
        bias: Option<usize>,
        out: u64,
    ) -> Result<(), D::Error> {
        let bias = bias.map_or(0, |bias| self.weight_bf16(bias));
        self.device.multiply(Product {
            m,
            n: outputs,
            k: inputs,
            a: rows(x, inputs),
            b: transposed(self.weight_bf16(weight), inputs),
            c: out,
            into: Into::Bf16 { bias },
        })
    }

    /// `out [m, inputs] = grad [m, outputs] W`.
    fn linear_backward(
        &mut self,
        m: usize,
        (inputs, outputs): (usize, usize),
        grad: u64,
        weight: usize,
        out: u64,
    ) -> Result<(), D::Error> {
        self.device.multiply(Product {
            m,
            n: inputs,
            k: outputs,
            a: rows(grad, outputs),
            b: rows(self.weight_bf16(weight), inputs),
            c: out,
            into: Into::Bf16 { bias: 0 },
        })
    }

    /// The weight's gradient `+= grad [m, outputs]^T x [m, inputs]`.
    fn weight_gradient(
        &mut self,
        m: usize,
        (inputs, outputs): (usize, usize),
        grad: u64,
        x: u64,
        weight: usize,
    ) -> Result<(), D::Error> {
        self.device.multiply(Product {
            m: outputs,
            n: inputs,
            k: m,
            a: transposed(grad, outputs),
            b: rows(x, inputs),
            c: self.gradient(weight),
            into: Into::SumF32,
        })
    }

    /// Adds the sums of all pieces in `partials`, `width` values for each of `outputs`, to the gradients of those that are there.
    fn add_sums(
        &mut self,
        partials: u64,
        pieces: usize,
        width: usize,
        outputs: &[Option<usize>],
    ) -> Result<(), D::Error> {
        if outputs.iter().all(Option::is_none) {
            return Ok(());
        }
        let mut out = [0; 4];
        for (out, offset) in out.iter_mut().zip(outputs) {
            *out = offset.map_or(0, |offset| self.gradient(offset));
        }
        let sums = AddPartials {
            partials,
            out,
            stride: (outputs.len() * width) as u64,
            pieces: pieces as u32,
            width: width as u32,
            outputs: outputs.len() as u32,
        };
        self.device.launch(sums.launch())
    }

    fn add_partials(
        &mut self,
        pieces: usize,
        width: usize,
        outputs: &[Option<usize>],
    ) -> Result<(), D::Error> {
        self.add_sums(self.regions.partials, pieces, width, outputs)
    }

    fn pieces(&self) -> usize {
        self.shape.rows().div_ceil(ROWS_PER_PIECE)
    }

    fn eps(&self) -> f32 {
        self.config.layer_norm_eps as f32
    }

    fn embed(&mut self, pixels: Pixels, rope: &RopeDraw) -> Result<(), D::Error> {
        let (shape, config) = (self.shape, &self.config);
        let table = rope.table(config);
        let single = |values: &[f64]| {
            let len = shape.tokens * shape.head() / 2;
            values[..len].iter().map(|v| *v as f32).collect::<Vec<_>>()
        };
        self.device
            .write(self.regions.cos, bytemuck::cast_slice(&single(&table.cos)))?;
        self.device
            .write(self.regions.sin, bytemuck::cast_slice(&single(&table.sin)))?;
        let columns = self.layout.patch_columns;
        let patchify = Patchify {
            pixels: pixels.address,
            patches: self.regions.patches,
            batch: shape.batch as u32,
            side: config.image_size as u32,
            patch: config.patch_size as u32,
            columns: columns as u32,
            layout: 0,
        };
        self.device.launch(patchify.launch(pixels.bf16))?;
        let [weight, bias] = self.layout.projection;
        self.device.multiply(Product {
            m: shape.batch * shape.patches,
            n: shape.width,
            k: columns,
            a: rows(self.regions.patches, columns),
            b: transposed(self.weight_bf16(weight), columns),
            c: self.regions.embedding,
            into: Into::F32 {
                bias: self.weight(bias),
            },
        })?;
        let assemble = Assemble {
            embedding: self.regions.embedding,
            class_token: self.weight(self.layout.class_token),
            x: self.input(0),
            batch: shape.batch as u32,
            patches: shape.patches as u32,
            tokens: shape.tokens as u32,
            width: shape.width as u32,
        };
        self.device.launch(assemble.launch())?;
        if shape.blocks == 0 {
            return Ok(());
        }
        let (block, [weight, bias]) = (self.regions.blocks[0], self.layout.blocks[0].norm_before);
        let norm = NormForward {
            x: block.input,
            weight: self.weight(weight),
            bias: self.weight(bias),
            h: block.normed_before,
            mean: block.before[0],
            rstd: block.before[1],
            rows: shape.rows() as u32,
            width: shape.width as u32,
            eps: self.eps(),
            ..NormForward::default()
        };
        self.device.launch(norm.launch())
    }

    /// The stream that a block reads; behind the last one, the output.
    fn input(&self, index: usize) -> u64 {
        let block = self.regions.blocks.get(index);
        block.map_or(self.regions.output, |block| block.input)
    }

    fn block(&mut self, index: usize) -> Result<(), D::Error> {
        let (shape, places) = (self.shape, self.layout.blocks[index].clone());
        let (rows, width) = (shape.rows(), shape.width);
        let block = self.regions.blocks[index];
        let product = self.regions.product;

        self.linear(
            rows,
            (width, 3 * width),
            block.normed_before,
            places.qkv,
            places.qkv_bias,
            block.qkv,
        )?;
        let attention = self.attention(index);
        self.device.launch(attention.launch(shape.batch as u32))?;
        let [weight, bias] = places.attention_output;
        self.linear(
            rows,
            (width, width),
            block.attention,
            weight,
            Some(bias),
            product,
        )?;
        let after = [places.norm_after[0], places.norm_after[1]];
        self.add_to_stream(
            block.input,
            places.attention_scale,
            block.middle,
            Some((after, block.normed_after, block.after)),
        )?;

        let [weight, bias] = places.up;
        self.linear(
            rows,
            (width, shape.up),
            block.normed_after,
            weight,
            Some(bias),
            block.up,
        )?;
        let activation = Activation {
            x: block.up,
            result: self.regions.hidden,
            ..self.activation()
        };
        self.device
            .launch(activation.launch(self.config.use_gated_mlp))?;
        let [weight, bias] = places.down;
        self.linear(
            rows,
            (shape.mlp, width),
            self.regions.hidden,
            weight,
            Some(bias),
            product,
        )?;
        let next = self.layout.blocks.get(index + 1).map(|next| {
            let regions = self.regions.blocks[index + 1];
            (next.norm_before, regions.normed_before, regions.before)
        });
        self.add_to_stream(block.middle, places.mlp_scale, self.input(index + 1), next)
    }

    /// `out = x + scale * product`, and the norm of the result if there is one: its weights, where it goes, its statistics.
    fn add_to_stream(
        &mut self,
        x: u64,
        scale: usize,
        out: u64,
        norm: Option<([usize; 2], u64, [u64; 2])>,
    ) -> Result<(), D::Error> {
        let mut arguments = NormForward {
            x,
            y: self.regions.product,
            scale: self.weight(scale),
            x_out: out,
            rows: self.shape.rows() as u32,
            width: self.shape.width as u32,
            eps: self.eps(),
            ..NormForward::default()
        };
        if let Some(([weight, bias], h, [mean, rstd])) = norm {
            (arguments.weight, arguments.bias) = (self.weight(weight), self.weight(bias));
            (arguments.h, arguments.mean, arguments.rstd) = (h, mean, rstd);
        }
        self.device.launch(arguments.launch())
    }

    /// What both directions of a block's attention share.
    fn attention(&self, index: usize) -> Attention {
        let block = self.regions.blocks[index];
        let [query_weight, query_bias, key_weight, key_bias] = self.layout.blocks[index]
            .head_norms
            .map(|place| place.map_or(0, |place| self.weight(place)));
        Attention {
            qkv: block.qkv,
            cos: self.regions.cos,
            sin: self.regions.sin,
            query_weight,
            query_bias,
            key_weight,
            key_bias,
            out: block.attention,
            lse: block.lse,
            tokens: self.shape.tokens as u32,
            heads: self.shape.heads as u32,
            causal: self.config.is_causal.into(),
            qk_norm: self.config.qk_norm.into(),
            eps: self.eps(),
            ..Attention::default()
        }
    }

    /// What both directions of the activation share.
    fn activation(&self) -> Activation {
        Activation {
            rows: self.shape.rows() as u32,
            width: self.shape.mlp as u32,
            rows_per_piece: ROWS_PER_PIECE as u32,
            kind: match self.config.hidden_act {
                HiddenAct::Gelu => 0,
                HiddenAct::Silu => 1,
                HiddenAct::Relu => 2,
            },
            ..Activation::default()
        }
    }

    /// The LayerScale, and the bias inside of it, of what was added to the stream last before a block's attention.
    fn added_before(&self, index: usize) -> Option<(usize, usize)> {
        let places = self.layout.blocks.get(index.checked_sub(1)?)?;
        Some((places.mlp_scale, places.down[1]))
    }

    fn loss(&mut self, share: f64) -> Result<(), D::Error> {
        let (shape, [weight, bias]) = (self.shape, self.layout.norm);
        let added = self.added_before(shape.blocks);
        let loss = Loss {
            x: self.regions.output,
            weight: self.weight(weight),
            bias: self.weight(bias),
            next: self.regions.embedding,
            current: self.input(0),
            scale: added.map_or(0, |(scale, _)| self.weight(scale)),
            dx: self.regions.dx,
            dx_bf16: self.regions.dx_bf16,
            scaled_dx: self.regions.scaled_dx,
            partials: self.regions.partials,
            report: self.regions.report_pieces,
            rows: shape.rows() as u32,
            patches: shape.patches as u32,
            tokens: shape.tokens as u32,
            width: shape.width as u32,
            rows_per_piece: ROWS_PER_PIECE as u32,
            eps: self.eps(),
            factor: (-share / (shape.batch * shape.patches) as f64) as f32,
        };
        self.device.launch(loss.launch())?;
        let outputs = [Some(weight), Some(bias), added.map(|(_, bias)| bias)];
        self.add_partials(self.pieces(), shape.width, &outputs)?;
        self.device.zero(self.regions.report, 12)?;
        let report = AddPartials {
            partials: self.regions.report_pieces,
            out: [self.regions.report, 0, 0, 0],
            stride: 3,
            pieces: self.pieces() as u32,
            width: 3,
            outputs: 1,
        };
        self.device.launch(report.launch())
    }

    /// Reads the report of the last loss; waits for the device.
    fn report(&mut self) -> Result<PretrainReport, D::Error> {
        let mut sums = [0.0f32; 3];
        self.device
            .read(self.regions.report, bytemuck::cast_slice_mut(&mut sums))?;
        let count = (self.shape.batch * self.shape.patches) as f64;
        let [target, previous, wins] = sums.map(|sum| f64::from(sum) / count);
        Ok(PretrainReport {
            loss: -target,
            cos_target: target,
            cos_previous: previous,
            copy_win: wins,
        })
    }

    /// The backward of a norm: `product` is the gradient of its output. `added` is what was added to the stream last before it: its LayerScale and
    /// its bias, which gets the sums of the stream's gradient.
    fn norm_backward(
        &mut self,
        x: u64,
        [mean, rstd]: [u64; 2],
        [weight, bias]: [usize; 2],
        added: Option<(usize, usize)>,
    ) -> Result<(), D::Error> {
        let backward = NormBackward {
            dh: self.regions.product,
            x,
            mean,
            rstd,
            weight: self.weight(weight),
            scale: added.map_or(0, |(scale, _)| self.weight(scale)),
            dx: self.regions.dx,
            dx_bf16: self.regions.dx_bf16,
            scaled_dx: self.regions.scaled_dx,
            partials: self.regions.partials,
            rows: self.shape.rows() as u32,
            width: self.shape.width as u32,
            rows_per_piece: ROWS_PER_PIECE as u32,
        };
        self.device.launch(backward.launch())?;
        let outputs = [Some(weight), Some(bias), added.map(|(_, bias)| bias)];
        self.add_partials(self.pieces(), self.shape.width, &outputs)
    }

    fn mlp_backward(&mut self, index: usize) -> Result<(), D::Error> {
        let (shape, places) = (self.shape, self.layout.blocks[index].clone());
        let (rows, width) = (shape.rows(), shape.width);
        let block = self.regions.blocks[index];
        let (product, hidden, d_hidden, d_up) = (
            self.regions.product,
            self.regions.hidden,
            self.regions.d_hidden,
            self.regions.d_up,
        );
        let down = (shape.mlp, width);
        self.linear_backward(rows, down, self.regions.scaled_dx, places.down[0], d_hidden)?;
        // Also makes the activation once more, which the forward pass has overwritten.
        let activation = Activation {
            x: block.up,
            grad: d_hidden,
            result: hidden,
            dx: d_up,
            partials: self.regions.partials,
            ..self.activation()
        };
        self.device
            .launch(activation.launch(self.config.use_gated_mlp))?;
        self.add_partials(self.pieces(), shape.up, &[Some(places.up[1])])?;
        self.weight_gradient(rows, down, self.regions.dx_bf16, hidden, places.down[0])?;

        let up = (width, shape.up);
        self.weight_gradient(rows, up, d_up, block.normed_after, places.up[0])?;
        self.linear_backward(rows, up, d_up, places.up[0], product)?;
        let added = (places.attention_scale, places.attention_output[1]);
        self.norm_backward(block.middle, block.after, places.norm_after, Some(added))
    }

    fn attention_backward(&mut self, index: usize) -> Result<(), D::Error> {
        let (shape, places) = (self.shape, self.layout.blocks[index].clone());
        let (rows, width) = (shape.rows(), shape.width);
        let block = self.regions.blocks[index];
        let (product, d_qkv) = (self.regions.product, self.regions.d_qkv);
        let (square, weight) = ((width, width), places.attention_output[0]);
        self.weight_gradient(rows, square, self.regions.dx_bf16, block.attention, weight)?;
        self.linear_backward(rows, square, self.regions.scaled_dx, weight, product)?;
        // Both sums of the attention kernel, one behind the other.
        let [biases, norms] = [0, shape.batch * 3 * width].map(|skipped| {
            let skipped = 4 * skipped as u64;
            self.regions.partials + skipped
        });
        let attention = Attention {
            d_out: product,
            d_qkv,
            bias_partials: biases,
            norm_partials: norms,
            ..self.attention(index)
        };
        self.device.launch(attention.launch(shape.batch as u32))?;
        self.add_sums(biases, shape.batch, 3 * width, &[places.qkv_bias])?;
        self.add_sums(norms, shape.batch * shape.heads, HEAD, &places.head_norms)?;
        let qkv = (width, 3 * width);
        self.weight_gradient(rows, qkv, d_qkv, block.normed_before, places.qkv)?;
        self.linear_backward(rows, qkv, d_qkv, places.qkv, product)?;
        let added = self.added_before(index);
        self.norm_backward(block.input, block.before, places.norm_before, added)
    }

    fn embedding_backward(&mut self) -> Result<(), D::Error> {
        let shape = self.shape;
        let class_token = AddPartials {
            partials: self.regions.dx,
            out: [self.gradient(self.layout.class_token), 0, 0, 0],
            stride: (shape.tokens * shape.width) as u64,
            pieces: shape.batch as u32,
            width: shape.width as u32,
            outputs: 1,
        };
        self.device.launch(class_token.launch())?;
        let d_embedding = self.regions.product;
        let rows = shape.batch * shape.patches;
        let disassemble = Disassemble {
            dx: self.regions.dx,
            d_embedding,
            partials: self.regions.partials,
            batch: shape.batch as u32,
            patches: shape.patches as u32,
            tokens: shape.tokens as u32,
            width: shape.width as u32,
            rows_per_piece: ROWS_PER_PIECE as u32,
        };
        self.device.launch(disassemble.launch())?;
        let [weight, bias] = self.layout.projection;
        self.add_partials(rows.div_ceil(ROWS_PER_PIECE), shape.width, &[Some(bias)])?;
        let (columns, patches) = (self.layout.patch_columns, self.regions.patches);
        self.weight_gradient(rows, (columns, shape.width), d_embedding, patches, weight)
    }
}

fn rows(address: u64, stride: usize) -> Operand {
    Operand {
        address,
        stride,
        transposed: false,
    }
}

fn transposed(address: u64, stride: usize) -> Operand {
    Operand {
        transposed: true,
        ..rows(address, stride)
    }
}

/// Whether the kernels can compute a model.
pub fn check(config: &NepaConfig) -> Result<(), ModelError> {
    config.validate()?;
    let tokens = Shape::new(config, 1).tokens;
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
            tokens <= MAX_TOKENS,
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
