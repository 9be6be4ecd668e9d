//! Data sets, for people: opened with progress, their labels in a line, names of their shards.
mod labels;
mod names;
mod open;

pub(crate) use labels::LabelFacts;
pub(crate) use names::names_below_root;
pub(crate) use open::{open_data, show_warnings};
