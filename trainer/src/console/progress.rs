//! How far long work is: a line at the bottom of a terminal, where wanted with more below it, and
//! plain lines every ten seconds elsewhere. Nothing is shown of work that is done within a second.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::line::{BottomLine, Field, WIDEST, bar, fit};
use super::rate::Rate;
use super::words;

/// Work that is done sooner is not shown on a terminal.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Between two looks at how far the work is.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Things of this name, in the plural.
    Count(&'static str),
    Bytes,
}

impl Unit {
    fn shown(self, done: u64, total: Option<u64>) -> String {
        match (self, total) {
            (Self::Count(noun), Some(total)) => {
                format!("{} of {} {noun}", words::count(done), words::count(total))
            }
            (Self::Count(noun), None) => format!("{} {noun}", words::count(done)),
            (Self::Bytes, Some(total)) => {
                format!("{} of {}", words::bytes(done), words::bytes(total))
            }
            (Self::Bytes, None) => words::bytes(done),
        }
    }

    fn rate(self, per_second: f64) -> String {
        match self {
            Self::Count(noun) => format!("{} {noun}/s", words::digits(per_second)),
            Self::Bytes => format!("{}/s", words::bytes(per_second as u64)),
        }
    }
}

/// Long work that tells how far it is. Shared by the threads that do it: [`Progress::add`] costs
/// one atomic addition. What is shown goes when this value does.
#[derive(Debug)]
pub(crate) struct Progress {
    work: Arc<Work>,
    watcher: Option<JoinHandle<()>>,
}

/// What is shown beside numbers.
#[derive(Debug, Default)]
struct Shown {
    what: String,
    /// Lines below, on a terminal alone.
    below: Vec<String>,
}

#[derive(Debug)]
struct Work {
    shown: Mutex<Shown>,
    unit: Unit,
    /// 0 as long as it is not known.
    total: AtomicU64,
    done: AtomicU64,
    ended: AtomicBool,
}

impl Progress {
    /// Begins: `what` is done, as in `reading features`; `total` may become known later.
    pub(crate) fn new(what: impl Into<String>, total: Option<u64>, unit: Unit) -> Self {
        let work = Arc::new(Work {
            shown: Mutex::new(Shown {
                what: what.into(),
                below: Vec::new(),
            }),
            unit,
            total: AtomicU64::new(total.unwrap_or(0)),
            done: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let watched = Arc::clone(&work);
        let watcher = std::thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || watched.watch())
            // Work is done without being shown, too.
            .ok();
        Self { work, watcher }
    }

    /// Something else is done from now on, with no lines below.
    pub(crate) fn tell(&self, what: String) {
        let below = Vec::new();
        *self.work.shown() = Shown { what, below };
    }

    /// Shows these lines below, on a terminal.
    pub(crate) fn show_below(&self, lines: Vec<String>) {
        self.work.shown().below = lines;
    }

    /// So much more is done.
    pub(crate) fn add(&self, more: u64) {
        self.work.done.fetch_add(more, Relaxed);
    }

    /// So much is done in all.
    pub(crate) fn set(&self, done: u64) {
        self.work.done.store(done, Relaxed);
    }

    /// So much more there is to do than was known.
    pub(crate) fn add_total(&self, more: u64) {
        self.work.total.fetch_add(more, Relaxed);
    }

    /// So much there is to do.
    pub(crate) fn set_total(&self, total: u64) {
        self.work.total.store(total, Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.work.ended.store(true, Relaxed);
        if let Some(watcher) = self.watcher.take() {
            watcher.thread().unpark();
            let _ = watcher.join();
        }
    }
}

impl Work {
    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        let started = Instant::now();
        let (mut rate, mut line, mut said) = (Rate::new(started, 0), None, started);
        while !self.ended.load(Relaxed) {
            std::thread::park_timeout(LOOK_EVERY);
            let now = Instant::now();
            let done = self.done.load(Relaxed);
            rate.mark(now, done);
            if now - started < SHOWN_AFTER || self.ended.load(Relaxed) {
                continue;
            }
            if line.is_none() {
                line = Some(BottomLine::new());
            }
            match line.as_ref().expect("it was just made") {
                Some(bottom) => {
                    let below = self.shown().below.clone();
                    bottom.set_with(&self.fields(done, &rate, true), &below);
                }
                None if now - said >= LINE_EVERY => {
                    said = now;
                    let line = fit(&self.fields(done, &rate, false), WIDEST);
                    eprintln!("{line}");
                }
                None => {}
            }
        }
    }

    fn fields(&self, done: u64, rate: &Rate, with_bar: bool) -> Vec<Field> {
        let total = Some(self.total.load(Relaxed)).filter(|&total| total > 0);
        let mut fields = vec![Field::new(2, self.shown().what.clone())];
        if let (true, Some(total)) = (with_bar, total) {
            fields.push(Field::new(5, bar(done as f64 / total as f64)));
        }
        fields.push(Field::new(0, self.unit.shown(done, total)));
        if let Some(total) = total {
            fields.push(Field::new(3, words::percent(done as f64 / total as f64)));
        }
        if let Some(per_second) = rate.per_second() {
            fields.push(Field::new(4, self.unit.rate(per_second)));
        }
        let rest = total.map(|total| total.saturating_sub(done));
        if let Some(time) = rest.and_then(|rest| rate.time_for(rest)) {
            fields.push(Field::new(1, format!("ETA {}", words::duration(time))));
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_told_in_its_own_units() {
        let work = Work {
            shown: Mutex::new(Shown {
                what: "reading features".to_owned(),
                below: Vec::new(),
            }),
            unit: Unit::Count("images"),
            total: AtomicU64::new(5000),
            done: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        };
        let start = Instant::now();
        let mut rate = Rate::new(start, 0);
        rate.mark(start + Duration::from_secs(10), 1250);
        let line = fit(&work.fields(1250, &rate, false), WIDEST);
        assert_eq!(
            line,
            "reading features  1,250 of 5,000 images  25 %  125 images/s  ETA 30 s"
        );
        assert_eq!(
            Unit::Bytes.shown(1 << 20, Some(3 << 20)),
            "1.00 MiB of 3.00 MiB"
        );
    }
}
