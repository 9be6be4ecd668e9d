//! The `nepa` program with `device = "cuda"`: training, checkpoints that go from one device to the other, and what it says of a machine
//! that lacks something.
use std::path::{Path, PathBuf};
use std::process::Command;

use nepa_tests::program::{
    assert_says, nepa, newest_checkpoint, succeed, text, timeless_metrics, tiny_recipe,
    write_photo_shards,
};
use nepa_tests::standins::{folder, on_standins};
use tempfile::TempDir;

/// Heads of 64 values, as the kernels want them; the rest of the smallest recipe.
const MODEL: [&str; 2] = ["model.hidden_size=64", "model.num_attention_heads=1"];
const CUDA: [&str; 3] = [
    "device=\"cuda\"",
    "train.precision=\"bf16\"",
    // As large as the photos are, so that starting takes no time.
    "loader.jpeg_largest=[96,96]",
];

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_photo_shards(&folder.path().join("data"), 2, 2, 10);
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `nepa pretrain` of the tiny recipe with these settings beside the model's.
    fn pretrain(&self, out: &str, settings: &[&str]) -> Command {
        let mut command = self.without_output(settings);
        command.arg("--out").arg(self.path(out));
        command
    }

    fn without_output(&self, settings: &[&str]) -> Command {
        let mut command = nepa();
        command
            .arg("pretrain")
            .arg(tiny_recipe())
            .arg("--data")
            .arg(self.path("data"));
        let settings = MODEL.iter().chain(settings);
        command.args(settings.flat_map(|setting| ["--set", setting]));
        command
    }

    /// The same on the stand-ins.
    fn on_cuda(&self, out: &str, settings: &[&str], seed: u64) -> Command {
        let settings = CUDA.iter().chain(settings).copied().collect::<Vec<_>>();
        let mut command = self.pretrain(out, &settings);
        on_standins(&mut command, &format!("seed={seed}"));
        command
    }

    fn losses(&self, out: &str) -> Vec<f64> {
        let lines = timeless_metrics(&self.path(out).join("metrics.jsonl"));
        let loss = |line: &String| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["loss"].as_f64().unwrap()
        };
        lines.iter().map(loss).collect()
    }
}

/// Every loss within a bound of bf16 and of another JPEG decoder.
#[track_caller]
fn assert_near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        println!("step {}: {found:.4}, on the CPU {expected:.4}", step + 1);
        assert!(
            (found - expected).abs() < 0.03,
            "step {}: {found}, on the CPU {expected}",
            step + 1
        );
    }
}

#[test]
fn it_trains_as_on_the_cpu() {
    let place = Place::new();
    let trace = |out: &str| place.path(&format!("{out}.jsonl"));
    succeed(
        place
            .pretrain("cpu", &[])
            .arg("--trace-samples")
            .arg(trace("cpu")),
    );
    succeed(
        place
            .on_cuda("cuda", &[], 1)
            .arg("--trace-samples")
            .arg(trace("cuda")),
    );
    let samples = |out| std::fs::read_to_string(trace(out)).unwrap();
    assert!(samples("cpu") == samples("cuda"), "another order or crops");
    assert_near(&place.losses("cuda"), &place.losses("cpu"));
}

#[test]
fn checkpoints_go_from_device_to_device_and_back() {
    let place = Place::new();
    succeed(&mut place.pretrain("cpu", &[]));
    let part = |mut command: Command, steps: u64| {
        command.args(["--max-steps", &steps.to_string(), "--resume"]);
        succeed(&mut command);
    };
    // The precision stays, as it decides the numbers.
    let on_cpu = || place.pretrain("both", &["train.precision=\"bf16\""]);
    part(on_cpu(), 3);
    part(place.on_cuda("both", &[], 2), 8);
    part(on_cpu(), 12);
    assert_near(&place.losses("both"), &place.losses("cpu"));
}

/// Everything that a run on a GPU leaves, bit for bit, with the decoder of every image fixed.
#[test]
fn a_run_that_is_resumed_repeats_bit_for_bit() {
    let place = Place::new();
    let run = |out: &str, standins: &str, more: &[&str]| {
        let mut command = place.on_cuda(out, &["loader.jpeg=\"fixed\""], 0);
        command.env("NEPA_STANDIN", standins).args(more);
        succeed(&mut command);
    };
    // Products by the heuristic's first algorithms.
    run("whole", "seed=3,equal_times=1", &[]);
    run("parts", "seed=4,equal_times=1", &["--max-steps", "5"]);
    // This process would choose others, where it did not take those of the run.
    run("parts", "seed=5,random_times=1", &["--resume"]);
    assert_eq!(place.losses("whole"), place.losses("parts"));
    let file = |out: &str, name: &str| {
        let path = newest_checkpoint(&place.path(out)).join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    for name in [
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
    ] {
        assert!(file("whole", name) == file("parts", name), "{name} differs");
    }
}

#[test]
fn loading_overlaps_with_training() {
    let place = Place::new();
    let mut command = place.without_output(&CUDA);
    on_standins(&mut command, "seed=6");
    let said = text(&succeed(command.args(["--synthetic", "2"])));
    assert_says(&said, &["images/s", "ratio:"]);
}

/// What a run on this machine says and how it ends.
fn refused(place: &Place, change: impl FnOnce(&mut Command)) -> String {
    let mut command = place.on_cuda("refused", &[], 7);
    change(&mut command);
    let output = command.output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!place.path("refused/recipe.toml").exists(), "{said}");
    said
}

/// The stand-ins without some of them.
pub(crate) fn without(libraries: &[&str]) -> TempDir {
    let some = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder()).unwrap().flatten() {
        let name = entry.file_name();
        let is_wanted = name.to_str().is_some_and(|name| !libraries.contains(&name));
        if entry.path().is_file() && is_wanted {
            std::fs::copy(entry.path(), some.path().join(name)).unwrap();
        }
    }
    some
}

#[test]
fn a_machine_that_lacks_something_is_told_what() {
    let place = Place::new();
    let setting = |settings: &'static str| {
        move |command: &mut Command| {
            command.env("NEPA_STANDIN", settings);
        }
    };
    assert_says(
        &refused(&place, setting("driver=12080")),
        &["CUDA 12.8", "update the driver"],
    );
    assert_says(
        &refused(&place, setting("devices=0")),
        &["finds no usable GPU", "nvidia-smi"],
    );
    assert_says(
        &refused(&place, setting("capability=100")),
        &["compute capability 10.0", "CUDA_COMPUTE_CAP=100 make cuda"],
    );
    assert_says(
        &refused(&place, setting("fault=cuInit:100:all")),
        &["cuInit", "nvidia-smi"],
    );
    assert_says(
        &refused(&place, setting("memory=600")),
        &["600 MiB are available", "workspace of matmuls"],
    );
    for (libraries, parts) in [
        (
            &["libcuda.so.1"][..],
            &["NVIDIA driver", "libcuda.so.1"][..],
        ),
        (&["libcublasLt.so.13"], &["cuBLASLt", "libcublasLt.so.13"]),
        (&["libcublas.so.13"], &["cuBLAS", "cuda-toolkit.sh"]),
        (&["libcurand.so.10"], &["cuRAND", "libcurand.so.10"]),
    ] {
        let some = without(libraries);
        let said = refused(&place, |command| {
            command.env("LD_LIBRARY_PATH", some.path());
            // Where the toolkit's libraries may lie.
            command
                .env_remove("CUDA_HOME")
                .env("XDG_CACHE_HOME", some.path());
        });
        assert_says(&said, parts);
    }
}

/// Without nvJPEG the CPU decodes; that is said, with what was tried.
#[test]
fn without_nvjpeg_the_cpu_decodes() {
    let place = Place::new();
    let some = without(&["libnvjpeg.so.13"]);
    let mut command = place.on_cuda("out", &["train.steps=2", "train.warmup_steps=1"], 8);
    command
        .env("LD_LIBRARY_PATH", some.path())
        .env_remove("CUDA_HOME")
        .env("XDG_CACHE_HOME", some.path());
    let said = text(&succeed(&mut command));
    assert_says(&said, &["libnvjpeg.so.13"]);
}

/// A device that fails under way ends the run with what was trained saved, or says what was lost.
#[test]
fn a_device_that_fails_ends_the_run() {
    let place = Place::new();
    let mut command = place.on_cuda("lost", &["checkpoint.every_steps=2"], 9);
    command.env("NEPA_STANDIN", "seed=9,fault=cublasLtMatmul:14:400-");
    let output = command.output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_says(&said, &["the training step failed on the device"]);
    assert!(!said.contains("panicked"), "{said}");
    let checkpoint = newest_checkpoint(&place.path("lost"));
    assert!(Path::new(&checkpoint).exists());
}
