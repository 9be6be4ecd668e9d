//! An index against the footers that it stands for: the same shards, no requests, at 10^5 shards,
//! too; what is wrong with one is told apart.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::BinaryArray;
use arrow::compute::take;
use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use parquet::file::metadata::FileMetaData;

use super::*;
use crate::dataset::footer::read_shard;
use crate::dataset::shard::{digest, opened_source};
use crate::store::{Location, Patience, Stores};
use crate::{Dataset, IoConfig, IoRuntime, SchemaOptions};

/// A store in memory that counts what it is asked for.
#[derive(Debug, Clone, Default)]
struct Counted {
    objects: Arc<InMemory>,
    requests: Arc<AtomicU64>,
}

impl Counted {
    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// The place of the bucket that it serves.
    fn places(&self) -> Vec<UrlPlace> {
        let store: Arc<dyn ObjectStore> = Arc::new(self.clone());
        vec![UrlPlace {
            stores: Stores {
                patient: Arc::clone(&store),
                single: store,
                parts: None,
                patience: Patience::new("s3://memory", Duration::ZERO),
            },
            location: Arc::new(Location::parse("s3://memory/").expect("a URL")),
        }]
    }
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("counted")
    }
}

#[async_trait]
impl ObjectStore for Counted {
    async fn get_opts(&self, path: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.count();
        self.objects.get_opts(path, options).await
    }

    async fn put_opts(
        &self,
        path: &Path,
        data: PutPayload,
        how: PutOptions,
    ) -> StoreResult<PutResult> {
        self.count();
        self.objects.put_opts(path, data, how).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        how: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.count();
        self.objects.put_multipart_opts(path, how).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        self.count();
        self.objects.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.count();
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.count();
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> StoreResult<()> {
        self.count();
        self.objects.copy_opts(from, to, how).await
    }
}

/// A file of two row groups of three rows, with images and labels.
fn file() -> Vec<u8> {
    let images: ArrayRef = Arc::new(BinaryArray::from_iter_values([b"one", b"two", b"six"]));
    let labels: ArrayRef = Arc::new(Int64Array::from_iter_values([1, 2, 6]));
    let columns = [("image", images, true), ("label", labels, true)];
    let batch = RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length");
    let writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None);
    let mut writer = writer.expect("a schema that Parquet knows");
    for _ in 0..2 {
        writer.write(&batch).expect("memory takes it");
        writer.flush().expect("memory takes it");
    }
    writer.into_inner().expect("memory takes it")
}

fn origin() -> Origin {
    Origin {
        urls: vec!["s3://memory/".to_owned()],
        ..Origin::default()
    }
}

/// The choices of a run of pretraining, or automatic ones.
fn choices(labels: bool) -> SchemaOptions {
    SchemaOptions {
        label_column: (!labels).then(String::new),
        ..SchemaOptions::default()
    }
}

/// A data set of so many shards, their footers read from the store.
fn opened(count: usize, labels: bool, store: &Counted, runtime: &IoRuntime) -> Arc<Dataset> {
    let io = Arc::new(Io::open(&IoConfig::default(), runtime).expect("no cache"));
    let (store, own) = (store.clone(), Arc::clone(&io));
    let shards = runtime.block_on(async move {
        let (bytes, places) = (file(), store.places());
        let readings = Readings::new(&choices(labels));
        let mut shards = Vec::new();
        for number in 0..count {
            let key = format!("train-{number:06}.parquet");
            let path = Path::from(key.as_str());
            let put = store.objects.put(&path, bytes.clone().into()).await;
            put.expect("memory takes it");
            let object = known_object(&places[0], &key, bytes.len() as u64).expect("a key");
            let shard = read_shard(object, &readings, &own).await;
            shards.push(shard.expect("a footer").expect("rows"));
        }
        shards
    });
    let source = opened_source(&shards, 0, 1.0).expect("one schema");
    Dataset::of(shards, (vec![source], vec![origin()]), Vec::new(), io)
}

/// The shards of an index.
fn open_index(
    index: &Bytes,
    origin: &Origin,
    schema: &SchemaOptions,
    store: &Counted,
    runtime: &IoRuntime,
) -> Result<Vec<Shard>, DatasetError> {
    let io = Arc::new(Io::open(&IoConfig::default(), runtime).expect("no cache"));
    let (index, origin) = (index.clone(), origin.clone());
    let (places, readings) = (store.places(), Readings::new(schema));
    runtime.block_on(async move { super::open(index, &origin, places, readings, &io).await })
}

/// The index with other rows and another head; the checksum of the rows that were, or that are.
fn changed(
    index: &Bytes,
    rows: impl FnOnce(RecordBatch) -> Vec<RecordBatch>,
    head: impl FnOnce(&mut serde_json::Value),
    checks: bool,
) -> Bytes {
    let reader = ParquetRecordBatchReaderBuilder::try_new(index.clone()).expect("an index");
    let pairs = reader.metadata().file_metadata().key_value_metadata();
    let mut pairs = pairs.expect("a head").iter();
    let text = pairs.find(|pair| pair.key == HEAD).expect("a head");
    let text = text.value.as_deref().expect("a head");
    let mut about: serde_json::Value = serde_json::from_str(text).expect("a head");
    let mut batches = reader.with_batch_size(ROWS).build().expect("rows");
    let batch = batches.next().expect("rows").expect("rows");
    let batches = rows(batch);
    let mut checksum = Hasher::new();
    for batch in &batches {
        Rows::of(batch).expect("columns").add_to(&mut checksum);
    }
    if checks {
        about["crc32"] = checksum.finalize().into();
        about["shards"] = batches
            .iter()
            .map(RecordBatch::num_rows)
            .sum::<usize>()
            .into();
    }
    head(&mut about);
    let mut writer = ArrowWriter::try_new(Vec::new(), schema(), None).expect("a writer");
    for batch in &batches {
        writer.write(batch).expect("memory takes it");
    }
    writer.append_key_value_metadata(KeyValue::new(HEAD.to_owned(), about.to_string()));
    writer.into_inner().expect("memory takes it").into()
}

/// A batch with another column.
fn with_column(batch: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let place = batch.schema().index_of(name).expect("the column");
    let mut columns = batch.columns().to_vec();
    columns[place] = column;
    RecordBatch::try_new(schema(), columns).expect("the columns of an index")
}

#[test]
fn an_index_gives_the_same_shards_without_a_request() {
    let (store, runtime) = (Counted::default(), IoRuntime::new(2).expect("threads"));
    let dataset = opened(300, true, &store, &runtime);
    let asked = store.requests();
    assert!(asked >= 300, "a request a footer, {asked}");
    let index = dataset.indexes().expect("an index").remove(0);
    let shards = open_index(&index, &origin(), &choices(true), &store, &runtime);
    let shards = shards.expect("the shards");
    assert_eq!((shards.len(), store.requests()), (300, asked));
    for (shard, read) in shards.iter().zip(dataset.shards()) {
        assert_eq!((&shard.url, shard.size), (&read.url, read.size));
        assert_eq!((&shard.e_tag, &shard.parts), (&read.e_tag, &read.parts));
        assert_eq!(shard.mapping, read.mapping);
        assert_eq!(shard.metadata.schema(), read.metadata.schema());
        assert!(Arc::ptr_eq(&shard.reading, &shards[0].reading));
    }
    assert!(digest(&shards) == digest(dataset.shards()));

    // With fewer columns it is as footers read for these are; with more it is refused.
    let unlabelled = opened(300, false, &store, &runtime);
    let shards = open_index(&index, &origin(), &choices(false), &store, &runtime);
    let shards = shards.expect("the shards");
    assert!(digest(&shards) == digest(unlabelled.shards()));
    assert_eq!(shards[7].parts, unlabelled.shards()[7].parts);
    let index = unlabelled.indexes().expect("an index").remove(0);
    let error = open_index(&index, &origin(), &choices(true), &store, &runtime);
    let error = error.expect_err("there are no labels in it");
    let DatasetError::Index { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(matches!(source, IndexProblem::Column { column } if column == "label"));
}

#[test]
fn a_hundred_thousand_shards_are_opened_without_a_request() {
    const SHARDS: usize = 100_000;
    let (store, runtime) = (Counted::default(), IoRuntime::new(2).expect("threads"));
    let one = opened(1, true, &store, &runtime);
    let index = one.indexes().expect("an index").remove(0);
    let repeated = |batch: RecordBatch| {
        let zeros = UInt32Array::from(vec![0; SHARDS]);
        let columns = batch.columns().iter();
        let columns = columns.map(|column| take(column, &zeros, None).expect("its row"));
        let columns = columns.collect();
        let all = RecordBatch::try_new(schema(), columns).expect("columns of one length");
        // It stands in the first row alone.
        let file = batch.column_by_name("schema").expect("the column");
        let file = file.as_binary::<i64>().value(0);
        let files = (0..SHARDS).map(|number| (number == 0).then_some(file));
        let files: ArrayRef = Arc::new(files.collect::<LargeBinaryArray>());
        let keys = (0..SHARDS).map(|number| format!("train-{number:06}.parquet"));
        let keys: ArrayRef = Arc::new(StringArray::from_iter_values(keys));
        vec![with_column(
            &with_column(&all, "schema", files),
            "key",
            keys,
        )]
    };
    let index = changed(&index, repeated, |_| (), true);
    let asked = store.requests();
    let shards = open_index(&index, &origin(), &choices(true), &store, &runtime);
    let shards = shards.expect("the shards");
    assert_eq!((shards.len(), store.requests()), (SHARDS, asked));
    assert_eq!(shards[SHARDS - 1].url, "s3://memory/train-099999.parquet");
    let source = opened_source(&shards, 0, 1.0).expect("one schema");
    assert_eq!(source.num_samples, 6 * SHARDS as u64);
    // What follows from the schema is held once.
    let first = &shards[0].reading;
    assert!(
        shards
            .iter()
            .all(|shard| Arc::ptr_eq(&shard.reading, first))
    );
}

#[test]
fn what_is_wrong_with_an_index_is_told_apart() {
    let (store, runtime) = (Counted::default(), IoRuntime::new(2).expect("threads"));
    let dataset = opened(3, true, &store, &runtime);
    let index = dataset.indexes().expect("an index").remove(0);
    let problem = |index: &Bytes, origin: &Origin| {
        let error = open_index(index, origin, &choices(true), &store, &runtime);
        match error.expect_err("it must be refused") {
            DatasetError::Index { source, .. } => source,
            other => panic!("{other:?}"),
        }
    };
    for length in [0, 7, 100, index.len() / 2, index.len() - 1] {
        let found = problem(&index.slice(..length), &origin());
        assert!(
            matches!(found, IndexProblem::Damaged { .. }),
            "{length}: {found}"
        );
    }
    let found = problem(&file().into(), &origin());
    assert!(matches!(found, IndexProblem::NoIndex), "{found}");

    let same = |batch| vec![batch];
    let newer = changed(&index, same, |head| head["version"] = 7.into(), true);
    let found = problem(&newer, &origin());
    assert!(
        matches!(found, IndexProblem::Version { found: 7, .. }),
        "{found}"
    );
    let fewer = |batch: RecordBatch| vec![batch.slice(0, 2)];
    let found = problem(&changed(&index, fewer, |_| (), false), &origin());
    assert!(matches!(found, IndexProblem::Checksum), "{found}");
    let larger = |batch: RecordBatch| {
        let sizes: ArrayRef = Arc::new(UInt64Array::from(vec![1 << 30; 3]));
        vec![with_column(&batch, "size", sizes)]
    };
    let found = problem(&changed(&index, larger, |_| (), false), &origin());
    assert!(matches!(found, IndexProblem::Checksum), "{found}");

    let mut other = origin();
    other.urls[0].push_str("val/");
    let found = problem(&index, &other);
    assert!(matches!(found, IndexProblem::OtherData { .. }), "{found}");
    let split = Origin {
        split: Some("train".to_owned()),
        ..origin()
    };
    let said = problem(&index, &split).to_string();
    assert!(said.contains("s3://memory/ (split train)"), "{said}");
}

#[test]
fn metadata_that_is_not_read_makes_no_other_schema() {
    let readings = Readings::new(&choices(true));
    let schema = |pairs: &[(&str, &str)]| {
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file()));
        let reader = reader.expect("a footer");
        let about = reader.metadata().file_metadata();
        let pair =
            |(key, value): &(&str, &str)| KeyValue::new((*key).to_owned(), (*value).to_owned());
        let about = FileMetaData::new(
            about.version(),
            about.num_rows(),
            None,
            Some(pairs.iter().map(pair).collect()),
            about.schema_descr_ptr(),
            None,
        );
        let row_groups = reader.metadata().row_groups().to_vec();
        readings.schema(&ParquetMetaData::new(about, row_groups))
    };
    let one = schema(&[("pandas", "6 rows")]);
    assert!(Arc::ptr_eq(&one, &schema(&[("pandas", "7 rows")])));
    let named = schema(&[("pandas", "6 rows"), ("huggingface", "{}")]);
    assert!(!Arc::ptr_eq(&one, &named));
}
