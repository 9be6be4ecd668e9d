//! The classes of a fine-tuning run, and which of them a label of the shards means.
use std::collections::HashMap;

use nepa_model::{Classes, NepaConfig};
use nepa_pipeline::{Dataset, SampleRecord};
use nepa_schemas::Label;

use crate::data::LabelFacts;
use crate::error::RunError;
use crate::recipe::FinetuneSection;

/// Names that a message shows.
const SHOWN: usize = 5;

/// The classes, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LabelClasses {
    /// Their names; none where there are only numbers.
    names: Option<Vec<String>>,
    count: usize,
    /// For each class index of the shards its class; none where an index is the class.
    of_index: Option<Vec<u32>>,
    /// For each name its class; none for a name that two classes have.
    of_name: HashMap<String, Option<u32>>,
}

impl LabelClasses {
    /// Decides what the classes are: those that the recipe names, else those that the shards name,
    /// else those of the weights, if they are a classifier's; where labels are numbers without
    /// names, the recipe says how many there are.
    pub(super) fn new(
        section: &FinetuneSection,
        dataset: &Dataset,
        weights: &NepaConfig,
    ) -> Result<Self, RunError> {
        let facts = LabelFacts::of(dataset).map_err(|why| RunError::NoLabels {
            why: why.to_string(),
        })?;
        let wrong = |problem: String, tip: &'static str| RunError::Classes {
            labels: facts.line.clone(),
            problem,
            tip,
        };
        let theirs = facts.names.clone();
        let of_weights = || Some((weights.class_names(), weights.num_classes()?));
        let (names, count) = match (&section.classes, section.num_classes, &theirs) {
            (None, Some(count), Some(names)) if count != names.len() => {
                return Err(wrong(
                    format!(
                        "they have {} classes, but finetune.num_classes is {count}",
                        names.len()
                    ),
                    "leave it out, or name the classes in finetune.classes",
                ));
            }
            (Some(names), _, _) | (None, _, Some(names)) => (Some(names.clone()), names.len()),
            (None, Some(count), None) if facts.by_number => (None, count),
            (None, None, None) if let Some((names, count)) = of_weights() => (names, count),
            (None, _, None) if facts.by_number => {
                return Err(wrong(
                    "they are numbers, and nothing says of how many classes".to_owned(),
                    "--set finetune.num_classes=NUMBER, or name them in finetune.classes",
                ));
            }
            (None, _, None) => {
                return Err(wrong(
                    "they are names, and which ones there are is not known before all are read"
                        .to_owned(),
                    "name them in their order: --set 'finetune.classes=[\"cat\", \"dog\"]'",
                ));
            }
        };
        if count < 2 {
            return Err(wrong(
                format!("a classifier needs two classes or more, and here is {count}"),
                "give more shards, or another column with finetune.label_column",
            ));
        }
        let mut of_name = HashMap::new();
        for (number, name) in (0u32..).zip(names.iter().flatten()) {
            of_name
                .entry(name.clone())
                .and_modify(|first| *first = None)
                .or_insert(Some(number));
        }
        let mut classes = Self {
            names,
            count,
            of_index: None,
            of_name,
        };
        if classes.names.is_none() && !facts.by_number {
            return Err(wrong(
                "they are names, but the classes are numbers only".to_owned(),
                "name the classes in finetune.classes",
            ));
        }
        if let Some(theirs) = theirs.filter(|theirs| Some(theirs) != classes.names.as_ref()) {
            let own = |name: &String| classes.of_name.get(name).copied().flatten();
            let unknown = theirs.iter().filter(|name| own(name).is_none());
            let unknown = unknown.cloned().collect::<Vec<_>>();
            if !unknown.is_empty() {
                return Err(wrong(
                    format!("no class is called {}", shown(&unknown)),
                    "name all classes of the shards in finetune.classes, each once",
                ));
            }
            classes.of_index = Some(theirs.iter().filter_map(own).collect());
        }
        Ok(classes)
    }

    /// As a configuration takes them.
    pub(super) fn classes(&self) -> Classes<'_> {
        match &self.names {
            Some(names) => Classes::Named(names),
            None => Classes::Count(self.count),
        }
    }

    /// The class of each sample, or why one has none.
    pub(super) fn labels(&self, samples: &[SampleRecord], step: u64) -> Result<Vec<u32>, RunError> {
        let label = |sample: &SampleRecord| {
            self.number(sample.label.as_ref())
                .map_err(|problem| RunError::Label {
                    step: step + 1,
                    id: sample.id,
                    problem,
                })
        };
        samples.iter().map(label).collect()
    }

    fn number(&self, label: Option<&Label>) -> Result<u32, String> {
        match label {
            None => Err("it has no label (null, or a negative number)".to_owned()),
            Some(Label::Index(index)) => {
                let index = usize::try_from(*index).unwrap_or(usize::MAX);
                let class = match &self.of_index {
                    Some(of_index) => of_index.get(index).copied(),
                    None => u32::try_from(index).ok(),
                };
                class
                    .filter(|class| (*class as usize) < self.count)
                    .ok_or_else(|| {
                        format!(
                            "its label is {index}, but the {} classes are 0 to {}",
                            self.count,
                            self.count - 1
                        )
                    })
            }
            Some(Label::Name(name)) => match self.of_name.get(&**name) {
                Some(Some(class)) => Ok(*class),
                Some(None) => Err(format!("two classes are called `{name}`, as its label")),
                None => Err(format!("its label is `{name}`, which is no class")),
            },
        }
    }
}

/// For people: `10 classes: cat, dog, ...`.
impl std::fmt::Display for LabelClasses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} classes", self.count)?;
        match &self.names {
            Some(names) => write!(f, ": {}", shown(names)),
            None => write!(f, ", by number"),
        }
    }
}

/// The first names, and how many more there are.
fn shown(names: &[String]) -> String {
    let text = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}
