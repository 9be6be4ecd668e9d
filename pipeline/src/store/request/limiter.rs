//! How many requests may be in flight to one prefix of a store: additive increase, multiplicative
//! decrease.
//!
//! Stores answer 503 (`SlowDown`) where a prefix is asked too often. A single one says little and
//! is only asked again; where they are more than a few in a hundred, the window shrinks, and grows
//! by one with each window of good answers.
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Weight of the newest answer in the share of throttled ones.
const MEMORY: f64 = 0.01;
/// Share of throttled answers that shrinks the window.
const TOLERATED: f64 = 0.05;
/// What is left of the window then.
const DECREASE: f64 = 0.7;

#[derive(Debug)]
struct State {
    window: f64,
    in_use: usize,
    throttled: f64,
    /// Good answers to come before the window may shrink again: those under way were sent into the
    /// old one.
    settling: usize,
}

/// The window of one prefix.
#[derive(Debug)]
pub(super) struct Limiter {
    most: usize,
    state: Mutex<State>,
    freed: Notify,
}

impl Limiter {
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1);
        Self {
            most,
            state: Mutex::new(State {
                window: most as f64,
                in_use: 0,
                throttled: 0.0,
                settling: 0,
            }),
            freed: Notify::new(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one more request may be sent; it is in flight until the slot is dropped.
    pub(super) async fn acquire(self: &Arc<Self>) -> Slot {
        loop {
            {
                let mut state = self.state();
                if state.in_use < state.window as usize {
                    state.in_use += 1;
                    return Slot {
                        limiter: Arc::clone(self),
                    };
                }
            }
            // A slot that is freed before this waits leaves a permit behind.
            self.freed.notified().await;
        }
    }

    /// An answer that was not throttled.
    pub(super) fn went_well(&self) {
        let mut state = self.state();
        state.throttled *= 1.0 - MEMORY;
        state.settling = state.settling.saturating_sub(1);
        let before = state.window as usize;
        state.window = (state.window + 1.0 / state.window).min(self.most as f64);
        let grew = state.window as usize > before;
        drop(state);
        if grew {
            self.freed.notify_one();
        }
    }

    /// A throttled answer.
    pub(super) fn was_throttled(&self) {
        let mut state = self.state();
        state.throttled += MEMORY * (1.0 - state.throttled);
        if state.throttled > TOLERATED && state.settling == 0 {
            state.settling = state.window as usize;
            state.window = (state.window * DECREASE).max(1.0);
        }
    }

    /// Requests that may be in flight now, and those that are.
    pub(super) fn window(&self) -> (usize, usize) {
        let state = self.state();
        (state.window as usize, state.in_use)
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Slot {
    limiter: Arc<Limiter>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.limiter.state().in_use -= 1;
        self.limiter.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_throttled_answers_change_nothing_and_many_shrink_the_window() {
        let limiter = Limiter::new(32);
        for i in 0..1000 {
            if i % 100 == 7 {
                limiter.was_throttled();
            } else {
                limiter.went_well();
            }
        }
        assert_eq!(limiter.window().0, 32, "one in a hundred");
        for _ in 0..40 {
            limiter.was_throttled();
        }
        let shrunk = limiter.window().0;
        assert!(shrunk < 32, "{shrunk}");
        // One window of answers passes before it shrinks again.
        for i in 0..2000 {
            if i % 3 == 0 {
                limiter.was_throttled();
            } else {
                limiter.went_well();
            }
        }
        assert!(
            (1..16).contains(&limiter.window().0),
            "{:?}",
            limiter.window()
        );
        for _ in 0..2000 {
            limiter.went_well();
        }
        assert_eq!(limiter.window().0, 32, "it recovers");
    }

    #[tokio::test]
    async fn no_more_than_the_window_are_in_flight() {
        let limiter = Arc::new(Limiter::new(3));
        let slots = [
            limiter.acquire().await,
            limiter.acquire().await,
            limiter.acquire().await,
        ];
        let waiting = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { limiter.acquire().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(slots);
        let _slot = waiting.await.unwrap();
        assert_eq!(limiter.window(), (3, 1));
    }
}
