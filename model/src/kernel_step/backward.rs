//! Loss and backward pass, from the stream behind the last block to the gradients of the patch
//! embedding.
use super::arguments::{Activation, AddPartials, Attention, Disassemble, HEAD, Loss, NormBackward};
use super::memory::ROWS_PER_PIECE;
use super::{Kept, KernelStep, StepDevice};
use crate::PretrainReport;

impl<D: StepDevice> KernelStep<D> {
    /// The LayerScale, and the bias inside of it, of what was added to the stream last before a
    /// block's attention.
    fn added_before(&self, index: usize) -> Option<(usize, usize)> {
        let places = self.layout.blocks.get(index.checked_sub(1)?)?;
        Some((places.mlp_scale, places.down[1]))
    }

    pub(super) fn loss(&mut self, share: f64) -> Result<(), D::Error> {
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
            ..Loss::default()
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
    pub(super) fn report(&mut self) -> Result<PretrainReport, D::Error> {
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

    /// The backward of a norm: `product` is the gradient of its output. `added` is what was added
    /// to the stream last before it: its LayerScale and its bias, which gets the sums of the
    /// stream's gradient.
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
            ..NormBackward::default()
        };
        self.device.launch(backward.launch())?;
        let outputs = [Some(weight), Some(bias), added.map(|(_, bias)| bias)];
        self.add_partials(self.pieces(), self.shape.width, &outputs)
    }

    pub(super) fn mlp_backward(&mut self, index: usize) -> Result<(), D::Error> {
        let (shape, places) = (self.shape, self.layout.blocks[index]);
        let (rows, width) = (shape.rows(), shape.width);
        let block = self.regions.blocks[index];
        let (product, hidden, d_hidden, d_up) = (
            self.regions.product,
            block.hidden,
            self.regions.d_hidden,
            self.regions.d_up,
        );
        let down = (shape.mlp, width);
        self.linear_backward(rows, down, self.regions.scaled_dx, places.down[0], d_hidden)?;
        let activation = Activation {
            x: block.up,
            grad: d_hidden,
            // Where the blocks share its memory, the forward pass has overwritten it.
            result: match self.kept {
                Kept::Least => hidden,
                Kept::Activations => 0,
            },
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

    pub(super) fn attention_backward(&mut self, index: usize) -> Result<(), D::Error> {
        let (shape, places) = (self.shape, self.layout.blocks[index]);
        let (rows, width) = (shape.rows(), shape.width);
        let block = self.regions.blocks[index];
        let (product, d_qkv) = (self.regions.product, self.regions.d_qkv);
        let (square, weight) = ((width, width), places.attention_output[0]);
        self.weight_gradient(rows, square, self.regions.dx_bf16, block.attention, weight)?;
        self.linear_backward(rows, square, self.regions.scaled_dx, weight, product)?;
        // Both sums of the attention kernel, one behind the other.
        let biases = self.regions.partials;
        let norms = biases + 4 * (shape.batch * 3 * width) as u64;
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

    pub(super) fn embedding_backward(&mut self) -> Result<(), D::Error> {
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
            ..Disassemble::default()
        };
        self.device.launch(disassemble.launch())?;
        let [weight, bias] = self.layout.projection;
        self.add_partials(rows.div_ceil(ROWS_PER_PIECE), shape.width, &[Some(bias)])?;
        let (columns, patches) = (self.layout.patch_columns, self.regions.patches);
        self.weight_gradient(rows, (columns, shape.width), d_embedding, patches, weight)
    }
}
