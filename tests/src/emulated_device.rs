//! What launches the kernels of a step on the CPU: through the shim in `cuda_shim/`, matmuls as plain
//! loops over the same bf16 operands. So the whole step, launch by launch, is what a GPU would do.
//! Slow, for tests only.
#![expect(
    unsafe_code,
    reason = "kernels take addresses; all of them lie in the one allocation that is made here"
)]
use std::ops::Range;

use nepa_model::ModelError;
use nepa_model::cuda::KernelDevice;
use nepa_model::cuda::arguments::Launch;
use nepa_model::cuda::launcher::{Launcher, Matmul, Operand, Output};

use crate::kernels::ThreadOrder;

/// The emulation.
#[derive(Debug, Default)]
pub struct EmulatedLauncher {
    /// 16 bytes each, as the kernels' widest loads want.
    memory: Vec<[u64; 2]>,
    /// Of the random order in which the next launch's warps and blocks run.
    seed: u64,
    /// Filled with `RED`, and looked at after each launch and matmul.
    red_zones: Vec<(&'static str, Range<u64>)>,
}

const RED: u8 = 0xa5;

/// The step's device over it.
pub type EmulatedDevice = KernelDevice<EmulatedLauncher>;

/// A device whose threads run in the orders of that seed.
pub fn emulated(seed: u64) -> EmulatedDevice {
    KernelDevice::new(EmulatedLauncher::of_seed(seed))
}

/// What goes wrong is a mistake of the step; only an impossible model is an error.
pub type EmulatedError = ModelError;

impl EmulatedLauncher {
    /// One whose threads run in other orders.
    pub fn of_seed(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    fn start(&self) -> u64 {
        self.memory.as_ptr().expose_provenance() as u64
    }

    /// A part of the memory, after a check that it is one.
    fn bytes(&mut self, address: u64, num_bytes: usize) -> &mut [u8] {
        let start = self.start();
        let memory = self.memory.as_flattened_mut();
        let offset = address
            .checked_sub(start)
            .expect("an address before the memory") as usize;
        // SAFETY: plain bytes of a vector that is borrowed for as long.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u8>(), 8 * memory.len())
        };
        &mut bytes[offset..offset + num_bytes]
    }

    /// Panics if something was written past the end of a region.
    fn check_red_zones(&mut self, after: &str) {
        for (behind, addresses) in self.red_zones.clone() {
            let bytes = self.bytes(addresses.start, (addresses.end - addresses.start) as usize);
            if let Some(place) = bytes.iter().position(|byte| *byte != RED) {
                panic!("{after} wrote {place} bytes behind a region of {behind}");
            }
        }
    }

    fn floats(&mut self, address: u64, len: usize) -> Vec<f32> {
        let bytes = self.bytes(address, 4 * len).as_chunks::<4>().0;
        bytes.iter().map(|b| f32::from_ne_bytes(*b)).collect()
    }

    fn bf16s(&mut self, address: u64, len: usize) -> Vec<f32> {
        let bytes = self.bytes(address, 2 * len).as_chunks::<2>().0;
        bytes
            .iter()
            .map(|b| f32::from_bits(u32::from(u16::from_ne_bytes(*b)) << 16))
            .collect()
    }

    /// An operand as a row-major matrix without gaps.
    fn matrix(&mut self, operand: Operand, rows: usize, columns: usize) -> Vec<f32> {
        let Operand {
            address,
            stride,
            transposed,
        } = operand;
        let (outer, inner) = if transposed {
            (columns, rows)
        } else {
            (rows, columns)
        };
        assert!(
            address.is_multiple_of(16) && stride.is_multiple_of(8) && stride >= inner,
            "an operand that a matmul in bf16 does not take"
        );
        let values = self.bf16s(address, (outer - 1) * stride + inner);
        let at = |row: usize, column: usize| {
            if transposed {
                values[column * stride + row]
            } else {
                values[row * stride + column]
            }
        };
        (0..rows * columns)
            .map(|i| at(i / columns, i % columns))
            .collect()
    }
}

fn to_bf16(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let rounded = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if value.is_nan() { 0x7fffu16 } else { rounded }.to_ne_bytes()
}

impl Launcher for EmulatedLauncher {
    type Error = EmulatedError;
    const RED_ZONE_BYTES: u64 = 256;

    fn allocate(&mut self, num_bytes: u64) -> Result<u64, EmulatedError> {
        assert!(self.memory.is_empty(), "one allocation only");
        // All bytes set are NaN as f32 and as bf16: what is read before it is written shows.
        self.memory = vec![[u64::MAX; 2]; num_bytes.div_ceil(16) as usize];
        Ok(self.start())
    }

    fn watch(&mut self, red_zones: Vec<(&'static str, Range<u64>)>) -> Result<(), EmulatedError> {
        for (_, addresses) in &red_zones {
            let num_bytes = (addresses.end - addresses.start) as usize;
            self.bytes(addresses.start, num_bytes).fill(RED);
        }
        self.red_zones = red_zones;
        Ok(())
    }

    fn launch<A: Copy>(&mut self, launch: Launch<A>) -> Result<(), EmulatedError> {
        // SAFETY: all addresses lie in the memory of this device, which is borrowed for the whole call, where the step has planned them.
        unsafe { crate::engine_kernels::run(&launch, ThreadOrder::Random(self.seed)) };
        self.seed += 1;
        self.check_red_zones(launch.kernel());
        Ok(())
    }

    fn matmul(&mut self, matmul: &Matmul) -> Result<(), EmulatedError> {
        let Matmul {
            m,
            n,
            k,
            a,
            b,
            c,
            output,
        } = *matmul;
        let a = self.matrix(a, m, k);
        let b = self.matrix(b, k, n);
        let mut sums = vec![0.0f32; m * n];
        for (sums, a) in sums.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
            for (a, b) in a.iter().zip(b.chunks_exact(n)) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
        }
        let bias = match output {
            Output::Bf16 { bias } if bias != 0 => self.bf16s(bias, n),
            Output::F32 { bias } if bias != 0 => self.floats(bias, n),
            _ => vec![0.0; n],
        };
        for row in sums.chunks_exact_mut(n) {
            for (value, bias) in row.iter_mut().zip(&bias) {
                *value += bias;
            }
        }
        if output == Output::SumF32 {
            let before = self.floats(c, m * n);
            for (value, before) in sums.iter_mut().zip(before) {
                *value += before;
            }
        }
        if let Output::Bf16 { .. } = output {
            let to = self.bytes(c, 2 * m * n).as_chunks_mut::<2>().0;
            for (to, value) in to.iter_mut().zip(sums) {
                *to = to_bf16(value);
            }
        } else {
            let to = self.bytes(c, 4 * m * n).as_chunks_mut::<4>().0;
            for (to, value) in to.iter_mut().zip(sums) {
                *to = value.to_ne_bytes();
            }
        }
        self.check_red_zones("a matmul");
        Ok(())
    }

    fn zero(&mut self, address: u64, num_bytes: u64) -> Result<(), EmulatedError> {
        self.bytes(address, num_bytes as usize).fill(0);
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), EmulatedError> {
        self.bytes(address, bytes.len()).copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), EmulatedError> {
        bytes.copy_from_slice(self.bytes(address, bytes.len()));
        Ok(())
    }
}
