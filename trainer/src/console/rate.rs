//! How fast something goes, and how long the rest of it takes. Used by [`super::progress`] and by
//! the steps of a run.
use std::time::{Duration, Instant};

/// A rate is taken over so much of the past.
const RATE_OVER: Duration = Duration::from_secs(30);

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

    /// So much time has passed with other work.
    pub(crate) fn pause(&mut self, time: Duration) {
        for (at, _) in &mut self.marks {
            *at += time;
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
