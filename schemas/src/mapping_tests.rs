//! Each accepted and each refused form of schema, one by one.
use std::sync::Arc;

use arrow::datatypes::{DataType, Fields};

use super::*;

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn image_struct(bytes: DataType) -> DataType {
    DataType::Struct(Fields::from(vec![
        field("bytes", bytes),
        field("path", DataType::Utf8),
    ]))
}

fn resolve(fields: Vec<Field>) -> Result<ColumnMapping, SchemaError> {
    ColumnMapping::resolve(&Schema::new(fields), &SchemaOptions::default())
}

fn resolve_named(
    fields: Vec<Field>,
    image: Option<&str>,
    label: Option<&str>,
) -> Result<ColumnMapping, SchemaError> {
    let options = SchemaOptions {
        image_column: image.map(str::to_owned),
        label_column: label.map(str::to_owned),
    };
    ColumnMapping::resolve(&Schema::new(fields), &options)
}

#[test]
fn hugging_face_in_every_binary_type() {
    for bytes in [
        DataType::Binary,
        DataType::LargeBinary,
        DataType::BinaryView,
    ] {
        let mapping = resolve(vec![
            field("img", image_struct(bytes)),
            field("label", DataType::Int64),
        ])
        .unwrap();
        assert_eq!(mapping.leaf_paths(), ["img.bytes", "img.path", "label"]);
    }
}

#[test]
fn hugging_face_without_path() {
    let bytes = DataType::Struct(Fields::from(vec![field("bytes", DataType::Binary)]));
    assert_eq!(
        resolve(vec![field("image", bytes)]).unwrap().leaf_paths(),
        ["image.bytes"]
    );
}

#[test]
fn class_names_come_from_the_metadata() {
    let names = ["cat".to_owned(), "dog".to_owned()];
    let metadata = hugging_face::metadata("image", Some(("animal", &names)));
    let fields = vec![
        field("image", image_struct(DataType::Binary)),
        field("animal", DataType::Int64),
    ];
    let schema = Schema::new_with_metadata(fields, [("huggingface".to_owned(), metadata)]);
    let mapping = ColumnMapping::resolve(&schema, &SchemaOptions::default()).unwrap();
    assert_eq!(mapping.class_names.as_deref(), Some(&names[..]));
    assert_eq!(
        mapping.label,
        Some(LabelColumn::Index {
            column: "animal".to_owned()
        })
    );
}

#[test]
fn the_metadata_tells_images_from_audio() {
    let metadata = r#"{"info":{"features":{"a":{"_type":"Audio"},"b":{"_type":"Image"}}}}"#;
    let fields = vec![
        field("a", image_struct(DataType::Binary)),
        field("b", image_struct(DataType::Binary)),
    ];
    let schema =
        Schema::new_with_metadata(fields, [("huggingface".to_owned(), metadata.to_owned())]);
    let mapping = ColumnMapping::resolve(&schema, &SchemaOptions::default()).unwrap();
    assert_eq!(mapping.image.column(), "b");
}

#[test]
fn broken_metadata_says_nothing() {
    let fields = vec![field("image", DataType::Binary)];
    let schema = Schema::new_with_metadata(fields, [("huggingface".to_owned(), "{".to_owned())]);
    assert!(ColumnMapping::resolve(&schema, &SchemaOptions::default()).is_ok());
}

#[test]
fn img2dataset() {
    let strings = ["caption", "url", "key", "status"].map(|name| field(name, DataType::Utf8));
    let sizes = ["width", "height"].map(|name| field(name, DataType::Int32));
    let mut fields = strings.into_iter().chain(sizes).collect::<Vec<_>>();
    fields.push(field("jpg", DataType::Binary));
    let mapping = resolve(fields).unwrap();
    assert_eq!(mapping.leaf_paths(), ["jpg"]);
    assert_eq!((mapping.label, mapping.label_candidates), (None, vec![]));
}

#[test]
fn flat_binary_under_each_usual_name() {
    for name in flat::USUAL_NAMES {
        let mapping = resolve(vec![
            field("other", DataType::Binary),
            field(name, DataType::LargeBinary),
        ])
        .unwrap();
        assert_eq!(
            mapping.image,
            ImageColumn::Flat {
                column: name.to_owned()
            }
        );
    }
}

#[test]
fn labels_of_any_integer_width_string_and_dictionary() {
    let dictionary = |values| DataType::Dictionary(Box::new(DataType::Int16), Box::new(values));
    let index = [
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::UInt8,
        DataType::UInt16,
        DataType::UInt32,
        DataType::UInt64,
        dictionary(DataType::Int32),
    ];
    let name = [
        DataType::Utf8,
        DataType::LargeUtf8,
        DataType::Utf8View,
        dictionary(DataType::Utf8),
    ];
    let label = |data_type| {
        let fields = vec![field("image", DataType::Binary), field("cls", data_type)];
        resolve(fields).unwrap().label
    };
    for data_type in index {
        assert_eq!(
            label(data_type),
            Some(LabelColumn::Index {
                column: "cls".to_owned()
            })
        );
    }
    for data_type in name {
        assert_eq!(
            label(data_type),
            Some(LabelColumn::Name {
                column: "cls".to_owned()
            })
        );
    }
    assert_eq!(label(DataType::Float32), None);
}

#[test]
fn several_labels_without_an_obvious_one_are_not_read_but_listed() {
    let image = || field("image", DataType::Binary);
    let two = || {
        vec![
            image(),
            field("fine_label", DataType::Int64),
            field("coarse_label", DataType::Int64),
        ]
    };
    let mapping = resolve(two()).unwrap();
    assert_eq!(mapping.label, None);
    assert_eq!(mapping.label_candidates, ["fine_label", "coarse_label"]);
    let mapping = resolve_named(two(), None, Some("fine_label")).unwrap();
    assert_eq!(mapping.leaf_paths(), ["image", "fine_label"]);
    let obvious = vec![
        image(),
        field("class", DataType::Utf8),
        field("label", DataType::Int64),
    ];
    assert_eq!(resolve(obvious).unwrap().leaf_paths(), ["image", "label"]);
}

#[test]
fn an_empty_label_name_means_no_label() {
    let fields = vec![
        field("image", DataType::Binary),
        field("label", DataType::Int64),
    ];
    assert_eq!(resolve_named(fields, None, Some("")).unwrap().label, None);
}

#[test]
fn two_image_columns_are_refused_with_the_option_to_set() {
    let two = || {
        vec![
            field("jpg", DataType::Binary),
            field("mask", image_struct(DataType::Binary)),
        ]
    };
    let error = resolve(two()).unwrap_err();
    assert_eq!(
        error,
        SchemaError::AmbiguousImageColumn {
            candidates: vec!["jpg".to_owned(), "mask".to_owned()]
        }
    );
    let text = error.to_string();
    assert!(
        text.contains("jpg, mask") && text.contains("image_column"),
        "{text}"
    );
    assert_eq!(
        resolve_named(two(), Some("mask"), None)
            .unwrap()
            .image
            .column(),
        "mask"
    );
}

#[test]
fn no_image_column_is_refused_with_what_there_is() {
    let error = resolve(vec![
        field("picture", DataType::Binary),
        field("n", DataType::Int8),
    ])
    .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("picture: Binary, n: Int8") && text.contains("--image-column picture"),
        "{text}"
    );
    assert!(matches!(
        resolve(vec![]),
        Err(SchemaError::NoImageColumn { .. })
    ));
}

#[test]
fn url_only_tables_are_refused_as_such() {
    for name in ["url", "URL", "image_url", "image", "file_name"] {
        let error = resolve(vec![
            field("caption", DataType::Utf8),
            field(name, DataType::Utf8),
        ])
        .unwrap_err();
        assert_eq!(
            error,
            SchemaError::UrlOnly {
                column: name.to_owned()
            }
        );
        let error = resolve_named(vec![field(name, DataType::Utf8)], Some(name), None).unwrap_err();
        assert_eq!(
            error,
            SchemaError::UrlOnly {
                column: name.to_owned()
            }
        );
    }
}

#[test]
fn named_columns_must_exist_and_be_readable() {
    let fields = || {
        vec![
            field("image", DataType::Binary),
            field("score", DataType::Float64),
        ]
    };
    let error = resolve_named(fields(), Some("imgae"), None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`imgae`") && error.contains("image: Binary"),
        "{error}"
    );
    let error = resolve_named(fields(), None, Some("lable")).unwrap_err();
    assert!(matches!(
        error,
        SchemaError::MissingColumn {
            option: "label_column",
            ..
        }
    ));
    let error = resolve_named(fields(), Some("score"), None).unwrap_err();
    assert!(matches!(
        error,
        SchemaError::UnreadableColumn {
            option: "image_column",
            ..
        }
    ));
    let error = resolve_named(fields(), None, Some("score")).unwrap_err();
    assert!(matches!(
        error,
        SchemaError::UnreadableColumn {
            option: "label_column",
            ..
        }
    ));
}

#[test]
fn a_list_of_bytes_is_no_image() {
    let list = DataType::List(Arc::new(field("item", DataType::UInt8)));
    assert!(matches!(
        resolve(vec![field("image", list)]),
        Err(SchemaError::NoImageColumn { .. })
    ));
}
