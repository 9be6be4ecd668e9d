//! The loader's pool, queues and shutdown in many orders of events.
//!
//! `shuttle` runs all threads of the loader one at a time and decides at each operation on a queue which goes on; a deadlock, a lost sample or a batch out of order
//! fails, and the printed schedule replays it (`shuttle::replay`). `NEPA_INTERLEAVINGS` says how many orders are tried by each test (2,000 without it).
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, BinaryArray};
use arrow::record_batch::RecordBatch;
use nepa_pipeline_interleavings as pipeline;
use parquet::arrow::ArrowWriter;
use pipeline::PartId;
use pipeline::{
    AugmentConfig, Dataset, DatasetConfig, Filter, ImageBackend, ImageError, IoConfig, IoRuntime,
    Loader, LoaderConfig, LoaderError, SampleId,
};
use pipeline::{BackendError, Decode, ImageDecoder, PlannedImage};
use pipeline::{ImageFormat, ImageHeader, Orientation};
use shuttle::rand::Rng;

const ROW_GROUPS: u32 = 3;
const ROWS: u32 = 6;

/// Rows `r` with `r % 5 == 3` cannot be decoded.
fn image(row_group: u32, row: u32) -> Vec<u8> {
    vec![row_group as u8, row as u8, u8::from(row % 5 == 3)]
}

/// A data set of one shard whose parts lie in memory, but for those `missing`.
fn dataset(missing: &[PartId]) -> Arc<Dataset> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("train-0.parquet");
    let mut writer = None;
    for row_group in 0..ROW_GROUPS {
        let images: BinaryArray = (0..ROWS).map(|row| Some(image(row_group, row))).collect();
        let images: ArrayRef = Arc::new(images);
        let batch = RecordBatch::try_from_iter([("image", images)]).expect("one column");
        let writer = writer.get_or_insert_with(|| {
            let file = std::fs::File::create(&path).expect("a file");
            ArrowWriter::try_new(file, batch.schema(), None).expect("a sound schema")
        });
        writer.write(&batch).expect("room on the disk");
        writer.flush().expect("room on the disk");
    }
    writer
        .expect("row groups")
        .close()
        .expect("room on the disk");
    let config = DatasetConfig {
        urls: vec![path.display().to_string()],
        ..DatasetConfig::default()
    };
    let runtime = IoRuntime::new(1).expect("threads");
    Dataset::open(&config, &IoConfig::default(), &runtime)
        .expect("a sound data set")
        .prefetch(missing)
}

/// "Decodes" by copying the bytes; takes some images in batches, if asked to.
#[derive(Debug, Clone, Copy)]
struct Verbatim {
    batches: bool,
}

/// A decode thread's.
struct Single;

/// Takes two at a time, and fails now and then.
struct Pairs;

fn header() -> ImageHeader {
    ImageHeader {
        format: ImageFormat::Jpeg,
        width: 8,
        height: 8,
        orientation: Orientation::UPRIGHT,
    }
}

fn copy(images: &mut [Decode<'_, Vec<u8>>]) {
    for Decode {
        image,
        slot,
        result,
    } in images
    {
        // As long as it takes.
        shuttle::thread::yield_now();
        if image.bytes[2] == 1 {
            *result = Err(ImageError::Empty);
        } else {
            image.bytes.as_ref().clone_into(slot);
        }
    }
}

impl ImageDecoder<Vec<u8>> for Single {
    fn header(&mut self, _bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        Ok(header())
    }

    fn decode(&mut self, images: &mut [Decode<'_, Vec<u8>>]) -> Result<(), BackendError> {
        copy(images);
        Ok(())
    }
}

impl ImageDecoder<Vec<u8>> for Pairs {
    fn header(&mut self, _bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        Ok(header())
    }

    fn max_images(&self) -> usize {
        2
    }

    fn decode(&mut self, images: &mut [Decode<'_, Vec<u8>>]) -> Result<(), BackendError> {
        if shuttle::rand::thread_rng().gen_bool(0.2) {
            return Err(BackendError {
                doing: "decoding a batch",
                source: "a fault".into(),
            });
        }
        copy(images);
        Ok(())
    }
}

impl ImageBackend for Verbatim {
    type Memory = Vec<Vec<u8>>;
    type Slot = Vec<u8>;

    fn memory(&self, batch_size: usize, _sides: &[u32]) -> Result<Vec<Vec<u8>>, BackendError> {
        Ok(vec![Vec::new(); batch_size])
    }

    fn slots(&self, memory: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        memory
    }

    fn join(&self, slots: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        slots
    }

    fn decoder(&self) -> Result<Box<dyn ImageDecoder<Vec<u8>>>, BackendError> {
        Ok(Box::new(Single))
    }

    fn batch_decoders(&self) -> Result<Vec<Box<dyn ImageDecoder<Vec<u8>>>>, BackendError> {
        // Two, as on a GPU: they take turns.
        let number = if self.batches { 2 } else { 0 };
        Ok((0..number).map(|_| Box::new(Pairs) as _).collect())
    }

    fn batch_accepts(&self, _image: &PlannedImage<'_>) -> bool {
        true
    }
}

fn config() -> LoaderConfig {
    LoaderConfig {
        seed: 1,
        global_batch: 4,
        epochs: Some(2),
        drop_last: false,
        augment: AugmentConfig::CenterCrop {
            size: 8,
            resize: 8,
            filter: Filter::Bilinear,
        },
        decode_threads: 2,
        prefetch_batches: 1,
        // A window a row group, or nearly.
        shuffle_window_bytes: 1,
        max_bad_fraction: 1.0,
        ..LoaderConfig::default()
    }
}

fn loader(dataset: &Arc<Dataset>, batches: bool) -> Loader<Verbatim> {
    let backend = Arc::new(Verbatim { batches });
    Loader::with_backend(Arc::clone(dataset), config(), None, backend).expect("it starts")
}

/// The asked-for and the given sample of each position, checked against the bytes in its slot.
type Trace = Vec<(Option<SampleId>, SampleId)>;

fn read(loader: &mut Loader<Verbatim>, batches: usize) -> Result<Trace, LoaderError> {
    let mut trace = Vec::new();
    for batch in loader.take(batches) {
        let batch = batch?;
        for (sample, bytes) in batch.samples().iter().zip(batch.memory()) {
            assert_eq!(*bytes, image(sample.id.row_group, sample.id.row));
            trace.push((sample.replaces, sample.id));
        }
    }
    Ok(trace)
}

/// Tries `body` in many orders, half of them chosen at random and half by probabilistic concurrency testing (Burckhardt et al., ASPLOS 2010).
fn explore(body: impl Fn() + Send + Sync + 'static) {
    let orders =
        std::env::var("NEPA_INTERLEAVINGS").map_or(2000, |text| text.parse().expect("a number"));
    let body = Arc::new(body);
    let again = Arc::clone(&body);
    shuttle::check_random(move || body(), orders / 2);
    shuttle::check_pct(move || again(), orders / 2, 3);
}

#[test]
fn every_order_gives_the_same_batches() {
    let dataset = dataset(&[]);
    let first: OnceLock<Trace> = OnceLock::new();
    explore(move || {
        let batches = shuttle::rand::thread_rng().r#gen();
        let trace = read(&mut loader(&dataset, batches), usize::MAX).expect("nothing fails");
        assert_eq!(trace.len() as u32, 2 * ROW_GROUPS * ROWS);
        assert_eq!(&trace, first.get_or_init(|| trace.clone()));
    });
}

#[test]
fn dropping_the_loader_at_any_time_stops_all_threads() {
    let dataset = dataset(&[]);
    explore(move || {
        let (batches, wanted) = {
            let mut rng = shuttle::rand::thread_rng();
            (rng.r#gen(), rng.gen_range(0..11))
        };
        let mut loader = loader(&dataset, batches);
        let kept = loader.next_batch();
        read(&mut loader, wanted).expect("nothing fails");
        drop(loader);
        // A batch outlives its loader.
        assert!(kept.expect("nothing fails").is_some());
    });
}

#[test]
fn a_failed_fetch_ends_the_run_with_its_error_whatever_else_goes_on() {
    let dataset = dataset(&[PartId { shard: 0, part: 1 }]);
    explore(move || {
        let batches = shuttle::rand::thread_rng().r#gen();
        let mut loader = loader(&dataset, batches);
        let error = read(&mut loader, usize::MAX).expect_err("a part is missing");
        assert!(matches!(error, LoaderError::Dataset(_)), "{error}");
        assert!(loader.next_batch().is_err(), "and nothing comes after it");
    });
}
