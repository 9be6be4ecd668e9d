//! The thread that brings checkpoints and logs to the store while training goes on: what is given
//! to it, and how its end is waited for. What it does is in [`super::sending`].
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::future::select;

use super::owner::Owner;
use super::remote::Remote;
use super::sending::{ABORT_WITHIN, Job, Shared, Unsent, drop_job};
use crate::signals::received;

/// Checkpoints that may wait beside the one that is being sent.
const MOST_WAITING: usize = 1;
/// How long a save waits for room where the store takes what it is given.
const ROOM_WITHIN: Duration = Duration::from_secs(5);
/// Who waits looks so often whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The thread, and what it is to send.
pub(super) struct Sender {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    pub(super) fn start(remote: &Remote, owner: &Arc<Owner>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(remote, owner));
        let (runtime, of_thread) = (remote.runtime.clone(), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("nepa-send".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let renewing = std::pin::pin!(of_thread.renew_for_ever());
                    let sending = std::pin::pin!(of_thread.send_all());
                    select(sending, renewing).await;
                    of_thread.changed.notify_all();
                });
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Sends `job` when its turn comes. Where the store is away, or slower than checkpoints come,
    /// older ones that wait are left out for it, but for milestones.
    pub(super) fn push(&self, job: Job) {
        let shared = &*self.shared;
        let deadline = Instant::now() + ROOM_WITHIN;
        let mut state = shared.state();
        if job.checkpoint.is_some() {
            while state.num_checkpoints() >= MOST_WAITING
                && state.failing.is_none()
                && state.unsent.is_none()
                && received().is_none()
                && Instant::now() < deadline
            {
                state = shared.wait(state, LOOK_EVERY);
            }
            while state.num_checkpoints() >= MOST_WAITING {
                let Some(old) = state
                    .waiting
                    .iter()
                    .position(Job::may_be_left_out)
                    .and_then(|oldest| state.waiting.remove(oldest))
                else {
                    break;
                };
                tracing::warn!(
                    "{} is not sent to {}: {} comes after it, and sending takes longer than \
                     training to the next",
                    old.what,
                    shared.remote.url(),
                    job.what
                );
                drop_job(&old);
            }
        }
        state.waiting.push_back(job);
        drop(state);
        shared.wake.notify_one();
    }

    /// What will not be sent, and why.
    pub(super) fn unsent(&self) -> Option<Unsent> {
        self.shared.state().unsent.clone()
    }

    /// Waits until all is sent, or `is_over` says, several times a second, that it takes too long.
    pub(super) fn finish(&mut self, mut is_over: impl FnMut() -> bool) -> Result<(), Unsent> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let shared = &*self.shared;
        shared.state().is_closing = true;
        shared.wake.notify_one();
        let (started, mut told) = (Instant::now(), false);
        while !thread.is_finished() {
            if is_over() {
                shared.state().is_abandoned = true;
                shared.wake.notify_one();
                // It only gives up what it has sent in vain.
                let until = Instant::now() + 2 * ABORT_WITHIN;
                while !thread.is_finished() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(10));
                }
                break;
            }
            if !told && started.elapsed() > Duration::from_secs(2) {
                told = true;
                if let Some((what, _)) = &shared.state().sending {
                    tracing::info!("{what} is being sent to {}", shared.remote.url());
                }
            }
            let state = shared.state();
            drop(shared.wait(state, LOOK_EVERY));
        }
        let mut state = shared.state();
        if let Some(unsent) = state.unsent.take() {
            return Err(unsent);
        }
        let waits = state.waiting.pop_back();
        let waits = waits.map(|job| (job.what, job.folder));
        match waits.or_else(|| state.sending.take()) {
            None => Ok(()),
            Some((what, folder)) => Err(Unsent::InTime {
                what,
                folder,
                cause: state.failing.take().map(|failing| failing.cause),
            }),
        }
    }
}
