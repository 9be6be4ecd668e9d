//! Batches in device memory: the same samples, plans and pixels as on the CPU, whatever order the streams run in and whatever nvJPEG
//! answers.
use std::sync::{Arc, LazyLock};

use nepa_pipeline::{
    AugmentConfig, Chroma, Dataset, DatasetConfig, Filter, IoConfig, IoRuntime, Loader,
    LoaderConfig, PixelLayout, PixelType, SampleRecord, cuda::CudaBackend, cuda::EngineConfig,
    cuda::cuda_backend, cuda::cudarc::driver::CudaContext,
};
use nepa_tests::program::write_photo_shards;
use nepa_tests::standins::{self, Standins};

/// Side of the crops in pixels: small, so that many runs are quick, and more than one tile of the crop kernel.
const SIDE: u32 = 24;
const BATCH: usize = 8;
/// Images of the data set: batches that are full, and a last one that is not.
const IMAGES: u32 = 30;

/// Every way of decoding, by a name.
const ENGINES: [(&str, bool, bool); 3] = [
    ("CPU", false, false),
    ("hybrid", false, true),
    ("engines", true, true),
];

struct Photos {
    dataset: Arc<Dataset>,
    /// Held: it reads the shards.
    _runtime: IoRuntime,
    _folder: tempfile::TempDir,
}

static PHOTOS: LazyLock<Photos> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    write_photo_shards(folder.path(), 1, 3, IMAGES / 3);
    let runtime = IoRuntime::new(1).unwrap();
    let config = DatasetConfig {
        urls: vec![folder.path().to_str().unwrap().to_owned()],
        ..DatasetConfig::default()
    };
    Photos {
        dataset: Dataset::open(&config, &IoConfig::default(), &runtime).unwrap(),
        _runtime: runtime,
        _folder: folder,
    }
});

pub(super) fn config(decode_threads: usize) -> LoaderConfig {
    LoaderConfig {
        seed: 7,
        global_batch: BATCH,
        rank: 0,
        world_size: 1,
        epochs: Some(1),
        shuffle: true,
        drop_last: false,
        augment: AugmentConfig::RandomResizedCrop {
            size: SIDE,
            scale: [0.2, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            filter: Filter::Bilinear,
            rand_augment: None,
            erase: None,
        },
        normalize: nepa_pipeline::Normalize::default(),
        exif_orientation: true,
        decode_threads,
        prefetch_batches: 2,
        shuffle_window_bytes: 1 << 20,
        max_bad_fraction: 0.0,
        bad_samples_path: None,
        ..LoaderConfig::default()
    }
}

/// One epoch: samples in order, and the pixels of each.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Epoch {
    pub(super) samples: Vec<SampleRecord>,
    pub(super) pixels: Vec<Vec<f32>>,
}

fn on_cpu() -> Epoch {
    let mut loader = Loader::new(Arc::clone(&PHOTOS.dataset), config(2), None).unwrap();
    let (mut samples, mut pixels) = (Vec::new(), Vec::new());
    while let Some(batch) = loader.next_batch().unwrap() {
        samples.extend_from_slice(batch.samples());
        pixels.extend((0..batch.len()).map(|i| batch.pixels(i).to_vec()));
    }
    Epoch { samples, pixels }
}

pub(super) fn engines(hardware: bool, hybrid: bool) -> EngineConfig {
    EngineConfig {
        hardware,
        hybrid,
        // As large as the photos are, so that starting takes no time.
        largest: [96, 96],
        ..EngineConfig::default()
    }
}

pub(super) const LAYOUT: PixelLayout = PixelLayout {
    pixel_type: PixelType::F32,
    image_size: SIDE,
    patch_size: None,
};

fn loader(engines: EngineConfig, decode_threads: usize) -> Loader<CudaBackend> {
    loader_into(LAYOUT, engines, decode_threads)
}

fn loader_into(
    layout: PixelLayout,
    engines: EngineConfig,
    decode_threads: usize,
) -> Loader<CudaBackend> {
    loader_of(config(decode_threads), layout, engines)
}

pub(super) fn loader_of(
    config: LoaderConfig,
    layout: PixelLayout,
    engines: EngineConfig,
) -> Loader<CudaBackend> {
    let consumer = CudaContext::new(0).unwrap().new_stream().unwrap();
    let backend = cuda_backend(consumer, layout, &config.normalize, engines).unwrap();
    let dataset = Arc::clone(&PHOTOS.dataset);
    Loader::with_backend(dataset, config, None, Arc::new(backend)).unwrap()
}

/// All batches, read on the consumer's stream before the next one is asked for.
fn on_device(engines: EngineConfig, decode_threads: usize) -> Epoch {
    read(&mut loader(engines, decode_threads))
}

pub(super) fn read(loader: &mut Loader<CudaBackend>) -> Epoch {
    let mut epoch = Epoch::default();
    while let Some(batch) = loader.next_batch().unwrap() {
        let num_bytes = batch.len() * LAYOUT.slot_bytes();
        let memory = batch.memory().of_device();
        let bytes = memory.read(num_bytes, loader.backend().consumer()).unwrap();
        epoch.add(batch.samples(), &bytes);
    }
    epoch
}

impl Epoch {
    /// One more batch, as its pixels lie in memory.
    pub(super) fn add(&mut self, samples: &[SampleRecord], bytes: &[u8]) {
        self.samples.extend_from_slice(samples);
        let values = bytes.as_chunks::<4>().0.iter();
        let values = values.map(|value| f32::from_le_bytes(*value));
        let values = values.collect::<Vec<_>>();
        let pixels = values.chunks(LAYOUT.slot_bytes() / 4);
        self.pixels.extend(pixels.map(<[f32]>::to_vec));
    }
}

/// What the two decoders make of each image, in the order of the epoch: which of them decoded it must not matter but for that.
struct Truth {
    cpu: Epoch,
    nvjpeg: Epoch,
}

static TRUTH: LazyLock<Truth> = LazyLock::new(|| Truth {
    cpu: on_cpu(),
    nvjpeg: on_device(engines(false, true), 1),
});

impl Truth {
    /// How many images are nvJPEG's; each must be the one or the other, whole.
    #[track_caller]
    fn check(&self, found: &Epoch, what: &str) -> usize {
        assert!(
            found.samples == self.cpu.samples,
            "{what}: samples or plans differ"
        );
        let mut by_nvjpeg = 0;
        for (number, pixels) in found.pixels.iter().enumerate() {
            let is_nvjpeg = *pixels == self.nvjpeg.pixels[number];
            by_nvjpeg += usize::from(is_nvjpeg);
            assert!(
                is_nvjpeg || off(pixels, &self.cpu.pixels[number]).0 < 1e-3,
                "{what}: image {number} is neither decoder's"
            );
        }
        by_nvjpeg
    }
}

/// The greatest difference and the mean one, in 255ths.
fn off(found: &[f32], expected: &[f32]) -> (f32, f32) {
    let differences = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs() * 127.5);
    let (most, sum) = differences.fold((0.0f32, 0.0), |(most, sum), d| (most.max(d), sum + d));
    (most, sum / found.len() as f32)
}

/// The stand-ins, with what both decoders make of the images found out before anything is planted.
fn standins_and_truth(seed: u64) -> (Standins, &'static Truth) {
    let standins = standins::load(seed);
    let truth = &*TRUTH;
    standins.restart(seed);
    (standins, truth)
}

#[test]
fn pixels_are_those_of_the_cpu() {
    let (_standins, truth) = standins_and_truth(1);
    for (name, hardware, hybrid) in ENGINES {
        let found = on_device(engines(hardware, hybrid), 2);
        assert!(found.samples == truth.cpu.samples, "{name}");
        let differences = found.pixels.iter().zip(&truth.cpu.pixels);
        for (number, (most, mean)) in differences.map(|(a, b)| off(a, b)).enumerate() {
            // nvJPEG repeats chroma where libjpeg-turbo interpolates it.
            let limits = if hybrid { (40.0, 3.0) } else { (0.01, 0.001) };
            assert!(
                most <= limits.0 && mean <= limits.1,
                "{name}: image {number} is off by {most}, {mean} in the mean"
            );
        }
    }
}

#[test]
fn chroma_and_parts_are_as_they_are_asked_for() {
    let (standins, truth) = standins_and_truth(2);
    for (hardware, part_only) in [(false, true), (false, false), (true, true)] {
        for chroma in [Chroma::Replicated, Chroma::Interpolated] {
            let config = EngineConfig {
                part_only,
                chroma,
                ..engines(hardware, true)
            };
            let found = on_device(config, 2);
            let differences = found.pixels.iter().zip(&truth.cpu.pixels);
            let mean = differences.map(|(a, b)| off(a, b).1).sum::<f32>() / IMAGES as f32;
            // Interpolated as libjpeg-turbo does, pixels are the CPU's up to the rounding of two ways to resize.
            let is_cpu = mean < 0.05;
            assert_eq!(is_cpu, chroma == Chroma::Interpolated, "{config:?}: {mean}");
        }
    }
    assert!(standins.count("nvjpeg.batched_images") > 0);
    assert_eq!(
        standins.count("modules of PTX"),
        0,
        "H100 has code of its own"
    );
}

#[test]
fn an_image_that_the_engines_skip_is_seen_where_they_are_checked() {
    let (standins, truth) = standins_and_truth(3);
    standins.set("nvjpeg.skip", "3");
    let config = EngineConfig {
        verify_hardware: true,
        ..engines(true, true)
    };
    let mut loader = loader(config, 2);
    truth.check(&read(&mut loader), "skipped images");
    let stats = loader.stats().decoders.unwrap();
    let skipped: u64 = stats.refusals.iter().map(|refusals| refusals.images).sum();
    // Those of the warm-up come on top.
    assert!((1..=standins.count("nvjpeg.skipped_images")).contains(&skipped));
}

#[test]
fn who_decoded_is_counted() {
    let (standins, _) = standins_and_truth(4);
    for (name, hardware, hybrid) in ENGINES {
        let before = standins.count("nvjpeg.batched_images");
        let mut loader = loader(engines(hardware, hybrid), 2);
        read(&mut loader);
        let stats = loader.stats().decoders.unwrap();
        let all = stats.hardware + stats.hybrid + stats.cpu;
        assert_eq!(all, u64::from(IMAGES), "{name}: {stats:?}");
        assert_eq!(stats.cpu == all, !hybrid, "{name}: {stats:?}");
        // The warm-up's call comes on top.
        let batched = standins.count("nvjpeg.batched_images") - before;
        assert!(
            batched >= stats.hardware && (stats.hardware > 0) == hardware,
            "{name}"
        );
    }
}

#[test]
fn every_layout_has_its_kernels() {
    let (standins, _) = standins_and_truth(5);
    let whole = on_device(engines(false, true), 1).pixels.concat();
    let sum_of = |values: &mut dyn Iterator<Item = f32>| values.map(f64::from).sum::<f64>();
    let expected = sum_of(&mut whole.iter().copied());
    for hybrid in [false, true] {
        for pixel_type in [PixelType::F32, PixelType::Bf16] {
            for patch_size in [None, Some(8)] {
                let layout = PixelLayout {
                    pixel_type,
                    patch_size,
                    ..LAYOUT
                };
                let mut loader = loader_into(layout, engines(false, hybrid), 1);
                let mut sum = 0.0;
                while let Some(batch) = loader.next_batch().unwrap() {
                    let num_bytes = batch.len() * layout.slot_bytes();
                    let consumer = loader.backend().consumer();
                    let memory = batch.memory().of_device();
                    let bytes = memory.read(num_bytes, consumer).unwrap();
                    sum += match pixel_type {
                        PixelType::F32 => sum_of(
                            &mut bytes
                                .as_chunks()
                                .0
                                .iter()
                                .map(|value| f32::from_le_bytes(*value)),
                        ),
                        PixelType::Bf16 => sum_of(&mut bytes.as_chunks().0.iter().map(|value| {
                            f32::from_bits(u32::from(u16::from_le_bytes(*value)) << 16)
                        })),
                    };
                }
                // The same pixels in another order or type.
                let off = (sum - expected).abs() / whole.len() as f64;
                assert!(off < 0.01, "{layout:?}, hybrid {hybrid}: {off}");
            }
        }
    }
    for name in ["crop", "convert"] {
        for value in ["f32", "bf16"] {
            for order in ["nchw", "patches"] {
                let kernel = format!("{name}_{value}_{order}");
                assert!(standins.count(&kernel) > 0, "{kernel} was not launched");
            }
        }
    }
}

#[test]
fn every_order_of_streams_gives_every_image() {
    let (standins, truth) = standins_and_truth(0);
    let schedules = std::env::var("NEPA_SCHEDULES").map_or(1000, |number| number.parse().unwrap());
    let (mut by_nvjpeg, started) = (0, std::time::Instant::now());
    for seed in 0..schedules {
        standins.restart(seed);
        let (name, hardware, hybrid) = ENGINES[(seed % 3) as usize];
        if seed % 2 == 1 {
            standins.set("nvjpeg.writes", "at-call");
        }
        let found = on_device(engines(hardware, hybrid), 1 + (seed % 4) as usize);
        by_nvjpeg += truth.check(&found, &format!("seed {seed}, {name}"));
    }
    println!(
        "{schedules} schedules, {by_nvjpeg} images by nvJPEG, {:.1?}",
        started.elapsed()
    );
    assert!(by_nvjpeg > 0);
}

/// What nvJPEG may answer: its statuses from 1 to 10.
const STATUSES: std::ops::RangeInclusive<u32> = 1..=10;

/// Functions that are called for each image by the decode threads, by those that feed the engines, and once for each decoder.
const BY_HYBRID: [&str; 7] = [
    "nvjpegDecodeParamsSetROI",
    "nvjpegJpegStreamParse",
    "nvjpegDecoderJpegSupported",
    "nvjpegStateAttachPinnedBuffer",
    "nvjpegDecodeJpegHost",
    "nvjpegDecodeJpegTransferToDevice",
    "nvjpegDecodeJpegDevice",
];
const BY_ENGINES: [&str; 5] = [
    "nvjpegJpegStreamParseHeader",
    "nvjpegDecodeBatchedSupportedEx",
    "nvjpegDecodeBatchedPreAllocate",
    "nvjpegDecodeBatchedInitialize",
    "nvjpegDecodeBatched",
];
const BY_DECODERS: [&str; 11] = [
    "nvjpegCreateEx",
    "nvjpegGetHardwareDecoderInfo",
    "nvjpegJpegStateCreate",
    "nvjpegDecoderCreate",
    "nvjpegDecoderStateCreate",
    "nvjpegDecodeParamsCreate",
    "nvjpegDecodeParamsSetOutputFormat",
    "nvjpegJpegStreamCreate",
    "nvjpegBufferPinnedCreate",
    "nvjpegBufferDeviceCreate",
    "nvjpegStateAttachDeviceBuffer",
];

/// A run with a planted refusal; the streams run as late as they can, so that all that is not waited for is still under way.
fn with_fault(standins: &Standins, truth: &Truth, fault: &str, hardware: bool, seed: u64) {
    standins.restart(seed);
    standins.set("fault", fault);
    if seed.is_multiple_of(2) {
        standins.set("nvjpeg.fails", "late");
    }
    if !seed.is_multiple_of(3) {
        standins.set("schedule", "late");
    }
    let found = on_device(engines(hardware, true), 1 + (seed % 2) as usize);
    truth.check(&found, fault);
    let function = fault.split(':').next().unwrap();
    assert!(standins.count(function) > 0, "{function} is not called");
}

#[test]
fn a_refusal_costs_an_image_or_a_decoder_and_never_the_run() {
    let (standins, truth) = standins_and_truth(0);
    let mut runs = 0;
    for (functions, hardware, times) in [
        // The first calls are the warm-up's; later ones are those of single images between others that succeed.
        (
            &BY_HYBRID[..],
            false,
            &["5", "21", "*3", "*2", "17-", "all"][..],
        ),
        (&BY_ENGINES, true, &["2", "*2", "3-", "all"]),
        (&BY_DECODERS, true, &["1", "2-"]),
    ] {
        for function in functions {
            for status in STATUSES {
                for when in times {
                    let fault = format!("{function}:{status}:{when}");
                    with_fault(&standins, truth, &fault, hardware, runs);
                    runs += 1;
                }
            }
        }
    }
    println!("{runs} runs");
}

#[test]
fn a_loader_may_go_at_any_time() {
    let (standins, _) = standins_and_truth(0);
    for seed in 0..60u64 {
        standins.restart(seed);
        standins.set("schedule", if seed % 3 == 0 { "random" } else { "late" });
        let mut loader = loader(engines(seed % 2 == 0, true), 2);
        for _ in 0..seed % 4 {
            loader.next_batch().unwrap();
        }
        // Decode threads are at work; nothing may be freed or destroyed under what the device still does.
        drop(loader);
    }
}

#[test]
fn devices_that_lack_something_still_load() {
    let (standins, truth) = standins_and_truth(0);
    for (setting, value) in [
        ("nvjpeg.engines", "0"),
        ("nvjpeg.roi", "refused"),
        ("nvjpeg.allocations", "1"),
        ("nvjpeg.allocations", "9"),
        ("nvjpeg.allocations", "40"),
        ("nvjpeg.damage", "3"),
        ("nvjpeg.damage", "1"),
    ] {
        standins.restart(3);
        standins.set(setting, value);
        let what = format!("{setting}={value}");
        let by_nvjpeg = truth.check(&on_device(engines(true, true), 2), &what);
        println!("{what}: {by_nvjpeg} of {IMAGES} images by nvJPEG");
    }
}
