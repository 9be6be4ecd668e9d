//! NVIDIA's shared libraries: which of them can be opened on this machine.
//!
//! A program that `make cuda` linked opens each library at its first use (`scripts/cuda-stubs.py`),
//! so that it starts anywhere. One that was linked with the libraries themselves would not have
//! started without them.
#[cfg(cuda_stubs)]
use std::ffi::{CStr, c_char};

/// A shared library of NVIDIA's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// The driver, libcuda.
    Driver,
    /// Matrix products.
    Cublas,
    /// Matrix products with more choice; cuBLAS needs it too.
    CublasLt,
    /// Random numbers; candle opens it with every device.
    Curand,
    /// The run-time compiler.
    Nvrtc,
    /// JPEG decoding.
    Nvjpeg,
    /// Between GPUs.
    Nccl,
}

impl Library {
    /// Its name among people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "the NVIDIA driver's library libcuda",
            Self::Cublas => "cuBLAS",
            Self::CublasLt => "cuBLASLt",
            Self::Curand => "cuRAND",
            Self::Nvrtc => "NVRTC",
            Self::Nvjpeg => "nvJPEG",
            Self::Nccl => "NCCL",
        }
    }

    /// Opens it, if that was not tried yet. `None`: it is there. Otherwise the files that were
    /// tried, each with the dynamic loader's answer.
    pub fn load_error(self) -> Option<String> {
        load_error(self)
    }
}

#[cfg(cuda_stubs)]
fn load_error(library: Library) -> Option<String> {
    // SAFETY: `scripts/cuda-stubs.py` writes these functions into the archives that every CUDA call
    // of this program goes through; they take nothing, may be called from any thread and in any
    // order.
    unsafe extern "C" {
        safe fn nepa_stub_cuda_error() -> *const c_char;
        safe fn nepa_stub_cublas_error() -> *const c_char;
        safe fn nepa_stub_cublasLt_error() -> *const c_char;
        safe fn nepa_stub_curand_error() -> *const c_char;
        safe fn nepa_stub_nvrtc_error() -> *const c_char;
        safe fn nepa_stub_nvjpeg_error() -> *const c_char;
        safe fn nepa_stub_nccl_error() -> *const c_char;
    }
    let text = match library {
        Library::Driver => nepa_stub_cuda_error(),
        Library::Cublas => nepa_stub_cublas_error(),
        Library::CublasLt => nepa_stub_cublasLt_error(),
        Library::Curand => nepa_stub_curand_error(),
        Library::Nvrtc => nepa_stub_nvrtc_error(),
        Library::Nvjpeg => nepa_stub_nvjpeg_error(),
        Library::Nccl => nepa_stub_nccl_error(),
    };
    // SAFETY: not null, the text is a static buffer that always ends in a zero byte.
    (!text.is_null()).then(|| {
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    })
}

#[cfg(not(cuda_stubs))]
fn load_error(_library: Library) -> Option<String> {
    None
}
