//! What can go wrong with a model: its configuration, its files, its inputs, its computation.
use std::path::PathBuf;

/// A configuration, a weight file, an input or a computation is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A value of the configuration is impossible.
    #[error("model configuration: {key} = {value} is not possible: {rule}")]
    Config {
        /// Key in `config.json`.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it must satisfy.
        rule: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// `config.json` is not one of ours.
    #[error("{}: not a configuration of a NEPA model: {source}", path.display())]
    ConfigFormat {
        /// Which file.
        path: PathBuf,
        /// Cause, with line and key.
        source: serde_json::Error,
    },
    /// A weight file is damaged.
    #[error("{}: not a whole safetensors file: {detail}", path.display())]
    WeightFormat {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A file is wrong in the way that `source` says.
    #[error("{}: {source}", path.display())]
    InFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: Box<ModelError>,
    },
    /// An index of weight files is none.
    #[error("{}: not an index of weight files: {detail}", path.display())]
    WeightIndex {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A folder's weights are a Python pickle.
    #[error(
        "{}: its weights are a Python pickle ({}), which is not read here, as a pickle can run any \
         program. This makes model.safetensors of it, by torch and safetensors in Python:\n  {command}",
        folder.display(), pickles.join(", ")
    )]
    Pickle {
        /// Which folder.
        folder: PathBuf,
        /// Names of the files.
        pickles: Vec<String>,
        /// The command.
        command: String,
    },
    /// A folder is no model in the published layout.
    #[error(
        "{}: {}", folder.display(), not_published(*exists, found)
    )]
    NotPublished {
        /// Which folder.
        folder: PathBuf,
        /// Whether there is such a folder.
        exists: bool,
        /// Names of what lies there.
        found: Vec<String>,
    },
    /// The weights in a file are not those that the configuration asks for.
    #[error("{}: its weights do not fit its configuration.{}{}{}\n{advice}", path.display(),
        listed("missing", missing), listed("surplus", surplus), listed("wrong shape or type", misshapen))]
    WeightNames {
        /// Which file.
        path: PathBuf,
        /// Names that the configuration asks for and the file lacks.
        missing: Vec<String>,
        /// Names that the file has and the configuration does not know.
        surplus: Vec<String>,
        /// Names with their shapes in the file and in the configuration.
        misshapen: Vec<String>,
        /// What probably is wrong.
        advice: String,
    },
    /// An encoder cannot become that of a classifier.
    #[error(
        "the weights are not those of this classifier's encoder.{}{}{}\nThe model's sizes, use_gated_mlp and layerscale_value must be those of the pretrained model.",
        listed("missing", missing),
        listed("surplus", surplus),
        listed("wrong shape", misshapen)
    )]
    Conversion {
        /// Names that the classifier asks for and the source lacks.
        missing: Vec<String>,
        /// Names that the source has and the classifier does not know.
        surplus: Vec<String>,
        /// Names with their shapes in the source and in the classifier.
        misshapen: Vec<String>,
    },
    /// The backward pass left a weight without gradient.
    #[error("no gradient reached the weight {name}; an operation on its path has no backward pass")]
    MissingGradient {
        /// Published name.
        name: String,
    },
    /// A flat buffer has the wrong length for this model.
    #[error("a flat buffer of {got} values was given for a model of {expected} weights")]
    FlatLength {
        /// Values given.
        got: usize,
        /// Values of the model.
        expected: usize,
    },
    /// A step is asked for what it was not made for; a mistake of the caller.
    #[error("the training step cannot do this: {reason}")]
    Step {
        /// Why.
        reason: &'static str,
    },
    /// Images of a micro-batch have the wrong size, or are none or too many.
    #[error(
        "{images} images of {len} values were given, but the model takes [batch, {}, {}, {}] with a batch of at most {most}",
        shape[0], shape[1], shape[2]
    )]
    Images {
        /// How many.
        images: usize,
        /// Values of one that is wrong, or of each.
        len: usize,
        /// Most of them.
        most: usize,
        /// Channels, height, width.
        shape: [usize; 3],
    },
    /// Pixels have the wrong shape.
    #[error(
        "pixels have the shape {got:?}, but the model takes [batch, {channels}, {image_size}, {image_size}]"
    )]
    PixelShape {
        /// Shape given.
        got: Vec<usize>,
        /// `num_channels`.
        channels: usize,
        /// `image_size`.
        image_size: usize,
    },
}

/// Most names in a message.
const MOST_NAMES: usize = 6;

/// The first few names, and how many more there are.
fn first_few(names: &[String]) -> String {
    let few = names[..names.len().min(MOST_NAMES)].join(", ");
    match names.len().saturating_sub(MOST_NAMES) {
        0 => few,
        more => format!("{few}, and {more} more"),
    }
}

/// One line a kind.
fn listed(kind: &str, names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!("\n  {kind} ({}): {}", names.len(), first_few(names))
    }
}

/// What was looked for, and what is there.
fn not_published(exists: bool, found: &[String]) -> String {
    if !exists {
        return "there is no such folder".to_owned();
    }
    let found = if found.is_empty() {
        "nothing".to_owned()
    } else {
        first_few(found)
    };
    format!(
        "not a model in the published layout, which has config.json and model.safetensors (or \
         model.safetensors.index.json and its files); found: {found}"
    )
}
