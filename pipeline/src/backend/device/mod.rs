//! Batches in device memory: slots that decode threads fill on streams of their own, and the order of all that touches them.
//!
//! Nothing here knows CUDA. [`Accelerator`] is what is asked of a device; the order of work is decided in this file alone:
//! a writer waits for the slot's writer before it and for the consumer that had the batch last; the consumer waits for every
//! writer of its batch. All memory, pinned buffers, streams and events are made before the first image.
//!
//! A stream has one event a batch, which marks its last write into it. So a stream waits once a
//! batch for the consumer, and the consumer once for each stream: with 256 slots and 34 streams at
//! most 68 waits a batch, where one event a slot took 768.
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::ImageError;
use crate::backend::{
    BackendError, BatchRenderer, ImageBackend, PlannedImage, RenderError, Renderer,
};
use crate::batch::Batch;
use crate::image::ImageHeader;
use crate::stats::DecoderStats;

mod cpu_crops;
mod engine_config;
pub mod engine_rules;
mod kernel_arguments;

pub use cpu_crops::{CpuCrops, CpuCropsDecoder, NoBatchDecoder};
pub use engine_config::{CALLS_AT_ONCE, Chroma, EngineConfig, IMAGES_A_CALL, IMAGES_A_THREAD};
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

/// Decodes one image at a time into device memory; each decode thread has one, or one for each of
/// its lanes.
pub trait DeviceDecoder<A: Accelerator>: Send {
    /// Reads the header, with the orientation that counts.
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError>;

    /// Whether the batch decoders take an image that [`DeviceDecoders::batch_accepts`].
    fn suits_batch(&mut self, _image: &PlannedImage<'_>) -> bool {
        true
    }

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
    /// A batch decoder.
    type BatchDecoder: DeviceBatchDecoder<A>;

    /// Lanes of a decode thread: decoders that take its images in turn, each on a stream of its
    /// own, so that the device works on several of them at once.
    fn lanes(&self) -> usize {
        1
    }
    /// A decoder for one lane of one thread.
    fn decoder(
        &self,
        accelerator: &Arc<A>,
        layout: PixelLayout,
    ) -> Result<Self::Decoder, BackendError>;
    /// The batch decoders, if there are any; each gets a thread.
    fn batch_decoders(
        &self,
        accelerator: &Arc<A>,
        layout: PixelLayout,
    ) -> Result<Vec<Self::BatchDecoder>, BackendError>;
    /// Whether a batch decoder takes such an image, by its header.
    fn batch_accepts(&self, image: &PlannedImage<'_>) -> bool;
    /// Who decoded so far, where several can.
    fn stats(&self) -> Option<DecoderStats> {
        None
    }
}

/// Fills batches in device memory, for a consumer whose work is enqueued on one stream.
#[derive(Debug)]
pub struct DeviceBackend<A: Accelerator, D> {
    accelerator: Arc<A>,
    decoders: D,
    layout: PixelLayout,
    consumer: A::Stream,
    num_batches: AtomicUsize,
    num_writers: AtomicUsize,
}

/// Device memory of one batch.
#[derive(Debug)]
struct BatchMemory<A: Accelerator> {
    /// Its number among the backend's.
    number: usize,
    memory: A::Memory,
    /// The consumer's last use of it.
    released: A::Event,
    /// How often the consumer has released it.
    releases: AtomicU64,
}

/// One sample's place in a batch in device memory.
#[derive(Debug)]
pub struct DeviceSlot<A: Accelerator> {
    batch: Arc<BatchMemory<A>>,
    offset_bytes: usize,
    layout: PixelLayout,
    /// The last write that the consumer has not waited for.
    written: Option<Written<A>>,
}

/// A write, or a later one of the same stream into the same batch.
#[derive(Debug)]
struct Written<A: Accelerator> {
    /// Number of the writer.
    writer: usize,
    event: Arc<A::Event>,
}

/// A stream that fills slots.
#[derive(Debug)]
struct Writer<A: Accelerator> {
    /// Its number among the backend's.
    number: usize,
    stream: A::Stream,
    /// By the batch's number.
    batches: Vec<KnownBatch<A>>,
    accelerator: Arc<A>,
}

/// What a writer knows of a batch.
#[derive(Debug)]
struct KnownBatch<A: Accelerator> {
    /// The writer's last write into it.
    written: Arc<A::Event>,
    /// The release that its stream has waited for.
    release: u64,
}

impl<A: Accelerator> DeviceSlot<A> {
    fn target(&self) -> Target<'_, A> {
        Target {
            memory: &self.batch.memory,
            offset_bytes: self.offset_bytes,
            layout: self.layout,
        }
    }
}

impl<A: Accelerator> Writer<A> {
    /// What is enqueued on the stream from now on may write the slot.
    fn before_write(&mut self, slot: &DeviceSlot<A>) -> Result<(), BackendError> {
        let number = slot.batch.number;
        while self.batches.len() <= number {
            self.batches.push(KnownBatch {
                written: Arc::new(self.accelerator.event()?),
                release: 0,
            });
        }
        let known = &mut self.batches[number];
        let release = slot.batch.releases.load(Ordering::Acquire);
        if known.release != release {
            self.accelerator.wait(&self.stream, &slot.batch.released)?;
            known.release = release;
        }
        // Another stream may have written here for a batch that was given up, or failed half way through an image.
        match &slot.written {
            Some(last) if last.writer != self.number => {
                self.accelerator.wait(&self.stream, &last.event)
            }
            _ => Ok(()),
        }
    }

    /// Marks what was enqueued since [`Self::before_write`] of the same slots.
    fn after_write<'a>(
        &mut self,
        slots: impl IntoIterator<Item = &'a mut DeviceSlot<A>>,
    ) -> Result<(), BackendError> {
        let mut recorded = None;
        for slot in slots {
            let number = slot.batch.number;
            let event = &self.batches[number].written;
            slot.written = Some(Written {
                writer: self.number,
                event: Arc::clone(event),
            });
            // Slots of one call are of one batch or two, one after the other.
            if recorded != Some(number) {
                self.accelerator.record(event, &self.stream)?;
                recorded = Some(number);
            }
        }
        Ok(())
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
            num_batches: AtomicUsize::new(0),
            num_writers: AtomicUsize::new(0),
        }
    }

    /// A writer that knows all batches made so far.
    fn writer(&self) -> Result<Writer<A>, BackendError> {
        let batch = |_| {
            Ok(KnownBatch {
                written: Arc::new(self.accelerator.event()?),
                release: 0,
            })
        };
        let num_batches = self.num_batches.load(Ordering::Relaxed);
        Ok(Writer {
            number: self.num_writers.fetch_add(1, Ordering::Relaxed),
            stream: self.accelerator.stream()?,
            batches: (0..num_batches).map(batch).collect::<Result<_, _>>()?,
            accelerator: Arc::clone(&self.accelerator),
        })
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
            number: self.num_batches.fetch_add(1, Ordering::Relaxed),
            memory: self.accelerator.memory(batch_size * slot_bytes)?,
            released: self.accelerator.event()?,
            releases: AtomicU64::new(0),
        });
        let slot = |position| DeviceSlot {
            batch: Arc::clone(&batch),
            offset_bytes: position * slot_bytes,
            layout: self.layout,
            written: None,
        };
        Ok((0..batch_size).map(slot).collect())
    }

    fn renderer(&self) -> Result<Self::Renderer, BackendError> {
        let lane = |_| {
            Ok(Lane {
                decoder: self.decoders.decoder(&self.accelerator, self.layout)?,
                writer: self.writer()?,
            })
        };
        let lanes = (0..self.decoders.lanes().max(1)).map(lane);
        Ok(DeviceRenderer {
            lanes: lanes.collect::<Result<_, BackendError>>()?,
            next: 0,
        })
    }

    fn batch_renderers(&self) -> Result<Vec<Self::BatchRenderer>, BackendError> {
        let decoders = self
            .decoders
            .batch_decoders(&self.accelerator, self.layout)?;
        let renderer = |decoder| {
            Ok(DeviceBatchRenderer {
                decoder,
                writer: self.writer()?,
            })
        };
        decoders.into_iter().map(renderer).collect()
    }

    fn batch_accepts(&self, image: &PlannedImage<'_>) -> bool {
        self.decoders.batch_accepts(image)
    }

    fn decoder_stats(&self) -> Option<DecoderStats> {
        self.decoders.stats()
    }

    fn hand_over(&self, slots: &mut [DeviceSlot<A>]) -> Result<(), BackendError> {
        let mut waited_for = Vec::new();
        for slot in slots {
            let Some(last) = slot.written.take() else {
                continue;
            };
            // All slots are of one batch, and all their writes are enqueued: a stream's event marks
            // the last of its.
            if !waited_for.contains(&last.writer) {
                self.accelerator.wait(&self.consumer, &last.event)?;
                waited_for.push(last.writer);
            }
        }
        Ok(())
    }

    fn take_back(&self, slots: &mut [DeviceSlot<A>]) {
        let Some(slot) = slots.first() else {
            return;
        };
        if let Err(error) = self
            .accelerator
            .record(&slot.batch.released, &self.consumer)
        {
            // The device is lost; the next call on it says so to whoever can end the run.
            tracing::error!("a batch was given back to a failed device: {error}");
        }
        slot.batch.releases.fetch_add(1, Ordering::Release);
    }
}

/// A decoder and the stream that it enqueues on.
#[derive(Debug)]
struct Lane<A: Accelerator, D> {
    decoder: D,
    writer: Writer<A>,
}

/// A decode thread's lanes; images go to them in turn.
#[derive(Debug)]
pub struct DeviceRenderer<A: Accelerator, D> {
    lanes: Vec<Lane<A, D>>,
    next: usize,
}

impl<A: Accelerator, D: DeviceDecoder<A>> Renderer for DeviceRenderer<A, D> {
    type Slot = DeviceSlot<A>;

    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.lanes[self.next].decoder.header(bytes)
    }

    fn suits_batch(&mut self, image: &PlannedImage<'_>) -> bool {
        self.lanes[self.next].decoder.suits_batch(image)
    }

    fn render(
        &mut self,
        image: PlannedImage<'_>,
        slot: &mut DeviceSlot<A>,
    ) -> Result<(), RenderError> {
        let lane = self.next;
        self.next = (lane + 1) % self.lanes.len();
        let Lane { decoder, writer } = &mut self.lanes[lane];
        writer.before_write(slot)?;
        let decoded = decoder.decode(image, &slot.target(), &writer.stream);
        // After an error too: part of the work may be enqueued already.
        let recorded = writer.after_write([slot]);
        // The first error is the cause.
        decoded?;
        Ok(recorded?)
    }
}

/// A batch decoder and its stream.
#[derive(Debug)]
pub struct DeviceBatchRenderer<A: Accelerator, D> {
    decoder: D,
    writer: Writer<A>,
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
            self.writer.before_write(slot)?;
        }
        let targets = images
            .iter()
            .map(|(image, slot)| (*image, slot.target()))
            .collect::<Vec<_>>();
        let decoded = self.decoder.decode(&targets, &self.writer.stream);
        drop(targets);
        let slots = images.iter_mut().map(|(_, slot)| &mut **slot);
        let recorded = self.writer.after_write(slots);
        // The first error is the cause.
        let decoded = decoded?;
        recorded?;
        Ok(decoded)
    }
}
