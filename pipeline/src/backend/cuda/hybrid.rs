//! nvJPEG's hybrid decoder on a decode thread: Huffman codes on this thread, the rest on the
//! device, then the crop.
use std::sync::Arc;

use super::CudaAccelerator;
use super::accelerator::{CudaEvent, CudaMemory, CudaStreamRef};
use super::image_memory::WarmUp;
use super::nvjpeg::{Backend, DecoupledDecoder, Destination, Library, NvjpegError};
use super::shared::{failed, stored_size};
use crate::backend::device::{Accelerator, EngineConfig, StoredPixels, Target};
use crate::backend::{BackendError, PlannedImage};
use crate::image::PixelRect;

/// One of them; one image at a time is in flight.
#[derive(Debug)]
pub(super) struct Hybrid {
    /// The first to be dropped: that waits for the device, which may still work with what is below.
    image: CudaMemory,
    decoder: DecoupledDecoder,
    /// The last crop from `image`.
    cropped: CudaEvent,
    part_only: bool,
    /// Width and height of the largest image.
    largest: [u32; 2],
}

impl Hybrid {
    /// A decoder that has taken its memory.
    pub(super) fn new(
        library: &Arc<Library>,
        accelerator: &Arc<CudaAccelerator>,
        warm_up: &WarmUp,
        config: EngineConfig,
    ) -> Result<Self, BackendError> {
        let mut hybrid = Self {
            image: accelerator.memory(config.image_bytes())?,
            decoder: DecoupledDecoder::new(library, Backend::Hybrid).map_err(failed)?,
            cropped: accelerator.event()?,
            part_only: config.part_only,
            largest: config.largest,
        };
        let stream = accelerator.stream()?;
        // Both host sides, one after the other.
        for _ in 0..2 {
            hybrid
                .warm_up(accelerator, &warm_up.smooth, &stream)?
                .map_err(failed)?;
        }
        for _ in 0..2 {
            if let Err(refusal) = hybrid.warm_up(accelerator, &warm_up.noise, &stream)? {
                tracing::debug!("{refusal}, an image of noise; memory is taken as images need it");
            }
        }
        Ok(hybrid)
    }

    fn warm_up(
        &mut self,
        accelerator: &CudaAccelerator,
        file: &[u8],
        stream: &CudaStreamRef,
    ) -> Result<Result<(), NvjpegError>, BackendError> {
        // Nearly all of it, and yet a part: where parts are refused, that is to be known now.
        const MARGIN: u32 = 16;
        let [width, height] = self.largest;
        let part = PixelRect {
            left: MARGIN,
            top: MARGIN,
            width: width - 2 * MARGIN,
            height: height - 2 * MARGIN,
        };
        let whole = PixelRect::whole(width, height);
        let part = if self.part_only { part } else { whole };
        let decoded = self.decode_part(accelerator, file, part, stream)?;
        accelerator.settle(&self.cropped, stream)?;
        Ok(decoded)
    }

    /// Enqueues the decoding and the crop of an image that is not too large. The inner error is the
    /// image's, on a device that works: another decoder has the next word on it.
    pub(super) fn decode(
        &mut self,
        accelerator: &CudaAccelerator,
        image: &PlannedImage<'_>,
        target: &Target<'_, CudaAccelerator>,
    ) -> Result<Result<(), NvjpegError>, BackendError> {
        let stream = target.stream;
        let size = stored_size(&image.header);
        let part = if self.part_only {
            PixelRect::read_by(&image.views[0], image.header.orientation, size)
        } else {
            PixelRect::whole(size.0, size.1)
        };
        if let Err(refusal) = self.decode_part(accelerator, image.bytes, part, stream)? {
            return Ok(Err(refusal));
        }
        let pixels = StoredPixels::of_part(self.image.start(), part, size);
        let job = CudaAccelerator::crop_job(image, pixels, target);
        // SAFETY: all that the crop reads was decoded, the target is a slot of the layout, and both
        // stay: dropping either waits.
        unsafe { accelerator.launch_crops(&[job], target.layout, stream)? };
        accelerator.record(&self.cropped, stream)?;
        Ok(Ok(()))
    }

    /// Enqueues the decoding of `part` to the start of `self.image`.
    fn decode_part(
        &mut self,
        accelerator: &CudaAccelerator,
        file: &[u8],
        part: PixelRect,
        stream: &CudaStreamRef,
    ) -> Result<Result<(), NvjpegError>, BackendError> {
        accelerator.bind()?;
        let wanted = self.part_only.then_some(part);
        if let Err(refusal) = self.decoder.decode_on_host(file, wanted) {
            if refusal.blame().needs_proof() {
                accelerator.settle(&self.cropped, stream)?;
            }
            return Ok(Err(refusal));
        }
        accelerator.synchronize(&self.cropped)?;
        let destination = Destination {
            start: self.image.start(),
            width: part.width,
        };
        // SAFETY: the wait just above was for the last image; `image` holds any image of the
        // largest size, is freed only when the device is idle, and is used on the stream of its
        // lane alone.
        let decoded = unsafe { self.decoder.transfer_and_decode(destination, stream) };
        if decoded.is_err() {
            // Part of it may be enqueued, and the decoder must not be used before that is done.
            // Where this wait succeeds, the device is healthy, and it was the image.
            accelerator.settle(&self.cropped, stream)?;
        }
        Ok(decoded)
    }
}
