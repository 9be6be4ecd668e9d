//! The sum of the ranks' gradients from GPU to GPU, over NCCL: by the tree of `ranks::halving`, so
//! to the same bits, and the kernel that adds micro-batches; or by NCCL's own additions.
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use nepa_model::cuda::arguments::AddValues;
use nepa_model::cuda::launcher::Launcher;
use nepa_model::cuda::{CudaLauncher, KernelDevice};
use nepa_model::{MemoryPlan, Step};

use super::nccl::{Communicator, Values};
use crate::engine::{DeviceSum, EngineDevice, EngineError, Exchange, Summing};
use crate::ranks::{Halving, halvings, larger_half};

/// Halves begin at multiples of so many values: kernels read several at once.
const ALIGNED: usize = 64;
/// NCCL's own memory, about; a generous guess until GPUs have said.
const NCCL_BYTES: u64 = 512 << 20;

type Gpu = KernelDevice<CudaLauncher>;

/// Memory that summing so many values takes.
pub(super) fn plan(plan: &mut MemoryPlan, summing: Summing, num_values: usize) {
    let received = if summing.by_library {
        0
    } else {
        4 * larger_half(num_values, ALIGNED) as u64
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
    let received = stream.alloc_zeros::<f32>(larger_half(num_values, ALIGNED));
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

impl TreeSum {
    /// Of the values at `start`, sends a range to a rank and receives another, or `into` the memory
    /// for it.
    fn exchange(
        &mut self,
        peer: usize,
        start: u64,
        (sent, received): (&Range<usize>, &Range<usize>),
        into: Option<u64>,
    ) -> Result<(), EngineError> {
        let at = |range: &Range<usize>| Values {
            address: address_of(start, range),
            len: range.len(),
        };
        let receive = Values {
            address: into.unwrap_or(at(received).address),
            ..at(received)
        };
        // SAFETY: the step's memory and `received` outlive the engine's work, which is all in the
        // order of one stream; the two halves of a range do not overlap.
        unsafe { self.communicator.send_receive(peer, at(sent), receive) }
            .map_err(EngineError::Ranks)
    }
}

/// Of the values of a range, where the first of all is at `start`.
fn address_of(start: u64, range: &Range<usize>) -> u64 {
    start + 4 * range.start as u64
}

impl DeviceSum<Gpu> for TreeSum {
    fn sum(&mut self, step: &mut Step<Gpu>) -> Result<(), EngineError> {
        let region = step.sum_region().map_err(Gpu::failed)?;
        let start = step.device().address(region);
        assert!(
            larger_half(region.len, ALIGNED) <= self.received.len(),
            "the gradient of the model that it was made for"
        );
        let halvings = halvings(self.rank, self.size, region.len, ALIGNED);
        for Halving { peer, kept, given } in &halvings {
            self.exchange(*peer, start, (given, kept), Some(self.address))?;
            if !kept.is_empty() {
                let add = AddValues {
                    sums: address_of(start, kept),
                    values: self.address,
                    len: kept.len() as u64,
                };
                let launcher = step.device_mut().launcher_mut();
                launcher.launch(add.launch()).map_err(Gpu::failed)?;
            }
        }
        for Halving { peer, kept, given } in halvings.iter().rev() {
            self.exchange(*peer, start, (kept, given), None)?;
        }
        self.communicator.finish().map_err(EngineError::Ranks)
    }
}
