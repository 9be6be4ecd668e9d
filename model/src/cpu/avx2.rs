//! The kernel of `packed.rs` for AVX2 and FMA: tiles of 6 x 16 sums in registers, over packed
//! panels, after the design of BLIS.
#![expect(
    unsafe_code,
    reason = "loads, stores and calls that a processor may lack; of memory, arrays alone are used"
)]
use std::arch::x86_64::{
    __m128, __m256, _MM_HINT_T0, _MM_HINT_T1, _MM_TRANSPOSE4_PS, _mm_castps_pd, _mm_loadu_ps,
    _mm_prefetch, _mm_storeh_pd, _mm_storel_pd, _mm_storeu_ps, _mm_unpackhi_ps, _mm_unpacklo_ps,
    _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};
use std::ops::Range;

use super::matrix::Matrix;
use super::tile::{Column, Line, TILE_COLUMNS, TILE_ROWS};

/// Steps of a sum between two turns of the innermost loop.
const UNROLLED: usize = 4;
/// Steps of a sum that are packed for all panels before the next are: so rows are read in order.
const STEPS: usize = 16;
/// Values of half a line: a register.
const HALF: usize = TILE_COLUMNS / 2;

/// Shows that this processor has AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel(());

#[expect(
    clippy::unused_self,
    reason = "whoever has one may run these instructions"
)]
impl Kernel {
    /// None where the processor lacks them.
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }

    /// Whether the processor has AVX-512, for which `gemm` has wider tiles.
    pub(super) fn has_wider() -> bool {
        is_x86_feature_detected!("avx512f")
    }

    /// Rows `steps` of B, from column `first` on, into whole panels; zeros follow the last column.
    pub(super) fn pack_b(
        self,
        b: Matrix<'_, f32>,
        steps: Range<usize>,
        first: usize,
        panels: &mut [Line],
    ) {
        // SAFETY: `Self` exists only where the processor has these instructions.
        unsafe { pack_b(b, steps, first, panels) }
    }

    /// Columns `steps` of A's `rows` into panels of six rows; zeros follow the last row.
    pub(super) fn pack_a(
        self,
        a: Matrix<'_, f32>,
        rows: Range<usize>,
        steps: Range<usize>,
        panels: &mut [Column],
    ) {
        // SAFETY: `Self` exists only where the processor has these instructions.
        unsafe { pack_a(a, rows, steps, panels) }
    }

    /// `c [rows, n] = a b` of packed panels of `steps` steps, added to what is there if asked for.
    pub(super) fn multiply(
        self,
        c: &mut [f32],
        n: usize,
        add: bool,
        steps: usize,
        (a, b): (&[Column], &[Line]),
    ) {
        // SAFETY: `Self` exists only where the processor has these instructions.
        unsafe { multiply(c, n, add, steps, (a, b)) }
    }
}

#[target_feature(enable = "avx2,fma")]
fn load(values: &[f32; HALF]) -> __m256 {
    // SAFETY: eight values are read from as many.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx2,fma")]
fn store(values: &mut [f32; HALF], register: __m256) {
    // SAFETY: eight values are written to as many.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), register) }
}

#[target_feature(enable = "avx2,fma")]
fn load4(values: &[f32; 4]) -> __m128 {
    // SAFETY: four values are read from as many.
    unsafe { _mm_loadu_ps(values.as_ptr()) }
}

/// The halves of a line.
#[target_feature(enable = "avx2,fma")]
fn halves(line: &[f32; TILE_COLUMNS]) -> [&[f32; HALF]; 2] {
    let (low, high) = line.split_at(HALF);
    [low, high].map(|half| half.try_into().expect("half of a line"))
}

#[target_feature(enable = "avx2,fma")]
fn halves_mut(line: &mut [f32; TILE_COLUMNS]) -> [&mut [f32; HALF]; 2] {
    let (low, high) = line.split_at_mut(HALF);
    [low, high].map(|half| half.try_into().expect("half of a line"))
}

/// The `N` values from `first` on.
#[target_feature(enable = "avx2,fma")]
fn at<const N: usize>(values: &[f32], first: usize) -> &[f32; N] {
    values[first..][..N].try_into().expect("as many values")
}

/// Eight registers as a matrix, transposed.
#[target_feature(enable = "avx2,fma")]
fn transposed(r: [__m256; 8]) -> [__m256; 8] {
    let t = [
        _mm256_unpacklo_ps(r[0], r[1]),
        _mm256_unpackhi_ps(r[0], r[1]),
        _mm256_unpacklo_ps(r[2], r[3]),
        _mm256_unpackhi_ps(r[2], r[3]),
        _mm256_unpacklo_ps(r[4], r[5]),
        _mm256_unpackhi_ps(r[4], r[5]),
        _mm256_unpacklo_ps(r[6], r[7]),
        _mm256_unpackhi_ps(r[6], r[7]),
    ];
    let s = [
        _mm256_shuffle_ps::<0x44>(t[0], t[2]),
        _mm256_shuffle_ps::<0xee>(t[0], t[2]),
        _mm256_shuffle_ps::<0x44>(t[1], t[3]),
        _mm256_shuffle_ps::<0xee>(t[1], t[3]),
        _mm256_shuffle_ps::<0x44>(t[4], t[6]),
        _mm256_shuffle_ps::<0xee>(t[4], t[6]),
        _mm256_shuffle_ps::<0x44>(t[5], t[7]),
        _mm256_shuffle_ps::<0xee>(t[5], t[7]),
    ];
    [
        _mm256_permute2f128_ps::<0x20>(s[0], s[4]),
        _mm256_permute2f128_ps::<0x20>(s[1], s[5]),
        _mm256_permute2f128_ps::<0x20>(s[2], s[6]),
        _mm256_permute2f128_ps::<0x20>(s[3], s[7]),
        _mm256_permute2f128_ps::<0x31>(s[0], s[4]),
        _mm256_permute2f128_ps::<0x31>(s[1], s[5]),
        _mm256_permute2f128_ps::<0x31>(s[2], s[6]),
        _mm256_permute2f128_ps::<0x31>(s[3], s[7]),
    ]
}

#[target_feature(enable = "avx2,fma")]
fn pack_b(b: Matrix<'_, f32>, steps: Range<usize>, first: usize, panels: &mut [Line]) {
    let count = steps.len();
    // Panels that are full; the last may not be.
    let full = ((b.columns - first) / TILE_COLUMNS).min(panels.len() / count);
    let (whole, rest) = panels.split_at_mut(full * count);
    if b.column_stride == 1 {
        for start in (0..count).step_by(STEPS) {
            for (number, panel) in whole.chunks_exact_mut(count).enumerate() {
                let column = first + number * TILE_COLUMNS;
                for (step, line) in panel.iter_mut().enumerate().skip(start).take(STEPS) {
                    line.0 = *at(b.values, (steps.start + step) * b.row_stride + column);
                }
            }
        }
    } else if b.row_stride == 1 {
        for (number, panel) in whole.chunks_exact_mut(count).enumerate() {
            let column = first + number * TILE_COLUMNS;
            pack_columns(b, steps.start, column, panel);
        }
    } else {
        pack_slowly(b, &steps, first, whole);
    }
    pack_slowly(b, &steps, first + full * TILE_COLUMNS, rest);
}

/// Columns of B that lie in memory without gaps, from `column` on, into one panel.
#[target_feature(enable = "avx2,fma")]
fn pack_columns(b: Matrix<'_, f32>, start: usize, column: usize, panel: &mut [Line]) {
    let (blocks, rest) = panel.as_chunks_mut::<HALF>();
    let behind = start + blocks.len() * HALF;
    for (number, lines) in blocks.iter_mut().enumerate() {
        for half in 0..2 {
            let mut registers = [_mm256_setzero_ps(); HALF];
            for (number_of_column, register) in registers.iter_mut().enumerate() {
                let column = column + half * HALF + number_of_column;
                *register = load(at(
                    b.values,
                    column * b.column_stride + start + number * HALF,
                ));
            }
            let registers = transposed(registers);
            for step in 0..HALF {
                store(halves_mut(&mut lines[step].0)[half], registers[step]);
            }
        }
    }
    for (step, line) in rest.iter_mut().enumerate() {
        for (number, value) in line.0.iter_mut().enumerate() {
            *value = b.values[(column + number) * b.column_stride + behind + step];
        }
    }
}

/// Of any strides, and with zeros behind the last column.
fn pack_slowly(b: Matrix<'_, f32>, steps: &Range<usize>, first: usize, panels: &mut [Line]) {
    for (number, panel) in panels.chunks_exact_mut(steps.len()).enumerate() {
        for (step, line) in steps.clone().zip(panel) {
            for (column, value) in (first + number * TILE_COLUMNS..).zip(&mut line.0) {
                let place = step * b.row_stride + column * b.column_stride;
                *value = if column < b.columns {
                    b.values[place]
                } else {
                    0.0
                };
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn pack_a(a: Matrix<'_, f32>, rows: Range<usize>, steps: Range<usize>, panels: &mut [Column]) {
    let count = steps.len();
    let full = rows.len() / TILE_ROWS;
    let (whole, rest) = panels.split_at_mut(full * count);
    if a.column_stride == 1 {
        for (number, panel) in whole.chunks_exact_mut(count).enumerate() {
            pack_rows(a, rows.start + number * TILE_ROWS, steps.start, panel);
        }
    } else if a.row_stride == 1 {
        for start in (0..count).step_by(STEPS) {
            for (number, panel) in whole.chunks_exact_mut(count).enumerate() {
                let row = rows.start + number * TILE_ROWS;
                for (step, column) in panel.iter_mut().enumerate().skip(start).take(STEPS) {
                    *column = *at(a.values, (steps.start + step) * a.column_stride + row);
                }
            }
        }
    } else {
        pack_a_slowly(a, rows.start..rows.start + full * TILE_ROWS, &steps, whole);
    }
    pack_a_slowly(a, rows.start + full * TILE_ROWS..rows.end, &steps, rest);
}

/// Six rows of A without gaps, from `row` and `start` on, into one panel.
#[target_feature(enable = "avx2,fma")]
fn pack_rows(a: Matrix<'_, f32>, row: usize, start: usize, panel: &mut [Column]) {
    let lines: [&[f32]; TILE_ROWS] =
        std::array::from_fn(|i| &a.values[(row + i) * a.row_stride + start..][..panel.len()]);
    let (blocks, rest) = panel.as_chunks_mut::<4>();
    let behind = blocks.len() * 4;
    for (number, block) in blocks.iter_mut().enumerate() {
        let first = number * 4;
        let mut r = [
            load4(at(lines[0], first)),
            load4(at(lines[1], first)),
            load4(at(lines[2], first)),
            load4(at(lines[3], first)),
        ];
        let (r4, r5) = (load4(at(lines[4], first)), load4(at(lines[5], first)));
        let [r0, r1, r2, r3] = &mut r;
        let low = _mm_castps_pd(_mm_unpacklo_ps(r4, r5));
        let high = _mm_castps_pd(_mm_unpackhi_ps(r4, r5));
        let out = block.as_flattened_mut().as_mut_ptr();
        // SAFETY: the transposition works on registers; four and two values are written to each of
        // four columns of six.
        unsafe {
            _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
            _mm_storeu_ps(out, *r0);
            _mm_storel_pd(out.add(4).cast(), low);
            _mm_storeu_ps(out.add(6), *r1);
            _mm_storeh_pd(out.add(10).cast(), low);
            _mm_storeu_ps(out.add(12), *r2);
            _mm_storel_pd(out.add(16).cast(), high);
            _mm_storeu_ps(out.add(18), *r3);
            _mm_storeh_pd(out.add(22).cast(), high);
        }
    }
    for (step, column) in rest.iter_mut().enumerate() {
        for (line, value) in lines.iter().zip(column) {
            *value = line[behind + step];
        }
    }
}

/// Of any strides, and with zeros behind the last row.
fn pack_a_slowly(
    a: Matrix<'_, f32>,
    rows: Range<usize>,
    steps: &Range<usize>,
    panels: &mut [Column],
) {
    for (number, panel) in panels.chunks_exact_mut(steps.len()).enumerate() {
        for (step, column) in steps.clone().zip(panel) {
            for (row, value) in (rows.start + number * TILE_ROWS..).zip(column) {
                let place = row * a.row_stride + step * a.column_stride;
                *value = if row < rows.end { a.values[place] } else { 0.0 };
            }
        }
    }
}

/// A value will be needed; the address need not be one.
#[target_feature(enable = "avx2,fma")]
fn prefetch<const HINT: i32>(place: *const f32) {
    _mm_prefetch::<HINT>(place.cast());
}

#[target_feature(enable = "avx2,fma")]
fn multiply(c: &mut [f32], n: usize, add: bool, steps: usize, (a, b): (&[Column], &[Line])) {
    let tiles = a.len() / steps;
    // Of the next panel of B, which lies behind this one, a share is fetched with each tile.
    let share = steps.div_ceil(tiles);
    for (number, panel) in b.chunks_exact(steps).enumerate() {
        let first = number * TILE_COLUMNS;
        let width = TILE_COLUMNS.min(n - first);
        let next = b.as_ptr().wrapping_add((number + 1) * steps);
        for ((tile, columns), c) in a
            .chunks_exact(steps)
            .enumerate()
            .zip(c.chunks_mut(TILE_ROWS * n))
        {
            for line in 0..share {
                let line = next.wrapping_add(tile * share + line);
                prefetch::<_MM_HINT_T1>(line.cast());
            }
            for row in c.chunks_exact(n) {
                let place = row.as_ptr().wrapping_add(first);
                prefetch::<_MM_HINT_T0>(place);
                prefetch::<_MM_HINT_T0>(place.wrapping_add(width - 1));
            }
            let sums = sums(columns, panel);
            for (row, sums) in c.chunks_exact_mut(n).zip(sums) {
                let row = &mut row[first..first + width];
                if let Ok(row) = row.try_into() {
                    put(row, add, sums);
                } else {
                    let mut whole = [0.0; TILE_COLUMNS];
                    whole[..width].copy_from_slice(row);
                    put(&mut whole, add, sums);
                    row.copy_from_slice(&whole[..width]);
                }
            }
        }
    }
}

/// The sums of a tile over one panel of each factor.
#[target_feature(enable = "avx2,fma")]
fn sums(a: &[Column], b: &[Line]) -> [[__m256; 2]; TILE_ROWS] {
    let mut sums = [[_mm256_setzero_ps(); 2]; TILE_ROWS];
    let (a, b) = (a.as_chunks::<UNROLLED>(), b.as_chunks::<UNROLLED>());
    for (a, b) in a.0.iter().zip(b.0) {
        for step in 0..UNROLLED {
            add_step(&a[step], &b[step], &mut sums);
        }
    }
    for (a, b) in a.1.iter().zip(b.1) {
        add_step(a, b, &mut sums);
    }
    sums
}

#[target_feature(enable = "avx2,fma")]
fn add_step(a: &Column, b: &Line, sums: &mut [[__m256; 2]; TILE_ROWS]) {
    let [low, high] = halves(&b.0);
    let (low, high) = (load(low), load(high));
    for row in 0..TILE_ROWS {
        let factor = _mm256_set1_ps(a[row]);
        sums[row][0] = _mm256_fmadd_ps(factor, low, sums[row][0]);
        sums[row][1] = _mm256_fmadd_ps(factor, high, sums[row][1]);
    }
}

/// A row's sums to its place, or added to what is there.
#[target_feature(enable = "avx2,fma")]
fn put(row: &mut [f32; TILE_COLUMNS], add: bool, sums: [__m256; 2]) {
    for (half, sums) in halves_mut(row).into_iter().zip(sums) {
        store(
            half,
            if add {
                _mm256_add_ps(load(half), sums)
            } else {
                sums
            },
        );
    }
}
