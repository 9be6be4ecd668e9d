//! What runs our kernels and matmuls of bf16 matrices: a GPU, or a test's emulation of one on the
//! CPU. Addresses are of the device; 0 is none.
use super::arguments::Launch;

/// A matrix of bf16 in memory.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// Of its first value.
    pub address: u64,
    /// Values from one row in memory to the next.
    pub stride: usize,
    /// Whether the operand is the transpose of what lies in memory.
    pub transposed: bool,
}

/// Where the result of a matmul goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Rounded to bf16, with a bias of bf16 for each column, or none.
    Bf16 {
        /// Its address.
        bias: u64,
    },
    /// f32, with a bias of f32 for each column, or none.
    F32 {
        /// Its address.
        bias: u64,
    },
    /// Added to the f32 values that are there.
    SumF32,
}

/// `C [m, n] = A [m, k] B [k, n]`, sums in f32.
#[derive(Debug, Clone, Copy)]
pub struct Matmul {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Left factor.
    pub a: Operand,
    /// Right factor.
    pub b: Operand,
    /// Address of the result, whose rows have no gaps.
    pub c: u64,
    /// Its type.
    pub output: Output,
}

/// Memory, kernels and matmuls. All calls are done in order.
pub trait Launcher {
    /// What can go wrong.
    type Error: From<crate::ModelError> + std::fmt::Debug;
    /// See [`crate::step::device::Device::RED_ZONE_BYTES`].
    const RED_ZONE_BYTES: u64 = 0;
    /// Memory that it takes outside of that of [`Self::allocate`].
    fn beside(_: &crate::NepaConfig, _images: usize) -> crate::MemoryPlan {
        crate::MemoryPlan::default()
    }
    /// Takes memory, once; its address, a multiple of 256. It may hold anything.
    fn allocate(&mut self, num_bytes: u64) -> Result<u64, Self::Error>;
    /// Addresses where nothing may be written, with what lies before them; told once.
    fn watch(&mut self, _: Vec<(&'static str, std::ops::Range<u64>)>) -> Result<(), Self::Error> {
        Ok(())
    }
    /// Launches a kernel.
    fn launch<A: Copy>(&mut self, launch: Launch<A>) -> Result<(), Self::Error>;
    /// Multiplies.
    fn matmul(&mut self, matmul: &Matmul) -> Result<(), Self::Error>;
    /// Writes zeros.
    fn zero(&mut self, address: u64, num_bytes: u64) -> Result<(), Self::Error>;
    /// Copies to the device; the bytes may be changed when it returns.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Copies from the device, after all that was asked before.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;
}
