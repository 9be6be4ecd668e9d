//! The CPU's backend: each decode thread decodes and renders into ordinary memory.
use std::convert::Infallible;
use std::marker::PhantomData;

use super::{BackendError, BatchRenderer, ImageBackend, PlannedImage, RenderError, Renderer};
use crate::ImageError;
use crate::image::ImageHeader;
use crate::image::{CpuRenderer, Normalize, Pixel};

/// Pixels of one sample: its views one after the other, `[3, S, S]` each, or cut into patches.
pub type CpuSlot<P = f32> = Vec<P>;

/// Decodes on the decode threads into ordinary memory.
#[derive(Debug, Clone, Copy)]
pub struct CpuBackend<P: Pixel = f32> {
    normalize: Normalize,
    exif_orientation: bool,
    patch_size: Option<u32>,
    pixel: PhantomData<P>,
}

impl<P: Pixel> CpuBackend<P> {
    /// A backend that normalises and, if asked for, applies the EXIF orientation. With `Some(p)` each view is cut into patches:
    /// `[P, 3 * p * p]`, the P = (S / p)^2 patches row by row, each `[3, p, p]`.
    pub fn new(normalize: Normalize, exif_orientation: bool, patch_size: Option<u32>) -> Self {
        Self {
            normalize,
            exif_orientation,
            patch_size,
            pixel: PhantomData,
        }
    }
}

impl<P: Pixel> Renderer for CpuRenderer<P> {
    type Slot = CpuSlot<P>;

    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.read_header(bytes)
    }

    fn render(
        &mut self,
        image: PlannedImage<'_>,
        slot: &mut CpuSlot<P>,
    ) -> Result<(), RenderError> {
        Ok(self.render_views(
            image.bytes,
            image.header,
            image.plan,
            image.more_views,
            slot,
        )?)
    }
}

/// No patch size divides all views.
#[derive(Debug, thiserror::Error)]
#[error(
    "views of {side} x {side} pixels cannot be cut into patches of {patch_size} x {patch_size}"
)]
struct UnevenPatches {
    side: u32,
    patch_size: u32,
}

/// The batch decoder that the CPU has not.
#[derive(Debug)]
pub enum NoBatches<P> {
    /// Never made.
    Never(Infallible, PhantomData<P>),
}

impl<P: Pixel> BatchRenderer for NoBatches<P> {
    type Slot = CpuSlot<P>;

    fn max_images(&self) -> usize {
        match *self {
            Self::Never(never, _) => match never {},
        }
    }

    fn render(
        &mut self,
        _images: &mut [(PlannedImage<'_>, &mut CpuSlot<P>)],
    ) -> Result<Vec<Result<(), ImageError>>, BackendError> {
        match *self {
            Self::Never(never, _) => match never {},
        }
    }
}

impl<P: Pixel> ImageBackend for CpuBackend<P> {
    type Slot = CpuSlot<P>;
    type Renderer = CpuRenderer<P>;
    type BatchRenderer = NoBatches<P>;

    fn slots(&self, batch_size: usize, sides: &[u32]) -> Result<Vec<CpuSlot<P>>, BackendError> {
        if let Some(patch_size) = self.patch_size {
            for &side in sides {
                if patch_size == 0 || !side.is_multiple_of(patch_size) {
                    return Err(BackendError {
                        doing: "laying out the pixels",
                        source: Box::new(UnevenPatches { side, patch_size }),
                    });
                }
            }
        }
        let values = sides.iter().map(|&side| 3 * (side as usize).pow(2)).sum();
        Ok(vec![vec![P::default(); values]; batch_size])
    }

    fn takes_more_views(&self) -> bool {
        true
    }

    fn renderer(&self) -> Result<CpuRenderer<P>, BackendError> {
        Ok(CpuRenderer::new(self.normalize, self.exif_orientation).in_patches(self.patch_size))
    }

    fn batch_renderers(&self) -> Result<Vec<NoBatches<P>>, BackendError> {
        Ok(Vec::new())
    }

    fn batch_accepts(&self, _image: &PlannedImage<'_>) -> bool {
        false
    }

    fn hand_over(&self, _slots: &mut [CpuSlot<P>]) -> Result<(), BackendError> {
        Ok(())
    }

    fn take_back(&self, _slots: &mut [CpuSlot<P>]) {}
}
