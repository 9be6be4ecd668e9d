//! The split between a batch decoder and the decode threads, from times measured while running.
//!
//! An image goes to the batch decoder if that would be done with it soon: within `tail_factor`
//! times what a decode thread needs for one. So the queue before a fast engine is deep and keeps it
//! busy, that before a slow one is empty, and no image waits much longer than it had to. There is
//! no fixed share.
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How images are split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RouterConfig {
    /// Longest predicted wait for the batch decoder, in times of one image on a decode thread.
    pub tail_factor: f64,
    /// Images after which a batch decoder that gets none is tried with one, to see whether it is
    /// still slow.
    pub probe_every: u64,
    /// Calls in a row that fail as a whole before the batch decoder is given up.
    pub max_failed_calls: u32,
    /// Images in a row that it cannot decode before it is given up: it was asked for what it never
    /// does.
    pub max_failed_images: usize,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            // A thread needs about 0.6 ms for an image, engines that give 10,000 a second 0.1 ms:
            // 96 images, two calls of 48. Two batches of 256 at that rate are 51 ms of work ahead,
            // of which the tail takes 9.6.
            tail_factor: 16.0,
            probe_every: 256,
            max_failed_calls: 3,
            max_failed_images: 256,
        }
    }
}

/// What was measured and what is under way.
#[derive(Debug, Default)]
struct State {
    /// Smoothed time of an image on a decode thread, and of one in a batch call; in seconds.
    thread: Option<f64>,
    batch: Option<f64>,
    /// Images given to the batch decoder that it has not finished.
    outstanding: usize,
    since_batch: u64,
    failed_calls: u32,
    failed_images: usize,
    given_up: bool,
    /// End of the last call.
    ended: Option<Instant>,
}

/// Chooses for each image; shared by all decode threads.
#[derive(Debug, Default)]
pub(crate) struct Router {
    config: RouterConfig,
    state: Mutex<State>,
}

/// Weight of a new measurement in the smoothed times; calls are few and stand for many images, and
/// a decoder that was slow once must come back.
const THREAD_WEIGHT: f64 = 0.05;
const BATCH_WEIGHT: f64 = 0.3;

fn smooth(average: &mut Option<f64>, seconds: f64, weight: f64) {
    *average = Some(average.map_or(seconds, |old| old + weight * (seconds - old)));
}

impl Router {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while holding the router")
    }

    /// Whether the next image goes to the batch decoder, which takes `max_images` a call. If so it
    /// counts as under way until [`Self::batch_done`].
    pub(crate) fn to_batch(&self, max_images: usize) -> bool {
        let mut state = self.state();
        if state.given_up {
            return false;
        }
        let soon_done = match (state.batch, state.thread) {
            // Nothing is known of the batch decoder before its first call: one full call, and no
            // more.
            (None, _) => state.outstanding < max_images,
            (Some(_), None) => state.outstanding < 2 * max_images,
            (Some(batch), Some(thread)) => {
                (state.outstanding + 1) as f64 * batch <= self.config.tail_factor * thread
            }
        };
        let probe = state.outstanding == 0 && state.since_batch >= self.config.probe_every;
        if soon_done || probe {
            state.outstanding += 1;
            state.since_batch = 0;
            true
        } else {
            state.since_batch += 1;
            false
        }
    }

    /// An image that was to go to the batch decoder does not go there.
    pub(crate) fn not_sent(&self) {
        self.state().outstanding -= 1;
    }

    /// The part of a call's time that no other call had as well: from the end of the call before,
    /// if that is later than its start. So two calls at once count as what they are, twice the
    /// images in the time.
    pub(crate) fn own_time(&self, started: Instant, ended: Instant) -> Duration {
        let before = self.state().ended.replace(ended);
        let since = before.map_or(started, |before| before.max(started));
        ended.saturating_duration_since(since)
    }

    /// A decode thread needed `time` for one image.
    pub(crate) fn thread_done(&self, time: Duration) {
        smooth(&mut self.state().thread, time.as_secs_f64(), THREAD_WEIGHT);
    }

    /// A batch call finished `num_images` in `time`. Says whether this was the call after which the
    /// batch decoder is given up.
    pub(crate) fn batch_done(
        &self,
        num_images: usize,
        time: Duration,
        outcome: BatchOutcome,
    ) -> bool {
        let mut state = self.state();
        state.outstanding -= num_images;
        smooth(
            &mut state.batch,
            time.as_secs_f64() / num_images.max(1) as f64,
            BATCH_WEIGHT,
        );
        match outcome {
            BatchOutcome::CallFailed => state.failed_calls += 1,
            BatchOutcome::Rendered(0) => state.failed_images += num_images,
            BatchOutcome::Rendered(_) => (state.failed_calls, state.failed_images) = (0, 0),
        }
        let gives_up = !state.given_up
            && (state.failed_calls >= self.config.max_failed_calls
                || state.failed_images >= self.config.max_failed_images);
        state.given_up |= gives_up;
        gives_up
    }
}

/// What became of one call of the batch decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchOutcome {
    /// So many images were rendered; the others are refused one by one.
    Rendered(usize),
    /// The call as a whole failed.
    CallFailed,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Feeds `num_images`, one decode thread's time `thread`, a batch call taking `call` and
    /// `image` for each; both engines work in simulated time. Returns images by the batch decoder
    /// and the longest wait for it.
    fn simulate(
        router: &Router,
        num_images: usize,
        thread: Duration,
        call: Duration,
        image: Duration,
    ) -> (usize, Duration) {
        const MAX_IMAGES: usize = 32;
        let (mut now, mut ends) = (Duration::ZERO, Duration::ZERO);
        let (mut queue, mut running) = (Vec::new(), Vec::<Duration>::new());
        let (mut by_batch, mut longest, mut started) = (0, Duration::ZERO, Duration::ZERO);
        let mut left = num_images;
        while left > 0 || !running.is_empty() || !queue.is_empty() {
            if left == 0 {
                now = now.max(ends);
            }
            // What the batch decoder did meanwhile.
            if now >= ends && !running.is_empty() {
                longest = longest.max(ends.saturating_sub(running[0]));
                let outcome = BatchOutcome::Rendered(running.len());
                router.batch_done(running.len(), ends.saturating_sub(started), outcome);
                running.clear();
            }
            if running.is_empty() && !queue.is_empty() {
                running = queue.drain(..queue.len().min(MAX_IMAGES)).collect();
                started = now;
                ends = now + call + image * running.len() as u32;
            }
            if left == 0 {
                continue;
            }
            left -= 1;
            if router.to_batch(MAX_IMAGES) {
                queue.push(now);
                by_batch += 1;
                now += MS / 100;
            } else {
                now += thread;
                router.thread_done(thread);
            }
        }
        (by_batch, longest)
    }

    #[test]
    fn a_fast_batch_decoder_gets_most_images_and_keeps_the_tail_short() {
        let router = Router::default();
        let (by_batch, longest) = simulate(&router, 5000, 4 * MS, MS, MS / 5);
        assert!(by_batch > 4000, "{by_batch}");
        // The first call was made before anything was known.
        assert!(longest < 4 * MS * 20, "{longest:?}");
    }

    #[test]
    fn a_slow_batch_decoder_is_probed_only_and_comes_back_when_it_is_fast_again() {
        let router = Router::default();
        simulate(&router, 200, 2 * MS, 400 * MS, MS);
        let (slow, _) = simulate(&router, 5120, 2 * MS, 400 * MS, MS);
        assert!((1..=64).contains(&slow), "{slow}");
        let (fast, _) = simulate(&router, 10_000, 2 * MS, MS, MS / 5);
        assert!(fast > 4000, "{fast}");
    }

    #[test]
    fn the_split_follows_the_ratio_of_the_rates() {
        let shares = [MS / 4, MS, 4 * MS].map(|image| {
            simulate(&Router::default(), 20_000, 2 * MS, MS / 2, image).0 as f64 / 20_000.0
        });
        assert!(shares.is_sorted_by(|one, next| one > next), "{shares:?}");
        assert!(shares[0] > 0.7 && shares[2] < 0.5, "{shares:?}");
    }

    #[test]
    fn time_that_two_calls_share_counts_once() {
        let router = Router::default();
        let start = Instant::now();
        let at = |ms| start + ms * MS;
        assert_eq!(router.own_time(at(0), at(10)), 10 * MS);
        assert_eq!(router.own_time(at(4), at(16)), 6 * MS);
        assert_eq!(router.own_time(at(11), at(21)), 5 * MS);
        assert_eq!(router.own_time(at(30), at(31)), MS);
        // Two threads may come here in the other order.
        assert_eq!(router.own_time(at(20), at(25)), Duration::ZERO);
    }

    #[test]
    fn an_image_that_is_not_sent_after_all_waits_for_nothing() {
        let router = Router::default();
        for _ in 0..100 {
            assert!(router.to_batch(1));
            router.not_sent();
        }
    }

    #[test]
    fn calls_that_fail_as_a_whole_end_it() {
        let router = Router::default();
        for call in 1..=3 {
            assert!(router.to_batch(1));
            assert_eq!(
                router.batch_done(1, MS, BatchOutcome::CallFailed),
                call == 3
            );
        }
        assert!((0..1000).all(|_| !router.to_batch(1)));
    }

    #[test]
    fn only_a_long_row_of_refused_images_ends_it() {
        let router = Router::default();
        for _ in 0..1000 {
            assert!(router.to_batch(4));
            assert!(!router.batch_done(1, MS, BatchOutcome::Rendered(0)));
            assert!(router.to_batch(4) && router.to_batch(4));
            assert!(!router.batch_done(2, MS, BatchOutcome::Rendered(1)));
        }
        let given_up = (1..1000).find(|_| {
            assert!(router.to_batch(4));
            router.batch_done(1, MS, BatchOutcome::Rendered(0))
        });
        assert_eq!(given_up, Some(256));
        assert!(!router.to_batch(4));
    }
}
