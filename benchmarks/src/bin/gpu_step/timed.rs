//! Times on the device, between two events.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use nepa_model::cuda::arguments::{Launch, Work};
use nepa_model::cuda::launcher::{Launcher, Matmul};
use nepa_model::cuda::{CudaLauncher, CudaStepError};
use nepa_pipeline::{cuda::cudarc::driver::CudaEvent, cuda::cudarc::driver::sys};

/// What one kind of launch took in a step.
#[derive(Debug, Default, Clone)]
pub(crate) struct Spent {
    pub(crate) calls: usize,
    pub(crate) ms: f64,
    pub(crate) work: Work,
}

/// A device that times every launch and matmul.
pub(crate) struct Timed {
    device: CudaLauncher,
    pub(crate) spent: Rc<RefCell<BTreeMap<String, Spent>>>,
}

fn timing(error: &dyn std::error::Error) -> CudaStepError {
    CudaStepError::Driver {
        doing: "timing",
        detail: error.to_string(),
    }
}

fn event(device: &CudaLauncher) -> Result<CudaEvent, CudaStepError> {
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let event = device.stream().context().new_event(flags);
    event.map_err(|error| timing(&error))
}

/// Milliseconds of what `run` enqueues.
pub(crate) fn milliseconds(
    device: &mut CudaLauncher,
    run: impl FnOnce(&mut CudaLauncher) -> Result<(), CudaStepError>,
) -> Result<f64, CudaStepError> {
    let (start, end) = (event(device)?, event(device)?);
    let stream = Arc::clone(device.stream());
    start.record(&stream).map_err(|error| timing(&error))?;
    run(device)?;
    end.record(&stream).map_err(|error| timing(&error))?;
    let ms = start.elapsed_ms(&end).map_err(|error| timing(&error))?;
    Ok(f64::from(ms))
}

/// A matmul in words, and its operations.
pub(crate) fn describe(matmul: &Matmul) -> (String, u64) {
    let Matmul { m, n, k, .. } = *matmul;
    (
        format!("matmul {m} x {k} by {k} x {n}"),
        2 * (m * n * k) as u64,
    )
}

impl Timed {
    pub(crate) fn new(device: CudaLauncher) -> Self {
        Self {
            device,
            spent: Rc::default(),
        }
    }

    fn time(
        &mut self,
        name: String,
        work: Work,
        run: impl FnOnce(&mut CudaLauncher) -> Result<(), CudaStepError>,
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

impl Launcher for Timed {
    type Error = CudaStepError;

    fn allocate(&mut self, num_bytes: u64) -> Result<u64, CudaStepError> {
        self.device.allocate(num_bytes)
    }
    fn launch<A: Copy>(&mut self, launch: Launch<A>) -> Result<(), CudaStepError> {
        self.time(launch.kernel().to_owned(), launch.work(), |device| {
            device.launch(launch)
        })
    }
    fn matmul(&mut self, matmul: &Matmul) -> Result<(), CudaStepError> {
        let (name, flops) = describe(matmul);
        self.time(name, Work { bytes: 0, flops }, |device| {
            device.matmul(matmul)
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
