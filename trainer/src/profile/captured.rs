//! Images as they came from the store, kept in memory: what each costs to decode, and a shard of
//! them on the local disk, so that a loader can run without the store.
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use nepa_pipeline::random::{Purpose, sample_stream};
use nepa_pipeline::{
    CpuBackend, Dataset, Decode, ImageBackend, ImageFormat, IoConfig, IoRuntime, JpegFacts,
    JpegProcess, Latencies, LoaderConfig, PlannedImage, SampleId, decode_rgb, open_url,
};
use serde::Serialize;

use super::histogram::Histogram;
use crate::pack::{Labels, PackedImage, ShardWriter};
use crate::signals::received;

/// Bytes that are kept.
const MOST_BYTES: usize = 64 << 20;
/// Images that are kept.
const MOST_IMAGES: usize = 4096;
/// Bytes of a row group of the local shard.
const ROW_GROUP: u64 = 4 << 20;
/// Images of the local shard at least, as far as [`MOST_BYTES`] goes.
const LEAST_STORED: usize = 512;
/// Time to measure single images.
const SURVEY: Duration = Duration::from_secs(2);
/// Slowest images that are named.
const SLOWEST: usize = 3;
/// A format is dear where an image of it costs so many times a baseline JPEG, and all of them so
/// much of the whole.
const DEAR: f64 = 1.3;
const MUCH: f64 = 0.05;
/// Images that are stored anew, to see what that gives.
const STORED_ANEW: usize = 256;
/// Quality of a JPEG that is stored anew.
const QUALITY: i32 = 90;

/// JPEGs of several scans: each has to be decoded whole.
pub(super) const PROGRESSIVE: &str = "progressive JPEG";
/// JPEGs of one scan.
const BASELINE: &str = "JPEG";

/// Images that are kept.
#[derive(Debug, Default)]
pub(super) struct Captured {
    images: Vec<(SampleId, Bytes)>,
    bytes: usize,
    known: HashSet<SampleId>,
}

/// What images of one kind cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct FormatCost {
    /// Name of the format, and of the size class in a table of those.
    pub format: String,
    /// Images that were measured.
    pub images: usize,
    /// Time to decode, crop, resize and normalise one, on one thread by itself, in milliseconds.
    pub ms: f64,
    /// Bytes of one, on average.
    pub bytes: f64,
    /// Pixels of one, on average, in millions.
    pub megapixels: f64,
}

/// An image that costs much.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct SlowImage {
    /// Where it lies.
    pub place: String,
    /// Time that it takes, in milliseconds.
    pub ms: f64,
    /// Its form: format, size and bytes.
    pub form: String,
    /// As it is stored.
    #[serde(skip)]
    pub bytes: Bytes,
}

/// What single images cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Survey {
    /// By format, the most frequent first.
    pub formats: Vec<FormatCost>,
    /// By format and size class, the most frequent first.
    pub sizes: Vec<FormatCost>,
    /// Those that take longest, the slowest first.
    pub slowest: Vec<SlowImage>,
    /// Shorter side of an image, the middle of all, in pixels.
    pub shorter_side: u32,
    /// How many take how long.
    pub costs: Histogram,
}

impl Survey {
    /// The format that is dearer than baseline JPEGs, with its share of the images and how much
    /// dearer; none where that makes little of the whole.
    pub(super) fn dear(&self) -> Option<(&FormatCost, f64, f64)> {
        let is_baseline = |cost: &&FormatCost| cost.format == BASELINE;
        let jpeg = self.formats.iter().find(is_baseline);
        let all = self.formats.iter().map(|cost| cost.images).sum::<usize>();
        let others = self.formats.iter().filter(|cost| !is_baseline(cost));
        let dearest = others.max_by(|a, b| {
            let time = |cost: &FormatCost| cost.ms * cost.images as f64;
            time(a).total_cmp(&time(b))
        })?;
        let times = jpeg.map_or(f64::INFINITY, |jpeg| dearest.ms / jpeg.ms);
        let share = dearest.images as f64 / all.max(1) as f64;
        (times > DEAR && share * (times - 1.0) > MUCH).then_some((dearest, share, times))
    }
}

/// Sums of images, milliseconds, bytes and megapixels by what images have in common.
#[derive(Debug, Default)]
struct Costs(BTreeMap<String, [f64; 4]>);

impl Costs {
    fn add(&mut self, of: String, values: [f64; 4]) {
        let sums = self.0.entry(of).or_default();
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }

    /// Their means, the most frequent first.
    fn by_frequency(self) -> Vec<FormatCost> {
        let costs = self.0.into_iter();
        let costs = costs.map(|(format, [count, ms, bytes, pixels])| FormatCost {
            format,
            images: count as usize,
            ms: ms / count,
            bytes: bytes / count,
            megapixels: pixels / count,
        });
        let mut costs = costs.collect::<Vec<_>>();
        costs.sort_by_key(|cost| std::cmp::Reverse(cost.images));
        costs
    }
}

/// Images of about one size, in words.
fn size_class(megapixels: f64) -> &'static str {
    match megapixels {
        ..0.1 => "below 0.1 Mpx",
        0.1..0.5 => "0.1 to 0.5 Mpx",
        0.5..2.0 => "0.5 to 2 Mpx",
        2.0..8.0 => "2 to 8 Mpx",
        _ => "from 8 Mpx on",
    }
}

impl Captured {
    /// Keeps what there is room for. The bytes are copied: a slice would hold its whole page.
    pub(super) fn keep(&mut self, images: &[(SampleId, Bytes)]) {
        for (id, bytes) in images {
            let is_full = self.bytes >= MOST_BYTES || self.images.len() >= MOST_IMAGES;
            if is_full || !self.known.insert(*id) {
                continue;
            }
            self.bytes += bytes.len();
            self.images.push((*id, Bytes::copy_from_slice(bytes)));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.images.len()
    }

    /// Measures what single images cost, one after the other on this thread.
    pub(super) fn survey(
        &self,
        dataset: &Dataset,
        config: &LoaderConfig,
    ) -> anyhow::Result<Survey> {
        let augment = config.augment.build()?;
        let backend = CpuBackend::<f32>::new(config.normalize, config.exif_orientation, None);
        let mut slots = backend.slots(backend.memory(1, &augment.view_sides())?);
        let slot = slots.first_mut().context("a batch of one has one slot")?;
        let mut decoder = backend.decoder()?;
        let (mut formats, mut sizes) = (Costs::default(), Costs::default());
        let mut sides = Vec::new();
        let mut slow = Vec::<SlowImage>::new();
        let mut times = Latencies::default();
        let begun = Instant::now();
        for (id, bytes) in &self.images {
            let Ok(header) = decoder.header(bytes) else {
                continue;
            };
            let mut stream = sample_stream(config.seed, 0, *id, Purpose::Augment);
            let views = augment.draw(header.width, header.height, &mut stream);
            // The shorter of two times: on a machine that is shared, one is soon interrupted.
            let mut time = Duration::MAX;
            let mut is_sound = true;
            for _ in 0..2 {
                let since = Instant::now();
                let header = decoder.header(bytes)?;
                let image = PlannedImage {
                    bytes,
                    header,
                    views: &views,
                };
                let mut decode = [Decode::new(image, slot)];
                decoder.decode(&mut decode)?;
                is_sound &= decode[0].result.is_ok();
                time = time.min(since.elapsed());
            }
            if !is_sound {
                continue;
            }
            times.add(time);
            let ms = time.as_secs_f64() * 1e3;
            let format = format_name(header.format, bytes);
            let megapixels = f64::from(header.width) * f64::from(header.height) / 1e6;
            let values = [1.0, ms, bytes.len() as f64, megapixels];
            formats.add(format.clone(), values);
            sizes.add(format!("{format}, {}", size_class(megapixels)), values);
            sides.push(header.width.min(header.height));
            if slow.len() < SLOWEST || slow.last().is_some_and(|last| last.ms < ms) {
                let size = crate::console::words::bytes(bytes.len() as u64);
                slow.push(SlowImage {
                    place: place(dataset, *id),
                    ms,
                    form: format!("{format}, {} x {}, {size}", header.width, header.height),
                    bytes: bytes.clone(),
                });
                slow.sort_by(|a, b| b.ms.total_cmp(&a.ms));
                slow.truncate(SLOWEST);
            }
            if begun.elapsed() > SURVEY || received().is_some() {
                break;
            }
        }
        sides.sort_unstable();
        Ok(Survey {
            formats: formats.by_frequency(),
            sizes: sizes.by_frequency(),
            slowest: slow,
            shorter_side: sides.get(sides.len() / 2).copied().unwrap_or(0),
            costs: Histogram::of(std::iter::once(&times)),
        })
    }

    /// The images in a shard in `folder`, as a data set.
    pub(super) fn stored(
        &self,
        folder: &Path,
        io: &IoConfig,
        runtime: &IoRuntime,
    ) -> anyhow::Result<std::sync::Arc<Dataset>> {
        let images = self.images.iter().map(|(_, bytes)| bytes.clone());
        store(&images.collect::<Vec<_>>(), folder, io, runtime)
    }

    /// Some of the images, those that are no baseline JPEG or whose shorter side is longer than
    /// `side` stored anew, as a data set; none where no image can be decoded.
    pub(super) fn stored_anew(
        &self,
        side: u32,
        folder: &Path,
        io: &IoConfig,
        runtime: &IoRuntime,
    ) -> anyhow::Result<Option<std::sync::Arc<Dataset>>> {
        let anew = self.images.iter().take(STORED_ANEW);
        let anew = anew
            .filter_map(|(_, bytes)| as_jpeg(bytes, side))
            .collect::<Vec<_>>();
        if anew.is_empty() {
            return Ok(None);
        }
        store(&anew, folder, io, runtime).map(Some)
    }
}

/// Name of a format; one whose decoding costs another multiple of the rest is one of its own.
fn format_name(format: ImageFormat, bytes: &[u8]) -> String {
    let facts = (format == ImageFormat::Jpeg).then(|| JpegFacts::of(bytes));
    let process = facts.flatten().map(|facts| facts.process);
    match process {
        Some(JpegProcess::Progressive) => PROGRESSIVE.to_owned(),
        _ => format!("{format:?}").to_uppercase(),
    }
}

fn place(dataset: &Dataset, id: SampleId) -> String {
    let shard = &dataset.shards()[id.shard as usize];
    format!("{}, row group {}, row {}", shard.url, id.row_group, id.row)
}

/// An image as a baseline JPEG whose shorter side is no longer than `side`; none of a broken one.
fn as_jpeg(bytes: &Bytes, side: u32) -> Option<Bytes> {
    let rgb = decode_rgb(bytes, true).ok()?;
    let (width, height) = (rgb.width, rgb.height);
    let mut image = image::RgbImage::from_raw(width, height, rgb.data)?;
    let shorter = width.min(height);
    let format = ImageFormat::of(bytes).map(|format| format_name(format, bytes));
    if shorter <= side && format.as_deref() == Some(BASELINE) {
        return Some(bytes.clone());
    }
    if shorter > side {
        let scaled =
            |length: u32| (u64::from(length) * u64::from(side) / u64::from(shorter)).max(1) as u32;
        let filter = image::imageops::FilterType::Triangle;
        image = image::imageops::resize(&image, scaled(width), scaled(height), filter);
    }
    let width = image.width() as usize;
    let pixels = turbojpeg::Image {
        pixels: image.as_raw().as_slice(),
        width,
        pitch: 3 * width,
        height: image.height() as usize,
        format: turbojpeg::PixelFormat::RGB,
    };
    let jpeg = turbojpeg::compress(pixels, QUALITY, turbojpeg::Subsamp::Sub2x2).ok()?;
    Some(Bytes::copy_from_slice(&jpeg))
}

/// Few images are stored several times: an epoch of fewer than a batch is slow by itself.
fn store(
    images: &[Bytes],
    folder: &Path,
    io: &IoConfig,
    runtime: &IoRuntime,
) -> anyhow::Result<std::sync::Arc<Dataset>> {
    std::fs::create_dir_all(folder).context("cannot make a folder for the images")?;
    let folder = folder.to_string_lossy().into_owned();
    let url = open_url(&folder, io)?;
    let mut writer = ShardWriter::new(
        runtime,
        &url,
        "images.parquet",
        None,
        Labels::Absent,
        ROW_GROUP,
    )?;
    let bytes = images.iter().map(Bytes::len).sum::<usize>().max(1);
    let times = LEAST_STORED.div_ceil(images.len()).min(MOST_BYTES / bytes);
    let images = std::iter::repeat_n(images, times.max(1)).flatten();
    for (number, bytes) in images.enumerate() {
        writer.push(PackedImage {
            bytes: bytes.clone(),
            path: Some(number.to_string()),
            label: None,
        })?;
    }
    writer.finish()?;
    let config = nepa_pipeline::DatasetConfig {
        urls: vec![folder],
        ..nepa_pipeline::DatasetConfig::default()
    };
    Ok(Dataset::open(&config, io, runtime)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progressive_jpegs_are_a_format_of_their_own() {
        let named = |is_progressive| {
            let mut compressor = turbojpeg::Compressor::new().unwrap();
            compressor.set_progressive(is_progressive).unwrap();
            let image = turbojpeg::Image {
                pixels: [90; 3 * 16 * 16].as_slice(),
                width: 16,
                pitch: 3 * 16,
                height: 16,
                format: turbojpeg::PixelFormat::RGB,
            };
            let bytes = compressor.compress_to_vec(image).unwrap();
            format_name(ImageFormat::Jpeg, &bytes)
        };
        assert_eq!([named(false), named(true)], ["JPEG", PROGRESSIVE]);
        assert_eq!(format_name(ImageFormat::Png, b"\x89PNG"), "PNG");
    }
}
