//! Shards that are there already, from a packing that was interrupted or another one; and what an
//! interrupted one left in a local folder.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use nepa_pipeline::{Action, IoRuntime, Location, Provider, StoreError, StoreUrl};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;

use super::shard_writer::{SHARD_ID, store_error};

/// Read at the end of each shard first; its footer is smaller as a rule.
const TAIL_BYTES: u64 = 64 << 10;
/// Footers read at once.
const MAX_REQUESTS: usize = 16;

/// An object right below a folder that is called like a shard of some splits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExistingShard {
    pub name: String,
    /// What [`super::shard_id`] said when it was written; `None` where it is no whole shard or has
    /// no such entry.
    pub id: Option<String>,
}

/// The shards right below `folder` whose names begin with `{split}-`, sorted by name.
pub(crate) fn existing_shards(
    runtime: &IoRuntime,
    folder: &StoreUrl,
    splits: &[String],
) -> anyhow::Result<Vec<ExistingShard>> {
    let failed = || format!("cannot look for shards in {}", folder.url);
    let listed = listed_shards(runtime, folder, splits).with_context(failed)?;
    let shards = listed.into_iter().map(|(name, object)| {
        let store = Arc::clone(&folder.store);
        async move {
            let id = id_in(store.as_ref(), &object).await?;
            Ok::<_, object_store::Error>(ExistingShard { name, id })
        }
    });
    let shards = futures::stream::iter(shards.collect::<Vec<_>>()).buffered(MAX_REQUESTS);
    runtime
        .block_on(shards.try_collect::<Vec<_>>())
        .map_err(|error| store_error(&error, Action::Read, &folder.url))
        .with_context(failed)
}

/// The same without a look into them: their names and where they are.
pub(super) fn listed_shards(
    runtime: &IoRuntime,
    folder: &StoreUrl,
    splits: &[String],
) -> Result<Vec<(String, ObjectMeta)>, StoreError> {
    let (store, path) = (Arc::clone(&folder.store), folder.path.clone());
    let listed = runtime
        .block_on(async move { store.list(Some(&path)).try_collect::<Vec<_>>().await })
        .map_err(|error| store_error(&error, Action::List, &folder.url))?;
    let is_shard = |name: &&str| {
        let Some(name) = name.strip_suffix(".parquet") else {
            return false;
        };
        let mut rests = splits
            .iter()
            .filter_map(|split| name.strip_prefix(split.as_str()));
        rests.any(|rest| rest.starts_with('-'))
    };
    let shards = listed.into_iter().filter_map(|object| {
        let name = object.location.filename().filter(is_shard)?.to_owned();
        Some((name, object))
    });
    let mut shards = shards.collect::<Vec<_>>();
    shards.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(shards)
}

async fn id_in(
    store: &dyn ObjectStore,
    object: &ObjectMeta,
) -> object_store::Result<Option<String>> {
    let mut length = TAIL_BYTES.min(object.size);
    while length > 0 {
        let tail = object.size - length..object.size;
        let bytes = store.get_range(&object.location, tail).await?;
        let mut reader = ParquetMetaDataReader::new();
        match reader.try_parse_sized(&bytes, object.size) {
            Ok(()) => {
                let metadata = reader.finish().ok();
                let entries =
                    metadata.and_then(|read| read.file_metadata().key_value_metadata().cloned());
                let mut entries = entries.into_iter().flatten();
                return Ok(entries
                    .find(|entry| entry.key == SHARD_ID)
                    .and_then(|entry| entry.value));
            }
            Err(ParquetError::NeedMoreData(needed))
                if (length + 1..=object.size).contains(&(needed as u64)) =>
            {
                length = needed as u64;
            }
            Err(_) => break,
        }
    }
    Ok(None)
}

/// Removes what killed packings left beside the shards `names` of a local folder: files with `#`
/// and a number behind the name, which nobody reads.
pub(crate) fn remove_leftovers(url: &str, names: &BTreeMap<&str, String>) -> anyhow::Result<()> {
    let location = Location::parse(url)?;
    if location.provider != Provider::Local {
        return Ok(());
    }
    let folder = Path::new("/").join(&location.key);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        // It does not exist yet, or what will be written there says more.
        return Ok(());
    };
    let leftovers = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let (name, number) = path.file_name()?.to_str()?.rsplit_once('#')?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        (is_number && names.contains_key(name)).then_some(path)
    });
    for path in leftovers.collect::<Vec<PathBuf>>() {
        std::fs::remove_file(&path).with_context(|| {
            format!(
                "cannot remove {}, which was left half written",
                path.display()
            )
        })?;
    }
    Ok(())
}
