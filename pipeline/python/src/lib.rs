//! The native half of the Python package `nepa`: the loader, its batches as DLPack arrays, and the
//! writer of shards. What users see is in `nepa/`, in Python; this module is private to it.
//!
//! Nothing here prints, and no thread of ours needs Python's lock: log lines wait in [`logging`]
//! until a call from Python takes them along.
mod array;
mod batch;
mod columns;
#[cfg_attr(not(feature = "cuda"), path = "no_cuda.rs")]
mod cuda;
mod device;
mod errors;
mod loader;
mod logging;
mod of_process;
mod pack;
mod pixels;
mod source;
mod waiting;

use std::sync::atomic::{AtomicI64, Ordering};

use pyo3::exceptions::PyImportError;
use pyo3::{ffi, prelude::*};

/// Cores that this process may use: those of its affinity and its container's quota.
#[pyfunction]
fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Refuses a second interpreter: lines for `logging` would come to any of them.
#[expect(unsafe_code, reason = "an interpreter's number is asked for in C")]
fn check_interpreter(_: Python<'_>) -> PyResult<()> {
    static FIRST: AtomicI64 = AtomicI64::new(-1);
    // SAFETY: this thread runs an interpreter, which the argument says.
    let this = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    match FIRST.compare_exchange(-1, this, Ordering::Relaxed, Ordering::Relaxed) {
        Err(first) if first != this => Err(PyImportError::new_err(
            "nepa is used by another interpreter of this process, and cannot be by two: start a \
             process for this one",
        )),
        _ => Ok(()),
    }
}

/// The native half of `nepa`.
#[pymodule]
fn _nepa(module: &Bound<'_, PyModule>) -> PyResult<()> {
    check_interpreter(module.py())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(available_cores, module)?)?;
    module.add_class::<array::Array>()?;
    module.add_class::<batch::Batch>()?;
    module.add_class::<columns::Columns>()?;
    module.add_class::<loader::Loader>()?;
    module.add_class::<pack::Packer>()
}
