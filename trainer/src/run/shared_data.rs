//! The data set of a run, opened once for all its ranks: rank 0 lists it and reads its footers, and
//! hands what it has read to the others, which then ask the store for nothing.
use std::sync::Arc;

use bytes::Bytes;
use nepa_pipeline::{Dataset, DatasetConfig, DatasetError, IoConfig, IoRuntime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::RunError;
use crate::output::is_local;
use crate::ranks::{Ranks, RanksError};

/// What a rank is to open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    /// Of all that decides what is read. None of local files, which may be others on another
    /// machine though they are called the same.
    digest: Option<String>,
    /// Data sets of a mixture.
    sources: usize,
}

impl Asked {
    fn of(config: &DatasetConfig) -> Self {
        let of_mixture = config.mixture.iter().flat_map(|source| &source.urls);
        let mut urls = config.urls.iter().chain(of_mixture);
        let text = serde_json::to_vec(config).expect("a configuration is plain data");
        Self {
            digest: (!urls.any(|url| is_local(url)))
                .then(|| format!("{:x}", Sha256::digest(&text))),
            sources: config.mixture.len().max(1),
        }
    }

    /// Whether what one rank has opened is what another is to open.
    fn is_same_as(&self, other: &Self) -> bool {
        self.digest.is_some() && self == other
    }
}

/// Opens the data set on each rank; where other URLs or columns are asked for than by rank 0, or
/// local files, the rank reads for itself.
pub(super) fn open_shared(
    config: &DatasetConfig,
    io: &IoConfig,
    runtime: &IoRuntime,
    ranks: &Ranks,
) -> Result<Arc<Dataset>, RunError> {
    let own = Asked::of(config);
    let all = ranks.gather(&own).map_err(RanksError::from)?;
    let mut others = all.iter().skip(1);
    if !others.any(|other| other.is_same_as(&all[0])) {
        return Ok(Dataset::open(config, io, runtime)?);
    }
    let opened = if ranks.rank() == 0 {
        Some(Dataset::open(config, io, runtime)?)
    } else {
        None
    };
    // What cannot be written as an index is handed on as nothing, and read by each rank.
    let nothing = || vec![Bytes::new(); all[0].sources];
    let indexes = opened.as_ref().map(|dataset| dataset.indexes());
    let mut indexes = match indexes {
        Some(Ok(indexes)) => indexes,
        Some(Err(DatasetError::NotIndexed { .. })) | None => nothing(),
        Some(Err(error)) => return Err(error.into()),
    };
    for index in &mut indexes {
        let handed = ranks.gather_bytes(index).map_err(RanksError::from)?;
        *index = handed.into_iter().next().unwrap_or_default().into();
    }
    let is_handed = own.is_same_as(&all[0]) && indexes.iter().all(|index| !index.is_empty());
    match opened {
        Some(dataset) => Ok(dataset),
        None if is_handed => Ok(Dataset::open_handed(&indexes, config, io, runtime)?),
        None => Ok(Dataset::open(config, io, runtime)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_store_is_shared_and_local_files_are_not() {
        let at = |url: &str| {
            Asked::of(&DatasetConfig {
                urls: vec![url.to_owned()],
                ..DatasetConfig::default()
            })
        };
        let there = at("s3://bucket/a");
        assert!(there.is_same_as(&at("s3://bucket/a")));
        assert!(!there.is_same_as(&at("s3://bucket/b")));
        for local in ["/data/a", "data/a", "file:///data/a"] {
            assert!(!at(local).is_same_as(&at(local)), "{local}");
        }
        let split = DatasetConfig {
            urls: vec!["s3://bucket/a".to_owned()],
            split: Some("train".to_owned()),
            ..DatasetConfig::default()
        };
        assert!(!there.is_same_as(&Asked::of(&split)));
    }
}
