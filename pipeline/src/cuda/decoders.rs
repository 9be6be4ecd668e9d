//! Who decodes on a CUDA device: nvJPEG's engines for what they take, the CPU for the rest.
//!
//! Each decode thread has a decoder that shares an image with the device (Huffman codes here, the rest there) and falls back to
//! the CPU; one thread feeds the JPEG engines of the device in batches, where it has them. Whether a sample is bad is the CPU
//! decoder's word in every case, so it does not depend on the device.
use std::sync::Arc;

use super::CudaAccelerator;
use super::accelerator::{CudaEvent, CudaMemory, CudaStreamRef, MAX_JOBS};
use super::nvjpeg::{Backend, BatchedDecoder, DecoupledDecoder, Destination, Library, NvjpegError};
use crate::ImageError;
use crate::backend::{BackendError, PlannedImage, RenderError};
use crate::device::engine_rules::{Blame, Patience};
use crate::device::{
    Accelerator, CpuCropsDecoder, DeviceBatchDecoder, DeviceDecoder, DeviceDecoders, PixelLayout,
    Target,
};
use crate::image_decode::PixelRect;
use crate::image_decode::{ImageFormat, ImageHeader, JpegFacts};

/// Most pixels of an image that is decoded on the device; larger ones are rare, and memory for them would lie idle.
const MAX_PIXELS: u64 = (MAX_SIZE.0 * MAX_SIZE.1) as u64;
const MAX_SIZE: (usize, usize) = (2560, 1920);
/// Bytes that an engine may write past the pixels: it works in blocks.
const SLACK_BYTES: usize = 1 << 16;

fn image_bytes() -> usize {
    3 * MAX_PIXELS as usize + SLACK_BYTES
}

/// A JPEG of the largest size and of noise, which codes badly, without subsampling: once a decoder has met it, its buffers are large
/// enough for the run.
fn warm_up_jpeg() -> Result<Vec<u8>, BackendError> {
    let (width, height) = MAX_SIZE;
    let mut number = 1u32;
    let mut noise = || {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (number >> 24) as u8
    };
    let pixels = (0..3 * width * height).map(|_| noise()).collect::<Vec<_>>();
    let image = turbojpeg::Image {
        pixels: pixels.as_slice(),
        width,
        pitch: 3 * width,
        height,
        format: turbojpeg::PixelFormat::RGB,
    };
    let jpeg = turbojpeg::compress(image, 90, turbojpeg::Subsamp::None);
    jpeg.map(|jpeg| jpeg.to_vec())
        .map_err(|error| BackendError {
            doing: "making an image to warm up with",
            source: Box::new(error),
        })
}

/// Which engines are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// The device's JPEG engines, if it has them.
    pub hardware: bool,
    /// nvJPEG on the decode threads.
    pub hybrid: bool,
    /// Whether EXIF orientation is applied.
    pub exif_orientation: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            hardware: true,
            hybrid: true,
            exif_orientation: true,
        }
    }
}

/// Makes the decoders of one device.
#[derive(Debug)]
pub struct CudaDecoders {
    config: EngineConfig,
    hybrid: Option<Arc<Library>>,
    hardware: Option<Arc<Library>>,
    /// Of all decode threads with the hybrid decoder.
    patience: Arc<Patience>,
    warm_up: Vec<u8>,
}

fn failed(error: NvjpegError) -> BackendError {
    BackendError {
        doing: "decoding with nvJPEG",
        source: Box::new(error),
    }
}

impl CudaDecoders {
    /// Sets nvJPEG up for the engines that are asked for and are there. Says in the log what is not.
    pub fn new(accelerator: &CudaAccelerator, config: EngineConfig) -> Result<Self, BackendError> {
        let context = accelerator.bind()?;
        let open = |wanted: bool, backend: Backend, without: &str| {
            let opened = wanted.then(|| Library::new(context, backend)).transpose();
            opened.unwrap_or_else(|error| {
                tracing::warn!("{error}; {without}");
                None
            })
        };
        let hybrid = open(
            config.hybrid,
            Backend::Hybrid,
            "the decode threads decode JPEGs alone",
        );
        let hardware = open(
            config.hardware && hybrid.is_some(),
            Backend::Hardware,
            "the device's JPEG engines are not used",
        );
        let hardware = hardware.filter(|library| match library.hardware() {
            Ok((engines, cores)) if engines > 0 => {
                tracing::info!("nvJPEG: {engines} hardware engines of {cores} cores");
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::info!("{error}: the device's JPEG engines are not used");
                false
            }
        });
        Ok(Self {
            warm_up: if hybrid.is_some() {
                warm_up_jpeg()?
            } else {
                Vec::new()
            },
            config,
            hybrid,
            hardware,
            patience: Arc::default(),
        })
    }
}

/// The facts of a JPEG that is not too large for the device.
fn facts(image: &PlannedImage<'_>) -> Option<JpegFacts> {
    let pixels = u64::from(image.header.width) * u64::from(image.header.height);
    if image.header.format != ImageFormat::Jpeg || pixels > MAX_PIXELS {
        return None;
    }
    // The CPU decoder read the header in its own, forgiving way; where the two do not agree, the image is its.
    JpegFacts::of(image.bytes).filter(|facts| {
        (u32::from(facts.width), u32::from(facts.height)) == stored_size(&image.header)
    })
}

/// Stored width and height.
fn stored_size(header: &ImageHeader) -> (u32, u32) {
    // Swapping twice is not swapping.
    header.orientation.upright_size(header.width, header.height)
}

/// A decode thread's decoder.
#[derive(Debug)]
pub struct CudaDecoder {
    cpu: CpuCropsDecoder<CudaAccelerator>,
    hybrid: Option<Hybrid>,
    patience: Arc<Patience>,
    accelerator: Arc<CudaAccelerator>,
}

/// nvJPEG on one thread.
#[derive(Debug)]
struct Hybrid {
    /// The first to be dropped: that waits for the device, which may still work with what is below.
    image: CudaMemory,
    decoder: DecoupledDecoder,
    /// The last crop from `image`.
    cropped: CudaEvent,
}

impl DeviceDecoder<CudaAccelerator> for CudaDecoder {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.cpu.header(bytes)
    }

    fn decode(
        &mut self,
        image: PlannedImage<'_>,
        target: &Target<'_, CudaAccelerator>,
        stream: &CudaStreamRef,
    ) -> Result<(), RenderError> {
        if let Some(hybrid) = &mut self.hybrid
            && !self.patience.is_given_up()
            && facts(&image).is_some_and(|facts| facts.suits_hybrid())
        {
            match hybrid.decode(&self.accelerator, &image, target, stream)? {
                Ok(()) => {
                    self.patience.decoded();
                    return Ok(());
                }
                Err(refusal) => {
                    tracing::debug!("{refusal}; decoded on the CPU instead");
                    if self.patience.refused(refusal.blame()) {
                        tracing::warn!(
                            "nvJPEG's hybrid decoder refused many images in a row, the last one as follows: {refusal}. It is not \
                             used any more, and the decode threads decode alone. Look whether the device has free memory \
                             (nvidia-smi) and whether libnvjpeg fits the driver"
                        );
                    }
                }
            }
        }
        self.cpu.decode(image, target, stream)
    }
}

impl Hybrid {
    fn new(
        library: &Arc<Library>,
        accelerator: &Arc<CudaAccelerator>,
        warm_up: &[u8],
    ) -> Result<Self, BackendError> {
        let mut hybrid = Self {
            image: accelerator.memory(image_bytes())?,
            decoder: DecoupledDecoder::new(library, Backend::Hybrid).map_err(failed)?,
            cropped: accelerator.event()?,
        };
        let stream = accelerator.stream()?;
        let destination = Destination {
            start: hybrid.image.start(),
            width: MAX_SIZE.0 as u32,
        };
        let whole = PixelRect {
            left: 0,
            top: 0,
            width: MAX_SIZE.0 as u32,
            height: MAX_SIZE.1 as u32,
        };
        // Both host sides, one after the other.
        for _ in 0..2 {
            hybrid
                .decoder
                .decode_on_host(warm_up, whole)
                .map_err(failed)?;
            accelerator.synchronize(&hybrid.cropped)?;
            // SAFETY: the device is done with the last image; this one fits.
            unsafe { hybrid.decoder.transfer_and_decode(destination, &stream) }.map_err(failed)?;
            accelerator.record(&hybrid.cropped, &stream)?;
        }
        accelerator.synchronize(&hybrid.cropped)?;
        Ok(hybrid)
    }

    /// The inner error is the image's, and the CPU has the last word on it.
    fn decode(
        &mut self,
        accelerator: &CudaAccelerator,
        image: &PlannedImage<'_>,
        target: &Target<'_, CudaAccelerator>,
        stream: &CudaStreamRef,
    ) -> Result<Result<(), NvjpegError>, BackendError> {
        accelerator.bind()?;
        let (width, height) = stored_size(&image.header);
        // Only what the crop reads is made, and it lies where it would lie in the whole image: to the kernel there is no difference.
        let part = PixelRect::read_by(&image.plan, image.header.orientation, (width, height));
        let destination = Destination {
            start: self.image.start(),
            width,
        };
        if let Err(refusal) = self.decoder.decode_on_host(image.bytes, part) {
            if refusal.blame().needs_proof() {
                accelerator.settle(&self.cropped, stream)?;
            }
            return Ok(Err(refusal));
        }
        accelerator.synchronize(&self.cropped)?;
        // SAFETY: the wait just above was for the last image; `image` holds any image of MAX_PIXELS, is freed only when the device is
        // idle, and is used on this stream alone.
        let decoded = unsafe {
            self.decoder
                .transfer_and_decode(destination.at(part), stream)
        };
        if let Err(refusal) = decoded {
            // Part of it may be enqueued, and the decoder must not be used before that is done. Where this wait succeeds, the device
            // is healthy, and it was the image.
            accelerator.settle(&self.cropped, stream)?;
            return Ok(Err(refusal));
        }
        let job = CudaAccelerator::crop_job(image, self.image.start(), (width, height), target);
        // SAFETY: the image was decoded into memory that is large enough, the target is a slot of the layout.
        unsafe { accelerator.launch_crops(&[job], target.layout, stream)? };
        accelerator.record(&self.cropped, stream)?;
        Ok(Ok(()))
    }
}

/// The thread that feeds the device's JPEG engines.
#[derive(Debug)]
pub struct CudaBatchDecoder {
    /// The first to be dropped, as in [`Hybrid`].
    images: Vec<CudaMemory>,
    decoder: BatchedDecoder,
    done: CudaEvent,
    accelerator: Arc<CudaAccelerator>,
}

impl DeviceBatchDecoder<CudaAccelerator> for CudaBatchDecoder {
    fn max_images(&self) -> usize {
        MAX_JOBS
    }

    fn decode(
        &mut self,
        images: &[(PlannedImage<'_>, Target<'_, CudaAccelerator>)],
        stream: &CudaStreamRef,
    ) -> Result<Vec<Result<(), ImageError>>, BackendError> {
        self.accelerator.bind()?;
        let mut results = Vec::with_capacity(images.len());
        let decoded = self.decode_part(images, stream, &mut results);
        // After an error too: the files are the caller's, and nvJPEG reads them until the device is done; and the engines may write
        // into the images as soon as they are called again, whoever still crops from them.
        let settled = self.accelerator.settle(&self.done, stream);
        decoded?;
        settled?;
        Ok(results)
    }
}

impl CudaBatchDecoder {
    fn new(
        library: &Arc<Library>,
        accelerator: &Arc<CudaAccelerator>,
    ) -> Result<Self, BackendError> {
        Ok(Self {
            images: (0..MAX_JOBS)
                .map(|_| accelerator.memory(image_bytes()))
                .collect::<Result<_, _>>()?,
            decoder: BatchedDecoder::new(library).map_err(failed)?,
            done: accelerator.event()?,
            accelerator: Arc::clone(accelerator),
        })
    }

    /// A full call of largest images.
    fn warm_up(&mut self, file: &[u8]) -> Result<(), BackendError> {
        let stream = self.accelerator.stream()?;
        let destinations = self.images.iter().map(|image| Destination {
            start: image.start(),
            width: MAX_SIZE.0 as u32,
        });
        let destinations = destinations.collect::<Vec<_>>();
        let files = vec![file; destinations.len()];
        // SAFETY: each memory holds an image of this size; the file outlives `self.call`, and it and the memory outlive the wait.
        let decoded = unsafe { self.call(&files, &destinations, &stream) };
        let settled = self.accelerator.settle(&self.done, &stream);
        decoded?.map_err(failed)?;
        settled
    }

    /// One call of nvJPEG, with all waits that it needs. The inner error is nvJPEG's, on a device that works; then nothing is under
    /// way any more.
    ///
    /// # Safety
    ///
    /// As for [`BatchedDecoder::decode`], but for the state's size and the calls before.
    unsafe fn call(
        &mut self,
        files: &[&[u8]],
        destinations: &[Destination],
        stream: &CudaStreamRef,
    ) -> Result<Result<(), NvjpegError>, BackendError> {
        let accelerator = Arc::clone(&self.accelerator);
        let mut decoded = Ok(());
        if !self.decoder.is_set_up_for(files.len()) {
            accelerator.settle(&self.done, stream)?;
            // SAFETY: the device was just waited for.
            decoded = unsafe { self.decoder.set_up(files.len()) };
        }
        if decoded.is_ok() {
            // SAFETY: set up above or for the call before, which was waited for; the caller answers for the rest.
            decoded = unsafe { self.decoder.decode(files, destinations, stream) };
        }
        if decoded.is_err() {
            // Part of it may be under way. Where this wait succeeds, the device is healthy.
            accelerator.settle(&self.done, stream)?;
            // SAFETY: the device was just waited for.
            unsafe { self.decoder.reset() }.map_err(failed)?;
        }
        Ok(decoded)
    }

    /// Decodes some images in one call. Where that fails, both halves alone, down to the image that is to blame.
    fn decode_part(
        &mut self,
        images: &[(PlannedImage<'_>, Target<'_, CudaAccelerator>)],
        stream: &CudaStreamRef,
        results: &mut Vec<Result<(), ImageError>>,
    ) -> Result<(), BackendError> {
        let files = images
            .iter()
            .map(|(image, _)| image.bytes)
            .collect::<Vec<_>>();
        // Each image of the whole call has memory of its own: those before are still being cropped.
        let memories = &self.images[results.len()..results.len() + images.len()];
        let destinations = images
            .iter()
            .zip(memories)
            .map(|((image, _), memory)| Destination {
                start: memory.start(),
                width: stored_size(&image.header).0,
            })
            .collect::<Vec<_>>();
        // SAFETY: only images of at most MAX_PIXELS come here, and each memory holds one; `decode` waited for the crops from them, or
        // none was made; files and memory stay until `decode` has waited for the stream.
        let decoded = unsafe { self.call(&files, &destinations, stream)? };
        match decoded {
            Ok(()) => {
                let jobs = images
                    .iter()
                    .zip(&destinations)
                    .map(|((image, target), destination)| {
                        let size = stored_size(&image.header);
                        CudaAccelerator::crop_job(image, destination.start, size, target)
                    })
                    .collect::<Vec<_>>();
                let layout = images[0].1.layout;
                // SAFETY: the images were decoded into memory that is large enough, the targets are slots of the layout.
                unsafe { self.accelerator.launch_crops(&jobs, layout, stream)? };
                results.extend(images.iter().map(|_| Ok(())));
                Ok(())
            }
            // No image is to blame, so that looking for it is in vain.
            Err(error) if error.blame() == Blame::Surroundings => Err(failed(error)),
            Err(error) if images.len() == 1 => {
                results.push(Err(ImageError::Device {
                    reason: error.to_string(),
                }));
                Ok(())
            }
            Err(_) => {
                let (first, second) = images.split_at(images.len() / 2);
                self.decode_part(first, stream, results)?;
                self.decode_part(second, stream, results)
            }
        }
    }
}

/// An error if the device does no work any more.
fn is_healthy(accelerator: &CudaAccelerator) -> Result<(), BackendError> {
    accelerator.settle(&accelerator.event()?, &accelerator.stream()?)
}

impl CudaDecoders {
    /// A thread's hybrid decoder. Where it cannot be made on a device that works, the CPU decodes in its place.
    fn hybrid_decoder(
        &self,
        accelerator: &Arc<CudaAccelerator>,
    ) -> Result<Option<Hybrid>, BackendError> {
        let Some(library) = &self.hybrid else {
            return Ok(None);
        };
        if self.patience.is_given_up() {
            return Ok(None);
        }
        let error = match Hybrid::new(library, accelerator, &self.warm_up) {
            Ok(hybrid) => return Ok(Some(hybrid)),
            Err(error) => error,
        };
        is_healthy(accelerator)?;
        tracing::warn!(
            "a decode thread goes on without nvJPEG and decodes JPEGs alone: {error}: {}. Look whether the device has free memory \
             (nvidia-smi): the decoder of each thread takes some 100 MB",
            error.source
        );
        Ok(None)
    }
}

impl DeviceDecoders<CudaAccelerator> for CudaDecoders {
    type Decoder = CudaDecoder;
    type BatchDecoder = CudaBatchDecoder;

    fn decoder(
        &self,
        accelerator: &Arc<CudaAccelerator>,
        layout: PixelLayout,
    ) -> Result<CudaDecoder, BackendError> {
        accelerator.bind()?;
        Ok(CudaDecoder {
            cpu: CpuCropsDecoder::new(accelerator, layout, self.config.exif_orientation)?,
            hybrid: self.hybrid_decoder(accelerator)?,
            patience: Arc::clone(&self.patience),
            accelerator: Arc::clone(accelerator),
        })
    }

    fn batch_decoder(
        &self,
        accelerator: &Arc<CudaAccelerator>,
        _layout: PixelLayout,
    ) -> Result<Option<CudaBatchDecoder>, BackendError> {
        let Some(library) = &self.hardware else {
            return Ok(None);
        };
        accelerator.bind()?;
        let made = CudaBatchDecoder::new(library, accelerator).and_then(|mut batch| {
            batch.warm_up(&self.warm_up)?;
            Ok(batch)
        });
        let error = match made {
            Ok(batch) => return Ok(Some(batch)),
            Err(error) => error,
        };
        is_healthy(accelerator)?;
        tracing::warn!(
            "the device's JPEG engines are not used: {error}: {}",
            error.source
        );
        Ok(None)
    }

    fn batch_accepts(&self, image: &PlannedImage<'_>) -> bool {
        facts(image).is_some_and(|facts| facts.suits_hardware())
    }
}
