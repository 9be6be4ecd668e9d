//! Each kind of array, each bad row and each batch that does not fit its mapping.
use arrow::array::{
    Array, BinaryArray, BinaryViewArray, DictionaryArray, Int8Array, Int32Array, LargeBinaryArray,
    StringArray, StringViewArray, StructArray, UInt64Array,
};
use arrow::buffer::NullBuffer;
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
        SchemaError::LabelRange {
            column: "label".to_owned(),
            row: 1,
            value: u64::MAX
        }
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
        refused(image_struct(path.clone(), path, None)),
        SchemaError::BatchColumnType { .. }
    ));
    let alone = Fields::from(vec![Field::new("bytes", DataType::Binary, true)]);
    let error = refused(Arc::new(StructArray::new(alone, vec![bytes], None)));
    assert_eq!(
        error,
        SchemaError::BatchLacksColumn {
            column: "image.path".to_owned()
        }
    );
}
