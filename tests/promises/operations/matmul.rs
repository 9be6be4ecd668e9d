//! The products that a step asks for: rows by a weight or its transpose, and a weight's gradient.
use nepa_model::step::device::{Device, Matmul, Operand, Output};

use super::{Bench, Left, Narrow, Random, Size, Wide};

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Product {
    /// `x W^T`, narrow.
    Linear { bias: bool },
    /// `x W^T`, wide.
    Embedding { bias: bool },
    /// `grad W`, narrow.
    Backward,
    /// `+= grad^T x`.
    Gradient,
}

const PRODUCTS: [Product; 6] = [
    Product::Linear { bias: true },
    Product::Linear { bias: false },
    Product::Embedding { bias: true },
    Product::Embedding { bias: false },
    Product::Backward,
    Product::Gradient,
];

/// Rows, inputs, outputs.
const SIZES: [(usize, usize, usize); 5] = [
    (1, 8, 16),
    (3, 24, 8),
    (70, 40, 136),
    (129, 264, 64),
    (200, 72, 72),
];

pub(super) fn matmul<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for product in PRODUCTS {
        for (rows, inputs, outputs) in SIZES {
            let mut random = Random(24);
            let case = format!("{product:?}, {rows} rows, {inputs} to {outputs}");
            let mut bench = Bench::new(device(), case, Size::new(1, rows, 64));
            let mut narrow = |bench: &mut Bench<D>, name, len| {
                bench.reads(name, Narrow, random.f32s(len, 0.1, 1.0))
            };
            let args = match product {
                Product::Linear { bias } | Product::Embedding { bias } => {
                    let x = narrow(&mut bench, "x", rows * inputs);
                    let weight = narrow(&mut bench, "weight", outputs * inputs);
                    let is_narrow = matches!(product, Product::Linear { .. });
                    let kind = if is_narrow { Narrow } else { Wide };
                    let biases = Random(25).f32s(outputs, 0.0, 5.0);
                    let bias = bias.then(|| bench.reads("bias", kind, biases));
                    Matmul {
                        m: rows,
                        n: outputs,
                        k: inputs,
                        a: Operand::rows(x, inputs),
                        b: Operand::transposed(weight, inputs),
                        c: bench.writes("product", kind, rows * outputs),
                        output: if is_narrow {
                            Output::Narrow(bias)
                        } else {
                            Output::Wide(bias)
                        },
                    }
                }
                Product::Backward => {
                    let grad = narrow(&mut bench, "gradient", rows * outputs);
                    let weight = narrow(&mut bench, "weight", outputs * inputs);
                    Matmul {
                        m: rows,
                        n: inputs,
                        k: outputs,
                        a: Operand::rows(grad, outputs),
                        b: Operand::rows(weight, inputs),
                        c: bench.writes("product", Narrow, rows * inputs),
                        output: Output::Narrow(None),
                    }
                }
                Product::Gradient => {
                    let grad = narrow(&mut bench, "gradient", rows * outputs);
                    let x = narrow(&mut bench, "x", rows * inputs);
                    let before = Random(25).f32s(outputs * inputs, 0.0, 5.0);
                    Matmul {
                        m: outputs,
                        n: inputs,
                        k: rows,
                        a: Operand::transposed(grad, outputs),
                        b: Operand::rows(x, inputs),
                        c: bench.changes("sum", Wide, before),
                        output: Output::Sum,
                    }
                }
            };
            bench.start();
            bench.device.matmul(&args).unwrap();
            bench.finish(&mut left);
        }
    }
    left
}
