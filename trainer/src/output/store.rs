//! An output in a store. Live files lie in a local spool; checkpoints wait there until the sender's
//! thread has brought them to the store, the manifest last.
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nepa_pipeline::{Action, IoConfig, IoRuntime};

use super::contents::{Loaded, Log};
use super::error::OutputError;
use super::folders::{load_folder, remove_folder, save_in_folder};
use super::names::{BEST, CHECKPOINTS, CheckpointName, RUN_FILE, folder_name};
use super::owner::{OWNER, Owner};
use super::remote::Remote;
use super::retention::Retention;
use super::sender::Sender;
use super::sending::{Job, Sent, Unsent};
use super::spool::Spool;
use super::upload::{Body, within};
use crate::checkpoint::{self, Checkpoint, CheckpointError, MANIFEST, MoreFiles, io};
use crate::recipe::CheckpointSection;
use crate::signals::{OnEnd, on_end};

/// Time for letting others have a remote output at the end.
const RELEASE_WITHIN: Duration = Duration::from_millis(500);

/// The prefix of one run.
#[derive(Debug)]
pub(super) struct StoreOutput {
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

impl StoreOutput {
    /// The store is not asked yet.
    pub(super) fn open(
        url: &str,
        io_config: &IoConfig,
        settings: &CheckpointSection,
        runtime: &IoRuntime,
    ) -> Result<Self, OutputError> {
        let remote = Remote::open(url, io_config, runtime)?;
        let old_after = Duration::from_secs_f64(settings.takeover_s);
        let owner = Owner::new(&remote.place, remote.object(OWNER), old_after);
        Ok(Self {
            owner: Arc::new(owner),
            remote,
            spool_dir: settings.spool_dir.clone(),
            claimed: None,
        })
    }

    /// The prefix, without secrets.
    pub(super) fn url(&self) -> &str {
        self.remote.url()
    }

    /// Makes the output this process's own, by force if need be, and opens its spool.
    pub(super) fn claim(&mut self, by_force: bool) -> Result<(), OutputError> {
        let (remote, owner) = (&self.remote, Arc::clone(&self.owner));
        let patience = remote.place.patience.clone();
        let asking = Arc::clone(&owner);
        let claimed = remote
            .runtime
            .block_on(async move { asking.claim(&patience, by_force).await })
            .map_err(|error| remote.failed(Action::Write, OWNER, &error))?;
        if let Some(other) = claimed {
            return Err(OutputError::InUseBy {
                place: self.url().to_owned(),
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
        let spool = Spool::open(self.spool_dir.as_deref(), self.url(), &owner.run())?;
        let sender =
            Sender::start(remote, &owner).map_err(io("start a thread for", &spool.folder))?;
        self.claimed = Some(Claimed {
            sender,
            spool,
            _on_end: on_end,
        });
        Ok(())
    }

    fn claimed(&self) -> &Claimed {
        let claimed = self.claimed.as_ref();
        claimed.expect("an output in a store is claimed before it is used")
    }

    /// The spool's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.claimed().spool.folder
    }

    /// An error, if another process has taken the output over.
    pub(super) fn check(&self) -> Result<(), OutputError> {
        if !self.owner.is_lost() {
            return Ok(());
        }
        match self.claimed().sender.unsent() {
            Some(unsent) => Err(self.unsent(unsent)),
            // The thread has seen it and is about to say whose it is.
            None => Ok(()),
        }
    }

    fn unsent(&self, unsent: Unsent) -> OutputError {
        let place = self.url().to_owned();
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

    pub(super) fn holds_run(&self) -> Result<bool, CheckpointError> {
        Ok(self.remote.get_if_there(RUN_FILE)?.is_some())
    }

    pub(super) fn write_recipe(&self, text: &str) -> Result<(), CheckpointError> {
        self.remote.put(RUN_FILE, text.as_bytes().to_vec())
    }

    pub(super) fn read_recipe(&self) -> Result<Option<String>, CheckpointError> {
        let text = self.remote.get_if_there(RUN_FILE)?;
        Ok(text.map(|text| String::from_utf8_lossy(&text).into_owned()))
    }

    /// Sends a small file when its turn comes.
    pub(super) fn write(&self, name: &str, content: Vec<u8>) {
        self.claimed().sender.push(Job {
            what: name.to_owned(),
            checkpoint: None,
            files: VecDeque::from([(name.to_owned(), Body::Bytes(content.into()))]),
            folder: None,
        });
    }

    /// All whole checkpoints, the newest last, with those that wait for being sent.
    pub(super) fn checkpoints(&self) -> Result<Vec<CheckpointName>, CheckpointError> {
        let mut found = self.remote.checkpoints()?;
        let sent = found.iter().map(|checkpoint| checkpoint.step).max();
        let waiting = match &self.claimed {
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
        found.sort_by_key(|checkpoint| checkpoint.step);
        Ok(found)
    }

    pub(super) fn load(&self, checkpoint: &CheckpointName) -> Result<Loaded, CheckpointError> {
        if let Some(folder) = &checkpoint.spooled {
            return load_folder(folder);
        }
        let folder = self
            .folder()
            .join(CHECKPOINTS)
            .join(format!(".loading-{}", checkpoint.name));
        remove_folder(&folder);
        let prefix = format!("{CHECKPOINTS}/{}/", checkpoint.name);
        let loaded = self
            .remote
            .fetch_files(&prefix, &folder)
            .and_then(|()| load_folder(&folder));
        remove_folder(&folder);
        loaded
    }

    /// Makes the live logs what they were at a checkpoint, or, for one that does not have them,
    /// what lies in the store.
    pub(super) fn restore_logs(
        &self,
        more: &MoreFiles,
        logs: &[(&str, &'static str)],
    ) -> Result<(), CheckpointError> {
        let has_own = logs.iter().any(|(_, kept_as)| more.contains_key(kept_as));
        for (name, kept_as) in logs {
            let path = self.folder().join(name);
            let content = match more.get(kept_as) {
                Some(kept) => Some(zstd::decode_all(&kept[..]).map_err(io("unpack", &path))?),
                None if has_own => None,
                None => self.remote.get_if_there(name)?,
            };
            match content {
                Some(content) => std::fs::write(&path, content).map_err(io("write", &path))?,
                // What an earlier process has left is not of this checkpoint.
                None => drop(std::fs::remove_file(&path)),
            }
        }
        Ok(())
    }

    /// Saves a checkpoint in the spool and has it sent, with the logs as they are now.
    pub(super) fn save(
        &self,
        checkpoint: &Checkpoint,
        mut more: MoreFiles,
        logs: Vec<Log>,
        retention: Retention,
    ) -> Result<(), CheckpointError> {
        let step = checkpoint.state.step;
        for log in &logs {
            let kept = zstd::encode_all(&log.content[..], 0);
            more.insert(
                log.kept_as,
                kept.map_err(io("compress", Path::new(log.name)))?,
            );
        }
        let (folder, files) = match save_in_folder(self.folder(), checkpoint, &more) {
            Ok(folder) => {
                let files = files_in(&folder)?;
                (Some(folder), files)
            }
            Err(error) => {
                tracing::warn!(
                    "the checkpoint of step {step} cannot be kept on the disk until it is sent, \
                     so it is kept in memory ({:#}); make room, or name another folder with \
                     checkpoint.spool_dir",
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
        self.push(step, folder, files, logs, retention);
        Ok(())
    }

    /// Sends a checkpoint that an earlier process could not.
    pub(super) fn send_again(
        &self,
        checkpoint: &CheckpointName,
        logs: Vec<Log>,
        retention: Retention,
    ) -> Result<(), CheckpointError> {
        if let Some(folder) = &checkpoint.spooled {
            let files = files_in(folder)?;
            self.push(
                checkpoint.step,
                Some(folder.clone()),
                files,
                logs,
                retention,
            );
        }
        Ok(())
    }

    /// Keeps a checkpoint in the spool and has it sent as the best one. It waits in a folder of its
    /// own, so that the next one does not change what is being sent.
    pub(super) fn save_best(
        &self,
        checkpoint: &Checkpoint,
        more: &MoreFiles,
    ) -> Result<(), CheckpointError> {
        let step = checkpoint.state.step;
        let folder = self.claimed().spool.best(step);
        let write = || {
            remove_folder(&folder);
            std::fs::create_dir_all(&folder).map_err(io("create", &folder))?;
            checkpoint::write_folder(&folder, checkpoint, more)?;
            files_in(&folder)
        };
        let (folder, files) = match write() {
            Ok(files) => (Some(folder), files),
            Err(error) => {
                tracing::warn!(
                    "the best checkpoint, of step {step}, cannot be kept on the disk until it is \
                     sent, so it is kept in memory ({:#})",
                    anyhow::Error::from(error)
                );
                remove_folder(&folder);
                let mut files = Vec::new();
                checkpoint::make_files(checkpoint, more, self.folder(), |name, content| {
                    files.push((name.to_owned(), Body::Bytes(content.into())));
                    Ok(())
                })?;
                (None, files)
            }
        };
        self.push_best(step, folder, files);
        Ok(())
    }

    /// Sends the best checkpoint that an earlier process could not; one of a step that this run
    /// has not evaluated is computed again.
    pub(super) fn send_best_again(&self, best_step: Option<u64>) -> Result<(), CheckpointError> {
        let spool = &self.claimed().spool;
        for folder in spool.all_best() {
            match best_step.filter(|step| spool.best(*step) == folder) {
                Some(step) if checkpoint::verify_folder(&folder).is_ok() => {
                    self.push_best(step, Some(folder.clone()), files_in(&folder)?);
                }
                _ => remove_folder(&folder),
            }
        }
        Ok(())
    }

    fn push_best(&self, step: u64, folder: Option<PathBuf>, files: Vec<(String, Body)>) {
        let object = |(file, body)| (format!("{BEST}/{file}"), body);
        self.claimed().sender.push(Job {
            what: format!("the best checkpoint, of step {step},"),
            checkpoint: None,
            files: files.into_iter().map(object).collect(),
            folder,
        });
    }

    /// Sends a checkpoint: its files, then the logs for people, and the manifest, which makes it
    /// whole, last.
    fn push(
        &self,
        step: u64,
        folder: Option<PathBuf>,
        files: Vec<(String, Body)>,
        logs: Vec<Log>,
        retention: Retention,
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
            checkpoint: Some(Sent { step, retention }),
            files,
            folder,
        });
    }

    /// Waits until all is in the store, or `is_over`, and lets others have the output.
    pub(super) fn finish(&mut self, is_over: impl FnMut() -> bool) -> Result<(), OutputError> {
        let Some(Claimed {
            mut sender, spool, ..
        }) = self.claimed.take()
        else {
            return Ok(());
        };
        let sent = sender.finish(is_over);
        let owner = Arc::clone(&self.owner);
        let release = async move {
            within(RELEASE_WITHIN, async {
                let _ = owner.release().await;
                Ok(())
            })
            .await
        };
        let _ = self.remote.runtime.block_on(release);
        if sent.is_ok() {
            // What an earlier process left beside the newest checkpoint is older than what is there
            // now.
            remove_folder(&spool.folder);
        }
        drop(spool);
        sent.map_err(|unsent| self.unsent(unsent))
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
