//! What the names of a data set's shards make doubtful: several splits, copies, missing shards.
//! Found when it is opened; an error where the configuration is strict.
use std::collections::{BTreeMap, HashMap};

use super::names::common_root;
use super::{DatasetWarning, Shard, splits};

/// Missing shards that a warning names.
const EXAMPLES: usize = 5;

/// Whatever is doubtful about shards of one data set.
pub(super) fn warnings(shards: &[Shard]) -> Vec<DatasetWarning> {
    let urls = shards
        .iter()
        .map(|shard| shard.url.as_str())
        .collect::<Vec<_>>();
    let mut found = Vec::new();
    found.extend(several_splits(&urls));
    found.extend(copies(&urls, |a, b| {
        let (one, other) = (&shards[a], &shards[b]);
        // The ETag of an upload in one part is a digest, and that of a local file holds dashes.
        let digest = |shard: &Shard| shard.e_tag.clone().filter(|tag| !tag.contains('-'));
        let differ = || {
            digest(one)
                .zip(digest(other))
                .is_some_and(|(one, other)| one != other)
        };
        one.size == other.size
            && shards[a].metadata.metadata() == shards[b].metadata.metadata()
            && !differ()
    }));
    // Whoever names a file by itself wants that one.
    let listed = shards
        .iter()
        .filter(|shard| !shard.object.listed.is_named());
    let listed = listed.map(|shard| shard.url.as_str());
    found.extend(numbers(&listed.collect::<Vec<_>>()));
    found
}

fn several_splits(urls: &[&str]) -> Option<DatasetWarning> {
    let splits = splits::counts(&splits::splits(urls)).into_iter();
    let splits = splits
        .map(|(split, count)| (split.to_owned(), count))
        .collect::<Vec<_>>();
    (splits.len() > 1).then(|| DatasetWarning::SeveralSplits {
        below: urls[0][..common_root(urls)].to_owned(),
        splits,
    })
}

/// Files of one name, in folders that differ in one part alone, that are the same.
fn copies(urls: &[&str], same: impl Fn(usize, usize) -> bool) -> Option<DatasetWarning> {
    let mut seen = HashMap::<(usize, String), Vec<usize>>::new();
    let mut first = None;
    let mut count = 0;
    for (index, url) in urls.iter().enumerate() {
        let parts = url.split('/').collect::<Vec<_>>();
        let mut is_copy = false;
        for left_out in 0..parts.len() - 1 {
            let rest = [&parts[..left_out], &parts[left_out + 1..]]
                .concat()
                .join("/");
            let others = seen.entry((left_out, rest)).or_default();
            if let Some(&other) = others.iter().find(|&&other| same(other, index)) {
                is_copy = true;
                first.get_or_insert((other, index));
            } else {
                others.push(index);
            }
        }
        count += usize::from(is_copy);
    }
    first.map(|(first, second)| DatasetWarning::Copies {
        first: urls[first].to_owned(),
        second: urls[second].to_owned(),
        count,
    })
}

/// A name `STEM-00003-of-00010...` taken apart.
struct Numbered<'a> {
    stem: &'a str,
    number: &'a str,
    of: &'a str,
}

impl<'a> Numbered<'a> {
    fn of(url: &'a str) -> Option<Self> {
        let name = url.rfind('/').map_or(0, |slash| slash + 1);
        let lower = url[name..].to_ascii_lowercase();
        let at = name + lower.find("-of-").or_else(|| lower.find("_of_"))?;
        let is_digit = |c: char| c.is_ascii_digit();
        let stem = url[name..at].trim_end_matches(is_digit).len() + name;
        let rest = &url[at + 4..];
        let of = &rest[..rest.find(|c| !is_digit(c)).unwrap_or(rest.len())];
        let number = &url[stem..at];
        (!number.is_empty() && !of.is_empty()).then_some(Self {
            stem: &url[..stem],
            number,
            of,
        })
    }
}

/// How one of these shards is named; all are alike.
fn like<'a>(set: &BTreeMap<u64, &'a str>) -> Option<Numbered<'a>> {
    set.values().next().copied().and_then(Numbered::of)
}

/// What is wrong with the numbers `-of-N`.
fn numbers(urls: &[&str]) -> Vec<DatasetWarning> {
    // By stem and total: the shards by number.
    let mut sets = BTreeMap::<&str, BTreeMap<u64, BTreeMap<u64, &str>>>::new();
    let mut found = Vec::new();
    let mut repeated = None;
    for url in urls {
        let Some(name) = Numbered::of(url) else {
            continue;
        };
        let (Ok(number), Ok(of)) = (name.number.parse(), name.of.parse()) else {
            continue;
        };
        let set = sets.entry(name.stem).or_default().entry(of).or_default();
        if let Some(first) = set.insert(number, url) {
            repeated.get_or_insert_with(|| DatasetWarning::RepeatedNumber {
                first: first.to_owned(),
                second: (*url).to_owned(),
            });
        }
    }
    for (stem, totals) in sets {
        if totals.len() > 1 {
            let written = totals
                .values()
                .filter_map(|set| Some((like(set)?.of.to_owned(), set.len())));
            found.push(DatasetWarning::SeveralTotals {
                stem: stem.to_owned(),
                totals: written.collect(),
            });
        }
        for (of, set) in totals {
            // Most count from 0; who counts from 1 has the last number and not the first.
            let first = u64::from(!set.contains_key(&0) && set.contains_key(&of));
            let range = first..of.saturating_add(first);
            let there = set.range(range.clone()).count() as u64;
            let missing = range.filter(|number| !set.contains_key(number));
            let examples = missing.take(EXAMPLES).collect::<Vec<_>>();
            let Some(like) = like(&set) else {
                continue;
            };
            if there < of {
                let width = like.number.len();
                let name = |number| format!("{number:0width$}-of-{}", like.of);
                found.push(DatasetWarning::MissingShards {
                    stem: stem.to_owned(),
                    of,
                    count: of - there,
                    examples: examples.into_iter().map(name).collect(),
                });
            }
        }
    }
    found.extend(repeated);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(urls: &[&str]) -> Vec<String> {
        numbers(urls).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn missing_numbers_are_named() {
        let whole = [
            "s/train-00000-of-00002.parquet",
            "s/train-00001-of-00002.parquet",
        ];
        assert!(said(&whole).is_empty());
        // With a hash behind, as the Hub has them; counted from 1; two sets side by side.
        assert!(said(&["s/a-0-of-2-ab.parquet", "s/a-1-of-2-cd.parquet"]).is_empty());
        assert!(said(&["s/a_1_of_2.parquet", "s/a_2_of_2.parquet"]).is_empty());
        assert!(
            said(&[
                "s/a-0-of-1.parquet",
                "s/b-0-of-1.parquet",
                "t/a-0-of-1.parquet"
            ])
            .is_empty()
        );
        assert!(said(&["s/proof-of-work.parquet", "s/2-of-clubs.parquet"]).is_empty());
        let one = said(&[
            "s/train-00000-of-00003.parquet",
            "s/train-00001-of-00003.parquet",
        ]);
        assert_eq!(one.len(), 1);
        assert!(
            one[0].contains("1 of 3 shards of s/train- are missing")
                && one[0].contains(": 00002-of-00003;"),
            "{one:?}"
        );
        let many = said(&["s/x-7-of-18446744073709551615.parquet"]);
        assert!(
            many[0].contains("0-of-18446744073709551615, 1-of-"),
            "{many:?}"
        );
    }

    #[test]
    fn numbers_of_two_writings_are_told() {
        let two = said(&[
            "s/t-0-of-1.parquet",
            "s/t-0-of-2.parquet",
            "s/t-1-of-2.parquet",
        ]);
        assert_eq!(two.len(), 1);
        assert!(two[0].contains("s/t-: 1 of 1 and 2 of 2"), "{two:?}");
        let same = said(&["s/t-0-of-1-aa.parquet", "s/t-0-of-1-bb.parquet"]);
        assert!(same[0].contains("same number"), "{same:?}");
    }

    #[test]
    fn copies_lie_in_sibling_folders() {
        let always = |_, _| true;
        let found = copies(
            &[
                "s/aaa/data/0.parquet",
                "s/bbb/data/0.parquet",
                "s/aaa/data/1.parquet",
            ],
            always,
        );
        assert!(matches!(
            found,
            Some(DatasetWarning::Copies { count: 1, .. })
        ));
        for other in [
            ["s/a/0.parquet", "s/a/1.parquet"],
            ["s/a/x/0.parquet", "s/b/y/0.parquet"],
            ["s/0.parquet", "s/a/0.parquet"],
        ] {
            assert_eq!(copies(&other, always), None, "{other:?}");
        }
        assert_eq!(
            copies(&["s/a/0.parquet", "s/b/0.parquet"], |_, _| false),
            None
        );
    }
}
