//! Each accepted and each refused form of schema, one by one.
use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields};

use super::*;
use crate::{LabelForm, LabelList, LabelValue, UNSUPPORTED, flat, hugging_face};

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn structure(children: Vec<Field>) -> DataType {
    DataType::Struct(Fields::from(children))
}

fn image_struct(bytes: DataType) -> DataType {
    structure(vec![field("bytes", bytes), field("path", DataType::Utf8)])
}

fn list(element: DataType) -> DataType {
    DataType::List(Arc::new(field("element", element)))
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
        ..SchemaOptions::default()
    };
    ColumnMapping::resolve(&Schema::new(fields), &options)
}

/// With this text as `huggingface` metadata: features only.
fn resolve_with_features(fields: Vec<Field>, features: &str) -> Result<ColumnMapping, SchemaError> {
    let metadata = format!(r#"{{"info":{{"features":{features}}}}}"#);
    let schema = Schema::new_with_metadata(fields, [("huggingface".to_owned(), metadata)]);
    ColumnMapping::resolve(&schema, &SchemaOptions::default())
}

/// Dotted.
fn paths(mapping: &ColumnMapping) -> Vec<String> {
    let paths = mapping.leaf_paths().into_iter();
    paths.map(|path| path.to_string()).collect()
}

/// An image column and these.
fn beside(others: Vec<Field>) -> Vec<Field> {
    let image = field("image", DataType::Binary);
    std::iter::once(image).chain(others).collect()
}

/// The label column that is chosen, dotted.
fn chosen(others: Vec<Field>) -> Result<String, NoLabel> {
    let mapping = resolve(beside(others)).unwrap();
    mapping.label.map(|label| match label {
        LabelColumn::Column { path, .. } => path.to_string(),
        LabelColumn::Folder { key, .. } => format!("{key}="),
    })
}

fn form(data_type: DataType) -> Option<LabelForm> {
    match resolve(beside(vec![field("label", data_type)]))
        .unwrap()
        .label
    {
        Ok(LabelColumn::Column { form, .. }) => Some(form),
        _ => None,
    }
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
        assert_eq!(paths(&mapping), ["img.bytes", "img.path", "label"]);
    }
}

#[test]
fn a_path_is_not_needed() {
    let bytes = || field("bytes", DataType::Binary);
    let with = |other: Option<Field>| {
        let image = structure(std::iter::once(bytes()).chain(other).collect());
        resolve(vec![field("image", image)]).unwrap()
    };
    let whole = with(Some(field("path", DataType::Utf8)));
    for other in [
        None,
        Some(field("path", DataType::Null)),
        Some(field("path", DataType::Int32)),
        Some(field("size", DataType::Int32)),
    ] {
        let mapping = with(other);
        assert_eq!(paths(&mapping), ["image.bytes"]);
        assert_eq!(whole.difference(&mapping), None);
    }
}

#[test]
fn class_names_come_from_the_metadata() {
    let names = ["cat".to_owned(), "dog".to_owned()];
    let metadata = hugging_face::metadata("image", Some(("animal", Some(&names[..]))));
    let fields = vec![
        field("image", image_struct(DataType::Binary)),
        field("animal", DataType::Int64),
    ];
    let schema = Schema::new_with_metadata(fields, [("huggingface".to_owned(), metadata)]);
    let mapping = ColumnMapping::resolve(&schema, &SchemaOptions::default()).unwrap();
    assert_eq!(mapping.class_names.as_deref(), Some(&names[..]));
    assert_eq!(paths(&mapping)[2], "animal");
    let class = r#"{"names":["cat","dog"],"_type":"ClassLabel"}"#;
    // Of lists, in each spelling that `datasets` had, and of fields.
    for (features, data_type, column) in [
        (
            format!(r#"{{"labels":{{"feature":{class},"_type":"Sequence"}}}}"#),
            list(DataType::Int64),
            "labels",
        ),
        (
            format!(r#"{{"labels":{{"feature":{class},"_type":"List"}}}}"#),
            list(DataType::Int64),
            "labels",
        ),
        (
            format!(r#"{{"labels":[{class}]}}"#),
            list(DataType::Int64),
            "labels",
        ),
        (
            format!(r#"{{"json":{{"label":{class}}}}}"#),
            structure(vec![field("label", DataType::Int64)]),
            "json.label",
        ),
    ] {
        let metadata = format!(r#"{{"info":{{"features":{features}}}}}"#);
        let root = column.split('.').next().unwrap();
        let fields = beside(vec![field(root, data_type)]);
        let schema = Schema::new_with_metadata(fields, [("huggingface".to_owned(), metadata)]);
        let options = SchemaOptions {
            label_column: Some(column.to_owned()),
            ..SchemaOptions::default()
        };
        let mapping = ColumnMapping::resolve(&schema, &options).unwrap();
        assert_eq!(mapping.class_names.as_deref(), Some(&names[..]), "{column}");
    }
}

#[test]
fn the_metadata_tells_images_from_audio() {
    let fields = vec![
        field("a", image_struct(DataType::Binary)),
        field("b", image_struct(DataType::Binary)),
    ];
    let features = r#"{"a":{"_type":"Audio"},"b":{"_type":"Image"}}"#;
    let mapping = resolve_with_features(fields, features).unwrap();
    assert_eq!(mapping.images[0].path.to_string(), "b");
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
    assert_eq!(paths(&mapping), ["jpg"]);
    assert!(matches!(mapping.label, Err(NoLabel::Absent { .. })));
}

#[test]
fn flat_binary_under_each_usual_name() {
    for name in flat::USUAL_NAMES.iter().chain(&["image.jpg", "input.PNG"]) {
        let mapping = resolve(vec![
            field("other", DataType::Binary),
            field(name, DataType::LargeBinary),
        ])
        .unwrap();
        assert_eq!(mapping.leaf_paths(), [ColumnPath::new(*name)]);
    }
}

#[test]
fn names_with_dots_and_fields_of_structs_can_be_named() {
    let fields = || {
        vec![
            field("image.jpg", DataType::Binary),
            field("input.jpg", image_struct(DataType::Binary)),
            field(
                "data",
                structure(vec![
                    field("image", image_struct(DataType::Binary)),
                    field("a.b", DataType::Int8),
                ]),
            ),
            field("json", structure(vec![field("label", DataType::Int64)])),
        ]
    };
    let named = |image: &str, label: &str| {
        let mapping = resolve_named(fields(), Some(image), Some(label)).unwrap();
        let parts = |path: ColumnPath| path.parts().join("|");
        mapping
            .leaf_paths()
            .into_iter()
            .map(parts)
            .collect::<Vec<_>>()
    };
    assert_eq!(named("image.jpg", ""), ["image.jpg"]);
    assert_eq!(
        named("input.jpg", ""),
        ["input.jpg|bytes", "input.jpg|path"]
    );
    assert_eq!(
        named("data.image", "json.label"),
        ["data|image|bytes", "data|image|path", "json|label"]
    );
    assert_eq!(named("image.jpg", "data.a.b"), ["image.jpg", "data|a.b"]);
    // The top-level column is meant where both could be.
    let mut both = fields();
    both.push(field("json.label", DataType::Utf8));
    let mapping = resolve_named(both, Some("image.jpg"), Some("json.label")).unwrap();
    assert_eq!(mapping.leaf_paths()[1], ColumnPath::new("json.label"));
    for missing in ["data", "data.imag", "json.label.x", ".image", "input"] {
        assert!(
            resolve_named(fields(), Some(missing), None).is_err(),
            "{missing}"
        );
    }
}

#[test]
fn labels_of_each_type() {
    let dictionary = |values| DataType::Dictionary(Box::new(DataType::Int16), Box::new(values));
    let plain = |value| {
        let list = LabelList::No;
        Some(LabelForm { value, list })
    };
    let integers = [
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
    for data_type in integers {
        assert_eq!(form(data_type), plain(LabelValue::Integer));
    }
    for data_type in [DataType::Float32, DataType::Float64] {
        assert_eq!(form(data_type), plain(LabelValue::Float));
    }
    for data_type in [
        DataType::Utf8,
        DataType::LargeUtf8,
        DataType::Utf8View,
        dictionary(DataType::Utf8),
    ] {
        assert_eq!(form(data_type), plain(LabelValue::Name));
    }
    assert_eq!(form(DataType::Boolean), plain(LabelValue::Bool));
    assert_eq!(form(DataType::Null), plain(LabelValue::Null));
    let in_list = |value, list| Some(LabelForm { value, list });
    assert_eq!(
        form(list(DataType::Int64)),
        in_list(LabelValue::Integer, LabelList::OneOrOneHot)
    );
    assert_eq!(
        form(list(DataType::Utf8)),
        in_list(LabelValue::Name, LabelList::One)
    );
    for unreadable in [
        DataType::Binary,
        DataType::Date32,
        list(list(DataType::Int8)),
        structure(vec![field("id", DataType::Int64)]),
    ] {
        assert_eq!(form(unreadable), None);
    }
}

#[test]
fn one_rule_chooses_the_label() {
    let int = |name: &str| field(name, DataType::Int64);
    for name in ["label", "Labels", "CLASS", "cls", "target", "category"] {
        assert_eq!(chosen(vec![int("other"), int(name)]).unwrap(), name);
    }
    assert_eq!(
        chosen(vec![int("fine_label"), int("label")]).unwrap(),
        "label"
    );
    let ambiguous = |names: &[&str]| {
        let error = chosen(names.iter().map(|name| int(name)).collect()).unwrap_err();
        let candidates = names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(error, NoLabel::Ambiguous { candidates });
        assert!(error.to_string().contains("--label-column"), "{error}");
    };
    ambiguous(&["fine_label", "coarse_label"]);
    ambiguous(&["label", "class"]);
    ambiguous(&["label", "Label"]);
    // An unusual type is told, and nothing else is taken for it.
    let labels = || {
        field(
            "label",
            structure(vec![int("id"), field("name", DataType::Utf8)]),
        )
    };
    let error = chosen(vec![labels(), int("target")])
        .unwrap_err()
        .to_string();
    for part in [
        "`label` is struct<id: int64, name: string>",
        "--label-column label.id",
        "label.name",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let date = chosen(vec![field("target", DataType::Date32)]).unwrap_err();
    assert!(date.to_string().contains("`target` is date32"), "{date}");
    // Fields of other structs are only proposed.
    let json = field("json", structure(vec![int("label"), int("width")]));
    let error = chosen(vec![json]).unwrap_err();
    assert!(error.to_string().contains("such as json.label"), "{error}");
}

#[test]
fn a_column_called_label_comes_before_a_class_label_of_the_metadata() {
    let class = r#"{"names":["a","b"],"_type":"ClassLabel"}"#;
    let int = |name: &str| field(name, DataType::Int64);
    let label = |fields: Vec<Field>, features: String| {
        let mapping = resolve_with_features(beside(fields), &features).unwrap();
        mapping.label.map(|label| label.to_string())
    };
    let one = || format!(r#"{{"source":{class}}}"#);
    let two = || format!(r#"{{"source":{class},"breed":{class}}}"#);
    assert_eq!(
        label(vec![int("source"), int("label")], one()).unwrap(),
        "column `label`"
    );
    assert_eq!(
        label(vec![int("source"), int("target")], one()).unwrap(),
        "column `source`"
    );
    let error = label(vec![int("source"), int("breed")], two()).unwrap_err();
    assert!(matches!(error, NoLabel::Ambiguous { .. }));
}

#[test]
fn folders_are_labels_where_no_column_is() {
    let folder = |key: &str, value: &str| FolderKey {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let label = |fields: Vec<Field>, option: Option<&str>, folders: &[FolderKey]| {
        let options = SchemaOptions {
            label_column: option.map(str::to_owned),
            ..SchemaOptions::default()
        };
        ColumnMapping::resolve_in_folders(&Schema::new(beside(fields)), &options, folders)
            .map(|mapping| mapping.label)
    };
    let is = |key: &str, class: Option<&str>| {
        Ok(LabelColumn::Folder {
            key: key.to_owned(),
            class: class.map(Arc::from),
        })
    };
    let cat = [folder("split", "train"), folder("label", "cat")];
    assert_eq!(label(vec![], None, &cat).unwrap(), is("label", Some("cat")));
    assert_eq!(
        label(vec![], Some("split"), &cat).unwrap(),
        is("split", Some("train"))
    );
    assert_eq!(
        label(
            vec![],
            None,
            &[folder("class", "__HIVE_DEFAULT_PARTITION__")]
        )
        .unwrap(),
        is("class", None)
    );
    let column = label(vec![field("label", DataType::Int64)], None, &cat).unwrap();
    assert!(matches!(column, Ok(LabelColumn::Column { .. })));
    assert!(
        label(vec![], None, &[folder("year", "3")])
            .unwrap()
            .is_err()
    );
    let two = [folder("class", "pet"), folder("label", "cat")];
    assert!(matches!(
        label(vec![], None, &two).unwrap(),
        Err(NoLabel::Ambiguous { .. })
    ));
    let error = label(vec![], Some("kind"), &cat).unwrap_err().to_string();
    assert!(error.contains("folder label="), "{error}");
}

#[test]
fn an_empty_label_name_means_no_label() {
    let fields = beside(vec![field("label", DataType::Int64)]);
    let mapping = resolve_named(fields, None, Some("")).unwrap();
    assert_eq!(mapping.label, Err(NoLabel::NotAsked));
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
    let mapping = resolve_named(two(), Some("mask"), None).unwrap();
    assert_eq!(mapping.images[0].path.to_string(), "mask");
}

#[test]
fn columns_that_differ_in_the_format_alone_hold_the_same_images() {
    let binary = |name: &str| field(name, DataType::Binary);
    let of = |names: &[&str]| resolve(names.iter().map(|name| binary(name)).collect());
    let mapping = of(&["png", "jpg"]).unwrap();
    assert_eq!(paths(&mapping), ["jpg", "png"]);
    assert!(mapping.to_string().contains("not null"), "{mapping}");
    assert_eq!(
        paths(&of(&["input.png", "input.webp"]).unwrap()),
        ["input.png", "input.webp"]
    );
    for different in [
        ["input.jpg", "output.jpg"],
        ["image", "jpg"],
        ["image", "content"],
    ] {
        assert!(of(&different).is_err(), "{different:?}");
    }
    // Over shards, too.
    let (jpg, png, image) = (of(&["jpg"]), of(&["png"]), of(&["image"]));
    let (jpg, png, image) = (jpg.unwrap(), png.unwrap(), image.unwrap());
    assert_eq!(jpg.difference(&png), None);
    let difference = jpg.difference(&image).unwrap();
    assert!(
        difference.contains("`jpg` (binary)") && difference.contains("`image` (binary)"),
        "{difference}"
    );
}

#[test]
fn the_first_image_of_a_list_is_read() {
    let lists = [
        list(image_struct(DataType::Binary)),
        DataType::LargeList(Arc::new(field("item", DataType::Binary))),
        DataType::FixedSizeList(Arc::new(field("item", DataType::LargeBinary)), 2),
    ];
    for data_type in lists {
        let mapping = resolve(vec![
            field("images", data_type),
            field("url", DataType::Utf8),
        ])
        .unwrap();
        assert!(mapping.images[0].list);
        assert!(mapping.to_string().contains("the first image of each list"));
    }
    // Images that are not in lists come first.
    let mapping = resolve(vec![
        field("images", list(image_struct(DataType::Binary))),
        field("image", image_struct(DataType::Binary)),
    ])
    .unwrap();
    assert_eq!(mapping.images[0].path.to_string(), "image");
    let audio = r#"{"audios":{"feature":{"_type":"Audio"},"_type":"List"}}"#;
    let fields = vec![field("audios", list(image_struct(DataType::Binary)))];
    assert!(resolve_with_features(fields, audio).is_err());
}

#[test]
fn a_column_of_no_type_holds_no_image() {
    let nothing = || {
        [
            field("image", DataType::Null),
            field("image", image_struct(DataType::Null)),
        ]
    };
    for image in nothing() {
        let mapping = resolve(vec![image.clone()]).unwrap();
        assert!(mapping.is_empty());
        let other = resolve(vec![field("image", DataType::Binary)]).unwrap();
        assert!(!other.is_empty());
        assert_eq!(mapping.difference(&other), None);
        // Others are preferred.
        let mapping = resolve(vec![image, field("png", DataType::Binary)]).unwrap();
        assert_eq!(paths(&mapping), ["png"]);
    }
}

#[test]
fn shards_differ_in_plain_words() {
    let label = |data_type| resolve(beside(vec![field("label", data_type)])).unwrap();
    let (int, float, name) = (
        label(DataType::Int64),
        label(DataType::Float32),
        label(DataType::Utf8),
    );
    assert_eq!(int.difference(&float), None);
    assert_eq!(int.difference(&label(DataType::Null)), None);
    assert_eq!(
        int.difference(&name).unwrap(),
        "the labels are in column `label` (int64) in the one and in column `label` (string) in the other"
    );
    let without = resolve(beside(vec![])).unwrap();
    assert_eq!(
        int.difference(&without).unwrap(),
        "the labels are in column `label` (int64) in the one and missing in the other"
    );
    let names = |names: &str| {
        let features = format!(r#"{{"label":{{"names":[{names}],"_type":"ClassLabel"}}}}"#);
        resolve_with_features(beside(vec![field("label", DataType::Int64)]), &features).unwrap()
    };
    assert_eq!(names(r#""cat""#).difference(&int), None);
    assert_eq!(
        names(r#""cat","dog""#)
            .difference(&names(r#""cat","eel""#))
            .unwrap(),
        "class 1 is `dog` in the one and `eel` in the other"
    );
}

#[test]
fn no_image_column_is_refused_with_what_there_is() {
    let error = resolve(vec![
        field("picture", DataType::Binary),
        field("n", DataType::Int8),
        field("data", structure(vec![field("photo", DataType::Binary)])),
    ])
    .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("picture: binary, n: int8")
            && text.contains("--image-column picture")
            && text.contains("data.photo"),
        "{text}"
    );
    assert!(matches!(
        resolve(vec![]),
        Err(SchemaError::NoImageColumn { .. })
    ));
    // A message is for reading.
    let many = (0..3000).map(|i| {
        field(
            &format!("a_rather_long_name_{i}"),
            image_struct(DataType::Utf8),
        )
    });
    let text = resolve(many.collect()).unwrap_err().to_string();
    assert!(
        text.contains("and 2988 more") && text.len() < 2000,
        "{text}"
    );
}

#[test]
fn tables_without_images_are_refused_by_what_they_hold() {
    let strings = |names: &[&str]| {
        let fields = names.iter().map(|name| field(name, DataType::Utf8));
        resolve(fields.collect()).unwrap_err()
    };
    for (names, column) in [
        (&["caption", "url"][..], "url"),
        (&["key", "image_path", "URL"], "URL"),
        (&["path", "image_url"], "image_url"),
    ] {
        let column = column.to_owned();
        assert_eq!(strings(names), SchemaError::UrlOnly { column });
    }
    for name in ["file_name", "path", "image_path"] {
        let column = name.to_owned();
        assert_eq!(
            strings(&["caption", name]),
            SchemaError::PathsOnly { column }
        );
    }
    let image = strings(&["image", "caption"]);
    let column = "image".to_owned();
    assert_eq!(
        image,
        SchemaError::TextColumn {
            column,
            value: None
        }
    );
    assert!(matches!(
        strings(&["key", "caption"]),
        SchemaError::NoImageColumn { .. }
    ));
}

#[test]
fn a_string_column_is_read_where_it_is_named() {
    let mapping = resolve_named(vec![field("image", DataType::Utf8)], Some("image"), None).unwrap();
    assert_eq!(mapping.images[0].form, ImageForm::Text);
    assert_eq!(mapping.text_columns(), [ColumnPath::new("image")]);
    let advice = |value: &[u8]| {
        let (column, value) = ("image".to_owned(), Some(value.to_vec()));
        SchemaError::TextColumn { column, value }.to_string()
    };
    for (value, part) in [
        (
            &b"\xff\xd8\xff\xe0\0\x10JFIF"[..],
            "JPEG files that are wrongly annotated as text",
        ),
        (b"/9j/4AAQSkZJRgABAQ", "JPEG in base64"),
        (b"data:image/png;base64,iVBORw0KGgoAAAAN", "PNG in base64"),
    ] {
        let text = advice(value);
        assert!(
            text.contains(part) && text.contains("--image-column image"),
            "{text}"
        );
    }
    let text = advice(b"https://example.org/a.jpg?key=value-that-goes-on");
    assert!(
        text.contains("URLs (\"https://example.org/a.jpg?key=va...\")"),
        "{text}"
    );
    assert!(!advice(b"a caption").contains("--image-column"));
}

#[test]
fn columns_of_types_that_cannot_be_read_matter_only_where_they_are_named() {
    let strange = |name: &str| {
        let metadata = HashMap::from([(UNSUPPORTED.to_owned(), "128 bits".to_owned())]);
        field(name, DataType::Null).with_metadata(metadata)
    };
    let fields = || beside(vec![strange("id"), strange("png")]);
    assert_eq!(paths(&resolve(fields()).unwrap()), ["image"]);
    for (image, label) in [(Some("id"), None), (None, Some("id"))] {
        let text = resolve_named(fields(), image, label)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("a type that cannot be read (128 bits)"),
            "{text}"
        );
    }
    assert!(matches!(
        chosen(vec![strange("label")]),
        Err(NoLabel::Unreadable { .. })
    ));
}

#[test]
fn named_columns_must_exist_and_be_readable() {
    let fields = || {
        vec![
            field("image", DataType::Binary),
            field("day", DataType::Date32),
        ]
    };
    let error = resolve_named(fields(), Some("imgae"), None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`imgae`") && error.contains("image: binary"),
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
    for (image, label, option) in [
        (Some("day"), None, "image_column"),
        (None, Some("day"), "label_column"),
    ] {
        let error = resolve_named(fields(), image, label).unwrap_err();
        assert!(
            matches!(&error, SchemaError::UnreadableColumn { option: named, .. } if *named == option),
            "{error}"
        );
    }
}

#[test]
fn a_list_of_numbers_is_no_image() {
    let numbers = list(DataType::UInt8);
    assert!(matches!(
        resolve(vec![field("image", numbers)]),
        Err(SchemaError::NoImageColumn { .. })
    ));
}
