//! Files that others write are read: what nobody reads of them does not matter, and the images are found where they are.
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, DictionaryArray, Int32Array, Int64Array, LargeBinaryArray,
    ListArray, NullArray, StringArray, StructArray, new_empty_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::record_batch::RecordBatch;
use nepa_pipeline::{Dataset, DatasetConfig, DatasetError, IoConfig, full_text};
use nepa_schemas::{SchemaOptions, ShardBatch};
use nepa_tests::data;
use nepa_tests::program::{assert_says, jpeg};
use nepa_tests::shards::{fake_image, write};
use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::metadata::{
    ColumnChunkMetaDataBuilder, KeyValue, ParquetMetaDataReader, ParquetMetaDataWriter,
};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use tempfile::TempDir;

const ROWS: u32 = 6;

fn images() -> Vec<Vec<u8>> {
    (0..ROWS).map(|row| fake_image(0, row)).collect()
}

fn binary() -> ArrayRef {
    Arc::new(BinaryArray::from_iter_values(images()))
}

fn structs(bytes: ArrayRef, others: Vec<(&str, ArrayRef)>) -> ArrayRef {
    let columns: Vec<_> = [("bytes", bytes)].into_iter().chain(others).collect();
    let fields = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true));
    let fields = fields.collect::<Fields>();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    Arc::new(StructArray::new(fields, arrays, None))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(schema, arrays).unwrap()
}

fn shard(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = batch(columns);
    write(&batch.schema(), [batch])
}

/// A data set of these shards.
struct Place {
    folder: TempDir,
    image_column: Option<String>,
}

impl Place {
    fn of(shards: Vec<Vec<u8>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (number, bytes) in shards.into_iter().enumerate() {
            std::fs::write(folder.path().join(format!("{number}.parquet")), bytes).unwrap();
        }
        Self {
            folder,
            image_column: None,
        }
    }

    fn named(self, image_column: &str) -> Self {
        Self {
            image_column: Some(image_column.to_owned()),
            ..self
        }
    }

    /// Settings of its data set, with columns as `schema` says.
    fn config(&self, schema: SchemaOptions) -> DatasetConfig {
        DatasetConfig {
            schema,
            ..data::at(self.folder.path().to_str().unwrap())
        }
    }

    fn open(&self) -> Result<Arc<Dataset>, DatasetError> {
        let config = self.config(SchemaOptions {
            image_column: self.image_column.clone(),
            ..SchemaOptions::default()
        });
        data::open_as(&config, &IoConfig::default())
    }

    fn read(&self) -> Result<Vec<ShardBatch>, Arc<DatasetError>> {
        Ok(data::read_all(&self.open()?)?.into_values().collect())
    }

    /// Each shard holds all images.
    #[track_caller]
    fn reads(&self, shards: usize) {
        let batches = self
            .read()
            .unwrap_or_else(|error| panic!("{}", full_text(&error)));
        assert_eq!(batches.len(), shards);
        for batch in batches {
            let found = (0..batch.num_rows()).map(|row| batch.image(row).unwrap().to_vec());
            assert_eq!(found.collect::<Vec<_>>(), images());
        }
    }

    #[track_caller]
    fn refuses(&self, parts: &[&str]) -> Arc<DatasetError> {
        let error = self.read().expect_err("it is refused");
        let text = full_text(&error);
        assert_says(&text, parts);
        assert!(!text.contains("HuggingFace {"), "{text}");
        error
    }
}

#[test]
fn names_may_hold_dots() {
    Place::of(vec![shard(vec![("input.jpg", structs(binary(), vec![]))])]).reads(1);
    Place::of(vec![shard(vec![("image.jpg", binary())])]).reads(1);
    let odd = || {
        vec![shard(vec![
            ("a.b.c", binary()),
            ("a", structs(binary(), vec![])),
        ])]
    };
    Place::of(odd()).named("a.b.c").reads(1);
    Place::of(odd()).named("a").reads(1);
    let nested = structs(binary(), vec![("photo", structs(binary(), vec![]))]);
    Place::of(vec![shard(vec![("data", nested)])])
        .named("data.photo")
        .reads(1);
}

#[test]
fn what_is_not_needed_may_differ() {
    let names = || -> ArrayRef { Arc::new(StringArray::from_iter_values(["a"; ROWS as usize])) };
    let path = |paths| shard(vec![("image", structs(binary(), vec![("path", paths)]))]);
    let nulls = Arc::new(NullArray::new(ROWS as usize));
    let numbers = Arc::new(Int32Array::from_iter_values(0..ROWS as i32));
    let shards = vec![
        path(names()),
        path(nulls),
        path(numbers),
        shard(vec![("image", structs(binary(), vec![]))]),
        shard(vec![("other", names()), ("image", binary())]),
    ];
    Place::of(shards).reads(5);
}

#[test]
fn shards_without_rows_are_left_out_whatever_their_schema() {
    let empty = |data_type: &DataType| {
        let nothing = batch(vec![("image", new_empty_array(data_type))]);
        write(&nothing.schema(), [nothing])
    };
    let good = || shard(vec![("image", binary())]);
    let shards = vec![empty(&DataType::Null), good(), empty(&DataType::Utf8)];
    let place = Place::of(shards);
    assert_eq!(place.open().unwrap().shards().len(), 1);
    place.reads(1);
    let place = Place::of(vec![empty(&DataType::Null), empty(&DataType::Binary)]);
    place.refuses(&["0.parquet and all other shards hold no rows"]);
}

#[test]
fn shards_whose_columns_are_of_no_type_hold_nothing() {
    let nothing = || -> ArrayRef { Arc::new(NullArray::new(ROWS as usize)) };
    let empty = || {
        shard(vec![(
            "image",
            structs(nothing(), vec![("path", nothing())]),
        )])
    };
    let place = Place::of(vec![empty(), shard(vec![("image", binary())])]);
    let batches = place.read().unwrap();
    assert!((0..ROWS as usize).all(|row| batches[0].image(row).is_err()));
    assert!((0..ROWS as usize).all(|row| batches[1].image(row).is_ok()));
    Place::of(vec![empty()]).refuses(&["`image`", "no image"]);
}

#[test]
fn the_arrow_schema_beside_the_file_is_a_hint() {
    // It says dictionary, the file holds plain bytes.
    let keys = Int32Array::from_iter_values(0..ROWS as i32);
    let dictionary: ArrayRef = Arc::new(DictionaryArray::new(keys, binary()));
    Place::of(vec![shard(vec![("image", dictionary)])]).reads(1);
    // It cannot be read at all, or is that of another file.
    let other = batch(vec![(
        "note",
        Arc::new(StringArray::from(vec!["a"])) as ArrayRef,
    )]);
    let other = parquet::arrow::encode_arrow_schema(&other.schema());
    for hint in ["AAAA".to_owned(), "no base64!".to_owned(), other] {
        let bytes = by_hand("message m { optional binary image; }", Some(&hint));
        Place::of(vec![bytes]).reads(1);
    }
}

/// A file with this schema, whose first column holds the images, all others nulls.
fn by_hand(schema: &str, hint: Option<&str>) -> Vec<u8> {
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let hint = hint.map(|hint| vec![KeyValue::new("ARROW:schema".to_owned(), hint.to_owned())]);
    let properties = WriterProperties::builder()
        .set_key_value_metadata(hint)
        .build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let nulls = [0i16; ROWS as usize];
    while let Some(mut column) = group.next_column().unwrap() {
        match column.untyped() {
            ColumnWriter::ByteArrayColumnWriter(writer) => {
                let values: Vec<_> = images().into_iter().map(ByteArray::from).collect();
                let levels = vec![writer.get_descriptor().max_def_level(); values.len()];
                writer.write_batch(&values, Some(&levels), None).unwrap();
            }
            ColumnWriter::Int32ColumnWriter(writer) => {
                writer.write_batch(&[], Some(&nulls), Some(&nulls)).unwrap();
            }
            _ => panic!("another type"),
        }
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn columns_of_types_that_cannot_be_read_do_not_matter() {
    let schema = "message m {
        optional binary image;
        optional group odd (LIST) { optional int32 a; optional int32 b; }
    }";
    Place::of(vec![by_hand(schema, None)]).reads(1);
    let place = Place::of(vec![by_hand(schema, None)]).named("odd");
    place.refuses(&[
        "`odd`",
        "cannot be read",
        "list type must have a single child",
    ]);
    // Nor do the fields of a struct.
    let schema = "message m {
        optional group image {
            optional binary bytes;
            optional group odd (LIST) { optional int32 a; optional int32 b; }
        }
    }";
    Place::of(vec![by_hand(schema, None)]).reads(1);
}

/// The file with another footer.
fn with_chunks(
    bytes: &[u8],
    change: impl Fn(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder,
) -> Vec<u8> {
    let metadata = ParquetMetaDataReader::new()
        .parse_and_finish(&bytes::Bytes::copy_from_slice(bytes))
        .unwrap();
    let length = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap());
    let mut changed = bytes[..bytes.len() - 8 - length as usize].to_vec();
    let groups = metadata.row_groups().iter().map(|group| {
        let chunks = group.columns().iter();
        let chunks = chunks.map(|chunk| change(chunk.clone().into_builder()).build().unwrap());
        let chunks = chunks.collect();
        group
            .clone()
            .into_builder()
            .set_column_metadata(chunks)
            .build()
            .unwrap()
    });
    let groups = groups.collect();
    let metadata = metadata
        .clone()
        .into_builder()
        .set_row_groups(groups)
        .build();
    ParquetMetaDataWriter::new(&mut changed, &metadata)
        .finish()
        .unwrap();
    changed
}

#[test]
fn a_dictionary_at_byte_zero_is_none() {
    let good = shard(vec![("image", binary())]);
    for offset in [0, -1, 1 << 40] {
        let changed = with_chunks(&good, |chunk| {
            chunk.set_dictionary_page_offset(Some(offset))
        });
        Place::of(vec![changed]).reads(1);
    }
    // In parts, too, whose ranges are computed elsewhere.
    let rows = (0..40).map(|row| (Some(fake_image(0, row)), None, i64::from(row)));
    let pages = nepa_tests::shards::labelled_shard_in_pages([rows.collect()], 5, true);
    let changed = with_chunks(&pages, |chunk| chunk.set_dictionary_page_offset(Some(0)));
    let place = Place::of(vec![changed]);
    let config = place.config(SchemaOptions::default());
    let io = IoConfig {
        part_bytes: 2000,
        ..IoConfig::default()
    };
    let parts = data::read_all(&data::open_as(&config, &io).unwrap()).unwrap();
    assert!(parts.len() > 3, "{}", parts.len());
    let rows = parts.values().map(|batch| {
        (0..batch.num_rows())
            .filter(|row| batch.image(*row).is_ok())
            .count()
    });
    assert_eq!(rows.sum::<usize>(), 40);
}

#[test]
fn what_is_not_supported_is_not_called_damaged() {
    let good = shard(vec![("image", binary())]);
    let changed = with_chunks(&good, |chunk| chunk.set_compression(Compression::LZO));
    let error = Place::of(vec![changed]).refuses(&["not supported", "LZO", "0.parquet"]);
    assert!(matches!(*error, DatasetError::Unsupported { .. }));
    assert!(!full_text(&error).contains("damaged"));
}

#[test]
fn of_jpg_and_png_the_one_that_is_not_null() {
    let some = |wanted: fn(usize) -> bool| -> ArrayRef {
        let rows = images().into_iter().enumerate();
        Arc::new(
            rows.map(|(row, image)| wanted(row).then_some(image))
                .collect::<BinaryArray>(),
        )
    };
    let (even, odd) = (some(|row| row % 2 == 0), some(|row| row % 2 == 1));
    let shards = vec![
        shard(vec![("jpg", structs(binary(), vec![]))]),
        shard(vec![("png", binary())]),
        shard(vec![("png", odd), ("jpg", even)]),
        shard(vec![
            ("webp", binary()),
            ("jpg", Arc::new(NullArray::new(ROWS as usize))),
        ]),
    ];
    let place = Place::of(shards);
    place.reads(4);
    let columns = place.open().unwrap().columns();
    let paths = columns.iter().map(|column| column.path.as_str());
    assert_eq!(
        paths.collect::<Vec<_>>(),
        ["jpg.bytes", "png", "jpg", "webp"]
    );
    let two = shard(vec![
        ("image", binary()),
        ("image2", structs(binary(), vec![])),
    ]);
    Place::of(vec![two]).refuses(&["2 columns could hold the images: image, image2"]);
}

#[test]
fn the_first_image_of_each_list() {
    let all = images();
    let doubled = all
        .iter()
        .flat_map(|image| [image.clone(), b"other".to_vec()]);
    let elements: ArrayRef = Arc::new(LargeBinaryArray::from_iter_values(doubled));
    let list = |name: &str, elements: ArrayRef| -> ArrayRef {
        let field = Arc::new(Field::new(name, elements.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths([2; ROWS as usize]);
        Arc::new(ListArray::new(field, offsets, elements, None))
    };
    let paths: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; 2 * ROWS as usize]));
    let shards = vec![
        shard(vec![("images", list("element", elements.clone()))]),
        shard(vec![(
            "images",
            list("item", structs(elements.clone(), vec![])),
        )]),
        shard(vec![(
            "images",
            list("array", structs(elements, vec![("path", paths)])),
        )]),
        // The images are there, whatever stands beside them.
        shard(vec![
            (
                "images",
                list("element", {
                    let doubled = all
                        .iter()
                        .flat_map(|image| [image.clone(), b"other".to_vec()]);
                    Arc::new(BinaryArray::from_iter_values(doubled))
                }),
            ),
            (
                "url",
                Arc::new(StringArray::from_iter_values(["http://x"; ROWS as usize])),
            ),
        ]),
    ];
    let place = Place::of(shards);
    place.reads(4);
    assert_eq!(
        place.read().unwrap()[0].left_out().in_lists,
        u64::from(ROWS)
    );
}

#[test]
fn string_columns_are_told_by_their_values_and_read_where_they_are_named() {
    let raw = "message m { optional binary image (STRING); }";
    // Not text: the annotation is wrong.
    let wrong = || vec![by_hand_with(raw, &(0..ROWS).map(jpeg).collect::<Vec<_>>())];
    Place::of(wrong()).refuses(&[
        "`image` holds strings",
        "JPEG files that are wrongly annotated",
        "--image-column image",
    ]);
    let read = Place::of(wrong()).named("image").read().unwrap();
    assert_eq!(read[0].image(2).unwrap(), jpeg(2));
    // "GIF89a" and some more.
    let base64 = || {
        let values = StringArray::from_iter_values(["R0lGODlhAQABAIAAAAAAAP///w=="; 3]);
        vec![shard(vec![("image", Arc::new(values) as ArrayRef)])]
    };
    Place::of(base64()).refuses(&["GIF in base64", "--image-column image"]);
    let read = Place::of(base64()).named("image").read().unwrap();
    assert!(read[0].image(0).unwrap().starts_with(b"GIF89a"));
    let strings = |name: &str, value: &str| {
        let values: ArrayRef = Arc::new(StringArray::from_iter_values([value; 3]));
        let keys: ArrayRef = Arc::new(StringArray::from_iter_values(["1"; 3]));
        Place::of(vec![shard(vec![("key", keys), (name, values)])])
    };
    strings("image", "https://example.org/a.jpg")
        .refuses(&["URLs (\"https://example.org/a.jpg\")", "img2dataset"]);
    strings("url", "https://example.org/a.jpg")
        .refuses(&["the column `url` holds URLs", "img2dataset"]);
    strings("image", "a cat").refuses(&["begins with \"a cat\""]);
    strings("file_name", "a.jpg").refuses(&["the paths of images"]);
}

/// A file with one column of these values.
fn by_hand_with(schema: &str, values: &[Vec<u8>]) -> Vec<u8> {
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values: Vec<_> = values.iter().cloned().map(ByteArray::from).collect();
    column
        .typed::<parquet::data_type::ByteArrayType>()
        .write_batch(&values, Some(&vec![1; values.len()]), None)
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn labels_in_lists_and_structs_are_found_in_the_file() {
    let label: ArrayRef = Arc::new(Int64Array::from_iter_values(0..i64::from(ROWS)));
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(["x"; ROWS as usize]));
    let json = structs(names, vec![("n", label.clone()), ("label", label)]);
    let place = Place::of(vec![shard(vec![("json", json), ("image", binary())])]);
    let config = place.config(SchemaOptions {
        label_column: Some("json.label".to_owned()),
        ..SchemaOptions::default()
    });
    let dataset = data::open_as(&config, &IoConfig::default()).unwrap();
    let batch = data::read_part(&dataset, 0, 0).unwrap();
    assert_eq!(batch.label(4), Some(nepa_schemas::Label::Index(4)));
}
