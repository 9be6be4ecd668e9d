//! With the feature `cuda`: compiles the kernels of the training step. Without it: nothing.
#[path = "../scripts/cuda_kernels.rs"]
mod cuda_kernels;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        cuda_kernels::compile("src/cuda/kernels");
    }
}
