//! The CPU's backend: each decode thread decodes and renders into ordinary memory.
use std::convert::Infallible;

use super::{BackendError, BatchRenderer, ImageBackend, PlannedImage, RenderError, Renderer};
use crate::ImageError;
use crate::image_decode::ImageHeader;
use crate::render::{CpuRenderer, Normalize};

/// Pixels of one sample, `[3, S, S]`, normalised.
pub type CpuSlot = Vec<f32>;

/// Decodes on the decode threads into `f32` in ordinary memory.
#[derive(Debug, Clone, Copy)]
pub struct CpuBackend {
    /// Normalisation.
    pub normalize: Normalize,
    /// Whether EXIF orientation is applied.
    pub exif_orientation: bool,
}

impl Renderer for CpuRenderer {
    type Slot = CpuSlot;

    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.read_header(bytes)
    }

    fn render(&mut self, image: PlannedImage<'_>, slot: &mut CpuSlot) -> Result<(), RenderError> {
        Ok(self.render_header_and_plan(image.bytes, image.header, &image.plan, slot)?)
    }
}

/// There is none on the CPU.
impl BatchRenderer for Infallible {
    type Slot = CpuSlot;

    fn max_images(&self) -> usize {
        match *self {}
    }

    fn render(
        &mut self,
        _images: &mut [(PlannedImage<'_>, &mut CpuSlot)],
    ) -> Result<Vec<Result<(), ImageError>>, BackendError> {
        match *self {}
    }
}

impl ImageBackend for CpuBackend {
    type Slot = CpuSlot;
    type Renderer = CpuRenderer;
    type BatchRenderer = Infallible;

    fn slots(&self, batch_size: usize, image_size: u32) -> Result<Vec<CpuSlot>, BackendError> {
        Ok(vec![
            vec![0.0; 3 * (image_size as usize).pow(2)];
            batch_size
        ])
    }

    fn renderer(&self) -> Result<CpuRenderer, BackendError> {
        Ok(CpuRenderer::new(self.normalize, self.exif_orientation))
    }

    fn batch_renderer(&self) -> Result<Option<Infallible>, BackendError> {
        Ok(None)
    }

    fn batch_accepts(&self, _image: &PlannedImage<'_>) -> bool {
        false
    }

    fn hand_over(&self, _slots: &mut [CpuSlot]) -> Result<(), BackendError> {
        Ok(())
    }

    fn take_back(&self, _slots: &mut [CpuSlot]) {}
}
