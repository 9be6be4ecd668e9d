//! Arrays that others read and write where they lie, by the DLPack protocol (version 1 and the one
//! before: <https://dmlc.github.io/dlpack/latest/python_spec.html>).
#![expect(unsafe_code, reason = "DLPack hands memory over by its address")]
use std::ffi::c_void;
use std::sync::Arc;

use dlpark::ffi::{DLDataType, DLDevice, DLDeviceType, DLManagedTensor, DLManagedTensorVersioned};
use dlpark::metadata::Dynamic;
use dlpark::python::{DlpackExporter, ExportRequest, export_dlpack};
use dlpark::{DlpackFlags, Managed, ManagedTensorBase};
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::of_process::OfProcess;
use crate::pixels::Pixels;

/// Whose memory it is; kept for as long as any tensor of it.
#[derive(Clone)]
pub(crate) enum Owner {
    /// A view of a batch, lent by its loader.
    Pixels {
        batch: Arc<OfProcess<Arc<dyn Pixels>>>,
        view: usize,
    },
    /// Numbers of its own.
    Numbers(Arc<[i64]>),
}

impl Owner {
    fn start(&self) -> *mut c_void {
        match self {
            Self::Pixels { batch, view } => batch.start(*view),
            Self::Numbers(numbers) => numbers.as_ptr().cast_mut().cast(),
        }
    }

    fn device(&self) -> DLDevice {
        match self {
            Self::Pixels { batch, .. } => batch.device(),
            Self::Numbers(_) => DLDevice::CPU,
        }
    }
}

/// An array in row-major order.
#[pyclass(frozen, module = "nepa._nepa")]
pub(crate) struct Array {
    owner: Owner,
    shape: Vec<usize>,
    data_type: DLDataType,
}

impl Array {
    /// `owner` must hold an array of this shape and type from its start on.
    pub(crate) fn new(owner: Owner, shape: Vec<usize>, data_type: DLDataType) -> Self {
        Self {
            owner,
            shape,
            data_type,
        }
    }

    fn tensor<M: ManagedTensorBase>(&self) -> PyResult<Managed<M>> {
        let mut tensor = Dynamic::compact(&self.shape[..])
            .initialize_as::<M>(Box::new(self.owner.clone()))
            .map_err(|error| PyBufferError::new_err(error.to_string()))?;
        tensor
            .set_data(self.owner.start())
            .set_device(self.owner.device())
            .set_dtype(self.data_type);
        // SAFETY: the owner holds an array of this shape and type there, compact and in row-major
        // order, and the tensor's context holds the owner. Nobody else writes to it meanwhile: the
        // pool has lent the batch, and labels are read by nobody of ours.
        Ok(unsafe { tensor.finish() })
    }
}

impl DlpackExporter for Array {
    fn device(&self) -> DLDevice {
        self.owner.device()
    }

    fn flags(&self) -> DlpackFlags {
        DlpackFlags::empty()
    }

    fn prepare_export(&self, _: Python<'_>, request: &ExportRequest<'_>) -> PyResult<()> {
        match &self.owner {
            Owner::Pixels { batch, .. } => batch.order_on(request),
            Owner::Numbers(_) => Ok(()),
        }
    }

    fn export_legacy(&self, _: Python<'_>) -> PyResult<Managed<DLManagedTensor>> {
        self.tensor()
    }

    fn export_versioned(&self, _: Python<'_>) -> PyResult<Managed<DLManagedTensorVersioned>> {
        self.tensor()
    }
}

#[pymethods]
impl Array {
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        match self.data_type {
            DLDataType::F32 => "float32",
            DLDataType::BF16 => "bfloat16",
            DLDataType::U8 => "uint8",
            _ => "int64",
        }
    }

    #[getter]
    fn device(&self) -> String {
        let DLDevice {
            device_type,
            device_id,
        } = self.owner.device();
        match device_type {
            DLDeviceType::CUDA => format!("cuda:{device_id}"),
            _ => "cpu".to_owned(),
        }
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.shape.iter().product::<usize>() * usize::from(self.data_type.bits) / 8
    }

    #[getter]
    fn data_ptr(&self, py: Python<'_>) -> PyResult<usize> {
        self.check(py)?;
        Ok(self.owner.start() as usize)
    }

    fn __dlpack_device__(&self) -> (u32, i32) {
        let device = self.owner.device();
        (device.device_type.0, device.device_id)
    }

    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__(
        &self,
        py: Python<'_>,
        stream: Option<Bound<'_, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(u32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Py<PyAny>> {
        self.check(py)?;
        let request = ExportRequest::parse(stream.as_ref(), max_version, dl_device, copy)?;
        export_dlpack(self, py, request)
    }

    fn __repr__(&self) -> String {
        let (shape, dtype, device) = (&self.shape, self.dtype(), self.device());
        format!("Array(shape={shape:?}, dtype={dtype}, device={device})")
    }
}

impl Array {
    /// Refuses a child of the process that the memory belongs to.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        match &self.owner {
            Owner::Pixels { batch, .. } => batch.get(py).map(|_| ()),
            Owner::Numbers(_) => Ok(()),
        }
    }
}
