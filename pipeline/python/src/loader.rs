//! The loader: a data set that is open, and the threads that read it while batches are asked for.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlpark::ffi::DLDataType;
use nepa_pipeline::{
    CpuBackend, Dataset, DatasetConfig, IoConfig, IoRuntime, LoaderConfig, LoaderError,
    LoaderState, Pixel, PixelType,
};
use pyo3::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::batch::Batch;
use crate::device::Device;
use crate::errors::{self, Kind, error};
use crate::of_process::OfProcess;
use crate::source::{Source, source};
use crate::waiting;

/// Threads of a data set's I/O.
const IO_THREADS: usize = 2;

/// How pixels lie in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `[B, 3, S, S]`.
    Nchw,
    /// `[B, S, S, 3]`.
    Nhwc,
    /// `[B, P, 3 * p * p]`: the P = (S / p)^2 patches row by row, each `[3, p, p]`.
    Patches(u32),
}

/// Type and layout of the pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    kind: PixelKind,
    layout: Layout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PixelKind {
    F32,
    Bf16,
    U8,
}

impl Form {
    fn read(py: Python<'_>, dtype: &str, layout: &str, patch: Option<u32>) -> PyResult<Self> {
        let refused = |text: String| error(py, Kind::Setting, text, None);
        let kind = match dtype {
            "float32" => PixelKind::F32,
            "bfloat16" => PixelKind::Bf16,
            "uint8" => PixelKind::U8,
            other => {
                let text = format!("dtype = {other:?}: it is float32, bfloat16 or uint8");
                return Err(refused(text));
            }
        };
        let layout = match (layout, patch) {
            ("NCHW", None) => Layout::Nchw,
            ("NHWC", None) => Layout::Nhwc,
            ("patches", Some(side)) => Layout::Patches(side),
            ("NCHW" | "NHWC", Some(_)) => {
                let text = "patch_size is of layout=\"patches\" alone: set that, or leave it out";
                return Err(refused(text.to_owned()));
            }
            ("patches", None) => {
                let text = "layout = \"patches\" needs patch_size: the side of a patch in pixels";
                return Err(refused(text.to_owned()));
            }
            (other, _) => {
                let text = format!("layout = {other:?}: it is NCHW, NHWC or patches");
                return Err(refused(text));
            }
        };
        Ok(Self { kind, layout })
    }

    /// The values; `None` for bytes.
    fn pixel_type(self) -> Option<PixelType> {
        match self.kind {
            PixelKind::F32 => Some(PixelType::F32),
            PixelKind::Bf16 => Some(PixelType::Bf16),
            PixelKind::U8 => None,
        }
    }

    pub(crate) fn data_type(self) -> DLDataType {
        match self.kind {
            PixelKind::F32 => DLDataType::F32,
            PixelKind::Bf16 => DLDataType::BF16,
            PixelKind::U8 => DLDataType::U8,
        }
    }

    /// Shape of a view of so many samples.
    pub(crate) fn shape(self, samples: usize, side: usize) -> Vec<usize> {
        match self.layout {
            Layout::Nchw => vec![samples, 3, side, side],
            Layout::Nhwc => vec![samples, side, side, 3],
            Layout::Patches(patch) => {
                let patch = patch as usize;
                vec![samples, (side / patch).pow(2), 3 * patch * patch]
            }
        }
    }

    fn patch_size(self) -> Option<u32> {
        match self.layout {
            Layout::Nchw => None,
            // The patches of one pixel, [3, 1, 1] each, row by row.
            Layout::Nhwc => Some(1),
            Layout::Patches(side) => Some(side),
        }
    }
}

/// What is started when a batch is asked for.
struct Opened {
    dataset: Arc<Dataset>,
    config: LoaderConfig,
    form: Form,
    device: Device,
    batches_per_epoch: u64,
    at: Mutex<At>,
}

/// Where it stands.
struct At {
    /// Where the next source starts, while none runs.
    state: LoaderState,
    source: Option<Box<dyn Source>>,
}

impl At {
    fn state(&self) -> LoaderState {
        let running = self.source.as_ref().map(|source| source.state());
        running.unwrap_or_else(|| self.state.clone())
    }

    /// Ends what runs. The threads are joined by whoever drops it.
    fn stop(&mut self) -> Option<Box<dyn Source>> {
        self.state = self.state();
        self.source.take()
    }
}

impl Opened {
    fn at(&self) -> MutexGuard<'_, At> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, state: &LoaderState) -> Result<Box<dyn Source>, LoaderError> {
        if let (Device::Cuda(cuda), Some(pixel_type)) = (&self.device, self.form.pixel_type()) {
            let (dataset, config) = (Arc::clone(&self.dataset), self.config.clone());
            return cuda.start(dataset, config, state, pixel_type, self.form.patch_size());
        }
        match self.form.kind {
            PixelKind::F32 => self.start_as::<f32>(state),
            PixelKind::Bf16 => self.start_as::<half::bf16>(state),
            PixelKind::U8 => self.start_as::<u8>(state),
        }
    }

    fn start_as<P: Pixel>(&self, state: &LoaderState) -> Result<Box<dyn Source>, LoaderError> {
        let config = self.config.clone();
        let (normalize, exif) = (config.normalize, config.exif_orientation);
        let backend = CpuBackend::<P>::new(normalize, exif, self.form.patch_size());
        let dataset = Arc::clone(&self.dataset);
        let loader =
            nepa_pipeline::Loader::with_backend(dataset, config, Some(state), Arc::new(backend))?;
        Ok(source(loader))
    }
}

/// Batches of a data set.
#[pyclass(frozen, module = "nepa._nepa")]
pub(crate) struct Loader(OfProcess<Opened>);

/// Settings from their JSON.
fn settings<T: DeserializeOwned>(py: Python<'_>, what: &str, json: &str) -> PyResult<T> {
    serde_json::from_str(json).map_err(|cause| {
        let text = format!("the settings of the {what} cannot work: {cause}");
        error(py, Kind::Setting, text, None)
    })
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and names have a JSON form")
}

#[pymethods]
impl Loader {
    /// Opens the data set; starts no decoding.
    #[new]
    #[pyo3(signature = (dataset, io, loader, *, columns, dtype, layout, patch_size, device))]
    #[expect(
        clippy::too_many_arguments,
        reason = "given by name, by nepa/_loader.py"
    )]
    fn new(
        py: Python<'_>,
        dataset: &str,
        io: &str,
        loader: &str,
        columns: Vec<String>,
        dtype: &str,
        layout: &str,
        patch_size: Option<u32>,
        device: &str,
    ) -> PyResult<Self> {
        let mut source: DatasetConfig = settings(py, "data set", dataset)?;
        for mixed in &mut source.mixture {
            mixed.schema.extra_columns.clone_from(&columns);
        }
        source.schema.extra_columns = columns;
        let io: IoConfig = settings(py, "store", io)?;
        let config: LoaderConfig = settings(py, "loader", loader)?;
        let form = Form::read(py, dtype, layout, patch_size)?;
        let augment = config.augment.build();
        let augment = augment.map_err(|cause| errors::of_loader(py, &cause.into()))?;
        let device = Device::open(py, device)?;
        device.check(py, &augment.view_sides(), form.pixel_type())?;
        let dataset = waiting::interruptible(py, move || {
            let runtime = IoRuntime::new(IO_THREADS).map_err(LoaderError::Thread)?;
            Ok(Dataset::open(&source, &io, &runtime)?)
        })?;
        let dataset: Arc<Dataset> = dataset.map_err(|cause| errors::of_loader(py, &cause))?;
        for warning in dataset.warnings() {
            tracing::warn!("{warning}");
        }
        crate::logging::hand_over(py)?;
        let batches_per_epoch = config
            .batches_per_epoch(&dataset)
            .map_err(|cause| errors::of_loader(py, &cause))?;
        let state = LoaderState::beginning(&dataset, &config);
        Ok(Self(OfProcess::new(Opened {
            dataset,
            config,
            form,
            device,
            batches_per_epoch,
            at: Mutex::new(At {
                state,
                source: None,
            }),
        })))
    }

    /// The next batch; None after the last epoch. After an error it goes on where it stood.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Batch>> {
        let opened = self.0.get(py)?;
        crate::logging::listen(py)?;
        let next = waiting::until(py, |slice| {
            let mut at = opened.at();
            let At { state, source } = &mut *at;
            let source = match source {
                Some(source) => source,
                none => match opened.start(state) {
                    Ok(started) => none.insert(started),
                    Err(error) => return Some(Err(error)),
                },
            };
            if !source.wait(slice) {
                return None;
            }
            let next = source.next();
            // Its threads have ended; the next call starts new ones.
            if let Err(error) = &next
                && !matches!(error, LoaderError::TooManyKept { .. })
            {
                drop(at.stop());
            }
            Some(next)
        })?;
        match next {
            Ok(batch) => Ok(batch.map(|held| Batch::new(held, opened.form))),
            Err(cause) => Err(errors::of_loader(py, &cause)),
        }
    }

    /// The next batch is this one; what runs goes on where it stands there already.
    fn seek(&self, py: Python<'_>, epoch: u64, batch: u64) -> PyResult<()> {
        let opened = self.0.get(py)?;
        py.detach(|| {
            let mut at = opened.at();
            let state = at.state();
            if (state.epoch, state.batch_in_epoch) != (epoch, batch) {
                drop(at.stop());
                at.state.epoch = epoch;
                at.state.batch_in_epoch = batch;
            }
        });
        Ok(())
    }

    /// Goes on where this state stands.
    fn load_state(&self, py: Python<'_>, json: &str) -> PyResult<()> {
        let opened = self.0.get(py)?;
        let state: LoaderState = serde_json::from_str(json).map_err(|cause| {
            let text = format!("this is no state of a loader: {cause}");
            error(py, Kind::State, text, None)
        })?;
        state
            .check(&opened.dataset, &opened.config)
            .map_err(|cause| errors::of_loader(py, &cause))?;
        py.detach(|| {
            let mut at = opened.at();
            drop(at.stop());
            at.state = state;
        });
        Ok(())
    }

    /// The position after the last batch.
    fn state(&self, py: Python<'_>) -> PyResult<String> {
        let opened = self.0.get(py)?;
        Ok(py.detach(|| json(&opened.at().state())))
    }

    /// Epoch and batch that come next.
    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        let opened = self.0.get(py)?;
        let state = py.detach(|| opened.at().state());
        Ok((state.epoch, state.batch_in_epoch))
    }

    /// What was done since it was started, or moved; None while nothing runs.
    fn stats(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let opened = self.0.get(py)?;
        let read = py.detach(|| opened.at().source.as_ref().map(|source| source.stats()));
        Ok(read.map(|(stats, io)| {
            let (limiting, share) = stats.limiting_stage();
            json(&serde_json::json!({
                "wall_s": stats.wall_s,
                "limiting_stage": limiting,
                "limiting_share": share,
                "stages": stats.stages,
                "decoders": stats.decoders,
                "io": {
                    "requests": io.requests,
                    "bytes": io.bytes,
                    "retries": io.retries,
                    "hedges": io.hedges,
                    "throttled": io.throttled,
                    "cache_hits": io.cache_hits,
                    "cache_hit_bytes": io.cache_hit_bytes,
                    "in_flight": io.in_flight,
                    "held_bytes": io.held_bytes,
                },
            }))
        }))
    }

    /// Ends all threads; the next batch starts new ones.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let opened = self.0.get(py)?;
        py.detach(|| drop(opened.at().stop()));
        crate::logging::hand_over(py)
    }

    #[getter]
    fn batches_per_epoch(&self) -> u64 {
        self.0.batches_per_epoch
    }

    #[getter]
    fn num_samples(&self) -> u64 {
        self.0.dataset.num_samples()
    }

    #[getter]
    fn num_shards(&self) -> usize {
        self.0.dataset.shards().len()
    }

    /// Names of the classes by their index.
    #[getter]
    fn class_names(&self) -> Option<Vec<String>> {
        self.0.dataset.class_names().map(<[String]>::to_vec)
    }

    /// URL of a shard, without secrets.
    fn shard_url(&self, shard: usize) -> Option<String> {
        let shard = self.0.dataset.shards().get(shard)?;
        Some(shard.url.clone())
    }
}
