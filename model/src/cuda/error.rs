//! What can go wrong on a GPU.
use cudarc::driver::DriverError;

use crate::ModelError;

/// The device refused something.
#[derive(Debug, thiserror::Error)]
pub enum CudaStepError {
    /// The driver.
    #[error("{doing} failed: {detail}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        detail: String,
    },
    /// cuBLASLt.
    #[error("a matmul of {m} x {k} by {k} x {n} failed: {detail}")]
    Matmul {
        /// Rows of the result.
        m: usize,
        /// Columns of the result.
        n: usize,
        /// Length of its sums.
        k: usize,
        /// What it said.
        detail: String,
    },
    /// A kernel that the step asks for and no module has; our bug.
    #[error("the program has no kernel {kernel:?}")]
    NoKernel {
        /// Its name.
        kernel: &'static str,
    },
    /// Attention over so many tokens does not fit into a block's shared memory.
    #[error(
        "attention over {tokens} tokens needs {needed} bytes of shared memory a block, and this GPU has {available}: \
         choose larger patches or smaller images, or a GPU of the data centre (A100, H100, H200)"
    )]
    SharedMemory {
        /// Tokens of an image.
        tokens: usize,
        /// What the backward pass needs.
        needed: u32,
        /// What a block can have.
        available: u32,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

pub(super) fn failed(doing: &'static str) -> impl FnOnce(DriverError) -> CudaStepError {
    move |error| CudaStepError::Driver {
        doing,
        detail: error.to_string(),
    }
}
