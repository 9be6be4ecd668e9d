//! One way to read a data set, and its trace: a line for each batch.
//!
//! All that the trace takes from the pipeline is taken here; fields are written one by one.
use std::fmt::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use half::bf16;
use nepa_pipeline::{
    CpuBackend, CropPlan, Dataset, DatasetConfig, EdgeSupport, Filter, HostBatch, IoConfig,
    IoRuntime, Loader, LoaderConfig, LoaderState, Pixel, SampleId, SampleRecord,
};
use nepa_schemas::Label;
use serde_json::json;
use tempfile::TempDir;

/// One way to read a data set.
pub(super) struct Case {
    pub(super) name: String,
    data: Data,
    io: IoConfig,
    config: LoaderConfig,
    pixels: Pixels,
    patch_size: Option<u32>,
    /// Batches after which the loader is dropped; without it, it runs to its end.
    most: Option<usize>,
    /// Batches after which a new loader goes on from the saved state.
    resume_after: Option<usize>,
    /// Whether bad samples are listed in a file.
    list: bool,
}

/// Where the shards are.
#[derive(Clone)]
pub(super) struct Data {
    /// Paths or globs and weights; more than one make a mixture.
    pub(super) sources: Vec<(String, f64)>,
    /// What is cut off the names of objects in the list of bad samples.
    pub(super) root: String,
}

#[derive(Clone, Copy)]
pub(super) enum Pixels {
    F32,
    Bf16,
    U8,
}

impl Case {
    pub(super) fn new(name: &str, data: &Data, change: impl FnOnce(&mut LoaderConfig)) -> Self {
        let mut config = LoaderConfig {
            seed: 7,
            global_batch: 8,
            epochs: Some(2),
            augment: super::random_crops(16, Filter::Bilinear),
            decode_threads: 2,
            shuffle_window_bytes: 150_000,
            max_bad_fraction: 1.0,
            ..LoaderConfig::default()
        };
        change(&mut config);
        Self {
            name: name.to_owned(),
            data: data.clone(),
            io: IoConfig::default(),
            config,
            pixels: Pixels::F32,
            patch_size: None,
            most: None,
            resume_after: None,
            list: false,
        }
    }

    /// Other pixels than f32, perhaps in patches.
    pub(super) fn of(self, pixels: Pixels, patch_size: Option<u32>) -> Self {
        Self {
            pixels,
            patch_size,
            ..self
        }
    }

    pub(super) fn io(self, io: IoConfig) -> Self {
        Self { io, ..self }
    }

    pub(super) fn most(self, batches: usize) -> Self {
        Self {
            most: Some(batches),
            ..self
        }
    }

    pub(super) fn resume_after(self, batches: usize) -> Self {
        Self {
            resume_after: Some(batches),
            ..self
        }
    }

    pub(super) fn listing_bad_samples(self) -> Self {
        Self { list: true, ..self }
    }

    /// Its lines: one for the data set, one for each batch, the rest about the whole.
    pub(super) fn trace(&self) -> Result<Vec<String>> {
        let lines = match self.pixels {
            Pixels::F32 => self.trace_as::<f32>(),
            Pixels::Bf16 => self.trace_as::<bf16>(),
            Pixels::U8 => self.trace_as::<u8>(),
        };
        lines.with_context(|| format!("case `{}`", self.name))
    }

    fn trace_as<P: Pixel + Bytes>(&self) -> Result<Vec<String>> {
        let runtime = IoRuntime::new(2).context("no I/O runtime")?;
        let dataset = Dataset::open(&self.data.config()?, &self.io, &runtime)
            .context("the data set does not open")?;
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let list = folder.path().join("bad_samples.jsonl");
        let config = LoaderConfig {
            bad_samples_path: self.list.then(|| list.clone()),
            ..self.config.clone()
        };
        let backend = Arc::new(CpuBackend::<P>::new(
            config.normalize,
            config.exif_orientation,
            self.patch_size,
        ));
        let start = |state: Option<&LoaderState>| {
            let (dataset, backend) = (Arc::clone(&dataset), Arc::clone(&backend));
            Loader::with_backend(dataset, config.clone(), state, backend)
                .context("the loader does not start")
        };

        let opened = dataset.io_counters();
        let mut lines = vec![format!(
            "data {} samples {}",
            dataset.fingerprint(),
            dataset.num_samples()
        )];
        let mut loader = start(None)?;
        let mut batches = 0;
        while self.most.is_none_or(|most| batches < most) {
            if self.resume_after == Some(batches) {
                let saved = serde_json::to_string(&loader.state())?;
                // Ended first: both write to the same list.
                drop(loader);
                loader = start(Some(&serde_json::from_str(&saved)?))?;
            }
            let batch = loader
                .next_batch()
                .with_context(|| format!("batch {batches}"))?;
            let Some(batch) = batch else { break };
            lines.push(format!(
                "{} {:08x} {:08x} {:08x}",
                batch.epoch(),
                crc32fast::hash(text_of(batch.samples()).as_bytes()),
                checksum(&batch),
                crc32fast::hash(position(&loader.state())?.as_bytes()),
            ));
            batches += 1;
        }
        // A loader that is dropped early may have asked for more or less; so may a mixture, which
        // reads ahead of its end.
        let is_mixed = self.data.sources.len() > 1;
        if self.most.is_none() && self.resume_after.is_none() && !is_mixed {
            let ended = dataset.io_counters();
            lines.push(format!(
                "requests {} bytes {}",
                ended.requests - opened.requests,
                ended.bytes - opened.bytes
            ));
        }
        drop(loader);
        if self.list {
            let text = std::fs::read_to_string(&list).context("no list of bad samples")?;
            let text = text.replace(&self.data.root, "");
            lines.push(format!(
                "bad {} list {:08x}",
                text.lines().count(),
                crc32fast::hash(text.as_bytes())
            ));
        }
        Ok(lines)
    }
}

impl Data {
    pub(super) fn folder(folder: &TempDir) -> Result<Self> {
        let path = folder.path().to_str();
        let path = path.context("a temporary folder that is no text")?;
        Ok(Self {
            sources: vec![(path.to_owned(), 1.0)],
            root: path.to_owned(),
        })
    }

    fn config(&self) -> Result<DatasetConfig> {
        let config = match &self.sources[..] {
            [(url, _)] => json!({ "urls": [url] }),
            sources => {
                let of = |(url, weight): &(String, f64)| json!({ "urls": [url], "weight": weight });
                json!({ "mixture": sources.iter().map(of).collect::<Vec<_>>() })
            }
        };
        serde_json::from_value(config).context("the data set's configuration")
    }
}

/// A saved position, as it was written before there were lanes: here there is one.
fn position(state: &LoaderState) -> Result<String> {
    let text = serde_json::to_string(state)?;
    let text = text.replacen("\"version\":4", "\"version\":3", 1);
    Ok(text.replacen("\"lanes\":1,", "", 1))
}

/// A batch's samples, field by field: the same text whatever their types and fields are called.
fn text_of(samples: &[SampleRecord]) -> String {
    let mut text = String::new();
    for sample in samples {
        let label = match &sample.label {
            None => "none".to_owned(),
            Some(Label::Index(index)) => format!("index {index}"),
            Some(Label::Name(name)) => format!("name {name}"),
        };
        let place = |id: &SampleId| format!("{}/{}/{}", id.shard, id.row_group, id.row);
        let replaces = sample.replaces.as_ref().map_or("none".to_owned(), place);
        let id = place(&sample.id);
        let _ = writeln!(text, "{id} label {label} replaces {replaces}");
        for plan in &sample.views {
            let _ = writeln!(text, "{}", text_of_plan(plan));
        }
    }
    text
}

fn text_of_plan(plan: &CropPlan) -> String {
    let rect = plan.rect;
    let [x, y, width, height] = [rect.x, rect.y, rect.width, rect.height].map(f64::to_bits);
    let filter = match plan.filter {
        Filter::Bilinear => "bilinear",
        Filter::Bicubic => "bicubic",
    };
    let edge = match plan.edge {
        EdgeSupport::Rect => "rect",
        EdgeSupport::Image => "image",
    };
    let (flip, side) = (plan.flip, plan.output_size);
    format!("{x:016x} {y:016x} {width:016x} {height:016x} flip {flip} {side} {filter} {edge}")
}

/// The bytes of a pixel, in the same order everywhere.
trait Bytes: Copy {
    fn put(self, bytes: &mut Vec<u8>);
}

impl Bytes for f32 {
    fn put(self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_le_bytes());
    }
}

impl Bytes for bf16 {
    fn put(self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_le_bytes());
    }
}

impl Bytes for u8 {
    fn put(self, bytes: &mut Vec<u8>) {
        bytes.push(self);
    }
}

/// Of all views of all samples, in order.
fn checksum<P: Pixel + Bytes>(batch: &HostBatch<P>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut bytes = Vec::new();
    for i in 0..batch.len() {
        for view in 0..batch.view_sides().len() {
            bytes.clear();
            batch.view(i, view).iter().for_each(|p| p.put(&mut bytes));
            hasher.update(&bytes);
        }
    }
    hasher.finalize()
}
