//! Backends: who turns encoded images into pixels, and into whose memory.
//!
//! The loader draws plans, keeps order and replaces bad samples; a backend only decodes and applies
//! plans. The CPU's is [`CpuBackend`]; a device's fills device memory and may add batch decoders,
//! which take the images that they are faster at (see [`Router`]).

use bytes::Bytes;

use crate::image::ImageHeader;
use crate::stats::DecoderStats;
use crate::{CropPlan, ImageError};

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub(crate) mod device;
mod raw;
mod router;

pub use cpu::{CpuBackend, CpuMemory, CpuSlot};
pub use raw::RawBackend;
pub(crate) use router::{BatchOutcome, Router};

/// An encoded image, its header and what is to be made of it.
#[derive(Debug, Clone, Copy)]
pub struct PlannedImage<'a> {
    /// The file's bytes.
    pub bytes: &'a Bytes,
    /// What its header says.
    pub header: ImageHeader,
    /// The crops, one a view; several only for backends that take them.
    pub views: &'a [CropPlan],
}

impl PlannedImage<'_> {
    /// Whether operations or erasing change pixels of any view, which only the processor does.
    pub fn changes_pixels(&self) -> bool {
        self.views.iter().any(CropPlan::changes_pixels)
    }
}

/// An image to decode, where its pixels go, and what became of it.
#[derive(Debug)]
pub struct Decode<'a, S> {
    /// What is to be decoded.
    pub image: PlannedImage<'a>,
    /// Where the pixels go.
    pub slot: &'a mut S,
    /// Set by the decoder where the image cannot be decoded: the sample is bad. What is in the slot
    /// then does not matter.
    pub result: Result<(), ImageError>,
}

impl<'a, S> Decode<'a, S> {
    /// An image that is still to be decoded.
    pub fn new(image: PlannedImage<'a>, slot: &'a mut S) -> Self {
        Self {
            image,
            slot,
            result: Ok(()),
        }
    }
}

/// Decodes images into slots; used by one thread.
pub trait ImageDecoder<S>: Send {
    /// Reads a header, with the orientation that counts for this loader.
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError>;

    /// Most images that one call of [`Self::decode`] takes.
    fn max_images(&self) -> usize {
        1
    }

    /// Whether the batch decoders take an image that [`ImageBackend::batch_accepts`]; asked of a
    /// decode thread's decoder before the image is handed over.
    fn suits_batch(&mut self, _image: &PlannedImage<'_>) -> bool {
        true
    }

    /// Decodes and renders all `images`. An error is the device's, and ends the run where a decode
    /// thread meets it; that of a batch decoder sends its images to the decode threads.
    fn decode(&mut self, images: &mut [Decode<'_, S>]) -> Result<(), BackendError>;
}

/// Who decodes, and where a batch lies.
pub trait ImageBackend: Send + Sync + std::fmt::Debug + 'static {
    /// Memory of one batch.
    type Memory: Send + std::fmt::Debug + 'static;
    /// The part of it that holds one sample; lent to a decode thread and given back.
    type Slot: Send + std::fmt::Debug + 'static;

    /// Memory for `batch_size` samples of square views with these sides in pixels; one view, unless
    /// [`Self::takes_views`].
    fn memory(&self, batch_size: usize, sides: &[u32]) -> Result<Self::Memory, BackendError>;

    /// The slots of a batch, in order.
    fn slots(&self, memory: Self::Memory) -> Vec<Self::Slot>;

    /// The batch that all of these slots, in order, make up.
    fn join(&self, slots: Vec<Self::Slot>) -> Self::Memory;

    /// A decoder for one decode thread; called on that thread.
    fn decoder(&self) -> Result<Box<dyn ImageDecoder<Self::Slot>>, BackendError>;

    /// The batch decoders, each of which gets a thread; called once. All are of one kind and share
    /// one queue: one makes its call while another collects the next.
    fn batch_decoders(&self) -> Result<Vec<Box<dyn ImageDecoder<Self::Slot>>>, BackendError> {
        Ok(Vec::new())
    }

    /// Whether a batch decoder takes such an image, by its header.
    fn batch_accepts(&self, _image: &PlannedImage<'_>) -> bool {
        false
    }

    /// Whether it renders several views of a sample.
    fn takes_views(&self) -> bool {
        false
    }

    /// Who decoded so far, where several can.
    fn decoder_stats(&self) -> Option<DecoderStats> {
        None
    }

    /// A batch, of which these slots are used, is handed to the consumer: whatever still fills them
    /// must be done before the consumer's own work.
    fn hand_over(&self, _slots: &mut [Self::Slot]) -> Result<(), BackendError> {
        Ok(())
    }

    /// The consumer gives a batch back: whatever it still does with it comes before new pixels.
    fn take_back(&self, _memory: &mut Self::Memory) {}
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

/// Refuses views that cannot be cut into such patches.
pub(crate) fn check_patches(patch_size: u32, sides: &[u32]) -> Result<(), BackendError> {
    let divides = |side: u32| patch_size != 0 && side.is_multiple_of(patch_size);
    match sides.iter().find(|side| !divides(**side)) {
        Some(&side) => Err(BackendError {
            doing: "laying out the pixels",
            source: Box::new(UnevenPatches { side, patch_size }),
        }),
        None => Ok(()),
    }
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
