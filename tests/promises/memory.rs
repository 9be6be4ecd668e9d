//! Memory is that of the values: a file of few bytes costs little memory, whatever it stands for, and one that lies is refused before it is unpacked.
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BinaryArray, StringArray};
use arrow::record_batch::RecordBatch;
use nepa_tests::program::{assert_says, jpeg, nepa, tiny_recipe};
use nepa_tests::shards::with_other_footer;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::{ColumnChunkMetaData, ColumnChunkMetaDataBuilder};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};

const MIB: u64 = 1 << 20;
/// What the program may take beyond what it does with a small data set.
const MOST: u64 = 200 * MIB;

/// How a program ended, what it said, and the most memory that it had.
struct Ended {
    success: bool,
    said: String,
    peak: u64,
}

/// Runs it, looking at its high-water mark all the time.
fn watch(command: &mut Command) -> Ended {
    let said = tempfile::tempfile().unwrap();
    command.stdout(Stdio::from(said.try_clone().unwrap()));
    command.stderr(Stdio::from(said.try_clone().unwrap()));
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let success = loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = mark.and_then(|mark| mark.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        if let Some(status) = child.try_wait().unwrap() {
            break status.success();
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let mut text = String::new();
    let mut said = said;
    std::io::Seek::rewind(&mut said).unwrap();
    std::io::Read::read_to_string(&mut said, &mut text).unwrap();
    assert!(peak > MIB, "the high-water mark was not seen");
    Ended {
        success,
        said: text,
        peak,
    }
}

fn inspect(data: &Path) -> Ended {
    watch(nepa().arg("inspect").arg(data))
}

fn pretrain(data: &Path) -> Ended {
    let output = tempfile::tempdir().unwrap();
    let mut command = nepa();
    command.arg("pretrain").arg(tiny_recipe());
    command.arg("--data").arg(data);
    command.arg("--out").arg(output.path().join("run"));
    watch(command.args(["--set", "data.shuffle_window_bytes=1048576"]))
}

/// A JPEG with so many bytes behind its end, which no decoder reads.
fn padded(number: u32, num_bytes: usize) -> Vec<u8> {
    let mut image = jpeg(number);
    image.resize(image.len() + num_bytes, 0);
    image
}

/// A shard of one row group, written in steps, so that the test itself needs little memory.
fn shard<'a>(
    images: impl IntoIterator<Item = &'a Vec<u8>>,
    properties: WriterPropertiesBuilder,
) -> Vec<u8> {
    let images = images.into_iter().map(Some).collect::<Vec<_>>();
    let batches = images.chunks(100).map(|images| {
        let images: ArrayRef = Arc::new(images.iter().copied().collect::<BinaryArray>());
        RecordBatch::try_from_iter([("image", images)]).unwrap()
    });
    file(batches, properties)
}

/// One row group of all batches.
fn file(
    batches: impl IntoIterator<Item = RecordBatch>,
    properties: WriterPropertiesBuilder,
) -> Vec<u8> {
    let properties = properties.build();
    let mut batches = batches.into_iter().peekable();
    let schema = batches.peek().unwrap().schema();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties)).unwrap();
    for batch in batches {
        writer.write(&batch).unwrap();
    }
    writer.into_inner().unwrap()
}

fn put(folder: &tempfile::TempDir, bytes: &[u8]) {
    assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
    std::fs::write(folder.path().join("a.parquet"), bytes).unwrap();
}

fn dictionary() -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_dictionary_page_size_limit(4 << 20)
        .set_compression(Compression::ZSTD(parquet::basic::ZstdLevel::default()))
}

#[test]
fn an_image_that_a_dictionary_repeats_is_held_once() {
    let folder = tempfile::tempdir().unwrap();
    let images = [padded(1, 100_000), padded(2, 100_000)];
    let images = (0..20_000).map(|row| &images[row % 2]);
    put(&folder, &shard(images, dictionary()));
    for ended in [inspect(folder.path()), pretrain(folder.path())] {
        assert!(ended.success, "{}", ended.said);
        assert!(ended.peak < MOST, "{} MiB", ended.peak / MIB);
    }
    let said = inspect(folder.path()).said;
    assert_says(
        &said,
        &["1.88 GiB of values; those that a dictionary repeats are held once"],
    );
}

#[test]
fn a_text_that_a_dictionary_repeats_is_held_once() {
    let folder = tempfile::tempdir().unwrap();
    let image = jpeg(1);
    let names = ["a", "b"].map(|name| name.repeat(50_000));
    let images: ArrayRef = Arc::new(BinaryArray::from_vec(vec![&image[..]; 100]));
    let names = (0..100).map(|row| Some(&names[row % 2]));
    let names: ArrayRef = Arc::new(names.collect::<StringArray>());
    let batch = RecordBatch::try_from_iter([("image", images), ("label", names)]).unwrap();
    put(&folder, &file(vec![batch; 200], dictionary()));
    let ended = inspect(folder.path());
    assert!(
        ended.success,
        "{}",
        ended.said.chars().take(2000).collect::<String>()
    );
    assert!(ended.peak < MOST, "{} MiB", ended.peak / MIB);
}

/// In base64, of a multiple of three bytes.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = bytes.chunks_exact(3).flat_map(|three| {
        let bits = three
            .iter()
            .fold(0, |bits, &byte| bits << 8 | usize::from(byte));
        [18, 12, 6, 0].map(|shift| char::from(LETTERS[bits >> shift & 63]))
    });
    letters.collect()
}

#[test]
fn base64_that_a_dictionary_repeats_is_decoded_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = padded(1, 100_000);
    image.resize(image.len().next_multiple_of(3), 0);
    let text = base64(&image);
    let images: ArrayRef = Arc::new(StringArray::from(vec![text.as_str(); 100]));
    let batch = RecordBatch::try_from_iter([("image", images)]).unwrap();
    put(&folder, &file(vec![batch; 200], dictionary()));
    let mut command = nepa();
    command.arg("inspect").arg(folder.path());
    let ended = watch(command.args(["--image-column", "image"]));
    assert!(ended.success, "{}", ended.said);
    assert_says(&ended.said, &["256 images decoded, 0 unreadable"]);
    assert!(ended.peak < MOST, "{} MiB", ended.peak / MIB);
}

/// The same bytes under a footer whose images' uncompressed size is one byte for each of the file's.
fn understated(file: Vec<u8>) -> Vec<u8> {
    let small = |column: &ColumnChunkMetaData, builder: ColumnChunkMetaDataBuilder| {
        builder
            .set_total_uncompressed_size(column.compressed_size())
            .set_unencoded_byte_array_data_bytes(None)
    };
    with_other_footer(file, None, small)
}

fn is_refused(ended: &Ended, words: &[&str]) {
    assert!(!ended.success, "{}", ended.said);
    assert_says(&ended.said, words);
    assert!(ended.peak < MOST, "{} MiB", ended.peak / MIB);
}

#[test]
fn pages_that_unpack_to_more_than_the_footer_says_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    // As many as a batch holds.
    let images = [400_000_000, 0, 0, 0, 0, 0, 0, 0].map(|num_bytes| padded(1, num_bytes));
    let properties = dictionary().set_dictionary_enabled(false);
    put(&folder, &understated(shard(&images, properties)));
    let words = [
        "`image` of",
        "a.parquet, row group 0 unpacks to at least 4",
        "write it again",
    ];
    is_refused(&inspect(folder.path()), &words);
    is_refused(&pretrain(folder.path()), &words);
}

#[test]
fn values_that_share_their_bytes_are_counted_before_they_are_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let image = padded(1, 50_000);
    let images = std::iter::repeat_n(&image, 20_000);
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_encoding(Encoding::DELTA_BYTE_ARRAY);
    put(&folder, &understated(shard(images, properties)));
    is_refused(
        &inspect(folder.path()),
        &["unpacks to at least", "plain or dictionary encoding"],
    );
    // Such encodings are read where they are honest.
    let images: Vec<_> = (0..300).map(jpeg).collect();
    for encoding in [
        Encoding::DELTA_BYTE_ARRAY,
        Encoding::DELTA_LENGTH_BYTE_ARRAY,
    ] {
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_data_page_row_count_limit(70)
            .set_encoding(encoding);
        put(&folder, &shard(&images, properties));
        let ended = inspect(folder.path());
        assert!(ended.success, "{}", ended.said);
        assert_says(&ended.said, &["256 images decoded, 0 unreadable"]);
    }
}

#[test]
fn a_footer_that_claims_other_rows_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let images: Vec<_> = (0..40).map(jpeg).collect();
    let sound = || shard(&images, WriterProperties::builder());
    for (claimed, words) in [
        (1_000_000u64, "holds 40 rows, and its footer says 1000000"),
        (39, "holds 40 rows, and its footer says 39"),
        (4_000_000_000, "claims 4000000000 rows in"),
    ] {
        let lie = |_: &ColumnChunkMetaData, builder: ColumnChunkMetaDataBuilder| builder;
        put(&folder, &with_other_footer(sound(), Some(claimed), lie));
        is_refused(&inspect(folder.path()), &[words]);
    }
    // Sizes that cannot be are no reason to take memory, either.
    let huge = |_: &ColumnChunkMetaData, builder: ColumnChunkMetaDataBuilder| {
        builder.set_total_uncompressed_size(1 << 41)
    };
    put(&folder, &with_other_footer(sound(), None, huge));
    for ended in [inspect(folder.path()), pretrain(folder.path())] {
        assert!(ended.success, "{}", ended.said);
        assert!(ended.peak < MOST, "{} MiB", ended.peak / MIB);
    }
}
