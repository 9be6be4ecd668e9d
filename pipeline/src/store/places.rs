//! The stores that URLs lie in, each opened once: for a listing, and for objects that are known
//! already, of which nothing has to be listed.
use std::collections::HashMap;
use std::sync::Arc;

use super::{CountingConnector, Location, Provider, Stores, build};
use crate::{IoConfig, StoreError};

/// A URL and its store.
#[derive(Debug, Clone)]
pub(crate) struct UrlPlace {
    pub stores: Stores,
    pub location: Arc<Location>,
}

/// The places of `urls`, in their order; nothing is sent yet.
pub(crate) fn places(
    urls: &[String],
    io: &IoConfig,
    connector: &CountingConnector,
) -> Result<Vec<UrlPlace>, StoreError> {
    if urls.is_empty() {
        return Err(StoreError::NoUrls);
    }
    let mut stores: HashMap<(Provider, String), Stores> = HashMap::new();
    let place = |url: &String| {
        let location = Location::parse(url)?;
        let key = location.store_key();
        if !stores.contains_key(&key) {
            stores.insert(key.clone(), build(&location, io, connector)?);
        }
        Ok(UrlPlace {
            stores: stores[&key].clone(),
            location: Arc::new(location),
        })
    };
    urls.iter().map(place).collect()
}
