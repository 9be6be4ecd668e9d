//! Each matmul of a step, alone: right to the bit, as its operands are small whole numbers, and
//! its time.
use std::collections::BTreeSet;

use anyhow::ensure;
use nepa_benchmarks::device_report::print_verdict;
use nepa_benchmarks::median;
use nepa_model::cuda::arguments::Launch;
use nepa_model::cuda::launcher::{Launcher, Matmul, Operand, Output};
use nepa_model::cuda::{CudaLauncher, KernelDevice};
use nepa_model::{ModelError, RopeDraw, init_weights};
use nepa_tests::engine_kernels::{bf16, widen};
use nepa_tests::kernels::Bf16;
use nepa_tests::stepping::{self, add};

use crate::models::{Model, pixels, stream};
use crate::timed::{describe, milliseconds};

/// Timed after the call that chooses the algorithm.
const TIMED: usize = 3;
/// Places of each result that are looked at.
const LOOKED_AT: usize = 97;

/// Takes down what matmuls a step asks for, and does nothing.
#[derive(Debug, Default)]
struct Recorder {
    matmuls: Vec<Matmul>,
}

impl Launcher for Recorder {
    type Error = ModelError;

    fn allocate(&mut self, _num_bytes: u64) -> Result<u64, ModelError> {
        Ok(1 << 20)
    }
    fn launch<A: Copy>(&mut self, _launch: Launch<A>) -> Result<(), ModelError> {
        Ok(())
    }
    fn matmul(&mut self, matmul: &Matmul) -> Result<(), ModelError> {
        self.matmuls.push(*matmul);
        Ok(())
    }
    fn zero(&mut self, _address: u64, _num_bytes: u64) -> Result<(), ModelError> {
        Ok(())
    }
    fn write(&mut self, _address: u64, _bytes: &[u8]) -> Result<(), ModelError> {
        Ok(())
    }
    fn read(&mut self, _address: u64, bytes: &mut [u8]) -> Result<(), ModelError> {
        bytes.fill(0);
        Ok(())
    }
}

/// The matmuls of a step, one of each kind.
fn matmuls(tiny: bool, batch: usize) -> anyhow::Result<Vec<Matmul>> {
    let (_, config) = Model::B14.config(tiny);
    let weights = init_weights(&config, 1).flat;
    let device = KernelDevice::new(Recorder::default());
    let mut step = stepping::pretraining(&config, &weights, batch, device)?;
    let one = pixels(&config, 1);
    let images = vec![one[0].as_slice(); batch];
    add(&mut step, &images, &RopeDraw::default(), 1.0)?;
    let mut seen = BTreeSet::new();
    let mut matmuls = step.device().launcher().matmuls.clone();
    matmuls.retain(|matmul| {
        let Matmul { m, n, k, a, b, .. } = *matmul;
        let operand = |of: Operand| (of.stride, of.transposed);
        seen.insert((m, n, k, operand(a), operand(b), kind(matmul.output)))
    });
    Ok(matmuls)
}

/// Its name, whether it has a bias, and bytes of a value.
fn kind(output: Output) -> (&'static str, bool, usize) {
    match output {
        Output::Bf16 { bias } => ("bf16", bias != 0, 2),
        Output::F32 { bias } => ("f32", bias != 0, 4),
        Output::SumF32 => ("added, f32", false, 4),
    }
}

/// A whole number from -2 to 2, so that sums are exact in f32 whatever their order.
fn value(position: usize) -> f32 {
    let mixed = (position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (mixed % 5) as f32 - 2.0
}

fn bf16_bytes(len: usize) -> Vec<u8> {
    let values = (0..len).map(|i| bf16(value(i)).0.to_ne_bytes());
    values.flatten().collect()
}

fn f32_bytes(len: usize) -> Vec<u8> {
    let values = (0..len).map(|i| value(i).to_ne_bytes());
    values.flatten().collect()
}

/// Values of an operand's memory.
fn operand_len(operand: Operand, rows: usize, columns: usize) -> usize {
    let (outer, inner) = if operand.transposed {
        (columns, rows)
    } else {
        (rows, columns)
    };
    (outer - 1) * operand.stride + inner
}

fn at(operand: Operand, row: usize, column: usize) -> f32 {
    let Operand {
        stride, transposed, ..
    } = operand;
    value(if transposed {
        column * stride + row
    } else {
        row * stride + column
    })
}

/// A matmul on operands of its own.
struct Placed {
    matmul: Matmul,
    bias: u64,
    /// Values of A and B.
    lens: [usize; 2],
    num_bytes: u64,
}

impl Placed {
    /// The same shape with everything in memory from `base` on.
    fn new(matmul: &Matmul, base: u64) -> Self {
        let Matmul { m, n, k, a, b, .. } = *matmul;
        let (_, has_bias, value_bytes) = kind(matmul.output);
        let mut next = base;
        let mut take = |num_bytes: usize| {
            let start = next;
            next += (num_bytes as u64).next_multiple_of(256);
            start
        };
        let lens = [operand_len(a, m, k), operand_len(b, k, n)];
        let [a_address, b_address] = lens.map(|len| take(2 * len));
        let c = take(value_bytes * m * n);
        let bias = if has_bias { take(4 * n) } else { 0 };
        let output = match matmul.output {
            Output::Bf16 { .. } => Output::Bf16 { bias },
            Output::F32 { .. } => Output::F32 { bias },
            Output::SumF32 => Output::SumF32,
        };
        Self {
            matmul: Matmul {
                a: Operand {
                    address: a_address,
                    ..a
                },
                b: Operand {
                    address: b_address,
                    ..b
                },
                c,
                output,
                ..*matmul
            },
            bias,
            lens,
            num_bytes: next - base,
        }
    }

    /// Writes the operands, and where nothing is added to it what the result must not stay.
    fn write(&self, device: &mut CudaLauncher) -> anyhow::Result<()> {
        let Matmul {
            m,
            n,
            a,
            b,
            c,
            output,
            ..
        } = self.matmul;
        device.write(a.address, &bf16_bytes(self.lens[0]))?;
        device.write(b.address, &bf16_bytes(self.lens[1]))?;
        if output == Output::SumF32 {
            device.write(c, &f32_bytes(m * n))?;
        } else {
            let (_, _, value_bytes) = kind(output);
            device.write(c, &vec![0xff; value_bytes * m * n])?;
        }
        match output {
            Output::Bf16 { .. } if self.bias != 0 => device.write(self.bias, &bf16_bytes(n))?,
            Output::F32 { .. } if self.bias != 0 => device.write(self.bias, &f32_bytes(n))?,
            _ => {}
        }
        Ok(())
    }

    /// Looks at some places all over the result, the first and the last among them.
    fn check(&self, device: &mut CudaLauncher) -> anyhow::Result<()> {
        let Matmul {
            m,
            n,
            k,
            a,
            b,
            c,
            output,
        } = self.matmul;
        let (_, has_bias, value_bytes) = kind(output);
        let mut bytes = vec![0; value_bytes * m * n];
        device.read(c, &mut bytes)?;
        for number in 0..LOOKED_AT {
            let place = (m * n - 1) * number / (LOOKED_AT - 1);
            let (row, column) = (place / n, place % n);
            let sum = (0..k)
                .map(|i| at(a, row, i) * at(b, i, column))
                .sum::<f32>();
            let expected = sum
                + if has_bias { value(column) } else { 0.0 }
                + if output == Output::SumF32 {
                    value(place)
                } else {
                    0.0
                };
            let (found, expected) = if value_bytes == 2 {
                let bytes = [bytes[2 * place], bytes[2 * place + 1]];
                (
                    widen(Bf16(u16::from_ne_bytes(bytes))),
                    widen(bf16(expected)),
                )
            } else {
                let bytes = std::array::from_fn(|i| bytes[4 * place + i]);
                (f32::from_ne_bytes(bytes), expected)
            };
            ensure!(
                (found - expected).abs() <= 0.0,
                "row {row}, column {column}: {found} in place of {expected}"
            );
        }
        Ok(())
    }
}

fn run(device: &mut CudaLauncher, placed: &Placed) -> anyhow::Result<String> {
    let matmul = &placed.matmul;
    placed.write(device)?;
    device.matmul(matmul)?;
    placed.check(device)?;
    let mut times = Vec::new();
    for _ in 0..TIMED {
        times.push(milliseconds(device, |device| device.matmul(matmul))?);
    }
    let (_, flops) = describe(matmul);
    let ms = median(&times);
    Ok(format!(
        "{LOOKED_AT} values exact; {:.0} us, {:.1} TFLOP/s",
        1e3 * ms,
        flops as f64 / ms.max(1e-6) / 1e9
    ))
}

pub(crate) fn print(tiny: bool, batch: usize) -> anyhow::Result<bool> {
    let matmuls = matmuls(tiny, batch)?;
    let mut device = CudaLauncher::new(stream()?)?;
    let sizes = matmuls.iter().map(|it| Placed::new(it, 0).num_bytes);
    let base = device.allocate(sizes.max().unwrap_or_default())?;
    let mut passed = true;
    for matmul in &matmuls {
        let (name, _) = describe(matmul);
        let (kind, has_bias, _) = kind(matmul.output);
        let mark = |of: Operand| if of.transposed { "^T" } else { "" };
        let name = format!(
            "{name}: A{} B{}, {kind}{}",
            mark(matmul.a),
            mark(matmul.b),
            if has_bias { ", bias" } else { "" }
        );
        passed &= print_verdict(&name, &run(&mut device, &Placed::new(matmul, base)));
    }
    ensure!(!matmuls.is_empty(), "a step without matmuls");
    Ok(passed)
}
