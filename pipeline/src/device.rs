//! Batches in device memory: slots that decode threads fill on streams of their own, and the order of all that touches them.
//!
//! Nothing here knows CUDA. [`Accelerator`] is what is asked of a device; the order of work is decided in this file alone:
//! a writer waits for the slot's writer before it and for the consumer that had the batch last; the consumer waits for every
//! writer of its batch. All memory, pinned buffers, streams and events are made before the first image.
use std::fmt::Debug;
use std::sync::Arc;

use crate::ImageError;
use crate::backend::{
    BackendError, BatchRenderer, ImageBackend, PlannedImage, RenderError, Renderer,
};
use crate::batch::Batch;
use crate::image_decode::ImageHeader;

mod cpu_crops;
pub mod engine_rules;
mod kernel_arguments;

pub use cpu_crops::{CpuCrops, CpuCropsDecoder, NoBatchDecoder};
pub use kernel_arguments::{CropJob, Normalization, StoredPixels};

/// Type of a pixel value in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PixelType {
    /// 32-bit float.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
}

impl PixelType {
    /// Bytes of one value.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// How the pixels of one sample lie in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelLayout {
    /// Type of the values.
    pub pixel_type: PixelType,
    /// Side S of the square image in pixels.
    pub image_size: u32,
    /// `None`: `[3, S, S]`. `Some(p)`: `[P, 3 * p * p]`, the P = (S / p)^2 patches row by row, each `[3, p, p]`.
    pub patch_size: Option<u32>,
}

impl PixelLayout {
    /// Bytes of one slot.
    pub fn slot_bytes(&self) -> usize {
        3 * (self.image_size as usize).pow(2) * self.pixel_type.num_bytes()
    }
}

/// Where the pixels of one sample go.
#[derive(Debug)]
pub struct Target<'a, A: Accelerator> {
    /// Memory of the whole batch.
    pub memory: &'a A::Memory,
    /// Start of the slot in it.
    pub offset_bytes: usize,
    /// How the pixels lie.
    pub layout: PixelLayout,
}

/// A device with streams of asynchronous work.
///
/// Work on one stream runs in the order in which it was enqueued; between streams only events order it. All calls but
/// [`Self::synchronize`] return at once.
pub trait Accelerator: Send + Sync + Debug + 'static {
    /// A queue of work.
    type Stream: Send + Sync + Debug;
    /// A point in a stream. Waiting for one that was never recorded is no wait.
    type Event: Send + Sync + Debug;
    /// Host memory that the device reads directly (page-locked).
    type Pinned: AsMut<[u8]> + Send + Debug;
    /// Device memory. Dropping it waits until nothing uses it any more.
    type Memory: Send + Sync + Debug;

    /// A new stream.
    fn stream(&self) -> Result<Self::Stream, BackendError>;
    /// A new event.
    fn event(&self) -> Result<Self::Event, BackendError>;
    /// Page-locked memory.
    fn pinned(&self, num_bytes: usize) -> Result<Self::Pinned, BackendError>;
    /// Device memory.
    fn memory(&self, num_bytes: usize) -> Result<Self::Memory, BackendError>;

    /// Enqueues a copy of all of `from` to the start of `to`.
    fn upload(
        &self,
        from: &Self::Pinned,
        to: &Self::Memory,
        stream: &Self::Stream,
    ) -> Result<(), BackendError>;
    /// Enqueues the conversion of a crop, u8 `[S, S, 3]` at the start of `crop`, to normalised pixels.
    fn convert(
        &self,
        crop: &Self::Memory,
        target: &Target<'_, Self>,
        stream: &Self::Stream,
    ) -> Result<(), BackendError>
    where
        Self: Sized;

    /// Marks the end of what is enqueued on `stream` so far.
    fn record(&self, event: &Self::Event, stream: &Self::Stream) -> Result<(), BackendError>;
    /// What is enqueued on `stream` from now on comes after what `event` marks now.
    fn wait(&self, stream: &Self::Stream, event: &Self::Event) -> Result<(), BackendError>;
    /// Blocks this thread until what `event` marks is done.
    fn synchronize(&self, event: &Self::Event) -> Result<(), BackendError>;
}

/// Decodes one image at a time into device memory; each decode thread has one.
pub trait DeviceDecoder<A: Accelerator>: Send {
    /// Reads the header, with the orientation that counts.
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError>;

    /// Enqueues on `stream` all that fills the target.
    fn decode(
        &mut self,
        image: PlannedImage<'_>,
        target: &Target<'_, A>,
        stream: &A::Stream,
    ) -> Result<(), RenderError>;
}

/// Decodes many images in one call into device memory.
pub trait DeviceBatchDecoder<A: Accelerator>: Send {
    /// Most images in one call.
    fn max_images(&self) -> usize;

    /// Enqueues on `stream` all that fills the targets; one result an image.
    fn decode(
        &mut self,
        images: &[(PlannedImage<'_>, Target<'_, A>)],
        stream: &A::Stream,
    ) -> Result<Vec<Result<(), ImageError>>, BackendError>;
}

/// Makes the decoders of one kind of device.
pub trait DeviceDecoders<A: Accelerator>: Send + Sync + Debug + 'static {
    /// A decode thread's.
    type Decoder: DeviceDecoder<A>;
    /// The batch decoder.
    type BatchDecoder: DeviceBatchDecoder<A>;

    /// A decoder for one thread.
    fn decoder(
        &self,
        accelerator: &Arc<A>,
        layout: PixelLayout,
    ) -> Result<Self::Decoder, BackendError>;
    /// The batch decoder, if there is one.
    fn batch_decoder(
        &self,
        accelerator: &Arc<A>,
        layout: PixelLayout,
    ) -> Result<Option<Self::BatchDecoder>, BackendError>;
    /// Whether the batch decoder takes such an image.
    fn batch_accepts(&self, image: &PlannedImage<'_>) -> bool;
}

/// Fills batches in device memory, for a consumer whose work is enqueued on one stream.
#[derive(Debug)]
pub struct DeviceBackend<A: Accelerator, D> {
    accelerator: Arc<A>,
    decoders: D,
    layout: PixelLayout,
    consumer: A::Stream,
}

/// Device memory of one batch.
#[derive(Debug)]
struct BatchMemory<A: Accelerator> {
    memory: A::Memory,
    /// The consumer's last use of it.
    released: A::Event,
}

/// One sample's place in a batch in device memory.
#[derive(Debug)]
pub struct DeviceSlot<A: Accelerator> {
    batch: Arc<BatchMemory<A>>,
    offset_bytes: usize,
    layout: PixelLayout,
    /// The last write, on whichever stream it was.
    written: A::Event,
}

impl<A: Accelerator> DeviceSlot<A> {
    fn target(&self) -> Target<'_, A> {
        Target {
            memory: &self.batch.memory,
            offset_bytes: self.offset_bytes,
            layout: self.layout,
        }
    }

    /// What is enqueued on `stream` from now on may write the slot.
    fn before_write(&self, accelerator: &A, stream: &A::Stream) -> Result<(), BackendError> {
        accelerator.wait(stream, &self.batch.released)?;
        // Another stream may have written here for a batch that was given up, or failed half way through an image.
        accelerator.wait(stream, &self.written)
    }
}

impl<A: Accelerator, D> DeviceBackend<A, D> {
    /// A backend whose batches are used by work on `consumer`.
    pub fn new(accelerator: Arc<A>, decoders: D, layout: PixelLayout, consumer: A::Stream) -> Self {
        Self {
            accelerator,
            decoders,
            layout,
            consumer,
        }
    }

    /// The device.
    pub fn accelerator(&self) -> &A {
        &self.accelerator
    }

    /// The stream of the consumer's work.
    pub fn consumer(&self) -> &A::Stream {
        &self.consumer
    }
}

impl<A: Accelerator, D: DeviceDecoders<A>> Batch<DeviceBackend<A, D>> {
    /// Device memory of the batch, `[B, ...]` as [`PixelLayout`] says, B being the batch size of the loader. Work on the
    /// consumer's stream may read it until the batch is dropped.
    pub fn memory(&self) -> &A::Memory {
        &self.slots()[0].batch.memory
    }
}

impl<A: Accelerator, D: DeviceDecoders<A>> ImageBackend for DeviceBackend<A, D> {
    type Slot = DeviceSlot<A>;
    type Renderer = DeviceRenderer<A, D::Decoder>;
    type BatchRenderer = DeviceBatchRenderer<A, D::BatchDecoder>;

    fn slots(&self, batch_size: usize, sides: &[u32]) -> Result<Vec<DeviceSlot<A>>, BackendError> {
        assert_eq!(
            sides,
            [self.layout.image_size],
            "the augmentation and the layout give the image another size"
        );
        let slot_bytes = self.layout.slot_bytes();
        let batch = Arc::new(BatchMemory {
            memory: self.accelerator.memory(batch_size * slot_bytes)?,
            released: self.accelerator.event()?,
        });
        let slot = |position| {
            Ok(DeviceSlot {
                batch: Arc::clone(&batch),
                offset_bytes: position * slot_bytes,
                layout: self.layout,
                written: self.accelerator.event()?,
            })
        };
        (0..batch_size).map(slot).collect()
    }

    fn renderer(&self) -> Result<Self::Renderer, BackendError> {
        Ok(DeviceRenderer {
            decoder: self.decoders.decoder(&self.accelerator, self.layout)?,
            stream: self.accelerator.stream()?,
            accelerator: Arc::clone(&self.accelerator),
        })
    }

    fn batch_renderer(&self) -> Result<Option<Self::BatchRenderer>, BackendError> {
        let decoder = self
            .decoders
            .batch_decoder(&self.accelerator, self.layout)?;
        let Some(decoder) = decoder else {
            return Ok(None);
        };
        Ok(Some(DeviceBatchRenderer {
            decoder,
            stream: self.accelerator.stream()?,
            accelerator: Arc::clone(&self.accelerator),
        }))
    }

    fn batch_accepts(&self, image: &PlannedImage<'_>) -> bool {
        self.decoders.batch_accepts(image)
    }

    fn hand_over(&self, slots: &mut [DeviceSlot<A>]) -> Result<(), BackendError> {
        slots
            .iter()
            .try_for_each(|slot| self.accelerator.wait(&self.consumer, &slot.written))
    }

    fn take_back(&self, slots: &mut [DeviceSlot<A>]) {
        if let Some(slot) = slots.first()
            && let Err(error) = self
                .accelerator
                .record(&slot.batch.released, &self.consumer)
        {
            // The device is lost; the next call on it says so to whoever can end the run.
            tracing::error!("a batch was given back to a failed device: {error}");
        }
    }
}

/// A decode thread's decoder and stream.
#[derive(Debug)]
pub struct DeviceRenderer<A: Accelerator, D> {
    decoder: D,
    stream: A::Stream,
    accelerator: Arc<A>,
}

impl<A: Accelerator, D: DeviceDecoder<A>> Renderer for DeviceRenderer<A, D> {
    type Slot = DeviceSlot<A>;

    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.decoder.header(bytes)
    }

    fn render(
        &mut self,
        image: PlannedImage<'_>,
        slot: &mut DeviceSlot<A>,
    ) -> Result<(), RenderError> {
        slot.before_write(&self.accelerator, &self.stream)?;
        let decoded = self.decoder.decode(image, &slot.target(), &self.stream);
        // After an error too: part of the work may be enqueued already.
        let recorded = self.accelerator.record(&slot.written, &self.stream);
        // The first error is the cause.
        decoded?;
        Ok(recorded?)
    }
}

/// The batch decoder and its stream.
#[derive(Debug)]
pub struct DeviceBatchRenderer<A: Accelerator, D> {
    decoder: D,
    stream: A::Stream,
    accelerator: Arc<A>,
}

impl<A: Accelerator, D: DeviceBatchDecoder<A>> BatchRenderer for DeviceBatchRenderer<A, D> {
    type Slot = DeviceSlot<A>;

    fn max_images(&self) -> usize {
        self.decoder.max_images()
    }

    fn render(
        &mut self,
        images: &mut [(PlannedImage<'_>, &mut DeviceSlot<A>)],
    ) -> Result<Vec<Result<(), ImageError>>, BackendError> {
        for (_, slot) in images.iter() {
            slot.before_write(&self.accelerator, &self.stream)?;
        }
        let targets = images
            .iter()
            .map(|(image, slot)| (*image, slot.target()))
            .collect::<Vec<_>>();
        let decoded = self.decoder.decode(&targets, &self.stream);
        drop(targets);
        let recorded = images
            .iter()
            .try_for_each(|(_, slot)| self.accelerator.record(&slot.written, &self.stream));
        // The first error is the cause.
        let decoded = decoded?;
        recorded?;
        Ok(decoded)
    }
}
