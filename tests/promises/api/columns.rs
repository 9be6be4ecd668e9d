//! Further columns: each batch has the rows of its samples, as they are in the shards.
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, Float32Builder, Int64Array, ListBuilder, StringArray,
};
use arrow::record_batch::RecordBatch;
use nepa_pipeline::{Loader, LoaderBuilder, LoaderError, SampleId, full_text};
use nepa_tests::photos::photo;
use nepa_tests::shards::write;
use tempfile::TempDir;

const ROW_GROUPS: [u32; 3] = [7, 5, 8];
/// The row whose image is bad.
const BAD: SampleId = SampleId {
    shard: 1,
    row_group: 2,
    row: 3,
};

fn caption(id: SampleId) -> Option<String> {
    (id.row % 5 != 3).then(|| format!("what is in {id}"))
}

fn captions(ids: &[SampleId]) -> ArrayRef {
    Arc::new(ids.iter().map(|&id| caption(id)).collect::<StringArray>())
}

/// A list of boxes for each row: none, no boxes, or up to three of four numbers each, some of which
/// are null.
fn boxes(ids: &[SampleId]) -> ArrayRef {
    let mut rows = ListBuilder::new(ListBuilder::new(Float32Builder::new()));
    for id in ids {
        let is_null = id.row % 4 == 1;
        for number in 0..if is_null { 0 } else { id.row % 4 } {
            let values = [id.shard, id.row_group, id.row, number].map(|value| value as f32);
            let corners = rows.values();
            corners.values().append_slice(&values[..3]);
            corners
                .values()
                .append_option((number > 0).then_some(values[3]));
            corners.append(true);
        }
        rows.append(!is_null);
    }
    Arc::new(rows.finish())
}

/// Two shards of three row groups.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for shard in 0..2 {
        let row_groups = (0..).zip(ROW_GROUPS).map(|(row_group, rows)| {
            let id = |row| SampleId {
                shard,
                row_group,
                row,
            };
            let ids = (0..rows).map(id).collect::<Vec<_>>();
            let image = |id: &SampleId| {
                if *id == BAD {
                    b"these bytes are no image".to_vec()
                } else {
                    photo(id.shard * 100 + id.row_group * 10 + id.row)
                }
            };
            let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(ids.iter().map(image)));
            let columns = [
                ("boxes", boxes(&ids)),
                ("image", images),
                ("caption", captions(&ids)),
            ];
            let nullable = columns.map(|(name, column)| (name, column, true));
            RecordBatch::try_from_iter_with_nullable(nullable).unwrap()
        });
        let row_groups = row_groups.collect::<Vec<_>>();
        let bytes = write(&row_groups[0].schema(), row_groups);
        std::fs::write(folder.path().join(format!("{shard}.parquet")), bytes).unwrap();
    }
    folder
}

fn builder(folder: &TempDir) -> LoaderBuilder {
    super::builder(folder).drop_last(false)
}

#[test]
fn further_columns_come_row_for_row_with_the_samples() {
    let folder = folder();
    for decode_threads in [1, 3] {
        let loader = builder(&folder).extra_columns(["caption", "boxes"]);
        let loader = loader.decode_threads(decode_threads).open().unwrap();
        let (mut all, mut replaced) = (Vec::new(), 0);
        for batch in loader {
            let batch = batch.unwrap();
            let ids = batch.ids().collect::<Vec<_>>();
            let columns = batch.columns().expect("they were asked for");
            assert_eq!(columns.num_rows(), batch.len());
            let schema = columns.schema();
            let names = schema.fields().iter().map(|field| field.name().as_str());
            assert_eq!(names.collect::<Vec<_>>(), ["caption", "boxes"]);
            // As Arrow's array of strings, and as written, nulls and all.
            let said = columns.column(0).as_string::<i32>();
            let said = said.iter().map(|text| text.map(str::to_owned));
            let expected = ids.iter().map(|&id| caption(id));
            assert_eq!(said.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
            assert_eq!(columns.column(1), &boxes(&ids), "{ids:?}");
            for sample in batch.samples() {
                assert_ne!(sample.id, BAD);
                replaced += usize::from(sample.replaces == Some(BAD));
            }
            all.extend(ids);
        }
        assert_eq!(all.len(), 2 * 40);
        assert!(!all[..40].is_sorted(), "not shuffled");
        assert_eq!(replaced, 2, "once an epoch");
    }
    // Without being asked for, nothing of them is read.
    let batch = builder(&folder).open().unwrap().next().unwrap().unwrap();
    assert!(batch.columns().is_none());
}

#[test]
fn further_columns_that_are_missing_or_differ_are_told() {
    let folder = folder();
    let refused = |name: &str| {
        let loader = builder(&folder).extra_columns([name]).open();
        let error = loader.expect_err("this column cannot be read");
        assert!(matches!(error, LoaderError::Dataset(_)), "{error}");
        full_text(&error)
    };
    let text = refused("captions");
    assert!(
        text.contains("`captions`") && text.contains("extra_columns") && text.contains("boxes"),
        "{text}"
    );
    // Another type in a further shard.
    let images = BinaryArray::from_iter_values((0..5).map(photo));
    let columns = [
        ("image", Arc::new(images) as ArrayRef),
        ("caption", Arc::new(Int64Array::from_iter_values(0..5))),
        ("boxes", boxes(&[BAD; 5])),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let other = folder.path().join("2.parquet");
    std::fs::write(&other, write(&batch.schema(), [batch.clone()])).unwrap();
    let text = refused("caption");
    assert!(
        text.contains("2.parquet") && text.contains("caption"),
        "{text}"
    );
    // What is not asked for may differ.
    let loader = Loader::builder(folder.path().to_str().unwrap());
    let loader = loader.batch_size(5).extra_columns(["boxes"]);
    assert_eq!(loader.open().unwrap().dataset().num_samples(), 45);
    // The column may be missing there, too.
    let batch = batch.project(&[0, 2]).unwrap();
    std::fs::write(&other, write(&batch.schema(), [batch])).unwrap();
    let text = refused("caption");
    assert!(
        text.contains("2.parquet") && text.contains("caption"),
        "{text}"
    );
}
