//! One batch: arrays of its pixels, and what became of each sample.
use std::sync::Arc;

use nepa_pipeline::{Label, SampleId};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;

use crate::array::{Array, Owner};
use crate::columns::Columns;
use crate::loader::Form;
use crate::of_process::OfProcess;
use crate::pixels::Pixels;

/// Shard, row group and row.
type Id = (u32, u32, u32);
/// Left, top, width, height, in pixels of the upright image; whether it is mirrored.
type Crop = (f64, f64, f64, f64, bool);

/// Where a row has no integer label.
const NO_LABEL: i64 = -1;

/// One batch of this process.
#[pyclass(frozen, module = "nepa._nepa")]
pub(crate) struct Batch {
    held: Arc<OfProcess<Arc<dyn Pixels>>>,
    form: Form,
}

impl Batch {
    pub(crate) fn new(held: Arc<dyn Pixels>, form: Form) -> Self {
        Self {
            held: Arc::new(OfProcess::new(held)),
            form,
        }
    }
}

fn id_of(id: SampleId) -> Id {
    (id.shard, id.row_group, id.row)
}

#[pymethods]
impl Batch {
    #[getter]
    fn epoch(&self) -> u64 {
        self.held.epoch()
    }

    #[getter]
    fn num_views(&self) -> usize {
        self.held.view_sides().len()
    }

    fn __len__(&self) -> usize {
        self.held.samples().len()
    }

    /// The pixels of a view of all samples.
    fn view(&self, py: Python<'_>, view: usize) -> PyResult<Array> {
        let pixels = self.held.get(py)?;
        let side = pixels.view_sides()[view] as usize;
        let shape = self.form.shape(pixels.samples().len(), side);
        let owner = Owner::Pixels {
            batch: Arc::clone(&self.held),
            view,
        };
        Ok(Array::new(owner, shape, self.form.data_type()))
    }

    /// Integers as an array `[B]`, names as a list, None where no sample has a label.
    fn labels(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let labels = || self.held.samples().iter().map(|sample| &sample.label);
        if labels().all(Option::is_none) {
            return Ok(None);
        }
        let index = |label: &Option<Label>| match label {
            Some(Label::Index(index)) => Some(*index),
            Some(Label::Name(_)) => None,
            None => Some(NO_LABEL),
        };
        if let Some(numbers) = labels().map(index).collect::<Option<Arc<[i64]>>>() {
            let shape = vec![numbers.len()];
            let array = Array::new(Owner::Numbers(numbers), shape, dlpark::ffi::DLDataType::I64);
            return Ok(Some(array.into_py_any(py)?));
        }
        let name = |label: &Option<Label>| match label {
            Some(Label::Index(index)) => index.into_py_any(py),
            Some(Label::Name(name)) => name.as_ref().into_py_any(py),
            None => Ok(py.None()),
        };
        let names = labels().map(name).collect::<PyResult<Vec<_>>>()?;
        Ok(Some(names.into_py_any(py)?))
    }

    fn ids(&self) -> Vec<Id> {
        let samples = self.held.samples().iter();
        samples.map(|sample| id_of(sample.id)).collect()
    }

    /// The bad sample that each stands for.
    fn replaced(&self) -> Vec<Option<Id>> {
        let samples = self.held.samples().iter();
        samples.map(|sample| sample.replaces.map(id_of)).collect()
    }

    /// The crop of each sample and view.
    fn crops(&self) -> Vec<Vec<Crop>> {
        let crop = |plan: &nepa_pipeline::CropPlan| {
            let rect = plan.rect;
            (rect.x, rect.y, rect.width, rect.height, plan.flip)
        };
        let samples = self.held.samples().iter();
        samples
            .map(|sample| sample.views.iter().map(crop).collect())
            .collect()
    }

    fn columns(&self) -> Option<Columns> {
        self.held.columns().cloned().map(Columns)
    }
}
