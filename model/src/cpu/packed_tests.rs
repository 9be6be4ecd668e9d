//! Products against sums in f64, of many shapes, and what lies around the result.
use super::*;

const CANARY: f32 = 12345.0;

/// Numbers that follow a seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn within(&mut self, least: usize, most: usize) -> usize {
        least + self.next() as usize % (most - least + 1)
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        let value = |_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        (0..len).map(value).collect()
    }
}

/// Values of a `[rows, columns]` matrix in rows of `stride`, and nothing behind the last.
struct Factor {
    values: Vec<f32>,
    columns: usize,
    stride: usize,
    transposed: bool,
}

impl Factor {
    fn new(numbers: &mut Numbers, rows: usize, columns: usize) -> Self {
        let transposed = numbers.within(0, 1) == 1;
        let (rows, columns) = if transposed {
            (columns, rows)
        } else {
            (rows, columns)
        };
        let stride = columns + numbers.within(0, 1) * numbers.within(0, 9);
        let mut values = numbers.values((rows - 1) * stride + columns);
        values.shrink_to_fit();
        Self {
            values,
            columns,
            stride,
            transposed,
        }
    }

    fn matrix(&self) -> Matrix<'_, f32> {
        let matrix = Matrix::strided(&self.values, self.columns, self.stride);
        if self.transposed {
            matrix.transposed()
        } else {
            matrix
        }
    }
}

fn at(matrix: &Matrix<'_, f32>, row: usize, column: usize) -> f64 {
    matrix.values[row * matrix.row_stride + column * matrix.column_stride].into()
}

/// The kernel, on each processor that has its instructions.
fn panels(columns: usize) -> Option<Panels> {
    let kernel = Kernel::detect();
    if kernel.is_none() {
        println!("SKIPPED: this processor lacks AVX2 or FMA");
    }
    kernel.map(|kernel| Panels::with(kernel, columns))
}

/// On so many threads.
fn on<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("threads").install(run)
}

#[test]
fn products_are_right_to_the_last_value_and_touch_no_other() {
    let seed = 0x5eed_0000_1234_5677;
    let numbers = &mut Numbers(seed);
    let Some(mut panels) = panels(700) else {
        return;
    };
    let blocks = [
        1,
        2,
        7,
        32,
        STEPS - 1,
        STEPS,
        STEPS + 1,
        2 * STEPS,
        2 * STEPS + 13,
    ];
    for case in 0..200 {
        let wide = case % 10 == 0;
        let m = numbers.within(1, if wide { 2 * MOST_ROWS + 9 } else { 90 });
        let n = numbers.within(1, if case % 10 == 1 { 700 } else { 90 });
        let k = match numbers.within(0, 2) {
            0 => blocks[numbers.within(0, blocks.len() - 1)],
            _ => numbers.within(1, 90),
        };
        let a = Factor::new(numbers, m, k);
        let b = Factor::new(numbers, k, n);
        let (a, b) = (a.matrix(), b.matrix());
        let add = numbers.within(0, 1) == 1;
        let bias = (numbers.within(0, 1) == 1).then(|| numbers.values(n));
        let before = if add {
            numbers.values(m * n)
        } else {
            vec![f32::NAN; m * n]
        };
        let around = TILE_ROWS * n + TILE_COLUMNS;
        let mut memory = vec![CANARY; m * n + 2 * around];
        let c = &mut memory[around..around + m * n];
        c.copy_from_slice(&before);
        let kernel = panels.kernel.expect("a kernel");
        panels.blocks(kernel, c, add, (a, b), bias.as_deref());
        let case = format!("seed {seed:#x}, case {case}: {m} {n} {k}, add {add}");
        for (place, value) in c.iter().enumerate() {
            let (row, column) = (place / n, place % n);
            let mut sum = if add { f64::from(before[place]) } else { 0.0 };
            let mut size = sum.abs();
            for step in 0..k {
                let product = at(&a, row, step) * at(&b, step, column);
                sum += product;
                size += product.abs();
            }
            if let Some(bias) = &bias {
                sum += f64::from(bias[column]);
                size += f64::from(bias[column]).abs();
            }
            let off = (f64::from(*value) - sum).abs();
            assert!(
                off <= 1e-6 * size + 1e-9,
                "{case}: {row} {column}: {value}, not {sum}"
            );
        }
        let (first, last) = (&memory[..around], &memory[around + m * n..]);
        assert!(
            first.iter().chain(last).all(|value| *value == CANARY),
            "{case}: around"
        );
    }
}

#[test]
fn parts_of_the_result_and_threads_change_no_bit() {
    let numbers = &mut Numbers(0x0dd_ba11);
    for (m, n, k) in [
        (96, 64, 32),
        (330, 203, 300),
        (1025, 100, 520),
        (71, 65, 1000),
    ] {
        let factors = [Factor::new(numbers, m, k), Factor::new(numbers, k, n)];
        let [a, b] = factors.each_ref().map(Factor::matrix);
        let bias = numbers.values(n);
        let before = numbers.values(m * n);
        let on_threads = |threads| {
            on(threads, || {
                let mut panels = panels(n)?;
                let mut c = before.clone();
                let kernel = panels.kernel?;
                panels.blocks(kernel, &mut c, true, (a, b), Some(&bias));
                Some(c)
            })
        };
        let Some(whole) = on_threads(1) else {
            return;
        };
        for threads in [2, 3, 8] {
            assert!(
                on_threads(threads) == Some(whole.clone()),
                "{m} {n} {k}, {threads} threads"
            );
        }
        let mut panels = panels(n).expect("as before");
        let kernel = panels.kernel.expect("a kernel");
        for first in [0, 1, 5, m - 1] {
            let rows = numbers.within(1, m - first);
            let part = Matrix {
                values: &a.values[first * a.row_stride..],
                rows,
                ..a
            };
            let range = first * n..(first + rows) * n;
            let mut c = before[range.clone()].to_vec();
            panels.blocks(kernel, &mut c, true, (part, b), Some(&bias));
            assert!(c == whole[range], "{m} {n} {k}, {rows} rows from {first}");
        }
    }
}

#[test]
fn rows_of_a_task_are_whole_tiles_of_few_rows() {
    for m in 1..3000 {
        for threads in [1, 2, 3, 8, 64] {
            let rows = rows_per_task(m, threads);
            assert!(
                rows > 0 && rows <= MOST_ROWS && rows.is_multiple_of(TILE_ROWS),
                "{m} {threads} {rows}"
            );
        }
    }
}

#[test]
fn memory_is_as_planned_and_small_products_are_left_to_others() {
    assert_eq!(Panels::new(700).num_bytes(), Panels::planned_bytes(700));
    let Some(mut panels) = panels(512) else {
        return;
    };
    let least = [128, 512, 256];
    for ([m, n, k], taken) in [
        (least, true),
        ([127, 512, 256], false),
        ([128, 127, 2000], false),
        ([128, 512, 127], false),
        ([128, 511, 256], false),
        ([128, 513, 256], false),
    ] {
        let (a, b, mut c) = (vec![1.0; m * k], vec![1.0; k * n], vec![CANARY; m * n]);
        let factors = (Matrix::new(&a, k), Matrix::new(&b, n));
        assert_eq!(
            panels.multiply(&mut c, false, factors, None),
            taken,
            "{m} {n} {k}"
        );
        let value = if taken { k as f32 } else { CANARY };
        assert!(
            c.iter().all(|c| c.to_bits() == value.to_bits()),
            "{m} {n} {k}"
        );
    }
}
