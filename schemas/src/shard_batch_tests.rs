//! Each kind of array, each bad row and each batch that does not fit its mapping.
use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryViewArray, BooleanArray, DictionaryArray, Float32Array,
    Float64Array, Int8Array, Int32Array, Int64Array, LargeBinaryArray, ListArray, NullArray,
    StringArray, StringViewArray, StructArray, UInt64Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Int8Type, Schema};

use super::*;
use crate::SchemaOptions;

const LONG: &[u8] = b"longer than a view holds inline";

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true));
    let schema = Schema::new(fields.collect::<Vec<_>>());
    RecordBatch::try_new(
        Arc::new(schema),
        columns.into_iter().map(|(_, array)| array).collect(),
    )
    .unwrap()
}

fn prove(batch: &RecordBatch) -> Result<ShardBatch, SchemaError> {
    let mapping = ColumnMapping::resolve(&batch.schema(), &SchemaOptions::default()).unwrap();
    ShardBatch::try_new(batch, &mapping)
}

fn image_struct(bytes: ArrayRef, paths: ArrayRef, nulls: Option<Vec<bool>>) -> ArrayRef {
    let fields = Fields::from(vec![
        Field::new("bytes", bytes.data_type().clone(), true),
        Field::new("path", paths.data_type().clone(), true),
    ]);
    Arc::new(StructArray::new(
        fields,
        vec![bytes, paths],
        nulls.map(NullBuffer::from),
    ))
}

fn binary_arrays(values: &[Option<&[u8]>]) -> [ArrayRef; 3] {
    [
        Arc::new(values.iter().copied().collect::<BinaryArray>()),
        Arc::new(values.iter().copied().collect::<LargeBinaryArray>()),
        Arc::new(values.iter().copied().collect::<BinaryViewArray>()),
    ]
}

#[test]
fn flat_images_of_every_binary_type() {
    for array in binary_arrays(&[Some(LONG), Some(b"short"), None, Some(b"")]) {
        let shard = prove(&batch(vec![("jpg", array)])).unwrap();
        assert_eq!(shard.num_rows(), 4);
        assert_eq!(shard.image(0).unwrap(), LONG);
        assert_eq!(shard.image(1).unwrap(), &b"short"[..]);
        assert_eq!(shard.image(2), Err(RowError::Null));
        assert_eq!(shard.image(3), Err(RowError::Empty));
        assert_eq!(shard.label(0), None);
    }
}

#[test]
fn images_are_slices_of_the_arrow_buffer() {
    let [binary, large, view] = binary_arrays(&[Some(b"x"), Some(LONG)]);
    let pointer =
        |array: &ArrayRef, buffer: usize| array.to_data().buffers()[buffer].as_ptr() as usize;
    for (array, start, before) in [
        (&binary, pointer(&binary, 1), 1),
        (&large, pointer(&large, 1), 1),
        (&view, pointer(&view, 1), 0),
    ] {
        let image = prove(&batch(vec![("jpg", array.clone())]))
            .unwrap()
            .image(1)
            .unwrap();
        assert_eq!(
            image.as_ptr() as usize,
            start + before,
            "{}",
            array.data_type()
        );
    }
}

#[test]
fn slices_of_arrays_are_read_from_their_start() {
    for array in binary_arrays(&[Some(b"zero"), Some(LONG), Some(b"two")]) {
        let shard = prove(&batch(vec![("jpg", array.slice(1, 2))])).unwrap();
        assert_eq!(shard.image(0).unwrap(), LONG);
        assert_eq!(shard.image(1).unwrap(), &b"two"[..]);
    }
}

#[test]
fn hugging_face_rows() {
    let paths = || -> ArrayRef {
        Arc::new(StringArray::from(vec![
            Some("a.jpg"),
            None,
            Some("c.jpg"),
            Some(""),
            Some("e"),
        ]))
    };
    for bytes in binary_arrays(&[Some(LONG), None, None, None, Some(LONG)]) {
        let image = image_struct(bytes, paths(), Some(vec![true, true, true, true, false]));
        let shard = prove(&batch(vec![("image", image)])).unwrap();
        assert_eq!(shard.image(0).unwrap(), LONG);
        assert_eq!(shard.image(1), Err(RowError::Null));
        assert_eq!(
            shard.image(2),
            Err(RowError::PathOnly {
                path: "c.jpg".to_owned()
            })
        );
        assert_eq!(shard.image(3), Err(RowError::Null));
        assert_eq!(
            shard.image(4),
            Err(RowError::Null),
            "the struct itself is null"
        );
    }
}

#[test]
fn labels_as_indices_and_names() {
    let images = || -> ArrayRef { Arc::new(BinaryArray::from_vec(vec![LONG; 3])) };
    let labels = |array: ArrayRef| {
        let shard = prove(&batch(vec![("image", images()), ("label", array)])).unwrap();
        (0..3).map(|row| shard.label(row)).collect::<Vec<_>>()
    };
    let index = [Some(Label::Index(3)), None, Some(Label::Index(7))];
    assert_eq!(
        labels(Arc::new(Int8Array::from(vec![Some(3), None, Some(7)]))),
        index
    );
    assert_eq!(
        labels(Arc::new(UInt64Array::from(vec![Some(3), None, Some(7)]))),
        index
    );
    let keys = Int8Array::from(vec![Some(1), None, Some(0)]);
    let indices: DictionaryArray<Int8Type> =
        DictionaryArray::new(keys, Arc::new(Int32Array::from(vec![7, 3])));
    assert_eq!(labels(Arc::new(indices)), index);
    let name = [
        Some(Label::Name("cat".into())),
        None,
        Some(Label::Name("dog".into())),
    ];
    assert_eq!(
        labels(Arc::new(StringArray::from(vec![
            Some("cat"),
            None,
            Some("dog")
        ]))),
        name
    );
    assert_eq!(
        labels(Arc::new(StringViewArray::from(vec![
            Some("cat"),
            None,
            Some("dog")
        ]))),
        name
    );
    let names: DictionaryArray<Int8Type> =
        vec![Some("cat"), None, Some("dog")].into_iter().collect();
    assert_eq!(labels(Arc::new(names)), name);
}

#[test]
fn a_label_beyond_64_bits_with_a_sign_is_refused() {
    let images: ArrayRef = Arc::new(BinaryArray::from_vec(vec![LONG; 2]));
    let labels: ArrayRef = Arc::new(UInt64Array::from(vec![1, u64::MAX]));
    let error = prove(&batch(vec![("image", images), ("label", labels)])).unwrap_err();
    assert_eq!(
        error,
        SchemaError::LabelValue {
            column: "label".to_owned(),
            row: 1,
            value: u64::MAX.to_string(),
            problem: "a class index fits 64 bits with a sign"
        }
    );
    let in_row_group = error.in_rows_from(40).to_string();
    assert!(
        in_row_group.contains("column `label`, row 41"),
        "{in_row_group}"
    );
}

#[test]
fn a_batch_that_lacks_a_column_or_has_another_type_is_refused() {
    let image: ArrayRef = Arc::new(BinaryArray::from_vec(vec![LONG]));
    let label: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let good = batch(vec![("image", image.clone()), ("label", label.clone())]);
    let mapping = ColumnMapping::resolve(&good.schema(), &SchemaOptions::default()).unwrap();
    let refused = |columns| ShardBatch::try_new(&batch(columns), &mapping).unwrap_err();
    assert_eq!(
        refused(vec![("image", image.clone())]),
        SchemaError::BatchLacksColumn {
            column: "label".to_owned()
        }
    );
    assert_eq!(
        refused(vec![("label", label.clone())]),
        SchemaError::BatchLacksColumn {
            column: "image".to_owned()
        }
    );
    let name: ArrayRef = Arc::new(StringArray::from(vec!["cat"]));
    let error = refused(vec![("image", image), ("label", name)]);
    assert!(matches!(
        error,
        SchemaError::BatchColumnType {
            expected: "integers",
            ..
        }
    ));
    let error = refused(vec![("image", label.clone()), ("label", label)]);
    assert!(matches!(
        error,
        SchemaError::BatchColumnType {
            expected: "a binary column",
            ..
        }
    ));
}

#[test]
fn a_struct_that_differs_from_the_mapping_is_refused() {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![LONG]));
    let path: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let good = batch(vec![(
        "image",
        image_struct(bytes.clone(), path.clone(), None),
    )]);
    let mapping = ColumnMapping::resolve(&good.schema(), &SchemaOptions::default()).unwrap();
    let refused =
        |array| ShardBatch::try_new(&batch(vec![("image", array)]), &mapping).unwrap_err();
    assert!(matches!(
        refused(bytes.clone()),
        SchemaError::BatchColumnType { .. }
    ));
    assert!(matches!(
        refused(image_struct(path.clone(), path.clone(), None)),
        SchemaError::BatchColumnType { .. }
    ));
    let alone = Fields::from(vec![Field::new("path", DataType::Utf8, true)]);
    let error = refused(Arc::new(StructArray::new(alone, vec![path], None)));
    assert_eq!(
        error,
        SchemaError::BatchLacksColumn {
            column: "image.bytes".to_owned()
        }
    );
}

/// The labels of three rows beside images.
fn labels_of(array: ArrayRef) -> Result<Vec<Option<Label>>, SchemaError> {
    let images: ArrayRef = Arc::new(BinaryArray::from_vec(vec![LONG; array.len()]));
    let shard = prove(&batch(vec![("image", images), ("label", array)]))?;
    Ok((0..shard.num_rows()).map(|row| shard.label(row)).collect())
}

fn indices<const N: usize>(indices: [Option<i64>; N]) -> Vec<Option<Label>> {
    indices.map(|index| index.map(Label::Index)).to_vec()
}

#[track_caller]
fn refused_label(array: ArrayRef, row: usize, value: &str) {
    let error = labels_of(array).unwrap_err();
    let SchemaError::LabelValue {
        row: found_row,
        value: found,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((*found_row, found.as_str()), (row, value), "{error}");
    assert!(error.to_string().contains("--label-column"), "{error}");
}

#[test]
fn a_negative_index_is_no_label() {
    let expected = indices([Some(2), None, None, Some(0)]);
    let signed = Int32Array::from(vec![Some(2), Some(-1), None, Some(0)]);
    assert_eq!(labels_of(Arc::new(signed)).unwrap(), expected);
    let floats = Float64Array::from(vec![Some(2.0), Some(-100.0), None, Some(0.0)]);
    assert_eq!(labels_of(Arc::new(floats)).unwrap(), expected);
}

#[test]
fn whole_floats_are_indices_and_others_are_refused() {
    let gaps = Float32Array::from(vec![Some(3.0), None, Some(f32::NAN), Some(0.0)]);
    assert_eq!(
        labels_of(Arc::new(gaps)).unwrap(),
        indices([Some(3), None, None, Some(0)])
    );
    refused_label(Arc::new(Float64Array::from(vec![1.0, 2.5])), 1, "2.5");
    refused_label(Arc::new(Float64Array::from(vec![f64::INFINITY])), 0, "inf");
    refused_label(Arc::new(Float64Array::from(vec![-0.5])), 0, "-0.5");
    refused_label(
        Arc::new(Float64Array::from(vec![1e300])),
        0,
        &1e300f64.to_string(),
    );
}

#[test]
fn booleans_are_two_classes() {
    let truths = BooleanArray::from(vec![Some(true), None, Some(false)]);
    assert_eq!(
        labels_of(Arc::new(truths)).unwrap(),
        indices([Some(1), None, Some(0)])
    );
    let nothing = NullArray::new(3);
    assert_eq!(labels_of(Arc::new(nothing)).unwrap(), indices([None; 3]));
}

/// A list column of these elements, in rows of so many; null where there is no number.
fn lists(elements: ArrayRef, lengths: &[Option<usize>]) -> ArrayRef {
    let field = Arc::new(Field::new("element", elements.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths(lengths.iter().map(|length| length.unwrap_or(0)));
    let valid: Vec<_> = lengths.iter().map(Option::is_some).collect();
    Arc::new(ListArray::new(
        field,
        offsets,
        elements,
        Some(NullBuffer::from(valid)),
    ))
}

#[test]
fn lists_of_one_label_are_labels() {
    let elements: ArrayRef = Arc::new(Int64Array::from(vec![7, -1, 0]));
    let rows = lists(elements, &[Some(1), Some(1), None, Some(0), Some(1)]);
    assert_eq!(
        labels_of(rows).unwrap(),
        indices([Some(7), None, None, None, Some(0)])
    );
    let names: ArrayRef = Arc::new(StringArray::from(vec!["cat", "dog"]));
    let rows = lists(names, &[Some(1), Some(1)]);
    assert_eq!(
        labels_of(rows).unwrap(),
        ["cat", "dog"].map(|name| Some(Label::Name(name.into())))
    );
}

#[test]
fn one_hot_lists_are_labels() {
    let hot = [0, 0, 1, 1, 0, 0, 0, 1, 0];
    let lengths = [Some(3), Some(3), None, Some(3)];
    let expected = indices([Some(2), Some(0), None, Some(1)]);
    let integers = Int64Array::from_iter_values(hot);
    let floats = Float32Array::from_iter_values(hot.map(|value| value as f32));
    let truths = BooleanArray::from(hot.map(|value| value == 1).to_vec());
    let arrays: [ArrayRef; 3] = [Arc::new(integers), Arc::new(floats), Arc::new(truths)];
    for array in arrays {
        assert_eq!(labels_of(lists(array, &lengths)).unwrap(), expected);
    }
}

#[test]
fn several_labels_of_one_image_are_refused() {
    let list = |values: &[i64], lengths: &[Option<usize>]| {
        lists(Arc::new(Int64Array::from(values.to_vec())), lengths)
    };
    // Classes 0 and 2; two ones; none; no ones; lists of differing length.
    refused_label(list(&[1, 0, 2], &[Some(1), Some(2)]), 1, "a list of 2");
    refused_label(list(&[1, 1], &[Some(2)]), 0, "a list of 2");
    refused_label(list(&[0, 0], &[Some(2)]), 0, "a list of 2");
    refused_label(list(&[0, 5], &[Some(2)]), 0, "a list of 2");
    refused_label(
        list(&[0, 1, 0, 0, 1], &[Some(2), Some(3)]),
        0,
        "a list of 2",
    );
    let names: ArrayRef = Arc::new(StringArray::from(vec!["cat", "dog"]));
    refused_label(lists(names, &[Some(2)]), 0, "a list of 2");
}

#[test]
fn a_list_of_classes_is_never_one_hot() {
    let elements: ArrayRef = Arc::new(Int64Array::from(vec![0, 1]));
    let column = lists(elements, &[Some(2)]);
    let images: ArrayRef = Arc::new(BinaryArray::from_vec(vec![LONG]));
    let batch = batch(vec![("image", images), ("label", column)]);
    let features = r#"{"info":{"features":{"label":{"feature":{"names":["a","b"],"_type":"ClassLabel"},"_type":"List"}}}}"#;
    let fields = batch.schema().fields().clone();
    let schema =
        Schema::new_with_metadata(fields, [("huggingface".to_owned(), features.to_owned())]);
    let mapping = ColumnMapping::resolve(&schema, &SchemaOptions::default()).unwrap();
    assert!(ShardBatch::try_new(&batch, &mapping).is_err());
}

#[test]
fn the_first_image_of_each_list() {
    let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![
        Some(LONG),
        Some(b"second"),
        None,
        Some(b"last"),
    ]));
    let lengths = [Some(2), None, Some(0), Some(2)];
    for elements in [
        bytes.clone(),
        image_struct(
            bytes.clone(),
            Arc::new(StringArray::from(vec![None::<&str>; 4])),
            None,
        ),
    ] {
        let images = lists(elements, &lengths);
        let shard = prove(&batch(vec![("images", images)])).unwrap();
        assert_eq!(shard.image(0).unwrap(), LONG);
        for row in 1..4 {
            assert_eq!(shard.image(row), Err(RowError::Null), "{row}");
        }
        assert_eq!(shard.left_out().in_lists, 2);
    }
}

#[test]
fn of_several_columns_the_first_that_is_not_null() {
    let jpg: ArrayRef = Arc::new(BinaryArray::from(vec![Some(LONG), None, None, Some(b"a")]));
    let png: ArrayRef = Arc::new(BinaryArray::from(vec![None, Some(LONG), None, Some(b"b")]));
    let shard = prove(&batch(vec![("png", png), ("jpg", jpg)])).unwrap();
    assert_eq!(shard.image(0).unwrap(), LONG);
    assert_eq!(shard.image(1).unwrap(), LONG);
    assert_eq!(shard.image(2), Err(RowError::Null));
    assert_eq!(shard.image(3).unwrap(), &b"a"[..]);
    assert_eq!(shard.left_out().in_other_columns, 1);
}

#[test]
fn fields_of_structs_are_null_where_their_struct_is() {
    let image: ArrayRef = Arc::new(BinaryArray::from_vec(vec![LONG, LONG]));
    let label: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let fields = Fields::from(vec![
        Field::new("photo", DataType::Binary, true),
        Field::new("kind", DataType::Int64, true),
    ]);
    let nulls = Some(NullBuffer::from(vec![true, false]));
    let data: ArrayRef = Arc::new(StructArray::new(fields, vec![image, label], nulls));
    let batch = batch(vec![("data", data)]);
    let options = SchemaOptions {
        image_column: Some("data.photo".to_owned()),
        label_column: Some("data.kind".to_owned()),
        ..SchemaOptions::default()
    };
    let mapping = ColumnMapping::resolve(&batch.schema(), &options).unwrap();
    let shard = ShardBatch::try_new(&batch, &mapping).unwrap();
    assert_eq!(shard.image(0).unwrap(), LONG);
    assert_eq!(shard.image(1), Err(RowError::Null));
    assert_eq!(
        (shard.label(0), shard.label(1)),
        (Some(Label::Index(1)), None)
    );
}

#[test]
fn images_in_string_columns() {
    const GIF: &[u8] = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff";
    let text = "R0lGODlhAQABAIAAAAAAAP///w";
    let values = vec![
        Some(format!("{text}==")),
        Some(text.to_owned()),
        Some(format!(
            "data:image/gif;base64,{}\n{}==",
            &text[..8],
            &text[8..]
        )),
        Some(text.replace('/', "_")),
        Some("https://example.org/a.gif".to_owned()),
        Some(String::new()),
        None,
        Some(format!("{text}%")),
    ];
    let strings: ArrayRef = Arc::new(StringArray::from(values));
    let options = SchemaOptions {
        image_column: Some("image".to_owned()),
        ..SchemaOptions::default()
    };
    let batch = batch(vec![("image", strings)]);
    let mapping = ColumnMapping::resolve(&batch.schema(), &options).unwrap();
    let shard = ShardBatch::try_new(&batch, &mapping).unwrap();
    for row in 0..4 {
        assert_eq!(shard.image(row).unwrap(), GIF, "row {row}");
    }
    assert!(matches!(shard.image(4), Err(RowError::PathOnly { .. })));
    assert_eq!(shard.image(5), Err(RowError::Empty));
    assert_eq!(shard.image(6), Err(RowError::Null));
    assert_eq!(shard.image(7), Err(RowError::NotBase64));
    // Bytes under a wrong annotation are read as binary.
    let raw: ArrayRef = Arc::new(LargeBinaryArray::from_vec(vec![GIF]));
    let batch = self::batch(vec![("image", raw)]);
    let shard = ShardBatch::try_new(&batch, &mapping).unwrap();
    assert_eq!(shard.image(0).unwrap(), GIF);
}
