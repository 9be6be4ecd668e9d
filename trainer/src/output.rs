//! Where a run writes: a local folder, or a prefix in an object store with a local spool for the
//! live files and for checkpoints until they are sent.
//!
//! Checkpoints lie in `checkpoints/step-NNNNNNNN`. Locally a checkpoint is written beside and
//! renamed; in a store its manifest is put last. Either way it is whole or absent. Nothing is
//! deleted that a manifest of ours does not list.
mod owner;
mod remote;
mod scratch;
mod sender;
mod spool;
mod upload;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nepa_pipeline::{Action, IoConfig, IoRuntime};

use self::owner::{OWNER, Owner};
use self::remote::Remote;
use self::sender::{Job, Sender, Unsent};
use self::spool::{Spool, remove_folder};
use self::upload::{Body, within};
use crate::checkpoint::{
    self, Checkpoint, CheckpointError, FILES, MANIFEST, MORE_FILES, MoreFiles, io,
};
use crate::recipe::CheckpointSection;
use crate::signals::{OnEnd, on_end};

pub use scratch::{Scratch, remove_leftovers};

const CHECKPOINTS: &str = "checkpoints";
/// Held by the process that writes into a local output.
const LOCK: &str = ".lock";
/// Marks an output that holds a run.
const RUN_FILE: &str = "recipe.toml";
/// One line a step.
pub(crate) const METRICS: &str = "metrics.jsonl";
/// Time for letting others have a remote output at the end.
const RELEASE_WITHIN: Duration = Duration::from_millis(500);

/// The place where one run writes; held by one process at a time.
#[derive(Debug)]
pub struct Output {
    place: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Local {
        folder: PathBuf,
        /// The topmost folder that was made for it.
        made: Option<PathBuf>,
        _lock: File,
    },
    Remote(Box<RemoteRun>),
}

/// An output in a store.
#[derive(Debug)]
struct RemoteRun {
    remote: Remote,
    owner: Arc<Owner>,
    spool_dir: Option<PathBuf>,
    claimed: Option<Claimed>,
}

/// What this process has while the output is its own. Fields are dropped in this order.
#[derive(Debug)]
struct Claimed {
    sender: Sender,
    spool: Spool,
    _on_end: OnEnd,
}

/// A whole checkpoint in an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointName {
    /// Optimiser steps done.
    pub step: u64,
    /// Name of its folder.
    pub name: String,
    /// Its folder, if it waits for being sent.
    spooled: Option<PathBuf>,
}

impl CheckpointName {
    fn new(step: u64) -> Self {
        Self {
            step,
            name: folder_name(step),
            spooled: None,
        }
    }
}

/// A checkpoint that was read, with the files that go with it.
#[derive(Debug)]
pub struct Loaded {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Files that only some have.
    pub more: MoreFiles,
}

/// A log as it is when a checkpoint is made.
#[derive(Debug, Clone)]
pub struct Log {
    /// Its name in the output.
    pub name: &'static str,
    /// Its name in a checkpoint, compressed.
    pub kept_as: &'static str,
    /// What it holds now.
    pub content: Vec<u8>,
    /// A file that begins with that, and goes on doing so.
    pub path: Option<PathBuf>,
}

impl Log {
    fn into_body(self) -> Body {
        match self.path {
            Some(path) => Body::File(path, self.content.len() as u64),
            None => Body::Bytes(self.content.into()),
        }
    }
}

/// An output cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Another process writes to this output.
    #[error("{place} is in use by another process; wait for it, or give another --out")]
    InUse {
        /// The output.
        place: String,
    },
    /// Another process writes to this output in a store.
    #[error(
        "{place} is in use by another process: {by}; its last sign of life came {age_s} s ago. Wait for it, or give another --out. \
         If it is gone for good, --resume --take-over goes on without it"
    )]
    InUseBy {
        /// The output.
        place: String,
        /// Who has it.
        by: String,
        /// Seconds since it renewed its claim.
        age_s: u64,
    },
    /// Another process has taken the output over.
    #[error(
        "{place} was taken over by another process ({by}), as this run had given no sign of life for long (checkpoint.takeover_s). \
         This run ends; since then it has written nothing there"
    )]
    TakenOver {
        /// The output.
        place: String,
        /// Who has it now.
        by: String,
    },
    /// The store did not take what is saved.
    #[error(
        "{what} could not be sent to {place}{}{}", cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default(),
        folder.as_ref().map_or(". It was kept in memory only and is lost; go on from the checkpoint before it with --resume".to_owned(), |folder| format!(
            ". It lies in {}: the same command with --resume on this machine sends it and goes on from there", folder.display()
        ))
    )]
    NotSent {
        /// What is missing there.
        what: String,
        /// The output.
        place: String,
        /// Where it lies.
        folder: Option<PathBuf>,
        /// What the store says.
        cause: Option<String>,
    },
    /// What was to be sent cannot be read any more.
    #[error(
        "what was saved for {place} cannot be sent: {cause}. Go on with --resume from the newest checkpoint that is there"
    )]
    SpoolUnreadable {
        /// The output.
        place: String,
        /// Which file, and why.
        cause: String,
    },
    /// Anything that checkpoints can run into.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

pub(crate) fn is_local(url: &str) -> bool {
    !url.contains("://") || url.starts_with("file://")
}

pub(crate) fn local_path(url: &str) -> PathBuf {
    match url::Url::parse(url) {
        Ok(parsed) if parsed.scheme() == "file" => parsed
            .to_file_path()
            .unwrap_or_else(|()| PathBuf::from(url)),
        _ => PathBuf::from(url),
    }
}

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn parse_folder_name(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?
        .parse()
        .ok()
        .filter(|step| folder_name(*step) == name)
}

impl Output {
    /// Opens a path or URL; a local folder is made and locked, a store is not asked yet.
    pub fn open(
        url: &str,
        io_config: &IoConfig,
        settings: &CheckpointSection,
        runtime: &IoRuntime,
    ) -> Result<Self, OutputError> {
        if is_local(url) {
            let folder = local_path(url);
            let checkpoints = folder.join(CHECKPOINTS);
            let is_new = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
            let made = folder.ancestors().take_while(is_new).last();
            let made = made.map(Path::to_owned);
            std::fs::create_dir_all(&checkpoints).map_err(io("create", &checkpoints))?;
            let path = folder.join(LOCK);
            let lock = File::create(&path).map_err(io("create", &path))?;
            let place = folder.display().to_string();
            if let Err(std::fs::TryLockError::WouldBlock) = lock.try_lock() {
                return Err(OutputError::InUse { place });
            }
            return Ok(Self {
                place,
                kind: Kind::Local {
                    folder,
                    made,
                    _lock: lock,
                },
            });
        }
        let remote = Remote::open(url, io_config, runtime)?;
        let old_after = Duration::from_secs_f64(settings.takeover_s);
        let owner = Owner::new(&remote.place, remote.object(OWNER), old_after);
        Ok(Self {
            place: remote.url().to_owned(),
            kind: Kind::Remote(Box::new(RemoteRun {
                owner: Arc::new(owner),
                remote,
                spool_dir: settings.spool_dir.clone(),
                claimed: None,
            })),
        })
    }

    /// Makes an output in a store this process's own, by force if need be, and opens its spool.
    /// Before this, nothing is written there.
    pub fn claim(&mut self, by_force: bool) -> Result<(), OutputError> {
        let Kind::Remote(run) = &mut self.kind else {
            return Ok(());
        };
        let (remote, owner) = (&run.remote, Arc::clone(&run.owner));
        let patience = remote.place.patience.clone();
        let asking = Arc::clone(&owner);
        let claimed = remote
            .runtime
            .block_on(async move { asking.claim(&patience, by_force).await })
            .map_err(|error| remote.failed(Action::Write, OWNER, &error))?;
        if let Some(other) = claimed {
            return Err(OutputError::InUseBy {
                place: self.place.clone(),
                age_s: other.age().as_secs(),
                by: other.to_string(),
            });
        }
        let runtime = remote.runtime.clone();
        let releasing = Arc::clone(&owner);
        let release = move || {
            let release = async move { releasing.release().await };
            let _ = runtime.block_on(async { tokio::time::timeout(RELEASE_WITHIN, release).await });
        };
        let on_end = on_end(release);
        let spool = Spool::open(run.spool_dir.as_deref(), &self.place, &owner.run())?;
        let sender =
            Sender::start(remote, &owner).map_err(io("start a thread for", &spool.folder))?;
        run.claimed = Some(Claimed {
            sender,
            spool,
            _on_end: on_end,
        });
        Ok(())
    }

    /// Whether this process may write here, found out by doing so; then everything is as it was.
    /// For an output that holds no run, or one that is only looked at.
    pub fn try_writing(mut self) -> Result<(), OutputError> {
        match &self.kind {
            Kind::Local { folder, made, .. } => {
                // Only what is empty goes.
                let _ = std::fs::remove_dir(folder.join(CHECKPOINTS));
                if let Some(made) = made {
                    let _ = std::fs::remove_file(folder.join(LOCK));
                    for folder in folder.ancestors() {
                        if std::fs::remove_dir(folder).is_err() || folder == made {
                            break;
                        }
                    }
                }
                Ok(())
            }
            Kind::Remote(_) => self.claim(false),
        }
    }

    /// The local folder of live files: the output itself, or its spool.
    ///
    /// # Panics
    /// If an output in a store was not claimed.
    pub fn folder(&self) -> &Path {
        match &self.kind {
            Kind::Local { folder, .. } => folder,
            Kind::Remote(run) => &run.claimed().spool.folder,
        }
    }

    /// The output for people, without secrets.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether the output is a store.
    pub fn is_remote(&self) -> bool {
        matches!(self.kind, Kind::Remote(_))
    }

    /// An error, if another process has taken the output over.
    pub fn check(&self) -> Result<(), OutputError> {
        match &self.kind {
            Kind::Remote(run) if run.owner.is_lost() => match run.claimed().sender.unsent() {
                Some(unsent) => Err(self.unsent(unsent)),
                // The thread has seen it and is about to say whose it is.
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn unsent(&self, unsent: Unsent) -> OutputError {
        let place = self.place.clone();
        match unsent {
            Unsent::InTime {
                what,
                folder,
                cause,
            } => OutputError::NotSent {
                what,
                place,
                folder,
                cause,
            },
            Unsent::Lost(by) => OutputError::TakenOver { place, by },
            Unsent::Local(cause) => OutputError::SpoolUnreadable { place, cause },
        }
    }

    /// Whether a run was started here.
    pub fn holds_run(&self) -> Result<bool, CheckpointError> {
        match &self.kind {
            Kind::Local { folder, .. } => {
                Ok(folder.join(RUN_FILE).exists() || !self.checkpoints()?.is_empty())
            }
            Kind::Remote(run) => Ok(run.remote.get_if_there(RUN_FILE)?.is_some()),
        }
    }

    /// Marks the output as holding this run.
    pub fn write_recipe(&self, text: &str) -> Result<(), CheckpointError> {
        match &self.kind {
            Kind::Local { folder, .. } => {
                let path = folder.join(RUN_FILE);
                std::fs::write(&path, text).map_err(io("write", &path))
            }
            Kind::Remote(run) => run.remote.put(RUN_FILE, text.as_bytes().to_vec()),
        }
    }

    /// The recipe of the run that was started here, if it got that far.
    pub fn read_recipe(&self) -> Result<Option<String>, CheckpointError> {
        match &self.kind {
            Kind::Local { folder, .. } => {
                let path = folder.join(RUN_FILE);
                match std::fs::read_to_string(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    other => other.map(Some).map_err(io("read", &path)),
                }
            }
            Kind::Remote(run) => Ok(run
                .remote
                .get_if_there(RUN_FILE)?
                .map(|text| String::from_utf8_lossy(&text).into_owned())),
        }
    }

    /// Writes a small file beside the checkpoints; in a store it appears when its turn comes.
    pub fn write(&self, name: &str, content: Vec<u8>) -> Result<(), CheckpointError> {
        match &self.kind {
            Kind::Local { folder, .. } => {
                let path = folder.join(name);
                std::fs::write(&path, content).map_err(io("write", &path))
            }
            Kind::Remote(run) => {
                run.claimed().sender.push(Job {
                    what: name.to_owned(),
                    step: None,
                    keep: 0,
                    files: VecDeque::from([(name.to_owned(), Body::Bytes(content.into()))]),
                    folder: None,
                });
                Ok(())
            }
        }
    }

    /// All whole checkpoints, the newest last. Half ones are left out; those that wait for being
    /// sent are among them.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointName>, CheckpointError> {
        let mut found = match &self.kind {
            Kind::Local { folder, .. } => local_checkpoints(&folder.join(CHECKPOINTS))?,
            Kind::Remote(run) => {
                let mut found = run.remote.checkpoints()?;
                let sent = found.iter().map(|checkpoint| checkpoint.step).max();
                let waiting = match &run.claimed {
                    Some(claimed) => claimed.spool.waiting()?,
                    None => Vec::new(),
                };
                for checkpoint in waiting {
                    match &checkpoint.spooled {
                        // Sent, or left behind by a run that went on elsewhere.
                        Some(folder) if Some(checkpoint.step) <= sent => remove_folder(folder),
                        _ => found.push(checkpoint),
                    }
                }
                found
            }
        };
        found.sort_by_key(|checkpoint| checkpoint.step);
        Ok(found)
    }

    /// Reads and verifies one checkpoint. The logs of an output in a store become what they were.
    pub fn load(&self, checkpoint: &CheckpointName) -> Result<Loaded, CheckpointError> {
        let read = |folder: &Path| {
            Ok::<_, CheckpointError>(Loaded {
                checkpoint: checkpoint::read_folder(folder)?,
                more: checkpoint::read_more(folder)?,
            })
        };
        match &self.kind {
            Kind::Local { folder, .. } => read(&folder.join(CHECKPOINTS).join(&checkpoint.name)),
            Kind::Remote(run) => {
                if let Some(folder) = &checkpoint.spooled {
                    return read(folder);
                }
                let folder = self
                    .folder()
                    .join(CHECKPOINTS)
                    .join(format!(".loading-{}", checkpoint.name));
                remove_folder(&folder);
                let prefix = format!("{CHECKPOINTS}/{}/", checkpoint.name);
                let loaded = run
                    .remote
                    .fetch_files(&prefix, &folder)
                    .and_then(|()| read(&folder));
                remove_folder(&folder);
                loaded
            }
        }
    }

    /// Makes the live logs of an output in a store what they were at a checkpoint, or, for one that
    /// does not have them, what lies in the store. `logs` are pairs of [`Log::name`] and
    /// [`Log::kept_as`].
    pub fn restore_logs(
        &self,
        more: &MoreFiles,
        logs: &[(&str, &'static str)],
    ) -> Result<(), CheckpointError> {
        let Kind::Remote(run) = &self.kind else {
            return Ok(());
        };
        let has_own = logs.iter().any(|(_, kept_as)| more.contains_key(kept_as));
        for (name, kept_as) in logs {
            let path = self.folder().join(name);
            let content = match more.get(kept_as) {
                Some(kept) => Some(zstd::decode_all(&kept[..]).map_err(io("unpack", &path))?),
                None if has_own => None,
                None => run.remote.get_if_there(name)?,
            };
            match content {
                Some(content) => std::fs::write(&path, content).map_err(io("write", &path))?,
                // What an earlier process has left is not of this checkpoint.
                None => drop(std::fs::remove_file(&path)),
            }
        }
        Ok(())
    }

    /// Saves a checkpoint whole or not at all, with the logs as they are now. In a store it appears
    /// later, and then all but the newest `keep` are removed.
    pub fn save(
        &self,
        checkpoint: &Checkpoint,
        mut more: MoreFiles,
        logs: Vec<Log>,
        keep: usize,
    ) -> Result<(), CheckpointError> {
        let step = checkpoint.state.step;
        let Kind::Remote(run) = &self.kind else {
            let saved = self.save_in_folder(checkpoint, &more);
            saved.map_err(|source| CheckpointError::Save {
                step,
                place: self.place.clone(),
                source: Box::new(source),
            })?;
            self.remove_all_but(keep);
            return Ok(());
        };
        for log in &logs {
            let kept = zstd::encode_all(&log.content[..], 0);
            more.insert(
                log.kept_as,
                kept.map_err(io("compress", Path::new(log.name)))?,
            );
        }
        let (folder, files) = match self.save_in_folder(checkpoint, &more) {
            Ok(folder) => {
                let files = files_in(&folder)?;
                (Some(folder), files)
            }
            Err(error) => {
                tracing::warn!(
                    "the checkpoint of step {step} cannot be kept on the disk until it is sent, so it is kept in memory ({:#}); make room, or \
                     name another folder with checkpoint.spool_dir",
                    anyhow::Error::from(error)
                );
                let mut files = Vec::new();
                checkpoint::make_files(checkpoint, &more, self.folder(), |name, content| {
                    files.push((name.to_owned(), Body::Bytes(content.into())));
                    Ok(())
                })?;
                (None, files)
            }
        };
        run.push(step, folder, files, logs, keep);
        Ok(())
    }

    /// Sends a checkpoint that an earlier process could not; the logs are those that it was loaded
    /// with.
    pub fn send_again(
        &self,
        checkpoint: &CheckpointName,
        logs: Vec<Log>,
        keep: usize,
    ) -> Result<(), CheckpointError> {
        if let (Kind::Remote(run), Some(folder)) = (&self.kind, &checkpoint.spooled) {
            let files = files_in(folder)?;
            run.push(checkpoint.step, Some(folder.clone()), files, logs, keep);
        }
        Ok(())
    }

    /// Waits until all is in the store, or `is_over`, which is asked several times a second, and
    /// lets others have the output.
    pub fn finish(&mut self, is_over: impl FnMut() -> bool) -> Result<(), OutputError> {
        let Kind::Remote(run) = &mut self.kind else {
            return Ok(());
        };
        let Some(Claimed {
            mut sender, spool, ..
        }) = run.claimed.take()
        else {
            return Ok(());
        };
        let sent = sender.finish(is_over);
        let owner = Arc::clone(&run.owner);
        let release = async move {
            within(RELEASE_WITHIN, async {
                let _ = owner.release().await;
                Ok(())
            })
            .await
        };
        let _ = run.remote.runtime.block_on(release);
        if sent.is_ok() {
            // What an earlier process left beside the newest checkpoint is older than what is there
            // now.
            remove_folder(&spool.folder);
        }
        drop(spool);
        sent.map_err(|unsent| self.unsent(unsent))
    }

    fn remove_all_but(&self, keep: usize) {
        let checkpoints = match self.checkpoints() {
            Ok(checkpoints) => checkpoints,
            Err(error) => {
                // The new one is safe; another save may remove what is left now.
                let error = anyhow::Error::from(error);
                return tracing::warn!("cannot remove old checkpoints: {error:#}");
            }
        };
        for old in &checkpoints[..checkpoints.len().saturating_sub(keep)] {
            remove_checkpoint_files(&self.folder().join(CHECKPOINTS).join(&old.name));
        }
    }

    /// Writes a checkpoint into the folder of live files, whole or not at all.
    fn save_in_folder(
        &self,
        checkpoint: &Checkpoint,
        more: &MoreFiles,
    ) -> Result<PathBuf, CheckpointError> {
        let folder = self.folder().join(CHECKPOINTS);
        let name = folder_name(checkpoint.state.step);
        let temporary = folder.join(format!(".saving-{name}"));
        let write = || {
            remove_folder(&temporary);
            std::fs::create_dir_all(&temporary).map_err(io("create", &temporary))?;
            checkpoint::write_folder(&temporary, checkpoint, more)?;
            let target = folder.join(&name);
            if target.exists() {
                set_aside(&target)?;
            }
            std::fs::rename(&temporary, &target).map_err(io("rename", &temporary))?;
            File::open(&folder)
                .and_then(|file| file.sync_all())
                .map_err(io("sync", &folder))?;
            Ok(target)
        };
        let written = write();
        remove_folder(&temporary);
        written
    }

    /// Removes what a killed process left half written.
    pub fn clean_up(&self) {
        let Ok(entries) = std::fs::read_dir(self.folder().join(CHECKPOINTS)) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(".saving-step-") || name.starts_with(".loading-step-") {
                remove_checkpoint_files(&entry.path());
            }
        }
    }
}

impl RemoteRun {
    fn claimed(&self) -> &Claimed {
        let claimed = self.claimed.as_ref();
        claimed.expect("an output in a store is claimed before it is used")
    }

    /// Sends a checkpoint: its files, then the logs for people, and the manifest, which makes it
    /// whole, last.
    fn push(
        &self,
        step: u64,
        folder: Option<PathBuf>,
        files: Vec<(String, Body)>,
        logs: Vec<Log>,
        keep: usize,
    ) {
        let name = folder_name(step);
        let object = |(file, body)| (format!("{CHECKPOINTS}/{name}/{file}"), body);
        let mut files = files.into_iter().map(object).collect::<VecDeque<_>>();
        let manifest = files.pop_back();
        files.extend(
            logs.into_iter()
                .map(|log| (log.name.to_owned(), log.into_body())),
        );
        files.extend(manifest);
        self.claimed().sender.push(Job {
            what: format!("the checkpoint of step {step}"),
            step: Some(step),
            keep,
            files,
            folder,
        });
    }
}

/// The files of a checkpoint's folder, the manifest last.
fn files_in(folder: &Path) -> Result<Vec<(String, Body)>, CheckpointError> {
    let manifest = checkpoint::read_manifest(folder)?;
    let length = |file: &str| {
        let path = folder.join(file);
        let length = std::fs::metadata(&path).map_err(io("read", &path))?.len();
        Ok((file.to_owned(), Body::File(path, length)))
    };
    let files = manifest.known_files().map(|(file, _)| file);
    files.chain([MANIFEST]).map(length).collect()
}

/// Finds a checkpoint behind a path or URL (of a checkpoint, or of a run, whose newest is taken)
/// and brings it to a local folder; the second value keeps a downloaded one alive. Used by
/// evaluation and export.
pub fn fetch_checkpoint(
    url: &str,
    io_config: &IoConfig,
    runtime: &IoRuntime,
) -> Result<(PathBuf, Option<Scratch>), CheckpointError> {
    if is_local(url) {
        let folder = local_path(url);
        if folder.join(MANIFEST).exists() {
            return Ok((folder, None));
        }
        let checkpoints = folder.join(CHECKPOINTS);
        let newest = local_checkpoints(&checkpoints)?
            .into_iter()
            .max_by_key(|checkpoint| checkpoint.step);
        let newest = newest.ok_or(CheckpointError::NoManifest {
            place: url.to_owned(),
        })?;
        return Ok((checkpoints.join(newest.name), None));
    }
    let (remote, scratch) = (Remote::open(url, io_config, runtime)?, Scratch::new()?);
    let folder = scratch.path().join("checkpoint");
    if remote.get_if_there(MANIFEST)?.is_some() {
        // The checkpoint itself was named: its files lie directly under the prefix.
        remote.fetch_files("", &folder)?;
    } else {
        let newest = remote
            .checkpoints()?
            .into_iter()
            .max_by_key(|checkpoint| checkpoint.step);
        let newest = newest.ok_or_else(|| CheckpointError::NoManifest {
            place: remote.url().to_owned(),
        })?;
        remote.fetch_files(&format!("{CHECKPOINTS}/{}/", newest.name), &folder)?;
    }
    Ok((folder, Some(scratch)))
}

/// A run as far as it has come, on the local disk: for reading only, so a run that still goes on
/// may be looked at.
#[derive(Debug)]
pub struct RunCopy {
    /// The recipe as it was run.
    pub recipe: String,
    /// Content of `metrics.jsonl`; empty before the first step, and of a run in a store before its
    /// first checkpoint.
    pub metrics: String,
    /// Steps of all whole checkpoints, the newest last.
    pub steps: Vec<u64>,
    /// Steps and folders of those that were asked for, the newest last.
    pub checkpoints: Vec<(u64, PathBuf)>,
    _scratch: Option<Scratch>,
}

/// Which checkpoints of a run are brought to the local disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bring {
    /// None: their steps are enough.
    None,
    /// The newest.
    Newest,
    /// All.
    All,
}

/// Finds a run behind a path or URL and brings what a report needs to the local disk.
pub fn fetch_run(
    url: &str,
    bring: Bring,
    io_config: &IoConfig,
    runtime: &IoRuntime,
) -> Result<RunCopy, CheckpointError> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let if_there = |path: PathBuf| match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(io("read", &path)),
    };
    let no_run = || CheckpointError::NoRun {
        place: url.to_owned(),
    };
    let mut checkpoints;
    let (recipe, metrics, folder);
    let mut from_store = None;
    if is_local(url) {
        let run = local_path(url);
        recipe = if_there(run.join(RUN_FILE))?.ok_or_else(no_run)?;
        metrics = if_there(run.join(METRICS))?;
        folder = run.join(CHECKPOINTS);
        checkpoints = local_checkpoints(&folder)?;
    } else {
        let (remote, temporary) = (Remote::open(url, io_config, runtime)?, Scratch::new()?);
        recipe = remote.get_if_there(RUN_FILE)?.ok_or_else(no_run)?;
        metrics = remote.get_if_there(METRICS)?;
        folder = temporary.path().to_owned();
        checkpoints = remote.checkpoints()?;
        from_store = Some((remote, temporary));
    }
    checkpoints.sort_by_key(|checkpoint| checkpoint.step);
    let steps = checkpoints.iter().map(|checkpoint| checkpoint.step);
    let steps = steps.collect();
    let brought = match bring {
        Bring::None => checkpoints.len(),
        Bring::Newest => checkpoints.len().saturating_sub(1),
        Bring::All => 0,
    };
    let brought = checkpoints.split_off(brought);
    if let Some((remote, _)) = &from_store {
        for checkpoint in &brought {
            let prefix = format!("{CHECKPOINTS}/{}/", checkpoint.name);
            remote.fetch_files(&prefix, &folder.join(&checkpoint.name))?;
        }
    }
    let brought = brought
        .into_iter()
        .map(|checkpoint| (checkpoint.step, folder.join(checkpoint.name)));
    Ok(RunCopy {
        recipe: text(recipe),
        metrics: text(metrics.unwrap_or_default()),
        steps,
        checkpoints: brought.collect(),
        _scratch: from_store.map(|(_, scratch)| scratch),
    })
}

fn local_checkpoints(folder: &Path) -> Result<Vec<CheckpointName>, CheckpointError> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(io("list", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(io("list", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(step) = parse_folder_name(&name) else {
            continue;
        };
        let is_whole = checkpoint::read_manifest(&entry.path()).is_ok_and(|manifest| {
            manifest.files.iter().all(|(file, expected)| {
                std::fs::metadata(entry.path().join(file))
                    .is_ok_and(|metadata| metadata.len() == expected.bytes)
            })
        });
        if is_whole {
            found.push(CheckpointName::new(step));
        } else {
            tracing::warn!(
                "ignoring {}: it is no whole checkpoint",
                entry.path().display()
            );
        }
    }
    Ok(found)
}

/// Removes the files that a checkpoint has, the manifest first, and the folder if nothing else is
/// in it.
fn remove_checkpoint_files(folder: &Path) {
    for file in [MANIFEST].into_iter().chain(FILES).chain(MORE_FILES) {
        let _ = std::fs::remove_file(folder.join(file));
    }
    if folder.exists() && std::fs::remove_dir(folder).is_err() {
        tracing::warn!(
            "{} holds other files than a checkpoint's; it stays",
            folder.display()
        );
    }
}

/// Makes room for a checkpoint where a damaged one of the same step lies, without deleting that.
fn set_aside(target: &Path) -> Result<(), CheckpointError> {
    let name = target
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let free = (1..=u32::MAX)
        .map(|n| target.with_file_name(format!("replaced-{n}-{name}")))
        .find(|path| !path.exists());
    let aside = free.expect("one of four billion names is free");
    tracing::warn!(
        "{} was there already; it is kept as {}",
        target.display(),
        aside.display()
    );
    std::fs::rename(target, aside).map_err(io("rename", target))
}
