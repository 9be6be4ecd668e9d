//! Names of a checkpoint's files.
use std::collections::BTreeMap;

/// Version of the format, in `manifest.json` and `state.json`.
pub(super) const VERSION: u32 = 1;
/// The file that makes a checkpoint whole.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Files that the manifest lists, in the order in which they are written.
pub(crate) const FILES: [&str; 5] = [
    "config.json",
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "state.json",
];
/// Files that a checkpoint has beside them, where there is something to say: the shards of the data
/// set, and the logs as they were, where the output is a store.
pub(crate) const MORE_FILES: [&str; 5] = [
    "dataset.json",
    "metrics.jsonl.zst",
    "evals.jsonl.zst",
    "events.zst",
    "bad_samples.jsonl.zst",
];

/// Files that go with a checkpoint, by their names in [`MORE_FILES`].
pub(crate) type MoreFiles = BTreeMap<&'static str, Vec<u8>>;
