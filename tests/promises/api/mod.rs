//! The loader's public interface for other programs: builder, iterator, stream, pixel types,
//! patches, several views of one decode.
use futures::StreamExt;
use half::bf16;
use nepa_pipeline::{AugmentConfig, HostBatch, IoRuntime, Loader, LoaderBuilder};
use nepa_tests::photos::{all_good, photo_at, some_bad};

mod augment;
mod batches;
mod builder;
mod columns;
mod raw;

fn builder(folder: &tempfile::TempDir) -> LoaderBuilder {
    Loader::builder(folder.path().to_str().unwrap())
        .batch_size(8)
        .epochs(2)
        .seed(5)
        .decode_threads(2)
        .augment(AugmentConfig::random_resized_crop(8, [0.2, 1.0]))
}

#[test]
fn iterator_and_stream_give_the_same_batches() {
    let folder = all_good();
    let batches: Vec<HostBatch> = builder(&folder)
        .open()
        .unwrap()
        .take(2)
        .collect::<Result<_, _>>()
        .unwrap();
    let mut by_iterator = batches
        .iter()
        .map(|batch: &HostBatch| batch.array().to_vec())
        .collect::<Vec<_>>();
    let ids: Vec<_> = batches[0].ids().collect();
    assert_eq!(
        (ids.len(), batches[0].class_indices().unwrap().len()),
        (8, 8)
    );
    drop(batches);
    let loader = builder(&folder).open().unwrap();
    assert_eq!(loader.dataset().num_samples(), 66);
    by_iterator.extend(loader.skip(2).map(|batch| batch.unwrap().array().to_vec()));
    assert_eq!(by_iterator.len(), 16);

    let runtime = IoRuntime::new(2).unwrap();
    let loader = builder(&folder).runtime(runtime.clone()).open().unwrap();
    let by_stream = runtime.block_on(async move {
        let stream = loader.into_stream();
        stream
            .map(|batch| batch.unwrap().array().to_vec())
            .collect::<Vec<_>>()
            .await
    });
    assert!(by_stream == by_iterator);
}

#[test]
fn pixel_types_and_patches_hold_the_same_values() {
    let folder = some_bad();
    let open = || {
        let mean = [0.4, 0.5, 0.6];
        builder(&folder).normalize(mean, [0.2, 0.25, 0.3])
    };
    let config = nepa_pipeline::LoaderConfig::default();
    assert!(config.max_bad_fraction <= 0.01);
    let floats = open()
        .open()
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .array()
        .to_vec();
    let halves = open().open_as::<bf16>(None).unwrap().next().unwrap();
    let halves = halves.unwrap().array().to_vec();
    assert!(
        floats
            .iter()
            .zip(&halves)
            .all(|(float, half)| bf16::from_f32(*float) == *half)
    );
    let bytes = open().open_as::<u8>(None).unwrap().next().unwrap();
    let bytes = bytes.unwrap().array().to_vec();
    for (i, (float, byte)) in floats.iter().zip(&bytes).enumerate() {
        let channel = i / 64 % 3;
        let expected =
            (f32::from(*byte) / 255.0 - [0.4, 0.5, 0.6][channel]) / [0.2, 0.25, 0.3][channel];
        assert!((float - expected).abs() < 1e-6, "{float} {byte}");
    }
    let patches = open().open_as::<u8>(Some(4)).unwrap().next().unwrap();
    let patches = patches.unwrap().array().to_vec();
    for (i, value) in patches.iter().enumerate() {
        // [B, P, 3, 4, 4] of [B, 3, 8, 8].
        let (image, patch, channel) = (i / 192, i / 48 % 4, i / 16 % 3);
        let (y, x) = (patch / 2 * 4 + i / 4 % 4, patch % 2 * 4 + i % 4);
        assert_eq!(*value, bytes[image * 192 + channel * 64 + y * 8 + x]);
    }
    let error = open().open_as::<u8>(Some(3)).err().unwrap();
    let text = nepa_pipeline::full_text(&error);
    assert!(text.contains("8 x 8") && text.contains("3 x 3"), "{text}");
}

#[test]
fn several_views_come_from_one_decode() {
    let folder = all_good();
    let open = |augment| builder(&folder).augment(augment).open().unwrap();
    let batch = open(AugmentConfig::multi_crop((2, 8), (3, 4)))
        .next()
        .unwrap()
        .unwrap();
    assert_eq!(batch.view_sides(), [8, 8, 4, 4, 4]);
    // Each view is what its plan alone gives.
    let mut renderer = nepa_pipeline::CpuRenderer::default();
    for (i, sample) in batch.samples().iter().enumerate() {
        let photo = photo_at(sample.id.shard, sample.id.row_group, sample.id.row);
        let plans = sample.views.iter();
        for (view, plan) in plans.enumerate() {
            let mut expected = vec![0.0; 3 * (plan.output_size as usize).pow(2)];
            renderer.render_plan(&photo, plan, &mut expected).unwrap();
            assert_eq!(batch.view(i, view), expected, "{} view {view}", sample.id);
        }
        assert_eq!(sample.views.len(), 5);
    }
    assert_eq!(batch.view_array(4).len(), 8 * 3 * 16);
}
