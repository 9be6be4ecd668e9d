//! The threads that feed the device's JPEG engines. Each has its own state and memory, and waits on
//! the host for its call.
//!
//! On an H100 the engines write when they are called, whatever the stream still waits for; that is
//! why a call begins only when nothing on the device uses the memory that it writes, and why two
//! calls in flight need two threads.
use std::sync::Arc;

use super::CudaAccelerator;
use super::accelerator::{CudaEvent, CudaMemory, CudaPinned, CudaStreamRef};
use super::image_memory::WarmUp;
use super::nvjpeg::{BatchedDecoder, Destination, LargestCall, Library, NvjpegError};
use super::shared::{Shared, failed, stored_size};
use crate::ImageError;
use crate::backend::device::engine_rules::Blame;
use crate::backend::device::{Accelerator, IMAGES_A_CALL, StoredPixels, Target};
use crate::backend::{BackendError, Decode, ImageDecoder, PlannedImage};
use crate::image::{Decoder, ImageHeader, PixelRect};
use crate::stats::{JpegEngine, RefusalPhase};

/// Feeds the engines from one thread.
#[derive(Debug)]
pub(super) struct CudaBatchDecoder {
    /// The first to be dropped: that waits for the device, which may still work with what is below.
    images: Vec<CudaMemory>,
    decoder: BatchedDecoder,
    done: CudaEvent,
    sentinel: Option<Sentinel>,
    shared: Arc<Shared>,
    accelerator: Arc<CudaAccelerator>,
}

/// Bytes that no image has at its end, to see whether anything was written there.
#[derive(Debug)]
struct Sentinel(CudaPinned);

const SENTINEL: [u8; 16] = *b"\x9d\x03never\xc4\x11written";

/// An image of a call.
type Image<'a, 't> = Decode<'a, Target<'t, CudaAccelerator>>;

impl<'t> ImageDecoder<Target<'t, CudaAccelerator>> for CudaBatchDecoder {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        Decoder::default().header(bytes, self.shared.config.exif_orientation)
    }

    fn max_images(&self) -> usize {
        IMAGES_A_CALL
    }

    fn decode(&mut self, images: &mut [Image<'_, 't>]) -> Result<(), BackendError> {
        // Those of all targets of a call are the same.
        let Some(stream) = images.first().map(|image| image.slot.stream) else {
            return Ok(());
        };
        self.accelerator.bind()?;
        let decoded = self.decode_part(images, 0, stream);
        // After an error too: the files are the caller's, and nvJPEG reads them until the device is
        // done; and the engines may write into the images as soon as they are called again, whoever
        // still crops from them.
        let settled = self.accelerator.settle(&self.done, stream);
        decoded?;
        settled?;
        let num_decoded = images.iter().filter(|image| image.result.is_ok()).count();
        self.shared
            .counters
            .decoded(JpegEngine::Hardware, num_decoded);
        Ok(())
    }
}

impl CudaBatchDecoder {
    /// A decoder that has taken its memory.
    pub(super) fn new(
        library: &Arc<Library>,
        accelerator: &Arc<CudaAccelerator>,
        warm_up: &WarmUp,
        shared: &Arc<Shared>,
    ) -> Result<Self, BackendError> {
        let largest = LargestCall {
            num_images: IMAGES_A_CALL,
            width: shared.config.largest[0] as usize,
            height: shared.config.largest[1] as usize,
        };
        let sentinel = || {
            let mut pinned = accelerator.pinned(SENTINEL.len())?;
            pinned.as_mut().copy_from_slice(&SENTINEL);
            Ok(Sentinel(pinned))
        };
        let mut batch = Self {
            images: (0..IMAGES_A_CALL)
                .map(|_| accelerator.memory(shared.config.image_bytes()))
                .collect::<Result<_, _>>()?,
            decoder: BatchedDecoder::new(library, largest).map_err(failed)?,
            done: accelerator.event()?,
            sentinel: shared.config.verify_hardware.then(sentinel).transpose()?,
            shared: Arc::clone(shared),
            accelerator: Arc::clone(accelerator),
        };
        // The smooth image alone: a full call of noise would take 640 MB for files that no call of
        // photos comes near.
        batch
            .warm_up(&warm_up.smooth, &accelerator.stream()?)?
            .map_err(failed)?;
        Ok(batch)
    }

    /// A full call of largest images.
    fn warm_up(
        &mut self,
        file: &[u8],
        stream: &CudaStreamRef,
    ) -> Result<Result<(), NvjpegError>, BackendError> {
        let width = self.shared.config.largest[0];
        let destinations = self.images.iter().map(|image| Destination {
            start: image.start(),
            width,
        });
        let destinations = destinations.collect::<Vec<_>>();
        let files = vec![file; destinations.len()];
        // SAFETY: each memory holds an image of this size and nothing uses it; it and the file
        // outlive the wait.
        let decoded = unsafe { self.call(&files, &destinations, stream) };
        self.accelerator.settle(&self.done, stream)?;
        decoded
    }

    /// One call of nvJPEG, with all waits that it needs. The inner error is nvJPEG's, on a device
    /// that works; then nothing is under way any more.
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
            // SAFETY: set up above or for the call before, which was waited for; the caller answers
            // for the rest.
            decoded = unsafe { self.decoder.decode(files, destinations, stream) };
        }
        if decoded.is_err() {
            // Part of it may be under way. Where this wait succeeds, the device is healthy.
            accelerator.settle(&self.done, stream)?;
        }
        Ok(decoded)
    }

    /// Decodes some images of a call, from number `first` on, in one call. Where that fails, both
    /// halves alone, down to the image that is to blame.
    fn decode_part(
        &mut self,
        images: &mut [Image<'_, '_>],
        first: usize,
        stream: &CudaStreamRef,
    ) -> Result<(), BackendError> {
        let files = images.iter().map(|image| &image.image.bytes[..]);
        let files = files.collect::<Vec<_>>();
        // Each image of the whole call has memory of its own: those before are still being cropped.
        let memories = &self.images[first..first + images.len()];
        let destinations = images
            .iter()
            .zip(memories)
            .map(|(image, memory)| Destination {
                start: memory.start(),
                width: stored_size(&image.image.header).0,
            })
            .collect::<Vec<_>>();
        self.mark(images, &destinations, stream)?;
        self.shared.counters.call(images.len());
        // SAFETY: only images of at most the largest size come here, and each memory holds one; the
        // last `decode` waited for the crops from it, and this one has enqueued none yet; files and
        // memory stay until `decode` has waited for the stream.
        let decoded = unsafe { self.call(&files, &destinations, stream)? };
        match decoded {
            Ok(()) => {
                let written = self.written(images, &destinations, stream)?;
                let jobs = images
                    .iter()
                    .zip(&destinations)
                    .zip(&written)
                    .filter(|(_, written)| **written)
                    .map(|((image, destination), _)| {
                        let size = stored_size(&image.image.header);
                        let whole = PixelRect::whole(size.0, size.1);
                        let pixels = StoredPixels::of_part(destination.start, whole, size);
                        CudaAccelerator::crop_job(&image.image, pixels, image.slot)
                    })
                    .collect::<Vec<_>>();
                let layout = images[0].slot.layout;
                // SAFETY: the images were decoded into memory that is large enough, the targets are
                // slots of the layout.
                unsafe { self.accelerator.launch_crops(&jobs, layout, stream)? };
                for (image, written) in images.iter_mut().zip(written) {
                    image.result = self.result(written);
                }
                Ok(())
            }
            // No image is to blame, so that looking for it is in vain.
            Err(refusal) if refusal.blame() == Blame::Surroundings => {
                self.shared.refused(JpegEngine::Hardware, &refusal);
                Err(failed(refusal))
            }
            Err(refusal) if images.len() == 1 => {
                self.shared.refused(JpegEngine::Hardware, &refusal);
                images[0].result = Err(ImageError::Device {
                    reason: refusal.to_string(),
                });
                Ok(())
            }
            Err(_) => {
                let middle = images.len() / 2;
                let (before, after) = images.split_at_mut(middle);
                self.decode_part(before, first, stream)?;
                // The state has one batch under way at a time.
                self.accelerator.settle(&self.done, stream)?;
                self.decode_part(after, first + middle, stream)
            }
        }
    }

    /// An image's result, of which the engines said that it is decoded.
    fn result(&self, written: bool) -> Result<(), ImageError> {
        if written {
            return Ok(());
        }
        let counters = &self.shared.counters;
        counters.refused(JpegEngine::Hardware, RefusalPhase::Skipped, 0);
        Err(ImageError::Device {
            reason: "the JPEG engines reported success and wrote no pixels".to_owned(),
        })
    }

    /// Puts the sentinel at the end of each image, if images are checked, and waits until it is
    /// there.
    fn mark(
        &self,
        images: &[Image<'_, '_>],
        destinations: &[Destination],
        stream: &CudaStreamRef,
    ) -> Result<(), BackendError> {
        let Some(Sentinel(pinned)) = &self.sentinel else {
            return Ok(());
        };
        for (image, destination) in images.iter().zip(destinations) {
            if let Some(end) = end_of(&image.image, destination) {
                // SAFETY: the bytes lie inside of this decoder's own image; both ends stay, as
                // dropping either waits for the device.
                unsafe { self.accelerator.upload_to(pinned, end, stream)? };
            }
        }
        self.accelerator.settle(&self.done, stream)
    }

    /// By image, whether the engines have written its end; true where that is not checked.
    fn written(
        &self,
        images: &[Image<'_, '_>],
        destinations: &[Destination],
        stream: &CudaStreamRef,
    ) -> Result<Vec<bool>, BackendError> {
        if self.sentinel.is_none() {
            return Ok(vec![true; images.len()]);
        }
        self.accelerator.settle(&self.done, stream)?;
        let found = |(image, destination): (&Image<'_, '_>, &Destination)| {
            let Some(end) = end_of(&image.image, destination) else {
                return Ok(true);
            };
            let mut bytes = [0; SENTINEL.len()];
            // SAFETY: the bytes lie inside of this decoder's own image, and nothing writes them any
            // more.
            unsafe { self.accelerator.download_from(end, &mut bytes)? };
            Ok(bytes != SENTINEL)
        };
        images.iter().zip(destinations).map(found).collect()
    }
}

/// Address of the last bytes of an image, as many as the sentinel has; `None` if the image has
/// fewer.
fn end_of(image: &PlannedImage<'_>, destination: &Destination) -> Option<u64> {
    let (width, height) = stored_size(&image.header);
    let num_bytes = 3 * u64::from(width) * u64::from(height);
    let before = num_bytes.checked_sub(SENTINEL.len() as u64)?;
    Some(destination.start + before)
}
