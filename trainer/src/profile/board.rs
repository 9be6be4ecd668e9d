//! What is seen of a profile while it measures: which trial is run, how many are done, and on a
//! terminal how busy each stage is.
use std::cell::RefCell;
use std::collections::VecDeque;

use super::moments::{Moment, STAGES};
use crate::console::line::bar;
use crate::console::progress::{Progress, Unit};
use crate::console::words::{digits, percent};

/// Moments whose mean is shown: about a second.
const RECENT: usize = 10;

/// Tells how far a profile is; what it shows goes when this value does.
#[derive(Debug)]
pub(super) struct Board {
    progress: Progress,
    recent: RefCell<VecDeque<Moment>>,
}

impl Board {
    /// Of so many trials.
    pub(super) fn new(trials: u64) -> Self {
        Self {
            progress: Progress::new("profiling", Some(trials), Unit::Count("trials")),
            recent: RefCell::default(),
        }
    }

    /// This is done now.
    pub(super) fn tell(&self, what: &str) {
        self.recent.borrow_mut().clear();
        self.progress.tell(format!("profiling: {what}"));
    }

    /// A trial is done.
    pub(super) fn done(&self) {
        self.progress.add(1);
    }

    /// What the trial that is run does.
    pub(super) fn show(&self, moment: &Moment) {
        let mut recent = self.recent.borrow_mut();
        recent.push_back(moment.clone());
        if recent.len() > RECENT {
            recent.pop_front();
        }
        self.progress.show_below(lines(recent.make_contiguous()));
    }
}

/// A line for each stage, of the mean of `moments`.
fn lines(moments: &[Moment]) -> Vec<String> {
    let mean = |value: &dyn Fn(&Moment) -> f64| {
        moments.iter().map(value).sum::<f64>() / moments.len().max(1) as f64
    };
    let images = mean(&|moment| moment.images_a_second);
    let bytes = mean(&|moment| moment.bytes_a_second);
    let stages = STAGES.iter().enumerate();
    let lines = stages.map(|(stage, name)| {
        let busy = mean(&|moment| moment.busy[stage]);
        let rate = match *name {
            "store" => format!("{} MB/s", digits(bytes / 1e6)),
            "decoding" => format!("{} images/s", digits(images)),
            _ => String::new(),
        };
        format!("  {name:<10}{} {:>5}  {rate}", bar(busy), percent(busy))
    });
    lines.map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_stage_within_60_columns() {
        let moment = |share| Moment {
            at_s: 0.0,
            images_a_second: 1234.0 * share,
            bytes_a_second: 45.6e6,
            busy: [share, 0.0, 1.0, 0.25],
        };
        let lines = lines(&[moment(0.0), moment(1.0)]);
        assert_eq!(
            lines,
            [
                "  store     [==========>         ]  50 %  45.6 MB/s",
                "  unpacking [>                   ]   0 %",
                "  decoding  [====================] 100 %  617 images/s",
                "  consumer  [=====>              ]  25 %",
            ]
        );
    }
}
