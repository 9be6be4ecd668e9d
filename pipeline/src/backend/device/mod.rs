//! Batches in device memory: slots that decode threads fill on streams of their own, and the order
//! of all that touches them.
//!
//! Nothing here knows CUDA. [`Accelerator`] is what is asked of a device; the order of work is
//! decided in this file and in `lending.rs`: a writer waits for the slot's writer before it and for
//! the consumer that had the batch last; the consumer waits for every writer of its batch. All
//! memory, pinned buffers, streams and events are made before the first image (but for erased
//! boxes: [`CpuCrops`]).
//!
//! A stream has one event a batch, which marks its last write into it. So a stream waits once a
//! batch for the consumer, and the consumer once for each stream: with 256 slots and 34 streams at
//! most 68 waits a batch, where one event a slot took 768.
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::ImageError;
use crate::backend::{
    BackendError, Decode, ImageBackend, ImageDecoder, PlannedImage, check_patches,
};
use crate::image::ImageHeader;
use crate::stats::DecoderStats;

mod cpu_crops;
mod engine_config;
#[cfg(any(feature = "cuda", test))]
pub(super) mod engine_rules;
mod kernel_arguments;
mod lending;

pub use cpu_crops::CpuCrops;
#[cfg(feature = "cuda")]
pub(super) use engine_config::{CALLS_AT_ONCE, IMAGES_A_CALL};
pub use engine_config::{Chroma, EngineConfig, IMAGES_A_THREAD};
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
    /// `None`: `[3, S, S]`. `Some(p)`: `[P, 3 * p * p]`, the P = (S / p)^2 patches row by row, each
    /// `[3, p, p]`.
    pub patch_size: Option<u32>,
}

impl PixelLayout {
    /// Bytes of one slot.
    pub fn slot_bytes(&self) -> usize {
        3 * (self.image_size as usize).pow(2) * self.pixel_type.num_bytes()
    }
}

/// Where the pixels of one sample go, and by which stream.
#[derive(Debug)]
pub struct Target<'a, A: Accelerator> {
    /// Memory of the whole batch.
    pub memory: &'a A::Memory,
    /// Start of the slot in it.
    pub offset_bytes: usize,
    /// How the pixels lie.
    pub layout: PixelLayout,
    /// All work that fills it is enqueued here.
    pub stream: &'a A::Stream,
}

/// A device with streams of asynchronous work.
///
/// Work on one stream runs in the order in which it was enqueued; between streams only events order
/// it. All calls but [`Self::synchronize`] return at once.
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
    /// Enqueues a copy of all of `from`, as long as a slot, to the target's slot.
    fn place(&self, from: &Self::Pinned, target: &Target<'_, Self>) -> Result<(), BackendError>
    where
        Self: Sized;
    /// Enqueues the conversion of a crop, u8 `[S, S, 3]` at the start of `crop`, to normalised
    /// pixels.
    fn convert(&self, crop: &Self::Memory, target: &Target<'_, Self>) -> Result<(), BackendError>
    where
        Self: Sized;

    /// Marks the end of what is enqueued on `stream` so far.
    fn record(&self, event: &Self::Event, stream: &Self::Stream) -> Result<(), BackendError>;
    /// Marks the end of what is enqueued on the device so far: on every stream, whoever made it. It
    /// may block until all of it is done, where the device has no such mark.
    fn record_all(&self, event: &Self::Event) -> Result<(), BackendError>;
    /// What is enqueued on `stream` from now on comes after what `event` marks now.
    fn wait(&self, stream: &Self::Stream, event: &Self::Event) -> Result<(), BackendError>;
    /// Blocks this thread until what `event` marks is done.
    fn synchronize(&self, event: &Self::Event) -> Result<(), BackendError>;
}

/// A decoder into device memory. It enqueues on the streams of its targets all that fills them.
pub type DeviceDecoder<A> = Box<dyn for<'t> ImageDecoder<Target<'t, A>>>;

/// Makes decoders for slots of a layout.
type MakeDecoder<A> =
    Box<dyn Fn(&Arc<A>, PixelLayout) -> Result<DeviceDecoder<A>, BackendError> + Send + Sync>;
type MakeDecoders<A> =
    Box<dyn Fn(&Arc<A>, PixelLayout) -> Result<Vec<DeviceDecoder<A>>, BackendError> + Send + Sync>;

/// The decoders of one kind of device.
pub struct DeviceDecoders<A: Accelerator> {
    /// Lanes of a decode thread: decoders that take its images in turn, each on a stream of its
    /// own, so that the device works on several of them at once.
    pub lanes: usize,
    /// Makes a decoder for one lane of one thread.
    pub decoder: MakeDecoder<A>,
    /// Makes the batch decoders, if there are any; each gets a thread.
    pub batch_decoders: MakeDecoders<A>,
    /// Whether a batch decoder takes such an image, by its header.
    pub batch_accepts: Box<dyn Fn(&PlannedImage<'_>) -> bool + Send + Sync>,
    /// Who decoded so far, where several can.
    pub stats: Box<dyn Fn() -> Option<DecoderStats> + Send + Sync>,
}

impl<A: Accelerator> DeviceDecoders<A> {
    /// One lane, and no batch decoders.
    pub fn of_threads(
        decoder: impl Fn(&Arc<A>, PixelLayout) -> Result<DeviceDecoder<A>, BackendError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self {
            lanes: 1,
            decoder: Box::new(decoder),
            batch_decoders: Box::new(|_, _| Ok(Vec::new())),
            batch_accepts: Box::new(|_| false),
            stats: Box::new(|| None),
        }
    }
}

impl<A: Accelerator> Debug for DeviceDecoders<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("DeviceDecoders");
        debug.field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

/// Fills batches in device memory, for a consumer whose work is enqueued on one stream.
#[derive(Debug)]
pub struct DeviceBackend<A: Accelerator> {
    accelerator: Arc<A>,
    decoders: DeviceDecoders<A>,
    layout: PixelLayout,
    consumer: A::Stream,
    num_batches: AtomicUsize,
    num_writers: AtomicUsize,
}

/// Device memory of one batch, `[B, ...]` as [`PixelLayout`] says, B being the loader's batch size.
#[derive(Debug)]
pub struct DeviceMemory<A: Accelerator> {
    batch: Arc<BatchMemory<A>>,
    /// The slots, with their last writes.
    slots: Vec<DeviceSlot<A>>,
}

#[derive(Debug)]
struct BatchMemory<A: Accelerator> {
    /// Its number among the backend's.
    number: usize,
    memory: A::Memory,
    /// The consumer's last use of it.
    released: A::Event,
    /// How often the consumer has released it.
    releases: AtomicU64,
    /// Whether work on other streams than the consumer's may use it.
    is_lent: AtomicBool,
    /// What such work waits for.
    handed: A::Event,
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
    fn target<'a>(&'a self, stream: &'a A::Stream) -> Target<'a, A> {
        Target {
            memory: &self.batch.memory,
            offset_bytes: self.offset_bytes,
            layout: self.layout,
            stream,
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
        // Another stream may have written here for a batch that was given up, or failed half way
        // through an image.
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

impl<A: Accelerator> DeviceBackend<A> {
    /// A backend whose batches are used by work on `consumer`.
    pub fn new(
        accelerator: Arc<A>,
        decoders: DeviceDecoders<A>,
        layout: PixelLayout,
        consumer: A::Stream,
    ) -> Self {
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

    fn lane(&self, decoder: DeviceDecoder<A>) -> Result<Lane<A>, BackendError> {
        Ok(Lane {
            decoder,
            writer: self.writer()?,
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

impl<A: Accelerator> DeviceMemory<A> {
    /// The memory itself. Work on the consumer's stream may read it until the batch is dropped; work
    /// on another one only where the batch is lent ([`crate::Batch::lend_to`]).
    pub fn of_device(&self) -> &A::Memory {
        &self.batch.memory
    }
}

impl<A: Accelerator> ImageBackend for DeviceBackend<A> {
    type Memory = DeviceMemory<A>;
    type Slot = DeviceSlot<A>;

    fn memory(&self, batch_size: usize, sides: &[u32]) -> Result<DeviceMemory<A>, BackendError> {
        assert_eq!(
            sides,
            [self.layout.image_size],
            "the augmentation and the layout give the image another size"
        );
        if let Some(patch_size) = self.layout.patch_size {
            check_patches(patch_size, sides)?;
        }
        let slot_bytes = self.layout.slot_bytes();
        let batch = Arc::new(BatchMemory {
            number: self.num_batches.fetch_add(1, Ordering::Relaxed),
            memory: self.accelerator.memory(batch_size * slot_bytes)?,
            released: self.accelerator.event()?,
            releases: AtomicU64::new(0),
            is_lent: AtomicBool::new(false),
            handed: self.accelerator.event()?,
        });
        let slot = |position| DeviceSlot {
            batch: Arc::clone(&batch),
            offset_bytes: position * slot_bytes,
            layout: self.layout,
            written: None,
        };
        Ok(DeviceMemory {
            slots: (0..batch_size).map(slot).collect(),
            batch,
        })
    }

    fn slots(&self, memory: DeviceMemory<A>) -> Vec<DeviceSlot<A>> {
        memory.slots
    }

    fn join(&self, slots: Vec<DeviceSlot<A>>) -> DeviceMemory<A> {
        DeviceMemory {
            batch: Arc::clone(&slots[0].batch),
            slots,
        }
    }

    fn decoder(&self) -> Result<Box<dyn ImageDecoder<DeviceSlot<A>>>, BackendError> {
        let lane = |_| self.lane((self.decoders.decoder)(&self.accelerator, self.layout)?);
        let lanes = (0..self.decoders.lanes.max(1)).map(lane);
        Ok(Box::new(Lanes {
            lanes: lanes.collect::<Result<_, BackendError>>()?,
            next: 0,
        }))
    }

    fn batch_decoders(&self) -> Result<Vec<Box<dyn ImageDecoder<DeviceSlot<A>>>>, BackendError> {
        let decoders = (self.decoders.batch_decoders)(&self.accelerator, self.layout)?;
        let lanes = decoders.into_iter().map(|decoder| {
            let lanes = vec![self.lane(decoder)?];
            Ok(Box::new(Lanes { lanes, next: 0 }) as _)
        });
        lanes.collect()
    }

    fn batch_accepts(&self, image: &PlannedImage<'_>) -> bool {
        // Operations and erasing are the processor's.
        !image.changes_pixels() && (self.decoders.batch_accepts)(image)
    }

    fn decoder_stats(&self) -> Option<DecoderStats> {
        (self.decoders.stats)()
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

    fn take_back(&self, memory: &mut DeviceMemory<A>) {
        if let Err(error) = self.mark_release(memory) {
            // The device is lost; the next call on it says so to whoever can end the run.
            tracing::error!("a batch was given back to a failed device: {error}");
        }
        memory.batch.releases.fetch_add(1, Ordering::Release);
    }
}

/// A decoder and the stream that it enqueues on.
struct Lane<A: Accelerator> {
    decoder: DeviceDecoder<A>,
    writer: Writer<A>,
}

/// Lanes that take images in turn.
struct Lanes<A: Accelerator> {
    lanes: Vec<Lane<A>>,
    next: usize,
}

impl<A: Accelerator> Lane<A> {
    fn decode(&mut self, images: &mut [Decode<'_, DeviceSlot<A>>]) -> Result<(), BackendError> {
        for image in &*images {
            self.writer.before_write(image.slot)?;
        }
        let decoded = self.enqueue(images);
        // After an error too: part of the work may be enqueued already.
        let slots = images.iter_mut().map(|image| &mut *image.slot);
        let recorded = self.writer.after_write(slots);
        // The first error is the cause.
        decoded?;
        recorded
    }

    fn enqueue(&mut self, images: &mut [Decode<'_, DeviceSlot<A>>]) -> Result<(), BackendError> {
        let stream = &self.writer.stream;
        if let [image] = images {
            // On the stack: a decode thread does this for each image.
            let mut target = image.slot.target(stream);
            let mut one = [Decode::new(image.image, &mut target)];
            let decoded = self.decoder.decode(&mut one);
            let [one] = one;
            image.result = one.result;
            return decoded;
        }
        let targets = images.iter().map(|image| image.slot.target(stream));
        let mut targets = targets.collect::<Vec<_>>();
        let mut all = images
            .iter()
            .zip(&mut targets)
            .map(|(image, target)| Decode::new(image.image, target))
            .collect::<Vec<_>>();
        let decoded = self.decoder.decode(&mut all);
        let results = all.into_iter().map(|image| image.result);
        let results = results.collect::<Vec<_>>();
        for (image, result) in images.iter_mut().zip(results) {
            image.result = result;
        }
        decoded
    }
}

impl<A: Accelerator> ImageDecoder<DeviceSlot<A>> for Lanes<A> {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.lanes[self.next].decoder.header(bytes)
    }

    fn max_images(&self) -> usize {
        self.lanes[0].decoder.max_images()
    }

    fn suits_batch(&mut self, image: &PlannedImage<'_>) -> bool {
        self.lanes[self.next].decoder.suits_batch(image)
    }

    fn decode(&mut self, images: &mut [Decode<'_, DeviceSlot<A>>]) -> Result<(), BackendError> {
        let lane = self.next;
        self.next = (lane + 1) % self.lanes.len();
        self.lanes[lane].decode(images)
    }
}
