//! For build scripts: compiles a package's CUDA kernels to PTX, the text that the driver turns into
//! code for its GPU, and to that code for GPUs that are known, which spares each start that work.
//!
//! `src/cuda/kernels/NAME.cu` becomes `OUT_DIR/NAME.ptx`, which the package embeds with
//! `include_str!(concat!(env!("OUT_DIR"), "/NAME.ptx"))`, and `OUT_DIR/NAME.sm_80.cubin` and
//! `OUT_DIR/NAME.sm_90.cubin`, for `include_bytes!`.
use std::path::{Path, PathBuf};
use std::process::Command;

/// Of A100, and of H100 and H200. A cubin also runs on a GPU of the same major number and a higher
/// minor one.
const CUBINS: [&str; 2] = ["sm_80", "sm_90"];

/// Compiles every `.cu` file of `folder` to PTX for the compute capability in `CUDA_COMPUTE_CAP`
/// (default 90: H100, H200), and to each of [`CUBINS`].
pub(crate) fn compile(folder: &str) {
    for variable in ["NEPA_NVCC", "NVCC", "CUDA_HOME", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed={folder}");
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "90".to_owned());
    // candle's build accepts 90, 90a and 9.0; only its own kernels need what the letter stands for.
    let number: String = capability.chars().filter(char::is_ascii_digit).collect();
    println!("cargo::rustc-env=NEPA_CUDA_COMPUTE_CAP={number}");

    let nvcc = nvcc();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut sources = std::fs::read_dir(folder)
        .expect("the folder of the kernels")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect::<Vec<_>>();
    sources.sort();
    for source in sources {
        let name = source.file_stem().expect("a .cu file has a name");
        let to = |extension: &str| out.join(name).with_extension(extension);
        run(
            &nvcc,
            &format!("compute_{number}"),
            "-ptx",
            &source,
            &to("ptx"),
        );
        for arch in CUBINS {
            run(
                &nvcc,
                arch,
                "-cubin",
                &source,
                &to(&format!("{arch}.cubin")),
            );
        }
    }
}

/// One file for one architecture.
fn run(nvcc: &Path, arch: &str, kind: &str, source: &Path, to: &Path) {
    let mut command = Command::new(nvcc);
    command.arg(format!("-arch={arch}"));
    command
        .args(["-std=c++17", "-O3", kind, "-o"])
        .arg(to)
        .arg(source);
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => fail(&format!(
            "nvcc could not compile {} ({command:?}):\n{}{}",
            source.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
        Err(error) => fail(&format!(
            "{} cannot be run: {error}. {WHAT_TO_DO}",
            nvcc.display()
        )),
    }
}

const WHAT_TO_DO: &str = "Run `make cuda`, which fetches the CUDA toolkit where there is none and builds target/cuda/nepa. \
     For a build by hand: `scripts/cuda-toolkit.sh`, then `source` the file that it names. The default build needs no CUDA";

/// `NEPA_NVCC` (for our kernels alone, where candle's are not compiled), else `NVCC`, else `CUDA_HOME/bin/nvcc`, else `nvcc` on the path.
fn nvcc() -> PathBuf {
    let in_home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let on_path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join("nvcc"))
        .find(|path| path.is_file());
    let named = |variable| std::env::var_os(variable).map(PathBuf::from);
    [named("NEPA_NVCC"), named("NVCC"), in_home, on_path]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            fail(&format!(
                "the feature `cuda` is on, and nvcc, the CUDA compiler, was not found: not in NVCC ({}), not in CUDA_HOME ({}), not on PATH. {WHAT_TO_DO}",
                shown("NVCC"),
                shown("CUDA_HOME"),
            ))
        })
}

/// The value of an environment variable, for a message.
fn shown(variable: &str) -> String {
    std::env::var_os(variable).map_or("not set".to_owned(), |value| value.display().to_string())
}

/// Ends the build script; cargo shows what it wrote to standard error.
fn fail(message: &str) -> ! {
    eprintln!("\nerror: {message}\n");
    std::process::exit(1)
}
