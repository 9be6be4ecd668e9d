//! How to leave a shard out that does not go with the others: a glob that names the rest.
use std::fmt;

use globset::GlobBuilder;

use super::names::common_root;
use crate::store::list::ListedObject;
use crate::store::names::escape_glob;

/// How a shard can be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LeaveOut {
    /// It is not alone, or the only one.
    #[default]
    Nothing,
    /// A glob names all others.
    Glob(String),
    /// It was named by itself.
    Unname,
    /// No glob does.
    Move,
}

impl fmt::Display for LeaveOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Glob(glob) => write!(f, "; to leave it out, read '{glob}'"),
            Self::Unname => write!(f, "; to leave it out, do not name it"),
            Self::Move => write!(f, "; to leave it out, move it elsewhere"),
        }
    }
}

/// How to leave `odd` out, one of those that do not go with the others.
pub(super) fn leave_out(
    objects: &[ListedObject],
    odd: usize,
    is_odd: impl Fn(usize) -> bool,
) -> LeaveOut {
    let object = &objects[odd];
    if object.is_named() {
        return LeaveOut::Unname;
    }
    // Other URLs stay as they are.
    let same_url = (0..objects.len()).filter(|&other| objects[other].location == object.location);
    let (out, rest): (Vec<_>, Vec<_>) = same_url.partition(|&other| is_odd(other));
    let urls = |of: Vec<usize>| {
        of.into_iter()
            .map(|i| objects[i].url.as_str())
            .collect::<Vec<_>>()
    };
    let rest = urls(rest);
    if rest.is_empty() {
        return LeaveOut::Nothing;
    }
    glob_for(&rest, &urls(out)).map_or(LeaveOut::Move, LeaveOut::Glob)
}

/// A glob that matches all of `wanted` and none of `unwanted`.
fn glob_for(wanted: &[&str], unwanted: &[&str]) -> Option<String> {
    let root = common_root(wanted);
    let (folder, _) = wanted[0].split_at(root);
    let names = wanted.iter().map(|url| &url[root..]).collect::<Vec<_>>();
    let others = unwanted.iter().filter_map(|url| url.strip_prefix(folder));
    let others = others.collect::<Vec<_>>();
    let fits = |pattern: &String| {
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        glob.is_ok_and(|glob| {
            let glob = glob.compile_matcher();
            names.iter().all(|name| glob.is_match(name))
                && !others.iter().any(|name| glob.is_match(name))
        })
    };
    let ways = [Way::Loose, Way::Tight, Way::Listed];
    let pattern = ways
        .map(|way| pattern(&names, way))
        .into_iter()
        .find(fits)?;
    Some(format!("{}{pattern}", escape_glob(folder)))
}

/// How closely a glob follows names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// What begins with the same word.
    Loose,
    /// What begins and ends alike.
    Tight,
    /// The few that there are.
    Listed,
}

/// Most names in braces.
const MOST_LISTED: usize = 8;

fn pattern(names: &[&str], way: Way) -> String {
    let parts = names.iter().map(|name| name.split('/').collect::<Vec<_>>());
    let parts = parts.collect::<Vec<_>>();
    let depth = parts[0].len();
    let column = |level: usize| parts.iter().map(|parts| parts[level]).collect::<Vec<_>>();
    if parts.iter().all(|parts| parts.len() == depth) {
        let levels = (0..depth).map(|level| part_pattern(&column(level), way));
        levels.collect::<Vec<_>>().join("/")
    } else {
        let last = parts.iter().map(|parts| parts[parts.len() - 1]);
        format!("**/{}", part_pattern(&last.collect::<Vec<_>>(), way))
    }
}

fn part_pattern(parts: &[&str], way: Way) -> String {
    let mut distinct = parts.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    if let [only] = distinct[..] {
        return escape_glob(only);
    }
    if way == Way::Listed && distinct.len() <= MOST_LISTED {
        let listed = distinct.iter().map(|part| escape_glob(part));
        return format!("{{{}}}", listed.collect::<Vec<_>>().join(","));
    }
    let first = distinct[0];
    let shared = |count: fn(&str, &str) -> usize| {
        let counts = distinct.iter().map(|part| count(first, part));
        counts.min().unwrap_or(0)
    };
    let start = shared(|a, b| {
        let same = a
            .char_indices()
            .zip(b.chars())
            .take_while(|((_, a), b)| a == b);
        same.last().map_or(0, |((at, c), _)| at + c.len_utf8())
    });
    let end = shared(|a, b| {
        let same = a
            .chars()
            .rev()
            .zip(b.chars().rev())
            .take_while(|(a, b)| a == b);
        same.map(|(c, _)| c.len_utf8()).sum()
    });
    let shortest = distinct.iter().map(|part| part.len()).min().unwrap_or(0);
    let (start, mut end) = (&first[..start], first.len() - end.min(shortest - start));
    while !first.is_char_boundary(end) {
        end += 1;
    }
    let end = &first[end..];
    let (start, end) = if way == Way::Loose {
        let end = end.rfind('.').map_or("", |dot| &end[dot..]);
        (start.trim_end_matches(|c: char| c.is_ascii_digit()), end)
    } else {
        (start, end)
    };
    format!("{}*{}", escape_glob(start), escape_glob(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_names_the_rest() {
        for (wanted, unwanted, glob) in [
            (
                vec!["s/train-00000.parquet", "s/train-00001.parquet"],
                vec!["s/stats.parquet"],
                Some("s/train-*.parquet"),
            ),
            (
                vec!["s/data/a.parquet", "s/data/b.parquet"],
                vec!["s/meta/stats.parquet"],
                Some("s/data/*.parquet"),
            ),
            (
                vec!["s/data/train-00000.parquet"],
                vec!["s/meta/stats.parquet"],
                Some("s/data/train-00000.parquet"),
            ),
            (
                vec!["s/l=a/p-0.parquet", "s/l=b/p-1.parquet"],
                vec!["s/l=a/stats.parquet"],
                Some("s/l=*/p-*.parquet"),
            ),
            (
                vec!["s/a.parquet", "s/b.parquet"],
                vec!["s/c.parquet"],
                Some("s/{a.parquet,b.parquet}"),
            ),
            (
                vec!["s/x/train-0.parquet", "s/train-1.parquet"],
                vec!["s/x/meta.parquet"],
                Some("s/**/train-*.parquet"),
            ),
            (
                vec!["s/[1]/a0.parquet", "s/[1]/a1.parquet"],
                vec!["s/[1]/b.parquet"],
                Some("s/[[]1[]]/a*.parquet"),
            ),
            (
                vec!["s/é0.parquet", "s/è1.parquet"],
                vec!["t/x.parquet"],
                Some("s/*.parquet"),
            ),
            (
                vec!["s/d/a.parquet", "s/a.parquet"],
                vec!["s/d/e/a.parquet"],
                None,
            ),
        ] {
            assert_eq!(
                glob_for(&wanted, &unwanted).as_deref(),
                glob,
                "{wanted:?} {unwanted:?}"
            );
        }
    }
}
