//! Where a model is computed: the `device` of recipes and of `--device`, and the one place that
//! opens it.
//!
//! The processor is always there. A CUDA device needs the feature `cuda` and a machine that has
//! one; each thing that can be missing has its own message. A device is never replaced by another
//! in silence.
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::console::messages::nearest;

/// Where a model is computed: `"cpu"`, `"cuda"` (the first device) or `"cuda:N"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its number, from 0.
    Cuda(usize),
}

/// Whether this build can open a CUDA device.
pub const HAS_CUDA: bool = cfg!(feature = "cuda");

/// A device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No such word.
    #[error(
        "{text:?} is no device: it must be \"cpu\", \"cuda\" or \"cuda:N\"{}",
        meant(text)
    )]
    Unknown {
        /// What was given.
        text: String,
    },
    /// A build without the feature.
    #[error(
        "device = \"{choice}\" needs a program built with the feature `cuda`, and this one is not\
         \ntip: build it with `make cuda`, which says where it lies, \
         or stay on the processor with device = \"cpu\""
    )]
    NoFeature {
        /// What was asked for.
        choice: DeviceChoice,
    },
    /// The driver, the device or a library is missing or does not fit.
    #[cfg(feature = "cuda")]
    #[error("device = \"{choice}\" cannot be used on this machine")]
    Cuda {
        /// What was asked for.
        choice: DeviceChoice,
        /// What is missing, what was tried, what to do.
        source: nepa_pipeline::cuda::CudaError,
    },
    /// One GPU for all ranks.
    #[error(
        "device = \"{choice}\" names one GPU, and there are several ranks, each with its own\
         \ntip: device = \"cuda\" gives each rank of a machine the GPU of its number there; \
         CUDA_VISIBLE_DEVICES says which GPUs these are"
    )]
    OneForAll {
        /// What was asked for.
        choice: DeviceChoice,
    },
    /// More ranks than GPUs.
    #[error(
        "this rank is number {local_rank} of its machine, counted from 0, and sees {num_devices} \
         GPUs, one for each rank\
         \ntip: start at most {num_devices} ranks on a machine with these GPUs; \
         CUDA_VISIBLE_DEVICES says which of a machine's GPUs are seen; ranks that are started by \
         hand on several machines need LOCAL_RANK, too"
    )]
    TooFew {
        /// This rank's number among those of its machine.
        local_rank: usize,
        /// What it sees.
        num_devices: usize,
    },
    /// All is there, and candle cannot open it all the same.
    #[error("device = \"{choice}\" was found and cannot be opened")]
    Open {
        /// What was asked for.
        choice: DeviceChoice,
        /// Candle's reason.
        source: candle_core::Error,
    },
}

/// What was probably meant, on a line of its own.
fn meant(text: &str) -> String {
    let lower = text.to_lowercase();
    let gpu = lower.contains("gpu") || lower.contains("nvidia");
    let near = if gpu {
        Some("cuda")
    } else {
        nearest(&lower, ["cpu", "cuda", "cuda:0"])
    };
    near.map_or_else(String::new, |near| format!("\ntip: did you mean {near}?"))
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let ordinal = |digits: &str| {
            let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            all_digits.then(|| digits.parse::<u16>().ok()).flatten()
        };
        match text {
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(ordinal)
                .map(|ordinal| Self::Cuda(ordinal.into())),
        }
        .ok_or_else(|| DeviceError::Unknown {
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, DeviceError> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

/// Opens the device. A CUDA device gets a stream of its own.
pub fn open(choice: DeviceChoice) -> Result<Device, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(ordinal) => open_cuda(choice, ordinal),
    }
}

/// Opens the device of one of several ranks, which has this number among those of its machine: of
/// the GPUs that it sees the one of that number, or the only one.
pub(crate) fn open_of_rank(choice: DeviceChoice, local_rank: usize) -> Result<Device, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(0) => {
            let ordinal = gpu_of_rank(local_rank, count_gpus(choice)?)?;
            open(DeviceChoice::Cuda(ordinal))
        }
        DeviceChoice::Cuda(_) => Err(DeviceError::OneForAll { choice }),
    }
}

/// Which of so many GPUs a rank takes. Where it sees a single one, whoever started it has given it
/// that one, or all ranks share it.
fn gpu_of_rank(local_rank: usize, num_devices: usize) -> Result<usize, DeviceError> {
    match num_devices {
        1 => Ok(0),
        _ if local_rank < num_devices => Ok(local_rank),
        _ => Err(DeviceError::TooFew {
            local_rank,
            num_devices,
        }),
    }
}

#[cfg(feature = "cuda")]
fn count_gpus(choice: DeviceChoice) -> Result<usize, DeviceError> {
    let counted = nepa_pipeline::cuda::count_devices();
    counted.map_err(|source| DeviceError::Cuda { choice, source })
}

#[cfg(not(feature = "cuda"))]
fn count_gpus(choice: DeviceChoice) -> Result<usize, DeviceError> {
    Err(DeviceError::NoFeature { choice })
}

/// Which GPU it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// As NVIDIA calls it.
    pub name: String,
    /// Of this one alone, in hexadecimal.
    pub uuid: String,
}

/// The GPU behind a device; none for the processor.
pub(crate) fn gpu(choice: DeviceChoice, device: &Device) -> Result<Option<Gpu>, DeviceError> {
    if device.is_cuda() {
        identify(choice, device).map(Some)
    } else {
        Ok(None)
    }
}

#[cfg(feature = "cuda")]
fn identify(choice: DeviceChoice, device: &Device) -> Result<Gpu, DeviceError> {
    let device = device.as_cuda_device();
    let stream = device
        .map_err(|source| DeviceError::Open { choice, source })?
        .cuda_stream();
    let ask = || -> Result<Gpu, cudarc::driver::DriverError> {
        let uuid = stream.context().uuid()?.bytes;
        Ok(Gpu {
            name: stream.context().name()?,
            uuid: uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    };
    let doing = nepa_pipeline::cuda::CudaError::driver("say which GPU it is");
    ask()
        .map_err(doing)
        .map_err(|source| DeviceError::Cuda { choice, source })
}

#[cfg(not(feature = "cuda"))]
fn identify(choice: DeviceChoice, _device: &Device) -> Result<Gpu, DeviceError> {
    Err(DeviceError::NoFeature { choice })
}

#[cfg(feature = "cuda")]
fn open_cuda(choice: DeviceChoice, ordinal: usize) -> Result<Device, DeviceError> {
    let facts = nepa_pipeline::cuda::check_device(ordinal)
        .map_err(|source| DeviceError::Cuda { choice, source })?;
    tracing::info!(
        "cuda:{ordinal} is {}, {:.0} GiB, compute capability {}.{}; its driver supports CUDA {}.{}",
        facts.name,
        facts.memory_bytes as f64 / f64::from(1 << 30),
        facts.compute_capability / 10,
        facts.compute_capability % 10,
        facts.driver_version / 1000,
        facts.driver_version % 1000 / 10
    );
    let opened = Device::new_cuda_with_stream(ordinal);
    let device = opened.map_err(|source| DeviceError::Open { choice, source })?;
    if let Device::Cuda(device) = &device {
        nepa_pipeline::cuda::keep_freed_memory(device.cuda_stream().context())
            .map_err(|source| DeviceError::Cuda { choice, source })?;
    }
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(choice: DeviceChoice, _ordinal: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NoFeature { choice })
}

/// Most TFLOP/s of dense matrix multiplication in bf16, from NVIDIA's data sheets; none for a
/// device that is not in this list.
pub fn peak_tflops(device: &str) -> Option<f64> {
    let is = |part: &str| device.contains(part);
    // The PCIe forms are other chips at other clocks.
    if is("PCIe") && !is("A100") || is("NVL") {
        None
    } else if is("H100") || is("H200") {
        Some(989.0)
    } else if is("A100") {
        Some(312.0)
    } else {
        None
    }
}

/// Processes that share the cores which this one sees.
static SHARING: AtomicUsize = AtomicUsize::new(1);

/// Processor cores that this process may use; of those that several share, its part.
pub(crate) fn cores() -> usize {
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (all / SHARING.load(Ordering::Relaxed)).max(1)
}

/// From now on the cores are shared with others that do the same, so many in all: also by the
/// threads that compute, unless RAYON_NUM_THREADS says how many these are. Called before any of
/// them is there.
pub(crate) fn share_cores(processes: usize) {
    SHARING.store(processes.max(1), Ordering::Relaxed);
    if processes > 1 && std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(cores());
        if let Err(error) = threads.build_global() {
            tracing::debug!("the threads that compute are there already: {error}");
        }
    }
}

/// Bytes in use: of the GPU's memory, by all; of the machine's, by this process. `None` where the
/// system does not say.
pub(crate) fn memory_in_use(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        let (free, total) = cudarc::driver::result::mem_get_info().ok()?;
        return Some(total.saturating_sub(free) as u64);
    }
    let _ = device;
    resident_bytes()
}

/// Bytes of the machine's memory that this process holds. `None` where the system does not say.
pub(crate) fn resident_bytes() -> Option<u64> {
    let this = sysinfo::get_current_pid().ok()?;
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_processes_specifics(
        sysinfo::ProcessesToUpdate::Some(&[this]),
        false,
        sysinfo::ProcessRefreshKind::nothing().with_memory(),
    );
    Some(system.process(this)?.memory())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_read_and_written_alike() {
        for (text, choice) in [
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), text);
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<DeviceChoice>(&json).unwrap(), choice);
        }
        assert_eq!(
            "cuda:0".parse::<DeviceChoice>().unwrap(),
            DeviceChoice::Cuda(0)
        );
    }

    #[test]
    fn an_unknown_word_is_refused_with_the_known_ones() {
        for text in [
            "",
            "gpu",
            "CUDA",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "cuda:99999999",
            "cuda 0",
        ] {
            let error = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("{text:?}")) && error.contains("\"cuda:N\""),
                "{error}"
            );
        }
    }

    #[test]
    fn the_processor_is_always_there() {
        assert!(open(DeviceChoice::Cpu).unwrap().is_cpu());
    }

    #[test]
    fn a_cuda_device_is_opened_or_refused_with_what_to_do() {
        let opened = open(DeviceChoice::Cuda(0));
        let lacks_feature = matches!(opened, Err(DeviceError::NoFeature { .. }));
        assert_eq!(lacks_feature, !HAS_CUDA);
        match opened {
            Ok(device) => assert!(device.is_cuda()),
            Err(error @ DeviceError::NoFeature { .. }) => {
                let error = error.to_string();
                assert!(
                    error.contains("device = \"cuda\"")
                        && error.contains("feature `cuda`")
                        && error.contains("make cuda")
                        && error.contains("device = \"cpu\""),
                    "{error}"
                );
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                assert!(error.contains("on this machine: "), "{error}");
                println!("SKIPPED: {error}");
            }
        }
    }

    #[test]
    fn a_rank_takes_the_gpu_of_its_number_or_the_only_one() {
        for (local_rank, num_devices, expected) in [
            (0, 1, Some(0)),
            (3, 1, Some(0)),
            (0, 4, Some(0)),
            (3, 4, Some(3)),
            (4, 4, None),
            (2, 2, None),
        ] {
            let found = gpu_of_rank(local_rank, num_devices);
            assert_eq!(found.as_ref().ok(), expected.as_ref());
            if let Err(error) = found {
                let error = error.to_string();
                let parts = [
                    format!("number {local_rank} of its machine"),
                    format!("sees {num_devices} GPUs"),
                ];
                for part in &parts {
                    assert!(error.contains(part), "{error}");
                }
            }
        }
    }

    #[test]
    fn several_ranks_do_not_share_a_gpu_by_its_number() {
        let error = open_of_rank(DeviceChoice::Cuda(2), 0).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("\"cuda:2\" names one GPU"), "{error}");
        assert!(open_of_rank(DeviceChoice::Cpu, 1).unwrap().is_cpu());
    }

    #[test]
    fn a_peak_is_known_by_name_or_not_at_all() {
        for (name, peak) in [
            ("NVIDIA H200", Some(989.0)),
            ("NVIDIA H100 80GB HBM3", Some(989.0)),
            ("NVIDIA A100-SXM4-40GB", Some(312.0)),
            ("NVIDIA A100-PCIE-40GB", Some(312.0)),
            ("NVIDIA H100 PCIe", None),
            ("NVIDIA H200 NVL", None),
            ("stand-in for a GPU", None),
        ] {
            assert_eq!(peak_tflops(name), peak, "{name}");
        }
    }
}
