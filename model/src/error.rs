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
    /// The weights in a file are not those that the configuration asks for.
    #[error("{}: its weights do not fit its configuration.{}{}{}\nIf this is a classifier or another variant, convert it to the pretraining layout first.", path.display(),
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

/// One line a kind, all names.
fn listed(kind: &str, names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!("\n  {kind} ({}): {}", names.len(), names.join(", "))
    }
}
