//! The step's device on the CPU, in f32 or f64: one array of values, every region a range of it.
//! Work is split into pieces that sizes alone decide, so the number of threads changes no bit.
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
pub(crate) mod head;
mod matmul;
mod matrix;
mod packed;
mod rows;
mod scratch;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use crate::real::Real;
use crate::step::adamw::{AdamW, Group, clip_factor};
use crate::step::device::{
    Activation, ActivationBackward, AddBranch, Arenas, Assemble, Attention, AttentionBackward,
    BranchGradient, CosineLoss, Device, Disassemble, LayerScale, Matmul, MemoryMap, Norm,
    NormBackward, Output, Patchify, Pool, PoolBackward, Region, Rows, Tokens,
};
use crate::step::{Kept, MemoryPlan, StepOptions};
use crate::{ModelError, NepaConfig};

use attention::{Heads, Saved};
use matmul::{add_weight_gradient, rows_times};
use matrix::Matrix;
use rows::{
    Affine, BranchOut, BranchRows, HeadNorm, LossRows, NormBackwardRows, NormRows,
    PoolBackwardRows, Rotary,
};
use scratch::Scratches;

/// Rows in one piece of an operation over rows.
const ROWS_PER_PIECE: usize = 64;
/// Values that are worth a thread's while: fewer are not split.
const VALUES_PER_JOB: usize = 1 << 15;
/// Values in one piece of the norm and of an update.
const VALUES_PER_PIECE: usize = 1 << 14;
/// Columns of a sum over rows that one task adds, and rows that it adds before their sum joins the
/// whole.
const COLUMNS_PER_TASK: usize = 128;
const ROWS_PER_SUM: usize = 64;

/// The processor, with f32 for training or f64 for proofs.
#[derive(Debug)]
pub struct CpuDevice<T> {
    memory: Vec<T>,
    scratches: Scratches<T>,
    /// Of the last gradient: whether it may be applied, and by what it is multiplied then.
    clip: Option<f64>,
    /// Of the last loss.
    cosine_sums: [f64; 3],
}

impl<T: Real> Default for CpuDevice<T> {
    fn default() -> Self {
        Self {
            memory: Vec::new(),
            scratches: Scratches::default(),
            clip: None,
            cosine_sums: [0.0; 3],
        }
    }
}

/// A region as a range of the memory.
fn range<T>(region: Region) -> Range<usize> {
    let start = region.start as usize / size_of::<T>();
    start..start + region.len
}

/// Disjoint regions of the memory.
fn parts<T, const N: usize>(memory: &mut [T], regions: [Region; N]) -> [&mut [T]; N] {
    memory
        .get_disjoint_mut(regions.map(range::<T>))
        .expect("regions of an operation lie in the memory and do not overlap")
}

/// Pieces of rows of that width that a thread takes at the least.
fn pieces_per_job(width: usize) -> usize {
    (VALUES_PER_JOB / (ROWS_PER_PIECE * width)).max(1)
}

/// An empty region is none.
fn optional<T>(part: &mut [T]) -> Option<&mut [T]> {
    (!part.is_empty()).then_some(part)
}

/// Pieces of an optional array of rows, as many as there are.
fn pieces<T>(part: Option<&mut [T]>, piece: usize, count: usize) -> Vec<Option<&mut [T]>> {
    match part {
        Some(part) => part.chunks_mut(piece).map(Some).collect(),
        None => (0..count).map(|_| None).collect(),
    }
}

/// The norm of some values, in f64 and in a fixed order.
pub fn global_norm<T: Real>(values: &[T]) -> f64 {
    let square = |value: &T| value.to_f64() * value.to_f64();
    let piece = |values: &[T]| {
        let mut lanes = [0.0f64; 8];
        let (chunks, tail) = values.as_chunks::<8>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += square(value);
            }
        }
        lanes.iter().sum::<f64>() + tail.iter().map(square).sum::<f64>()
    };
    let pieces: Vec<f64> = values.par_chunks(VALUES_PER_PIECE).map(piece).collect();
    pieces.iter().sum::<f64>().sqrt()
}

/// All that AdamW changes, and the gradient; of one length.
#[derive(Debug)]
pub struct AdamWArrays<'a, T> {
    /// Weights.
    pub weights: &'a mut [T],
    /// Gradient, before clipping.
    pub gradient: &'a [T],
    /// First moments.
    pub m: &'a mut [T],
    /// Second moments.
    pub v: &'a mut [T],
    /// Moving average; of no length where none is kept.
    pub average: &'a mut [T],
}

/// One update of arrays by the rule, with the gradient multiplied by `clip`. Every element is a
/// function of its own history, so it may be split over threads as it comes.
pub fn apply_adamw<T: Real>(
    arrays: AdamWArrays<'_, T>,
    groups: &[Group],
    rule: &AdamW<'_>,
    clip: f64,
) {
    let AdamWArrays {
        weights,
        gradient,
        m,
        v,
        average,
    } = arrays;
    for group in groups {
        let numbers = rule.of_group(&group.of).map(|(keep, step_size)| {
            [
                keep,
                step_size,
                rule.correction2,
                rule.beta1,
                1.0 - rule.beta1,
                rule.beta2,
                1.0 - rule.beta2,
                rule.eps,
                clip,
            ]
            .map(T::from_f64)
        });
        let decay = rule.average_decay.unwrap_or(0.0);
        let (decay, rest) = (T::from_f64(decay), T::from_f64(1.0 - decay));
        let range = group.range.clone();
        let of_average = rule.average_decay.map(|_| &mut average[range.clone()]);
        let count = range.len().div_ceil(VALUES_PER_PIECE);
        (
            weights[range.clone()].par_chunks_mut(VALUES_PER_PIECE),
            gradient[range.clone()].par_chunks(VALUES_PER_PIECE),
            m[range.clone()].par_chunks_mut(VALUES_PER_PIECE),
            v[range].par_chunks_mut(VALUES_PER_PIECE),
            pieces(of_average, VALUES_PER_PIECE, count),
        )
            .into_par_iter()
            .for_each(|(weights, gradient, m, v, average)| {
                if let Some(numbers) = numbers {
                    rows::adamw(weights, gradient, m, v, numbers);
                }
                // While the weights are in the cache.
                if let Some(average) = average {
                    rows::average(weights, average, decay, rest);
                }
            });
    }
}

/// `sum += rows of the matrix`, in a fixed order.
fn add_column_sums<T: Real>(sum: &mut [T], values: &[T], stride: usize) {
    sum.par_chunks_mut(COLUMNS_PER_TASK)
        .enumerate()
        .for_each(|(task, sum)| {
            for rows in values[task * COLUMNS_PER_TASK..].chunks(ROWS_PER_SUM * stride) {
                let mut part = [T::zero(); COLUMNS_PER_TASK];
                rows::add_rows(rows, stride, &mut part[..sum.len()]);
                for (sum, part) in sum.iter_mut().zip(part) {
                    *sum += part;
                }
            }
        });
}

/// Adds the pieces of `partials`, sums for each of `outputs` one behind the other, to those.
fn add_pieces<T: Real>(outputs: &mut [&mut [T]], partials: &[T], width: usize) {
    let stride = outputs.len() * width;
    for (number, output) in outputs.iter_mut().enumerate() {
        rows::add_rows(&partials[number * width..], stride, output);
    }
}

/// The regions of a branch's gradient: scale, factors, copies and the sum.
fn branch_regions(added: Option<&BranchGradient>) -> [Region; 5] {
    let none = [Region::default(); 5];
    added.map_or(none, |added| {
        [
            added.branch.scale.unwrap_or_default(),
            added.branch.factors.unwrap_or_default(),
            added.factored.unwrap_or_default(),
            added.scaled.unwrap_or_default(),
            added.d_bias,
        ]
    })
}

/// Where the gradient of a branch goes, for each piece of rows.
fn branch_pieces<T>(
    exists: bool,
    [scale, factors, factored, scaled]: [&mut [T]; 4],
    piece: usize,
    count: usize,
) -> Vec<Option<BranchOut<'_, T>>> {
    let (scale, factors) = (optional(scale).map(|v| &*v), optional(factors).map(|v| &*v));
    let factored = pieces(optional(factored), piece, count);
    let scaled = pieces(optional(scaled), piece, count);
    let each = factored.into_iter().zip(scaled);
    each.map(|(factored, scaled)| {
        exists.then_some(BranchOut {
            scale,
            factors,
            factored,
            scaled,
        })
    })
    .collect()
}

/// An image `[C, height, width]` to its patches `[P, columns]`, row by row.
fn cut<T: Real>(image: &[T], args: &Patchify, patches: &mut [T]) {
    let patch = args.patch;
    let [height, width] = args.grid.map(|patches| patches * patch);
    let values = args.channels * patch * patch;
    for (number, out) in patches.chunks_exact_mut(args.columns).enumerate() {
        let (top, left) = (number / args.grid[1] * patch, number % args.grid[1] * patch);
        let (out, rest) = out.split_at_mut(values);
        for (line, out) in out.chunks_exact_mut(patch).enumerate() {
            let (channel, y) = (line / patch, top + line % patch);
            let first = (channel * height + y) * width + left;
            out.copy_from_slice(&image[first..first + patch]);
        }
        rest.fill(T::zero());
    }
}

/// Which patch token 1 + k of an image is.
fn patch_of<T: Real>(tokens: &Tokens, to_patch: &[T], image: usize, k: usize) -> usize {
    match tokens.kept {
        Some(_) => to_patch[image * (tokens.tokens - 1) + k].to_f64() as usize,
        None => k,
    }
}

impl<T: Real> CpuDevice<T> {
    /// All that it has taken.
    pub fn num_bytes(&self) -> u64 {
        (self.memory.len() * size_of::<T>()) as u64 + self.scratches.num_bytes()
    }

    fn parts<const N: usize>(&mut self, regions: [Region; N]) -> [&mut [T]; N] {
        parts(&mut self.memory, regions)
    }
}

impl<T: Real> Device for CpuDevice<T> {
    type Wide = T;
    type Pixels<'a> = &'a [&'a [T]];
    type Error = ModelError;

    const HAS_NARROW: bool = false;
    const NARROW_BYTES: u64 = size_of::<T>() as u64;
    const SOFTMAX_VALUES: usize = 2;
    const STAGES_PIXELS: bool = false;
    const KEPT: Kept = Kept {
        norms: false,
        activations: false,
    };

    fn check(_: &NepaConfig, _: &StepOptions) -> Result<(), ModelError> {
        Ok(())
    }

    fn partial_values(rows: usize, columns: usize) -> usize {
        rows.div_ceil(ROWS_PER_PIECE) * columns
    }

    fn attention_partial_values(images: usize, heads: usize, head_size: usize) -> usize {
        images * heads * 4 * head_size
    }

    fn beside(config: &NepaConfig, options: &StepOptions) -> MemoryPlan {
        Scratches::<T>::plan(config, options)
    }

    fn allocate(
        &mut self,
        map: MemoryMap,
        config: &NepaConfig,
        options: &StepOptions,
    ) -> Result<(), ModelError> {
        self.memory = vec![T::zero(); map.num_bytes as usize / size_of::<T>()];
        self.scratches = Scratches::new(config, options);
        Ok(())
    }

    fn write(&mut self, to: Region, values: &[T]) -> Result<(), ModelError> {
        self.parts([to])[0].copy_from_slice(values);
        Ok(())
    }

    fn read(&mut self, from: Region, values: &mut [T]) -> Result<(), ModelError> {
        values.copy_from_slice(self.parts([from])[0]);
        Ok(())
    }

    fn write_narrow(&mut self, to: Region, values: &[T]) -> Result<(), ModelError> {
        self.write(to, values)
    }

    fn read_narrow(&mut self, from: Region, values: &mut [T]) -> Result<(), ModelError> {
        self.read(from, values)
    }

    fn write_indices(&mut self, to: Region, indices: &[u32]) -> Result<(), ModelError> {
        for (value, index) in self.parts([to])[0].iter_mut().zip(indices) {
            *value = T::from_f64(f64::from(*index));
        }
        Ok(())
    }

    fn zero(&mut self, region: Region) -> Result<(), ModelError> {
        self.parts([region])[0].fill(T::zero());
        Ok(())
    }

    fn add(&mut self, sums: Region, values: Region) -> Result<(), ModelError> {
        let [sums, values] = self.parts([sums, values]);
        sums.par_chunks_mut(VALUES_PER_JOB)
            .zip(values.par_chunks(VALUES_PER_JOB))
            .for_each(|(sums, values)| {
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += *value;
                }
            });
        Ok(())
    }

    fn narrow(&mut self, _: Region, _: Region) -> Result<(), ModelError> {
        Ok(())
    }

    fn stage<'a>(&mut self, images: &'a [&'a [T]], _: Region) -> Result<&'a [&'a [T]], ModelError> {
        Ok(images)
    }

    fn patchify(&mut self, pixels: &[&[T]], args: &Patchify) -> Result<(), ModelError> {
        let [patches] = self.parts([args.patches]);
        patches
            .par_chunks_mut(args.grid[0] * args.grid[1] * args.columns)
            .zip(pixels)
            .for_each(|(patches, image)| cut(image, args, patches));
        Ok(())
    }

    fn matmul(&mut self, args: &Matmul) -> Result<(), ModelError> {
        let bias = match args.output {
            Output::Narrow(bias) | Output::Wide(bias) => bias.unwrap_or_default(),
            Output::Sum => Region::default(),
        };
        let regions = [args.a.region, args.b.region, args.c, bias];
        let [a, b, c, bias] = parts(&mut self.memory, regions);
        let panels = &mut self.scratches.panels;
        let (a, b) = (Matrix::new(a, args.a.stride), Matrix::new(b, args.b.stride));
        match args.output {
            Output::Sum => {
                assert!(
                    args.a.transposed && !args.b.transposed,
                    "sums are gradients of weights"
                );
                add_weight_gradient(panels, c, a, b);
            }
            Output::Narrow(_) | Output::Wide(_) => {
                assert!(!args.a.transposed, "rows of tokens times a weight");
                let bias = optional(bias).map(|bias| &*bias);
                let b = if args.b.transposed { b.transposed() } else { b };
                rows_times(panels, c, a, b, bias);
            }
        }
        Ok(())
    }

    fn assemble(&mut self, args: &Assemble) -> Result<(), ModelError> {
        let tokens = args.tokens;
        let to_patch = tokens.kept.map_or(Region::default(), |kept| kept[0]);
        let [embedding, class, x, to_patch] =
            self.parts([args.embedding, args.class_token, args.x, to_patch]);
        let (width, class, to_patch) = (tokens.width, &*class, &*to_patch);
        x.par_chunks_mut(tokens.tokens * width)
            .zip(embedding.par_chunks(tokens.patches * width))
            .enumerate()
            .for_each(|(image, (x, embedding))| {
                let (first, rest) = x.split_at_mut(width);
                first.copy_from_slice(class);
                for (k, row) in rest.chunks_exact_mut(width).enumerate() {
                    let patch = patch_of(&tokens, to_patch, image, k);
                    row.copy_from_slice(&embedding[patch * width..][..width]);
                }
            });
        Ok(())
    }

    fn disassemble(&mut self, args: &Disassemble) -> Result<(), ModelError> {
        let tokens = args.tokens;
        let to_patch = tokens.kept.map_or(Region::default(), |kept| kept[0]);
        let [dx, d_embedding, d_class, d_bias, to_patch] = self.parts([
            args.dx,
            args.d_embedding,
            args.d_class_token,
            args.d_bias,
            to_patch,
        ]);
        let (width, to_patch) = (tokens.width, &*to_patch);
        let image_values = tokens.tokens * width;
        add_column_sums(d_class, dx, image_values);
        d_embedding
            .par_chunks_mut(tokens.patches * width)
            .zip(dx.par_chunks(image_values))
            .enumerate()
            .for_each(|(image, (d_embedding, dx))| {
                d_embedding.fill(T::zero());
                for (k, row) in dx[width..].chunks_exact(width).enumerate() {
                    let patch = patch_of(&tokens, to_patch, image, k);
                    d_embedding[patch * width..][..width].copy_from_slice(row);
                }
            });
        add_column_sums(d_bias, d_embedding, width);
        Ok(())
    }

    fn layer_norm(&mut self, rows: &Rows, x: Region, norm: &Norm) -> Result<(), ModelError> {
        let eps = T::from_f64(rows.eps);
        let piece = ROWS_PER_PIECE * rows.width;
        let [x, weight, bias, out, mean, rstd] =
            self.parts([x, norm.weight, norm.bias, norm.normed, norm.mean, norm.rstd]);
        let (weight, bias) = (&*weight, &*bias);
        (
            x.par_chunks(piece),
            out.par_chunks_mut(piece),
            mean.par_chunks_mut(ROWS_PER_PIECE),
            rstd.par_chunks_mut(ROWS_PER_PIECE),
        )
            .into_par_iter()
            .with_min_len(pieces_per_job(rows.width))
            .for_each(|(x, out, mean, rstd)| {
                rows::norm_rows(NormRows {
                    x,
                    weight,
                    bias,
                    eps,
                    out,
                    mean,
                    rstd,
                });
            });
        Ok(())
    }

    fn add_branch(&mut self, args: &AddBranch) -> Result<(), ModelError> {
        let Rows {
            width,
            tokens,
            eps,
            rows: num_rows,
        } = args.rows;
        let eps = T::from_f64(eps);
        let norm = args.norm.map_or([Region::default(); 5], |norm| {
            [norm.weight, norm.bias, norm.normed, norm.mean, norm.rstd]
        });
        let [weight, bias, normed, mean, rstd] = norm;
        let [x, y, scale, factors, out, weight, bias, normed, mean, rstd] = self.parts([
            args.x,
            args.y,
            args.branch.scale.unwrap_or_default(),
            args.branch.factors.unwrap_or_default(),
            args.x_out,
            weight,
            bias,
            normed,
            mean,
            rstd,
        ]);
        let (scale, factors) = (optional(scale).map(|v| &*v), optional(factors).map(|v| &*v));
        let (weight, bias) = (&*weight, &*bias);
        let piece = ROWS_PER_PIECE * width;
        let count = num_rows.div_ceil(ROWS_PER_PIECE);
        (
            x.par_chunks(piece),
            y.par_chunks(piece),
            out.par_chunks_mut(piece),
            pieces(optional(normed), piece, count),
            pieces(optional(mean), ROWS_PER_PIECE, count),
            pieces(optional(rstd), ROWS_PER_PIECE, count),
        )
            .into_par_iter()
            .with_min_len(pieces_per_job(width))
            .enumerate()
            .for_each(|(number, (x, y, out, normed, mean, rstd))| {
                rows::add_branch(BranchRows {
                    x,
                    y,
                    scale,
                    factors,
                    tokens,
                    first: number * ROWS_PER_PIECE,
                    width,
                    out,
                });
                if let (Some(normed), Some(mean), Some(rstd)) = (normed, mean, rstd) {
                    rows::norm_rows(NormRows {
                        x: out,
                        weight,
                        bias,
                        eps,
                        out: normed,
                        mean,
                        rstd,
                    });
                }
            });
        Ok(())
    }

    fn norm_backward(&mut self, args: &NormBackward) -> Result<(), ModelError> {
        let Rows {
            rows: num_rows,
            width,
            tokens,
            ..
        } = args.rows;
        let count = num_rows.div_ceil(ROWS_PER_PIECE);
        let again = if args.again {
            args.norm.normed
        } else {
            Region::default()
        };
        let [scale, factors, factored, scaled, d_branch] = branch_regions(args.added.as_ref());
        let [
            x,
            mean,
            rstd,
            weight,
            bias,
            grad,
            dx,
            again,
            scale,
            factors,
            factored,
            scaled,
            d_weight,
            d_bias,
            d_branch,
            sums,
        ] = self.parts([
            args.x,
            args.norm.mean,
            args.norm.rstd,
            args.norm.weight,
            args.norm.bias,
            args.d_normed,
            args.dx,
            again,
            scale,
            factors,
            factored,
            scaled,
            args.d_weight,
            args.d_bias,
            d_branch,
            args.partials.first(count * 3 * width),
        ]);
        let (weight, bias) = (&*weight, &*bias);
        let piece = ROWS_PER_PIECE * width;
        let branch = [scale, factors, factored, scaled];
        (
            x.par_chunks(piece),
            (
                mean.par_chunks(ROWS_PER_PIECE),
                rstd.par_chunks(ROWS_PER_PIECE),
            ),
            grad.par_chunks_mut(piece),
            dx.par_chunks_mut(piece),
            pieces(optional(again), piece, count),
            branch_pieces(args.added.is_some(), branch, piece, count),
            sums.par_chunks_mut(3 * width),
        )
            .into_par_iter()
            .with_min_len(pieces_per_job(width))
            .enumerate()
            .for_each(
                |(number, (x, (mean, rstd), grad, dx, again, branch, sums))| {
                    sums.fill(T::zero());
                    rows::norm_rows_backward(NormBackwardRows {
                        x,
                        mean,
                        rstd,
                        weight,
                        bias,
                        grad,
                        dx,
                        again,
                        branch,
                        tokens,
                        first: number * ROWS_PER_PIECE,
                        sums,
                    });
                },
            );
        add_pieces(&mut [d_weight, d_bias, d_branch], sums, width);
        Ok(())
    }

    fn activation(&mut self, args: &Activation) -> Result<(), ModelError> {
        let Activation {
            width, gated, act, ..
        } = *args;
        let [x, result] = self.parts([args.x, args.result]);
        let of_x = if gated { 2 * width } else { width };
        (
            x.par_chunks(ROWS_PER_PIECE * of_x),
            result.par_chunks_mut(ROWS_PER_PIECE * width),
        )
            .into_par_iter()
            .with_min_len(pieces_per_job(of_x))
            .for_each(|(x, result)| {
                if gated {
                    rows::activate_gated(x, act, width, result);
                } else {
                    rows::activate(x, act, result);
                }
            });
        Ok(())
    }

    fn activation_backward(&mut self, args: &ActivationBackward) -> Result<(), ModelError> {
        let Activation {
            width,
            gated,
            act,
            rows: num_rows,
            ..
        } = args.forward;
        let again = if args.again {
            args.forward.result
        } else {
            Region::default()
        };
        let [x, again, d_result, dx, d_bias] =
            self.parts([args.forward.x, again, args.d_result, args.dx, args.d_bias]);
        let of_x = if gated { 2 * width } else { width };
        let (narrow, wide) = (ROWS_PER_PIECE * width, ROWS_PER_PIECE * of_x);
        (
            x.par_chunks(wide),
            d_result.par_chunks(narrow),
            dx.par_chunks_mut(wide),
            pieces(optional(again), narrow, num_rows.div_ceil(ROWS_PER_PIECE)),
        )
            .into_par_iter()
            .with_min_len(pieces_per_job(of_x))
            .for_each(|(x, d_result, dx, again)| {
                let again = again.unwrap_or_default();
                if gated {
                    rows::activate_gated_backward(x, d_result, act, width, dx, again);
                } else {
                    rows::activate_backward(x, d_result, act, dx, again);
                }
            });
        add_column_sums(d_bias, dx, of_x);
        Ok(())
    }

    fn attention(&mut self, args: &Attention) -> Result<(), ModelError> {
        let Attention {
            images,
            tokens,
            heads: num_heads,
            head_size,
            ..
        } = *args;
        let (image, alone) = (tokens * num_heads * head_size, tokens * head_size);
        let [query_weight, query_bias, key_weight, key_bias] =
            args.head_norms.map(Option::unwrap_or_default);
        let [qkv, out, softmax, cos, sin, qw, qb, kw, kb] = parts(
            &mut self.memory,
            [
                args.qkv,
                args.out,
                args.softmax,
                args.rotary[0],
                args.rotary[1],
                query_weight,
                query_bias,
                key_weight,
                key_bias,
            ],
        );
        let heads = heads(args, [[qw, qb], [kw, kb]]);
        let rotary = |number| rotary(args, cos, sin, number);
        let (threads, slots) = self.scratches.split();
        // Images side by side while there are as many as threads; then the heads of each.
        let whole = images - images % threads.len();
        let statistics = num_heads * 2 * tokens;
        let (out, out_alone) = out.split_at_mut(whole * image);
        let (softmax, softmax_alone) = softmax.split_at_mut(whole * statistics);
        (
            qkv.par_chunks(3 * image),
            out.par_chunks_mut(image),
            softmax.par_chunks_mut(statistics),
        )
            .into_par_iter()
            .enumerate()
            .for_each(|(number, (qkv, out, softmax))| {
                let mut scratch = scratch::own(threads);
                for (head, softmax) in softmax.chunks_exact_mut(2 * tokens).enumerate() {
                    let to = heads.output(head);
                    let rotary = rotary(number);
                    attention::forward(&heads, head, rotary, qkv, to, out, softmax, &mut scratch);
                }
            });
        let rest = out_alone.chunks_exact_mut(image);
        for (number, (out, softmax)) in rest
            .zip(softmax_alone.chunks_exact_mut(statistics))
            .enumerate()
        {
            let number = whole + number;
            let qkv = &qkv[number * 3 * image..][..3 * image];
            (
                slots[..image].par_chunks_mut(alone),
                softmax.par_chunks_mut(2 * tokens),
            )
                .into_par_iter()
                .enumerate()
                .for_each(|(head, (slot, softmax))| {
                    let mut scratch = scratch::own(threads);
                    let (to, rotary) = (heads.alone(0), rotary(number));
                    attention::forward(&heads, head, rotary, qkv, to, slot, softmax, &mut scratch);
                });
            for (head, slot) in slots[..image].chunks_exact(alone).enumerate() {
                rows::put(slot, heads.output(head), out);
            }
        }
        Ok(())
    }

    fn attention_backward(&mut self, args: &AttentionBackward) -> Result<(), ModelError> {
        let forward = &args.forward;
        let Attention {
            images,
            tokens,
            heads: num_heads,
            head_size,
            ..
        } = *forward;
        let (image, alone) = (tokens * num_heads * head_size, tokens * head_size);
        let of_sums = 4 * head_size;
        let [query_weight, query_bias, key_weight, key_bias] =
            forward.head_norms.map(Option::unwrap_or_default);
        let [d_qw, d_qb, d_kw, d_kb] = args.d_head_norms.map(Option::unwrap_or_default);
        let [
            qkv,
            out,
            softmax,
            d_out,
            d_qkv,
            d_qkv_bias,
            cos,
            sin,
            qw,
            qb,
            kw,
            kb,
            d_qw,
            d_qb,
            d_kw,
            d_kb,
            sums,
        ] = parts(
            &mut self.memory,
            [
                forward.qkv,
                forward.out,
                forward.softmax,
                args.d_out,
                args.d_qkv,
                args.d_qkv_bias.unwrap_or_default(),
                forward.rotary[0],
                forward.rotary[1],
                query_weight,
                query_bias,
                key_weight,
                key_bias,
                d_qw,
                d_qb,
                d_kw,
                d_kb,
                args.partials.first(images * num_heads * of_sums),
            ],
        );
        let heads = heads(forward, [[qw, qb], [kw, kb]]);
        let rotary = |number| rotary(forward, cos, sin, number);
        let saved = |number: usize| Saved {
            qkv: &qkv[number * 3 * image..][..3 * image],
            out: &out[number * image..][..image],
            d_out: &d_out[number * image..][..image],
        };
        let softmax = |number: usize, head: usize| {
            &softmax[(number * num_heads + head) * 2 * tokens..][..2 * tokens]
        };
        let (threads, slots) = self.scratches.split();
        let whole = images - images % threads.len();
        let (together, apart) = d_qkv.split_at_mut(whole * 3 * image);
        let (sums_together, sums_apart) = sums.split_at_mut(whole * num_heads * of_sums);
        (
            together.par_chunks_mut(3 * image),
            sums_together.par_chunks_mut(num_heads * of_sums),
        )
            .into_par_iter()
            .enumerate()
            .for_each(|(number, (d_qkv, sums))| {
                let mut scratch = scratch::own(threads);
                for (head, sums) in sums.chunks_exact_mut(of_sums).enumerate() {
                    attention::backward(
                        &heads,
                        head,
                        rotary(number),
                        saved(number),
                        softmax(number, head),
                        heads.projected(head),
                        d_qkv,
                        sums,
                        &mut scratch,
                    );
                }
            });
        let rest = apart.chunks_exact_mut(3 * image);
        for (number, (d_qkv, sums)) in rest
            .zip(sums_apart.chunks_exact_mut(num_heads * of_sums))
            .enumerate()
        {
            let number = whole + number;
            (
                slots.par_chunks_mut(3 * alone),
                sums.par_chunks_mut(of_sums),
            )
                .into_par_iter()
                .enumerate()
                .for_each(|(head, (slot, sums))| {
                    attention::backward(
                        &heads,
                        head,
                        rotary(number),
                        saved(number),
                        softmax(number, head),
                        [0, 1, 2].map(|part| heads.alone(part)),
                        slot,
                        sums,
                        &mut scratch::own(threads),
                    );
                });
            for (head, slot) in slots.chunks_exact(3 * alone).enumerate() {
                for (slot, to) in slot.chunks_exact(alone).zip(heads.projected(head)) {
                    rows::put(slot, to, d_qkv);
                }
            }
        }
        for (number, sum) in [d_qw, d_qb, d_kw, d_kb].into_iter().enumerate() {
            rows::add_rows(&sums[number * head_size..], of_sums, sum);
        }
        if !d_qkv_bias.is_empty() {
            let width = d_qkv_bias.len();
            add_column_sums(d_qkv_bias, d_qkv, width);
        }
        Ok(())
    }

    fn cosine_loss(&mut self, args: &CosineLoss) -> Result<(), ModelError> {
        let Rows {
            rows: num_rows,
            width,
            tokens,
            eps,
        } = args.rows;
        let count = num_rows.div_ceil(ROWS_PER_PIECE);
        // Without blocks, what goes in is what comes out.
        let current = if args.current == args.x {
            Region::default()
        } else {
            args.current
        };
        let [scale, factors, factored, scaled, d_branch] = branch_regions(args.added.as_ref());
        let [
            x,
            current,
            next,
            weight,
            bias,
            dx,
            scale,
            factors,
            factored,
            scaled,
            d_weight,
            d_bias,
            d_branch,
            sums,
        ] = parts(
            &mut self.memory,
            [
                args.x,
                current,
                args.next,
                args.weight,
                args.bias,
                args.dx,
                scale,
                factors,
                factored,
                scaled,
                args.d_weight,
                args.d_bias,
                d_branch,
                args.partials.first(count * 3 * width),
            ],
        );
        let current = optional(current).map_or(&*x, |current| &*current);
        let (x, next, weight, bias) = (&*x, &*next, &*weight, &*bias);
        let (eps, factor) = (T::from_f64(eps), T::from_f64(args.factor));
        let piece = ROWS_PER_PIECE * width;
        let branch = [scale, factors, factored, scaled];
        let threads = self.scratches.split().0;
        let found: Vec<[f64; 3]> = (
            x.par_chunks(piece),
            current.par_chunks(piece),
            dx.par_chunks_mut(piece),
            branch_pieces(args.added.is_some(), branch, piece, count),
            sums.par_chunks_mut(3 * width),
        )
            .into_par_iter()
            .with_min_len(pieces_per_job(width))
            .enumerate()
            .map(|(number, (x, current, dx, branch, sums))| {
                sums.fill(T::zero());
                let mut found = [0.0; 3];
                rows::loss_rows(LossRows {
                    x,
                    next,
                    current,
                    weight,
                    bias,
                    eps,
                    factor,
                    patches: args.patches,
                    tokens,
                    first: number * ROWS_PER_PIECE,
                    prediction: &mut scratch::own(threads).row,
                    dx,
                    branch,
                    sums,
                    found: &mut found,
                });
                found
            })
            .collect();
        self.cosine_sums = [0, 1, 2].map(|i| found.iter().map(|found| found[i]).sum());
        add_pieces(&mut [d_weight, d_bias, d_branch], sums, width);
        Ok(())
    }

    fn cosine_sums(&mut self) -> Result<[f64; 3], ModelError> {
        Ok(self.cosine_sums)
    }

    fn pool(&mut self, args: &Pool) -> Result<(), ModelError> {
        let Rows {
            width, tokens, eps, ..
        } = args.rows;
        let [x, weight, bias, pooled] = self.parts([args.x, args.weight, args.bias, args.pooled]);
        let (weight, bias, eps) = (&*weight, &*bias, T::from_f64(eps));
        x.par_chunks(tokens * width)
            .zip(pooled.par_chunks_mut(width))
            .for_each(|(x, pooled)| {
                let taken = &x[(tokens - args.taken) * width..];
                rows::pool_rows(taken, weight, bias, eps, pooled);
            });
        Ok(())
    }

    fn pool_backward(&mut self, args: &PoolBackward) -> Result<(), ModelError> {
        let Rows {
            rows: num_rows,
            width,
            tokens,
            eps,
        } = args.rows;
        let count = num_rows.div_ceil(ROWS_PER_PIECE);
        let [scale, factors, factored, scaled, d_branch] = branch_regions(args.added.as_ref());
        let [
            x,
            weight,
            d_pooled,
            dx,
            scale,
            factors,
            factored,
            scaled,
            d_weight,
            d_bias,
            d_branch,
            sums,
        ] = self.parts([
            args.x,
            args.weight,
            args.d_pooled,
            args.dx,
            scale,
            factors,
            factored,
            scaled,
            args.d_weight,
            args.d_bias,
            d_branch,
            args.partials.first(count * 3 * width),
        ]);
        let (d_pooled, weight, eps) = (&*d_pooled, &*weight, T::from_f64(eps));
        let piece = ROWS_PER_PIECE * width;
        let branch = [scale, factors, factored, scaled];
        (
            x.par_chunks(piece),
            dx.par_chunks_mut(piece),
            branch_pieces(args.added.is_some(), branch, piece, count),
            sums.par_chunks_mut(3 * width),
        )
            .into_par_iter()
            .with_min_len(pieces_per_job(width))
            .enumerate()
            .for_each(|(number, (x, dx, branch, sums))| {
                sums.fill(T::zero());
                rows::pool_rows_backward(PoolBackwardRows {
                    x,
                    d_pooled,
                    weight,
                    eps,
                    taken: args.taken,
                    tokens,
                    first: number * ROWS_PER_PIECE,
                    dx,
                    branch,
                    sums,
                });
            });
        add_pieces(&mut [d_weight, d_bias, d_branch], sums, width);
        Ok(())
    }

    fn layer_scale(&mut self, args: &LayerScale) -> Result<(), ModelError> {
        let columns = args.columns;
        let [weight, d_weight, bias, d_bias, scale, d_scale] = self.parts([
            args.weight,
            args.d_weight,
            args.bias,
            args.d_bias,
            args.scale,
            args.d_scale,
        ]);
        (
            weight.par_chunks(columns),
            d_weight.par_chunks_mut(columns),
            bias.par_iter(),
            d_bias.par_iter_mut(),
            scale.par_iter(),
            d_scale.par_iter_mut(),
        )
            .into_par_iter()
            .for_each(|(weight, d_weight, bias, d_bias, scale, d_scale)| {
                let mut dot = [T::zero()];
                rows::dot_rows(d_weight, weight, columns, &mut dot);
                *d_scale += dot[0] + *d_bias * *bias;
                for value in d_weight {
                    *value *= *scale;
                }
                *d_bias *= *scale;
            });
        Ok(())
    }

    fn gradient_norm(
        &mut self,
        gradient: Region,
        max_norm: Option<f64>,
    ) -> Result<f64, ModelError> {
        let norm = global_norm(self.parts([gradient])[0]);
        self.clip = norm.is_finite().then(|| clip_factor(norm, max_norm));
        Ok(norm)
    }

    fn adamw(
        &mut self,
        arenas: &Arenas,
        groups: &[Group],
        rule: &AdamW<'_>,
    ) -> Result<(), ModelError> {
        let Some(clip) = self.clip else {
            return Ok(());
        };
        let average = rule
            .average_decay
            .map_or(Region::default(), |_| arenas.average);
        let [weights, gradient, m, v, average] = parts(
            &mut self.memory,
            [arenas.weights, arenas.gradient, arenas.m, arenas.v, average],
        );
        let arrays = AdamWArrays {
            weights,
            gradient,
            m,
            v,
            average,
        };
        apply_adamw(arrays, groups, rule, clip);
        Ok(())
    }
}

/// What all heads share; `norms` are weight and bias for queries and for keys, empty where the
/// model has none.
fn heads<'a, T: Real>(args: &Attention, norms: [[&'a mut [T]; 2]; 2]) -> Heads<'a, T> {
    Heads {
        tokens: args.tokens,
        count: args.heads,
        size: args.head_size,
        causal: args.causal,
        norms: norms.map(|[weight, bias]| {
            args.qk_norm.then(|| HeadNorm {
                affine: Affine {
                    weight: optional(weight).map(|weight| &*weight),
                    bias: optional(bias).map(|bias| &*bias),
                },
                eps: T::from_f64(args.eps),
            })
        }),
    }
}

/// The rotary table of one image.
fn rotary<'a, T>(args: &Attention, cos: &'a [T], sin: &'a [T], image: usize) -> Rotary<'a, T> {
    let len = args.tokens * args.head_size / 2;
    let first = if args.table_per_image { image * len } else { 0 };
    Rotary {
        cos: &cos[first..][..len],
        sin: &sin[first..][..len],
    }
}
