//! Builds the pipeline with the model of its threads and queues.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(cuda_stubs)");
    println!("cargo::rustc-check-cfg=cfg(nepa_interleavings)");
    println!("cargo::rustc-cfg=nepa_interleavings");
    let source = "../../pipeline/src/image_decode/libjpeg/shim.c";
    println!("cargo::rerun-if-changed={source}");
    let includes = std::env::var("DEP_TURBOJPEG_INCLUDE").unwrap_or_default();
    cc::Build::new()
        .file(source)
        .includes(includes.split(',').filter(|path| !path.is_empty()))
        .std("c11")
        .opt_level(2)
        .compile("nepa_jpeg_shim_interleavings");
}
