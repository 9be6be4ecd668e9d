//! Whose turn it is to write into a remote output: an object `owner.json`, which only conditional
//! requests change. Its owner renews it; who finds it old takes it over, and the former owner,
//! should it wake, sees that before it writes anything.
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nepa_pipeline::{Patience, StoreUrl};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions, UpdateVersion};

use super::claim::{Claim, unix_s};
use super::upload::within;

/// The object.
pub(super) const OWNER: &str = "owner.json";
/// Time for one request; they are small.
const LIMIT: Duration = Duration::from_secs(30);
/// A renewal that is younger is good enough for the next write.
const FRESH: Duration = Duration::from_secs(1);
/// How often it is looked whether another process has renewed its claim, and how often that is
/// told.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Renewals in the time after which a claim is old.
const RENEWALS: u32 = 6;

/// What a claim ran into.
#[derive(Debug)]
pub(super) enum OwnerError {
    /// Somebody else has it now.
    Lost(Claim),
    /// The store does not do what it is asked for.
    Store(object_store::Error),
}

impl From<object_store::Error> for OwnerError {
    fn from(error: object_store::Error) -> Self {
        Self::Store(error)
    }
}

/// The state of a claim that another process has.
enum Others {
    /// It lives.
    Alive(Claim),
    /// It may be gone; that is known after this time.
    Silent(Claim, Duration),
}

/// The claim of this process.
#[derive(Debug)]
pub(super) struct Owner {
    place: StoreUrl,
    path: Path,
    /// A claim that was not renewed for so long may be taken over.
    old_after: Duration,
    /// Whether the store heeds the conditions of requests.
    is_conditional: AtomicBool,
    /// One request at a time.
    turn: tokio::sync::Mutex<()>,
    held: Mutex<Held>,
    lost: AtomicBool,
}

#[derive(Debug, Clone)]
struct Held {
    claim: Claim,
    version: UpdateVersion,
    renewed: Option<Instant>,
}

impl Owner {
    pub(super) fn new(place: &StoreUrl, path: Path, old_after: Duration) -> Self {
        Self {
            place: place.clone(),
            path,
            old_after,
            is_conditional: AtomicBool::new(true),
            turn: tokio::sync::Mutex::new(()),
            held: Mutex::new(Held {
                claim: Claim::new(),
                version: no_version(),
                renewed: None,
            }),
            lost: AtomicBool::new(false),
        }
    }

    /// The run that the output holds.
    pub(super) fn run(&self) -> String {
        self.held().claim.run
    }

    /// Whether another process has been seen to own the output.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(SeqCst)
    }

    /// Time from one renewal to the next.
    pub(super) fn renew_every(&self) -> Duration {
        self.old_after / RENEWALS
    }

    fn held(&self) -> Held {
        let held = self.held.lock();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_held(&self, claim: Claim, version: UpdateVersion) {
        let renewed = Some(Instant::now());
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Held {
            claim,
            version,
            renewed,
        };
    }

    /// Gets the output, and waits for that if its owner may be gone; or says whose it is.
    /// `by_force` takes it from whoever has it.
    pub(super) async fn claim(
        &self,
        patience: &Patience,
        by_force: bool,
    ) -> object_store::Result<Option<Claim>> {
        let (mut seen, mut told) = (None, None::<Instant>);
        let mut attempts = patience.attempts();
        loop {
            match attempts.run(self.try_claim(by_force, &mut seen)).await {
                Ok(None) => return Ok(None),
                Ok(Some(Others::Alive(claim))) => return Ok(Some(claim)),
                Ok(Some(Others::Silent(claim, left))) => {
                    attempts.progress();
                    if !left.is_zero() && told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
                        told = Some(Instant::now());
                        tracing::warn!(
                            "{} was left by {claim} without a word, {} s ago; if that gives no \
                             sign of life, this run takes over in {} s (checkpoint.takeover_s; \
                             --take-over: now)",
                            self.place.url,
                            claim.age().as_secs(),
                            left.as_secs()
                        );
                    }
                    tokio::time::sleep(left.min(LOOK_EVERY)).await;
                }
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    /// Tries to get the output: `None` if that was done. `seen` is what the last try found.
    async fn try_claim(
        &self,
        by_force: bool,
        seen: &mut Option<(Claim, Instant)>,
    ) -> object_store::Result<Option<Others>> {
        let _turn = self.turn.lock().await;
        let now = unix_s();
        let ours = Claim {
            since_unix_s: now,
            renewed_unix_s: now,
            ..self.held().claim
        };
        let Some((theirs, version)) = self.read().await? else {
            return match self.put(&ours, PutMode::Create).await {
                Ok(_) => self.check_conditions().await.map(|()| None),
                // Somebody was faster; the next try sees who.
                Err(object_store::Error::AlreadyExists { .. }) => {
                    Ok(Some(Others::Silent(ours, Duration::ZERO)))
                }
                Err(error) => Err(error),
            };
        };
        if theirs.id == ours.id {
            // An answer to this process was lost.
            self.set_held(theirs, version);
            return self.check_conditions().await.map(|()| None);
        }
        let is_free = theirs.released || theirs.is_dead() || theirs.age() >= self.old_after;
        if !(is_free || by_force) {
            // The clocks of two hosts may differ: what counts is whether it changes.
            let (before, since) = seen.get_or_insert_with(|| (theirs.clone(), Instant::now()));
            if theirs.is_of_this_machine() || *before != theirs {
                return Ok(Some(Others::Alive(theirs)));
            }
            let silent = since.elapsed().max(theirs.age());
            if silent < self.old_after {
                let left = self.old_after.saturating_sub(silent);
                return Ok(Some(Others::Silent(theirs, left)));
            }
        }
        let ours = Claim {
            run: theirs.run,
            ..ours
        };
        match self.put(&ours, PutMode::Update(version)).await {
            Ok(_) => self.check_conditions().await.map(|()| None),
            Err(object_store::Error::Precondition { .. }) => {
                Ok(Some(Others::Silent(ours, Duration::ZERO)))
            }
            Err(error) => Err(error),
        }
    }

    /// Sees whether the store heeds conditions, now that the object is there.
    async fn check_conditions(&self) -> object_store::Result<()> {
        if !self.is_conditional.load(SeqCst) {
            return Ok(());
        }
        match self.put(&self.held().claim, PutMode::Create).await {
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(()),
            Ok(_) => {
                self.warn_unconditional();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn warn_unconditional(&self) {
        if self.is_conditional.swap(false, SeqCst) {
            tracing::warn!(
                "{} has no conditional writes (If-Match, If-None-Match): two runs that write into \
                 it at the same moment may not notice each other",
                self.place.url
            );
        }
    }

    /// Shows that this process lives, and proves that nobody else has taken the output: before each
    /// write, and every now and then.
    pub(super) async fn renew(&self) -> Result<(), OwnerError> {
        let _turn = self.turn.lock().await;
        let held = self.held();
        if held
            .renewed
            .is_some_and(|renewed| renewed.elapsed() < FRESH)
            && !self.is_lost()
        {
            return Ok(());
        }
        self.update(Claim {
            renewed_unix_s: unix_s(),
            ..held.claim
        })
        .await
    }

    /// Lets others have the output at once.
    pub(super) async fn release(&self) -> Result<(), OwnerError> {
        let _turn = self.turn.lock().await;
        self.update(Claim {
            released: true,
            ..self.held().claim
        })
        .await
    }

    async fn update(&self, claim: Claim) -> Result<(), OwnerError> {
        if self.is_conditional.load(SeqCst) {
            let mode = PutMode::Update(self.held().version);
            match self.put(&claim, mode).await {
                Ok(_) => return Ok(()),
                Err(
                    object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. },
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Somebody has changed it, or it was this process and the answer was lost; or there are no
        // conditions.
        let mode = match self.read().await? {
            Some((theirs, _)) if theirs.id != claim.id => {
                self.lost.store(true, SeqCst);
                return Err(OwnerError::Lost(theirs));
            }
            Some((_, version)) => PutMode::Update(version),
            None => PutMode::Create,
        };
        self.put(&claim, mode).await?;
        Ok(())
    }

    /// Writes a claim and remembers it.
    async fn put(&self, claim: &Claim, mode: PutMode) -> object_store::Result<UpdateVersion> {
        let mut text = serde_json::to_vec_pretty(claim).expect("a claim is plain data");
        text.push(b'\n');
        let put = async |mode: PutMode| {
            let options = PutOptions::from(mode);
            let put = self
                .place
                .single
                .put_opts(&self.path, text.clone().into(), options);
            within(LIMIT, put).await
        };
        let mode = if self.is_conditional.load(SeqCst) {
            mode
        } else {
            PutMode::Overwrite
        };
        let done = match put(mode).await {
            Err(
                object_store::Error::NotImplemented { .. }
                | object_store::Error::NotSupported { .. },
            ) => {
                self.warn_unconditional();
                put(PutMode::Overwrite).await?
            }
            other => other?,
        };
        let version = UpdateVersion {
            e_tag: done.e_tag,
            version: done.version,
        };
        self.set_held(claim.clone(), version.clone());
        Ok(version)
    }

    async fn read(&self) -> object_store::Result<Option<(Claim, UpdateVersion)>> {
        let get = async {
            let got = self.place.single.get(&self.path).await?;
            let version = UpdateVersion {
                e_tag: got.meta.e_tag.clone(),
                version: got.meta.version.clone(),
            };
            Ok((got.bytes().await?, version))
        };
        match within(LIMIT, get).await {
            Ok((text, version)) => {
                // Of a later version of this program, or damaged: nobody is known to have it.
                let claim = serde_json::from_slice(&text).unwrap_or_else(|_| Claim {
                    released: true,
                    ..Claim::new()
                });
                Ok(Some((claim, version)))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn no_version() -> UpdateVersion {
    UpdateVersion {
        e_tag: None,
        version: None,
    }
}
