//! The forward pass: launches and products from the pixels to the stream behind the last block.
use super::arguments::{Activation, Assemble, Attention, NormForward, Patchify};
use super::memory::ROWS_PER_PIECE;
use super::{KernelStep, Output, Pixels, Product, StepDevice, rows, transposed};
use crate::{HiddenAct, RopeDraw};

impl<D: StepDevice> KernelStep<D> {
    pub(super) fn embed(&mut self, pixels: Pixels, rope: &RopeDraw) -> Result<(), D::Error> {
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
            height: config.image_size as u32,
            width: config.image_size as u32,
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
            output: Output::F32 {
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
            ..Assemble::default()
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
    pub(super) fn input(&self, index: usize) -> u64 {
        let block = self.regions.blocks.get(index);
        block.map_or(self.regions.output, |block| block.input)
    }

    pub(super) fn block(&mut self, index: usize) -> Result<(), D::Error> {
        let (shape, places) = (self.shape, self.layout.blocks[index]);
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
        self.add_to_stream(
            block.input,
            places.attention_scale,
            block.middle,
            Some((places.norm_after, block.normed_after, block.after)),
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
            result: block.hidden,
            ..self.activation()
        };
        self.device
            .launch(activation.launch(self.config.use_gated_mlp))?;
        let [weight, bias] = places.down;
        self.linear(
            rows,
            (shape.mlp, width),
            block.hidden,
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

    /// `out = x + scale * product`, and the norm of the result if there is one: its weights, where
    /// it goes, its statistics.
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
    pub(super) fn attention(&self, index: usize) -> Attention {
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
    pub(super) fn activation(&self) -> Activation {
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
}
