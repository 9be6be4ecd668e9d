//! Compiles the CUDA kernels for the CPU, with the shim that runs them there; see src/kernels.rs.
use std::path::Path;

const SHIM: &str = "src/cuda_shim";
const KERNELS: &str = "../pipeline/src/cuda/kernels";

fn main() {
    // Folders: cargo then looks at every file in them.
    for input in ["build.rs", SHIM, KERNELS] {
        println!("cargo::rerun-if-changed={input}");
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        // The same sums on every machine, whether or not it can fuse a multiplication and an addition.
        .flag("-ffp-contract=off")
        // `#pragma unroll` is for nvcc.
        .flag("-Wno-unknown-pragmas")
        .warnings_into_errors(true)
        .file(Path::new(SHIM).join("launch.cpp"))
        .compile("nepa_cuda_shim");
}
