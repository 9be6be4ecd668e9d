//! The builder: its calls give the same loader in whatever order they come.
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use nepa_pipeline::{
    Augment, AugmentConfig, CropPlan, CropRect, EdgeSupport, Filter, HostBatch, IoConfig,
    LoaderBuilder, LoaderConfig, SampleRecord, random::Stream,
};
use nepa_tests::loading::{Kept, config, rest_of};
use nepa_tests::photos::{all_good, photo};
use nepa_tests::shards::write;
use tempfile::TempDir;

/// One change of a builder.
type Call = Box<dyn Fn(LoaderBuilder) -> LoaderBuilder>;

fn call(change: impl Fn(LoaderBuilder) -> LoaderBuilder + 'static) -> Call {
    Box::new(change)
}

/// The calls in their order, from the last to the first, and rotated by one.
fn orders(calls: &[Call]) -> Vec<LoaderBuilder> {
    let forward = (0..calls.len()).collect::<Vec<_>>();
    let backward = forward.iter().rev().copied().collect();
    let mut rotated = forward.clone();
    rotated.rotate_left(1);
    let build = |order: Vec<usize>| {
        let calls = order.into_iter().map(|number| &calls[number]);
        calls.fold(LoaderBuilder::default(), |builder, call| call(builder))
    };
    [forward, backward, rotated].map(build).into()
}

fn url(folder: &TempDir) -> String {
    folder.path().to_str().unwrap().to_owned()
}

#[test]
fn single_settings_win_over_whole_ones_in_any_order() {
    let folder = all_good();
    let place = url(&folder);
    let calls = [
        call(|builder| builder.config(config())),
        call(move |builder| builder.url(place.clone())),
        call(|builder| builder.batch_size(6)),
        call(|builder| builder.seed(9)),
        call(|builder| builder.epochs(2)),
        call(|builder| builder.drop_last(false)),
        call(|builder| builder.lanes(2)),
        call(|builder| builder.rank(1, 2)),
        call(|builder| builder.decode_threads(1)),
        call(|builder| builder.normalize([0.4; 3], [0.2; 3])),
        call(|builder| builder.augment(AugmentConfig::random_resized_crop(8, [0.5, 1.0]))),
        call(|builder| builder.io(IoConfig::default())),
    ];
    let expected = LoaderConfig {
        global_batch: 6,
        seed: 9,
        epochs: Some(2),
        drop_last: false,
        lanes: 2,
        rank: 1,
        world_size: 2,
        decode_threads: 1,
        normalize: nepa_pipeline::Normalize {
            mean: [0.4; 3],
            std: [0.2; 3],
        },
        augment: AugmentConfig::random_resized_crop(8, [0.5, 1.0]),
        ..config()
    };
    let dataset = nepa_tests::data::open_folder(&folder);
    let expected = nepa_tests::loading::all(&dataset, expected);
    assert_eq!(expected.len(), 2 * 11);
    for (number, builder) in orders(&calls).into_iter().enumerate() {
        let batches = rest_of(&mut builder.open().unwrap());
        assert!(batches == expected, "order {number}");
    }
    // What is in the whole settings alone stays: the window of the shuffle decides the order.
    let whole = |builder: LoaderBuilder| {
        let loader = builder.open().unwrap();
        loader.state().shuffle_window_bytes
    };
    for builder in orders(&calls) {
        assert_eq!(whole(builder), config().shuffle_window_bytes);
    }
}

/// A shard of two columns of images, two of labels and a further one.
fn two_of_each(folder: &TempDir) {
    let images = |first: u32| -> ArrayRef {
        Arc::new(BinaryArray::from_iter_values(
            (first..first + 20).map(photo),
        ))
    };
    let numbers =
        |first: i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(first..first + 20)) };
    let captions = (0..20).map(|row| format!("row {row}"));
    let captions: ArrayRef = Arc::new(StringArray::from_iter_values(captions));
    let columns = [
        ("front", images(0)),
        ("back", images(50)),
        ("kind", numbers(0)),
        ("group", numbers(100)),
        ("caption", captions),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let bytes = write(&batch.schema(), [batch]);
    std::fs::write(folder.path().join("a.parquet"), bytes).unwrap();
}

/// All that is in a batch.
fn whole(batch: &HostBatch) -> (Vec<SampleRecord>, Vec<f32>, Option<RecordBatch>) {
    let kept = Kept::of(batch);
    (kept.samples, kept.pixels, batch.columns().cloned())
}

#[test]
fn columns_are_those_of_all_sources_in_any_order() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    folders.iter().for_each(two_of_each);
    let [first, second] = [&folders[0], &folders[1]].map(url);
    let alone = first.clone();
    let calls = |place: Call| {
        [
            place,
            call(|builder| builder.config(config())),
            call(|builder| builder.image_column("back")),
            call(|builder| builder.label_column("group")),
            call(|builder| builder.extra_columns(["caption"])),
        ]
    };
    // The order of the sources themselves counts: they are numbered so.
    let mixture = calls(call(move |builder| {
        builder
            .source(first.clone(), 1.0)
            .source(second.clone(), 3.0)
    }));
    let one = calls(call(move |builder| builder.url(alone.clone())));
    for (calls, num_sources) in [(mixture, 2), (one, 1)] {
        let mut seen = Vec::new();
        for builder in orders(&calls) {
            let loader = builder.open().unwrap();
            assert_eq!(loader.dataset().sources().len(), num_sources);
            let batches = loader.map(|batch| whole(&batch.unwrap()));
            seen.push(batches.collect::<Vec<_>>());
        }
        for (samples, _, columns) in &seen[0] {
            assert_eq!(columns.as_ref().unwrap().num_rows(), samples.len());
            for sample in samples {
                let label = nepa_pipeline::Label::Index(100 + i64::from(sample.id.row));
                assert_eq!(sample.label, Some(label), "not of the column `group`");
            }
        }
        assert!(seen.iter().all(|batches| *batches == seen[0]));
    }
}

/// The whole image.
#[derive(Debug)]
struct Whole;

impl Augment for Whole {
    fn view_sides(&self) -> Vec<u32> {
        vec![8]
    }

    fn draw(&self, width: u32, height: u32, _: &mut Stream) -> Vec<CropPlan> {
        let rect = CropRect {
            x: 0.0,
            y: 0.0,
            width: width.into(),
            height: height.into(),
        };
        vec![CropPlan {
            rect,
            flip: false,
            output_size: 8,
            filter: Filter::Bilinear,
            edge: EdgeSupport::Rect,
            operations: Vec::new(),
            erase: None,
        }]
    }
}

#[test]
fn an_augmentation_of_ones_own_wins_in_any_order() {
    let folder = all_good();
    let place = url(&folder);
    let calls = [
        call(move |builder| builder.url(place.clone())),
        call(|builder| builder.augment_by(Whole)),
        call(|builder| builder.augment(AugmentConfig::multi_crop((2, 8), (3, 4)))),
        call(|builder| builder.config(config())),
    ];
    let mut seen = Vec::new();
    for builder in orders(&calls) {
        let mut loader = builder.open().unwrap();
        seen.push(rest_of(&mut loader));
    }
    for sample in seen[0].iter().flat_map(|batch| &batch.samples) {
        assert_eq!(sample.views.len(), 1);
        let view = &sample.views[0];
        assert!(!view.flip && view.rect.width >= 24.0, "{view:?}");
    }
    assert!(seen.iter().all(|batches| *batches == seen[0]));
}
