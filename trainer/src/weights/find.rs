//! What lies behind a path or URL: a checkpoint, a run, a published folder, or neither, which is
//! said in words. Files are asked for by their names; a folder is listed only to look for the
//! newest checkpoint of a run.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nepa_model::shard_files;
use nepa_pipeline::{Action, IoConfig, IoRuntime};

use super::error::WeightsError;
use super::names::{CONFIG, INDEX, PICKLES, PREPROCESSOR, WEIGHTS};
use super::store::{Look, Store};
use crate::checkpoint::{CheckpointError, MANIFEST, Manifest, io};
use crate::console::progress::{Progress, Unit};
use crate::output::{METRICS, RUN_FILE, Scratch, fetch_checkpoint, is_local, local_path};

/// Entries of a folder that an error names.
const MOST_SHOWN: usize = 8;

/// Weights, on this machine now.
#[derive(Debug)]
pub(super) struct Found {
    /// As it was given, without secrets.
    pub place: String,
    pub folder: PathBuf,
    pub kind: Kind,
    pub scratch: Option<Scratch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A folder with a manifest.
    Checkpoint,
    /// A folder in the published layout.
    Published,
}

/// Finds weights and brings them to this machine.
pub(super) fn find(
    url: &str,
    io_config: &IoConfig,
    runtime: &IoRuntime,
) -> Result<Found, WeightsError> {
    if is_local(url) {
        return find_local(url, io_config, runtime);
    }
    let store = Store::open(url, io_config, runtime)?;
    let place = store.url().to_owned();
    let checkpoint = |folder, scratch| Found {
        place: place.clone(),
        folder,
        kind: Kind::Checkpoint,
        scratch,
    };
    let mut denied = None;
    let mut read = |name: &str| {
        Ok::<_, WeightsError>(match store.read(name)? {
            Look::There(found) => Some(found),
            Look::Absent => None,
            Look::Denied(error) => {
                denied.get_or_insert(error);
                None
            }
        })
    };
    if let Some(manifest) = read(MANIFEST)? {
        let (folder, scratch) = fetch_files(&store, "", &manifest)?;
        return Ok(checkpoint(folder, Some(scratch)));
    }
    if let Some(config) = read(CONFIG)? {
        let scratch = Scratch::new()?;
        let folder = scratch.path().join("weights");
        fetch_published(&store, &config, &folder)?;
        return Ok(Found {
            place,
            folder,
            kind: Kind::Published,
            scratch: Some(scratch),
        });
    }
    let recipe = read(RUN_FILE)?;
    if !store.is_web() {
        // Even without a recipe there may be checkpoints, where it may be looked for them.
        match fetch_checkpoint(url, io_config, runtime) {
            Ok((folder, scratch)) => return Ok(checkpoint(folder, scratch)),
            Err(CheckpointError::NoManifest { .. }) if recipe.is_some() => {
                return Err(WeightsError::Unsaved { place });
            }
            Err(CheckpointError::NoManifest { .. }) => {}
            Err(CheckpointError::Store {
                action: Action::List,
                ..
            }) if recipe.is_some() => {}
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(recipe) = recipe {
        let metrics = read(METRICS)?.unwrap_or_default();
        for step in likely_steps(&recipe, &metrics) {
            let below = format!("checkpoints/step-{step:08}/");
            if let Some(manifest) = read(&format!("{below}{MANIFEST}"))? {
                let (folder, scratch) = fetch_files(&store, &below, &manifest)?;
                return Ok(checkpoint(folder, Some(scratch)));
            }
        }
        return Err(WeightsError::Unlisted { place });
    }
    if let Some(error) = denied {
        return Err(error);
    }
    let hub = url.contains("://huggingface.co/") && !url.contains("/resolve/");
    Err(WeightsError::Neither {
        looked_for: NOTHING,
        there: "none of them is there".to_owned(),
        tip: if hub {
            format!(
                "files of a hub are at {}/resolve/main",
                place.trim_end_matches('/')
            )
        } else {
            TIP.to_owned()
        },
        place,
    })
}

const NOTHING: &str = "neither manifest.json (a checkpoint), checkpoints/ (a run) nor config.json \
                       with model.safetensors (a published folder) was found";
const TIP: &str = "give a folder with weights, such as the --out of a `nepa pretrain`";

/// Steps whose checkpoint is probably the newest, the likeliest first: the last of the metrics, as
/// a store has them of each checkpoint, and the last at which the recipe wants one.
fn likely_steps(recipe: &[u8], metrics: &[u8]) -> Vec<u64> {
    let text = String::from_utf8_lossy(metrics);
    let last = text.lines().rev().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line["step"].as_u64()
    });
    let recipe = String::from_utf8_lossy(recipe);
    let recipe: toml::Table = recipe.parse().unwrap_or_default();
    let number = |section: &str, key: &str| {
        let value = recipe.get(section)?.get(key)?.as_integer()?;
        u64::try_from(value).ok()
    };
    let last = last.or_else(|| number("train", "steps"));
    let every = number("checkpoint", "every_steps").filter(|&every| every > 0);
    let regular = last.zip(every).map(|(last, every)| last / every * every);
    last.into_iter().chain(regular).collect()
}

/// Brings the files of a checkpoint that lie below `prefix` to this machine; its manifest, which
/// makes the folder a checkpoint, last.
fn fetch_files(
    store: &Store,
    prefix: &str,
    text: &[u8],
) -> Result<(PathBuf, Scratch), WeightsError> {
    let scratch = Scratch::new()?;
    let folder = scratch.path().join("checkpoint");
    std::fs::create_dir_all(&folder).map_err(io("create", &folder))?;
    let manifest = Manifest::parse(text, &format!("{}/{prefix}", store.url()))?;
    let progress = Arc::new(Progress::new("fetching checkpoint", None, Unit::Bytes));
    for (name, _) in manifest.known_files() {
        // One that is not there is missed by whoever verifies the folder.
        if let Look::Denied(error) =
            store.fetch(&format!("{prefix}{name}"), &folder.join(name), &progress)?
        {
            return Err(error);
        }
    }
    let path = folder.join(MANIFEST);
    std::fs::write(&path, text).map_err(io("write", &path))?;
    Ok((folder, scratch))
}

fn find_local(url: &str, io_config: &IoConfig, runtime: &IoRuntime) -> Result<Found, WeightsError> {
    let folder = local_path(url);
    let has = |name: &str| folder.join(name).exists();
    let found = |folder, kind| Found {
        place: url.to_owned(),
        folder,
        kind,
        scratch: None,
    };
    if !has(MANIFEST) && has(CONFIG) && (has(WEIGHTS) || has(INDEX)) {
        return Ok(found(folder, Kind::Published));
    }
    if folder.is_file() {
        return Err(neither_local(url, &folder)?);
    }
    match fetch_checkpoint(url, io_config, runtime) {
        Err(CheckpointError::NoManifest { .. }) => Err(neither_local(url, &folder)?),
        checkpoint => Ok(found(checkpoint?.0, Kind::Checkpoint)),
    }
}

/// Why a local folder holds no weights.
fn neither_local(url: &str, folder: &Path) -> Result<WeightsError, WeightsError> {
    let has = |name: &str| folder.join(name).exists();
    if has(CONFIG)
        && let Some(file) = PICKLES.into_iter().find(|name| has(name))
    {
        let place = url.to_owned();
        return Ok(WeightsError::Pickle { place, file });
    }
    let (looked_for, tip) = if has(CONFIG) {
        (NO_WEIGHTS, "copy the weights beside it".to_owned())
    } else if has(WEIGHTS) || has(INDEX) {
        (
            "its weights have no config.json, which says of which architecture they are",
            "copy the config.json of the model beside them".to_owned(),
        )
    } else if has(RUN_FILE) {
        let place = url.to_owned();
        return Ok(WeightsError::Unsaved { place });
    } else {
        (NOTHING, TIP.to_owned())
    };
    let there = if folder.is_dir() {
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(folder).map_err(io("list", folder))? {
            let entry = entry.map_err(io("list", folder))?;
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
        shown(&names)
    } else if folder.is_file() {
        "it is a file: give the folder that it is in".to_owned()
    } else {
        "there is no such folder".to_owned()
    };
    Ok(WeightsError::Neither {
        place: url.to_owned(),
        looked_for,
        there,
        tip,
    })
}

const NO_WEIGHTS: &str = "its config.json has no weights beside it (neither model.safetensors nor \
                          model.safetensors.index.json)";

fn shown(names: &BTreeSet<String>) -> String {
    if names.is_empty() {
        return "it is empty".to_owned();
    }
    let more = names.len().saturating_sub(MOST_SHOWN);
    let shown: Vec<_> = names.iter().take(MOST_SHOWN).map(String::as_str).collect();
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("it has {}{more}", shown.join(", "))
}

/// Brings a published folder to this machine: configuration, weights in one file or several, and
/// what it says about pixels.
fn fetch_published(store: &Store, config: &[u8], folder: &Path) -> Result<(), WeightsError> {
    std::fs::create_dir_all(folder).map_err(io("create", folder))?;
    let write = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, content).map_err(io("write", &path))
    };
    write(CONFIG, config)?;
    let progress = Arc::new(Progress::new("fetching weights", None, Unit::Bytes));
    let fetch = |name: &str| store.fetch(name, &folder.join(name), &progress);
    match fetch(WEIGHTS)? {
        Look::There(()) => {}
        one_file => fetch_shards(store, one_file, &write, &fetch)?,
    }
    // A folder need not have one.
    if let Look::There(text) = store.read(PREPROCESSOR)? {
        write(PREPROCESSOR, &text)?;
    }
    Ok(())
}

/// Writes a file of that name and content.
type Write<'a> = dyn Fn(&str, &[u8]) -> Result<(), CheckpointError> + 'a;

/// Brings weights in several files, as their index names them.
fn fetch_shards(
    store: &Store,
    one_file: Look<()>,
    write: &Write<'_>,
    fetch: &dyn Fn(&str) -> Result<Look<()>, WeightsError>,
) -> Result<(), WeightsError> {
    let Look::There(index) = store.read(INDEX)? else {
        return Err(no_weights(store, one_file)?);
    };
    write(INDEX, &index)?;
    let shards = shard_files(Path::new(INDEX), &index).map_err(|source| WeightsError::Model {
        place: store.url().to_owned(),
        source,
    })?;
    for shard in shards {
        match fetch(&shard)? {
            Look::There(()) => {}
            Look::Denied(error) => return Err(error),
            Look::Absent => {
                let place = store.url().to_owned();
                return Err(WeightsError::NoShard { place, shard });
            }
        }
    }
    Ok(())
}

/// Why a published folder in a store has no weights.
fn no_weights(store: &Store, one_file: Look<()>) -> Result<WeightsError, WeightsError> {
    if let Look::Denied(error) = one_file {
        return Ok(error);
    }
    let place = store.url().to_owned();
    for file in PICKLES {
        if store.has(file)? {
            return Ok(WeightsError::Pickle { place, file });
        }
    }
    Ok(WeightsError::Neither {
        place,
        looked_for: NO_WEIGHTS,
        there: "nor are they there as a pickle".to_owned(),
        tip: "copy the weights beside it".to_owned(),
    })
}

/// A published folder with further files beside it: on this machine as it is, else fetched, those
/// that are there. The second value keeps what was fetched.
pub(crate) fn bring(
    url: &str,
    more: &[&str],
    io_config: &IoConfig,
    runtime: &IoRuntime,
) -> Result<(PathBuf, Option<Scratch>), WeightsError> {
    if is_local(url) {
        return Ok((local_path(url), None));
    }
    let Found {
        folder, scratch, ..
    } = find(url, io_config, runtime)?;
    let store = Store::open(url, io_config, runtime)?;
    let progress = Arc::new(Progress::new("fetching tensors", None, Unit::Bytes));
    for name in more {
        store.fetch(name, &folder.join(name), &progress)?;
    }
    Ok((folder, scratch))
}
