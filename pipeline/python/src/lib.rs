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

use pyo3::prelude::*;

/// Cores that this process may use: those of its affinity and its container's quota.
#[pyfunction]
fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The native half of `nepa`.
#[pymodule]
fn _nepa(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(available_cores, module)?)?;
    module.add_class::<array::Array>()?;
    module.add_class::<batch::Batch>()?;
    module.add_class::<columns::Columns>()?;
    module.add_class::<loader::Loader>()?;
    module.add_class::<pack::Packer>()
}
