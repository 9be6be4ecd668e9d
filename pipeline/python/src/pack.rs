//! `Packer`: packing a stream of images from Python. Called by `nepa/_pack.py`, which checks and
//! documents what users give.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nepa_pipeline::{IoConfig, Place, full_text};
use nepa_trainer::pack::{self, ItemLabel, PackError, PackedShard, StreamOptions};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::{self, Kind};
use crate::of_process::OfProcess;
use crate::waiting::interruptible;

/// Name, images and bytes of a shard that is whole.
type Shard = (String, u64, u64);
/// The packer until it is finished or given up. A thread that writes holds the lock, also when
/// Ctrl-C has ended the wait for it.
type Shared = Arc<Mutex<Option<pack::Packer>>>;

/// Packs images into shards below a URL; each shard appears when it is whole.
#[pyclass(frozen, module = "nepa._nepa")]
pub(crate) struct Packer(OfProcess<Shared>);

/// The label of an image, as Python gives it.
#[derive(FromPyObject)]
enum Label {
    Number(i64),
    Name(String),
}

#[pymethods]
impl Packer {
    /// Opens the target. Shards of this split must not be there yet.
    #[new]
    #[pyo3(signature = (url, split, classes, row_group_bytes, shard_bytes, check))]
    fn new(
        py: Python<'_>,
        url: String,
        split: String,
        classes: Option<Vec<String>>,
        row_group_bytes: u64,
        shard_bytes: u64,
        check: bool,
    ) -> PyResult<Self> {
        let options = StreamOptions {
            split,
            classes,
            row_group_bytes,
            shard_bytes,
            check,
        };
        let opened = interruptible(py, move || {
            pack::Packer::open(&url, &IoConfig::default(), options)
        })?;
        let packer = opened.map_err(|error| raised(py, &error))?;
        Ok(Self(OfProcess::new(Arc::new(Mutex::new(Some(packer))))))
    }

    /// Adds an image; writes a row group where one is full.
    #[pyo3(signature = (data, label, path))]
    fn add(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyBytes>,
        label: Option<Label>,
        path: Option<String>,
    ) -> PyResult<()> {
        let shared = self.0.get(py)?;
        let bytes = Bytes::copy_from_slice(data.as_bytes());
        let label = label.map(|label| match label {
            Label::Number(number) => ItemLabel::Number(number),
            Label::Name(name) => ItemLabel::Name(name),
        });
        let added = py.detach(move || {
            with(shared, |packer| {
                packer.add(bytes, label, path)?;
                Ok(packer.is_full())
            })
        });
        if !unless_closed(py, added)? {
            return Ok(());
        }
        let shared = Arc::clone(shared);
        let written = interruptible(py, move || with(&shared, pack::Packer::write))?;
        unless_closed(py, written)
    }

    /// Writes the rest. Gives all shards: name, images, bytes.
    fn finish(&self, py: Python<'_>) -> PyResult<Vec<Shard>> {
        let shared = Arc::clone(self.0.get(py)?);
        let finished = interruptible(py, move || {
            with(&shared, |packer| packer.finish().map(shards))
        })?;
        unless_closed(py, finished)
    }

    /// Gives up the shard in hand, after what is being written at this moment. Gives the shards
    /// that are whole and stay.
    fn abort(&self, py: Python<'_>) -> PyResult<Vec<Shard>> {
        let shared = Arc::clone(self.0.get(py)?);
        interruptible(py, move || close(&shared))
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        // Other Python threads run while the store is told. Where Python is ending, it is told when
        // the field is dropped; in a forked child it is not.
        let _ = Python::try_attach(|py| {
            let shared = self.0.get(py);
            shared.map(|shared| py.detach(|| drop(close(shared))))
        });
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Option<pack::Packer>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None` where the packer is closed.
fn with<T>(
    shared: &Shared,
    work: impl FnOnce(&mut pack::Packer) -> Result<T, PackError>,
) -> Option<Result<T, PackError>> {
    lock(shared).as_mut().map(work)
}

fn close(shared: &Shared) -> Vec<Shard> {
    let packer = lock(shared).take();
    packer.map_or_else(Vec::new, |packer| shards(packer.written()))
}

fn unless_closed<T>(py: Python<'_>, done: Option<Result<T, PackError>>) -> PyResult<T> {
    match done {
        Some(done) => done.map_err(|error| raised(py, &error)),
        None => Err(PyRuntimeError::new_err("the packer is closed")),
    }
}

fn shards(shards: &[PackedShard]) -> Vec<Shard> {
    let shards = shards.iter();
    let shards = shards.map(|shard| (shard.name.clone(), shard.num_rows, shard.num_bytes));
    shards.collect()
}

fn raised(py: Python<'_>, error: &PackError) -> PyErr {
    let kind = match error {
        PackError::Image { .. } => Kind::Image,
        PackError::Open(_)
        | PackError::Exists { .. }
        | PackError::Store { .. }
        | PackError::Parquet { .. } => Kind::Dataset,
        PackError::Threads(_) | PackError::Ended => Kind::Nepa,
        _ => Kind::Setting,
    };
    let place = error.object().map(|object| Place {
        object: object.to_owned(),
        ..Place::default()
    });
    errors::error(py, kind, full_text(error), place)
}
