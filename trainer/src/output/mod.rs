//! Where a run writes: a local folder ([`local`]), or a prefix in an object store with a local
//! spool for the live files and for checkpoints until they are sent ([`store`]).
//!
//! Checkpoints lie in `checkpoints/step-NNNNNNNN`, the best of a run that evaluates in `best`. Locally a checkpoint is written beside its place
//! and renamed; in a store its manifest is put last. Either way it is whole or absent. Nothing is
//! deleted that a manifest of ours does not list.
mod claim;
mod contents;
mod error;
mod fetch;
mod folders;
mod local;
mod names;
mod owner;
mod remote;
mod retention;
mod scratch;
mod sender;
mod sending;
mod spool;
mod store;
mod upload;

use std::path::Path;

use nepa_pipeline::{IoConfig, IoRuntime};

use self::local::LocalOutput;
use self::store::StoreOutput;
use crate::checkpoint::{Checkpoint, CheckpointError, MoreFiles};
use crate::recipe::CheckpointSection;

pub(crate) use contents::{Loaded, Log};
pub(crate) use error::OutputError;
pub(crate) use fetch::{Bring, RunCopy, fetch_checkpoint, fetch_run};
pub(crate) use names::{CheckpointName, EVALS, METRICS, RUN_FILE, is_local, local_path};
pub(crate) use retention::Retention;
pub(crate) use scratch::{Scratch, remove_leftovers};

/// The place where one run writes; held by one process at a time.
#[derive(Debug)]
pub(crate) struct Output {
    place: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Local(LocalOutput),
    Store(Box<StoreOutput>),
}

impl Output {
    /// Opens a path or URL; a local folder is made and locked, a store is not asked yet.
    pub(crate) fn open(
        url: &str,
        io_config: &IoConfig,
        settings: &CheckpointSection,
        runtime: &IoRuntime,
    ) -> Result<Self, OutputError> {
        if is_local(url) {
            let local = LocalOutput::open(local_path(url))?;
            return Ok(Self {
                place: local.folder.display().to_string(),
                kind: Kind::Local(local),
            });
        }
        let store = StoreOutput::open(url, io_config, settings, runtime)?;
        Ok(Self {
            place: store.url().to_owned(),
            kind: Kind::Store(Box::new(store)),
        })
    }

    /// Makes an output in a store this process's own, by force if need be, and opens its spool.
    /// Before this, nothing is written there.
    pub(crate) fn claim(&mut self, by_force: bool) -> Result<(), OutputError> {
        match &mut self.kind {
            Kind::Local(_) => Ok(()),
            Kind::Store(store) => store.claim(by_force),
        }
    }

    /// Whether this process may write here, found out by doing so; then everything is as it was.
    /// For an output that holds no run, or one that is only looked at.
    pub(crate) fn try_writing(mut self) -> Result<(), OutputError> {
        match &mut self.kind {
            Kind::Local(local) => {
                local.remove_if_empty();
                Ok(())
            }
            Kind::Store(store) => store.claim(false),
        }
    }

    /// The local folder of live files: the output itself, or its spool.
    ///
    /// # Panics
    /// If an output in a store was not claimed.
    pub(crate) fn folder(&self) -> &Path {
        match &self.kind {
            Kind::Local(local) => &local.folder,
            Kind::Store(store) => store.folder(),
        }
    }

    /// The output for people, without secrets.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    pub(crate) fn is_in_store(&self) -> bool {
        matches!(self.kind, Kind::Store(_))
    }

    /// An error, if another process has taken the output over.
    pub(crate) fn check(&self) -> Result<(), OutputError> {
        match &self.kind {
            Kind::Local(_) => Ok(()),
            Kind::Store(store) => store.check(),
        }
    }

    /// Whether a run was started here.
    pub(crate) fn holds_run(&self) -> Result<bool, CheckpointError> {
        match &self.kind {
            Kind::Local(local) => local.holds_run(),
            Kind::Store(store) => store.holds_run(),
        }
    }

    /// Marks the output as holding this run.
    pub(crate) fn write_recipe(&self, text: &str) -> Result<(), CheckpointError> {
        match &self.kind {
            Kind::Local(local) => local.write(names::RUN_FILE, text.as_bytes()),
            Kind::Store(store) => store.write_recipe(text),
        }
    }

    /// The recipe of the run that was started here, if it got that far.
    pub(crate) fn read_recipe(&self) -> Result<Option<String>, CheckpointError> {
        match &self.kind {
            Kind::Local(local) => local.read_recipe(),
            Kind::Store(store) => store.read_recipe(),
        }
    }

    /// Writes a small file beside the checkpoints; in a store it appears when its turn comes.
    pub(crate) fn write(&self, name: &str, content: Vec<u8>) -> Result<(), CheckpointError> {
        match &self.kind {
            Kind::Local(local) => local.write(name, &content),
            Kind::Store(store) => {
                store.write(name, content);
                Ok(())
            }
        }
    }

    /// All whole checkpoints, the newest last. Half ones are left out; those that wait for being
    /// sent are among them.
    pub(crate) fn checkpoints(&self) -> Result<Vec<CheckpointName>, CheckpointError> {
        match &self.kind {
            Kind::Local(local) => local.checkpoints(),
            Kind::Store(store) => store.checkpoints(),
        }
    }

    /// Reads and verifies one checkpoint.
    pub(crate) fn load(&self, checkpoint: &CheckpointName) -> Result<Loaded, CheckpointError> {
        match &self.kind {
            Kind::Local(local) => local.load(checkpoint),
            Kind::Store(store) => store.load(checkpoint),
        }
    }

    /// Makes the live logs of an output in a store what they were at a checkpoint, or, for one that
    /// does not have them, what lies in the store. `logs` are pairs of [`Log::name`] and
    /// [`Log::kept_as`].
    pub(crate) fn restore_logs(
        &self,
        more: &MoreFiles,
        logs: &[(&str, &'static str)],
    ) -> Result<(), CheckpointError> {
        match &self.kind {
            Kind::Local(_) => Ok(()),
            Kind::Store(store) => store.restore_logs(more, logs),
        }
    }

    /// Saves a checkpoint whole or not at all, with the logs as they are now. In a store it appears
    /// later. Then those that `retention` lets go are removed.
    pub(crate) fn save(
        &self,
        checkpoint: &Checkpoint,
        more: MoreFiles,
        logs: Vec<Log>,
        retention: Retention,
    ) -> Result<(), CheckpointError> {
        match &self.kind {
            Kind::Local(local) => local.save(checkpoint, &more, retention),
            Kind::Store(store) => store.save(checkpoint, more, logs, retention),
        }
    }

    /// Keeps a checkpoint as the best so far, in `best`, in place of the one before, whatever becomes
    /// of the others. In a store it appears later, before any checkpoint that is saved after it.
    pub(crate) fn save_best(
        &self,
        checkpoint: &Checkpoint,
        more: MoreFiles,
    ) -> Result<(), CheckpointError> {
        match &self.kind {
            Kind::Local(local) => local.save_best(checkpoint, &more),
            Kind::Store(store) => store.save_best(checkpoint, &more),
        }
    }

    /// Sends the best checkpoint of a run that goes on, where an earlier process could not.
    pub(crate) fn send_best_again(&self, best_step: Option<u64>) -> Result<(), CheckpointError> {
        match &self.kind {
            Kind::Local(_) => Ok(()),
            Kind::Store(store) => store.send_best_again(best_step),
        }
    }

    /// Sends a checkpoint that an earlier process could not; the logs are those that it was loaded
    /// with.
    pub(crate) fn send_again(
        &self,
        checkpoint: &CheckpointName,
        logs: Vec<Log>,
        retention: Retention,
    ) -> Result<(), CheckpointError> {
        match &self.kind {
            Kind::Local(_) => Ok(()),
            Kind::Store(store) => store.send_again(checkpoint, logs, retention),
        }
    }

    /// Waits until all is in the store, or `is_over`, which is asked several times a second, and
    /// lets others have the output.
    pub(crate) fn finish(&mut self, is_over: impl FnMut() -> bool) -> Result<(), OutputError> {
        match &mut self.kind {
            Kind::Local(_) => Ok(()),
            Kind::Store(store) => store.finish(is_over),
        }
    }

    /// Removes what a killed process left half written.
    pub(crate) fn clean_up(&self) {
        folders::remove_half_written(self.folder());
    }
}
