//! Which split (training, validation, test) a shard belongs to, as far as its name says so.
use std::collections::BTreeMap;

use super::names::common_root;
use crate::DatasetError;

/// A split, by one spelling.
fn split_named(word: &str) -> Option<&'static str> {
    Some(match word {
        "train" | "training" => "train",
        "val" | "valid" | "validation" | "dev" => "validation",
        "test" | "testing" | "eval" | "evaluation" => "test",
        _ => return None,
    })
}

/// Folders of these Hive keys are classes, and a class can be called `train`.
const LABEL_KEYS: [&str; 6] = [
    "label",
    "labels",
    "class",
    "class_name",
    "category",
    "target",
];

/// The words of one part of a path, without the digits around them (`train2017`).
fn words(part: &str) -> impl Iterator<Item = String> {
    let is_label = part
        .split_once('=')
        .is_some_and(|(key, _)| LABEL_KEYS.contains(&key.to_ascii_lowercase().as_str()));
    let part = if is_label { "" } else { part };
    part.split(|c: char| !c.is_alphanumeric())
        .map(|word| {
            word.trim_matches(|c: char| c.is_ascii_digit())
                .to_lowercase()
        })
        .filter(|word| !word.is_empty())
}

/// The splits that a path's parts name, from the outermost to the name.
fn signs(path: &str) -> Vec<(usize, &'static str)> {
    let parts = path.split('/').enumerate();
    let named = |(depth, part)| {
        let splits = words(part).filter_map(|word| split_named(&word));
        splits.map(move |split| (depth, split)).collect::<Vec<_>>()
    };
    parts.flat_map(named).collect()
}

/// The split that the innermost part names which names one alone.
fn innermost(signs: &[(usize, &'static str)]) -> Option<&'static str> {
    let mut by_depth = BTreeMap::<usize, Vec<&'static str>>::new();
    for (depth, split) in signs {
        by_depth.entry(*depth).or_default().push(split);
    }
    let alone = |splits: &Vec<&'static str>| splits.iter().all(|split| split == &splits[0]);
    let innermost = by_depth.into_values().rev().find(alone)?;
    Some(innermost[0])
}

/// The split of each shard. A word that all of them share says nothing.
pub(super) fn splits(urls: &[&str]) -> Vec<Option<&'static str>> {
    let root = common_root(urls);
    let mut all = urls
        .iter()
        .map(|url| signs(&url[root..]))
        .collect::<Vec<_>>();
    for split in ["train", "validation", "test"] {
        let count =
            |signs: &Vec<(usize, &str)>| signs.iter().filter(|(_, sign)| *sign == split).count();
        let shared = all.iter().map(count).min().unwrap_or(0);
        for signs in &mut all {
            let mut left = shared;
            signs.retain(|(_, sign)| {
                let is_shared = *sign == split && left > 0;
                left -= usize::from(is_shared);
                !is_shared
            });
        }
    }
    all.iter().map(|signs| innermost(signs)).collect()
}

/// How many shards there are of each split, by name.
pub(super) fn counts(splits: &[Option<&'static str>]) -> Vec<(&'static str, usize)> {
    let mut counts = BTreeMap::new();
    for split in splits.iter().flatten() {
        *counts.entry(*split).or_default() += 1;
    }
    counts.into_iter().collect()
}

/// Which of the shards are of the split that is asked for: a known one in any spelling, or any word
/// of the names.
pub(super) fn select(urls: &[&str], wanted: &str) -> Result<Vec<bool>, DatasetError> {
    let wanted_word = wanted.to_lowercase();
    let mut found = splits(urls);
    if found.iter().all(Option::is_none) {
        // One split alone: what all share says which.
        found = urls.iter().map(|url| innermost(&signs(url))).collect();
    }
    let chosen = if let Some(split) = split_named(&wanted_word) {
        let chosen = found.iter().map(|found| *found == Some(split));
        chosen.collect::<Vec<_>>()
    } else {
        let root = common_root(urls);
        let named = |url: &&str| {
            let mut words = url[root..].split('/').flat_map(words);
            words.any(|word| word == wanted_word)
        };
        urls.iter().map(named).collect()
    };
    if chosen.contains(&true) {
        return Ok(chosen);
    }
    let counts = counts(&found).into_iter();
    Err(DatasetError::NoSuchSplit {
        split: wanted.to_owned(),
        found: counts
            .map(|(split, count)| (split.to_owned(), count))
            .collect(),
        unnamed: found.iter().filter(|split| split.is_none()).count(),
        example: urls[0].to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_hive_keys_and_any_word_of_the_name_say_the_split() {
        let (train, validation, test) = (Some("train"), Some("validation"), Some("test"));
        for (urls, expected) in [
            (
                vec![
                    "s/default/train/0.parquet",
                    "s/default/test/0.parquet",
                    "s/default/validation/0.parquet",
                ],
                vec![train, test, validation],
            ),
            (
                vec!["s/imagenet_val-01.parquet", "s/imagenet_train-01.parquet"],
                vec![validation, train],
            ),
            (
                vec!["s/split=dev/0.parquet", "s/split=training/0.parquet"],
                vec![validation, train],
            ),
            (
                vec!["s/train2017.parquet", "s/val2017.parquet"],
                vec![train, validation],
            ),
            (
                vec!["s/Train-0.parquet", "s/eval_0.parquet"],
                vec![train, test],
            ),
            // What all share says nothing.
            (
                vec!["train_data/test/0.parquet", "train_data/test/1.parquet"],
                vec![None, None],
            ),
            (
                vec!["s/my_test_train-0.parquet", "s/my_test_test-0.parquet"],
                vec![train, test],
            ),
            (
                vec!["s/a/train-0.parquet", "s/b/train-0.parquet"],
                vec![None, None],
            ),
            // A part that names two says neither.
            (
                vec!["s/train/train_test-0.parquet", "s/x/0.parquet"],
                vec![train, None],
            ),
            // Classes can be called so.
            (
                vec!["s/label=train/0.parquet", "s/label=test/0.parquet"],
                vec![None, None],
            ),
            (
                vec![
                    "s/trainer-0.parquet",
                    "s/value-0.parquet",
                    "s/contest-0.parquet",
                ],
                vec![None, None, None],
            ),
        ] {
            assert_eq!(splits(&urls), expected, "{urls:?}");
        }
    }

    #[test]
    fn a_split_is_chosen_in_any_spelling() {
        let urls = ["s/train-0.parquet", "s/val-0.parquet", "s/readme-0.parquet"];
        assert_eq!(select(&urls, "validation").unwrap(), [false, true, false]);
        assert_eq!(select(&urls, "Train").unwrap(), [true, false, false]);
        assert_eq!(select(&urls, "readme").unwrap(), [false, false, true]);
        let error = select(&urls, "test").unwrap_err().to_string();
        assert!(error.contains("train (1), validation (1)"), "{error}");
        // The only split that there is.
        let one = ["train_data/test/0.parquet", "train_data/test/1.parquet"];
        assert_eq!(select(&one, "test").unwrap(), [true, true]);
        let error = select(&one, "train").unwrap_err().to_string();
        assert!(error.contains("test (2)"), "{error}");
    }
}
