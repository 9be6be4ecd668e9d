//! Compiles the C shim over libjpeg-turbo, for the build scripts of the pipeline and of `tests/interleavings`.

/// `source` is the shim, `library` what it becomes. The headers are those of the library that `turbojpeg-sys` builds or finds.
pub(crate) fn compile(source: &str, library: &str) {
    println!("cargo::rerun-if-changed={source}");
    let includes = std::env::var("DEP_TURBOJPEG_INCLUDE").unwrap_or_default();
    cc::Build::new()
        .file(source)
        .includes(includes.split(',').filter(|path| !path.is_empty()))
        .std("c11")
        .opt_level(2)
        .compile(library);
}
