//! Sending what waits. It never gives up by itself: a store that is away is asked again and again,
//! with a line that names the cause, and the newest checkpoint goes before older ones. Before
//! anything becomes visible in the store, the claim on the output is renewed, which fails if
//! another run has it.
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, Either, select};
use futures::{FutureExt, TryStreamExt};
use nepa_pipeline::plain;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::Notify;

use super::folders::remove_folder;
use super::names::{CHECKPOINTS, CheckpointName, objects_of, parse_folder_name};
use super::owner::{Owner, OwnerError};
use super::remote::Remote;
use super::retention::Retention;
use super::upload::{Body, Persistence, Upload, within};
use crate::checkpoint::MANIFEST;

/// A failure that lasts so long is told, ...
const TOLD_AFTER: Duration = Duration::from_secs(1);
/// ... then at this distance for a minute, and then at the larger one.
const TOLD_EVERY: Duration = Duration::from_secs(10);
const TOLD_EVERY_LATER: Duration = Duration::from_mins(1);
/// Longest wait between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Time for giving up parts that were sent in vain.
pub(super) const ABORT_WITHIN: Duration = Duration::from_millis(500);

/// A checkpoint that is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub step: u64,
    /// Which stay when it is there.
    pub retention: Retention,
}

/// What is sent together, in this order.
pub(super) struct Job {
    /// For people: "the checkpoint of step 200".
    pub what: String,
    /// If it is a checkpoint.
    pub checkpoint: Option<Sent>,
    /// Names below the output and their contents.
    pub files: VecDeque<(String, Body)>,
    /// Where it lies locally until it is sent.
    pub folder: Option<PathBuf>,
}

impl Job {
    /// Whether it may be left out when a newer checkpoint comes.
    pub(super) fn may_be_left_out(&self) -> bool {
        let is_milestone = |sent: &Sent| sent.retention.is_milestone(sent.step);
        self.checkpoint
            .as_ref()
            .is_some_and(|sent| !is_milestone(sent))
    }
}

/// Why what waits will not be sent.
#[derive(Debug, Clone)]
pub(super) enum Unsent {
    /// The store did not take it in time.
    InTime {
        what: String,
        folder: Option<PathBuf>,
        cause: Option<String>,
    },
    /// Another run has the output.
    Lost(String),
    /// What was to be sent cannot be read.
    Local(String),
}

#[derive(Default)]
pub(super) struct State {
    pub(super) waiting: VecDeque<Job>,
    /// What is being sent, where it lies, and since when that fails.
    pub(super) sending: Option<(String, Option<PathBuf>)>,
    pub(super) failing: Option<Failing>,
    /// No more will come.
    pub(super) is_closing: bool,
    /// It has taken too long.
    pub(super) is_abandoned: bool,
    pub(super) unsent: Option<Unsent>,
}

pub(super) struct Failing {
    since: Instant,
    /// When it was last told.
    told: Option<Instant>,
    attempts: u32,
    pub(super) cause: String,
}

pub(super) struct Shared {
    pub(super) remote: Remote,
    owner: Arc<Owner>,
    state: Mutex<State>,
    /// Tells whoever waits for room, or for the end.
    pub(super) changed: Condvar,
    /// Tells the thread of new work, or of the end.
    pub(super) wake: Notify,
    /// Bytes of the present job that have arrived.
    arrived: AtomicU64,
}

/// Removes what was kept of a job that nobody needs any more.
pub(super) fn drop_job(job: &Job) {
    if let Some(folder) = &job.folder {
        remove_folder(folder);
    }
}

impl State {
    pub(super) fn num_checkpoints(&self) -> usize {
        let checkpoints = self.waiting.iter().filter(|job| job.checkpoint.is_some());
        checkpoints.count()
    }
}

/// How sending a job ended.
enum Outcome {
    Sent,
    Failed(object_store::Error),
    Lost(String),
}

impl Shared {
    pub(super) fn new(remote: &Remote, owner: &Arc<Owner>) -> Self {
        Self {
            remote: remote.clone(),
            owner: Arc::clone(owner),
            state: Mutex::default(),
            changed: Condvar::new(),
            wake: Notify::new(),
            arrived: AtomicU64::new(0),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        most: Duration,
    ) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Renews the claim now and then; ends when it is lost.
    pub(super) async fn renew_for_ever(&self) {
        loop {
            tokio::time::sleep(self.owner.renew_every()).await;
            // A store that is away is the sender's to tell of.
            if let Err(OwnerError::Lost(claim)) = self.owner.renew().await {
                self.state().unsent = Some(Unsent::Lost(claim.to_string()));
                return;
            }
        }
    }

    /// Sends what comes until no more does.
    pub(super) async fn send_all(&self) {
        loop {
            let job = {
                let mut state = self.state();
                if state.is_abandoned {
                    return;
                }
                let job = state.waiting.pop_front();
                if job.is_none() && state.is_closing {
                    return;
                }
                state.sending = job
                    .as_ref()
                    .map(|job| (job.what.clone(), job.folder.clone()));
                job
            };
            let Some(job) = job else {
                self.wake.notified().await;
                continue;
            };
            if self.send_job(job).await.is_err() {
                return;
            }
            self.changed.notify_all();
        }
    }

    /// Sends one job, however long it takes; an error if nothing more can be sent.
    async fn send_job(&self, mut job: Job) -> Result<(), ()> {
        self.arrived.store(0, Relaxed);
        let mut upload = None;
        let outcome = {
            let may_be_left_out = job.may_be_left_out();
            let sending = std::pin::pin!(self.try_for_ever(&mut job, &mut upload));
            let other = std::pin::pin!(self.is_in_vain(may_be_left_out));
            match select(sending, other).await {
                Either::Left((outcome, _)) => Some(outcome),
                Either::Right(((), _)) => None,
            }
        };
        if !matches!(outcome, Some(Outcome::Sent))
            && let Some(upload) = &mut upload
        {
            let _ = within(ABORT_WITHIN, upload.abort()).await;
        }
        let unsent = match outcome {
            Some(Outcome::Sent) => {
                drop_job(&job);
                let mut state = self.state();
                state.sending = None;
                state.failing = None;
                None
            }
            Some(Outcome::Failed(error)) => Some(Unsent::Local(plain(&error))),
            Some(Outcome::Lost(by)) => Some(Unsent::Lost(by)),
            // There is something newer, or no time left.
            None => {
                let mut state = self.state();
                if state.is_abandoned {
                    return Err(());
                }
                state.sending = None;
                drop(state);
                tracing::warn!("{} is left out for a newer one", job.what);
                drop_job(&job);
                None
            }
        };
        match unsent {
            None => Ok(()),
            Some(unsent) => {
                self.state().unsent = Some(unsent);
                Err(())
            }
        }
    }

    /// Comes when the present job need not go on: a newer checkpoint waits while this fails and
    /// may be left out, or there is no time left.
    async fn is_in_vain(&self, may_be_left_out: bool) {
        loop {
            {
                let state = self.state();
                let is_newer = state.failing.is_some() && state.num_checkpoints() > 0;
                if state.is_abandoned || (may_be_left_out && is_newer) {
                    return;
                }
            }
            let _ = tokio::time::timeout(Duration::from_millis(500), self.wake.notified()).await;
        }
    }

    /// Sends the files of a job and says how it goes.
    async fn try_for_ever(&self, job: &mut Job, upload: &mut Option<Upload>) -> Outcome {
        let total = job.files.iter().map(|(_, body)| body.len()).sum::<u64>();
        let (what, folder) = (job.what.clone(), job.folder.clone());
        let telling = std::pin::pin!(self.tell(&what, folder, total));
        let sending = std::pin::pin!(async {
            loop {
                match self.send_files(job, upload).await {
                    Ok(()) => return Outcome::Sent,
                    Err(OwnerError::Lost(claim)) => return Outcome::Lost(claim.to_string()),
                    Err(OwnerError::Store(error)) => {
                        if let Err(error) = self.failed(error).await {
                            return Outcome::Failed(error);
                        }
                    }
                }
            }
        });
        match select(sending, telling).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right((never, _)) => never,
        }
    }

    /// Sends those files of a job that have not arrived.
    async fn send_files(
        &self,
        job: &mut Job,
        upload: &mut Option<Upload>,
    ) -> Result<(), OwnerError> {
        self.owner.renew().await?;
        while let Some((name, body)) = job.files.front() {
            let present = upload.get_or_insert_with(|| {
                let object = self.remote.object(name);
                Upload::new(&self.remote.place, object, body.clone(), &self.remote.pace)
            });
            present.send_parts(self).await?;
            self.owner.renew().await?;
            present.finish(self).await?;
            *upload = None;
            job.files.pop_front();
        }
        if let Some(sent) = &job.checkpoint
            && let Err(error) = self.remove_old(sent.retention).await
        {
            // The new one is safe; another save may remove what is left now.
            tracing::warn!(
                "cannot remove old checkpoints in {}: {}",
                self.remote.url(),
                plain(&error)
            );
        }
        Ok(())
    }

    /// Removes the checkpoints that do not stay.
    async fn remove_old(&self, retention: Retention) -> object_store::Result<()> {
        let store = &self.remote.place.single;
        let prefix = self.remote.object(CHECKPOINTS);
        let limit = self.remote.pace.limit(0);
        let listed = store.list(Some(&prefix)).try_collect::<Vec<_>>();
        let mut steps = within(limit, listed)
            .await?
            .iter()
            .filter_map(|object| {
                let mut parts = object.location.as_ref().rsplit('/');
                (parts.next() == Some(MANIFEST)).then(|| parse_folder_name(parts.next()?))?
            })
            .collect::<Vec<_>>();
        steps.sort_unstable();
        for step in retention.old(steps) {
            for name in objects_of(&CheckpointName::new(step)) {
                let object = self.remote.object(&name);
                match within(limit, store.delete(&object)).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Says every ten seconds how far a job is that takes long, or why it fails.
    async fn tell<T>(&self, what: &str, folder: Option<PathBuf>, total: u64) -> T {
        let (started, mut seen) = (Instant::now(), 0);
        let mut last = started;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let url = self.remote.url();
            let mut state = self.state();
            if let Some(failing) = &mut state.failing {
                let age = failing.since.elapsed();
                let every = if age < TOLD_EVERY_LATER {
                    TOLD_EVERY
                } else {
                    TOLD_EVERY_LATER
                };
                let is_due = match failing.told {
                    None => age >= TOLD_AFTER,
                    Some(told) => told.elapsed() >= every,
                };
                if is_due {
                    failing.told = Some(Instant::now());
                    let waits = match &folder {
                        Some(folder) => format!("{what} waits in {}", folder.display()),
                        None => format!("{what} waits in memory"),
                    };
                    tracing::warn!(
                        "cannot write to {url} for {} s: {}; {waits}; it is tried again and again",
                        age.as_secs(),
                        failing.cause
                    );
                }
                last = Instant::now();
            } else if last.elapsed() >= TOLD_EVERY {
                let arrived = self.arrived.load(Relaxed);
                let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                let rate = mib(arrived - seen) / last.elapsed().as_secs_f64();
                tracing::info!(
                    "sending {what} to {url}: {:.1} of {:.1} MiB ({rate:.1} MiB/s)",
                    mib(arrived),
                    mib(total)
                );
                (seen, last) = (arrived, Instant::now());
            }
        }
    }
}

impl Persistence for Shared {
    fn failed(&self, error: object_store::Error) -> BoxFuture<'_, object_store::Result<()>> {
        if super::upload::is_local(&error) {
            return std::future::ready(Err(error)).boxed();
        }
        let pause = {
            let mut state = self.state();
            let failing = state.failing.get_or_insert_with(|| Failing {
                since: Instant::now(),
                told: None,
                attempts: 0,
                cause: String::new(),
            });
            failing.cause = plain(&error);
            failing.attempts += 1;
            Duration::from_millis(100) * 2u32.pow(failing.attempts.min(10))
        };
        async move {
            tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
            Ok(())
        }
        .boxed()
    }

    fn succeeded(&self, bytes: u64) {
        self.arrived.fetch_add(bytes, Relaxed);
        let failed = self.state().failing.take();
        if let Some(failed) = failed.filter(|failed| failed.told.is_some()) {
            tracing::warn!(
                "{} takes writes again after {} s",
                self.remote.url(),
                failed.since.elapsed().as_secs()
            );
        }
    }
}
