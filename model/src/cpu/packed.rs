//! Products of large f32 matrices on processors with AVX2 and without AVX-512, faster than
//! `gemm`'s: the right factor is packed once for all threads, and not once for each part of the
//! result. How it is split over threads changes no bit.
#[cfg(not(target_arch = "x86_64"))]
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::avx2::Kernel;
use super::matrix::Matrix;
use super::rows::add_bias;
use super::tile::{Column, Line, TILE_COLUMNS, TILE_ROWS};

/// Steps of the sums between two visits of the result: one block of each factor. Fixed, as the
/// order of additions follows it.
const STEPS: usize = 256;
/// Most rows of the result that a task computes: its part of A stays in the second cache.
const MOST_ROWS: usize = 43 * TILE_ROWS;
/// Least rows of a task, where there are threads enough.
const LEAST_ROWS: usize = 8 * TILE_ROWS;
/// Columns of B that a task packs.
const COLUMNS_PER_TASK: usize = 8 * TILE_COLUMNS;
/// Rows, columns and length of sums, and values of B, from which on it is faster than `gemm`, or as
/// fast on one thread and faster on several. Sizes alone decide, so that threads change no bit.
const LEAST: usize = 128;
const LEAST_OF_B: usize = 1 << 17;

/// For processors that have no kernel here.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Debug, Clone, Copy)]
enum Kernel {}

#[cfg(not(target_arch = "x86_64"))]
impl Kernel {
    fn detect() -> Option<Self> {
        None
    }
    fn has_wider() -> bool {
        true
    }
    fn pack_b(self, _: Matrix<'_, f32>, _: Range<usize>, _: usize, _: &mut [Line]) {
        match self {}
    }
    fn pack_a(self, _: Matrix<'_, f32>, _: Range<usize>, _: Range<usize>, _: &mut [Column]) {
        match self {}
    }
    fn multiply(self, _: &mut [f32], _: usize, _: bool, _: usize, _: (&[Column], &[Line])) {
        match self {}
    }
}

/// Room for one block of B, and for one part of A a thread.
#[derive(Debug, Default)]
pub(super) struct Panels {
    kernel: Option<Kernel>,
    b: Vec<Line>,
    a: Vec<Mutex<Vec<Column>>>,
}

impl Panels {
    /// For results of at most so many columns; nothing where the processor is not one for it.
    pub(super) fn new(columns: usize) -> Self {
        match Self::kernel() {
            Some(kernel) => Self::with(kernel, columns),
            None => Self::default(),
        }
    }

    fn kernel() -> Option<Kernel> {
        Kernel::detect().filter(|_| !Kernel::has_wider())
    }

    fn with(kernel: Kernel, columns: usize) -> Self {
        let threads = 0..rayon::current_num_threads();
        Self {
            kernel: Some(kernel),
            b: vec![Line::default(); lines(columns)],
            a: threads
                .map(|_| Mutex::new(vec![Column::default(); MOST_ROWS / TILE_ROWS * STEPS]))
                .collect(),
        }
    }

    /// Bytes that [`Self::new`] takes.
    pub(super) fn planned_bytes(columns: usize) -> usize {
        let of_threads = rayon::current_num_threads() * MOST_ROWS * STEPS * size_of::<f32>();
        Self::kernel().map_or(0, |_| lines(columns) * size_of::<Line>() + of_threads)
    }

    /// Bytes that they have taken.
    pub(super) fn num_bytes(&self) -> usize {
        let of_thread = |a: &Mutex<Vec<Column>>| {
            a.lock().unwrap_or_else(PoisonError::into_inner).len() * size_of::<Column>()
        };
        self.b.len() * size_of::<Line>() + self.a.iter().map(of_thread).sum::<usize>()
    }

    /// The kernel, if it is one for a result `[m, n]` of sums over `k`.
    fn kernel_for(&self, [m, n, k]: [usize; 3]) -> Option<Kernel> {
        let large = [m, n, k].iter().all(|size| *size >= LEAST) && n * k >= LEAST_OF_B;
        self.kernel.filter(|_| large && lines(n) <= self.b.len())
    }

    /// `c [m, n] = a b`, added to what is there if asked for, and then a bias added to each column;
    /// false, and nothing done, where `gemm` is the faster one.
    pub(super) fn multiply(
        &mut self,
        c: &mut [f32],
        add: bool,
        (a, b): (Matrix<'_, f32>, Matrix<'_, f32>),
        bias: Option<&[f32]>,
    ) -> bool {
        let (m, n, k) = (a.rows, b.columns, a.columns);
        let Some(kernel) = self.kernel_for([m, n, k]) else {
            return false;
        };
        assert!(
            c.len() == m * n
                && b.rows == k
                && a.reach() <= a.values.len()
                && b.reach() <= b.values.len()
                && bias.is_none_or(|bias| bias.len() == n),
            "matrices that do not fit each other or their slices"
        );
        // One way into the pool for all that follows.
        rayon::scope(|_| self.blocks(kernel, c, add, (a, b), bias));
        true
    }

    fn blocks(
        &mut self,
        kernel: Kernel,
        c: &mut [f32],
        add: bool,
        (a, b): (Matrix<'_, f32>, Matrix<'_, f32>),
        bias: Option<&[f32]>,
    ) {
        let (m, n, k) = (a.rows, b.columns, a.columns);
        let rows = rows_per_task(m, rayon::current_num_threads());
        let most = k.div_ceil(k.div_ceil(STEPS));
        for first in (0..k).step_by(most) {
            let steps = first..k.min(first + most);
            let count = steps.len();
            let packed = &mut self.b[..n.div_ceil(TILE_COLUMNS) * count];
            packed
                .par_chunks_mut(COLUMNS_PER_TASK / TILE_COLUMNS * count)
                .enumerate()
                .for_each(|(task, panels)| {
                    kernel.pack_b(b, steps.clone(), task * COLUMNS_PER_TASK, panels);
                });
            let packed = &*packed;
            c.par_chunks_mut(rows * n)
                .enumerate()
                .for_each(|(task, c)| {
                    let rows = task * rows..m.min((task + 1) * rows);
                    let thread = rayon::current_thread_index().unwrap_or(0) % self.a.len();
                    // In a larger pool than at first, two threads may have to take turns.
                    let panels = self.a[thread].lock();
                    let mut panels = panels.unwrap_or_else(PoisonError::into_inner);
                    let panels = &mut panels[..rows.len().div_ceil(TILE_ROWS) * count];
                    kernel.pack_a(a, rows, steps.clone(), panels);
                    kernel.multiply(c, n, add || first > 0, count, (panels, packed));
                    if let (Some(bias), true) = (bias, steps.end == k) {
                        add_bias(c, n, bias);
                    }
                });
        }
    }
}

/// Lines of one block of so many columns.
fn lines(columns: usize) -> usize {
    columns.div_ceil(TILE_COLUMNS) * STEPS
}

/// Rows of a result that one task computes: tiles, and about as many for all tasks.
fn rows_per_task(m: usize, threads: usize) -> usize {
    // Two a thread, so that one that is late does not hold the others up.
    let wanted = if threads == 1 { 1 } else { 2 * threads };
    let least = m.div_ceil(MOST_ROWS);
    let count = match least.next_multiple_of(wanted) {
        count if m / count >= LEAST_ROWS => count,
        _ => least.max(m / LEAST_ROWS).max(1),
    };
    m.div_ceil(count).next_multiple_of(TILE_ROWS)
}

#[cfg(all(test, target_arch = "x86_64"))]
#[path = "packed_tests.rs"]
mod tests;
