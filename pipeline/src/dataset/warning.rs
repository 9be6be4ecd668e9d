//! What makes it doubtful whether the right data is read.
use std::fmt;

use crate::store::OddKeys;

/// Something that makes it doubtful whether the right data is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatasetWarning {
    /// Training and test shards are read together.
    SeveralSplits {
        /// The folder that holds them.
        below: String,
        /// The splits, with their numbers of shards.
        splits: Vec<(String, usize)>,
    },
    /// Shards of the same name, size and footer lie in sibling folders.
    Copies {
        /// Such a shard.
        first: String,
        /// The same in another folder.
        second: String,
        /// Shards that another one repeats.
        count: usize,
    },
    /// Of shards that are numbered `-of-N` some are not there.
    MissingShards {
        /// What stands before the number.
        stem: String,
        /// How many there should be.
        of: u64,
        /// How many are missing.
        count: u64,
        /// The first missing names.
        examples: Vec<String>,
    },
    /// Shards of one name are numbered `-of-N` with several N.
    SeveralTotals {
        /// What stands before the number.
        stem: String,
        /// The totals as they are written, with their numbers of shards.
        totals: Vec<(String, usize)>,
    },
    /// A number of `-of-N` occurs more than once.
    RepeatedNumber {
        /// Such a shard.
        first: String,
        /// Another of the same number.
        second: String,
    },
    /// Parquet objects whose names cannot be read were left out.
    OddKeys {
        /// What was listed.
        below: String,
        /// How many, and one of them.
        odd: OddKeys,
    },
}

impl fmt::Display for DatasetWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SeveralSplits { below, splits } => {
                let shown = splits
                    .iter()
                    .map(|(split, count)| format!("{split} ({count})"));
                let shown = shown.collect::<Vec<_>>().join(", ");
                let train = splits.iter().find(|(split, _)| split == "train");
                write!(
                    f,
                    "shards of several splits are read together: {shown}, below {below}; to read one, set --split {} \
                     (data.split in a recipe), or give a glob such as 'URL/train-*.parquet'",
                    train.unwrap_or(&splits[0]).0
                )
            }
            Self::Copies {
                first,
                second,
                count,
            } => write!(
                f,
                "{count} {} of the same name, size and contents as another one in a sibling folder ({first} and \
                 {second}): are these copies, or revisions, of one data set? Each image in them is read more than \
                 once; to read one, name its folder",
                if *count == 1 {
                    "shard is"
                } else {
                    "shards are"
                }
            ),
            Self::MissingShards {
                stem,
                of,
                count,
                examples,
            } => write!(
                f,
                "{count} of {of} shards of {stem} are missing: {}{}; copy them, or read on without their images",
                examples.join(", "),
                if *count > examples.len() as u64 {
                    ", ..."
                } else {
                    ""
                }
            ),
            Self::SeveralTotals { stem, totals } => {
                let shown = totals.iter().map(|(of, count)| format!("{count} of {of}"));
                write!(
                    f,
                    "shards of several writings lie side by side, {stem}: {}; images may be read twice: remove the \
                     older ones, or give a glob such as '{stem}*of?{}*'",
                    shown.collect::<Vec<_>>().join(" and "),
                    totals[0].0
                )
            }
            Self::RepeatedNumber { first, second } => write!(
                f,
                "two shards have the same number, {first} and {second}: images may be read twice; remove the older one"
            ),
            Self::OddKeys { below, odd } => write!(f, "below {below} {odd}"),
        }
    }
}
