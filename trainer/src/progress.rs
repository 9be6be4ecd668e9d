//! How far long work is: one line at the bottom of a terminal that is drawn over, plain lines every
//! ten seconds elsewhere. Nothing is shown of work that is done within a second.
//!
//! What else is written to the console while the line stands (see [`crate::print`]) goes above it.
use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::words;

/// Work that is done sooner is not shown on a terminal.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Between two looks at how far the work is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A rate is taken over so much of the past.
const RATE_OVER: Duration = Duration::from_secs(30);
/// Columns of a bar, on a terminal that is wide.
const BAR: usize = 20;
/// Widest line where there is no terminal.
pub(crate) const WIDEST: usize = 120;

/// The line at the bottom of the terminal.
static BOTTOM: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Writes to the console while the bottom line is away.
pub(crate) fn undisturbed<T>(write: impl FnOnce() -> T) -> T {
    let bottom = BOTTOM.lock().unwrap_or_else(PoisonError::into_inner);
    match &*bottom {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// Columns of the terminal on standard error, or those of a line where there is none.
pub(crate) fn columns() -> usize {
    if !std::io::stderr().is_terminal() {
        return WIDEST;
    }
    let size = terminal_size::terminal_size_of(std::io::stderr());
    size.map_or(80, |(columns, _)| usize::from(columns.0).max(20))
}

/// The line at the bottom of a terminal, as long as this value lives.
#[derive(Debug)]
pub(crate) struct BottomLine {
    bar: ProgressBar,
    /// Characters and columns when it was drawn last.
    drawn: Cell<(usize, usize)>,
}

impl BottomLine {
    /// `None` where standard error is no terminal that can draw over a line.
    pub(crate) fn new() -> Option<Self> {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if dumb || !std::io::stderr().is_terminal() {
            return None;
        }
        let style = ProgressStyle::with_template("{wide_msg}").expect("the template is sound");
        let bar = ProgressBar::new_spinner().with_style(style);
        *BOTTOM.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        let drawn = Cell::new((0, usize::MAX));
        Some(Self { bar, drawn })
    }

    /// Draws the line anew, with as many of `fields` as fit.
    pub(crate) fn set(&self, fields: &[Field]) {
        let columns = columns();
        let (length, before) = self.drawn.get();
        if columns < before {
            // A terminal that has become narrower has broken the line into several.
            let above = length.saturating_sub(1) / columns;
            self.bar.suspend(|| clear_above(above));
        }
        // The last column stays free: some terminals wrap there.
        let line = fit(fields, columns - 1);
        self.drawn.set((line.chars().count(), columns));
        self.bar.set_message(line);
    }
}

impl Drop for BottomLine {
    fn drop(&mut self) {
        BOTTOM.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.bar.finish_and_clear();
    }
}

/// Clears so many lines above the cursor, and all below.
fn clear_above(lines: usize) {
    if lines > 0 {
        let _ = write!(std::io::stderr(), "\x1b[{lines}A\r\x1b[J");
    }
}

/// A part of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    /// Where not all fit, those of the highest rank are left out first.
    pub rank: u8,
    /// What it says.
    pub text: String,
}

impl Field {
    /// A field; `rank` 0 stays longest.
    pub(crate) fn new(rank: u8, text: impl Into<String>) -> Self {
        Self {
            rank,
            text: text.into(),
        }
    }
}

/// As many of `fields`, in their order, as fit into so many columns, two spaces apart.
pub(crate) fn fit(fields: &[Field], columns: usize) -> String {
    let mut ranks = fields.iter().map(|field| field.rank).collect::<Vec<_>>();
    ranks.sort_unstable();
    ranks.dedup();
    while let Some(most) = ranks.pop() {
        let kept = fields.iter().filter(|field| field.rank <= most);
        let line = kept
            .map(|field| &*field.text)
            .collect::<Vec<_>>()
            .join("  ");
        if line.chars().count() <= columns {
            return line;
        }
    }
    let least = fields.iter().min_by_key(|field| field.rank);
    least.map_or_else(String::new, |field| {
        field.text.chars().take(columns).collect()
    })
}

/// `[======>             ]` for a share of 1.
pub(crate) fn bar(share: f64) -> String {
    let full = (share.clamp(0.0, 1.0) * BAR as f64) as usize;
    let head = if full < BAR { ">" } else { "" };
    format!("[{:<BAR$}]", "=".repeat(full) + head)
}

/// How fast something goes, over the last half minute.
#[derive(Debug)]
pub(crate) struct Rate {
    /// When how much was done: at most one a second, the first and the newest among them.
    marks: std::collections::VecDeque<(Instant, u64)>,
}

impl Rate {
    /// Nothing is known but the start.
    pub(crate) fn new(now: Instant, done: u64) -> Self {
        Self {
            marks: [(now, done)].into(),
        }
    }

    /// So much is done now. An entry a second is kept, so that the memory is bounded.
    pub(crate) fn mark(&mut self, now: Instant, done: u64) {
        let newest = self.marks.len() - 1;
        if newest > 0 && now - self.marks[newest - 1].0 < Duration::from_secs(1) {
            self.marks[newest] = (now, done);
        } else {
            self.marks.push_back((now, done));
        }
        // What is older, but for the last that is: the rate is over at least that long. Slow work,
        // a step of a minute, has two marks all the same.
        while self.marks.len() > 2 && now - self.marks[1].0 >= RATE_OVER {
            self.marks.pop_front();
        }
    }

    /// Per second; `None` while nothing was done.
    pub(crate) fn per_second(&self) -> Option<f64> {
        let (first, newest) = (self.marks.front()?, self.marks.back()?);
        let seconds = (newest.0 - first.0).as_secs_f64();
        let done = newest.1.saturating_sub(first.1);
        (done > 0 && seconds > 0.0).then(|| done as f64 / seconds)
    }

    /// Time for `rest` more.
    pub(crate) fn time_for(&self, rest: u64) -> Option<Duration> {
        let seconds = rest as f64 / self.per_second()?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things of this name, in the plural.
    Count(&'static str),
    /// Bytes.
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
pub struct Progress {
    work: Arc<Work>,
    watcher: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Work {
    what: String,
    unit: Unit,
    /// 0 as long as it is not known.
    total: AtomicU64,
    done: AtomicU64,
    ended: AtomicBool,
}

impl Progress {
    /// Begins: `what` is done, as in `reading features`; `total` may become known later.
    pub fn new(what: impl Into<String>, total: Option<u64>, unit: Unit) -> Self {
        let work = Arc::new(Work {
            what: what.into(),
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

    /// So much more is done.
    pub fn add(&self, more: u64) {
        self.work.done.fetch_add(more, Relaxed);
    }

    /// So much is done in all.
    pub fn set(&self, done: u64) {
        self.work.done.store(done, Relaxed);
    }

    /// So much there is to do.
    pub fn set_total(&self, total: u64) {
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
                Some(bottom) => bottom.set(&self.fields(done, &rate, true)),
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
        let mut fields = vec![Field::new(2, self.what.clone())];
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
    fn a_line_keeps_what_matters_most() {
        let fields = [
            Field::new(1, "step 7/9"),
            Field::new(3, "[==>   ]"),
            Field::new(0, "loss -0.5"),
            Field::new(2, "ETA 3 s"),
        ];
        assert_eq!(fit(&fields, 40), "step 7/9  [==>   ]  loss -0.5  ETA 3 s");
        assert_eq!(fit(&fields, 37), "step 7/9  loss -0.5  ETA 3 s");
        assert_eq!(fit(&fields, 20), "step 7/9  loss -0.5");
        assert_eq!(fit(&fields, 9), "loss -0.5");
        assert_eq!(fit(&fields, 4), "loss");
    }

    #[test]
    fn a_bar_is_as_long_at_every_share() {
        assert_eq!(bar(0.0), "[>                   ]");
        assert_eq!(bar(0.5), "[==========>         ]");
        assert_eq!(bar(1.0), "[====================]");
        assert_eq!(bar(7.0), bar(1.0));
    }

    #[test]
    fn a_rate_is_that_of_the_last_half_minute() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut rate = Rate::new(start, 100);
        assert_eq!(rate.per_second(), None);
        // Ten a second for a minute, then two a second for another one.
        for tenth in 1..=600 {
            rate.mark(at(tenth as f64 / 10.0), 100 + tenth);
        }
        assert!((rate.per_second().unwrap() - 10.0).abs() < 0.5, "{rate:?}");
        for tenth in 1..=600 {
            rate.mark(at(60.0 + tenth as f64 / 10.0), 700 + tenth / 5);
        }
        let time = rate.time_for(120).unwrap().as_secs_f64();
        assert!((time - 60.0).abs() < 3.0, "{time}");
        assert!(rate.marks.len() < 40);
    }

    #[test]
    fn a_rate_of_slow_work_has_two_marks() {
        let start = Instant::now();
        let mut rate = Rate::new(start, 0);
        for minute in 1..5 {
            rate.mark(start + Duration::from_mins(minute), minute);
        }
        let time = rate.time_for(10).unwrap();
        assert_eq!(time.as_secs(), 600);
    }

    #[test]
    fn work_is_told_in_its_own_units() {
        let work = Work {
            what: "reading features".to_owned(),
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
