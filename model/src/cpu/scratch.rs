//! What a thread works in, taken before the first step.
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::packed::Panels;
use crate::NepaConfig;
use crate::real::Real;
use crate::step::{MemoryPlan, Shape, StepOptions};

/// Queries whose scores are computed at a time.
pub(super) const QUERIES: usize = 64;

/// Buffers of one thread; `V` is a buffer, or nothing while they are counted.
#[derive(Debug)]
pub(super) struct Scratch<V> {
    /// A row of the stream.
    pub(super) row: V,
    /// One head, `[T, d]`: query, key, value, output's gradient; gradients of query, key, value.
    pub(super) heads: [V; 7],
    /// Scores and their gradients, `[queries, T]`.
    pub(super) scores: [V; 2],
    /// A value a token.
    pub(super) delta: V,
}

impl<V> Scratch<V> {
    fn new(shape: &Shape, take: &mut impl FnMut(usize) -> V) -> Self {
        Self {
            row: take(shape.width),
            heads: std::array::from_fn(|_| take(shape.tokens * shape.head_size())),
            scores: std::array::from_fn(|_| take(QUERIES * shape.tokens)),
            delta: take(shape.tokens),
        }
    }
}

/// One scratch a thread, and room for all heads of one image and for the factors of a matmul.
#[derive(Debug, Default)]
pub(super) struct Scratches<T> {
    threads: Vec<Mutex<Scratch<Vec<T>>>>,
    /// `[H, 3, T, d]`: where the heads of an image are computed side by side before they are put
    /// into the rows that they share.
    heads: Vec<T>,
    /// For matmuls.
    pub(super) panels: Panels,
}

impl<T: Real> Scratches<T> {
    pub(super) fn new(config: &NepaConfig, options: &StepOptions) -> Self {
        let shape = &Shape::new(config, options);
        let threads = 0..rayon::current_num_threads();
        let new = |_| Mutex::new(Scratch::new(shape, &mut |len| vec![T::default(); len]));
        Self {
            threads: threads.map(new).collect(),
            heads: vec![T::default(); 3 * shape.tokens * shape.width],
            panels: if Self::multiplies_f32() {
                Panels::new(most_columns(config, shape))
            } else {
                Panels::default()
            },
        }
    }

    /// Whether its values are f32.
    fn multiplies_f32() -> bool {
        T::as_f32(&[]).is_some()
    }

    pub(super) fn plan(config: &NepaConfig, options: &StepOptions) -> MemoryPlan {
        let shape = &Shape::new(config, options);
        let mut values = 3 * shape.tokens * shape.width;
        for _ in 0..rayon::current_num_threads() {
            Scratch::new(shape, &mut |len| values += len);
        }
        let mut plan = MemoryPlan::default();
        plan.add("threads' scratch", (values * size_of::<T>()) as u64);
        if Self::multiplies_f32() {
            let bytes = Panels::planned_bytes(most_columns(config, shape));
            plan.add("matmuls' factors", bytes as u64);
        }
        plan
    }

    /// All that they have taken.
    pub(super) fn num_bytes(&self) -> u64 {
        let of_thread = |scratch: &Mutex<Scratch<Vec<T>>>| {
            let scratch = scratch.lock().unwrap_or_else(PoisonError::into_inner);
            let Scratch {
                row,
                heads,
                scores,
                delta,
            } = &*scratch;
            let all = heads.iter().chain(scores).chain([row, delta]);
            all.map(Vec::len).sum::<usize>()
        };
        let values = self.threads.iter().map(of_thread).sum::<usize>() + self.heads.len();
        (values * size_of::<T>() + self.panels.num_bytes()) as u64
    }

    /// The threads' scratch, and the room for heads.
    pub(super) fn split(&mut self) -> (&Threads<T>, &mut [T]) {
        (&self.threads, &mut self.heads)
    }
}

/// Columns of the widest result of a matmul: of queries, keys and values, of an MLP's first layer,
/// or of the gradient of the patches' projection.
fn most_columns(config: &NepaConfig, shape: &Shape) -> usize {
    // Without the zeros behind each patch, as panels are rounded up further.
    let patch = config.num_channels * config.patch_size * config.patch_size;
    (3 * shape.width).max(shape.up).max(patch)
}

pub(super) type Threads<T> = [Mutex<Scratch<Vec<T>>>];

/// This thread's scratch. In a larger pool than the one that they were made in, two threads may
/// have to take turns.
pub(super) fn own<T>(threads: &Threads<T>) -> MutexGuard<'_, Scratch<Vec<T>>> {
    let index = rayon::current_thread_index().unwrap_or(0) % threads.len();
    // A panic elsewhere ends the step; what it left behind is written before it is read.
    threads[index]
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}
