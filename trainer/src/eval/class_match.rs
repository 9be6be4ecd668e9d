//! Which class of a model a label means: by name where both sides have names, else by number;
//! refused where neither can be. Called by `nepa eval top1` and by fine-tuning.
use std::collections::{BTreeMap, HashMap};

use anyhow::{bail, ensure};
use nepa_model::NepaConfig;
use nepa_schemas::Label;

use super::ImageSet;
use super::images::quoted;
use crate::data::LabelFacts;

/// How labels and classes are matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MatchBy {
    /// The shards' class names are those of the model's `id2label`, in any order.
    Name,
    /// The shards' label is the number of the class.
    Number,
}

/// Labels of one set as classes of one model.
#[derive(Debug)]
pub(crate) struct ClassMatch<'a> {
    set: &'a ImageSet,
    by: MatchBy,
    /// Classes K of the model.
    num_classes: usize,
    names: Option<Vec<String>>,
    /// Numbers of the model's names; none for a name that two classes have.
    numbers: HashMap<String, Option<usize>>,
    /// Labels that the model has no class for, with their images so far.
    unknown: BTreeMap<String, u64>,
    line: String,
}

impl<'a> ClassMatch<'a> {
    /// Decides how the labels of `set` are matched, unless `by` says it.
    ///
    /// # Errors
    /// The model is no classifier, the set has no labels, or no label can be a class.
    pub(crate) fn new(
        config: &NepaConfig,
        set: &'a ImageSet,
        by: Option<MatchBy>,
    ) -> anyhow::Result<Self> {
        let Some(num_classes) = config.num_classes() else {
            bail!(NO_CLASSIFIER);
        };
        let (names, facts) = (config.class_names(), set.label_facts()?);
        let mut numbers = HashMap::new();
        for (number, name) in names.iter().flatten().enumerate() {
            numbers
                .entry(name.clone())
                .and_modify(|first| *first = None)
                .or_insert(Some(number));
        }
        let mut by = choose(by, names.is_some(), &facts, set.place())?;
        let line = match (by, names.as_deref(), facts.names.as_deref()) {
            (MatchBy::Name, Some(ours), Some(theirs)) => {
                let known = theirs.iter().filter(|name| numbers.contains_key(*name));
                let (known, all) = (known.count(), theirs.len());
                ensure!(known > 0, nothing_shared(set.place(), ours, &facts));
                if facts.by_number && ours == theirs {
                    // A name that both lists have twice does no harm then.
                    by = MatchBy::Number;
                }
                format!("by name, {known} of {all} are among the model's {num_classes}")
            }
            (MatchBy::Name, ..) => format!("by name, the model has {}", classes(num_classes)),
            (MatchBy::Number, _, theirs) => {
                let their_number = theirs.map_or(0, <[String]>::len);
                ensure!(
                    their_number <= num_classes,
                    "{}: it names {}, the model has {num_classes}: their numbers cannot mean the \
                     same",
                    set.place(),
                    classes(their_number)
                );
                format!("by number, the model has {}", classes(num_classes))
            }
        };
        Ok(Self {
            set,
            by,
            num_classes,
            names,
            numbers,
            unknown: BTreeMap::new(),
            line,
        })
    }

    /// How the labels are matched, for people.
    pub(crate) fn line(&self) -> &str {
        &self.line
    }

    /// Classes K of the model.
    pub(crate) fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// The set whose labels these are.
    pub(crate) fn set(&self) -> &'a ImageSet {
        self.set
    }

    /// The name of a class, if classes have names.
    pub(crate) fn name(&self, class: usize) -> Option<&str> {
        self.names.as_ref()?.get(class).map(String::as_str)
    }

    /// The class of a label; none, and counted, if the model has none for it.
    pub(crate) fn class_of(&mut self, label: Label) -> anyhow::Result<Option<usize>> {
        let unknown = match (self.by, label) {
            (MatchBy::Number, Label::Index(index)) => {
                let class = usize::try_from(index).ok();
                let class = class.filter(|class| *class < self.num_classes);
                ensure!(
                    class.is_some(),
                    "{}: an image has the label {index}, but the model has {} classes, 0 to {}: \
                     these labels are others' numbers",
                    self.set.place(),
                    self.num_classes,
                    self.num_classes - 1
                );
                return Ok(class);
            }
            (MatchBy::Number, label) => label,
            (MatchBy::Name, label) => match self.set.named(label) {
                Label::Name(name) => match self.numbers.get(&*name) {
                    Some(Some(number)) => return Ok(Some(*number)),
                    Some(None) => bail!(
                        "two classes of the model are called `{name}`, so that a label of this \
                         name may mean either\ntip: --match number, where the shards have numbers"
                    ),
                    None => Label::Name(name),
                },
                label @ Label::Index(_) => label,
            },
        };
        *self.unknown.entry(unknown.to_string()).or_default() += 1;
        Ok(None)
    }

    /// Images whose label the model has no class for.
    pub(crate) fn num_unknown(&self) -> u64 {
        self.unknown.values().sum()
    }

    /// What is to be said of them.
    pub(crate) fn warning(&self) -> Option<String> {
        let named = self
            .unknown
            .iter()
            .map(|(label, count)| format!("{label} ({count})"));
        (!self.unknown.is_empty()).then(|| {
            format!(
                "the model has no class for {} of the test set's labels, so that their images are \
                 always wrong and have no loss: {}",
                self.unknown.len(),
                quoted(named)
            )
        })
    }
}

/// How labels are matched: as it is asked for, if that can be, else by name where both sides have
/// names, and by number otherwise.
fn choose(
    asked: Option<MatchBy>,
    model_has_names: bool,
    facts: &LabelFacts,
    place: &str,
) -> anyhow::Result<MatchBy> {
    match asked {
        None if model_has_names && facts.by_name => Ok(MatchBy::Name),
        None if facts.by_number => Ok(MatchBy::Number),
        None | Some(MatchBy::Name) if !model_has_names => bail!(
            "{place}: its labels are {}, but the model's classes have no names: config.json says \
             nothing but LABEL_0, LABEL_1, ...\ntip: {}",
            if facts.by_name {
                spelled(facts.names.as_deref())
            } else {
                "numbers".to_owned()
            },
            if facts.by_number {
                "--match number takes the labels as numbers of classes"
            } else {
                "name the classes in id2label of its config.json, in their order"
            }
        ),
        None | Some(MatchBy::Name) if !facts.by_name => bail!(
            "{place}: its labels are numbers without names, so that --match name has nothing to \
             compare\ntip: leave --match out"
        ),
        Some(MatchBy::Number) if !facts.by_number => bail!(
            "{place}: its labels are names, not numbers, so that --match number has nothing to \
             take\ntip: leave --match out, or choose another column with --label-column"
        ),
        None => Ok(MatchBy::Name),
        Some(asked) => Ok(asked),
    }
}

/// Both sides have names, but none in common.
fn nothing_shared(place: &str, ours: &[String], facts: &LabelFacts) -> String {
    let tip = if facts.by_number {
        "where both mean the same in the same order, --match number compares their numbers"
    } else {
        "name the model's classes alike in id2label of its config.json"
    };
    format!(
        "{place}: none of its classes is one of the model's: it has {}, the model {}\ntip: {tip}",
        spelled(facts.names.as_deref()),
        spelled(Some(ours))
    )
}

/// The first few names, if they are known.
fn spelled(names: Option<&[String]>) -> String {
    match names {
        Some(names) => quoted(names.iter().map(|name| format!("`{name}`"))),
        None => "names".to_owned(),
    }
}

fn classes(count: usize) -> String {
    match count {
        1 => "1 class".to_owned(),
        count => format!("{count} classes"),
    }
}

/// Said of a pretraining model that is asked for classes.
pub(crate) const NO_CLASSIFIER: &str = "these weights have no classifier: they are of pretraining\n\
     tip: `nepa finetune` trains one on them; `nepa eval knn` and `nepa eval linear` measure their \
     features without";
