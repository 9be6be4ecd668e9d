//! Evaluation of frozen features: nearest neighbours and linear probes, on raw pixels, random
//! weights and checkpoints. Called by `nepa eval` and `nepa report`.
mod accuracy;
mod features;
mod images;
mod knn;
mod linear;
mod measure;
mod sources;
mod verdict;

pub use accuracy::Accuracy;
pub use features::{Features, Layer, Pool, layer_features, pixel_features};
pub use images::{Classes, ImageSet, ReadOptions};
pub use knn::classify;
pub use linear::{LinearProbes, Probe, ProbeError};
pub use measure::{Evaluation, FeaturePair, Measurement, ResultTable, Scores};
pub use sources::{Pretrained, Source};
pub use verdict::verdict;
