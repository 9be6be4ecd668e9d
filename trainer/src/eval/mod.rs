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

pub(crate) use accuracy::Accuracy;
pub(crate) use features::{Features, Layer, LayerReader, Pool, pixel_features};
pub(crate) use images::{Classes, ImageSet, ReadOptions};
pub(crate) use knn::classify;
pub(crate) use linear::{LinearProbes, Probe};
pub(crate) use measure::{Evaluation, FeaturePair, Measurement, ResultTable, Scores};
pub(crate) use sources::{Pretrained, Source};
pub(crate) use verdict::verdict;
