//! The Python package on the stand-ins: batches as tensors on the device, by DLPack, as a library takes them that has streams of its own.
//! `python.py` is what runs there, with the standard library alone.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nepa_tests::program::{assert_says, text, write_photo_shards};
use nepa_tests::standins::on_standins;
use tempfile::TempDir;

/// A data set, and the folder with the package: `NEPA_PYTHON_SITE`, say the `site-packages` of an
/// environment where a wheel with CUDA is installed, or a copy with the library that cargo built
/// beside this test.
struct Place {
    folder: TempDir,
    site: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_photo_shards(&folder.path().join("data"), 1, 3, 10);
        let site = match std::env::var_os("NEPA_PYTHON_SITE") {
            Some(site) => PathBuf::from(site),
            None => staged(folder.path().join("site")),
        };
        Self { folder, site }
    }

    /// A part of `python.py` on the stand-ins with these settings.
    fn run(&self, part: &str, settings: &str) -> Output {
        let mut python = Command::new("python3");
        // Nothing of this machine's Python, as torch or nvJPEG.
        python
            .args(["-S", "-W", "error"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/python.py"))
            .arg(part)
            .arg(self.folder.path().join("data"))
            .env("PYTHONPATH", &self.site)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        // Without engines: memory for two calls of theirs is 2 GB.
        let settings = format!("nvjpeg.engines=0,{settings}");
        let output = on_standins(&mut python, &settings).output();
        output.expect("python3 is on PATH")
    }

    #[track_caller]
    fn succeeds(&self, part: &str, settings: &str) {
        let output = self.run(part, settings);
        assert!(output.status.success(), "{settings}:\n{}", text(&output));
    }
}

/// The package in `folder`, with the library of this build.
fn staged(folder: PathBuf) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let target = test.ancestors().nth(3).expect("target/debug/deps/TEST");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/python-stage.sh");
    let mut stage = Command::new(script);
    stage.arg(&folder).args(["nepa", "library"]);
    let output = stage.env("CARGO_TARGET_DIR", target).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    folder
}

#[test]
fn tensors_are_in_order_on_the_streams_of_others() {
    let place = Place::new();
    for seed in 1..4 {
        place.succeeds("ordered", &format!("seed={seed},schedule=late"));
    }
    place.succeeds("ordered", "seed=4");
}

/// The test above can fail: what asks for no order and waits for nothing reads pixels that are not there yet.
#[test]
fn tensors_without_an_order_are_read_too_early() {
    let place = Place::new();
    let is_wrong = |seed| {
        let output = place.run("unordered", &format!("seed={seed},schedule=late"));
        !output.status.success() && text(&output).contains("not the pixels of the CPU")
    };
    assert!((1..6).any(is_wrong));
}

#[test]
fn layouts_threads_and_refusals_are_as_on_the_cpu() {
    let place = Place::new();
    place.succeeds("forms", "seed=5");
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let place = Place::new();
    for (settings, parts) in [
        (
            "seed=6,devices=0",
            &["DeviceError", "finds no usable GPU"][..],
        ),
        ("seed=6,driver=12080", &["DeviceError", "update the driver"]),
        (
            "seed=6,capability=75",
            &["DeviceError", "compute capability 7.5"],
        ),
    ] {
        let output = place.run("ordered", settings);
        assert!(!output.status.success());
        assert_says(&text(&output), parts);
    }
    // A100, for which candle's kernels were not compiled.
    place.succeeds("ordered", "seed=7,capability=80");
}
