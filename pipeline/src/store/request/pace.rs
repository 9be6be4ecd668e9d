//! How fast answers come as a rule: when a request is late, and when one is lost.
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// First-byte times that are remembered.
const REMEMBERED: usize = 256;
/// Fewer say nothing yet.
const ENOUGH: usize = 32;
/// No answer is late before this.
const LEAST_DELAY: Duration = Duration::from_millis(20);
/// No answer is lost before this.
const LEAST_DEADLINE: Duration = Duration::from_secs(1);
/// Second requests, as a share of all.
const HEDGED: f64 = 0.05;
/// Second requests that may be sent at once.
const MOST_HEDGES: f64 = 4.0;

#[derive(Debug, Default)]
struct State {
    recent: VecDeque<Duration>,
    hedges: f64,
}

/// Recent first-byte times, and the right to send second requests.
#[derive(Debug, Default)]
pub(super) struct Pace {
    state: Mutex<State>,
}

impl Pace {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the time from a request to its answer's first byte.
    pub(super) fn first_byte(&self, after: Duration) {
        let mut state = self.state();
        if state.recent.len() == REMEMBERED {
            state.recent.pop_front();
        }
        state.recent.push_back(after);
        state.hedges = (state.hedges + HEDGED).min(MOST_HEDGES);
    }

    fn quantile(&self, share: f64) -> Option<Duration> {
        let mut sorted: Vec<_> = self.state().recent.iter().copied().collect();
        if sorted.len() < ENOUGH {
            return None;
        }
        sorted.sort_unstable();
        Some(sorted[((sorted.len() - 1) as f64 * share).round() as usize])
    }

    /// After how long without a first byte a second request is worth while: past the 95th
    /// percentile.
    pub(super) fn hedge_after(&self) -> Option<Duration> {
        let (median, late) = (self.quantile(0.5)?, self.quantile(0.95)?);
        Some(late.max(median.mul_f64(1.5)).max(LEAST_DELAY))
    }

    /// Takes the right to send a second request, if there is one.
    pub(super) fn take_hedge(&self) -> bool {
        let mut state = self.state();
        let may = state.hedges >= 1.0;
        if may {
            state.hedges -= 1.0;
        }
        may
    }

    /// After how long without a byte an answer is lost: ten usual first-byte times, twice as long
    /// for each failure before; `most` at first and at most.
    pub(super) fn deadline(&self, failures: usize, most: Duration) -> Duration {
        self.quantile(0.5).map_or(most, |median| {
            let patience = 2u32.saturating_pow(failures.try_into().unwrap_or(u32::MAX));
            (median * 10)
                .max(LEAST_DEADLINE)
                .saturating_mul(patience)
                .min(most)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_follows_what_is_usual() {
        let pace = Pace::default();
        let (most, ms) = (Duration::from_secs(30), Duration::from_millis);
        for _ in 0..ENOUGH - 1 {
            pace.first_byte(ms(100));
        }
        assert_eq!((pace.hedge_after(), pace.deadline(0, most)), (None, most));
        for i in 0..REMEMBERED as u64 {
            pace.first_byte(ms(100 + i % 10));
        }
        assert!(pace.hedge_after().unwrap() >= ms(150));
        assert_eq!(pace.deadline(0, most), ms(1040).max(LEAST_DEADLINE));
        assert_eq!(pace.deadline(2, most), ms(4160));
        assert_eq!(pace.deadline(60, most), most);
        let pace = Pace::default();
        for _ in 0..REMEMBERED {
            pace.first_byte(ms(1));
        }
        assert_eq!(
            (pace.hedge_after().unwrap(), pace.deadline(0, most)),
            (LEAST_DELAY, LEAST_DEADLINE)
        );
        assert_eq!((0..9).filter(|_| pace.take_hedge()).count(), 4);
    }
}
