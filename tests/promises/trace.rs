//! The loader gives the very batches that were recorded: order, plans, labels, replacements,
//! pixels, saved positions and requests, as checksums in `fixtures/golden-trace.json`.
//!
//! For changes of the code that must not change its results. `NEPA_RECORD_TRACE=1` records what is
//! there now, for a change that is meant to give other ones.
use std::path::Path;

use anyhow::{Context, Result};
use nepa_pipeline::{AugmentConfig, Filter, IoConfig, LoaderConfig};
use nepa_tests::shards::labelled_shard_in_pages;

mod case;
mod golden;
mod made;

use case::{Case, Data, Pixels};
use golden::compare;
use made::{Flaw, bad, folder_of, large_row_groups, row, some_of_the_zoo};

fn random_crops(size: u32, filter: Filter) -> AugmentConfig {
    AugmentConfig::RandomResizedCrop {
        size,
        scale: [0.2, 1.0],
        ratio: [0.75, 1.33],
        flip: 0.5,
        filter,
        rand_augment: None,
        erase: None,
    }
}

const PART_BYTES: u64 = 16 << 10;

/// Everything that a case may set, each at least once, over the same good rows.
fn cases_of_good_rows(good: &Data) -> Vec<Case> {
    let center = |size, resize, filter| AugmentConfig::CenterCrop {
        size,
        resize,
        filter,
    };
    let mut cases = vec![
        Case::new("crops", good, |_| {}),
        Case::new("crops, resumed", good, |_| {}).resume_after(13),
        Case::new("crops, resumed at an epoch", good, |_| {}).resume_after(22),
        Case::new("crops, another seed, all of it", good, |config| {
            config.seed = 8;
            config.drop_last = false;
        }),
        Case::new("crops, bicubic, bf16 in patches", good, |config| {
            config.augment = random_crops(16, Filter::Bicubic);
        })
        .of(Pixels::Bf16, Some(4)),
        Case::new("crops, u8", good, |config| config.epochs = Some(1)).of(Pixels::U8, None),
        Case::new("crops, small windows", good, |config| {
            config.shuffle_window_bytes = 1;
        }),
        Case::new("crops, one window", good, |config| {
            config.shuffle_window_bytes = 1 << 30;
        }),
        Case::new("crops, separate requests", good, |_| {}).io(IoConfig {
            coalesce_gap_bytes: 0,
            request_bytes: 3000,
            ..IoConfig::default()
        }),
        Case::new("not turned, another normalisation", good, |config| {
            config.exif_orientation = false;
            config.epochs = Some(1);
            config.normalize.mean = [0.485, 0.456, 0.406];
            config.normalize.std = [0.229, 0.224, 0.225];
        }),
        Case::new("centre", good, |config| {
            config.augment = center(16, 20, Filter::Bilinear);
            config.shuffle = false;
            config.drop_last = false;
            config.epochs = Some(1);
        }),
        Case::new("centre, bicubic, f32 in patches", good, |config| {
            config.augment = center(24, 24, Filter::Bicubic);
            config.shuffle = false;
        })
        .of(Pixels::F32, Some(8)),
        Case::new("views", good, |config| {
            config.augment = AugmentConfig::multi_crop((2, 16), (3, 8));
        }),
        Case::new("views, u8 in patches", good, |config| {
            config.augment = AugmentConfig::multi_crop((1, 16), (2, 8));
            config.epochs = Some(1);
        })
        .of(Pixels::U8, Some(4)),
    ];
    for (rank, drop_last) in [(0, true), (1, true), (0, false), (1, false)] {
        let all = if drop_last { "" } else { ", all of it" };
        let name = format!("rank {rank} of 2{all}");
        cases.push(Case::new(&name, good, |config| {
            (config.rank, config.world_size) = (rank, 2);
            config.drop_last = drop_last;
            config.epochs = Some(if drop_last { 2 } else { 1 });
        }));
    }
    cases
}

#[test]
fn made_data_gives_the_recorded_batches() -> Result<()> {
    let good_folder = folder_of(0, |_| None)?;
    let other_folder = folder_of(1000, |_| None)?;
    let bad_folder = folder_of(2000, bad)?;
    let large_folder = large_row_groups()?;
    let good = Data::folder(&good_folder)?;
    let with_bad = Data::folder(&bad_folder)?;
    let large = Data::folder(&large_folder)?;
    let mixture = Data {
        sources: vec![
            (good.sources[0].0.clone(), 2.0),
            (Data::folder(&other_folder)?.sources[0].0.clone(), 0.7),
        ],
        root: String::new(),
    };
    let parts = || IoConfig {
        part_bytes: PART_BYTES,
        coalesce_gap_bytes: 0,
        ..IoConfig::default()
    };
    let windows_of_parts = |config: &mut LoaderConfig| {
        config.shuffle_window_bytes = 4 * PART_BYTES;
    };

    let mut cases = cases_of_good_rows(&good);
    cases.extend([
        Case::new("bad rows", &with_bad, |config| config.drop_last = false).listing_bad_samples(),
        Case::new("bad rows, resumed", &with_bad, |_| {})
            .listing_bad_samples()
            .resume_after(9),
        Case::new(
            "bad rows, rank 1 of 2, small windows",
            &with_bad,
            |config| {
                config.shuffle_window_bytes = 1;
                (config.rank, config.world_size) = (1, 2);
            },
        )
        .listing_bad_samples(),
        Case::new("mixture", &mixture, |_| {}),
        Case::new("mixture, resumed, in order", &mixture, |config| {
            config.shuffle = false;
        })
        .resume_after(25),
        Case::new("mixture, rank 1 of 2, u8", &mixture, |config| {
            (config.rank, config.world_size) = (1, 2);
        })
        .of(Pixels::U8, None),
        Case::new("row groups in one part", &large, windows_of_parts),
        Case::new("row groups in parts", &large, windows_of_parts).io(parts()),
        Case::new("row groups in parts, resumed", &large, windows_of_parts)
            .io(parts())
            .resume_after(30),
    ]);
    compare(&cases)
}

/// Rows of which the footer says, or does not say, that they hold no image.
#[test]
fn rows_without_an_image_give_the_recorded_batches() -> Result<()> {
    let folder = folder_of(3000, |number| match number % 17 {
        2 => Some(Flaw::Null),
        8 => Some(Flaw::PathOnly),
        _ => bad(number),
    })?;
    let data = Data::folder(&folder)?;
    let pages = tempfile::tempdir().context("no temporary folder")?;
    let rows = (0..160).map(|number| row(number, (number % 9 == 4).then_some(Flaw::Null)));
    let rows = rows.collect::<Result<Vec<_>>>()?;
    std::fs::write(
        pages.path().join("train-0.parquet"),
        labelled_shard_in_pages([rows], 7, true),
    )
    .context("a shard cannot be written")?;
    let uncounted = Data::folder(&pages)?;
    compare(&[
        Case::new("rows without an image", &data, |config| {
            config.drop_last = false;
        })
        .listing_bad_samples(),
        Case::new("rows without an image, resumed", &data, |_| {})
            .listing_bad_samples()
            .resume_after(10),
        Case::new("uncounted rows without an image", &uncounted, |_| {}).listing_bad_samples(),
    ])
}

#[test]
fn photos_give_the_recorded_batches() -> Result<()> {
    let Some(folder) = std::env::var_os("NEPA_TEST_DATA") else {
        eprintln!("SKIPPED: NEPA_TEST_DATA is not set, so there are no photos to trace");
        return Ok(());
    };
    let root = Path::new(&folder);
    let data = |glob: &str| -> Result<Data> {
        let path = root.join(glob);
        let path = path.to_str().context("NEPA_TEST_DATA is no text")?;
        Ok(Data {
            sources: vec![(path.to_owned(), 1.0)],
            root: String::new(),
        })
    };
    let cifar10 = data("cifar10/train-*.parquet")?;
    let cifar10_test = data("cifar10/test-*.parquet")?;
    let shaped = data("imagenet-shaped/train-*.parquet")?;
    let imagenette = data("imagenette224/train-*.parquet")?;
    let mixture = Data {
        sources: vec![
            (cifar10.sources[0].0.clone(), 1.0),
            (imagenette.sources[0].0.clone(), 3.0),
        ],
        root: String::new(),
    };
    let zoo_folder = some_of_the_zoo(root)?;
    let zoo = Data::folder(&zoo_folder)?;
    let photos = |config: &mut LoaderConfig| {
        config.augment = random_crops(224, Filter::Bicubic);
        config.global_batch = 16;
        config.shuffle_window_bytes = 4 << 20;
    };
    compare(&[
        Case::new("cifar10", &cifar10, |config| {
            config.augment = random_crops(32, Filter::Bilinear);
            config.global_batch = 256;
            config.shuffle_window_bytes = 1 << 20;
        })
        .most(8),
        Case::new("cifar10, test", &cifar10_test, |config| {
            config.augment = AugmentConfig::center_crop(32, 32);
            config.global_batch = 250;
            (config.shuffle, config.drop_last) = (false, false);
        })
        .of(Pixels::U8, None)
        .most(6),
        Case::new("imagenet-shaped", &shaped, photos).most(4),
        Case::new("imagenet-shaped, centre", &shaped, |config| {
            photos(config);
            config.augment = AugmentConfig::center_crop(224, 256);
            config.shuffle = false;
        })
        .of(Pixels::U8, Some(16))
        .most(3),
        Case::new("imagenet-shaped, views", &shaped, |config| {
            photos(config);
            config.augment = AugmentConfig::multi_crop((2, 224), (4, 96));
        })
        .most(2),
        Case::new("imagenette224", &imagenette, photos)
            .of(Pixels::Bf16, Some(14))
            .most(10),
        Case::new(
            "imagenette224, resumed, rank 1 of 2",
            &imagenette,
            |config| {
                photos(config);
                (config.rank, config.world_size) = (1, 2);
            },
        )
        .resume_after(5)
        .most(10),
        Case::new("cifar10 and imagenette224", &mixture, photos).most(6),
        Case::new("odd JPEGs", &zoo, |config| {
            config.augment = random_crops(32, Filter::Bilinear);
            config.drop_last = false;
            config.epochs = Some(1);
            config.global_batch = 16;
        })
        .listing_bad_samples(),
    ])
}
