//! A communicator of NCCL: memory of this rank's GPU goes to that of another rank's and back, or is
//! summed over all, in the order of a stream.
//!
//! Nothing waits within NCCL, which would wait for ever for a rank that has died: the communicator
//! does not block, and each wait is a loop that looks after the other ranks, too.
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaStream, DriverError};
use cudarc::nccl::result::{self, NcclError as Refusal, NcclStatus};
use cudarc::nccl::sys::{self, ncclResult_t};
use nepa_pipeline::cuda::libraries::Library;
use serde::{Deserialize, Serialize};

use crate::engine::{Exchange, ExchangeError};
use crate::ranks::Telling;

/// What has not come by then does not come any more.
const WITHIN: Duration = Duration::from_mins(10);
/// How often the other ranks are looked after.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A sum takes milliseconds: so long nobody sleeps.
const AWAKE: Duration = Duration::from_millis(2);
const PAUSE: Duration = Duration::from_micros(100);
/// NCCL may notice that another rank is gone before that rank's own connection says why.
const REASON_WITHIN: Duration = Duration::from_secs(3);

/// NCCL's version whose structures these are, and which it puts into them.
const VERSION: u32 = 22_809;
const MAGIC: u32 = 0xcafe_beef;
/// What is left to NCCL.
const UNDEFINED: c_int = c_int::MIN;

/// NCCL cannot connect the GPUs.
#[derive(Debug, thiserror::Error)]
pub(super) enum NcclError {
    #[error(
        "NCCL, which sums between GPUs, is not on this machine ({tried})\ntip: \
         scripts/cuda-toolkit.sh of the source tree puts it where this program looks; or name its \
         folder in LD_LIBRARY_PATH (beside PyTorch: site-packages/nvidia/nccl/lib); \
         --set train.wire=host sums without it, through the memory of the machines"
    )]
    Missing { tried: String },
    #[error("rank {rank} cannot use NCCL: {problem}")]
    Elsewhere { rank: usize, problem: String },
    #[error(
        "rank {rank} has NCCL {theirs}, rank 0 has {ours}\ntip: the same version of libnccl.so.2 on \
         all machines"
    )]
    Versions {
        rank: usize,
        theirs: String,
        ours: String,
    },
    #[error(
        "NCCL failed at {doing}: {answer}\ntip: NCCL_DEBUG=WARN lets it say more; between machines \
         NCCL_SOCKET_IFNAME names the network; --set train.wire=host sums without it, through the \
         memory of the machines"
    )]
    Refused { doing: &'static str, answer: String },
    #[error(
        "{doing} took longer than {} min, though all ranks are alive\ntip: NCCL_DEBUG=INFO shows what \
         NCCL waits for; --set train.wire=host sums without it, through the memory of the machines",
        WITHIN.as_secs() / 60
    )]
    TooLong { doing: &'static str },
    #[error("the driver failed at {doing}")]
    Driver {
        doing: &'static str,
        source: DriverError,
    },
}

fn text(chars: *const c_char) -> String {
    if chars.is_null() {
        return String::new();
    }
    // SAFETY: NCCL's texts end in a zero byte and stay until its next call in this thread.
    unsafe { CStr::from_ptr(chars) }
        .to_string_lossy()
        .trim()
        .to_owned()
}

/// For `map_err`: what NCCL says of it.
fn refused(doing: &'static str) -> impl FnOnce(Refusal) -> NcclError {
    move |Refusal(status)| {
        // SAFETY: both give texts; the second one's argument may be null.
        let (what, last) = unsafe {
            (
                text(sys::ncclGetErrorString(status)),
                text(sys::ncclGetLastError(std::ptr::null_mut())),
            )
        };
        let answer = if last.is_empty() || last == what {
            what
        } else {
            format!("{what}: {last}")
        };
        NcclError::Refused { doing, answer }
    }
}

fn driver(doing: &'static str) -> impl FnOnce(DriverError) -> NcclError {
    move |source| NcclError::Driver { doing, source }
}

/// 22809 is 2.28.9.
fn version(number: c_int) -> String {
    format!(
        "{}.{}.{}",
        number / 10_000,
        number / 100 % 100,
        number % 100
    )
}

/// What ranks tell each other before they make a communicator.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Greeting {
    version: c_int,
    /// Of the communicator, from rank 0.
    id: Vec<u8>,
    /// Why this one cannot.
    problem: Option<String>,
}

fn greet(rank: usize) -> Result<Greeting, NcclError> {
    if let Some(tried) = Library::Nccl.load_error() {
        return Err(NcclError::Missing { tried });
    }
    let version = result::get_nccl_version().map_err(refused("telling its version"))?;
    let id = if rank == 0 {
        let id = result::get_uniqueid().map_err(refused("beginning a communicator"))?;
        id.internal.iter().map(|byte| *byte as u8).collect()
    } else {
        Vec::new()
    };
    Ok(Greeting {
        version,
        id,
        problem: None,
    })
}

/// All ranks have the same NCCL; the name of their communicator.
fn meet(others: &dyn Exchange) -> Result<sys::ncclUniqueId, ExchangeError> {
    let own = greet(others.rank());
    let told = match &own {
        Ok(greeting) => serde_json::to_vec(greeting),
        Err(error) => serde_json::to_vec(&Greeting {
            problem: Some(error.to_string()),
            ..Greeting::default()
        }),
    };
    let all = others.share(&told.expect("plain numbers and text"))?;
    own?;
    let all = all.iter().map(|record| serde_json::from_slice(record));
    let all = all.collect::<Result<Vec<Greeting>, _>>()?;
    let mut id = sys::ncclUniqueId { internal: [0; 128] };
    for (to, from) in id.internal.iter_mut().zip(&all[0].id) {
        *to = *from as c_char;
    }
    let ours = all[0].version;
    for (rank, greeting) in all.into_iter().enumerate() {
        if let Some(problem) = greeting.problem {
            return Err(NcclError::Elsewhere { rank, problem }.into());
        }
        if greeting.version != ours {
            let (theirs, ours) = (version(greeting.version), version(ours));
            return Err(NcclError::Versions { rank, theirs, ours }.into());
        }
    }
    Ok(id)
}

/// Of a communicator whose calls do not wait.
fn config() -> sys::ncclConfig_t {
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: MAGIC,
        version: VERSION,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: std::ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
    }
}

/// f32 values in device memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values {
    /// Of the first.
    pub(super) address: u64,
    /// Their number.
    pub(super) len: usize,
}

/// As waits and refusals name it.
const SUMMING: &str = "summing between GPUs";

/// Connects this rank's GPU with those of the others.
#[derive(Debug)]
pub(super) struct Communicator {
    /// Null once it is gone.
    handle: sys::ncclComm_t,
    stream: Arc<CudaStream>,
    others: Arc<dyn Exchange>,
}

// SAFETY: NCCL lets any thread call it, one at a time for a communicator, and nobody else has the
// handle.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Makes it with all other ranks, which do the same. All that it sends and receives is done in
    /// the order of the stream.
    pub(super) fn new(
        stream: Arc<CudaStream>,
        others: Arc<dyn Exchange>,
    ) -> Result<Self, ExchangeError> {
        const DOING: &str = "connecting the GPUs";
        let id = meet(others.as_ref())?;
        let (rank, size) = (others.rank(), others.size());
        let mut communicator = Self {
            handle: std::ptr::null_mut(),
            stream,
            others,
        };
        communicator.bind()?;
        let mut config = config();
        // SAFETY: the pointers are to live values; the context of the rank's GPU is current.
        let made = unsafe {
            result::comm_init_rank_config(
                &raw mut communicator.handle,
                size as c_int,
                id,
                rank as c_int,
                &raw mut config,
            )
        };
        communicator.settle(DOING, made)?;
        Ok(communicator)
    }

    /// Sends values to a rank while others come from it; the other one does the same. Both lie
    /// where they should once the stream has come so far.
    ///
    /// # Safety
    ///
    /// Both are device memory of the stream's context that outlives this; nothing writes to them
    /// but in the order of the stream, and they do not overlap.
    pub(super) unsafe fn send_receive(
        &mut self,
        peer: usize,
        send: Values,
        receive: Values,
    ) -> Result<(), ExchangeError> {
        const DOING: &str = "sending between GPUs";
        self.bind()?;
        let kind = sys::ncclDataType_t::ncclFloat32;
        let (to, stream) = (peer as c_int, self.stream.cu_stream().cast());
        let begun = result::group_start();
        if begun.is_err() {
            return self.settle(DOING, begun);
        }
        // An empty half is neither sent nor awaited.
        let mut asked = Ok(NcclStatus::Success);
        if send.len > 0 {
            // SAFETY: the caller's promise.
            asked = unsafe {
                let from = send.address as *const c_void;
                result::send(from, send.len, kind, to, self.handle, stream)
            };
        }
        if receive.len > 0 && asked.is_ok() {
            // SAFETY: the caller's promise.
            asked = unsafe {
                let into = receive.address as *mut c_void;
                result::recv(into, receive.len, kind, to, self.handle, stream)
            };
        }
        // Also where one of them was refused: otherwise all later calls were of this group.
        let ended = result::group_end();
        self.settle(DOING, asked.and(ended))
    }

    /// Makes values their sum over all ranks, the same bits on each, in an order of NCCL's own. It
    /// is there once the stream has come so far.
    ///
    /// # Safety
    ///
    /// They are device memory of the stream's context that outlives this; nothing reads or writes
    /// them but in the order of the stream.
    pub(super) unsafe fn all_reduce(&mut self, values: Values) -> Result<(), ExchangeError> {
        self.bind()?;
        let at = values.address as *mut c_void;
        let (kind, sum) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
        let stream = self.stream.cu_stream().cast();
        // SAFETY: the caller's promise. The sums may take the place of the values.
        let asked = unsafe {
            result::all_reduce(
                at.cast_const(),
                at,
                values.len,
                kind,
                sum,
                self.handle,
                stream,
            )
        };
        self.settle(SUMMING, asked)
    }

    /// Waits until all that was asked for is done.
    pub(super) fn finish(&mut self) -> Result<(), ExchangeError> {
        let event = self.stream.record_event(None);
        let event = event.map_err(driver(SUMMING))?;
        self.wait(SUMMING, |this| {
            this.state(SUMMING)?;
            event.try_is_complete().map_err(driver(SUMMING))
        })
    }

    fn bind(&self) -> Result<(), NcclError> {
        let bound = self.stream.context().bind_to_thread();
        bound.map_err(driver("making its context current"))
    }

    /// What NCCL has found since, beside what its calls have answered.
    fn state(&self, doing: &'static str) -> Result<NcclStatus, NcclError> {
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: a live communicator, and a live value.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.handle, &raw mut state) };
        let state = asked.result().and_then(|_| state.result());
        state.map_err(refused(doing))
    }

    /// After an answer of NCCL's: waits until what was asked is under way. Before that the
    /// communicator must not be asked for anything else, nor must the stream.
    fn settle(
        &mut self,
        doing: &'static str,
        answer: Result<NcclStatus, Refusal>,
    ) -> Result<(), ExchangeError> {
        match answer.map_err(refused(doing)) {
            Ok(NcclStatus::InProgress) => self.wait(doing, |this| {
                Ok(this.state(doing)? != NcclStatus::InProgress)
            }),
            Ok(_) => Ok(()),
            Err(error) => Err(self.fail(error)),
        }
    }

    fn wait(
        &mut self,
        doing: &'static str,
        is_done: impl Fn(&Self) -> Result<bool, NcclError>,
    ) -> Result<(), ExchangeError> {
        let started = Instant::now();
        let mut looked = started;
        let mut telling = Telling::by(self.others.rank());
        loop {
            match is_done(self) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(self.fail(error)),
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                if let Err(ended) = self.others.check() {
                    self.abort();
                    return Err(ended);
                }
            }
            let waited = started.elapsed();
            if waited >= WITHIN {
                return Err(self.fail(NcclError::TooLong { doing }));
            }
            if telling.is_due(waited) {
                tracing::warn!(
                    "{doing} for {} s: waiting for NCCL; all ranks are alive",
                    waited.as_secs()
                );
            }
            if waited >= AWAKE {
                std::thread::sleep(PAUSE);
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Ends the communicator, whose calls all fail from now on; the reason, which is another rank's
    /// where one has ended.
    fn fail(&mut self, error: NcclError) -> ExchangeError {
        self.abort();
        let until = Instant::now() + REASON_WITHIN;
        while Instant::now() < until {
            if let Err(ended) = self.others.check() {
                return ended;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        error.into()
    }

    /// Takes back what is under way: the stream goes on, over values that nobody should use.
    fn abort(&mut self) {
        let handle = std::mem::replace(&mut self.handle, std::ptr::null_mut());
        if !handle.is_null() {
            // SAFETY: a live communicator, which is forgotten. There is nothing to be done about a
            // refusal.
            let _ = unsafe { result::comm_abort(handle) };
        }
    }
}

impl Drop for Communicator {
    /// Takes nothing from the others, unlike a regular end without waiting for them: each waits for
    /// its sum, and all have told what they found since.
    fn drop(&mut self) {
        self.abort();
    }
}
