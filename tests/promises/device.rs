//! Batches in device memory: the same samples and pixels as on the CPU, everything in order, whoever decodes.
//!
//! The device is a fake one that finds work in the wrong order; the engines are CPU decoders that stand in for the device's,
//! with planted failures and a planted slow one. The scheduling is the code that runs on a GPU.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nepa_pipeline::{
    Accelerator, BackendError, Batch, CpuCrops, CpuRenderer, Dataset, Decode, DecoderCounters,
    DeviceBackend, DeviceDecoders, ImageDecoder, ImageError, ImageHeader, JpegEngine, Loader,
    LoaderConfig, LoaderState, Normalize, PixelLayout, PixelType, PlannedImage, RefusalPhase,
    Target,
};
use nepa_tests::fake_device::{FakeHandle, FakeStream};

use crate::loader::{Kept, all, all_good, config, open, some_bad};
use nepa_tests::loading::changed;

pub(super) const LAYOUT: PixelLayout = PixelLayout {
    pixel_type: PixelType::F32,
    image_size: 8,
    patch_size: None,
};

pub(super) type FakeBackend = DeviceBackend<FakeHandle>;
type FakeDecode<'a, 't> = Decode<'a, Target<'t, FakeHandle>>;

/// What a batch decoder on the CPU does wrong.
#[derive(Debug, Clone, Copy, Default)]
struct Plan {
    /// Every so many images fail alone.
    fails_every: Option<usize>,
    /// Every so many calls panic.
    panics_every: Option<usize>,
    /// Every call fails as a whole.
    is_broken: bool,
    /// It takes no image when it is asked.
    suits_none: bool,
    /// Time of a call.
    call: Duration,
}

/// CPU decoders for two lanes of each decode thread, and two as batch decoders.
#[derive(Debug, Clone, Default)]
struct Twin {
    plan: Plan,
    /// Images that the batch decoders rendered.
    by_batch: Arc<AtomicUsize>,
    counters: Arc<DecoderCounters>,
}

/// A decode thread's, which looks at an image before it is handed to a batch decoder.
struct TwinDecoder {
    one: CpuCrops<FakeHandle>,
    twin: Twin,
    asked: usize,
}

impl<'t> ImageDecoder<Target<'t, FakeHandle>> for TwinDecoder {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.one.header(bytes)
    }

    fn suits_batch(&mut self, _image: &PlannedImage<'_>) -> bool {
        self.asked += 1;
        let suits = !self.twin.plan.suits_none && !self.asked.is_multiple_of(3);
        if !suits {
            let (engine, phase) = (JpegEngine::Hardware, RefusalPhase::Support);
            self.twin.counters.refused(engine, phase, 4);
        }
        suits
    }

    fn decode(&mut self, images: &mut [FakeDecode<'_, 't>]) -> Result<(), BackendError> {
        self.one.decode(images)?;
        for image in images {
            if image.result.is_ok() {
                self.twin.counters.decoded_by_cpu();
            }
        }
        Ok(())
    }
}

struct TwinBatch {
    renderer: CpuRenderer,
    device: Arc<FakeHandle>,
    twin: Twin,
    calls: usize,
    images: usize,
}

impl TwinBatch {
    fn decode_one(
        &mut self,
        image: &PlannedImage<'_>,
        target: &Target<'_, FakeHandle>,
    ) -> Result<(), ImageError> {
        self.images += 1;
        let mut crop = vec![0; 3 * 8 * 8];
        if is_nth(self.twin.plan.fails_every, self.images) {
            // What an engine that fails half way leaves behind.
            self.device.0.write(target, &crop);
            return Err(ImageError::Empty);
        }
        self.renderer
            .render_crop(image.bytes, image.header, &image.views[0], &mut crop)?;
        self.device.0.write(target, &crop);
        self.twin.by_batch.fetch_add(1, Ordering::Relaxed);
        self.twin.counters.decoded(JpegEngine::Hardware, 1);
        Ok(())
    }
}

fn is_nth(every: Option<usize>, number: usize) -> bool {
    every.is_some_and(|n| number.is_multiple_of(n))
}

impl<'t> ImageDecoder<Target<'t, FakeHandle>> for TwinBatch {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.renderer.read_header(bytes)
    }

    fn max_images(&self) -> usize {
        4
    }

    fn decode(&mut self, images: &mut [FakeDecode<'_, 't>]) -> Result<(), BackendError> {
        let plan = self.twin.plan;
        std::thread::sleep(plan.call);
        self.twin.counters.call(images.len());
        self.calls += 1;
        assert!(!is_nth(plan.panics_every, self.calls), "planted");
        if plan.is_broken {
            return Err(BackendError {
                doing: "a planted call",
                source: "planted".into(),
            });
        }
        for Decode {
            image,
            slot,
            result,
        } in images
        {
            *result = self.decode_one(image, slot);
        }
        Ok(())
    }
}

impl Twin {
    fn new(plan: Plan) -> Self {
        Self {
            plan,
            ..Self::default()
        }
    }

    fn decoders(&self) -> DeviceDecoders<FakeHandle> {
        let [threads, batches, counting] = [(); 3].map(|()| self.clone());
        DeviceDecoders {
            lanes: 2,
            decoder: Box::new(move |accelerator, layout| {
                Ok(Box::new(TwinDecoder {
                    one: CpuCrops::new(accelerator, layout, Normalize::default(), true)?,
                    twin: threads.clone(),
                    asked: 0,
                }))
            }),
            batch_decoders: Box::new(move |accelerator, _layout| {
                let batch = |_| TwinBatch {
                    renderer: CpuRenderer::default(),
                    device: Arc::clone(accelerator),
                    twin: batches.clone(),
                    calls: 0,
                    images: 0,
                };
                Ok((0..2).map(|i| Box::new(batch(i)) as _).collect())
            }),
            // As a device's engine, not everything: odd widths are for the decode threads.
            batch_accepts: Box::new(|image| image.header.width.is_multiple_of(2)),
            stats: Box::new(move || Some(counting.counters.read())),
        }
    }
}

pub(super) fn loader(
    device: &Arc<FakeHandle>,
    dataset: &Arc<Dataset>,
    config: LoaderConfig,
    state: Option<&LoaderState>,
    decoders: DeviceDecoders<FakeHandle>,
) -> Loader<FakeBackend> {
    let consumer = device.stream().unwrap();
    let backend = DeviceBackend::new(Arc::clone(device), decoders, LAYOUT, consumer);
    Loader::with_backend(Arc::clone(dataset), config, state, Arc::new(backend)).unwrap()
}

/// What the consumer's work reads.
pub(super) fn read(device: &FakeHandle, consumer: FakeStream, batch: &Batch<FakeBackend>) -> Kept {
    let range = 0..batch.len() * LAYOUT.slot_bytes();
    let bytes = device.0.read(batch.memory().of_device(), range, consumer);
    Kept {
        epoch: batch.epoch(),
        samples: batch.samples().to_vec(),
        pixels: bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|value| f32::from_le_bytes(*value))
            .collect(),
    }
}

fn rest_of(device: &FakeHandle, loader: &mut Loader<FakeBackend>) -> Vec<Kept> {
    let mut batches = Vec::new();
    while let Some(batch) = loader.next_batch().unwrap() {
        batches.push(read(device, *loader.backend().consumer(), &batch));
    }
    batches
}

/// Decoders on the CPU alone; the device converts their crops.
pub(super) fn crops() -> DeviceDecoders<FakeHandle> {
    DeviceDecoders::of_threads(|accelerator, layout| {
        Ok(Box::new(CpuCrops::new(
            accelerator,
            layout,
            Normalize::default(),
            true,
        )?))
    })
}

#[test]
fn a_device_batch_holds_what_a_host_batch_holds() {
    let folder = some_bad();
    let dataset = open(&folder);
    for (decode_threads, prefetch_batches, drop_last) in [(1, 1, true), (4, 3, false)] {
        let config = LoaderConfig {
            decode_threads,
            prefetch_batches,
            drop_last,
            ..config()
        };
        let device = FakeHandle::new();
        let mut loader = loader(&device, &dataset, config.clone(), None, crops());
        assert!(rest_of(&device, &mut loader) == all(&dataset, config));
        assert_eq!(device.0.violations(), Vec::<String>::new());
    }
}

/// Operations and boxes are the processor's, whoever decodes the other images; the pixels are those
/// of a host batch to the bit.
#[test]
fn changed_pixels_are_those_of_a_host_batch() {
    let folder = some_bad();
    let dataset = open(&folder);
    let expected = all(&dataset, changed());
    let samples = expected.iter().flat_map(|batch| &batch.samples);
    let unchanged = samples
        .filter(|sample| !sample.views[0].changes_pixels())
        .count();
    let twin = Twin::default();
    for decoders in [crops(), twin.decoders()] {
        let device = FakeHandle::new();
        let mut loader = loader(&device, &dataset, changed(), None, decoders);
        assert!(rest_of(&device, &mut loader) == expected);
        assert_eq!(device.0.violations(), Vec::<String>::new());
    }
    // The batch decoders had some of the images that nothing changes, and no others.
    let by_batch = twin.by_batch.load(Ordering::Relaxed);
    assert!(
        by_batch > 0 && by_batch <= unchanged,
        "{by_batch} of {unchanged}"
    );
}

/// A stream waits once a batch for the consumer, the consumer once for each stream; both, not once
/// a slot.
#[test]
fn waits_grow_with_streams_and_not_with_samples() {
    let folder = all_good();
    let dataset = open(&folder);
    let device = FakeHandle::new();
    let config = LoaderConfig {
        decode_threads: 1,
        ..config()
    };
    let mut loader = loader(&device, &dataset, config, None, crops());
    let batches = rest_of(&device, &mut loader);
    let samples = batches
        .iter()
        .map(|batch| batch.samples.len())
        .sum::<usize>();
    let waits = device.0.waits();
    assert!(
        waits <= 2 * batches.len() && samples >= 3 * batches.len(),
        "{waits} waits for {samples} samples in {} batches",
        batches.len()
    );
    assert_eq!(device.0.violations(), Vec::<String>::new());
}

#[test]
fn nothing_is_made_on_the_device_after_the_first_epoch() {
    let folder = all_good();
    let dataset = open(&folder);
    let device = FakeHandle::new();
    let config = LoaderConfig {
        epochs: Some(6),
        ..config()
    };
    let mut loader = loader(&device, &dataset, config, None, crops());
    let mut made = Vec::new();
    while let Some(batch) = loader.next_batch().unwrap() {
        if batch.epoch() > 0 {
            made.push(device.0.allocations());
        }
    }
    assert_eq!(made.len(), 5 * 8);
    assert!(made.iter().all(|count| *count == made[0]), "{made:?}");
}

/// Takes none, one or five batches, keeps two at once, gives the rest up; on one device, whose memory
/// and streams are made anew for each loader.
fn keep_drop_and_give_up(decoders: impl Fn() -> DeviceDecoders<FakeHandle>) {
    let folder = some_bad();
    let dataset = open(&folder);
    let device = FakeHandle::new();
    for num_batches in [0, 1, 5] {
        let mut loader = loader(&device, &dataset, config(), None, decoders());
        let mut kept = Vec::new();
        for _ in 0..num_batches {
            let batch = loader.next_batch().unwrap().unwrap();
            kept.push(batch);
            // Two at once, as a trainer that prefetches does, and read only when the second is there.
            if kept.len() == 2 {
                let first = kept.remove(0);
                read(&device, *loader.backend().consumer(), &first);
            }
        }
        let state = loader.state();
        drop((kept, loader));
        assert_eq!(state.batch_in_epoch, num_batches);
    }
    assert_eq!(device.0.violations(), Vec::<String>::new());
}

#[test]
fn batches_that_are_kept_dropped_or_given_up_stay_in_order() {
    keep_drop_and_give_up(crops);
    for fails_every in [None, Some(2)] {
        let plan = Plan {
            fails_every,
            ..Plan::default()
        };
        keep_drop_and_give_up(|| Twin::new(plan).decoders());
    }
}

#[test]
fn a_planted_ordering_bug_is_found() {
    let folder = all_good();
    let dataset = open(&folder);
    let device = FakeHandle::new();
    device.0.ignores_waits.store(true, Ordering::Relaxed);
    let mut loader = loader(&device, &dataset, config(), None, crops());
    rest_of(&device, &mut loader);
    let violations = device.0.violations();
    // Both directions: pixels read before they are written, and overwritten before they are read.
    for found in ["the consumer's read", "writing a slot"] {
        assert!(
            violations
                .iter()
                .any(|violation| violation.starts_with(found)),
            "{found}: {violations:?}"
        );
    }
}

/// Runs three epochs with a twin; the batches must be the CPU's. Returns the images that the batch
/// decoders rendered.
fn run_twin(dataset: &Arc<Dataset>, plan: Plan) -> usize {
    let by_batch = Arc::new(AtomicUsize::new(0));
    for decode_threads in [1, 3] {
        let config = LoaderConfig {
            decode_threads,
            drop_last: false,
            ..config()
        };
        let device = FakeHandle::new();
        let twin = Twin {
            by_batch: Arc::clone(&by_batch),
            ..Twin::new(plan)
        };
        let mut loader = loader(&device, dataset, config.clone(), None, twin.decoders());
        let batches = rest_of(&device, &mut loader);
        let samples = batches.iter().map(|batch| batch.samples.len() as u64);
        let stats = loader.stats().decoders.expect("a twin counts");
        assert_eq!(
            stats.hardware + stats.hybrid + stats.cpu,
            samples.sum::<u64>()
        );
        assert!(batches == all(dataset, config), "{plan:?}");
        assert_eq!(device.0.violations(), Vec::<String>::new(), "{plan:?}");
    }
    by_batch.load(Ordering::Relaxed)
}

#[test]
fn an_image_that_a_batch_decoder_would_refuse_is_not_sent_to_it() {
    let folder = some_bad();
    let plan = Plan {
        suits_none: true,
        ..Plan::default()
    };
    assert_eq!(run_twin(&open(&folder), plan), 0);
}

#[test]
fn who_decodes_is_not_told_where_only_the_processor_can() {
    let folder = all_good();
    let dataset = open(&folder);
    let on_host = Loader::new(Arc::clone(&dataset), config(), None).unwrap();
    assert_eq!(on_host.stats().decoders, None);
    let json = serde_json::to_value(on_host.stats()).unwrap();
    assert!(json.get("decoders").is_none(), "{json}");
}

#[test]
fn a_batch_decoder_changes_no_sample_plan_or_pixel() {
    let folder = some_bad();
    let by_batch = run_twin(&open(&folder), Plan::default());
    assert!(by_batch > 0, "it had nothing to do");
}

#[test]
fn an_image_that_the_batch_decoder_fails_at_fails_alone() {
    let folder = some_bad();
    let plan = Plan {
        fails_every: Some(3),
        ..Plan::default()
    };
    assert!(run_twin(&open(&folder), plan) > 0);
}

#[test]
fn a_batch_decoder_that_panics_or_breaks_costs_nothing_but_time() {
    let folder = some_bad();
    let dataset = open(&folder);
    run_twin(
        &dataset,
        Plan {
            panics_every: Some(2),
            ..Plan::default()
        },
    );
    let broken = Plan {
        is_broken: true,
        ..Plan::default()
    };
    assert_eq!(run_twin(&dataset, broken), 0);
}

#[test]
fn a_slow_batch_decoder_gets_few_images() {
    let folder = all_good();
    let dataset = open(&folder);
    let slow = Plan {
        call: Duration::from_millis(300),
        ..Plan::default()
    };
    let (fast, slow) = (
        run_twin(&dataset, Plan::default()),
        run_twin(&dataset, slow),
    );
    // 396 images in both runs together, about half of them of an even width.
    assert!(slow < 40 && fast > 2 * slow, "fast {fast}, slow {slow}");
}

#[test]
fn a_run_goes_on_with_another_backend_in_the_middle() {
    let folder = some_bad();
    let dataset = open(&folder);
    let whole = all(&dataset, config());
    let device = FakeHandle::new();
    let mut on_device = loader(&device, &dataset, config(), None, crops());
    let mut batches = Vec::new();
    for _ in 0..10 {
        let batch = on_device.next_batch().unwrap().unwrap();
        batches.push(read(&device, *on_device.backend().consumer(), &batch));
    }
    let state = on_device.state();
    drop(on_device);
    let mut on_host = Loader::new(Arc::clone(&dataset), config(), Some(&state)).unwrap();
    while let Some(batch) = on_host.next_batch().unwrap() {
        batches.push(Kept {
            epoch: batch.epoch(),
            samples: batch.samples().to_vec(),
            pixels: batch.array().to_vec(),
        });
    }
    assert!(batches == whole);
}
