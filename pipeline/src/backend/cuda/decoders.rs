//! Who decodes on a CUDA device: nvJPEG's engines for what they take, the CPU for the rest.
//!
//! Each decode thread has decoders that share an image with the device (Huffman codes here, the
//! rest there) and falls back to the CPU; two threads feed the JPEG engines of the device in
//! batches, where it has them. What nvJPEG refuses, the CPU decodes, and only the CPU's word makes
//! a sample bad; what nvJPEG accepts, no other decoder is asked about, though a stricter one might
//! refuse it.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::CudaAccelerator;
use super::batch::CudaBatchDecoder;
use super::hybrid::Hybrid;
use super::image_memory::WarmUp;
use super::libraries;
use super::nvjpeg::{Backend, Library, NvjpegError, SupportCheck};
use super::shared::{Shared, failed, not_fixed, stored_size};
use crate::ImageError;
use crate::backend::device::engine_rules::{Blame, Patience};
use crate::backend::device::{
    Accelerator, CALLS_AT_ONCE, CpuCrops, DeviceDecoders, EngineConfig, IMAGES_A_THREAD,
    PixelLayout, Target,
};
use crate::backend::{BackendError, Decode, ImageDecoder, PlannedImage};
use crate::image::{ImageFormat, ImageHeader, JpegFacts};
use crate::stats::{DecoderCounters, JpegEngine, RefusalPhase};

/// The decoders of a device: sets nvJPEG up for the engines that are asked for and are there. Says
/// in the log what is not; an error where nvJPEG's hybrid decoder was asked for by name, and not
/// among all engines.
pub fn cuda_decoders(
    accelerator: &CudaAccelerator,
    config: EngineConfig,
) -> Result<DeviceDecoders<CudaAccelerator>, BackendError> {
    let engines = Arc::new(Engines::new(accelerator, config)?);
    let [threads, batches] = [(); 2].map(|()| Arc::clone(&engines));
    let shared = Arc::clone(&engines.shared);
    let counting = Arc::clone(&shared);
    Ok(DeviceDecoders {
        lanes: engines.lanes(),
        decoder: Box::new(move |accelerator, layout| {
            Ok(Box::new(threads.decoder(accelerator, layout)?))
        }),
        batch_decoders: Box::new(move |accelerator, _| {
            let decoders = batches.batch_decoders(accelerator)?.into_iter();
            Ok(decoders.map(|decoder| Box::new(decoder) as _).collect())
        }),
        batch_accepts: Box::new(move |image| {
            facts(image, shared.config.largest_pixels()).is_some_and(|facts| facts.suits_hardware())
        }),
        stats: Box::new(move || Some(counting.counters.read())),
    })
}

/// nvJPEG cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "nvJPEG is not on this machine ({tried}). It is the package nvidia-nvjpeg (PyPI, 6 MB; \
     torchvision for CUDA 13 bundles it, PyTorch alone does not); scripts/cuda-toolkit.sh \
     fetches it to where this program looks, or name the folder of libnvjpeg.so.13 in \
     LD_LIBRARY_PATH"
)]
struct NoNvjpeg {
    tried: String,
}

/// What the decoders of one device are made of.
#[derive(Debug)]
struct Engines {
    hybrid: Option<Arc<Library>>,
    hardware: Option<Arc<Library>>,
    warm_up: Option<WarmUp>,
    shared: Arc<Shared>,
}

impl Engines {
    fn new(accelerator: &CudaAccelerator, config: EngineConfig) -> Result<Self, BackendError> {
        let context = accelerator.bind()?;
        let open = |backend| {
            if let Some(tried) = libraries::Library::Nvjpeg.load_error() {
                return Err(BackendError {
                    doing: "opening nvJPEG",
                    source: Box::new(NoNvjpeg { tried }),
                });
            }
            Library::new(context, backend, config.chroma).map_err(failed)
        };
        let hybrid = match config.hybrid.then(|| open(Backend::Hybrid)).transpose() {
            Ok(library) => library,
            Err(error) if !config.hardware => return Err(error),
            Err(error) => {
                let reason = &error.source;
                tracing::warn!("the decode threads decode JPEGs alone: {reason}");
                None
            }
        };
        let wants_hardware = config.uses_hardware() && hybrid.is_some();
        let hardware = wants_hardware.then(|| with_engines(open(Backend::Hardware)));
        Ok(Self {
            warm_up: hybrid
                .as_ref()
                .map(|_| WarmUp::new(config.largest))
                .transpose()?,
            hybrid,
            hardware: hardware.flatten(),
            shared: Arc::new(Shared {
                config,
                counters: DecoderCounters::default(),
                patience: Patience::default(),
                has_warned: AtomicBool::new(false),
            }),
        })
    }
}

/// The handle for the device's JPEG engines, if there are any; says in the log what is found.
fn with_engines(opened: Result<Arc<Library>, BackendError>) -> Option<Arc<Library>> {
    let counted = opened.and_then(|library| {
        let counts = library.hardware().map_err(failed)?;
        Ok((library, counts))
    });
    let found = match counted {
        Ok((library, (engines, cores))) if engines > 0 => {
            tracing::info!("nvJPEG: {engines} JPEG engines of {cores} cores each");
            return Some(library);
        }
        Ok(_) => "nvJPEG finds no JPEG engines on this device".to_owned(),
        Err(error) => format!("no JPEG engines on this device: {}", error.source),
    };
    tracing::info!(
        "{found}; the decode threads go on without. A100, A30, H100, H200 and newer have them: \
         there, look whether libnvcuvid.so.1 is on this machine, and give a container the driver \
         capability `video` (NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
    );
    None
}

/// The facts of a JPEG of at most so many pixels.
fn facts(image: &PlannedImage<'_>, most_pixels: u64) -> Option<JpegFacts> {
    let pixels = u64::from(image.header.width) * u64::from(image.header.height);
    if image.header.format != ImageFormat::Jpeg || pixels > most_pixels {
        return None;
    }
    // The CPU decoder read the header in its own, forgiving way; where the two do not agree, the
    // image is its.
    JpegFacts::of(image.bytes).filter(|facts| {
        (u32::from(facts.width), u32::from(facts.height)) == stored_size(&image.header)
    })
}

/// A decode thread's decoder, of one of its lanes.
#[derive(Debug)]
struct CudaDecoder {
    cpu: CpuCrops<CudaAccelerator>,
    hybrid: Option<Hybrid>,
    support: Option<SupportCheck>,
    shared: Arc<Shared>,
    accelerator: Arc<CudaAccelerator>,
}

impl<'t> ImageDecoder<Target<'t, CudaAccelerator>> for CudaDecoder {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.cpu.header(bytes)
    }

    fn suits_batch(&mut self, image: &PlannedImage<'_>) -> bool {
        let Some(support) = &mut self.support else {
            return true;
        };
        match support.check(image.bytes) {
            Ok(()) => true,
            Err(refusal) => {
                self.shared.refused(JpegEngine::Hardware, &refusal);
                false
            }
        }
    }

    fn decode(
        &mut self,
        images: &mut [Decode<'_, Target<'t, CudaAccelerator>>],
    ) -> Result<(), BackendError> {
        for Decode {
            image,
            slot,
            result,
        } in images
        {
            *result = self.decode_one(image, slot)?;
        }
        Ok(())
    }
}

impl CudaDecoder {
    fn decode_one(
        &mut self,
        image: &PlannedImage<'_>,
        target: &Target<'_, CudaAccelerator>,
    ) -> Result<Result<(), ImageError>, BackendError> {
        if !image.changes_pixels() && self.decode_hybrid(image, target)? {
            return Ok(Ok(()));
        }
        let decoded = self.cpu.decode_one(image, target)?;
        if decoded.is_ok() {
            self.shared.counters.decoded_by_cpu();
        }
        Ok(decoded)
    }

    /// Whether the hybrid decoder took the image.
    fn decode_hybrid(
        &mut self,
        image: &PlannedImage<'_>,
        target: &Target<'_, CudaAccelerator>,
    ) -> Result<bool, BackendError> {
        let shared = &self.shared;
        let Some(hybrid) = &mut self.hybrid else {
            return Ok(false);
        };
        if shared.has_given_hybrid_up()
            || !facts(image, shared.config.largest_pixels())
                .is_some_and(|facts| facts.suits_hybrid())
        {
            return Ok(false);
        }
        let mut decoded = hybrid.decode(&self.accelerator, image, target)?;
        if let Err(refusal) = &decoded
            && shared.config.fixed
            && refusal.blame() == Blame::Unclear
        {
            // A second refusal is taken as the file's own; if the first was the moment's, the
            // pixels are the same as without it.
            shared.refused(JpegEngine::Hybrid, refusal);
            decoded = hybrid.decode(&self.accelerator, image, target)?;
        }
        match decoded {
            Ok(()) => {
                shared.patience.decoded();
                shared.counters.decoded(JpegEngine::Hybrid, 1);
                Ok(true)
            }
            Err(refusal) => shared.refused_by_hybrid(&refusal).map(|()| false),
        }
    }
}

/// An error if the device does no work any more.
fn is_healthy(accelerator: &CudaAccelerator) -> Result<(), BackendError> {
    accelerator.settle(&accelerator.event()?, &accelerator.stream()?)
}

impl Engines {
    /// Counts what nvJPEG refused while a decoder was made, and passes the error on if the device
    /// has failed.
    fn refused_setup(
        &self,
        accelerator: &CudaAccelerator,
        engine: JpegEngine,
        error: &BackendError,
    ) -> Result<(), BackendError> {
        if let Some(refusal) = error.source.downcast_ref::<NvjpegError>() {
            self.shared.refused(engine, refusal);
        }
        is_healthy(accelerator)
    }

    /// A lane's hybrid decoder. Where it cannot be made on a device that works, the CPU decodes in
    /// its place.
    fn hybrid_decoder(
        &self,
        accelerator: &Arc<CudaAccelerator>,
    ) -> Result<Option<Hybrid>, BackendError> {
        let (Some(library), Some(warm_up)) = (&self.hybrid, &self.warm_up) else {
            return Ok(None);
        };
        if self.shared.has_given_hybrid_up() {
            return Ok(None);
        }
        let config = self.shared.config;
        let error = match Hybrid::new(library, accelerator, warm_up, config) {
            Ok(hybrid) => return Ok(Some(hybrid)),
            Err(error) => error,
        };
        self.refused_setup(accelerator, JpegEngine::Hybrid, &error)?;
        let refusal = error.source.downcast_ref::<NvjpegError>();
        // It may be the parts that it refuses. Where decoders are fixed that must be its plain
        // answer, which is the same each time.
        let refuses_parts = |refusal: &NvjpegError| {
            let is_answer = refusal.phase == RefusalPhase::Support;
            config.part_only && (!config.fixed || is_answer && refusal.blame() == Blame::Image)
        };
        if refusal.is_some_and(refuses_parts) {
            let whole = EngineConfig {
                part_only: false,
                ..config
            };
            if let Ok(hybrid) = Hybrid::new(library, accelerator, warm_up, whole) {
                if !self.shared.has_warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "nvJPEG does not decode parts of images here ({}) and decodes whole ones, \
                         which takes longer",
                        error.source
                    );
                }
                return Ok(Some(hybrid));
            }
        }
        let what = format!(
            "nvJPEG cannot be set up on a decode thread: {}",
            error.source
        );
        if config.fixed {
            return Err(not_fixed(what));
        }
        // Every thread may come here, and once is enough.
        if !self.shared.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{what}. It decodes JPEGs alone, and so do others that meet the same. Look \
                 whether the device has free memory (nvidia-smi): each decoder takes some 100 \
                 MB, and a thread has {IMAGES_A_THREAD}"
            );
        }
        Ok(None)
    }

    /// Asks for the engines; where it cannot be made they are asked without, and refuse in their
    /// calls.
    fn support_check(&self) -> Option<SupportCheck> {
        let library = self.hardware.as_ref()?;
        match SupportCheck::new(library) {
            Ok(check) => Some(check),
            Err(refusal) => {
                self.shared.refused(JpegEngine::Hardware, &refusal);
                None
            }
        }
    }

    fn lanes(&self) -> usize {
        if self.hybrid.is_some() {
            IMAGES_A_THREAD
        } else {
            1
        }
    }

    fn decoder(
        &self,
        accelerator: &Arc<CudaAccelerator>,
        layout: PixelLayout,
    ) -> Result<CudaDecoder, BackendError> {
        accelerator.bind()?;
        let exif_orientation = self.shared.config.exif_orientation;
        Ok(CudaDecoder {
            cpu: CpuCrops::new(
                accelerator,
                layout,
                accelerator.normalize(),
                exif_orientation,
            )?,
            hybrid: self.hybrid_decoder(accelerator)?,
            support: self.support_check(),
            shared: Arc::clone(&self.shared),
            accelerator: Arc::clone(accelerator),
        })
    }

    fn batch_decoders(
        &self,
        accelerator: &Arc<CudaAccelerator>,
    ) -> Result<Vec<CudaBatchDecoder>, BackendError> {
        let mut decoders = Vec::new();
        let (Some(library), Some(warm_up)) = (&self.hardware, &self.warm_up) else {
            return Ok(decoders);
        };
        accelerator.bind()?;
        while decoders.len() < CALLS_AT_ONCE {
            match CudaBatchDecoder::new(library, accelerator, warm_up, &self.shared) {
                Ok(decoder) => decoders.push(decoder),
                Err(error) => {
                    self.refused_setup(accelerator, JpegEngine::Hardware, &error)?;
                    tracing::warn!(
                        "of {CALLS_AT_ONCE} threads for the device's JPEG engines {} can be set \
                         up: {error}: {}",
                        decoders.len(),
                        error.source
                    );
                    break;
                }
            }
        }
        Ok(decoders)
    }
}
