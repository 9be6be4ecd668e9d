//! Compiles the CUDA kernels for the CPU, with the shim that runs them there; see src/kernels.rs.
use std::path::Path;

const SHIM: &str = "src/cuda_shim";
const KERNELS: [&str; 2] = ["../pipeline/src/cuda/kernels", "../model/src/cuda/kernels"];

fn main() {
    // Folders: cargo then looks at every file in them.
    for input in ["build.rs", SHIM, KERNELS[0], KERNELS[1]] {
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
        // A vector that is not aligned, or an index past an array, ends the program.
        .flag("-fsanitize=alignment,bounds")
        .flag("-fsanitize-undefined-trap-on-error")
        .warnings_into_errors(true)
        .file(Path::new(SHIM).join("launch.cpp"))
        .file(Path::new(SHIM).join("engine.cpp"))
        .compile("nepa_cuda_shim");
}
