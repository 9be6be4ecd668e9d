//! Shards of photos in the shapes that make trouble.
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use image::imageops::FilterType;
use nepa_benchmarks::{open, samples};
use nepa_pipeline::{IoRuntime, decode_rgb};
use nepa_tests::photos::encode_jpeg;
use nepa_tests::shards::{labelled_shard_with, properties};
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use tempfile::TempDir;

/// Photos that are taken.
const PHOTOS: usize = 240;
const FEW: usize = 80;
/// Rows of a row group, unless it is said otherwise.
const ROWS: usize = 40;
/// Photos of twelve million pixels; they are large, so there are few.
const LARGE: usize = 16;
const LARGE_SIZE: (u32, u32) = (4000, 3000);

/// A data set in a folder of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// As they are.
    Plain,
    /// The first of them, as many as a slow line brings in a few seconds.
    Few,
    /// Five rows in a row group.
    SmallGroups,
    /// Twelve million pixels.
    Large,
    /// The same photos, the shorter side so many pixels.
    Shrunk(u32),
    /// One in so many is a PNG, the others are as they are.
    Png(usize),
    /// One in so many is encoded anew as a progressive JPEG.
    Progressive(usize),
    /// The same as a baseline JPEG.
    Anew(usize),
    Gzip,
    Zstd,
    /// All in one row group of a gigabyte, without an index of its pages.
    OneGroup,
    /// The photos in each of so many shards.
    Copies(usize),
    /// Two in a hundred cannot be decoded.
    Broken,
}

/// The data sets, made when they are wanted.
pub(crate) struct Folders {
    photos: Vec<Vec<u8>>,
    large: OnceCell<Vec<Vec<u8>>>,
    root: TempDir,
}

impl Folders {
    pub(crate) fn new(photos: &Path) -> anyhow::Result<Self> {
        let runtime = IoRuntime::new(2)?;
        let dataset = open(&photos.to_string_lossy(), &runtime)?;
        let photos = samples(&dataset, PHOTOS)?;
        ensure!(
            photos.len() >= 100,
            "{} photos are too few: a hundred are needed",
            photos.len()
        );
        Ok(Self {
            photos: photos.into_iter().map(|(bytes, _)| bytes).collect(),
            large: OnceCell::new(),
            root: tempfile::tempdir()?,
        })
    }

    fn large(&self) -> &[Vec<u8>] {
        self.large.get_or_init(|| {
            let photos = self.photos.iter().take(LARGE);
            let enlarged = photos.filter_map(|photo| resized(photo, LARGE_SIZE.0, LARGE_SIZE.1));
            enlarged.collect()
        })
    }

    /// The folder of a data set.
    pub(crate) fn of(&self, shape: Shape) -> anyhow::Result<PathBuf> {
        let folder = self.root.path().join(format!("{shape:?}"));
        if !folder.exists() {
            let shard = self.shard(shape)?;
            std::fs::create_dir(&folder)?;
            let copies = match shape {
                Shape::Copies(copies) => copies,
                _ => 1,
            };
            for copy in 0..copies {
                std::fs::write(folder.join(format!("train-{copy}.parquet")), &shard)?;
            }
        }
        Ok(folder)
    }

    /// The photos, one in so many changed.
    fn some(
        &self,
        every: usize,
        change: impl Fn(&[u8]) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        let photos = self.photos.iter().enumerate();
        let changed = photos.map(|(n, photo)| match n % every {
            0 => change(photo),
            _ => Ok(photo.clone()),
        });
        changed.collect()
    }

    fn shard(&self, shape: Shape) -> anyhow::Result<Vec<u8>> {
        let photos = || self.photos.iter().cloned();
        let plain = properties();
        let (images, rows, properties): (Vec<_>, _, _) = match shape {
            Shape::Plain | Shape::Copies(_) => (photos().collect(), ROWS, plain),
            Shape::Few => (photos().take(FEW).collect(), ROWS, plain),
            Shape::SmallGroups => (photos().collect(), 5, plain),
            Shape::Large => (self.large().to_vec(), 4, plain),
            Shape::Shrunk(side) => {
                let shrunk = self.large().iter().filter_map(|photo| {
                    let (width, height) = LARGE_SIZE;
                    resized(photo, width * side / height, side)
                });
                (shrunk.collect(), ROWS, plain)
            }
            Shape::Png(every) => (self.some(every, png)?, ROWS, plain),
            Shape::Progressive(every) => {
                let progressive = |photo: &[u8]| jpeg(photo, true);
                (self.some(every, progressive)?, ROWS, plain)
            }
            Shape::Anew(every) => {
                let baseline = |photo: &[u8]| jpeg(photo, false);
                (self.some(every, baseline)?, ROWS, plain)
            }
            Shape::Gzip => {
                let gzip = Compression::GZIP(GzipLevel::default());
                (photos().collect(), ROWS, plain.set_compression(gzip))
            }
            Shape::Zstd => {
                let zstd = Compression::ZSTD(ZstdLevel::default());
                (photos().collect(), ROWS, plain.set_compression(zstd))
            }
            Shape::OneGroup => {
                let bytes = self.photos.iter().map(Vec::len).sum::<usize>();
                let times = (1usize << 30).div_ceil(bytes);
                let many = std::iter::repeat_n(&self.photos, times).flatten().cloned();
                let no_index = plain.set_offset_index_disabled(true);
                (many.collect(), usize::MAX, no_index)
            }
            Shape::Broken => {
                let broken = photos().enumerate().map(|(n, photo)| match n % 50 {
                    7 => b"no picture".to_vec(),
                    _ => photo,
                });
                (broken.collect(), ROWS, plain)
            }
        };
        let mut images = images.into_iter().enumerate().peekable();
        let groups = std::iter::from_fn(|| {
            images.peek()?;
            let rows = images.by_ref().take(rows);
            // Sorted by label, as many sets are.
            let rows = rows.map(|(n, bytes)| (Some(bytes), None, n as i64 / 40));
            Some(rows.collect::<Vec<_>>())
        });
        let statistics = parquet::file::properties::EnabledStatistics::None;
        let properties = properties.set_statistics_enabled(statistics);
        let properties = properties.set_max_row_group_row_count(None).build();
        Ok(labelled_shard_with(groups, properties))
    }
}

/// The photo as a JPEG of this size.
fn resized(photo: &[u8], width: u32, height: u32) -> Option<Vec<u8>> {
    let rgb = decode_rgb(photo, true).ok()?;
    let image = image::RgbImage::from_raw(rgb.width, rgb.height, rgb.data)?;
    let image = image::imageops::resize(&image, width, height, FilterType::Triangle);
    let (width, height) = (width as usize, height as usize);
    Some(encode_jpeg(
        &image,
        width,
        height,
        turbojpeg::Subsamp::Sub2x2,
    ))
}

fn jpeg(photo: &[u8], is_progressive: bool) -> anyhow::Result<Vec<u8>> {
    let rgb = decode_rgb(photo, true)?;
    let mut compressor = turbojpeg::Compressor::new()?;
    compressor.set_quality(90)?;
    compressor.set_subsamp(turbojpeg::Subsamp::Sub2x2)?;
    compressor.set_progressive(is_progressive)?;
    let width = rgb.width as usize;
    Ok(compressor.compress_to_vec(turbojpeg::Image {
        pixels: rgb.data.as_slice(),
        width,
        pitch: 3 * width,
        height: rgb.height as usize,
        format: turbojpeg::PixelFormat::RGB,
    })?)
}

fn png(photo: &[u8]) -> anyhow::Result<Vec<u8>> {
    let rgb = decode_rgb(photo, true)?;
    let image = image::RgbImage::from_raw(rgb.width, rgb.height, rgb.data);
    let image = image.context("as many bytes as pixels")?;
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(bytes.into_inner())
}
