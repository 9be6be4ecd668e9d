//! What is wrong with a recipe, in its reader's words: key, value, rule, where it was given, and
//! what to do.
use std::path::PathBuf;

use nepa_model::ModelError;
use nepa_pipeline::{AugmentError, MixError};

use super::Precision;
use crate::console::messages::{listed, quoted, quoted_path};
use crate::device::DeviceChoice;
use crate::optimizer::OptimizerError;

/// A recipe cannot be read or makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe {}{}", quoted_path(path), tip_of(tip.as_ref()))]
    Read {
        path: PathBuf,
        source: std::io::Error,
        tip: Option<String>,
    },
    /// A name that no built-in recipe has.
    #[error(
        "no recipe is called {}{}\n{}\n  a file is given by its path, such as {}",
        quoted(name), tip_of(tip.as_ref()), listed("built-in recipes:", known.iter().copied(), 2),
        quoted(&format!("./{name}"))
    )]
    Unknown {
        name: String,
        tip: Option<String>,
        known: Vec<&'static str>,
    },
    #[error("the recipe {recipe} is not a TOML file")]
    Syntax {
        recipe: String,
        source: Box<toml::de::Error>,
    },
    /// `nepa pretrain` of a recipe for fine-tuning.
    #[error(
        "the recipe {recipe} has [finetune]: it fine-tunes weights that there are\ntip: nepa \
         finetune {recipe} --from CHECKPOINT"
    )]
    Finetunes { recipe: String },
    /// The other way round.
    #[error(
        "the recipe {recipe} has no [finetune]: it pretrains\ntip: nepa pretrain {recipe}; `nepa \
         recipes` says which recipes fine-tune"
    )]
    Pretrains { recipe: String },
    /// A key that there is not.
    #[error(
        "unknown key `{key}`{}{}{}",
        placed(place), tip_of(tip.as_ref()), known_keys(section, known)
    )]
    UnknownKey {
        key: String,
        place: String,
        tip: Option<String>,
        section: String,
        known: Vec<String>,
    },
    /// A key that has no default.
    #[error(
        "the recipe {recipe} has no `{key}`, which is required{}{}",
        placed(place), tip_of(tip.as_ref())
    )]
    MissingKey {
        recipe: String,
        key: String,
        /// Where it was unset, if it was.
        place: String,
        tip: Option<String>,
    },
    /// A value of the wrong type or outside its range.
    #[error("{key} = {value}: {rule}{}{}", placed(place), tip_of(tip.as_ref()))]
    Value {
        key: String,
        value: String,
        /// What is allowed, as a sentence.
        rule: String,
        place: String,
        tip: Option<String>,
    },
    /// What a value's own reader says of it.
    #[error("{key}: {message}{}{}", placed(place), tip_of(tip.as_ref()))]
    Wrong {
        key: String,
        message: String,
        place: String,
        tip: Option<String>,
    },
    /// `--set` without `=`, or through a value that is no table.
    #[error(
        "--set {}: {problem}\ntip: write it as --set train.batch=64",
        quoted(argument)
    )]
    Set {
        argument: String,
        problem: &'static str,
    },
    /// Two overrides of which only one can hold.
    #[error(
        "--set {} and --set {} cannot both hold: they give the same value in two ways\ntip: leave \
         one out",
        quoted(first),
        quoted(second)
    )]
    Contradiction { first: String, second: String },
    /// Neither or both of two keys that give one value.
    #[error(
        "give exactly one of {first} and {second}; the recipe gives {}\ntip: --set {}",
        if *both { "both" } else { "neither" },
        if *both { format!("{second}=none unsets {second}") } else { format!("{second}=NUMBER") }
    )]
    OneOf {
        first: &'static str,
        second: &'static str,
        both: bool,
    },
    /// The batch is no multiple of what is computed at once.
    #[error(
        "train.batch = {batch} does not divide into micro-batches of train.micro_batch = \
         {micro_batch}{}; it must be a multiple of {}\ntip: --set {}",
        among(*world_size), micro_batch * world_size,
        dividing(*batch, *micro_batch, *world_size)
    )]
    BatchDoesNotDivide {
        batch: usize,
        micro_batch: usize,
        world_size: usize,
    },
    /// The image is no whole number of patches.
    #[error(
        "model.image_size = {image_size} is not a multiple of model.patch_size = {patch_size}\
         \ntip: use {} or another multiple, for both model.image_size and data.augment.size",
        suggestion(*image_size, *patch_size)
    )]
    PatchDoesNotDivide {
        /// Side of the image in pixels.
        image_size: usize,
        /// Side of a patch in pixels.
        patch_size: usize,
    },
    /// The model and the crops disagree.
    #[error(
        "data.augment.size = {augment_size} differs from model.image_size = {image_size}\
         \ntip: the model sees what the crop yields, so set both alike"
    )]
    ImageSizesDiffer {
        /// Side of the crops in pixels.
        augment_size: u32,
        /// Side of the model's images in pixels.
        image_size: usize,
    },
    /// An engine that cannot do what the recipe asks for.
    #[error(
        "train.engine = \"{engine}\" computes {rule}, \
         not with device = \"{device}\" and train.precision = \"{precision}\"\
         \ntip: leave train.engine out to get the engine that can (--set train.engine=none)"
    )]
    Engine {
        engine: &'static str,
        rule: &'static str,
        /// Where the model is to be trained.
        device: DeviceChoice,
        /// Type of the operands of matrix multiplications.
        precision: Precision,
    },
    /// A decoder of a GPU's loader, without the GPU.
    #[error(
        "{key} = {value} is about JPEGs that a GPU decodes and has no effect with device = \
         \"cpu\", where the processor decodes them\ntip: leave it out, or set device = \"cuda\""
    )]
    JpegWithoutGpu { key: &'static str, value: String },
    /// An architecture that the engine cannot compute.
    #[error("[model] is impossible")]
    Model {
        #[from]
        source: ModelError,
    },
    /// An impossible setting of the optimiser.
    #[error("[optimizer] is impossible")]
    Optimizer {
        #[from]
        source: OptimizerError,
    },
    /// An impossible crop.
    #[error("data.{source}{}", placed(place))]
    Augment { source: AugmentError, place: String },
    /// Impossible mixing.
    #[error("finetune.mix.{source}{}", placed(place))]
    Mix { source: MixError, place: String },
    /// Several views of an image.
    #[error(
        "data.augment.kind = \"multi_crop\" gives several views of an image, \
         but the model is trained on one\ntip: use \"random_resized_crop\""
    )]
    SeveralViews,
    /// No data given.
    #[error(
        "no data: neither --data nor the recipe's data.urls says what to train on\
         \ntip: --data URL (a folder, an s3:// prefix or a glob of Parquet files)"
    )]
    NoData,
    /// Less than one batch in the data set.
    #[error(
        "the data set has {num_samples} samples, fewer than one batch of train.batch = {batch}; \
         an incomplete batch is dropped, so there is nothing to train on\
         \ntip: lower train.batch, such as --set train.batch={num_samples}"
    )]
    TooFewSamples { num_samples: u64, batch: usize },
}

fn among(ranks: usize) -> String {
    match ranks {
        1 => String::new(),
        ranks => format!(" among {ranks} ranks, as many for each"),
    }
}

/// A batch that divides; for several ranks a micro-batch that does, as that leaves the run's batch.
fn dividing(batch: usize, micro_batch: usize, ranks: usize) -> String {
    if ranks > 1 && batch >= ranks && batch.is_multiple_of(ranks) {
        let own = batch / ranks;
        let most = (1..=micro_batch.min(own)).rev();
        let fits = most.into_iter().find(|size| own.is_multiple_of(*size));
        return format!("train.micro_batch={}, or fewer ranks", fits.unwrap_or(1));
    }
    format!("train.batch={}", suggestion(batch, micro_batch * ranks))
}

/// Where something was given, in brackets.
fn placed(place: &str) -> String {
    if place.is_empty() {
        String::new()
    } else {
        format!(" ({place})")
    }
}

/// A line that says what to do.
fn tip_of(tip: Option<&String>) -> String {
    tip.map_or_else(String::new, |tip| format!("\ntip: {tip}"))
}

/// Lines with the keys of a section.
fn known_keys(section: &str, known: &[String]) -> String {
    if known.is_empty() {
        return String::new();
    }
    let title = if section.is_empty() {
        "keys and sections of a recipe:".to_owned()
    } else {
        format!("keys of [{section}]:")
    };
    format!("\n{}", listed(&title, known.iter().map(String::as_str), 2))
}

/// The multiple of `unit` next to `value`, at least one.
fn suggestion(value: usize, unit: usize) -> usize {
    (value + unit / 2)
        .checked_div(unit)
        .map_or(value, |units| units.max(1) * unit)
}
