//! The learning report of runs: curves, accuracy of their features over time, and pictures of what
//! they predict and attend to. Called by `nepa report`.
mod accuracy;
mod curves;
mod evaluations;
mod facts;
mod features;
mod history;
mod maps;
mod names;
mod page;
mod sentence;
mod settings;
mod subject;
mod top1;
mod write;

pub(crate) use subject::{Newest, ReportOptions, Subject};
pub(crate) use write::write_report;
