//! The recipes that come with the program: files of `trainer/recipes`, built into it.
use std::path::Path;

use super::error::RecipeError;
use crate::console::messages::nearest;

/// A recipe of the program's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BuiltIn {
    /// Its name, as a command takes it.
    pub name: &'static str,
    pub text: &'static str,
}

/// All of them, in the order in which one comes to them.
pub(crate) const BUILT_IN: [BuiltIn; 16] = [
    BuiltIn {
        name: "quickstart",
        text: include_str!("../../recipes/quickstart.toml"),
    },
    BuiltIn {
        name: "quickstart-finetune",
        text: include_str!("../../recipes/quickstart-finetune.toml"),
    },
    BuiltIn {
        name: "cifar10",
        text: include_str!("../../recipes/cifar10.toml"),
    },
    BuiltIn {
        name: "cifar10-finetune",
        text: include_str!("../../recipes/cifar10-finetune.toml"),
    },
    BuiltIn {
        name: "imagenette-small",
        text: include_str!("../../recipes/imagenette-small.toml"),
    },
    BuiltIn {
        name: "imagenette-small-finetune",
        text: include_str!("../../recipes/imagenette-small-finetune.toml"),
    },
    BuiltIn {
        name: "nepa-b14-in1k",
        text: include_str!("../../recipes/nepa-b14-in1k.toml"),
    },
    BuiltIn {
        name: "nepa-b14-in1k-finetune",
        text: include_str!("../../recipes/nepa-b14-in1k-finetune.toml"),
    },
    BuiltIn {
        name: "nepa-l14-in1k",
        text: include_str!("../../recipes/nepa-l14-in1k.toml"),
    },
    BuiltIn {
        name: "nepa-l14-in1k-finetune",
        text: include_str!("../../recipes/nepa-l14-in1k-finetune.toml"),
    },
    BuiltIn {
        name: "nepa-b14-in1k-paper",
        text: include_str!("../../recipes/nepa-b14-in1k-paper.toml"),
    },
    BuiltIn {
        name: "nepa-b14-in1k-paper-finetune",
        text: include_str!("../../recipes/nepa-b14-in1k-paper-finetune.toml"),
    },
    BuiltIn {
        name: "nepa-l14-in1k-paper",
        text: include_str!("../../recipes/nepa-l14-in1k-paper.toml"),
    },
    BuiltIn {
        name: "nepa-l14-in1k-paper-finetune",
        text: include_str!("../../recipes/nepa-l14-in1k-paper-finetune.toml"),
    },
    BuiltIn {
        name: "tiny",
        text: include_str!("../../recipes/tiny.toml"),
    },
    BuiltIn {
        name: "tiny-finetune",
        text: include_str!("../../recipes/tiny-finetune.toml"),
    },
];

impl BuiltIn {
    /// What it is for: the first line of the file.
    pub(crate) fn about(&self) -> &'static str {
        let first = self.text.lines().next().unwrap_or_default();
        first.trim_start_matches(['#', ' ']).trim_end_matches('.')
    }

    /// A line of the file's head, such as that of `Hardware`.
    pub(crate) fn head(&self, title: &str) -> &'static str {
        let line = self.text.lines().find_map(|line| {
            let line = line.strip_prefix("# ")?;
            line.strip_prefix(title)?.strip_prefix(": ")
        });
        line.unwrap_or_default().trim_end_matches('.')
    }
}

/// The name of a built-in recipe, if a command's argument is one and not a path: it has neither a
/// separator of folders nor the ending `.toml`. A file of such a name is given as `./NAME`.
pub(crate) fn name_of(recipe: &Path) -> Option<&str> {
    let name = recipe.to_str()?;
    let is_path = name.contains(['/', '\\'])
        || Path::new(name)
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("toml"));
    (!is_path).then_some(name)
}

/// The recipe of that name.
pub(crate) fn find(name: &str) -> Option<BuiltIn> {
    BUILT_IN.into_iter().find(|recipe| recipe.name == name)
}

/// The error for a name that none has.
pub(crate) fn unknown(name: &str) -> RecipeError {
    let known = BUILT_IN.map(|recipe| recipe.name);
    RecipeError::Unknown {
        name: name.to_owned(),
        tip: nearest(name, known).map(|near| format!("did you mean {near}?")),
        known: known.to_vec(),
    }
}

/// The text of a recipe that is sound.
pub(super) fn sound() -> &'static str {
    BUILT_IN[0].text
}

/// A section of it.
pub(super) fn sound_section(name: &str) -> toml::Table {
    let table: toml::Table = sound().parse().unwrap_or_default();
    let section = table.get(name).and_then(toml::Value::as_table);
    section.cloned().unwrap_or_default()
}
