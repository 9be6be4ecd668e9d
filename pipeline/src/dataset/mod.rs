//! A data set: the sorted shards behind URLs, their footers and schemas, and reading parts of them.
//! Knows rows, and no order of them.
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::store::{Io, IoConfig, IoCounters, IoRuntime, seconds};
use crate::{PartId, Place, StoreError};

mod beginning;
mod columns;
mod config;
mod error;
mod fetch;
mod footer;
mod index;
mod leave_out;
mod names;
mod open;
mod pages;
mod part_bytes;
mod parts;
mod pieces;
#[cfg(nepa_interleavings)]
mod prefetched;
mod reading;
mod reduced;
mod shard;
mod splits;
mod unpack;
mod warning;
mod warnings;

pub use beginning::Beginning;
pub use columns::ColumnInfo;
pub use config::{DatasetConfig, MixtureSource};
pub use error::{DatasetError, IndexProblem};
#[cfg(not(nepa_interleavings))]
pub use fetch::Fetch;
#[cfg(not(nepa_interleavings))]
pub(crate) use fetch::FetchTask;
pub(crate) use fetch::FetchedPart;
pub use leave_out::LeaveOut;
pub use open::WatchFooters;
pub use part_bytes::PartBytes;
#[cfg(nepa_interleavings)]
pub(crate) use prefetched::FetchTask;
pub use shard::{Part, Shard, Source};
pub use warning::DatasetWarning;

use config::Origin;

/// An opened data set: cheap to share.
#[derive(Debug)]
pub struct Dataset {
    shards: Arc<[Shard]>,
    sources: Vec<Source>,
    /// Of each source.
    origins: Vec<Origin>,
    warnings: Vec<DatasetWarning>,
    /// Asked for at each step, and long to compute for very many shards.
    fingerprint: OnceLock<String>,
    io: Arc<Io>,
    #[cfg(nepa_interleavings)]
    prefetched: OnceLock<std::collections::HashMap<PartId, PartBytes>>,
}

impl Dataset {
    /// Lists the URLs, reads all footers concurrently, resolves the schemas. Not for use inside
    /// async code.
    pub fn open(
        config: &DatasetConfig,
        io: &IoConfig,
        runtime: &IoRuntime,
    ) -> Result<Arc<Self>, DatasetError> {
        Self::open_watched(config, io, runtime, None)
    }

    /// As [`open`](Self::open), and `watch` is told after each footer how many were read and how
    /// many there are (of the data set of a mixture that is being opened). Without it, that is
    /// logged every 10 s.
    pub fn open_watched(
        config: &DatasetConfig,
        io: &IoConfig,
        runtime: &IoRuntime,
        watch: Option<WatchFooters>,
    ) -> Result<Arc<Self>, DatasetError> {
        Self::open_with(config, io, runtime, watch, &[])
    }

    /// As [`open`](Self::open), of what [`indexes`](Self::indexes) gave of the same data set, in
    /// this process or another: no store is asked for a listing or a footer. Each object must still
    /// be the one that it was then.
    pub fn open_handed(
        indexes: &[Bytes],
        config: &DatasetConfig,
        io: &IoConfig,
        runtime: &IoRuntime,
    ) -> Result<Arc<Self>, DatasetError> {
        Self::open_with(config, io, runtime, None, indexes)
    }

    /// With the indexes of the first data sets of a mixture.
    fn open_with(
        config: &DatasetConfig,
        io: &IoConfig,
        runtime: &IoRuntime,
        watch: Option<WatchFooters>,
        indexes: &[Bytes],
    ) -> Result<Arc<Self>, DatasetError> {
        let io = Arc::new(Io::open(io, runtime)?);
        let (mut shards, mut sources) = (Vec::new(), Vec::new());
        let (mut origins, mut warnings) = (Vec::new(), Vec::new());
        for (number, source) in config::sources_of(config)?.into_iter().enumerate() {
            let (weight, origin) = (source.weight, Origin::of(&source)?);
            origins.push(origin.clone());
            let (io, watch) = (Arc::clone(&io), watch.clone());
            let handed = indexes.get(number).cloned();
            let read = async move {
                open::read_shards(&source, &origin, &io, watch.as_ref(), handed).await
            };
            let (more, odd) = runtime.block_on(read)?;
            sources.push(shard::opened_source(&more, shards.len() as u32, weight)?);
            warnings.extend(odd);
            warnings.extend(warnings::warnings(&more));
            shards.extend(more);
        }
        if config.strict && !warnings.is_empty() {
            return Err(DatasetError::Strict { warnings });
        }
        Ok(Self::of(shards, (sources, origins), warnings, io))
    }

    /// What opening has read of each data set of the mixture, for
    /// [`open_handed`](Self::open_handed), and to be written where [`DatasetConfig::index`] says
    /// so: a Parquet file with a row for each shard.
    pub fn indexes(&self) -> Result<Vec<Bytes>, DatasetError> {
        let sources = self.sources.iter().zip(&self.origins);
        let index = |(source, origin): (&Source, &Origin)| {
            let shards = source.shards.start as usize..source.shards.end as usize;
            let written = index::encode(origin, &self.shards[shards]);
            written.map_err(|source| DatasetError::NotIndexed {
                data: origin.to_string(),
                source,
            })
        };
        sources.map(index).collect()
    }

    /// A data set of what was read, and its watchdog.
    fn of(
        shards: Vec<Shard>,
        (sources, origins): (Vec<Source>, Vec<Origin>),
        warnings: Vec<DatasetWarning>,
        io: Arc<Io>,
    ) -> Arc<Self> {
        let (runtime, after_s) = (io.runtime.clone(), io.config.stall_report_s);
        let dataset = Arc::new(Self {
            shards: shards.into(),
            sources,
            origins,
            warnings,
            fingerprint: OnceLock::new(),
            io,
            #[cfg(nepa_interleavings)]
            prefetched: OnceLock::new(),
        });
        runtime.spawn(watch(Arc::downgrade(&dataset), after_s));
        dataset
    }

    /// One data set of these objects, opened inside async code.
    #[cfg(all(test, not(nepa_interleavings)))]
    pub(crate) async fn of_objects(
        objects: Vec<crate::store::list::ListedObject>,
        io: &IoConfig,
        runtime: &IoRuntime,
    ) -> Result<Arc<Self>, DatasetError> {
        let io = Arc::new(Io::open(io, runtime)?);
        let readings = reading::Readings::new(&nepa_schemas::SchemaOptions::default());
        let mut shards = Vec::new();
        for object in objects {
            let read = footer::read_shard(object, &readings, &io).await?;
            shards.push(read.expect("an object with rows"));
        }
        let sources = vec![shard::opened_source(&shards, 0, 1.0)?];
        let origins = vec![Origin::default()];
        Ok(Self::of(shards, (sources, origins), Vec::new(), io))
    }

    /// The data sets that are mixed; one where nothing is.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// What makes it doubtful whether the right data is read; whoever opens a data set for people
    /// shows it.
    pub fn warnings(&self) -> &[DatasetWarning] {
        &self.warnings
    }

    /// The index in [`Self::sources`] of the data set that a shard belongs to.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn source_of(&self, shard: u32) -> usize {
        self.sources
            .iter()
            .position(|source| source.shards.contains(&shard))
            .expect("every shard belongs to a data set")
    }

    /// The shards, sorted by URL within each data set.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Number of samples in all shards: rows that hold an image.
    pub fn num_samples(&self) -> u64 {
        self.sources.iter().map(|source| source.num_samples).sum()
    }

    /// Number of rows without an image in all shards, as far as the footers count them. They are no
    /// samples.
    pub fn num_absent(&self) -> u64 {
        self.sources.iter().map(|source| source.num_absent).sum()
    }

    /// A digest (hex) of what decides the order: names relative to the data set's root, sizes, rows
    /// of each part and those without an image, columns read. The same data set on disk and in a
    /// bucket has the same fingerprint.
    pub fn fingerprint(&self) -> String {
        self.fingerprint
            .get_or_init(|| self.compute_fingerprint())
            .clone()
    }

    fn compute_fingerprint(&self) -> String {
        let digest_of = |source: &Source| {
            let shards = source.shards.start as usize..source.shards.end as usize;
            shard::digest(&self.shards[shards])
        };
        if let [source] = &self.sources[..] {
            return format!("{:x}", digest_of(source));
        }
        let mut digest = Sha256::new();
        digest.update(b"nepa mixture 1");
        for source in &self.sources {
            digest.update(source.weight.to_le_bytes());
            digest.update(digest_of(source));
        }
        format!("{:x}", digest.finalize())
    }

    /// Class names, if there is one data set and its shards name them. For a mixture:
    /// [`Source::class_names`].
    pub fn class_names(&self) -> Option<&[String]> {
        match &self.sources[..] {
            [source] => source.class_names.as_deref(),
            _ => None,
        }
    }

    /// How the store is used.
    pub fn io(&self) -> &IoConfig {
        &self.io.config
    }

    /// What the I/O did so far.
    pub fn io_counters(&self) -> IoCounters {
        self.io.counters()
    }

    /// Whether a store is silent, and that has been said.
    pub(crate) fn is_waited_for(&self) -> bool {
        let mut patience = self
            .shards
            .iter()
            .map(|shard| &shard.object.listed.patience);
        patience.any(|patience| patience.silent_for().is_some())
    }

    /// The range that has been asked for longest, for people.
    pub(crate) fn oldest_request(&self) -> Option<String> {
        self.io.requests.oldest()
    }

    /// What is in flight now, in detail: ranges with their age and failures, windows of requests,
    /// bytes held.
    pub fn io_report(&self) -> String {
        self.io.report()
    }

    /// A part by its place in the data set.
    ///
    /// # Panics
    /// If there is no such part.
    pub fn part(&self, id: PartId) -> &Part {
        &self.shards[id.shard as usize].parts[id.part as usize]
    }

    /// What it means that a shard cannot be read.
    fn read_error(&self, shard: u32, error: StoreError) -> DatasetError {
        match &self.origins[self.source_of(shard)].index {
            Some(index) => DatasetError::by_index(error, index),
            None => error.into(),
        }
    }

    /// Where a part lies, for messages.
    pub(crate) fn place(&self, id: PartId) -> Place {
        self.shards[id.shard as usize].place(self.part(id))
    }
}

/// Says in detail what is in flight whenever nothing has come for `after_s` seconds though ranges
/// are being asked for; ends with the data set. For people it is the store's patience that speaks.
async fn watch(dataset: Weak<Dataset>, after_s: f64) {
    let after = seconds(after_s.max(0.1));
    let (mut seen, mut since) = (None, tokio::time::Instant::now());
    loop {
        tokio::time::sleep(after / 4).await;
        let Some(dataset) = dataset.upgrade() else {
            return;
        };
        let progress = dataset.io.requests.progress();
        if progress.is_none() || progress != seen {
            (seen, since) = (progress, tokio::time::Instant::now());
        } else if since.elapsed() >= after {
            tracing::debug!(
                "nothing came from the store for {after_s} s: {}",
                dataset.io_report()
            );
            since = tokio::time::Instant::now();
        }
    }
}
