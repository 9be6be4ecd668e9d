//! Decodes on the CPU. An 8-bit crop goes to the device, which normalises it into the batch; a view
//! with an erased box, whose noise is no 8-bit value, goes there as it lies in the batch.
//!
//! What nvJPEG does not take comes this way, what operations or erasing change, and everything
//! where there is no nvJPEG.
use std::fmt::Debug;
use std::sync::Arc;

use half::bf16;

use super::{Accelerator, PixelLayout, PixelType, Target};
use crate::ImageError;
use crate::backend::{BackendError, Decode, ImageDecoder, PlannedImage};
use crate::image::{CpuRenderer, ImageHeader, Normalize, Pixel};

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

/// Where one view lies until it is copied into its slot.
#[derive(Debug)]
struct ViewStaging<A: Accelerator> {
    pinned: A::Pinned,
    copied: A::Event,
}

/// One lane's CPU decoder.
#[derive(Debug)]
pub struct CpuCrops<A: Accelerator> {
    renderer: Box<dyn Render>,
    accelerator: Arc<A>,
    layout: PixelLayout,
    stagings: Vec<Staging<A>>,
    /// Made with the first image that has an erased box: few runs have any.
    view: Option<ViewStaging<A>>,
    next: usize,
}

/// A renderer, whatever its pixels are.
trait Render: Send + Debug {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError>;
    /// The first view as 8-bit RGB, `[S, S, 3]`.
    fn crop(&mut self, image: &PlannedImage<'_>, output: &mut [u8]) -> Result<(), ImageError>;
    /// The first view as it lies in a slot.
    fn view(&mut self, image: &PlannedImage<'_>) -> Result<&[u8], ImageError>;
}

#[derive(Debug)]
struct Renderer<P: Pixel> {
    renderer: CpuRenderer<P>,
    pixels: Vec<P>,
}

impl<P: Pixel> Render for Renderer<P> {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.renderer.read_header(bytes)
    }

    fn crop(&mut self, image: &PlannedImage<'_>, output: &mut [u8]) -> Result<(), ImageError> {
        let (bytes, header) = (image.bytes, image.header);
        self.renderer
            .render_crop(bytes, header, &image.views[0], output)
    }

    fn view(&mut self, image: &PlannedImage<'_>) -> Result<&[u8], ImageError> {
        let view = &image.views[..1];
        let num_values = 3 * (view[0].output_size as usize).pow(2);
        self.pixels.resize(num_values, P::default());
        let output = [&mut self.pixels[..]];
        self.renderer
            .render(image.bytes, image.header, view, output)?;
        Ok(bytemuck::cast_slice(&self.pixels))
    }
}

impl<A: Accelerator> CpuCrops<A> {
    /// A decoder with all the memory that it will need, but for a view's if one has an erased box.
    pub fn new(
        accelerator: &Arc<A>,
        layout: PixelLayout,
        normalize: Normalize,
        exif_orientation: bool,
    ) -> Result<Self, BackendError> {
        fn renderer<P: Pixel>(
            renderer: CpuRenderer<P>,
            patch_size: Option<u32>,
        ) -> Box<dyn Render> {
            let (renderer, pixels) = (renderer.in_patches(patch_size), Vec::new());
            Box::new(Renderer { renderer, pixels })
        }
        let num_bytes = 3 * (layout.image_size as usize).pow(2);
        let staging = |_| {
            Ok(Staging {
                pinned: accelerator.pinned(num_bytes)?,
                crop: accelerator.memory(num_bytes)?,
                converted: accelerator.event()?,
            })
        };
        let (exif, patch_size) = (exif_orientation, layout.patch_size);
        Ok(Self {
            renderer: match layout.pixel_type {
                PixelType::F32 => renderer(CpuRenderer::<f32>::new(normalize, exif), patch_size),
                PixelType::Bf16 => renderer(CpuRenderer::<bf16>::new(normalize, exif), patch_size),
            },
            accelerator: Arc::clone(accelerator),
            layout,
            stagings: (0..CROPS_AHEAD).map(staging).collect::<Result<_, _>>()?,
            view: None,
            next: 0,
        })
    }

    /// Decodes and renders on this thread, enqueues all else.
    pub fn decode_one(
        &mut self,
        image: &PlannedImage<'_>,
        target: &Target<'_, A>,
    ) -> Result<Result<(), ImageError>, BackendError> {
        if image.views[0].erase.is_some() {
            return self.decode_view(image, target);
        }
        let staging = &mut self.stagings[self.next];
        self.accelerator.synchronize(&staging.converted)?;
        let crop = staging.pinned.as_mut();
        if let Err(error) = self.renderer.crop(image, crop) {
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

    /// The same, normalised here.
    fn decode_view(
        &mut self,
        image: &PlannedImage<'_>,
        target: &Target<'_, A>,
    ) -> Result<Result<(), ImageError>, BackendError> {
        let pixels = match self.renderer.view(image) {
            Ok(pixels) => pixels,
            Err(error) => return Ok(Err(error)),
        };
        let staging = match &mut self.view {
            Some(staging) => staging,
            empty => empty.insert(ViewStaging {
                pinned: self.accelerator.pinned(self.layout.slot_bytes())?,
                copied: self.accelerator.event()?,
            }),
        };
        // The last one had the time in which this one was decoded.
        self.accelerator.synchronize(&staging.copied)?;
        staging.pinned.as_mut().copy_from_slice(pixels);
        self.accelerator.place(&staging.pinned, target)?;
        self.accelerator.record(&staging.copied, target.stream)?;
        Ok(Ok(()))
    }
}

impl<'t, A: Accelerator> ImageDecoder<Target<'t, A>> for CpuCrops<A> {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.renderer.header(bytes)
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
