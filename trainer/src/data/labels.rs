//! What a data set's labels are, in the one line that every command prints that reads them.
use std::collections::BTreeSet;

use nepa_pipeline::Dataset;
use nepa_schemas::{LabelColumn, NoLabel};

/// The labels of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelFacts {
    /// Where they are, how many classes there are where that is known, and their type: "column
    /// `label`, 3 classes, int64".
    pub line: String,
    /// Names of the classes, where they are known before a label is read.
    pub names: Option<Vec<String>>,
    /// Whether labels are names, or indices of named classes; else they are bare numbers.
    pub by_name: bool,
    /// Whether the labels themselves are numbers, named or not.
    pub by_number: bool,
    /// Shards whose metadata names no classes, though that of others does, whose names are taken
    /// for them.
    pub unnamed_shards: usize,
}

impl LabelFacts {
    /// Those of an opened data set, or why no labels are read.
    pub(crate) fn of(dataset: &Dataset) -> Result<Self, &NoLabel> {
        let shards = dataset.shards();
        let first = shards[0].mapping.label.as_ref()?;
        // A shard whose labels are all null does not tell their type.
        let mut others = shards
            .iter()
            .filter_map(|shard| shard.mapping.label.as_ref().ok());
        let label = others.find(|label| label.has_values()).unwrap_or(first);
        let folders = shards
            .iter()
            .filter_map(|shard| match &shard.mapping.label {
                Ok(LabelColumn::Folder { class, .. }) => class.as_deref(),
                _ => None,
            });
        let names = match label {
            LabelColumn::Folder { .. } => {
                let names: BTreeSet<_> = folders.map(str::to_owned).collect();
                Some(names.into_iter().collect::<Vec<_>>())
            }
            LabelColumn::Column { .. } => dataset.class_names().map(<[String]>::to_vec),
        };
        let named = dataset.class_names().is_some();
        let unnamed = shards
            .iter()
            .filter(|shard| shard.mapping.class_names.is_none());
        let unnamed_shards = if named { unnamed.count() } else { 0 };
        let classes = match names.as_ref().map(Vec::len) {
            None => String::new(),
            Some(1) => "1 class, ".to_owned(),
            Some(count) => format!("{count} classes, "),
        };
        Ok(Self {
            line: format!("{label}, {classes}{}", label.type_name()),
            by_name: names.is_some() || !label.is_index(),
            by_number: label.is_index(),
            names,
            unnamed_shards,
        })
    }
}
