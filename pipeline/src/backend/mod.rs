//! Image backends: who turns encoded images into pixels in a batch's slots.
//!
//! The loader draws plans, keeps order and replaces bad samples; a backend only decodes and applies plans. The CPU's is
//! [`CpuBackend`]; a device's fills slots in device memory and may add a batch decoder, which takes the
//! images that it is faster at (see [`Router`]).

use crate::image::ImageHeader;
use crate::stats::DecoderStats;
use crate::{CropPlan, ImageError};

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
mod router;

pub use cpu::{CpuBackend, CpuSlot};
pub use router::{BatchOutcome, Router, RouterConfig};

/// An encoded image, its header and what is to be made of it.
#[derive(Debug, Clone, Copy)]
pub struct PlannedImage<'a> {
    /// The file's bytes.
    pub bytes: &'a [u8],
    /// What its header says.
    pub header: ImageHeader,
    /// The crop.
    pub plan: CropPlan,
    /// Further views from the same decode; empty but for backends that take them.
    pub more_views: &'a [CropPlan],
}

/// Decodes one image at a time; each decode thread has one.
pub trait Renderer: Send {
    /// Where one sample's pixels go.
    type Slot;

    /// Reads the header, with the orientation that counts for this loader.
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError>;

    /// Whether the batch decoder takes an image that [`ImageBackend::batch_accepts`]; asked before
    /// it is handed over.
    fn suits_batch(&mut self, _image: &PlannedImage<'_>) -> bool {
        true
    }

    /// Decodes and renders into the slot. What it leaves in the slot after an error does not matter.
    fn render(&mut self, image: PlannedImage<'_>, slot: &mut Self::Slot)
    -> Result<(), RenderError>;
}

/// Decodes many images in one call, on a thread of its own.
pub trait BatchRenderer: Send {
    /// Where one sample's pixels go.
    type Slot;

    /// Most images in one call.
    fn max_images(&self) -> usize;

    /// Decodes and renders all; one result an image, in order. An image that fails is given to a decode thread, so an error here
    /// is no verdict on the sample.
    fn render(
        &mut self,
        images: &mut [(PlannedImage<'_>, &mut Self::Slot)],
    ) -> Result<Vec<Result<(), ImageError>>, BackendError>;
}

/// An image was not rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The sample is bad; it is replaced and counted.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The device failed; the run ends.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Who may decode an image.
pub trait ImageBackend: Send + Sync + std::fmt::Debug + 'static {
    /// Where one sample's pixels go; lent to a decode thread and given back.
    type Slot: Send + std::fmt::Debug + 'static;
    /// A decode thread's decoder.
    type Renderer: Renderer<Slot = Self::Slot>;
    /// The batch decoder.
    type BatchRenderer: BatchRenderer<Slot = Self::Slot>;

    /// Slots for one batch of `batch_size` samples of square views with these sides in pixels; one, unless [`Self::takes_more_views`].
    fn slots(&self, batch_size: usize, sides: &[u32]) -> Result<Vec<Self::Slot>, BackendError>;

    /// Whether it renders several views of a sample.
    fn takes_more_views(&self) -> bool {
        false
    }

    /// A decoder for one thread; called on that thread.
    fn renderer(&self) -> Result<Self::Renderer, BackendError>;

    /// The batch decoders, if there are any; called once. All are of one kind and share one queue:
    /// one makes its call while another collects the next.
    fn batch_renderers(&self) -> Result<Vec<Self::BatchRenderer>, BackendError>;

    /// Whether a batch decoder takes such an image, by its header.
    fn batch_accepts(&self, image: &PlannedImage<'_>) -> bool;

    /// Who decoded so far, where several can.
    fn decoder_stats(&self) -> Option<DecoderStats> {
        None
    }

    /// A batch is handed to the consumer: whatever still fills its slots must be done before the consumer's own work.
    fn hand_over(&self, slots: &mut [Self::Slot]) -> Result<(), BackendError>;

    /// The consumer gives all slots of a batch back: whatever it still does with them comes before new pixels.
    fn take_back(&self, slots: &mut [Self::Slot]);
}

/// A device refused something that is not one sample's fault.
#[derive(Debug, thiserror::Error)]
#[error("{doing} failed")]
pub struct BackendError {
    /// What was being done.
    pub doing: &'static str,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl BackendError {
    /// The same once more, for another job that meets it.
    pub(crate) fn repeated(&self) -> Self {
        Self {
            doing: self.doing,
            source: self.source.to_string().into(),
        }
    }
}
