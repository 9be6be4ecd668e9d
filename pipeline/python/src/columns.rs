//! Further columns of a batch, for others to read where they lie: the PyCapsule interface of Arrow
//! (<https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html>).
use arrow::array::{Array, StructArray};
use arrow::ffi::{FFI_ArrowSchema, to_ffi};
use arrow::record_batch::RecordBatch;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

/// One row a sample, in order.
#[pyclass(frozen, module = "nepa._nepa")]
pub(crate) struct Columns(pub RecordBatch);

fn refused(error: arrow::error::ArrowError) -> PyErr {
    PyBufferError::new_err(error.to_string())
}

#[pymethods]
impl Columns {
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let schema = FFI_ArrowSchema::try_from(self.0.schema().as_ref()).map_err(refused)?;
        PyCapsule::new_with_value(py, schema, c"arrow_schema")
    }

    /// Schema and array; of another schema that is asked for the protocol allows to know nothing.
    #[pyo3(signature = (requested_schema=None))]
    #[expect(unused_variables, reason = "the protocol's name")]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyCapsule>, Bound<'py, PyCapsule>)> {
        let rows = StructArray::from(self.0.clone());
        let (array, schema) = to_ffi(&rows.to_data()).map_err(refused)?;
        Ok((
            PyCapsule::new_with_value(py, schema, c"arrow_schema")?,
            PyCapsule::new_with_value(py, array, c"arrow_array")?,
        ))
    }
}
