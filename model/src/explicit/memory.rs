//! Every buffer of the engine, counted before it is allocated: the same list serves both.
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::NepaConfig;

/// Rows (tokens) in one piece of work.
pub(super) const ROWS_PER_PIECE: usize = 256;
/// Queries whose scores are computed at a time.
pub(super) const QUERIES: usize = 64;

/// Sizes of one micro-batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Images B.
    pub(crate) batch: usize,
    /// Patches P of an image.
    pub(crate) patches: usize,
    /// Tokens T of an image: P where attention is causal, because the last one changes nothing,
    /// else P + 1.
    pub(crate) tokens: usize,
    /// Width D.
    pub(crate) width: usize,
    /// Heads H.
    pub(crate) heads: usize,
    /// Width of the MLP.
    pub(crate) mlp: usize,
    /// Width of what the first layer of the MLP makes: twice `mlp` if it is gated.
    pub(crate) up: usize,
    /// Values of a patch.
    pub(crate) patch_values: usize,
    /// Blocks.
    pub(crate) blocks: usize,
}

impl Shape {
    pub(crate) fn new(config: &NepaConfig, batch: usize) -> Self {
        let patches = config.num_patches();
        Self {
            batch,
            patches,
            tokens: if config.is_causal {
                patches
            } else {
                patches + 1
            },
            width: config.hidden_size,
            heads: config.num_attention_heads,
            mlp: config.intermediate_size,
            up: config.intermediate_size * if config.use_gated_mlp { 2 } else { 1 },
            patch_values: config.num_channels * config.patch_size * config.patch_size,
            blocks: config.num_hidden_layers,
        }
    }

    /// Rows of a token matrix.
    pub(crate) fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    /// Width d of a head.
    pub(crate) fn head(&self) -> usize {
        self.width / self.heads
    }
}

/// What the forward pass leaves of one block for the backward pass. N rows; `V` is a buffer, or
/// nothing while they are counted.
#[derive(Debug)]
pub(super) struct BlockBuffers<V> {
    /// Residual stream before the block, `[N, D]`.
    pub(super) input: V,
    /// Query, key and value side by side, `[N, 3 D]`.
    pub(super) qkv: V,
    /// Greatest score and inverse sum of every softmax, `[B, 2, H, T]`.
    pub(super) softmax: V,
    /// What the heads found, `[N, D]`.
    pub(super) attention: V,
    /// Residual stream after attention, `[N, D]`.
    pub(super) middle: V,
    /// The MLP before its activation, `[N, up]`: up, then gate.
    pub(super) up: V,
}

/// What all threads share.
#[derive(Debug)]
pub(super) struct Buffers<V> {
    /// The images cut into patches, `[B P, C p p]`.
    pub(super) patches: V,
    /// Their embeddings, `[B P, D]`.
    pub(super) embedding: V,
    /// Rotary table, `[2, T, d / 2]`.
    pub(super) rotary: V,
    pub(super) blocks: Vec<BlockBuffers<V>>,
    /// Residual stream after the last block, `[N, D]`.
    pub(super) output: V,
    /// Of each prediction with what comes next and with what is there, `[B P, 2]`.
    pub(super) cosines: V,
    /// Gradient of the residual stream, `[N, D]`.
    pub(super) d_stream: V,
    /// Input of a block's first product, made again, `[N, D]`.
    pub(super) normed: V,
    /// A gradient of that width, `[N, D]`.
    pub(super) d_normed: V,
    /// Input of the MLP's second product, made again, `[N, mlp]`.
    pub(super) hidden: V,
    /// `[N, up]`.
    pub(super) d_up: V,
    /// `[N, 3 D]`.
    pub(super) d_qkv: V,
    /// Sums over rows, one set a piece.
    pub(super) partial_sums: V,
}

/// What a thread works in.
#[derive(Debug)]
pub(super) struct Scratch<V> {
    /// `[piece, D]`, twice.
    pub(super) rows: [V; 2],
    /// `[piece, mlp]`.
    pub(super) wide: V,
    /// One head, `[T, d]`: query, key, value, output's gradient; gradients of query, key, value.
    pub(super) heads: [V; 7],
    /// Scores and their gradients, `[queries, T]`.
    pub(super) scores: [V; 2],
    /// A value a token.
    pub(super) delta: V,
}

impl<V> Buffers<V> {
    /// Calls `take` with name and length of each.
    pub(super) fn new(shape: &Shape, take: &mut impl FnMut(&'static str, usize) -> V) -> Self {
        let (rows, width) = (shape.rows(), shape.width);
        // Of pieces of rows or of images, for a norm of the width or for both norms of a head.
        let pieces = rows.div_ceil(ROWS_PER_PIECE).max(shape.batch);
        let sums = (pieces * 2 * width).max(shape.batch * 4 * shape.head());
        let blocks = (0..shape.blocks).map(|_| BlockBuffers {
            input: take("residual stream", rows * width),
            qkv: take("queries, keys, values", 3 * rows * width),
            softmax: take("softmax statistics", 2 * rows * shape.heads),
            attention: take("attention outputs", rows * width),
            middle: take("residual stream", rows * width),
            up: take("MLP activations", rows * shape.up),
        });
        Self {
            blocks: blocks.collect(),
            patches: take("patches", shape.batch * shape.patches * shape.patch_values),
            embedding: take("embeddings", shape.batch * shape.patches * width),
            rotary: take("rotary table", shape.tokens * shape.head()),
            output: take("residual stream", rows * width),
            cosines: take("cosines", 2 * shape.batch * shape.patches),
            d_stream: take("backward", rows * width),
            normed: take("backward", rows * width),
            d_normed: take("backward", rows * width),
            hidden: take("backward", rows * shape.mlp),
            d_up: take("backward", rows * shape.up),
            d_qkv: take("backward", 3 * rows * width),
            partial_sums: take("partial sums", sums),
        }
    }
}

impl<V> Scratch<V> {
    pub(super) fn new(shape: &Shape, take: &mut impl FnMut(&'static str, usize) -> V) -> Self {
        let mut take = |len| take("threads' scratch", len);
        let piece = ROWS_PER_PIECE.min(shape.rows());
        Self {
            rows: std::array::from_fn(|_| take(piece * shape.width)),
            wide: take(piece * shape.mlp),
            heads: std::array::from_fn(|_| take(shape.tokens * shape.head())),
            scores: std::array::from_fn(|_| take(QUERIES * shape.tokens)),
            delta: take(shape.tokens),
        }
    }
}

/// One scratch a thread.
#[derive(Debug)]
pub(super) struct Scratches<T>(Vec<Mutex<Scratch<Vec<T>>>>);

impl<T: Clone + Default> Scratches<T> {
    pub(super) fn new(shape: &Shape) -> Self {
        let threads = 0..rayon::current_num_threads();
        let new = |_| Mutex::new(Scratch::new(shape, &mut |_, len| vec![T::default(); len]));
        Self(threads.map(new).collect())
    }

    /// This thread's. In a larger pool than the one that this was made in, two threads may have to
    /// take turns.
    pub(super) fn own(&self) -> MutexGuard<'_, Scratch<Vec<T>>> {
        let index = rayon::current_thread_index().unwrap_or(0) % self.0.len();
        // A panic elsewhere ends the step; what it left behind is written before it is read.
        self.0[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of memory by purpose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Purpose and bytes, in the order of first use.
    pub parts: Vec<(&'static str, u64)>,
}

impl MemoryPlan {
    /// What the explicit engine will allocate for micro-batches of `batch` images on this machine's
    /// threads.
    pub(super) fn new(shape: &Shape, value_bytes: usize) -> Self {
        let mut plan = Self::default();
        let mut take = |name, len: usize| plan.add(name, (len * value_bytes) as u64);
        Buffers::new(shape, &mut take);
        for _ in 0..rayon::current_num_threads() {
            Scratch::new(shape, &mut take);
        }
        plan
    }

    /// Adds to a part.
    pub fn add(&mut self, name: &'static str, bytes: u64) {
        match self.parts.iter_mut().find(|(part, _)| *part == name) {
            Some((_, sum)) => *sum += bytes,
            None => self.parts.push((name, bytes)),
        }
    }

    /// Adds all parts of another plan.
    pub fn extend(&mut self, other: &Self) {
        for (name, bytes) in &other.parts {
            self.add(name, *bytes);
        }
    }

    /// Sum of all parts.
    pub fn total_bytes(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(f, "{:.1} MiB: ", mib(self.total_bytes()))?;
        for (i, (name, bytes)) in self.parts.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {:.1}", mib(*bytes))?;
        }
        Ok(())
    }
}
