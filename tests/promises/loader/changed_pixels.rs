//! Samples whose pixels are changed by operations and erased boxes: the same in whatever way the
//! loader goes, and a replacement's as its position drew them.
use std::sync::Arc;

use nepa_pipeline::random::{Purpose, sample_stream};
use nepa_pipeline::{
    AugmentConfig, Loader, LoaderConfig, MixConfig, MixPlan, RandAugment, RandomErasing,
    read_header,
};
use nepa_tests::loading::{changed, rest_of};
use nepa_tests::photos::photo_at;

use super::{Kept, all, open, some_bad};

#[test]
fn threads_and_resuming_change_nothing() {
    let folder = some_bad();
    let dataset = open(&folder);
    let expected = all(&dataset, changed());
    let views = || expected.iter().flat_map(|batch| &batch.samples);
    let views = views().map(|sample| &sample.views[0]);
    let erased = views.clone().filter(|view| view.erase.is_some()).count();
    let operations = views.clone().map(|view| view.operations.len());
    assert!(erased > 20 && operations.sum::<usize>() > 100, "{erased}");
    for decode_threads in [1, 4] {
        let config = LoaderConfig {
            decode_threads,
            ..changed()
        };
        assert!(
            all(&dataset, config) == expected,
            "{decode_threads} threads"
        );
    }
    let mut loader = Loader::new(Arc::clone(&dataset), changed(), None).unwrap();
    let mut before = Vec::new();
    for _ in 0..5 {
        before.push(Kept::of(&loader.next_batch().unwrap().unwrap()));
    }
    let state = loader.state();
    drop(loader);
    let mut resumed = Loader::new(dataset, changed(), Some(&state)).unwrap();
    before.extend(rest_of(&mut resumed));
    assert!(before == expected);
}

/// Everything random of a replacement is the bad sample's own, operations and box included.
#[test]
fn a_replacement_is_changed_as_the_sample_that_it_stands_for() {
    let folder = some_bad();
    let augment = changed().augment.build().unwrap();
    let mut replaced = 0;
    for batch in all(&open(&folder), changed()) {
        for sample in &batch.samples {
            let position = sample.replaces.unwrap_or(sample.id);
            let photo = photo_at(sample.id.shard, sample.id.row_group, sample.id.row);
            let header = read_header(&photo).unwrap();
            let mut stream = sample_stream(changed().seed, batch.epoch, position, Purpose::Augment);
            let expected = augment.draw(header.width, header.height, &mut stream);
            assert_eq!(sample.views, expected, "{}", sample.id);
            replaced += usize::from(sample.replaces.is_some());
        }
    }
    assert!(replaced > 0);
}

/// Each of several views has operations and a box of its own.
#[test]
fn views_are_changed_each_by_itself() {
    let AugmentConfig::MultiCrop {
        global_scale,
        local_scale,
        ratio,
        flip,
        filter,
        ..
    } = AugmentConfig::multi_crop((2, 8), (3, 8))
    else {
        unreachable!("several views");
    };
    let augment = AugmentConfig::MultiCrop {
        global_size: 8,
        global_views: 2,
        global_scale,
        local_size: 8,
        local_views: 3,
        local_scale,
        ratio,
        flip,
        filter,
        rand_augment: Some(RandAugment {
            probability: 1.0,
            ..RandAugment::default()
        }),
        erase: Some(RandomErasing {
            probability: 1.0,
            ..RandomErasing::default()
        }),
    };
    let augment = augment.build().unwrap();
    let id = nepa_pipeline::SampleId {
        shard: 0,
        row_group: 0,
        row: 1,
    };
    let views = augment.draw(64, 48, &mut sample_stream(1, 0, id, Purpose::Augment));
    assert_eq!(views.len(), 5);
    for (i, view) in views.iter().enumerate() {
        assert_eq!(view.operations.len(), 2);
        let seed = view.erase.map(|erase| erase.noise_seed);
        let same = |other: &&nepa_pipeline::CropPlan| {
            other.operations == view.operations
                || seed.is_some() && other.erase.map(|erase| erase.noise_seed) == seed
        };
        assert!(views[..i].iter().find(same).is_none(), "view {i}");
    }
}

/// A batch of the loader can be mixed as it is.
#[test]
fn a_batch_is_mixed_by_a_plan() {
    let folder = super::all_good();
    let mut loader = Loader::new(open(&folder), changed(), None).unwrap();
    let batch = loader.next_batch().unwrap().unwrap();
    let mut pixels = batch.array().to_vec();
    let config = MixConfig {
        cutmix_alpha: 0.0,
        ..MixConfig::default()
    };
    let mut stream = nepa_pipeline::random::micro_batch_stream(7, 0, 0, Purpose::MixImages);
    let plan = MixPlan::draw(&config, batch.len(), batch.image_size(), &mut stream).unwrap();
    plan.apply(&mut pixels);
    let own = plan.lambda(0) as f32;
    let last = batch.pixels(batch.len() - 1);
    for ((mixed, first), last) in pixels.iter().zip(batch.pixels(0)).zip(last) {
        assert!((mixed - (own * first + (1.0 - own) * last)).abs() < 1e-5);
    }
}
