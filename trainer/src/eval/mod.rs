//! Evaluation of frozen features: nearest neighbours and linear probes, on raw pixels, random
//! weights and checkpoints. Called by `nepa eval` and `nepa report`.
mod accuracy;
mod class_match;
mod classifier;
mod features;
mod images;
mod knn;
mod linear;
mod measure;
mod sources;
mod top1;
mod verdict;

pub(crate) use accuracy::Accuracy;
pub(crate) use class_match::{ClassMatch, MatchBy, NO_CLASSIFIER};
pub(crate) use classifier::Classifier;
pub(crate) use features::{Features, Layer, LayerReader, Pool, pixel_features};
pub(crate) use images::{Classes, ImageSet, LeftOut, ReadOptions};
pub(crate) use knn::classify;
pub(crate) use linear::{LinearProbes, Probe};
pub(crate) use measure::{Evaluation, FeaturePair, Measurement, ResultTable, Scores};
pub(crate) use sources::Source;
pub(crate) use top1::{Top1, Top1Report, Top1Scores, probabilities};
pub(crate) use verdict::verdict;
