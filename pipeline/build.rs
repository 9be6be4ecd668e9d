//! Compiles the C shim over libjpeg-turbo. With the feature `cuda`: compiles the kernels, and links the stand-ins of NVIDIA's libraries where `NEPA_CUDA_STUBS` names
//! them.
#[path = "../scripts/cuda_kernels.rs"]
mod cuda_kernels;
#[path = "../scripts/jpeg_shim.rs"]
mod jpeg_shim;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(cuda_stubs)");
    println!("cargo::rustc-check-cfg=cfg(nepa_interleavings)");
    println!("cargo::rerun-if-changed=build.rs");
    jpeg_shim::compile("src/image/libjpeg/shim.c", "nepa_jpeg_shim");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    cuda_kernels::compile("src/backend/cuda/kernels");
    println!("cargo::rerun-if-env-changed=NEPA_CUDA_STUBS");
    if let Some(folder) = std::env::var_os("NEPA_CUDA_STUBS") {
        // Written by scripts/cuda-stubs.py; they alone can say what was tried in vain.
        println!("cargo::rustc-link-search=native={}", folder.display());
        println!("cargo::rustc-cfg=cuda_stubs");
    }
}
