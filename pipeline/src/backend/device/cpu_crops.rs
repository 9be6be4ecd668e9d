//! Decodes and crops on the CPU; only 8-bit crops go to the device, which normalises them into the batch.
//!
//! What nvJPEG does not take comes this way, and everything where there is no nvJPEG.
use std::convert::Infallible;
use std::sync::Arc;

use super::{Accelerator, DeviceBatchDecoder, DeviceDecoder, DeviceDecoders, PixelLayout, Target};
use crate::ImageError;
use crate::backend::{BackendError, PlannedImage, RenderError};
use crate::image::ImageHeader;
use crate::image::{CpuRenderer, Normalize};

/// Crops that one thread may have under way; more than one, so that it decodes while the device still copies.
const CROPS_AHEAD: usize = 4;

/// Makes CPU decoders whose crops are converted on the device.
#[derive(Debug, Clone, Copy)]
pub struct CpuCrops {
    /// Whether EXIF orientation is applied.
    pub exif_orientation: bool,
}

/// Where one crop lies on both sides until it is converted.
#[derive(Debug)]
struct Staging<A: Accelerator> {
    pinned: A::Pinned,
    crop: A::Memory,
    /// The conversion of the last crop that lay here.
    converted: A::Event,
}

/// One thread's CPU decoder.
#[derive(Debug)]
pub struct CpuCropsDecoder<A: Accelerator> {
    renderer: CpuRenderer,
    accelerator: Arc<A>,
    stagings: Vec<Staging<A>>,
    next: usize,
}

impl<A: Accelerator> CpuCropsDecoder<A> {
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

impl<A: Accelerator> DeviceDecoder<A> for CpuCropsDecoder<A> {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.renderer.read_header(bytes)
    }

    fn decode(
        &mut self,
        image: PlannedImage<'_>,
        target: &Target<'_, A>,
        stream: &A::Stream,
    ) -> Result<(), RenderError> {
        let staging = &mut self.stagings[self.next];
        self.accelerator.synchronize(&staging.converted)?;
        self.renderer.render_crop(
            image.bytes,
            image.header,
            &image.plan,
            staging.pinned.as_mut(),
        )?;
        // Only now is it used: after a bad image the same one is taken again.
        self.next = (self.next + 1) % CROPS_AHEAD;
        self.accelerator
            .upload(&staging.pinned, &staging.crop, stream)?;
        self.accelerator.convert(&staging.crop, target, stream)?;
        self.accelerator.record(&staging.converted, stream)?;
        Ok(())
    }
}

/// There is none.
#[derive(Debug, Clone, Copy)]
pub struct NoBatchDecoder(Infallible);

impl<A: Accelerator> DeviceBatchDecoder<A> for NoBatchDecoder {
    fn max_images(&self) -> usize {
        match self.0 {}
    }

    fn decode(
        &mut self,
        _images: &[(PlannedImage<'_>, Target<'_, A>)],
        _stream: &A::Stream,
    ) -> Result<Vec<Result<(), ImageError>>, BackendError> {
        match self.0 {}
    }
}

impl<A: Accelerator> DeviceDecoders<A> for CpuCrops {
    type Decoder = CpuCropsDecoder<A>;
    type BatchDecoder = NoBatchDecoder;

    fn decoder(
        &self,
        accelerator: &Arc<A>,
        layout: PixelLayout,
    ) -> Result<CpuCropsDecoder<A>, BackendError> {
        CpuCropsDecoder::new(accelerator, layout, self.exif_orientation)
    }

    fn batch_decoders(
        &self,
        _accelerator: &Arc<A>,
        _layout: PixelLayout,
    ) -> Result<Vec<NoBatchDecoder>, BackendError> {
        Ok(Vec::new())
    }

    fn batch_accepts(&self, _image: &PlannedImage<'_>) -> bool {
        false
    }
}
