//! Names of files in folders of weights.

/// The configuration, in every folder of weights.
pub(crate) const CONFIG: &str = "config.json";
/// Weights in one file.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// Which of several files holds which weight.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The average as the published fine-tuning writes it.
pub(super) const PICKLED_AVERAGE: &str = "pytorch_model_ema.bin";
/// Weights as older programs write them.
pub(super) const PICKLES: [&str; 3] = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    PICKLED_AVERAGE,
];
/// What becomes of an image.
pub(crate) const PREPROCESSOR: &str = "preprocessor_config.json";
