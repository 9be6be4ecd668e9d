//! Compiles the CUDA kernels for the CPU, with the shim that runs them there; see src/kernels.rs. With the feature `cuda` also the stand-ins of NVIDIA's
//! libraries; see src/standins.rs.
use std::path::{Path, PathBuf};
use std::process::Command;

const SHIM: &str = "src/cuda_shim";
const STANDINS: &str = "standins";
const KERNELS: [&str; 2] = [
    "../pipeline/src/backend/cuda/kernels",
    "../model/src/cuda/kernels",
];

fn main() {
    // Folders: cargo then looks at every file in them.
    for input in ["build.rs", SHIM, STANDINS, KERNELS[0], KERNELS[1]] {
        println!("cargo::rerun-if-changed={input}");
    }
    kernels().compile("nepa_cuda_shim");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        standins();
    }
}

fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        // The same sums on every machine, whether or not it can fuse a multiplication and an addition.
        .flag("-ffp-contract=off")
        // `#pragma unroll` is for nvcc.
        .flag("-Wno-unknown-pragmas")
        .warnings_into_errors(true);
    build
}

fn kernels() -> cc::Build {
    let mut build = compiler();
    build
        // A vector that is not aligned, or an index past an array, ends the program.
        .flag("-fsanitize=alignment,bounds")
        .flag("-fsanitize-undefined-trap-on-error")
        .file(Path::new(SHIM).join("launch.cpp"))
        .file(Path::new(SHIM).join("engine.cpp"));
    build
}

/// Shared libraries by NVIDIA's names in `OUT_DIR/standins`. The driver's has the kernels, the others are linked with it.
fn standins() {
    let folder =
        PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("standins");
    std::fs::create_dir_all(&folder).expect("a writable folder");
    println!("cargo::rustc-env=NEPA_STANDINS={}", folder.display());
    let source = |name: &str| Path::new(STANDINS).join(name);

    let objects = kernels()
        .file(source("driver.cpp"))
        .pic(true)
        .cargo_metadata(false)
        .out_dir(folder.join("driver"))
        .compile_intermediates();
    link(&folder, "libcuda.so.1", &objects, &[]);
    let driver = folder.join("libcuda.so.1");
    let driver = driver.to_str().expect("a folder in UTF-8");

    let (includes, archive) = turbojpeg();
    for (library, name) in [
        ("libcublasLt.so.13", "cublaslt"),
        ("libcublas.so.13", "handles"),
        ("libcurand.so.10", "handles"),
        ("libnvjpeg.so.13", "nvjpeg"),
        ("libnccl.so.2", "nccl"),
    ] {
        let objects = compiler()
            .file(source(name).with_extension("cpp"))
            .includes(&includes)
            .opt_level(3)
            .flag("-fvisibility=hidden")
            .pic(true)
            .cargo_metadata(false)
            .out_dir(folder.join(library).with_extension("objects"))
            .compile_intermediates();
        let jpeg = (name == "nvjpeg").then_some(archive.as_str());
        let with = jpeg.into_iter().chain([driver]).collect::<Vec<_>>();
        link(&folder, library, &objects, &with);
    }
}

/// The JPEG library that the pipeline decodes with: its headers, and what to link.
fn turbojpeg() -> (Vec<PathBuf>, String) {
    let includes = std::env::var("DEP_TURBOJPEG_INCLUDE").unwrap_or_default();
    let includes = includes.split(',').filter(|path| !path.is_empty());
    let includes = includes.map(PathBuf::from).collect::<Vec<_>>();
    let beside = |include: &PathBuf| include.with_file_name("lib").join("libturbojpeg.a");
    let archive = includes.iter().map(beside).find(|path| path.is_file());
    let archive = archive.map_or("-lturbojpeg".to_owned(), |path| path.display().to_string());
    (includes, archive)
}

fn link(folder: &Path, library: &str, objects: &[PathBuf], with: &[&str]) {
    let path = folder.join(library);
    let status = Command::new(compiler().get_compiler().path())
        // What a library is made of stays its own: the test has a copy of libjpeg-turbo, too.
        .args([
            "-shared",
            "-Wl,--no-undefined",
            "-Wl,--exclude-libs,ALL",
            "-o",
        ])
        .arg(&path)
        .arg(format!("-Wl,-soname,{library}"))
        .args(objects)
        .args(with)
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "{} cannot be linked (above)",
        path.display()
    );
}
