//! Builds the pipeline with the model of its threads and queues.
#[path = "../../scripts/jpeg_shim.rs"]
mod jpeg_shim;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(cuda_stubs)");
    println!("cargo::rustc-check-cfg=cfg(nepa_interleavings)");
    println!("cargo::rustc-cfg=nepa_interleavings");
    jpeg_shim::compile(
        "../../pipeline/src/image/libjpeg/shim.c",
        "nepa_jpeg_shim_interleavings",
    );
}
