//! The classes of a classifier: `id2label` of the published `config.json`, with its numbers as text
//! (`"0"`, `"1"`, ...), else `num_labels`. Names may occur twice ("crane" in ImageNet-1k is a bird
//! and a machine), so `label2id` may have fewer entries than there are classes; it is kept and
//! written, never read.
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{CLASSIFIER, NepaConfig};

const ID_TO_LABEL: &str = "id2label";
const LABEL_TO_ID: &str = "label2id";
const NUM_LABELS: &str = "num_labels";
const TASK: &str = "finetuning_task";
/// Classes of a configuration that says nothing of them, in transformers.
const DEFAULT_CLASSES: usize = 2;
/// More than any data set has; a larger number is a mistake that would fill the memory.
const MOST_CLASSES: u64 = 10_000_000;

/// The classes that a classifier is made for.
#[derive(Debug, Clone, Copy)]
pub enum Classes<'a> {
    /// Their names, in order.
    Named(&'a [String]),
    /// How many; they are called `LABEL_0`, `LABEL_1`, ... as transformers calls them.
    Count(usize),
}

/// What transformers calls a class without a name.
fn placeholder(class: usize) -> String {
    format!("LABEL_{class}")
}

impl NepaConfig {
    /// Whether this is a classifier, not a model of pretraining.
    pub fn is_classifier(&self) -> bool {
        self.architectures.iter().any(|name| name == CLASSIFIER)
    }

    /// Classes K of a classifier: of `id2label`, else `num_labels`, else 2, as in transformers.
    pub fn num_classes(&self) -> Option<usize> {
        self.is_classifier().then(|| {
            let names = self.id_to_label().map(Map::len);
            let number = || self.num_labels().and_then(Value::as_u64);
            names
                .or_else(|| number().map(|number| number as usize))
                .unwrap_or(DEFAULT_CLASSES)
        })
    }

    /// Names of a classifier's classes in order; none where they are only `LABEL_0`, `LABEL_1`, ...
    pub fn class_names(&self) -> Option<Vec<String>> {
        let classes = self.num_classes()?;
        let labels = self.id_to_label()?;
        let names = (0..classes)
            .map(|class| Some(labels.get(&class.to_string())?.as_str()?.to_owned()))
            .collect::<Option<Vec<_>>>()?;
        let named = (0..).zip(&names).any(|(i, name)| *name != placeholder(i));
        named.then_some(names)
    }

    /// The configuration of a classifier of these classes; all else stays. What fine-tuning changes
    /// beside it (`is_causal`, `drop_path_prob`, `qk_norm_affine`, `add_pooling_layer`) is the
    /// caller's to say.
    #[must_use]
    pub fn to_classifier(&self, classes: Classes<'_>) -> Self {
        let names: Vec<String> = match classes {
            Classes::Named(names) => names.to_vec(),
            Classes::Count(count) => (0..count).map(placeholder).collect(),
        };
        let mut config = self.clone();
        config.architectures = vec![CLASSIFIER.to_owned()];
        // A token that only pretraining takes.
        config.use_mask_token = false;
        config.other.remove(NUM_LABELS);
        let ids = (0usize..).zip(&names);
        let labels: Map<String, Value> = ids
            .clone()
            .map(|(class, name)| (class.to_string(), name.as_str().into()))
            .collect();
        let ids: Map<String, Value> = ids
            .map(|(class, name)| (name.clone(), class.into()))
            .collect();
        let task = Value::from("image-classification");
        for (key, value) in [
            (ID_TO_LABEL, labels.into()),
            (LABEL_TO_ID, ids.into()),
            (TASK, task),
        ] {
            config.other.insert(key.to_owned(), value);
        }
        config
    }

    /// What is wrong with the keys that say the classes of a classifier: key, value and rule.
    pub(super) fn wrong_classes(&self) -> Option<(&'static str, String, String)> {
        if !self.is_classifier() {
            return None;
        }
        let number = self.num_labels();
        if let Some(value) = number
            && !value
                .as_u64()
                .is_some_and(|count| (1..=MOST_CLASSES).contains(&count))
        {
            let rule = format!("it must be a number of classes from 1 to {MOST_CLASSES}");
            return Some((NUM_LABELS, value.to_string(), rule));
        }
        let value = self.other.get(ID_TO_LABEL)?;
        if value.is_null() {
            return None;
        }
        let wrong = |value: String, rule: &str| Some((ID_TO_LABEL, value, rule.to_owned()));
        let Some(labels) = value.as_object() else {
            return wrong(
                value.to_string(),
                "it must map each class's number, as text, to its name: {\"0\": \"cat\"}",
            );
        };
        if labels.is_empty() {
            return wrong("{}".to_owned(), "a classifier has at least one class");
        }
        for (class, name) in labels {
            let canonical = class
                .parse()
                .is_ok_and(|id: usize| id.to_string() == *class);
            if !canonical || !name.is_string() {
                return wrong(
                    format!("{{\"{class}\": {name}}}"),
                    "it must map each class's number (0, 1, 2, ..., as text) to its name",
                );
            }
        }
        let count = labels.len();
        if let Some(hole) = (0..count).find(|class| !labels.contains_key(&class.to_string())) {
            let rule = format!("it names {count} classes, but none is number {hole}");
            return wrong(format!("{{{count} names}}"), &rule);
        }
        if let Some(value) = number
            && value.as_u64() != Some(count as u64)
        {
            let rule = format!("id2label names {count} classes");
            return Some((NUM_LABELS, value.to_string(), rule));
        }
        None
    }

    fn id_to_label(&self) -> Option<&Map<String, Value>> {
        self.other.get(ID_TO_LABEL)?.as_object()
    }

    fn num_labels(&self) -> Option<&Value> {
        self.other.get(NUM_LABELS).filter(|value| !value.is_null())
    }
}

/// A class's number that `id2label` of a `config.json` gives twice, as the text says it. A parsed
/// value has forgotten the first of the two names.
pub(crate) fn number_given_twice(text: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Labels {
        #[serde(default)]
        id2label: Option<Numbers>,
    }
    let labels: Labels = serde_json::from_slice(text).ok()?;
    let mut seen = BTreeSet::new();
    let numbers = labels.id2label?.0;
    numbers
        .into_iter()
        .find(|number| !seen.insert(number.clone()))
}

/// The keys of a map, in order, each as often as it is given.
struct Numbers(Vec<String>);

impl<'de> serde::Deserialize<'de> for Numbers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> serde::de::Visitor<'de> for Keys {
            type Value = Numbers;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Numbers, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, _)) = map.next_entry::<_, serde::de::IgnoredAny>()? {
                    keys.push(key);
                }
                Ok(Numbers(keys))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}
