//! Fine-tuning a pretrained NEPA for classification, as published: a rate for each layer, images
//! mixed with their labels, and an evaluation after each epoch. `commands::finetune` begins it; the
//! loop is `run`'s.
mod classes;
mod evaluation;
mod groups;
mod phase;
mod schedule;

pub use groups::{Freeze, LayerGroups, rates};
pub(crate) use phase::Finetuning;
pub use schedule::{LayerRates, LayerSchedule};
