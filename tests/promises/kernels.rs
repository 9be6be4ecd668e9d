//! The CUDA kernels, run on the CPU: a crop made by them agrees with the CPU path's from the same decoded pixels, and they write their slots and nothing else.
use std::fs::File;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use nepa_pipeline::{
    AugmentConfig, CpuRenderer, CropPlan, CropRect, Decoder, EdgeSupport, Filter, Normalize,
    Orientation, PixelRect, SampleId,
    random::{Purpose, below, sample_stream, unit},
};
use nepa_schemas::{ColumnMapping, SchemaOptions, ShardBatch};
use nepa_tests::kernels::{
    Bf16, Crop, GuardedEnd, Layout, Normalization, StoredImage, ThreadOrder, barrier_in_a_branch,
    convert, crop, is_known, look_into_shared, message_of_abort, reverse_blocks,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// ImageNet's: unlike the default, the channels differ.
const NORMALIZE: Normalize = Normalize {
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
};
const FILTERS: [Filter; 2] = [Filter::Bilinear, Filter::Bicubic];
const EDGES: [EdgeSupport; 2] = [EdgeSupport::Rect, EdgeSupport::Image];
/// Values that no kernel writes; both are NaN.
const UNTOUCHED: f32 = f32::from_bits(0x7fc0_dead);
const UNTOUCHED_BF16: Bf16 = Bf16(0x7fad);

/// One encoded image, and the same decoded as it is stored.
struct Picture {
    encoded: Vec<u8>,
    pixels: Vec<u8>,
    /// Of the stored image.
    size: (u32, u32),
    orientation: Orientation,
}

impl Picture {
    fn decode(encoded: Vec<u8>) -> Self {
        let mut decoder = Decoder::default();
        let header = decoder.header(&encoded, true).unwrap();
        let mut pixels = Vec::new();
        let size = decoder.decode_stored(&encoded, &mut pixels).unwrap();
        Self {
            encoded,
            pixels,
            size,
            orientation: header.orientation,
        }
    }

    /// A JPEG of edges, slopes and noise, which says in its EXIF block how it is turned.
    fn made(width: u32, height: u32, exif_value: u32, number: u32) -> Self {
        let mut stream = stream(number);
        let mut pixels = Vec::with_capacity((width * height * 3) as usize);
        for y in 0..height {
            for x in 0..width {
                let edge = if (x / 5 + y / 7) % 2 == 0 { 0 } else { 120 };
                for slope in [x * 255 / width, y * 255 / height, (x + y) % 256] {
                    let noise = below(&mut stream, 60) as u32;
                    pixels.push((slope.midpoint(edge) + noise).min(255) as u8);
                }
            }
        }
        let image = turbojpeg::Image {
            pixels: &pixels[..],
            width: width as usize,
            pitch: width as usize * 3,
            height: height as usize,
            format: turbojpeg::PixelFormat::RGB,
        };
        let encoded = turbojpeg::compress(image, 95, turbojpeg::Subsamp::None).unwrap();
        // An APP1 segment behind the start marker: a TIFF structure with the orientation as its only field.
        let mut exif =
            b"\xff\xe1\0\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.push(exif_value as u8);
        exif.extend([0; 6]);
        let mut turned = encoded[..2].to_vec();
        turned.extend(exif);
        turned.extend(&encoded[2..]);
        let picture = Self::decode(turned);
        assert_eq!(picture.size, (width, height));
        assert_eq!(picture.orientation, Orientation::from_exif(exif_value));
        picture
    }

    fn upright_size(&self) -> (u32, u32) {
        self.orientation.upright_size(self.size.0, self.size.1)
    }

    /// In memory for a kernel. The number varies what must not matter: the length of rows, and which end of the memory is guarded.
    fn stored(&self, number: usize, fill: u8) -> StoredImage {
        let guarded = [GuardedEnd::Start, GuardedEnd::End][number % 2];
        StoredImage::new(
            &self.pixels,
            self.size,
            [0, 5, 64][number % 3],
            fill,
            guarded,
        )
    }

    fn crop_on_cpu(&self, plan: &CropPlan) -> Vec<f32> {
        let mut output = vec![0.0; slot_len(plan.output_size)];
        CpuRenderer::new(NORMALIZE, true)
            .render_plan(&self.encoded, plan, &mut output)
            .unwrap();
        output
    }

    /// The same with only those pixels that the plan's crop reads, as a decoder of regions leaves it.
    fn with_only_what_is_read(&self, plan: &CropPlan) -> Self {
        let part = PixelRect::read_by(plan, self.orientation, self.size);
        let columns = 3 * part.left as usize..3 * (part.left + part.width) as usize;
        let rows = part.top as usize..(part.top + part.height) as usize;
        let mut pixels = vec![0xaa; self.pixels.len()];
        let row_bytes = 3 * self.size.0 as usize;
        for row in rows {
            let bytes = row * row_bytes + columns.start..row * row_bytes + columns.end;
            pixels[bytes.clone()].copy_from_slice(&self.pixels[bytes]);
        }
        Self {
            encoded: self.encoded.clone(),
            pixels,
            ..*self
        }
    }

    fn crop_by_kernel(&self, plan: &CropPlan, number: usize) -> Vec<f32> {
        let image = self.with_only_what_is_read(plan).stored(number, 0xee);
        let crops = [Crop {
            image: &image,
            orientation: self.orientation,
            plan: plan.clone(),
            slot_start: 0,
        }];
        let mut output = vec![UNTOUCHED; slot_len(plan.output_size)];
        let order = [ThreadOrder::Backward, ThreadOrder::Random(number as u64)][number / 2 % 2];
        crop(
            Layout::Nchw,
            &crops,
            plan.output_size,
            NORMALIZE.into(),
            &mut output,
            order,
        );
        output
    }
}

/// Random numbers of these tests.
fn stream(number: u32) -> impl rand_core::Rng {
    let id = SampleId {
        shard: 0,
        row_group: 0,
        row: number,
    };
    sample_stream(20_261, 0, id, Purpose::Augment)
}

fn slot_len(side: u32) -> usize {
    3 * side as usize * side as usize
}

/// Differences between two samples of normalised values, in 255ths of the whole range.
struct Differences {
    mean: f64,
    /// The 99.9th percentile; the greatest where there are less than a thousand values.
    high: f64,
    greatest: f64,
}

impl Differences {
    fn between(kernel: &[f32], cpu: &[f32]) -> Self {
        assert_eq!(kernel.len(), cpu.len());
        let plane = kernel.len() / 3;
        let mut differences: Vec<f64> = kernel
            .iter()
            .zip(cpu)
            .enumerate()
            .map(|(i, (a, b))| {
                assert!(
                    a.is_finite() && b.is_finite(),
                    "value {i}: kernel {a}, CPU {b}"
                );
                f64::from((a - b).abs()) * f64::from(NORMALIZE.std[i / plane]) * 255.0
            })
            .collect();
        differences.sort_by(f64::total_cmp);
        let number = differences.len();
        Self {
            mean: differences.iter().sum::<f64>() / number as f64,
            high: differences[number - 1 - number / 1000],
            greatest: differences[number - 1],
        }
    }
}

/// The worst of many crops.
#[derive(Default)]
struct Worst {
    mean: (f64, String),
    high: (f64, String),
    greatest: (f64, String),
    sum_of_means: f64,
    num_crops: usize,
}

impl Worst {
    fn compare(&mut self, picture: &Picture, plan: &CropPlan) {
        let kernel = picture.crop_by_kernel(plan, self.num_crops);
        let found = Differences::between(&kernel, &picture.crop_on_cpu(plan));
        for (worst, found) in [
            (&mut self.mean, found.mean),
            (&mut self.high, found.high),
            (&mut self.greatest, found.greatest),
        ] {
            if found >= worst.0 {
                *worst = (
                    found,
                    format!("{:?} {:?} {plan:?}", picture.size, picture.orientation),
                );
            }
        }
        self.sum_of_means += found.mean;
        self.num_crops += 1;
    }

    /// Prints the worst, and refuses what is far above what was once reached.
    #[track_caller]
    fn check(&self) {
        println!(
            "{} crops, mean difference {:.4}; worst mean {:.4} {}; worst 99.9th percentile {:.3} {}; greatest {:.3} {}",
            self.num_crops,
            self.sum_of_means / self.num_crops as f64,
            self.mean.0,
            self.mean.1,
            self.high.0,
            self.high.1,
            self.greatest.0,
            self.greatest.1
        );
        let mean = self.sum_of_means / self.num_crops as f64;
        assert!(mean <= MAX_MEAN_OF_ALL, "mean of all crops {mean}");
        for (name, (found, place), limit) in [
            ("mean", &self.mean, MAX_MEAN),
            ("99.9th percentile", &self.high, MAX_HIGH),
            ("greatest difference", &self.greatest, MAX_GREATEST),
        ] {
            assert!(*found <= limit, "{name} {found}: {place}");
        }
    }
}

/// Both paths round to 8 bits after each pass, but the CPU's weights are integers of 16 bits, so that single values round the other way; the second pass
/// may double that. Reached in these tests: 0.004 over all crops; of the worst crop 0.07, 2 and 2.
const MAX_MEAN_OF_ALL: f64 = 0.01;
const MAX_MEAN: f64 = 0.15;
const MAX_HIGH: f64 = 2.01;
const MAX_GREATEST: f64 = 3.01;

/// A rectangle in an image of the size: whole, at a corner, whole pixels inside, any numbers inside, or one pixel.
fn random_rect(
    kind: usize,
    (width, height): (u32, u32),
    stream: &mut impl rand_core::Rng,
) -> CropRect {
    let mut span = |limit: u32| {
        let limit = f64::from(limit);
        match kind % 5 {
            0 => (0.0, limit),
            1 => {
                let length = (unit(stream) * limit).ceil().max(1.0);
                let start = if unit(stream) < 0.5 {
                    0.0
                } else {
                    limit - length
                };
                (start, length)
            }
            2 => {
                let length = (unit(stream) * limit).ceil().max(1.0);
                ((unit(stream) * (limit - length)).round(), length)
            }
            3 => {
                let length = limit * (0.02 + 0.98 * unit(stream));
                (unit(stream) * (limit - length), length)
            }
            _ => ((unit(stream) * limit).floor().min(limit - 1.0), 1.0),
        }
    };
    let (x, width) = span(width);
    let (y, height) = span(height);
    CropRect {
        x,
        y,
        width,
        height,
    }
}

#[test]
fn crops_agree_for_every_orientation_filter_edge_and_flip() {
    let mut stream = stream(1);
    let mut worst = Worst::default();
    let sizes = [(61, 47), (1, 1), (7, 90), (130, 20), (1, 33), (40, 40)];
    for exif_value in 1..=8 {
        for (number, (width, height)) in sizes.into_iter().enumerate() {
            let picture = Picture::made(width, height, exif_value, 100 + number as u32);
            for choice in 0..8 {
                let plan = CropPlan {
                    rect: random_rect(choice + number, picture.upright_size(), &mut stream),
                    flip: choice % 2 == 1,
                    output_size: [29, 1, 16, 40, 17, 33, 48][worst.num_crops % 7],
                    filter: FILTERS[choice / 2 % 2],
                    edge: EDGES[choice / 4],
                    operations: Vec::new(),
                    erase: None,
                };
                worst.compare(&picture, &plan);
            }
        }
    }
    worst.check();
}

#[test]
fn crops_agree_at_every_scale() {
    let mut stream = stream(2);
    let mut worst = Worst::default();
    // The scale of an axis is its length over the side: from a fiftieth to a hundred.
    for (number, (width, height)) in [(1300, 900), (2500, 3), (4, 1700), (333, 250)]
        .into_iter()
        .enumerate()
    {
        let picture = Picture::made(
            width,
            height,
            1 + 3 * number as u32 % 8,
            200 + number as u32,
        );
        for choice in 0..20 {
            let plan = CropPlan {
                rect: random_rect(choice, picture.upright_size(), &mut stream),
                flip: choice % 3 == 0,
                output_size: [31, 25, 50][choice % 3],
                filter: FILTERS[choice % 2],
                edge: EDGES[choice / 2 % 2],
                operations: Vec::new(),
                erase: None,
            };
            worst.compare(&picture, &plan);
        }
    }
    worst.check();
}

/// The augmentations of training and evaluation, with both filters.
fn augmentations(size: u32) -> Vec<AugmentConfig> {
    FILTERS
        .into_iter()
        .flat_map(|filter| {
            [
                AugmentConfig::RandomResizedCrop {
                    size,
                    scale: [0.08, 1.0],
                    ratio: [0.75, 4.0 / 3.0],
                    flip: 0.5,
                    filter,
                    rand_augment: None,
                    erase: None,
                },
                AugmentConfig::CenterCrop {
                    size,
                    resize: size * 8 / 7,
                    filter,
                },
            ]
        })
        .collect()
}

#[test]
fn crops_agree_for_drawn_plans() {
    let mut stream = stream(3);
    let mut worst = Worst::default();
    for number in 0..6 {
        let (width, height) = (
            150 + below(&mut stream, 400) as u32,
            150 + below(&mut stream, 400) as u32,
        );
        let picture = Picture::made(width, height, 1 + number % 8, 300 + number);
        let (width, height) = picture.upright_size();
        for (size, num_draws) in [(224, 1), (64, 8)] {
            for augment in augmentations(size) {
                let augment = augment.build().unwrap();
                for _ in 0..num_draws {
                    let id = SampleId {
                        shard: number,
                        row_group: 0,
                        row: worst.num_crops as u32,
                    };
                    let mut draw = sample_stream(7, 0, id, Purpose::Augment);
                    worst.compare(&picture, &augment.draw(width, height, &mut draw)[0]);
                }
            }
        }
    }
    worst.check();
}

#[test]
fn crops_of_photos_agree() {
    let Some(data) = std::env::var_os("NEPA_TEST_DATA") else {
        eprintln!("SKIPPED: NEPA_TEST_DATA is not set, so there are no photos to crop");
        return;
    };
    let shard = Path::new(&data).join("imagenet-shaped/train-00000-of-00002.parquet");
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(shard).unwrap())
        .unwrap()
        .with_batch_size(24);
    let mapping = ColumnMapping::resolve(reader.schema(), &SchemaOptions::default()).unwrap();
    let rows = reader.build().unwrap().next().unwrap().unwrap();
    let rows = ShardBatch::try_new(&rows, &mapping).unwrap();
    let augmentations = augmentations(224);
    let mut worst = Worst::default();
    for row in 0..rows.num_rows() {
        let picture = Picture::decode(rows.image(row).unwrap().to_vec());
        let (width, height) = picture.upright_size();
        let augment = augmentations[row % augmentations.len()].build().unwrap();
        let id = SampleId {
            shard: 0,
            row_group: 0,
            row: row as u32,
        };
        let mut draw = sample_stream(8, 0, id, Purpose::Augment);
        worst.compare(&picture, &augment.draw(width, height, &mut draw)[0]);
    }
    worst.check();
}

/// Crops of images of different sizes for one launch.
fn mixed_crops(side: u32) -> Vec<(Picture, CropPlan)> {
    let mut stream = stream(4);
    [(80, 45), (1, 1), (300, 17), (33, 200), (64, 64), (19, 19)]
        .into_iter()
        .enumerate()
        .map(|(number, (width, height))| {
            let picture = Picture::made(width, height, 8 - number as u32, 400 + number as u32);
            let plan = CropPlan {
                rect: random_rect(number, picture.upright_size(), &mut stream),
                flip: number % 2 == 0,
                output_size: side,
                filter: FILTERS[number / 2 % 2],
                edge: EDGES[number % 2],
                operations: Vec::new(),
                erase: None,
            };
            (picture, plan)
        })
        .collect()
}

/// Slots in another order than the crops and with gaps before, between and behind; and the length of all.
fn scattered_slots(count: usize, side: u32) -> (Vec<usize>, usize) {
    const GAP: usize = 77;
    let stride = slot_len(side) + GAP;
    let starts = (0..count)
        .map(|i| GAP + (i * 5 + 2) % count * stride)
        .collect();
    (starts, GAP + count * stride)
}

/// The samples in the slots, after a check that every value of them was written and nothing between them was.
fn samples<T: Copy>(
    output: &[T],
    starts: &[usize],
    side: u32,
    untouched: impl Fn(T) -> bool,
) -> Vec<Vec<T>> {
    let mut in_slot = vec![false; output.len()];
    for &start in starts {
        in_slot[start..start + slot_len(side)].fill(true);
    }
    for (i, (&value, in_slot)) in output.iter().zip(in_slot).enumerate() {
        assert_ne!(
            untouched(value),
            in_slot,
            "value {i}: in a slot: {in_slot}, written: {}",
            !untouched(value)
        );
    }
    starts
        .iter()
        .map(|&start| output[start..start + slot_len(side)].to_vec())
        .collect()
}

fn is_untouched(value: f32) -> bool {
    value.to_bits() == UNTOUCHED.to_bits()
}

fn is_untouched_bf16(value: Bf16) -> bool {
    value == UNTOUCHED_BF16
}

/// What the patches of a sample of planes are: [P, (channel, row, column)], as the model cuts them.
fn cut_into_patches(planes: &[f32], side: u32, patch: u32) -> Vec<f32> {
    let (side, patch) = (side as usize, patch as usize);
    let mut patches = Vec::with_capacity(planes.len());
    for top in (0..side).step_by(patch) {
        for left in (0..side).step_by(patch) {
            for channel in 0..3 {
                for row in top..top + patch {
                    let start = (channel * side + row) * side + left;
                    patches.extend(&planes[start..start + patch]);
                }
            }
        }
    }
    patches
}

/// candle's rounding of f32 to bf16.
fn rounded_to_bf16(values: &[f32]) -> Vec<Bf16> {
    let rounded: Vec<f32> = Tensor::new(values, &Device::Cpu)
        .and_then(|tensor| {
            tensor
                .to_dtype(DType::BF16)?
                .to_dtype(DType::F32)?
                .to_vec1()
        })
        .unwrap();
    rounded
        .iter()
        .map(|value| Bf16((value.to_bits() >> 16) as u16))
        .collect()
}

fn bits(samples: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let bits = |sample: &Vec<f32>| sample.iter().map(|value| value.to_bits()).collect();
    samples.iter().map(bits).collect()
}

/// Asks all four kernels of a kind for the same samples: planes and patches, f32 and bf16. `launch_*` fills an output.
fn check_types_and_layouts(
    starts: &[usize],
    num_values: usize,
    side: u32,
    patch: u32,
    launch: impl Fn(Layout, &mut [f32]),
    launch_bf16: impl Fn(Layout, &mut [Bf16]),
) -> Vec<Vec<f32>> {
    let run = |layout| {
        let mut output = vec![UNTOUCHED; num_values];
        launch(layout, &mut output);
        samples(&output, starts, side, is_untouched)
    };
    let run_bf16 = |layout| {
        let mut output = vec![UNTOUCHED_BF16; num_values];
        launch_bf16(layout, &mut output);
        samples(&output, starts, side, is_untouched_bf16)
    };
    let planes = run(Layout::Nchw);
    let patches: Vec<Vec<f32>> = planes
        .iter()
        .map(|planes| cut_into_patches(planes, side, patch))
        .collect();
    let round = |samples: &[Vec<f32>]| -> Vec<Vec<Bf16>> {
        samples
            .iter()
            .map(|sample| rounded_to_bf16(sample))
            .collect()
    };
    let layout = Layout::Patches { side: patch };
    assert!(
        bits(&run(layout)) == bits(&patches),
        "patches of {patch} in {side}"
    );
    assert!(
        run_bf16(Layout::Nchw) == round(&planes),
        "bf16 planes of {side}"
    );
    assert!(
        run_bf16(layout) == round(&patches),
        "bf16 patches of {patch} in {side}"
    );
    planes
}

#[test]
fn many_crops_in_one_launch_fill_their_slots_and_nothing_else() {
    for (side, patch) in [(28, 14), (30, 3), (16, 16), (35, 5), (9, 1)] {
        let crops = mixed_crops(side);
        let (starts, num_values) = scattered_slots(crops.len(), side);
        let run = |fill: u8, order: ThreadOrder| {
            let images: Vec<StoredImage> = crops
                .iter()
                .enumerate()
                .map(|(i, (picture, _))| picture.stored(i, fill))
                .collect();
            let jobs: Vec<Crop> = crops
                .iter()
                .zip(&images)
                .zip(&starts)
                .map(|(((picture, plan), image), &slot_start)| Crop {
                    image,
                    orientation: picture.orientation,
                    plan: plan.clone(),
                    slot_start,
                })
                .collect();
            check_types_and_layouts(
                &starts,
                num_values,
                side,
                patch,
                |layout, output| crop(layout, &jobs, side, NORMALIZE.into(), output, order),
                |layout, output| crop(layout, &jobs, side, NORMALIZE.into(), output, order),
            )
        };
        let together = bits(&run(0, ThreadOrder::Forward));
        assert!(
            together == bits(&run(255, ThreadOrder::Forward)),
            "the ends of rows matter"
        );
        assert!(
            together == bits(&run(0, ThreadOrder::Backward)),
            "the order of threads matters"
        );
        let alone: Vec<Vec<f32>> = crops
            .iter()
            .enumerate()
            .map(|(i, (picture, plan))| picture.crop_by_kernel(plan, i))
            .collect();
        assert!(together == bits(&alone), "a crop depends on its neighbours");
    }
}

#[test]
fn finished_crops_are_converted_exactly() {
    let mut stream = stream(5);
    for (side, patch) in [(28, 7), (20, 20), (1, 1), (33, 11)] {
        let count = 4;
        let crops: Vec<u8> = (0..count * slot_len(side))
            .map(|_| below(&mut stream, 256) as u8)
            .collect();
        let (starts, num_values) = scattered_slots(count, side);
        let normalization = Normalization::from(NORMALIZE);
        for order in [ThreadOrder::Forward, ThreadOrder::Random(side.into())] {
            let planes = check_types_and_layouts(
                &starts,
                num_values,
                side,
                patch,
                |layout, out| convert(layout, &crops, &starts, side, normalization, out, order),
                |layout, out| convert(layout, &crops, &starts, side, normalization, out, order),
            );
            let num_pixels = slot_len(side) / 3;
            for (planes, crop) in planes.iter().zip(crops.chunks_exact(slot_len(side))) {
                for (i, value) in planes.iter().enumerate() {
                    let (channel, pixel) = (i / num_pixels, i % num_pixels);
                    let stored = f32::from(crop[pixel * 3 + channel]);
                    let expected = stored
                        .mul_add(normalization.factor[channel], normalization.offset[channel]);
                    assert_eq!(value.to_bits(), expected.to_bits());
                    let by_division =
                        (stored / 255.0 - NORMALIZE.mean[channel]) / NORMALIZE.std[channel];
                    assert!((value - by_division).abs() <= 1e-6, "{value} {by_division}");
                }
            }
        }
    }
}

#[test]
fn the_shim_runs_barriers_and_shared_memory_as_a_gpu_does() {
    let numbers: Vec<u32> = (0..96).collect();
    let expected: Vec<u32> = numbers
        .chunks(32)
        .flat_map(|block| block.iter().rev().copied())
        .collect();
    for order in [
        ThreadOrder::Forward,
        ThreadOrder::Backward,
        ThreadOrder::Random(1),
    ] {
        assert_eq!(reverse_blocks(&numbers, 32, true, order), expected);
        // A forgotten barrier is noticed, because shared memory starts as nonsense.
        assert_ne!(reverse_blocks(&numbers, 32, false, order), expected);
    }
}

#[test]
fn the_shim_launches_every_kernel_by_its_name() {
    let mut names = Vec::new();
    for folder in [
        "../pipeline/src/backend/cuda/kernels",
        "../model/src/cuda/kernels",
    ] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "cu") {
                let source = std::fs::read_to_string(path).unwrap();
                // Behind each of these come the bounds of the launch, the name, the parameters.
                let heads = source.split("extern \"C\" __global__ void").skip(1);
                names.extend(heads.map(|head| {
                    let (_, behind) = head.split_once(')').unwrap();
                    behind.split('(').next().unwrap().trim().to_owned()
                }));
            }
        }
    }
    assert!(names.len() >= 28, "{names:?}");
    let unknown: Vec<_> = names.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?} are in no table");
    assert!(!is_known("column_sums"));
}

#[test]
fn static_shared_memory_is_nonsense_at_the_start_of_each_block() {
    assert_eq!(look_into_shared(3), [u32::MAX; 3]);
}

#[test]
fn the_shim_aborts_where_not_all_threads_reach_a_barrier() {
    let said = message_of_abort("NEPA_TEST_BARRIER_IN_A_BRANCH", barrier_in_a_branch);
    assert!(
        said.contains("cuda_cpu_shim: thread (7, 0, 0) of block (0, 0, 0) returned, but thread (0, 0, 0) waits at the barrier in line"),
        "{said}"
    );
}
