//! Opening a data set: its objects are listed and all their footers read at once, unless an index
//! has both.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use object_store::ObjectStoreExt;

use super::config::Origin;
use super::reading::Readings;
use super::{DatasetWarning, MixtureSource, Shard, footer, index, leave_out, splits};
use crate::store::places::places;
use crate::store::{Action, Io, classify, list, open_url};
use crate::{DatasetError, Place, StoreError};

/// Shards that cannot be read as images, before the first that can, after which no more are tried.
const ODD_SHARDS: usize = 64;

/// Is told how many footers were read, and of how many.
pub type WatchFooters = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Shards, and what was doubtful on the way.
type ReadShards = (Vec<Shard>, Vec<DatasetWarning>);

/// Lists the URLs of one data set and reads all footers, or takes both from its index. Objects
/// without rows are left out.
pub(super) async fn read_shards(
    source: &MixtureSource,
    origin: &Origin,
    io: &Arc<Io>,
    watch: Option<&WatchFooters>,
    handed: Option<Bytes>,
) -> Result<ReadShards, DatasetError> {
    let readings = Readings::new(&source.schema);
    let index = match (handed, &source.index) {
        (Some(handed), _) => Some(handed),
        (None, Some(url)) => Some(index_at(url, io).await?),
        (None, None) => None,
    };
    if let Some(bytes) = index {
        let places = places(&source.urls, &io.config, &io.connector)?;
        let shards = index::open(bytes, origin, places, readings, io).await?;
        if let Some(watch) = watch {
            watch(shards.len() as u64, shards.len() as u64);
        }
        // What lies beside the shards was told when the index was written.
        return Ok((shards, Vec::new()));
    }
    let list::Listed { mut objects, odd } =
        list::list(&source.urls, &io.config, &io.connector).await?;
    if let Some(split) = &source.split {
        let urls = objects
            .iter()
            .map(|object| object.url.as_str())
            .collect::<Vec<_>>();
        let mut chosen = splits::select(&urls, split)?.into_iter();
        objects.retain(|_| chosen.next().unwrap_or(false));
    }
    let (readings, total) = (&readings, objects.len());
    let done = AtomicU64::new(0);
    let footers = futures::stream::iter(objects.clone())
        .map(async |object| {
            let shard = footer::read_shard(object, readings, io).await;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(watch) = watch {
                watch(done, total as u64);
            }
            shard
        })
        .buffered(io.footers.most_at_once());
    let mut read = std::pin::pin!(sound_shards(footers, &objects));
    let shards = loop {
        if let Ok(shards) = tokio::time::timeout(PROGRESS_EVERY, &mut read).await {
            break shards?;
        }
        if watch.is_none() {
            tracing::info!(
                "{} of {} footers read",
                with_commas(done.load(Ordering::Relaxed)),
                with_commas(total as u64)
            );
        }
    };
    if shards.is_empty() {
        let url = objects.first().map(|object| object.url.clone());
        let url = url.unwrap_or_default();
        return Err(DatasetError::NoRows { url });
    }
    let odd = odd.into_iter();
    let odd = odd.map(|(below, odd)| DatasetWarning::OddKeys { below, odd });
    Ok((shards, odd.collect()))
}

/// The bytes of an index.
async fn index_at(url: &str, io: &Io) -> Result<Bytes, StoreError> {
    let place = open_url(url, &io.config)?;
    let read = async { place.store.get(&place.path).await?.bytes().await };
    read.await.map_err(|error| {
        let object = Place {
            object: place.url.clone(),
            ..Place::default()
        };
        classify(&error, Action::Read, &place.location, object)
    })
}

/// The shards behind `footers`, or the first error. One without images ends nothing before it is
/// known how it can be left out.
async fn sound_shards(
    footers: impl Stream<Item = Result<Option<Shard>, DatasetError>>,
    objects: &[list::ListedObject],
) -> Result<Vec<Shard>, DatasetError> {
    let mut footers = std::pin::pin!(footers.enumerate());
    let (mut shards, mut odd) = (Vec::new(), BTreeMap::new());
    while let Some((index, read)) = footers.next().await {
        match read {
            Ok(shard) => shards.extend(shard),
            Err(error @ DatasetError::Schema { .. }) => {
                odd.insert(index, error);
                if shards.is_empty() && odd.len() >= ODD_SHARDS {
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    let Some((first, mut error)) = odd.pop_first() else {
        return Ok(shards);
    };
    if let DatasetError::Schema { leave_out, .. } = &mut error
        && !shards.is_empty()
    {
        let is_odd = |index| index == first || odd.contains_key(&index);
        *leave_out = leave_out::leave_out(objects, first, is_odd);
    }
    Err(error)
}

/// How often the start of a data set says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// `1234567` as `1,234,567`.
fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().collect();
    String::from_utf8_lossy(&groups.join(&b',')).into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, shown) in [
            (0, "0"),
            (999, "999"),
            (14_000, "14,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(super::with_commas(number), shown);
        }
    }
}
