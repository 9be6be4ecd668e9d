//! The encoder: from pixels to the stream behind the last block, and from the gradient of that
//! stream back to the patch embedding.
//!
//! A block is `x + s1 Attention(Norm(x))`, then `x + s2 MLP(Norm(x))`. Sums with the stream and the
//! norm behind them are one operation both ways, so the stream is read and written once for both.
use candle_core::WithDType;

use super::device::{
    Activation, ActivationBackward, AddBranch, Assemble, Attention, AttentionBackward, Branch,
    BranchGradient, Device, Disassemble, Matmul, Norm, NormBackward, Operand, Output, Patchify,
    Region, Rows, Tokens,
};
use super::options::{Kept, Pass, Shape, tokens_of_patches};
use super::step::Step;
use crate::ModelError;

/// Which of a block's two branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Attention,
    Mlp,
}

impl<D: Device> Step<D> {
    /// From the pixels of `images` images to the stream behind the last block.
    pub fn forward(
        &mut self,
        pixels: D::Pixels<'_>,
        images: usize,
        pass: &Pass<'_>,
    ) -> Result<(), D::Error> {
        self.shape.images = images;
        self.check_pass(pass)?;
        self.write_pass(pass)?;
        self.embed(pixels)?;
        for index in 0..self.shape.blocks {
            self.block(index)?;
        }
        Ok(())
    }

    /// From the gradient of the stream behind the last block, which the objective has left with
    /// what its last branch needs, to all weights that are trained.
    pub(crate) fn backward(&mut self) -> Result<(), D::Error> {
        for index in (self.depth.saturating_sub(1)..self.shape.blocks).rev() {
            self.mlp_backward(index)?;
            self.attention_backward(index)?;
        }
        if self.depth > 0 {
            return Ok(());
        }
        self.embedding_backward()
    }

    fn check_pass(&self, pass: &Pass<'_>) -> Result<(), ModelError> {
        let (shape, options) = (self.shape, &self.options);
        let refused = |reason| Err(ModelError::Step { reason });
        if shape.images == 0 || shape.images > options.images {
            return refused("a pass has no image, or more than it was made for");
        }
        let wanted = options.kept_patches.map(|kept| kept * shape.images);
        if pass.kept.map(<[u32]>::len) != wanted {
            return refused(
                "a pass must say for each image which patches it keeps, if it keeps some",
            );
        }
        let out_of_range = |patch: &u32| *patch as usize >= shape.patches;
        if pass.kept.is_some_and(|kept| kept.iter().any(out_of_range)) {
            return refused("a pass keeps a patch that is not there");
        }
        if let Some(kept) = pass.kept {
            let mut seen = vec![usize::MAX; shape.patches];
            for (image, kept) in kept.chunks(shape.tokens - 1).enumerate() {
                for patch in kept {
                    // A patch that is two tokens would get the gradient of one.
                    if std::mem::replace(&mut seen[*patch as usize], image) == image {
                        return refused("a pass keeps a patch of an image twice");
                    }
                }
            }
        }
        let wanted = options.drop_path.then_some(2 * shape.blocks * shape.images);
        if pass.drop_path.map(<[f32]>::len) != wanted {
            return refused(
                "a pass must have a factor for each branch of each image, if some drop",
            );
        }
        Ok(())
    }

    /// What the device must know of a pass.
    fn write_pass(&mut self, pass: &Pass<'_>) -> Result<(), D::Error> {
        let (shape, half) = (self.shape, self.shape.head_size() / 2);
        let table = pass.rope.table(&self.config, shape.grid);
        let wide = |values: &[f64]| -> Vec<D::Wide> {
            let of_token = |token: usize| &values[token * half..][..half];
            let all: Vec<f64> = match pass.kept {
                None => values[..shape.tokens * half].to_vec(),
                Some(kept) => {
                    let images = kept.chunks(shape.tokens - 1);
                    let tokens = images.flat_map(|kept| {
                        let patches = kept.iter().map(|patch| 1 + *patch as usize);
                        std::iter::once(0).chain(patches)
                    });
                    tokens.flat_map(of_token).copied().collect()
                }
            };
            all.into_iter().map(D::Wide::from_f64).collect()
        };
        for (region, values) in self
            .regions
            .rotary
            .into_iter()
            .zip([&table.cos, &table.sin])
        {
            let values = wide(values);
            self.device.write(region.first(values.len()), &values)?;
        }
        if let (Some([to_patch, to_token]), Some(kept)) = (self.regions.kept_patches, pass.kept) {
            let tokens = tokens_of_patches(kept, shape.tokens - 1, shape.patches);
            self.device
                .write_indices(to_patch.first(kept.len()), kept)?;
            self.device
                .write_indices(to_token.first(tokens.len()), &tokens)?;
        }
        if let (Some(region), Some(factors)) = (self.regions.factors, pass.drop_path) {
            let wide = |factor: &f32| D::Wide::from_f64(f64::from(*factor));
            let factors: Vec<D::Wide> = factors.iter().map(wide).collect();
            self.device.write(region.first(factors.len()), &factors)?;
        }
        Ok(())
    }

    fn embed(&mut self, pixels: D::Pixels<'_>) -> Result<(), D::Error> {
        let (shape, columns) = (self.shape, self.layout.patch_columns);
        let rows = shape.images * shape.patches;
        let patchify = Patchify {
            patches: self.regions.patches.first(rows * columns),
            images: shape.images,
            channels: self.config.num_channels,
            grid: shape.grid,
            patch: self.config.patch_size,
            columns,
        };
        self.device.patchify(pixels, &patchify)?;
        let [weight, bias] = self.layout.projection;
        self.device.matmul(&Matmul {
            m: rows,
            n: shape.width,
            k: columns,
            a: Operand::rows(patchify.patches, columns),
            b: Operand::transposed(self.narrow_weight(weight, shape.width * columns), columns),
            c: self.embedding(),
            output: Output::Wide(Some(self.weight(bias, shape.width))),
        })?;
        self.device.assemble(&Assemble {
            tokens: self.tokens(),
            embedding: self.embedding(),
            class_token: self.weight(self.layout.class_token, shape.width),
            x: self.stream(0),
        })?;
        if shape.blocks == 0 {
            return Ok(());
        }
        let norm = self.norm(0, Part::Attention);
        self.device.layer_norm(&self.rows(), self.stream(0), &norm)
    }

    fn block(&mut self, index: usize) -> Result<(), D::Error> {
        let (shape, places) = (self.shape, self.layout.blocks[index]);
        let (block, width) = (self.regions.blocks[index], shape.width);
        let norm = self.norm(index, Part::Attention);
        let (qkv, bias) = (places.qkv, places.qkv_bias);
        self.linear((width, 3 * width), norm.normed, qkv, bias, block.qkv)?;
        let attention = self.attention(index);
        self.device.attention(&attention)?;
        let ([weight, bias], product) = (places.attention_output, self.product());
        self.linear((width, width), attention.out, weight, Some(bias), product)?;
        let after = self.norm(index, Part::Mlp);
        self.device.add_branch(&AddBranch {
            rows: self.rows(),
            x: self.stream(index),
            y: product,
            branch: self.branch(index, Part::Attention),
            x_out: self.of_rows(block.middle, width),
            norm: Some(after),
        })?;

        let [weight, bias] = places.up;
        self.linear(
            (width, shape.up),
            after.normed,
            weight,
            Some(bias),
            block.up,
        )?;
        let activation = self.activation(index);
        self.device.activation(&activation)?;
        let [weight, bias] = places.down;
        self.linear(
            (shape.mlp, width),
            activation.result,
            weight,
            Some(bias),
            product,
        )?;
        let last = index + 1 == shape.blocks;
        self.device.add_branch(&AddBranch {
            rows: self.rows(),
            x: self.of_rows(block.middle, width),
            y: product,
            branch: self.branch(index, Part::Mlp),
            x_out: self.stream(index + 1),
            norm: (!last).then(|| self.norm(index + 1, Part::Attention)),
        })
    }

    fn mlp_backward(&mut self, index: usize) -> Result<(), D::Error> {
        let (shape, places) = (self.shape, self.layout.blocks[index]);
        let (down, up) = ((shape.mlp, shape.width), (shape.width, shape.up));
        let d_hidden = self.of_rows(self.regions.d_wide, shape.mlp);
        let d_up = self.of_rows(self.regions.d_up, shape.up);
        let product = self.product();
        let (d_sum, d_branch) = self.branch_gradients(index, Part::Mlp);
        self.linear_backward(down, d_branch, places.down[0], d_hidden)?;
        let forward = self.activation(index);
        self.device.activation_backward(&ActivationBackward {
            forward,
            again: !self.kept().activations,
            d_result: d_hidden,
            dx: d_up,
            d_bias: self.gradient(places.up[1], shape.up),
            partials: self.regions.partials,
        })?;
        self.weight_gradient(down, d_sum, forward.result, places.down[0])?;
        self.linear_backward(up, d_up, places.up[0], product)?;
        self.norm_backward(index, Part::Mlp)?;
        let normed = self.norm(index, Part::Mlp).normed;
        self.weight_gradient(up, d_up, normed, places.up[0])
    }

    fn attention_backward(&mut self, index: usize) -> Result<(), D::Error> {
        let (shape, places) = (self.shape, self.layout.blocks[index]);
        let (width, head) = (shape.width, shape.head_size());
        let (square, qkv) = ((width, width), (width, 3 * width));
        let (product, d_qkv) = (self.product(), self.of_rows(self.regions.d_wide, 3 * width));
        let forward = self.attention(index);
        let weight = places.attention_output[0];
        let (d_sum, d_branch) = self.branch_gradients(index, Part::Attention);
        self.weight_gradient(square, d_sum, forward.out, weight)?;
        self.linear_backward(square, d_branch, weight, product)?;
        self.device.attention_backward(&AttentionBackward {
            forward,
            d_out: product,
            d_qkv,
            d_qkv_bias: places.qkv_bias.map(|bias| self.gradient(bias, 3 * width)),
            d_head_norms: places
                .head_norms
                .map(|norm| norm.map(|norm| self.gradient(norm, head))),
            partials: self.regions.partials,
        })?;
        self.linear_backward(qkv, d_qkv, places.qkv, product)?;
        self.norm_backward(index, Part::Attention)?;
        let normed = self.norm(index, Part::Attention).normed;
        self.weight_gradient(qkv, d_qkv, normed, places.qkv)
    }

    fn embedding_backward(&mut self) -> Result<(), D::Error> {
        let (shape, columns) = (self.shape, self.layout.patch_columns);
        let rows = shape.images * shape.patches;
        let [weight, bias] = self.layout.projection;
        let d_embedding = self.regions.product.first(rows * shape.width);
        self.device.disassemble(&Disassemble {
            tokens: self.tokens(),
            dx: self.d_stream(),
            d_embedding,
            d_class_token: self.gradient(self.layout.class_token, shape.width),
            d_bias: self.gradient(bias, shape.width),
            partials: self.regions.partials,
        })?;
        self.device.matmul(&Matmul {
            m: shape.width,
            n: columns,
            k: rows,
            a: Operand::transposed(d_embedding, shape.width),
            b: Operand::rows(self.regions.patches.first(rows * columns), columns),
            c: self.gradient(weight, shape.width * columns),
            output: Output::Sum,
        })
    }

    /// The backward of the norm before a branch; its gradient lies in `product`.
    fn norm_backward(&mut self, index: usize, part: Part) -> Result<(), D::Error> {
        let (places, width) = (self.layout.blocks[index], self.shape.width);
        let (x, [weight, bias], added) = match part {
            Part::Attention => {
                let before = index.checked_sub(1).map(|before| (before, Part::Mlp));
                (self.stream(index), places.norm_before, before)
            }
            Part::Mlp => {
                let middle = self.of_rows(self.regions.blocks[index].middle, width);
                (middle, places.norm_after, Some((index, Part::Attention)))
            }
        };
        self.device.norm_backward(&NormBackward {
            rows: self.rows(),
            x,
            norm: self.norm(index, part),
            again: !self.kept().norms,
            d_normed: self.product(),
            dx: self.d_stream(),
            d_weight: self.gradient(weight, width),
            d_bias: self.gradient(bias, width),
            added: added.map(|(index, part)| self.branch_gradient(index, part)),
            partials: self.regions.partials,
        })
    }

    /// `out [N, outputs] = x [N, inputs] W^T + b`.
    fn linear(
        &mut self,
        (inputs, outputs): (usize, usize),
        x: Region,
        weight: usize,
        bias: Option<usize>,
        out: Region,
    ) -> Result<(), D::Error> {
        let weight = self.narrow_weight(weight, inputs * outputs);
        self.device.matmul(&Matmul {
            m: self.shape.rows(),
            n: outputs,
            k: inputs,
            a: Operand::rows(x, inputs),
            b: Operand::transposed(weight, inputs),
            c: self.of_rows(out, outputs),
            output: Output::Narrow(bias.map(|bias| self.narrow_weight(bias, outputs))),
        })
    }

    /// `out [N, inputs] = grad [N, outputs] W`.
    fn linear_backward(
        &mut self,
        (inputs, outputs): (usize, usize),
        grad: Region,
        weight: usize,
        out: Region,
    ) -> Result<(), D::Error> {
        let weight = self.narrow_weight(weight, inputs * outputs);
        self.device.matmul(&Matmul {
            m: self.shape.rows(),
            n: inputs,
            k: outputs,
            a: Operand::rows(grad, outputs),
            b: Operand::rows(weight, inputs),
            c: out,
            output: Output::Narrow(None),
        })
    }

    /// The weight's gradient `+= grad [N, outputs]^T x [N, inputs]`.
    fn weight_gradient(
        &mut self,
        (inputs, outputs): (usize, usize),
        grad: Region,
        x: Region,
        weight: usize,
    ) -> Result<(), D::Error> {
        self.device.matmul(&Matmul {
            m: outputs,
            n: inputs,
            k: self.shape.rows(),
            a: Operand::transposed(grad, outputs),
            b: Operand::rows(x, inputs),
            c: self.gradient(weight, inputs * outputs),
            output: Output::Sum,
        })
    }

    /// The rows of this pass of a region for the most images.
    pub(super) fn of_rows(&self, region: Region, width: usize) -> Region {
        region.first(self.shape.rows() * width)
    }

    /// The stream that a block reads; behind the last one, the output.
    pub(crate) fn stream(&self, index: usize) -> Region {
        let block = self.regions.blocks.get(index);
        let region = block.map_or(self.regions.output, |block| block.input);
        self.of_rows(region, self.shape.width)
    }

    pub(crate) fn embedding(&self) -> Region {
        let Shape {
            images,
            patches,
            width,
            ..
        } = self.shape;
        self.regions.embedding.first(images * patches * width)
    }

    pub(crate) fn product(&self) -> Region {
        self.of_rows(self.regions.product, self.shape.width)
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// The gradient of the stream.
    pub(crate) fn d_stream(&self) -> Region {
        self.of_rows(self.regions.dx, self.shape.width)
    }

    pub(crate) fn partials(&self) -> Region {
        self.regions.partials
    }

    /// The final norm.
    pub(crate) fn final_norm(&self) -> Norm {
        let (place, regions) = (self.layout.norm, &self.regions);
        self.norm_of(place, regions.normed_output, regions.output_statistics)
    }

    /// The gradients of its weight and bias; there are none where nothing is trained.
    pub(crate) fn final_norm_gradients(&self) -> [Region; 2] {
        let places = self.layout.norm;
        places.map(|place| self.gradient(place, self.shape.width))
    }

    pub(crate) fn rows(&self) -> Rows {
        Rows {
            rows: self.shape.rows(),
            width: self.shape.width,
            tokens: self.shape.tokens,
            eps: self.config.layer_norm_eps,
        }
    }

    fn kept(&self) -> Kept {
        self.options.kept.unwrap_or(D::KEPT)
    }

    fn tokens(&self) -> Tokens {
        let Shape {
            images,
            patches,
            tokens,
            width,
            ..
        } = self.shape;
        Tokens {
            images,
            patches,
            tokens,
            width,
            kept: self.regions.kept_patches.map(|[to_patch, to_token]| {
                [
                    to_patch.first(images * (tokens - 1)),
                    to_token.first(images * patches),
                ]
            }),
        }
    }

    /// The norm before a branch.
    fn norm(&self, index: usize, part: Part) -> Norm {
        let (places, block) = (self.layout.blocks[index], self.regions.blocks[index]);
        let (place, normed, statistics) = match part {
            Part::Attention => (places.norm_before, block.normed_before, block.before),
            Part::Mlp => (places.norm_after, block.normed_after, block.after),
        };
        self.norm_of(place, normed, statistics)
    }

    pub(super) fn norm_of(
        &self,
        [weight, bias]: [usize; 2],
        normed: Region,
        statistics: [Region; 2],
    ) -> Norm {
        let width = self.shape.width;
        let [mean, rstd] = statistics.map(|region| self.of_rows(region, 1));
        Norm {
            weight: self.weight(weight, width),
            bias: self.weight(bias, width),
            normed: self.of_rows(normed, width),
            mean,
            rstd,
        }
    }

    fn branch(&self, index: usize, part: Part) -> Branch {
        let places = self.layout.blocks[index];
        let (scale, number) = match part {
            Part::Attention => (places.attention_scale, 2 * index),
            Part::Mlp => (places.mlp_scale, 2 * index + 1),
        };
        let images = self.shape.images;
        Branch {
            scale: scale.map(|scale| self.weight(scale, self.shape.width)),
            factors: self
                .regions
                .factors
                .map(|region| region.part(number * images, images)),
        }
    }

    fn branch_gradient(&self, index: usize, part: Part) -> BranchGradient {
        let (places, width) = (self.layout.blocks[index], self.shape.width);
        let [_, bias] = match part {
            Part::Attention => places.attention_output,
            Part::Mlp => places.down,
        };
        let rows = |region| self.of_rows(region, width);
        BranchGradient {
            branch: self.branch(index, part),
            factored: self.regions.factored_dx.map(rows),
            scaled: self.regions.scaled_dx.map(rows),
            d_bias: self.gradient(bias, width),
        }
    }

    /// What the last branch's gradient is for an objective that ends the stream.
    pub(crate) fn last_branch_gradient(&self) -> Option<BranchGradient> {
        let last = self.shape.blocks.checked_sub(1)?;
        Some(self.branch_gradient(last, Part::Mlp))
    }

    /// What a branch's matmuls read of the stream's gradient: for the weight before its scale, and
    /// for the way back.
    fn branch_gradients(&self, index: usize, part: Part) -> (Region, Region) {
        let of_branch = self.branch_gradient(index, part);
        let factored = of_branch.factored.unwrap_or_else(|| self.d_stream());
        (factored, of_branch.scaled.unwrap_or(factored))
    }

    /// Both directions of a block's attention.
    fn attention(&self, index: usize) -> Attention {
        let (shape, block) = (self.shape, self.regions.blocks[index]);
        let head_norms = self.layout.blocks[index]
            .head_norms
            .map(|place| place.map(|place| self.weight(place, shape.head_size())));
        let tables = if self.options.kept_patches.is_some() {
            shape.images
        } else {
            1
        };
        let table = tables * shape.tokens * shape.head_size() / 2;
        Attention {
            images: shape.images,
            tokens: shape.tokens,
            heads: shape.heads,
            head_size: shape.head_size(),
            causal: self.options.causal,
            qk_norm: self.config.qk_norm,
            eps: self.config.layer_norm_eps,
            head_norms,
            rotary: self.regions.rotary.map(|region| region.first(table)),
            table_per_image: self.options.kept_patches.is_some(),
            qkv: self.of_rows(block.qkv, 3 * shape.width),
            out: self.of_rows(block.attention, shape.width),
            softmax: self.of_rows(block.softmax, D::SOFTMAX_VALUES * shape.heads),
        }
    }

    /// Both directions of a block's activation.
    fn activation(&self, index: usize) -> Activation {
        let (shape, block) = (self.shape, self.regions.blocks[index]);
        Activation {
            rows: shape.rows(),
            width: shape.mlp,
            gated: self.config.use_gated_mlp,
            act: self.config.hidden_act,
            x: self.of_rows(block.up, shape.up),
            result: self.of_rows(block.hidden, shape.mlp),
        }
    }
}
