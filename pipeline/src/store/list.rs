//! From URLs, prefixes and globs to the sorted list of Parquet objects.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::TryStreamExt;
use globset::GlobBuilder;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, path::Path};

use super::{CountingConnector, Location, Patience, Provider, Stores, build, classify};
use crate::error::{Action, Found, Place};
use crate::{DatasetError, IoConfig};

/// One object of a data set.
#[derive(Debug, Clone)]
pub struct ListedObject {
    /// Its store; one for each bucket, so that connections are reused.
    pub store: Arc<dyn ObjectStore>,
    /// The same without retries of its own, for whoever repeats requests itself.
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

/// Lists what `urls` name: sorted by URL, each object once. Web URLs that differ in their query are different objects, unless
/// only their signatures differ.
pub async fn list(
    urls: &[String],
    io: &IoConfig,
    connector: &CountingConnector,
) -> Result<Vec<ListedObject>, DatasetError> {
    if urls.is_empty() {
        return Err(DatasetError::NoUrls);
    }
    let mut stores: HashMap<(Provider, String), Stores> = HashMap::new();
    let mut objects = Vec::new();
    for url in urls {
        let location = Location::parse(url)?;
        let key = location.store_key();
        if !stores.contains_key(&key) {
            stores.insert(key.clone(), build(&location, io, connector)?);
        }
        let lister = Lister {
            stores: stores[&key].clone(),
            location: Arc::new(location),
        };
        objects.extend(lister.find().await?);
    }
    Ok(sorted(objects))
}

/// By URL, each object once.
fn sorted(mut objects: Vec<ListedObject>) -> Vec<ListedObject> {
    objects.sort_by(|a, b| a.url.cmp(&b.url));
    let mut seen = HashSet::new();
    objects.retain(|object| seen.insert((object.location.place_key(), object.path.clone())));
    objects
}

struct Lister {
    stores: Stores,
    location: Arc<Location>,
}

impl Lister {
    async fn find(&self) -> Result<Vec<ListedObject>, DatasetError> {
        if self.location.is_glob() {
            return self.glob().await;
        }
        let path = self.location.store_path()?;
        let is_folder = self.location.key.is_empty() || self.location.key.ends_with('/');
        if self.location.provider == Provider::Http {
            return Ok(vec![self.web_object(path).await?]);
        }
        let named_parquet = is_parquet(&path);
        if named_parquet && !is_folder {
            match self.head(&path).await {
                // Spark and others write folders that are named like a file.
                Err(DatasetError::NotFound { .. }) => {}
                other => return Ok(vec![other?]),
            }
        }
        let all = self.list(&path).await?;
        let mut shards: Vec<_> = all
            .iter()
            .filter(|meta| is_shard(&meta.location, &path))
            .collect();
        if shards.is_empty() && all.is_empty() && !is_folder {
            let object = self.head(&path).await;
            if named_parquet || !matches!(object, Err(DatasetError::NotFound { .. })) {
                return Ok(vec![object?]);
            }
        }
        if shards.is_empty() {
            let url = self.location.display();
            return Err(DatasetError::EmptyPrefix {
                found: self.found(&all, &self.location.key),
                url,
            });
        }
        shards.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(shards
            .into_iter()
            .map(|meta| self.object(meta.location.clone(), meta.size))
            .collect())
    }

    async fn glob(&self) -> Result<Vec<ListedObject>, DatasetError> {
        let url = self.location.display();
        let glob = GlobBuilder::new(&self.location.key)
            .literal_separator(true)
            .build()
            .map_err(|source| DatasetError::BadGlob {
                url: url.clone(),
                source,
            })?
            .compile_matcher();
        let folder = self.location.glob_folder();
        let path = self.location.path_of(folder)?;
        let rest = self.location.key[folder.len()..].trim_start_matches('/');
        let all = if rest.contains('/') || rest.contains("**") {
            self.list(&path).await?
        } else {
            // What lies deeper cannot match; it may be much, and some of it unreadable.
            let listed = self.stores.patient.list_with_delimiter(below(&path)).await;
            listed
                .map_err(|error| self.error(&error, Action::List))?
                .objects
        };
        let matches: Vec<_> = all
            .iter()
            .filter(|meta| glob.is_match(meta.location.as_ref()))
            .map(|meta| self.object(meta.location.clone(), meta.size))
            .collect();
        if matches.is_empty() {
            return Err(DatasetError::NoMatch {
                found: self.found(&all, folder),
                url,
            });
        }
        Ok(matches)
    }

    async fn list(&self, prefix: &Path) -> Result<Vec<ObjectMeta>, DatasetError> {
        self.stores
            .patient
            .list(below(prefix))
            .try_collect()
            .await
            .map_err(|error| self.error(&error, Action::List))
    }

    async fn head(&self, path: &Path) -> Result<ListedObject, DatasetError> {
        let meta = self
            .stores
            .patient
            .head(path)
            .await
            .map_err(|error| self.error(&error, Action::Read))?;
        Ok(self.object(path.clone(), meta.size))
    }

    /// A web object's size, by a request for its first byte: a presigned URL is good for GET alone, not for HEAD.
    async fn web_object(&self, path: Path) -> Result<ListedObject, DatasetError> {
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
            store: Arc::clone(&self.stores.patient),
            single: Arc::clone(&self.stores.single),
            patience: self.stores.patience.clone(),
            location: Arc::clone(&self.location),
            url: self.location.display_key(path.as_ref()),
            path,
            size,
        }
    }

    fn error(&self, error: &object_store::Error, action: Action) -> DatasetError {
        let place = Place {
            object: self.location.display(),
            ..Place::default()
        };
        classify(error, action, &self.location, place)
    }

    fn found(&self, all: &[ObjectMeta], key: &str) -> Found {
        Found {
            examples: all
                .iter()
                .take(5)
                .map(|meta| self.location.display_key(meta.location.as_ref()))
                .collect(),
            total: all.len(),
            below: self.location.display_key(key),
        }
    }
}

/// What a listing is asked for: all below a path, or below none.
fn below(path: &Path) -> Option<&Path> {
    (!path.is_root()).then_some(path)
}

fn is_parquet(path: &Path) -> bool {
    path.filename().is_some_and(|name| {
        let name = name.to_ascii_lowercase();
        [".parquet", ".parq", ".pq"]
            .iter()
            .any(|ending| name.ends_with(ending))
    })
}

/// A Parquet object below `prefix` that is not hidden (`.tmp` files of writers, for example).
fn is_shard(path: &Path, prefix: &Path) -> bool {
    let hidden = path
        .prefix_match(prefix)
        .is_some_and(|mut parts| parts.any(|part| part.as_ref().starts_with('.')));
    is_parquet(path) && !hidden
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
                single: Arc::clone(&store),
                store,
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
