//! The parts of the report of a GPU, as lists: which process, how long at most, in which table.
//!
//! Those of light, loader and step each add up to at most 150 s, those of torch to 240 s.
use std::ffi::OsStr;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use super::Setup;
use crate::child::command;
use crate::inputs::parquet_files;
use crate::sheet::{Measurement, Printed};

/// A heading, a text and a table with its measurements.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) text: String,
    pub(crate) columns: &'static str,
    pub(crate) measurements: Vec<Measurement>,
    /// Why there are none, where there are none.
    pub(crate) not_run: Option<String>,
}

const VERDICTS: &str = "question | verdict | answer";
const RATES: &str = "engines | images/s | images/s of one core | cores used | ms between batches, \
     p50 / p99 / max | pieces of memory taken meanwhile | limit; who decoded | utilisation";
const STEPS: &str = "model | ms a step | images/s | MFU | memory of the plan, GiB | utilisation";
const OVERLAP: &str = "what | images/s without loading | images/s with it | ratio | ms that a step \
     waits, mean / most | utilisation";

/// Who decodes; `light` also tries whole images with replicated chroma.
const ENGINES: &str = "cpu hybrid engines hybrid-interpolated hybrid-whole-interpolated \
     engines-interpolated";

/// Seconds that all processes take if each takes its limit.
pub(crate) fn limits_s(sections: &[Section]) -> u64 {
    let measurements = sections.iter().flat_map(|section| &section.measurements);
    measurements.map(|measurement| measurement.limit_s).sum()
}

/// A limit by who decodes: before their first image, the engines' decoders are warmed up with calls
/// of the largest images.
fn limit_of(set: &str, cpu: u64, hybrid: u64, engines: u64) -> u64 {
    match set {
        "cpu" => cpu,
        // Runs twice.
        "fixed" => hybrid + 2,
        _ if set.starts_with("engines") => engines,
        _ => hybrid,
    }
}

impl Section {
    fn new(
        title: &'static str,
        text: impl Into<String>,
        columns: &'static str,
        measurements: Vec<Measurement>,
    ) -> Self {
        Self {
            title,
            text: text.into(),
            columns,
            measurements,
            not_run: None,
        }
    }

    /// The device's utilisation behind each row.
    fn sampled(mut self) -> Self {
        for measurement in &mut self.measurements {
            measurement.sampled = true;
        }
        self
    }

    /// Leaves the measurements out, if there is a reason.
    fn unless(mut self, why: Option<String>) -> Self {
        if why.is_some() {
            self.measurements.clear();
        }
        self.not_run = why;
        self
    }
}

impl Setup {
    /// Our programs find NVIDIA's libraries in what is carried and in what the machine has.
    fn ours(
        &self,
        limit_s: u64,
        label: impl Into<String>,
        program: &str,
        arguments: &str,
    ) -> Measurement {
        let mut command = command(self.programs.join(program), arguments);
        command.env("LD_LIBRARY_PATH", &self.libraries);
        Measurement::new(limit_s, label, command)
    }

    /// Questions about the step, which can be small.
    fn of_step(&self, limit_s: u64, label: &str, arguments: &str) -> Measurement {
        let mut measurement = self.ours(limit_s, label, "gpu_step", arguments);
        measurement.command.args(self.or(None, Some("--tiny")));
        measurement
    }

    /// Questions about the loader, which can be small.
    fn of_loader(
        &self,
        limit_s: u64,
        label: impl Into<String>,
        arguments: &str,
        photos: &Path,
    ) -> Measurement {
        let mut measurement = self.ours(limit_s, label, "gpu", arguments);
        measurement.command.arg(photos);
        measurement.command.args(self.or(None, Some("--tiny")));
        measurement
    }

    /// PyTorch knows where its own are; stand-ins it must not find.
    fn theirs(&self, limit_s: u64, label: &str, arguments: &str) -> Measurement {
        let mut command = command(&self.python, arguments);
        let given = self.or(self.given_libraries.as_os_str(), OsStr::new(""));
        command.env("LD_LIBRARY_PATH", given);
        Measurement::new(limit_s, label, command)
    }

    /// A value for a device, or a small one for a rehearsal.
    fn or<T>(&self, device: T, rehearsal: T) -> T {
        if self.is_rehearsal { rehearsal } else { device }
    }

    /// Driver, libraries, JPEG engines; an image through each decoder; each product; one step.
    pub(crate) fn light(&self) -> Vec<Section> {
        let mut measurements = vec![self.ours(15, "facts", "gpu", "facts")];
        for set in ENGINES.split(' ').chain(["hybrid-whole"]) {
            let (limit_s, label) = (limit_of(set, 6, 8, 15), format!("single images, {set}"));
            let arguments = format!("image --engines {set}");
            measurements.push(self.of_loader(limit_s, label, &arguments, &self.photos));
        }
        let batch = self.or(16, 2);
        measurements.extend([
            self.of_step(25, "matmuls", &format!("matmuls --batch {batch}")),
            self.of_step(25, "engine", &format!("engine --batch {batch}")),
            self.of_step(10, "one step against its twin", "twin"),
        ]);
        let text = "Driver, libraries, JPEG engines; four images through each decoder; products; \
                    one step.";
        vec![Section::new("First light", text, VERDICTS, measurements)]
    }

    /// The loader: rates, then pixels, then odd files.
    pub(crate) fn loader(&self) -> anyhow::Result<Vec<Section>> {
        let (cores, seconds, side) = (self.cores, self.or(3, 1), self.or(224, 32));
        let of_set = |set| format!("--engines {set} --decode-threads {cores}");
        let rates = ENGINES.split(' ').map(|set| {
            let arguments = format!("rate --seconds {seconds} {}", of_set(set));
            self.of_loader(limit_of(set, 5, 9, 15), set, &arguments, &self.rate_photos)
        });
        let rates = rates.collect();
        // Half of them in a rehearsal: the stand-ins decode a hundred images a second.
        let half = parquet_files(&self.photos)?.swap_remove(0);
        let photos = self.or(&self.photos, &half);
        let pixels = ENGINES.split(' ').chain(["fixed"]).map(|set| {
            let (limit_s, label) = (limit_of(set, 4, 7, 12), format!("pixels, {set}"));
            self.of_loader(limit_s, label, &format!("pixels {}", of_set(set)), photos)
        });
        // Last: what they may do to a device is not known.
        let odd = ["cpu", "hybrid", "engines"].into_iter().filter_map(|set| {
            let zoo = self.zoo.as_ref()?;
            let label = format!("odd and broken JPEGs, {set}");
            let arguments = format!("zoo {}", of_set(set));
            let limit_s = limit_of(set, 6, 9, 15);
            let mut measurement = self.of_loader(limit_s, label, &arguments, photos);
            measurement.command.arg("--zoo").arg(zoo);
            Some(measurement)
        });
        let pixels = pixels.chain(odd).collect();
        let text = format!(
            "Batches into bf16 at {side} px, {cores} decode threads, {seconds} s each. Utilisation \
             in %: mean of the seconds with any work / most."
        );
        let against = "An epoch of the photos, against the CPU's loader.";
        Ok(vec![
            Section::new("Loader", text, RATES, rates).sampled(),
            Section::new("Pixels", against, VERDICTS, pixels),
        ])
    }

    /// The training step: rates, overlap with loading, launches, then gradients.
    pub(crate) fn step(&self) -> Vec<Section> {
        let rate = |limit_s, label, options| {
            let steps = self.or(10, 2);
            self.of_step(limit_s, label, &format!("rate --steps {steps} {options}"))
        };
        let rates = vec![
            rate(
                30,
                "B/14",
                self.or(
                    "--model b14 --batches 64,128,256",
                    "--model b14 --batches 2,4",
                ),
            ),
            rate(
                25,
                "L/14",
                self.or("--model l14 --batches 128,256", "--model l14 --batches 2"),
            ),
        ];
        let overlapped = self.or(20, 2);
        let profiled = self.or(256, 4);
        let tests = vec![
            self.of_step(15, "the same bits again", "repeats"),
            self.of_step(15, "gradients against the f32 engine", "gradients"),
            self.of_step(20, "training against the f32 engine", "trains"),
        ];
        vec![
            Section::new(
                "Training step",
                "Whole steps, update included, on a batch that is on the device.",
                STEPS,
                rates,
            )
            .sampled(),
            Section::new(
                "Overlap",
                format!(
                    "`nepa pretrain trainer/recipes/nepa-b14-in1k.toml --synthetic`, {overlapped} \
                     steps: the same step with a batch that is there, and with the loader."
                ),
                OVERLAP,
                vec![self.overlap(overlapped)],
            )
            .sampled(),
            Section::new(
                "Launches",
                format!(
                    "One step of {} with {profiled} images, each launch between two events, which \
                     adds some microseconds each.",
                    self.or("B/14", "a tiny model")
                ),
                "launch | calls | ms in all | TB/s | TFLOP/s",
                vec![self.of_step(15, "launches", &format!("profile --batch {profiled}"))],
            ),
            Section::new("Step, tests", "Of a small model.", VERDICTS, tests),
        ]
    }

    fn overlap(&self, steps: u64) -> Measurement {
        let sizes = self.or(
            "--set train.batch=256 --set train.micro_batch=64",
            "--set train.batch=16 --set train.micro_batch=4 --set model.hidden_size=128 \
             --set model.num_attention_heads=2 --set model.num_hidden_layers=2 \
             --set model.intermediate_size=192 --set model.image_size=32 \
             --set model.patch_size=8 --set data.augment.size=32",
        );
        let arguments = format!(
            "pretrain trainer/recipes/nepa-b14-in1k.toml --synthetic {steps} --json \
             --set device=cuda --set train.precision=\"bf16\" {sizes} --data"
        );
        let mut measurement = self.ours(30, "overlap", "nepa", &arguments);
        measurement.command.arg(&self.rate_photos);
        measurement.printed = Printed::Json(overlap_row);
        measurement
    }

    /// PyTorch: the same step, its loaders on the same files. `has` says whether packages are
    /// there.
    pub(crate) fn torch(&self, has: impl Fn(&[&str]) -> bool) -> Vec<Section> {
        let without = |packages: &[&str]| {
            let (names, python) = (packages.join(", "), self.python.display());
            (!has(packages)).then(|| format!("not run: {python} does not have all of {names}"))
        };
        let device = self.or("cuda", "cpu");
        let sizes = self.or(
            "trainer/recipes/nepa-b14-in1k.toml --batches 256 --steps 8",
            "trainer/recipes/tiny.toml --batches 8 --steps 2",
        );
        let step = format!(
            "benchmarks/versus/nepa_torch.py rate {sizes} --device {device} --bf16 \
             --attention default --attention cudnn"
        );
        let steps = vec![
            self.theirs(45, "PyTorch", &step),
            self.theirs(150, "PyTorch, compiled", &format!("{step} --compile")),
        ];
        let sizes = self.or("--seconds 5 --batch 256", "--seconds 1 --batch 8");
        let peer = |limit_s, label, name| {
            let cores = self.cores;
            let options = format!("--device {device} --workers {cores} {sizes} --peer {name}");
            let arguments = format!("benchmarks/gpu_peers.py {options}");
            let mut measurement = self.theirs(limit_s, label, &arguments);
            measurement.command.arg(&self.photos);
            measurement
        };
        let loaders = vec![
            peer(20, "torchvision's GPU decoder", "torchvision"),
            peer(25, "torch's DataLoader", "dataloader"),
        ];
        vec![
            Section::new(
                "PyTorch's step",
                "The same step: bf16 autocast, scaled_dot_product_attention, fused AdamW, average; \
                 `benchmarks/versus/nepa_torch.py rate`.",
                "model | peer | images a pass | ms a step | images/s | memory, GiB",
                steps,
            )
            .unless(without(&["torch", "safetensors"])),
            Section::new(
                "PyTorch's loaders",
                "The same files, crops of the same kind, into bf16 at 224 px.",
                "peer | images/s | images/s of one core",
                loaders,
            )
            .unless(without(&["torch", "torchvision", "pyarrow", "PIL"])),
        ]
    }
}

/// The row of what `nepa pretrain --synthetic --json` prints.
fn overlap_row(value: &Value) -> anyhow::Result<String> {
    let field = |name: &str| {
        let number = value.get(name).and_then(Value::as_f64);
        number.with_context(|| format!("its JSON has no number {name}"))
    };
    Ok(format!(
        "| bf16, batch {} | {:.0} | {:.0} | {:.3} | {:.1} / {:.1} |",
        field("batch")?,
        field("synthetic_images_per_second")?,
        field("loaded_images_per_second")?,
        field("ratio")?,
        field("wait_ms_mean")?,
        field("wait_ms_max")?
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn setup(is_rehearsal: bool) -> (tempfile::TempDir, Setup) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.parquet"), "").unwrap();
        let setup = Setup {
            programs: "programs".into(),
            photos: folder.path().to_owned(),
            rate_photos: "ten times".into(),
            zoo: Some("zoo".into()),
            cores: 16,
            python: "python3".into(),
            given_libraries: "given".into(),
            libraries: "libraries".into(),
            is_rehearsal,
        };
        (folder, setup)
    }

    #[test]
    fn limits_add_up_to_what_is_promised() {
        for is_rehearsal in [false, true] {
            let (_folder, setup) = setup(is_rehearsal);
            let parts = [setup.light(), setup.loader().unwrap(), setup.step()];
            assert_eq!(parts.map(|sections| limits_s(&sections)), [143, 150, 150]);
            assert_eq!(limits_s(&setup.torch(|_| true)), 240);
        }
    }

    #[test]
    fn a_part_without_its_packages_says_so() {
        let (_folder, setup) = setup(false);
        let sections = setup.torch(|packages| !packages.contains(&"PIL"));
        assert!(sections[0].not_run.is_none() && sections[0].measurements.len() == 2);
        let why = "not run: python3 does not have all of torch, torchvision, pyarrow, PIL";
        assert_eq!(sections[1].not_run.as_deref(), Some(why));
        assert!(sections[1].measurements.is_empty());
    }

    #[test]
    fn a_rehearsal_is_small_and_hides_the_stand_ins_from_pytorch() {
        for is_rehearsal in [false, true] {
            let (_folder, setup) = setup(is_rehearsal);
            let mut sections = setup.light();
            sections.extend(setup.loader().unwrap());
            sections.extend(setup.step());
            for measurement in sections.iter().flat_map(|section| &section.measurements) {
                let words = format!("{:?}", measurement.command);
                let is_small = words.contains("--tiny") || words.contains("train.batch=16");
                let is_facts = measurement.label == "facts";
                assert_eq!(is_small, is_rehearsal && !is_facts, "{words}");
                assert!(words.contains("LD_LIBRARY_PATH=\"libraries\""), "{words}");
            }
            for section in setup.torch(|_| true) {
                let words = format!("{:?}", section.measurements[0].command);
                assert_eq!(words.contains("LD_LIBRARY_PATH=\"given\""), !is_rehearsal);
                assert_eq!(words.contains("\"cpu\""), is_rehearsal);
            }
        }
    }

    #[test]
    fn the_row_of_the_overlap_has_each_field() {
        let mut value = serde_json::json!({
            "steps": 20, "batch": 256, "synthetic_images_per_second": 5123.4,
            "loaded_images_per_second": 5000.0, "ratio": 0.9759, "wait_ms_mean": 0.26,
            "wait_ms_max": 3.0,
        });
        let row = "| bf16, batch 256 | 5123 | 5000 | 0.976 | 0.3 / 3.0 |";
        assert_eq!(overlap_row(&value).unwrap(), row);
        value.as_object_mut().unwrap().remove("ratio");
        assert!(overlap_row(&value).is_err());
    }
}
