//! Which image goes into which shard: a pure function of the sorted files, the seed and the sizes.
use nepa_pipeline::{random::Purpose, random::epoch_stream, random::shuffle};
use sha2::{Digest, Sha256};

use super::{FolderScan, ImageFile};

/// How to pack.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PackOptions {
    /// Seed of the order and of the split.
    pub seed: u64,
    /// Name of the split, the first part of the shards' names.
    pub split: String,
    /// Share of each class that goes to the split `val`; 0 for no such split.
    pub val_fraction: f64,
    /// Shards are about this large.
    pub shard_bytes: u64,
    /// Row groups reach this size.
    pub row_group_bytes: u64,
}

/// The images of one split, in shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SplitPlan {
    /// `train` or `val`, say.
    pub split: String,
    pub shards: Vec<ShardPlan>,
}

/// The images of one shard, in order, as indices into the sorted files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardPlan {
    /// `train-00000-of-00004.parquet`.
    pub name: String,
    /// Indices of the files.
    pub images: Vec<usize>,
}

/// Shuffles `files`, takes the validation share out of each class, and cuts shards of about equal
/// size.
pub(crate) fn plan(files: &[ImageFile], options: &PackOptions) -> Vec<SplitPlan> {
    let mut order = (0..files.len()).collect::<Vec<_>>();
    shuffle(
        &mut epoch_stream(options.seed, 0, 0, Purpose::Order),
        &mut order,
    );

    let num_classes = files
        .iter()
        .filter_map(|file| file.class)
        .max()
        .map_or(1, |class| class + 1);
    let class = |file: usize| files[file].class.unwrap_or(0);
    let mut wanted = vec![0usize; num_classes];
    for file in 0..files.len() {
        wanted[class(file)] += 1;
    }
    for count in &mut wanted {
        *count = (*count as f64 * options.val_fraction).round() as usize;
    }
    let (val, train): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|&file| {
        let left = &mut wanted[class(file)];
        let take = *left > 0;
        *left -= usize::from(take);
        take
    });
    [(options.split.as_str(), train), ("val", val)]
        .into_iter()
        .filter(|(_, images)| !images.is_empty())
        .map(|(split, images)| SplitPlan {
            split: split.to_owned(),
            shards: cut(split, files, &images, options),
        })
        .collect()
}

/// What tells a shard of one plan from those of all others: a hash of its name and of all that it
/// will hold. Images count by name, class and size, as nobody reads all of them to find out where
/// packing was interrupted.
pub(crate) fn shard_id(scan: &FolderScan, shard: &ShardPlan, row_group_bytes: u64) -> String {
    let mut hash = Sha256::new();
    // With its length before it, no text runs into the next.
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add("nepa pack 1");
    add(&shard.name);
    add(&row_group_bytes.to_string());
    for class in &scan.classes {
        add(class);
    }
    for &index in &shard.images {
        let image = &scan.images[index];
        add(&image.name);
        add(&format!("{:?} {}", image.class, image.num_bytes));
    }
    format!("{:x}", hash.finalize())
}

fn cut(
    split: &str,
    files: &[ImageFile],
    images: &[usize],
    options: &PackOptions,
) -> Vec<ShardPlan> {
    let total = images
        .iter()
        .map(|&file| files[file].num_bytes)
        .sum::<u64>();
    let num_shards = total
        .div_ceil(options.shard_bytes.max(1))
        .clamp(1, images.len() as u64);
    let mut shards = vec![Vec::new(); num_shards as usize];
    let mut before = 0;
    for &file in images {
        // By the middle of the image, so that the shards are as even as whole images allow.
        let middle = before + files[file].num_bytes / 2;
        let shard = u128::from(middle) * u128::from(num_shards) / u128::from(total.max(1));
        shards[(shard as usize).min(num_shards as usize - 1)].push(file);
        before += files[file].num_bytes;
    }
    shards.retain(|images| !images.is_empty());
    let num_shards = shards.len();
    let name = |index| format!("{split}-{index:05}-of-{num_shards:05}.parquet");
    shards
        .into_iter()
        .enumerate()
        .map(|(index, images)| ShardPlan {
            name: name(index),
            images,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(count: usize) -> Vec<ImageFile> {
        let file = |i: usize| ImageFile {
            path: format!("/x/{i}").into(),
            name: format!("{i}"),
            class: Some(i % 4),
            num_bytes: 100 + (i as u64 * 37) % 200,
        };
        (0..count).map(file).collect()
    }

    fn options() -> PackOptions {
        PackOptions {
            seed: 7,
            split: "train".to_owned(),
            val_fraction: 0.25,
            shard_bytes: 10_000,
            row_group_bytes: 1000,
        }
    }

    #[test]
    fn every_image_is_in_one_shard_and_the_seed_decides() {
        let files = files(400);
        let splits = plan(&files, &options());
        let mut all = splits
            .iter()
            .flat_map(|split| &split.shards)
            .flat_map(|shard| &shard.images)
            .collect::<Vec<_>>();
        all.sort_unstable();
        assert!(all.into_iter().copied().eq(0..400));
        assert_eq!(splits, plan(&files, &options()));
        assert_ne!(
            splits,
            plan(
                &files,
                &PackOptions {
                    seed: 8,
                    ..options()
                }
            )
        );
    }

    #[test]
    fn the_validation_share_is_taken_from_each_class() {
        let files = files(400);
        let splits = plan(&files, &options());
        assert_eq!(splits[1].split, "val");
        let mut counts = [0; 4];
        for &file in splits[1].shards.iter().flat_map(|shard| &shard.images) {
            counts[file % 4] += 1;
        }
        assert_eq!(counts, [25; 4]);
        assert_eq!(
            plan(
                &files,
                &PackOptions {
                    val_fraction: 0.0,
                    ..options()
                }
            )
            .len(),
            1
        );
    }

    #[test]
    fn a_shard_is_known_by_all_that_it_holds() {
        let scan = |images| FolderScan {
            classes: vec!["ant".to_owned(), "bee".to_owned()],
            images,
            skipped: Vec::new(),
        };
        let whole = scan(files(40));
        let splits = plan(&whole.images, &options());
        let shard = &splits[0].shards[0];
        let id = shard_id(&whole, shard, 1000);
        assert_eq!(id, shard_id(&whole, shard, 1000));
        let mut others = vec![
            shard_id(&whole, shard, 1001),
            shard_id(&whole, &splits[1].shards[0], 1000),
        ];
        let first = shard.images[0];
        let changes: [fn(&mut ImageFile); 3] = [
            |file| file.name.push('x'),
            |file| file.class = Some(9),
            |file| file.num_bytes += 1,
        ];
        for change in changes {
            let mut changed = whole.clone();
            change(&mut changed.images[first]);
            others.push(shard_id(&changed, shard, 1000));
        }
        let mut renamed = whole.clone();
        renamed.classes = vec!["an".to_owned(), "tbee".to_owned()];
        others.push(shard_id(&renamed, shard, 1000));
        for other in others {
            assert_ne!(id, other);
        }
    }

    #[test]
    fn shards_are_even_and_within_the_bound() {
        let files = files(400);
        let splits = plan(&files, &options());
        let sizes = splits[0].shards.iter().map(|shard| {
            shard
                .images
                .iter()
                .map(|&i| files[i].num_bytes)
                .sum::<u64>()
        });
        let sizes = sizes.collect::<Vec<_>>();
        assert!(
            sizes.len() > 3 && sizes.iter().all(|&size| (8_000..=10_300).contains(&size)),
            "{sizes:?}"
        );
        assert_eq!(
            splits[0].shards[1].name,
            format!("train-00001-of-{:05}.parquet", sizes.len())
        );
    }
}
