//! Decodes and crops on the CPU; only 8-bit crops go to the device, which normalises them into the
//! batch.
//!
//! What nvJPEG does not take comes this way, and everything where there is no nvJPEG.
use std::sync::Arc;

use super::{Accelerator, PixelLayout, Target};
use crate::ImageError;
use crate::backend::{BackendError, Decode, ImageDecoder, PlannedImage};
use crate::image::ImageHeader;
use crate::image::{CpuRenderer, Normalize};

/// Crops that one thread may have under way; more than one, so that it decodes while the device
/// still copies.
const CROPS_AHEAD: usize = 4;

/// Where one crop lies on both sides until it is converted.
#[derive(Debug)]
struct Staging<A: Accelerator> {
    pinned: A::Pinned,
    crop: A::Memory,
    /// The conversion of the last crop that lay here.
    converted: A::Event,
}

/// One lane's CPU decoder.
#[derive(Debug)]
pub struct CpuCrops<A: Accelerator> {
    renderer: CpuRenderer,
    accelerator: Arc<A>,
    stagings: Vec<Staging<A>>,
    next: usize,
}

impl<A: Accelerator> CpuCrops<A> {
    /// A decoder with all the memory that it will need.
    pub fn new(
        accelerator: &Arc<A>,
        layout: PixelLayout,
        exif_orientation: bool,
    ) -> Result<Self, BackendError> {
        let num_bytes = 3 * (layout.image_size as usize).pow(2);
        let staging = |_| {
            Ok(Staging {
                pinned: accelerator.pinned(num_bytes)?,
                crop: accelerator.memory(num_bytes)?,
                converted: accelerator.event()?,
            })
        };
        Ok(Self {
            renderer: CpuRenderer::new(Normalize::default(), exif_orientation),
            accelerator: Arc::clone(accelerator),
            stagings: (0..CROPS_AHEAD).map(staging).collect::<Result<_, _>>()?,
            next: 0,
        })
    }
}

impl<A: Accelerator> CpuCrops<A> {
    /// Decodes and crops on this thread, enqueues all else.
    pub fn decode_one(
        &mut self,
        image: &PlannedImage<'_>,
        target: &Target<'_, A>,
    ) -> Result<Result<(), ImageError>, BackendError> {
        let staging = &mut self.stagings[self.next];
        self.accelerator.synchronize(&staging.converted)?;
        let crop = staging.pinned.as_mut();
        let view = &image.views[0];
        if let Err(error) = self
            .renderer
            .render_crop(image.bytes, image.header, view, crop)
        {
            return Ok(Err(error));
        }
        // Only now is it used: after a bad image the same one is taken again.
        self.next = (self.next + 1) % CROPS_AHEAD;
        let stream = target.stream;
        self.accelerator
            .upload(&staging.pinned, &staging.crop, stream)?;
        self.accelerator.convert(&staging.crop, target)?;
        self.accelerator.record(&staging.converted, stream)?;
        Ok(Ok(()))
    }
}

impl<'t, A: Accelerator> ImageDecoder<Target<'t, A>> for CpuCrops<A> {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.renderer.read_header(bytes)
    }

    fn decode(&mut self, images: &mut [Decode<'_, Target<'t, A>>]) -> Result<(), BackendError> {
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
