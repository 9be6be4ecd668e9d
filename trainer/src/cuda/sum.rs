//! The sum of the ranks' gradients from GPU to GPU, over NCCL: by the tree of `ranks::sum`, so to
//! the same bits, and the kernel that adds micro-batches; or by NCCL's own additions.
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use nepa_model::cuda::arguments::AddValues;
use nepa_model::cuda::launcher::Launcher;
use nepa_model::cuda::{CudaLauncher, KernelDevice};
use nepa_model::{MemoryPlan, Step};

use super::nccl::{Communicator, Values};
use crate::engine::{DeviceSum, EngineDevice, EngineError, Exchange, Summing};

/// Halves begin at multiples of so many values: kernels read several at once.
const ALIGNED: u64 = 64;
/// NCCL's own memory, about; a generous guess until GPUs have said.
const NCCL_BYTES: u64 = 512 << 20;

type Gpu = KernelDevice<CudaLauncher>;

/// Memory that summing so many values takes.
pub(super) fn plan(plan: &mut MemoryPlan, summing: Summing, num_values: usize) {
    let received = if summing.by_library {
        0
    } else {
        4 * half_of(num_values)
    };
    plan.add("sums over ranks", received + NCCL_BYTES);
}

/// Connects the GPUs of all ranks, to sum so many values in the order of the stream.
pub(super) fn connect(
    stream: &Arc<CudaStream>,
    others: &Arc<dyn Exchange>,
    num_values: usize,
) -> Result<Box<dyn DeviceSum<Gpu>>, EngineError> {
    let communicator = Communicator::new(Arc::clone(stream), Arc::clone(others));
    let communicator = communicator.map_err(EngineError::Ranks)?;
    if others.summing().by_library {
        return Ok(Box::new(LibrarySum(communicator)));
    }
    let received = stream.alloc_zeros::<f32>(half_of(num_values) as usize);
    let received = received.map_err(|error| EngineError::Device(Box::new(error)))?;
    let address = received.device_ptr(stream).0;
    Ok(Box::new(TreeSum {
        communicator,
        rank: others.rank(),
        size: others.size(),
        received,
        address,
    }))
}

/// Leaves the additions to NCCL.
#[derive(Debug)]
struct LibrarySum(Communicator);

impl DeviceSum<Gpu> for LibrarySum {
    fn sum(&mut self, step: &mut Step<Gpu>) -> Result<(), EngineError> {
        let Self(communicator) = self;
        let region = step.sum_region().map_err(Gpu::failed)?;
        let values = Values {
            address: step.device().address(region),
            len: region.len,
        };
        // SAFETY: the step's memory outlives the engine's work, which is all in the order of one
        // stream.
        unsafe { communicator.all_reduce(values) }.map_err(EngineError::Ranks)?;
        communicator.finish().map_err(EngineError::Ranks)
    }
}

/// Sums by recursive halving and doubling.
#[derive(Debug)]
struct TreeSum {
    communicator: Communicator,
    rank: usize,
    size: usize,
    /// A half that comes from another rank, and its address.
    received: CudaSlice<f32>,
    address: u64,
}

/// The two halves of a range, the larger first.
fn halves(range: &Range<u64>) -> (Range<u64>, Range<u64>) {
    let len = range.end - range.start;
    let half = len.div_ceil(2).next_multiple_of(ALIGNED).min(len);
    let middle = range.start + half;
    (range.start..middle, middle..range.end)
}

fn half_of(num_values: usize) -> u64 {
    halves(&(0..num_values as u64)).0.end
}

impl TreeSum {
    /// Of the values at `start`, sends a range and receives another, or `into` the memory for it.
    fn exchange(
        &mut self,
        distance: usize,
        start: u64,
        (sent, received): (&Range<u64>, &Range<u64>),
        into: Option<u64>,
    ) -> Result<(), EngineError> {
        let at = |range: &Range<u64>| Values {
            address: start + 4 * range.start,
            len: (range.end - range.start) as usize,
        };
        let receive = Values {
            address: into.unwrap_or(at(received).address),
            ..at(received)
        };
        let peer = self.rank ^ distance;
        // SAFETY: the step's memory and `received` outlive the engine's work, which is all in the
        // order of one stream; the two halves of a range do not overlap.
        unsafe { self.communicator.send_receive(peer, at(sent), receive) }
            .map_err(EngineError::Ranks)
    }
}

impl DeviceSum<Gpu> for TreeSum {
    fn sum(&mut self, step: &mut Step<Gpu>) -> Result<(), EngineError> {
        let region = step.sum_region().map_err(Gpu::failed)?;
        let start = step.device().address(region);
        let mut range = 0..region.len as u64;
        assert!(
            half_of(region.len) as usize <= self.received.len(),
            "the gradient of the model that it was made for"
        );
        let mut done = Vec::new();
        for bit in 0..self.size.trailing_zeros() {
            let distance = 1 << bit;
            let (lower, upper) = halves(&range);
            let (kept, given) = if self.rank & distance == 0 {
                (lower, upper)
            } else {
                (upper, lower)
            };
            self.exchange(distance, start, (&given, &kept), Some(self.address))?;
            if !kept.is_empty() {
                let add = AddValues {
                    sums: start + 4 * kept.start,
                    values: self.address,
                    len: kept.end - kept.start,
                };
                let launcher = step.device_mut().launcher_mut();
                launcher.launch(add.launch()).map_err(Gpu::failed)?;
            }
            range = kept.clone();
            done.push((distance, kept, given));
        }
        for (distance, kept, given) in done.into_iter().rev() {
            self.exchange(distance, start, (&kept, &given), None)?;
        }
        self.communicator.finish().map_err(EngineError::Ranks)
    }
}
