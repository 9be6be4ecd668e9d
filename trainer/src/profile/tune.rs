//! A search of the settings of speed: the change that should give most is made, and kept if the
//! loader is really faster with it; then the next one.
use std::collections::BTreeMap;

use super::plan::{Found, Subject, measure};
use super::report::Report;
use super::verdict::signed;
use crate::console::words::digits;

/// Profiles that are made at most.
const PROFILES: usize = 5;
/// A change that gives less is not kept.
const KEPT: f64 = 0.02;

/// Settings by their names, as a recipe has them.
pub(crate) type Tuned = BTreeMap<String, String>;

/// Changes the settings of `subject` as long as that makes it faster; gives what was found with the
/// last ones, and the changes that were kept.
pub(crate) fn tune(subject: &mut Subject<'_>) -> anyhow::Result<(Found, Tuned)> {
    let mut found = measure(subject, None)?;
    let mut report = Report::new(subject, &found);
    let first = report.as_ref().map_or(0.0, Report::rate);
    let mut last = first;
    let mut kept = Tuned::new();
    for _ in 1..PROFILES {
        let before = report.filter(|_| !found.cut_off);
        let Some((set, foretold)) = before.as_ref().and_then(Report::best_setting) else {
            break;
        };
        let (io, config) = (subject.io.clone(), subject.config.clone());
        let dataset = subject.dataset.clone();
        apply(subject, set)?;
        let changed = measure(subject, None)?;
        report = Report::new(subject, &changed).filter(|_| !changed.cut_off);
        let rate = report.as_ref().map_or(0.0, Report::rate);
        let gain = rate / last.max(1e-9) - 1.0;
        println!(
            "{set}: {} images/s, {} ({} foretold)",
            digits(rate),
            signed(gain),
            signed(foretold)
        );
        if gain < KEPT {
            (subject.io, subject.config, subject.dataset) = (io, config, dataset);
            break;
        }
        kept.extend(
            set.split_once('=')
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        (found, last) = (changed, rate);
    }
    if kept.is_empty() {
        println!("No setting makes it faster.\n");
    } else {
        let sets = kept
            .iter()
            .map(|(key, value)| format!(" --set {key}={value}"));
        let gain = signed(last / first.max(1e-9) - 1.0);
        println!("Faster by {gain} with{}\n", sets.collect::<String>());
    }
    Ok((found, kept))
}

fn apply(subject: &mut Subject<'_>, set: &str) -> anyhow::Result<()> {
    let number = |value: &str| value.parse::<usize>();
    match set.split_once('=') {
        Some(("io.max_requests", value)) => {
            subject.io.max_requests = number(value)?;
            subject.dataset = (subject.reopen)(&subject.io)?;
        }
        Some(("loader.decode_threads", value)) => subject.config.decode_threads = number(value)?,
        _ => anyhow::bail!("{set} is no setting of speed"),
    }
    Ok(())
}
