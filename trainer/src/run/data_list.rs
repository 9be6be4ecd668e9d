//! The shards of a run's data set as a checkpoint remembers them, so that a resumed run can say
//! what has changed: a shard more or less, another number of rows, or, at the same place, other
//! content of the same size.
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use nepa_pipeline::{Dataset, Shard};
use serde::{Deserialize, Serialize};

use crate::data::names_below_root;

/// Differences that a message shows.
const SHOWN: usize = 5;

/// `dataset.json` of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DataList {
    sources: Vec<SourceList>,
}

/// One data set of a mixture, or the only one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SourceList {
    /// What the names of the shards follow in their URLs.
    root: String,
    columns: Vec<String>,
    shards: Vec<ListedShard>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ListedShard {
    name: String,
    bytes: u64,
    rows: u64,
    parts: usize,
    /// What tells two contents at one place apart: the ETag, or the modification time of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// What has changed from one list to another.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// The data set is another one.
    pub layout: Vec<String>,
    /// The same shards, but these have other content.
    pub content: Vec<String>,
}

impl DataList {
    pub(crate) fn new(dataset: &Dataset) -> Self {
        let sources = dataset.sources().iter().map(|source| {
            let shards = source.shards.start as usize..source.shards.end as usize;
            SourceList::new(&dataset.shards()[shards])
        });
        Self {
            sources: sources.collect(),
        }
    }

    /// The content of `dataset.json`.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a list is plain data with string keys")
    }

    /// What is different now from `self`, which was saved.
    pub(crate) fn changes(&self, now: &Self) -> Changes {
        let mut changes = Changes::default();
        for (saved, now) in self.sources.iter().zip(&now.sources) {
            saved.compare(now, &mut changes);
        }
        if self.sources.len() != now.sources.len() {
            changes.layout.push(format!(
                "{} data sets were mixed, and now {}",
                self.sources.len(),
                now.sources.len()
            ));
        }
        changes
    }
}

/// The first of `changes` for a message.
pub(crate) fn shown(changes: &[String]) -> String {
    let text = changes[..changes.len().min(SHOWN)].join("; ");
    match changes.len().saturating_sub(SHOWN) {
        0 => text,
        more => format!("{text}; and {more} more"),
    }
}

impl SourceList {
    fn new(shards: &[Shard]) -> Self {
        let urls = shards.iter().map(|shard| shard.url.as_str());
        let urls = urls.collect::<Vec<_>>();
        let names = names_below_root(&urls);
        let root = urls.first().zip(names.first());
        let root = root.map_or("", |(url, name)| &url[..url.len() - name.len()]);
        let columns = shards
            .iter()
            .take(1)
            .flat_map(|shard| shard.mapping.leaf_paths());
        let listed = names.into_iter().zip(shards).map(|(name, shard)| {
            let rows = shard.parts.iter().map(|part| u64::from(part.num_rows));
            ListedShard {
                name,
                bytes: shard.size,
                rows: rows.sum(),
                parts: shard.parts.len(),
                content: content_of(shard),
            }
        });
        Self {
            root: root.to_owned(),
            columns: columns.map(|path| path.to_string()).collect(),
            shards: listed.collect(),
        }
    }

    /// Shards by their names; those that share one, as web URLs that differ in their query do, by
    /// their order as well.
    fn by_name(&self) -> BTreeMap<(&str, usize), &ListedShard> {
        let mut seen = BTreeMap::<&str, usize>::new();
        let numbered = self.shards.iter().map(|shard| {
            let number = seen.entry(&shard.name).or_default();
            *number += 1;
            ((shard.name.as_str(), *number), shard)
        });
        numbered.collect()
    }

    fn compare(&self, now: &Self, changes: &mut Changes) {
        if self.columns != now.columns {
            changes.layout.push(format!(
                "the columns that are read were {}, and now are {}",
                self.columns.join(", "),
                now.columns.join(", ")
            ));
        }
        let (saved_shards, now_shards) = (self.by_name(), now.by_name());
        for (key, shard) in &now_shards {
            let Some(saved) = saved_shards.get(key) else {
                changes.layout.push(format!("{} was added", shard.name));
                continue;
            };
            if saved.rows != shard.rows {
                changes.layout.push(format!(
                    "{} has {} rows instead of {}",
                    shard.name, shard.rows, saved.rows
                ));
            } else if saved.bytes != shard.bytes {
                changes.layout.push(format!(
                    "{} has {} bytes instead of {}",
                    shard.name, shard.bytes, saved.bytes
                ));
            } else if saved.parts != shard.parts {
                changes.layout.push(format!(
                    "{} is read in {} parts instead of {} (io.part_bytes, or other row groups)",
                    shard.name, shard.parts, saved.parts
                ));
            } else if let (Some(before), Some(content)) = (&saved.content, &shard.content)
                // Elsewhere the same bytes have another ETag.
                && self.root == now.root
                && before != content
            {
                let name = &shard.name;
                changes
                    .content
                    .push(format!("{name} ({before} then, {content} now)"));
            }
        }
        let removed = saved_shards
            .iter()
            .filter(|(key, _)| !now_shards.contains_key(*key));
        let removed = removed.map(|(_, shard)| format!("{} is missing", shard.name));
        changes.layout.extend(removed);
    }
}

/// What tells other content at the same place.
fn content_of(shard: &Shard) -> Option<String> {
    let path = shard.url.strip_prefix("file://").unwrap_or(&shard.url);
    if path.contains("://") {
        return shard.e_tag.as_ref().map(|e_tag| format!("ETag {e_tag}"));
    }
    let modified = std::fs::metadata(path).ok()?.modified().ok()?;
    let since = modified.duration_since(UNIX_EPOCH).ok()?;
    Some(format!(
        "modified at {}.{:06} s",
        since.as_secs(),
        since.subsec_micros()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(root: &str, shards: &[(&str, u64, u64, &str)]) -> DataList {
        let shards = shards
            .iter()
            .map(|(name, bytes, rows, content)| ListedShard {
                name: (*name).to_owned(),
                bytes: *bytes,
                rows: *rows,
                parts: 1,
                content: Some((*content).to_owned()),
            });
        DataList {
            sources: vec![SourceList {
                root: root.to_owned(),
                columns: vec!["image".to_owned()],
                shards: shards.collect(),
            }],
        }
    }

    #[test]
    fn changes_are_told_in_shards() {
        let saved = list(
            "s3://b/",
            &[("a", 5, 2, "1"), ("b", 5, 2, "2"), ("c", 5, 2, "3")],
        );
        assert_eq!(saved.changes(&saved), Changes::default());
        let now = list(
            "s3://b/",
            &[("a", 6, 3, "1"), ("b", 5, 2, "9"), ("d", 5, 2, "3")],
        );
        let changes = saved.changes(&now);
        assert_eq!(
            changes.layout,
            ["a has 3 rows instead of 2", "d was added", "c is missing"]
        );
        assert_eq!(changes.content, ["b (2 then, 9 now)"]);
        // At another place ETags say nothing.
        let elsewhere = list(
            "s3://c/",
            &[("a", 5, 2, "7"), ("b", 5, 2, "8"), ("c", 5, 2, "9")],
        );
        assert_eq!(saved.changes(&elsewhere), Changes::default());
        // Web URLs that differ in their query only.
        let web = list("https://h/", &[("get", 5, 2, "1"), ("get", 7, 2, "2")]);
        let fewer = list("https://h/", &[("get", 5, 2, "1")]);
        assert_eq!(web.changes(&fewer).layout, ["get is missing"]);
        assert_eq!(
            shown(&["1", "2", "3", "4", "5", "6"].map(str::to_owned)),
            "1; 2; 3; 4; 5; and 1 more"
        );
    }
}
