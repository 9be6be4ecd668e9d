//! Times on the device, between two events.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use nepa_model::cuda::{CudaStepDevice, CudaStepError};
use nepa_model::kernel_step::arguments::{Launch, Work};
use nepa_model::kernel_step::{Product, StepDevice};
use nepa_pipeline::{cuda::cudarc::driver::CudaEvent, cuda::cudarc::driver::sys};

/// What one kind of launch took in a step.
#[derive(Debug, Default, Clone)]
pub(crate) struct Spent {
    pub(crate) calls: usize,
    pub(crate) ms: f64,
    pub(crate) work: Work,
}

/// A device that times every launch and product.
pub(crate) struct Timed {
    device: CudaStepDevice,
    pub(crate) spent: Rc<RefCell<BTreeMap<String, Spent>>>,
}

fn timing(error: &dyn std::error::Error) -> CudaStepError {
    CudaStepError::Driver {
        doing: "timing",
        detail: error.to_string(),
    }
}

fn event(device: &CudaStepDevice) -> Result<CudaEvent, CudaStepError> {
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let event = device.stream().context().new_event(flags);
    event.map_err(|error| timing(&error))
}

/// Milliseconds of what `run` enqueues.
pub(crate) fn milliseconds(
    device: &mut CudaStepDevice,
    run: impl FnOnce(&mut CudaStepDevice) -> Result<(), CudaStepError>,
) -> Result<f64, CudaStepError> {
    let (start, end) = (event(device)?, event(device)?);
    let stream = Arc::clone(device.stream());
    start.record(&stream).map_err(|error| timing(&error))?;
    run(device)?;
    end.record(&stream).map_err(|error| timing(&error))?;
    let ms = start.elapsed_ms(&end).map_err(|error| timing(&error))?;
    Ok(f64::from(ms))
}

/// A product in words, and its operations.
pub(crate) fn describe(product: &Product) -> (String, u64) {
    let Product { m, n, k, .. } = *product;
    (
        format!("product {m} x {k} by {k} x {n}"),
        2 * (m * n * k) as u64,
    )
}

impl Timed {
    pub(crate) fn new(device: CudaStepDevice) -> Self {
        Self {
            device,
            spent: Rc::default(),
        }
    }

    fn time(
        &mut self,
        name: String,
        work: Work,
        run: impl FnOnce(&mut CudaStepDevice) -> Result<(), CudaStepError>,
    ) -> Result<(), CudaStepError> {
        let ms = milliseconds(&mut self.device, run)?;
        let mut spent = self.spent.borrow_mut();
        let entry = spent.entry(name).or_default();
        entry.calls += 1;
        entry.ms += ms;
        entry.work.bytes += work.bytes;
        entry.work.flops += work.flops;
        Ok(())
    }
}

impl StepDevice for Timed {
    type Error = CudaStepError;

    fn allocate(&mut self, num_bytes: u64) -> Result<u64, CudaStepError> {
        self.device.allocate(num_bytes)
    }
    fn launch<A: Copy>(&mut self, launch: Launch<A>) -> Result<(), CudaStepError> {
        self.time(launch.kernel().to_owned(), launch.work(), |device| {
            device.launch(launch)
        })
    }
    fn multiply(&mut self, product: Product) -> Result<(), CudaStepError> {
        let (name, flops) = describe(&product);
        self.time(name, Work { bytes: 0, flops }, |device| {
            device.multiply(product)
        })
    }
    fn zero(&mut self, address: u64, num_bytes: u64) -> Result<(), CudaStepError> {
        self.device.zero(address, num_bytes)
    }
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), CudaStepError> {
        self.device.write(address, bytes)
    }
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), CudaStepError> {
        self.device.read(address, bytes)
    }
}
