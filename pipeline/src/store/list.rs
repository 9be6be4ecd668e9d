//! From URLs, prefixes and globs to the sorted list of Parquet objects.
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, path::Path};

use super::delta::{DeltaProblem, LogPlan, Replay};
use super::listing::{Entry, Listing};
use super::names::{Pattern, is_hidden, is_parquet};
use super::places::{UrlPlace, places};
use super::tables::{
    DELTA_LOG, ICEBERG_METADATA, TableFormat, TableProblem, is_iceberg_metadata, table_of, tables,
};
use super::walk::walk;
use super::{CountingConnector, Location, OddKeys, Patience, Provider, Stores, classify};
use crate::Place;
use crate::store::{Action, Found};
use crate::{IoConfig, StoreError};

/// What URLs name.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// The Parquet objects, sorted by URL, each once.
    pub objects: Vec<ListedObject>,
    /// What lies beside them and cannot be named, with the URL that was listed.
    pub odd: Vec<(String, OddKeys)>,
}

/// One object of a data set.
#[derive(Debug, Clone)]
pub(crate) struct ListedObject {
    /// Its store; one for each bucket, so that connections are reused. Without repetitions.
    pub single: Arc<dyn ObjectStore>,
    /// How long the store is waited for.
    pub patience: Patience,
    /// Where it comes from, for messages.
    pub location: Arc<Location>,
    /// Its path in the store.
    pub path: Path,
    /// Size in bytes.
    pub size: u64,
    /// URL for people.
    pub url: String,
}

impl ListedObject {
    /// Whether a URL names this object alone, not a folder or a glob.
    pub(crate) fn is_named(&self) -> bool {
        self.location.display() == self.url
    }
}

/// Lists what `urls` name. Web URLs that differ in their query are different objects, unless only
/// their signatures differ.
pub(crate) async fn list(
    urls: &[String],
    io: &IoConfig,
    connector: &CountingConnector,
) -> Result<Listed, StoreError> {
    let mut listed = Listed::default();
    for UrlPlace { stores, location } in places(urls, io, connector)? {
        let lister = Lister {
            stores,
            location,
            connector,
        };
        let found = lister.find().await?;
        listed.objects.extend(found.objects);
        if found.odd.count > 0 {
            listed.odd.push((lister.location.display(), found.odd));
        }
    }
    listed.objects = sorted(listed.objects);
    Ok(listed)
}

/// An object that a URL names and that is known already, by its key.
pub(crate) fn known_object(
    place: &UrlPlace,
    key: &str,
    size: u64,
) -> Result<ListedObject, StoreError> {
    Ok(ListedObject {
        single: Arc::clone(&place.stores.single),
        patience: place.stores.patience.clone(),
        location: Arc::clone(&place.location),
        path: place.location.path_of(key)?,
        size,
        url: place.location.display_key(key),
    })
}

/// By URL, each object once.
fn sorted(mut objects: Vec<ListedObject>) -> Vec<ListedObject> {
    objects.sort_by(|a, b| a.url.cmp(&b.url));
    let mut seen = HashSet::new();
    objects.retain(|object| seen.insert((object.location.place_key(), object.path.clone())));
    objects
}

/// What one URL names.
#[derive(Default)]
struct Named {
    objects: Vec<ListedObject>,
    odd: OddKeys,
}

struct Lister<'a> {
    stores: Stores,
    location: Arc<Location>,
    connector: &'a CountingConnector,
}

/// While a listing lasts, the log says so this often.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Objects of a log that are read at once.
const LOG_READS: usize = 16;

impl Lister<'_> {
    async fn find(&self) -> Result<Named, StoreError> {
        // What exists as it stands goes before what a glob may mean.
        if let Some(plain) = self.location.with_plain_brackets() {
            let plain = Lister {
                stores: self.stores.clone(),
                location: Arc::new(plain),
                connector: self.connector,
            };
            let named = if plain.location.is_glob() {
                match plain.glob().await {
                    Err(StoreError::NoMatch { .. }) => None,
                    named => Some(named?),
                }
            } else {
                plain.exact().await?
            };
            if let Some(named) = named {
                return Ok(named);
            }
        }
        if self.location.is_glob() {
            self.glob().await
        } else {
            self.prefix().await
        }
    }

    /// What a key names that holds brackets or braces, if there is such an object or folder.
    async fn exact(&self) -> Result<Option<Named>, StoreError> {
        let path = self.location.store_path()?;
        if is_parquet(&self.location.key) {
            return match self.head(&path).await {
                Ok(object) => Ok(Some(one(object))),
                // Whoever may not list gets this for an object that is not there.
                Err(StoreError::NotFound { .. } | StoreError::Denied { .. }) => Ok(None),
                Err(error) => Err(error),
            };
        }
        if self.first_names(&path).await?.is_empty() {
            return Ok(None);
        }
        self.prefix().await.map(Some)
    }

    /// The object or all objects below the prefix.
    async fn prefix(&self) -> Result<Named, StoreError> {
        let path = self.location.store_path()?;
        let is_folder = self.location.key.is_empty() || self.location.key.ends_with('/');
        if self.location.provider == Provider::Http {
            return Ok(one(self.web_object(path).await?));
        }
        let named_parquet = is_parquet(path.as_ref());
        if named_parquet && !is_folder {
            match self.head(&path).await {
                // Spark and others write folders that are named like a file.
                Err(StoreError::NotFound { .. }) => {}
                other => return Ok(one(other?)),
            }
        }
        let enters = |name: &str| !is_hidden(name) || name == DELTA_LOG || name == "_sidecars";
        let listing = self.list(&path, false, enters).await?;
        if listing.entries.is_empty() && !is_folder {
            let object = self.head(&path).await;
            if named_parquet || !matches!(object, Err(StoreError::NotFound { .. })) {
                return Ok(one(object?));
            }
        }
        let mut found = tables(&path, &listing);
        if let Some((root, format)) = self.table_around(path.as_ref()).await? {
            found.insert(root, format);
        }
        let current = self.current_files(&found, &listing, &path).await?;
        let is_shard = |entry: &&Entry| match table_of(&current, &entry.path) {
            Some((_, files)) => files.contains(&entry.path),
            None => is_shard(&entry.path, &path),
        };
        let shards = listing.entries.iter().filter(is_shard);
        let shards = shards.collect::<Vec<_>>();
        if shards.is_empty() {
            return Err(StoreError::EmptyPrefix {
                found: self.found(&listing, &path),
                url: self.location.display(),
                unreadable: listing.odd,
            });
        }
        if let Some((root, format)) = shards
            .iter()
            .find_map(|shard| table_of(&found, &shard.path))
            && *format != TableFormat::Delta
        {
            return Err(self.table(root, *format, TableProblem::Unread(*format)));
        }
        let objects = shards.into_iter();
        let objects = objects.map(|entry| self.object(entry.path.clone(), entry.size));
        Ok(Named {
            objects: objects.collect(),
            odd: listing.odd,
        })
    }

    async fn glob(&self) -> Result<Named, StoreError> {
        let url = self.location.display();
        let pattern = Pattern::new(self.location.glob_pattern());
        let pattern = Arc::new(pattern.map_err(|source| StoreError::BadGlob {
            url: url.clone(),
            source,
        })?);
        let path = self.location.path_of(self.location.glob_folder())?;
        let names = Arc::clone(&pattern);
        let listing = self
            .list(&path, pattern.is_flat(), move |name| names.may_hold(name))
            .await?;
        let below = path.as_ref().len() + usize::from(!path.is_root());
        let matches = listing
            .entries
            .iter()
            .filter(|entry| pattern.matches(&entry.path.as_ref()[below..]))
            .collect::<Vec<_>>();
        if matches.is_empty() {
            return Err(StoreError::NoMatch {
                found: self.found(&listing, &path),
                url,
            });
        }
        let mut found = tables(&path, &listing);
        if let Some((root, format)) = self.table_around(path.as_ref()).await? {
            found.insert(root, format);
        }
        if let Some((root, format)) = matches
            .iter()
            .find_map(|entry| table_of(&found, &entry.path))
        {
            let problem = match format {
                TableFormat::Delta => TableProblem::Glob,
                other => TableProblem::Unread(*other),
            };
            return Err(self.table(root, *format, problem));
        }
        let objects = matches.into_iter();
        let objects = objects.map(|entry| self.object(entry.path.clone(), entry.size));
        Ok(Named {
            objects: objects.collect(),
            odd: listing.odd,
        })
    }

    /// Lists a prefix; a flat listing gives what lies in the folder itself. Local folders are
    /// entered if `enters` says so.
    async fn list(
        &self,
        prefix: &Path,
        flat: bool,
        enters: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<Listing, StoreError> {
        let count = Arc::new(AtomicU64::new(0));
        let url = self.location.display_key(prefix.as_ref());
        if self.location.provider == Provider::Local {
            let (key, counted) = (prefix.to_string(), Arc::clone(&count));
            let walking = tokio::task::spawn_blocking(move || walk(&key, flat, &enters, &counted));
            let walked = saying(&url, &count, walking).await;
            return walked.expect("listing a folder does not panic");
        }
        let odd = || {
            let odd = self.connector.counters.odd_keys.lock();
            std::mem::take(&mut *odd.unwrap_or_else(PoisonError::into_inner))
        };
        odd();
        let listing = async {
            let mut listing = Listing::default();
            if flat {
                // What lies deeper cannot match; it may be much, and some of it unreadable.
                let listed = self
                    .stores
                    .patient
                    .list_with_delimiter(below(prefix))
                    .await?;
                listing.folders = listed.common_prefixes;
                listing.entries = listed.objects.into_iter().map(Entry::from).collect();
            } else {
                let mut listed = self.stores.patient.list(below(prefix));
                while let Some(meta) = listed.try_next().await? {
                    listing.entries.push(meta.into());
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(listing)
        };
        let listing = saying(&url, &count, listing).await;
        let listing = listing.map_err(|error| self.error(&error, Action::List))?;
        Ok(Listing {
            odd: odd(),
            ..listing
        })
    }

    /// Names of objects below a prefix, as many as one request gives; none where that may not be
    /// asked.
    async fn first_names(&self, prefix: &Path) -> Result<Vec<Path>, StoreError> {
        let listed = self
            .stores
            .patient
            .list(below(prefix))
            .map_ok(|meta| meta.location);
        // The size of a page.
        match listed
            .take(1000)
            .try_collect()
            .await
            .map_err(|error| self.error(&error, Action::List))
        {
            Err(StoreError::NotFound { .. } | StoreError::Denied { .. }) => Ok(Vec::new()),
            names => names,
        }
    }

    /// The table that a folder is a part of, as far as its name suggests one: partitions, and the
    /// data of Iceberg.
    async fn table_around(&self, folder: &str) -> Result<Option<(Path, TableFormat)>, StoreError> {
        let mut root = folder;
        while root
            .rsplit('/')
            .next()
            .is_some_and(|name| name.contains('='))
        {
            root = parent(root);
        }
        if root != folder {
            let log = self.location.path_of(&format!("{root}/{DELTA_LOG}"))?;
            if !self.first_names(&log).await?.is_empty() {
                return Ok(Some((self.location.path_of(root)?, TableFormat::Delta)));
            }
        }
        if root.rsplit('/').next() == Some("data") {
            let table = parent(root);
            let metadata = self
                .location
                .path_of(&format!("{table}/{ICEBERG_METADATA}"))?;
            let names = self.first_names(&metadata).await?;
            if names
                .iter()
                .filter_map(Path::filename)
                .any(is_iceberg_metadata)
            {
                return Ok(Some((self.location.path_of(table)?, TableFormat::Iceberg)));
            }
        }
        Ok(None)
    }

    /// The current files of each Delta table below or around a prefix.
    async fn current_files(
        &self,
        found: &BTreeMap<Path, TableFormat>,
        listing: &Listing,
        prefix: &Path,
    ) -> Result<BTreeMap<Path, BTreeSet<Path>>, StoreError> {
        let mut current = BTreeMap::new();
        let there = listing.entries.iter().map(|entry| &entry.path);
        let there = there.collect::<HashSet<_>>();
        for (root, format) in found {
            if *format != TableFormat::Delta {
                continue;
            }
            let delta =
                |problem| self.table(root, TableFormat::Delta, TableProblem::Delta(problem));
            let mut files = self.read_log(root, listing).await?;
            files.retain(|file| file.prefix_matches(prefix));
            if let Some(missing) = files.iter().find(|file| !there.contains(file)) {
                return Err(delta(DeltaProblem::MissingFile(missing.to_string())));
            }
            current.insert(root.clone(), files);
        }
        Ok(current)
    }

    /// The current files of one Delta table.
    async fn read_log(&self, root: &Path, listing: &Listing) -> Result<BTreeSet<Path>, StoreError> {
        let delta = |problem| self.table(root, TableFormat::Delta, TableProblem::Delta(problem));
        let log = self.location.path_of(&format!("{root}/{DELTA_LOG}"))?;
        let listed = listing.entries.iter().map(|entry| entry.path.clone());
        let mut objects = listed
            .filter(|path| path.prefix_matches(&log))
            .collect::<Vec<_>>();
        if objects.is_empty() {
            // The table lies around what was listed.
            let listing = self.list(&log, false, |_| true).await?;
            objects = listing
                .entries
                .into_iter()
                .map(|entry| entry.path)
                .collect();
        }
        let plan = LogPlan::new(&log, &objects).map_err(delta)?;
        let mut replay = Replay::default();
        let mut sidecars = Vec::new();
        for (path, bytes) in self.read_all(&plan.checkpoint).await? {
            let named = if is_parquet(path.as_ref()) {
                replay.parquet(&path, bytes)
            } else {
                replay.json(&path, &bytes)
            };
            for name in named.map_err(delta)? {
                sidecars.push(self.location.path_of(&format!("{log}/_sidecars/{name}"))?);
            }
        }
        for (path, bytes) in self.read_all(&sidecars).await? {
            replay.parquet(&path, bytes).map_err(delta)?;
        }
        for (path, bytes) in self.read_all(&plan.commits).await? {
            replay.json(&path, &bytes).map_err(delta)?;
        }
        let files = replay.files(root, plan.version).map_err(delta)?;
        let (url, version) = (self.location.display_key(root.as_ref()), plan.version);
        tracing::info!(
            "{url} is a Delta table: version {version}, current files: {}",
            files.len()
        );
        Ok(files)
    }

    /// Objects with their bytes, in the same order.
    async fn read_all(&self, paths: &[Path]) -> Result<Vec<(Path, Bytes)>, StoreError> {
        let read = |path: Path| async move {
            let answer = self.stores.patient.get(&path).await?;
            Ok((path, answer.bytes().await?))
        };
        futures::stream::iter(paths.to_vec())
            .map(read)
            .buffered(LOG_READS)
            .try_collect()
            .await
            .map_err(|error: object_store::Error| self.error(&error, Action::Read))
    }

    fn table(&self, root: &Path, format: TableFormat, problem: TableProblem) -> StoreError {
        StoreError::Table {
            url: self.location.display_key(root.as_ref()),
            format,
            problem,
        }
    }

    async fn head(&self, path: &Path) -> Result<ListedObject, StoreError> {
        let meta = self
            .stores
            .patient
            .head(path)
            .await
            .map_err(|error| self.error(&error, Action::Read))?;
        Ok(self.object(path.clone(), meta.size))
    }

    /// A web object's size, by a request for its first byte: a presigned URL is good for GET alone,
    /// not for HEAD.
    async fn web_object(&self, path: Path) -> Result<ListedObject, StoreError> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(0..1)),
            ..GetOptions::default()
        };
        let answer = self
            .stores
            .patient
            .get_opts(&path, options)
            .await
            .map_err(|error| self.error(&error, Action::Read))?;
        Ok(self.object(path, answer.meta.size))
    }

    fn object(&self, path: Path, size: u64) -> ListedObject {
        ListedObject {
            single: Arc::clone(&self.stores.single),
            patience: self.stores.patience.clone(),
            location: Arc::clone(&self.location),
            url: self.location.display_key(path.as_ref()),
            path,
            size,
        }
    }

    fn error(&self, error: &object_store::Error, action: Action) -> StoreError {
        let place = Place {
            object: self.location.display(),
            ..Place::default()
        };
        classify(error, action, &self.location, place)
    }

    fn found(&self, listing: &Listing, folder: &Path) -> Found {
        let show = |path: &Path| self.location.display_key(path.as_ref());
        let hidden = |entry: &&Entry| is_left_out(&entry.path, folder);
        let (hidden, seen): (Vec<_>, Vec<_>) = listing.entries.iter().partition(hidden);
        Found {
            examples: seen.iter().take(5).map(|entry| show(&entry.path)).collect(),
            total: seen.len(),
            below: show(folder),
            left_out: hidden.first().map(|entry| show(&entry.path)),
        }
    }
}

/// The work's result; while it lasts, the log says how far it is.
async fn saying<T>(url: &str, count: &AtomicU64, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut seen = 0;
    loop {
        if let Ok(done) = tokio::time::timeout(SAY_EVERY, &mut work).await {
            return done;
        }
        let now = count.load(Ordering::Relaxed);
        if now == seen {
            tracing::warn!(
                "listing {url}: waiting, nothing came for {} s",
                SAY_EVERY.as_secs()
            );
        } else {
            tracing::info!("listing {url}: {now} objects so far");
        }
        seen = now;
    }
}

fn one(object: ListedObject) -> Named {
    Named {
        objects: vec![object],
        odd: OddKeys::default(),
    }
}

/// What a listing is asked for: all below a path, or below none.
fn below(path: &Path) -> Option<&Path> {
    (!path.is_root()).then_some(path)
}

/// The folder around a key, empty for the bucket itself.
fn parent(key: &str) -> &str {
    key.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Whether some name on the way from `prefix` to an object says that it is no data.
fn is_left_out(path: &Path, prefix: &Path) -> bool {
    path.prefix_match(prefix)
        .is_some_and(|mut parts| parts.any(|part| is_hidden(part.as_ref())))
}

/// A Parquet object below `prefix` that is data.
fn is_shard(path: &Path, prefix: &Path) -> bool {
    is_parquet(path.as_ref()) && !is_left_out(path, prefix)
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn each_object_once_and_none_lost() {
        let object = |url: &str| {
            let location = Arc::new(Location::parse(url).unwrap());
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            ListedObject {
                single: store,
                patience: Patience::new("a store", std::time::Duration::ZERO),
                path: location.store_path().unwrap(),
                size: 1,
                url: location.display(),
                location,
            }
        };
        let urls = [
            "https://host/get?shard=1",
            "https://host/get?shard=0",
            "s3://b/x.parquet",
            "https://host/get?shard=0&sig=again",
            "s3://b/x.parquet",
            "s3://c/x.parquet",
        ];
        let found = sorted(urls.map(object).to_vec());
        let shown = found
            .iter()
            .map(|object| object.url.as_str())
            .collect::<Vec<_>>();
        assert_eq!(
            shown,
            [
                "https://host/get?shard=0",
                "https://host/get?shard=1",
                "s3://b/x.parquet",
                "s3://c/x.parquet"
            ]
        );
    }
}
