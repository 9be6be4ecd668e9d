//! A data set: the sorted shards behind URLs, their footers and schemas, and reading row groups from them.
//! The loader asks for row groups; which requests that makes is decided in `fetch`.
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{Stream, StreamExt};
use nepa_schemas::{ColumnMapping, SchemaError, SchemaOptions, ShardBatch};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::DatasetError;
use crate::error::Place;
use crate::store::{CountingConnector, StoreOptions, list, seconds};

mod beginning;
mod cache;
mod columns;
mod counters;
mod fetch;
mod footer;
mod leave_out;
mod pages;
mod parts;
#[cfg(nepa_interleavings)]
mod prefetched;
mod reduced;
mod request;
mod runtime;
mod splits;
mod unpack;
mod warnings;

pub use beginning::Beginning;
pub use columns::ColumnInfo;
pub use counters::IoCounters;
pub use fetch::PartBytes;
pub use leave_out::LeaveOut;
#[cfg(nepa_interleavings)]
pub use prefetched::FetchHandle;
pub use runtime::IoRuntime;
pub use warnings::DatasetWarning;

/// How the store is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IoConfig {
    /// Most requests in flight; eight times as many while the footers are read, which are small.
    pub max_requests: usize,
    /// Most bytes held: in flight, fetched and not yet released.
    pub max_bytes: u64,
    /// Ranges closer than this are fetched as one, in bytes.
    pub coalesce_gap_bytes: u64,
    /// Larger ranges are split into requests of this size, in bytes.
    pub request_bytes: u64,
    /// Larger row groups are read in parts of about this size (decompressed, in bytes), if the file has an offset index, which says where their
    /// pages lie. Smaller parts mix better and cost more requests. Decides the order of samples.
    pub part_bytes: u64,
    /// Longest time without a byte for one attempt of a request, in seconds; it is shorter once the store is known to be faster.
    pub request_timeout_s: f64,
    /// How long an outage of the store is waited out, in seconds without a byte; then the run is saved, if it can be, and ends.
    pub outage_s: f64,
    /// Has no effect any more: `outage_s` decides. Read so that older recipes and checkpoints are.
    #[serde(skip_serializing)]
    pub max_retries: Option<usize>,
    /// After how many seconds without a byte, while ranges are being asked for, the log says what is in flight, and after how many
    /// without a batch what the loader waits for.
    pub stall_report_s: f64,
    /// Folder on a local disk that keeps what was fetched, for later epochs and other processes; none without it. Local files are not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// Most bytes in that folder.
    pub cache_bytes: u64,
    /// Settings above the clouds' environment variables; not part of a recipe.
    #[serde(skip)]
    pub store_options: StoreOptions,
}

impl Default for IoConfig {
    fn default() -> Self {
        Self {
            max_requests: 32,
            max_bytes: 1 << 30,
            coalesce_gap_bytes: 1 << 20,
            request_bytes: 16 << 20,
            part_bytes: 32 << 20,
            request_timeout_s: 30.0,
            outage_s: 600.0,
            max_retries: None,
            stall_report_s: 10.0,
            cache_dir: None,
            cache_bytes: 64 << 30,
            store_options: StoreOptions::default(),
        }
    }
}

/// What recipes of older checkpoints say where nobody has set anything.
const OLD_MAX_RETRIES: usize = 8;

/// Which data set, or which mixture of several.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatasetConfig {
    /// URLs, local paths, prefixes or globs.
    pub urls: Vec<String>,
    /// Column choices.
    #[serde(flatten)]
    pub schema: SchemaOptions,
    /// Reads the shards of one split alone, as their names or folders say it: `train`, `validation`, `test`, or any word of
    /// theirs. All shards without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Whether each [`DatasetWarning`] is an error.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    /// Instead of `urls`: several data sets that are read together, each with its share of every batch.
    pub mixture: Vec<MixtureSource>,
}

/// One data set of a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixtureSource {
    /// URLs, local paths, prefixes or globs.
    pub urls: Vec<String>,
    /// Its share of every batch, relative to the other weights.
    pub weight: f64,
    /// Column choices.
    #[serde(flatten)]
    pub schema: SchemaOptions,
    /// As [`DatasetConfig::split`], which holds where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
}

/// An opened data set of a mixture; the only one where nothing is mixed.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Its shards, as indices in [`Dataset::shards`].
    pub shards: Range<u32>,
    /// Rows in them that hold an image, as far as the footers say.
    pub num_samples: u64,
    /// Rows without an image, which are left out of the order.
    pub num_absent: u64,
    /// Its weight as configured; 1 where nothing is mixed.
    pub weight: f64,
    /// Class names, which those of its shards agree on that have any.
    pub class_names: Option<Vec<String>>,
}

/// Rows that are fetched together: a row group, or the rows of some pages of a large one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartInfo {
    /// The row group in the file.
    pub row_group: u32,
    /// First row in the row group; 0 unless that has several parts.
    pub first_row: u32,
    /// Rows.
    pub num_rows: u32,
    /// Rows of them that hold no image, as far as the footer counts them: they are no samples. Which ones they are is known when the part is
    /// unpacked.
    pub num_absent: u32,
    /// Bytes to fetch for the columns that are read (compressed).
    pub fetch_bytes: u64,
    /// Bytes that the unpacked part holds: those of its pages after decompression, or of its values and rows where these are more.
    pub memory_bytes: u64,
    /// Whether `memory_bytes` is more than the footer's plain sum of uncompressed pages; then it is part of the fingerprint.
    pub(crate) counted_by_values: bool,
}

impl PartInfo {
    /// Rows that are samples.
    pub fn num_samples(&self) -> u32 {
        self.num_rows - self.num_absent
    }
}

/// One Parquet object.
#[derive(Debug)]
pub struct Shard {
    /// URL without secrets.
    pub url: String,
    /// Size in bytes.
    pub size: u64,
    /// ETag, if the store gives one.
    pub e_tag: Option<String>,
    /// Its row groups, or parts of them, in the order of the file.
    pub parts: Vec<PartInfo>,
    /// Its columns.
    pub mapping: ColumnMapping,
}

/// Called once for each part of a fetch: shard, part, bytes.
pub type Deliver = Arc<dyn Fn(u32, u32, Result<PartBytes, DatasetError>) + Send + Sync>;

/// An opened data set: cheap to share.
#[derive(Debug)]
pub struct Dataset {
    shards: Vec<Shard>,
    readers: Vec<footer::ShardReader>,
    sources: Vec<Source>,
    warnings: Vec<DatasetWarning>,
    io: IoConfig,
    runtime: IoRuntime,
    connector: CountingConnector,
    counting: Arc<counters::Counting>,
    budget: counters::ByteBudget,
    requests: request::Requests,
    cache: Option<Arc<cache::Cache>>,
    #[cfg(nepa_interleavings)]
    prefetched: prefetched::Prefetched,
}

impl Dataset {
    /// Lists the URLs, reads all footers concurrently, resolves the schemas. Not for use inside async code.
    pub fn open(
        config: &DatasetConfig,
        io: &IoConfig,
        runtime: &IoRuntime,
    ) -> Result<Arc<Self>, DatasetError> {
        Self::open_watched(config, io, runtime, None)
    }

    /// As [`open`](Self::open), and `watch` is told after each footer how many were read and how many there are (of
    /// the data set of a mixture that is being opened). Without it, that is logged every 10 s.
    pub fn open_watched(
        config: &DatasetConfig,
        io: &IoConfig,
        runtime: &IoRuntime,
        watch: Option<WatchFooters>,
    ) -> Result<Arc<Self>, DatasetError> {
        if io.max_retries.is_some_and(|set| set != OLD_MAX_RETRIES) {
            tracing::warn!(
                "io.max_retries has no effect any more: requests are repeated for io.outage_s ({} s)",
                io.outage_s
            );
        }
        let cache = match &io.cache_dir {
            Some(folder) => Some(Arc::new(cache::Cache::open(folder, io.cache_bytes)?)),
            None => None,
        };
        let connector = CountingConnector::default();
        let counting = Arc::new(counters::Counting::default());
        let (mut shards, mut readers, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        let mut warnings = Vec::new();
        for source in sources_of(config)? {
            let weight = source.weight;
            let (io, connector, counting) = (io.clone(), connector.clone(), Arc::clone(&counting));
            let watch = watch.clone();
            let opened = runtime.block_on(async move {
                read_shards(&source, &io, &connector, &counting, watch.as_ref()).await
            });
            let (more, odd) = opened?;
            let (more, more_readers): (Vec<_>, Vec<_>) = more.into_iter().unzip();
            sources.push(opened_source(
                &more,
                &more_readers,
                shards.len() as u32,
                weight,
            )?);
            warnings.extend(odd);
            warnings.extend(warnings::warnings(&more, &more_readers));
            shards.extend(more);
            readers.extend(more_readers);
        }
        if config.strict && !warnings.is_empty() {
            return Err(DatasetError::Strict { warnings });
        }
        let opened = (shards, readers, sources, warnings);
        let shared = (connector, counting, cache);
        Ok(Self::of(opened, io, runtime, shared))
    }

    /// A data set of what was read, and its watchdog.
    fn of(
        (shards, readers, sources, warnings): (
            Vec<Shard>,
            Vec<footer::ShardReader>,
            Vec<Source>,
            Vec<DatasetWarning>,
        ),
        io: &IoConfig,
        runtime: &IoRuntime,
        (connector, counting, cache): (
            CountingConnector,
            Arc<counters::Counting>,
            Option<Arc<cache::Cache>>,
        ),
    ) -> Arc<Self> {
        let budget = counters::ByteBudget::new(io.max_bytes, Arc::clone(&counting));
        let dataset = Arc::new(Self {
            shards,
            readers,
            sources,
            warnings,
            io: io.clone(),
            runtime: runtime.clone(),
            connector,
            counting,
            budget,
            requests: request::Requests::new(io),
            cache,
            #[cfg(nepa_interleavings)]
            prefetched: prefetched::Prefetched::new(),
        });
        runtime.spawn(watch(Arc::downgrade(&dataset), io.stall_report_s));
        dataset
    }

    /// One data set of these objects, opened inside async code.
    #[cfg(all(test, not(nepa_interleavings)))]
    pub(crate) async fn of_objects(
        objects: Vec<list::ListedObject>,
        io: &IoConfig,
        runtime: &IoRuntime,
    ) -> Result<Arc<Self>, DatasetError> {
        let counting = Arc::new(counters::Counting::default());
        let schema = SchemaOptions::default();
        let (mut shards, mut readers) = (Vec::new(), Vec::new());
        for object in objects {
            let counting = Arc::clone(&counting);
            let read = footer::read_shard(object, &schema, io.part_bytes, counting).await?;
            let (shard, reader) = read.expect("an object with rows");
            shards.push(shard);
            readers.push(reader);
        }
        let sources = vec![opened_source(&shards, &readers, 0, 1.0)?];
        let shared = (CountingConnector::default(), counting, None);
        let opened = (shards, readers, sources, Vec::new());
        Ok(Self::of(opened, io, runtime, shared))
    }

    /// The data sets that are mixed; one where nothing is.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// What makes it doubtful whether the right data is read; whoever opens a data set for people shows it.
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

    /// Number of rows without an image in all shards, as far as the footers count them. They are no samples.
    pub fn num_absent(&self) -> u64 {
        self.sources.iter().map(|source| source.num_absent).sum()
    }

    /// A digest (hex) of what decides the order: names relative to the data set's root, sizes, rows of each part and those without an
    /// image, columns read. The same data set on disk and in a bucket has the same fingerprint.
    pub fn fingerprint(&self) -> String {
        let digest_of = |source: &Source| {
            let shards = &self.shards[source.shards.start as usize..source.shards.end as usize];
            let mut digest = Sha256::new();
            digest.update(b"nepa data set 1");
            for path in shards[0].mapping.leaf_paths() {
                update_text(&mut digest, &path.to_string());
            }
            let urls = shards.iter().map(|shard| shard.url.as_str());
            let root = common_root(&urls.collect::<Vec<_>>());
            for shard in shards {
                update_text(&mut digest, &shard.url[root..]);
                let mut number = |number: u64| digest.update(number.to_le_bytes());
                number(shard.size);
                number(shard.parts.len() as u64);
                for part in &shard.parts {
                    number(u64::from(part.num_rows));
                    // Only where there is something to say, so that other data sets keep their digests.
                    if part.num_absent > 0 {
                        number(u64::from_le_bytes(*b"  absent"));
                        number(u64::from(part.num_absent));
                    }
                    if part.counted_by_values {
                        number(u64::from_le_bytes(*b"  memory"));
                        number(part.memory_bytes);
                    }
                }
            }
            digest.finalize()
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

    /// Class names, if there is one data set and its shards name them. For a mixture: [`Source::class_names`].
    pub fn class_names(&self) -> Option<&[String]> {
        match &self.sources[..] {
            [source] => source.class_names.as_deref(),
            _ => None,
        }
    }

    /// How the store is used.
    pub fn io(&self) -> &IoConfig {
        &self.io
    }

    /// What the I/O did so far.
    pub fn io_counters(&self) -> IoCounters {
        let counters = self.counting.read(
            self.connector
                .counters
                .range_attempts
                .load(Ordering::Relaxed),
        );
        let cached = |counter: fn(&cache::Cache) -> &AtomicU64| {
            let cache = self.cache.as_ref();
            cache.map_or(0, |cache| counter(cache).load(Ordering::Relaxed))
        };
        IoCounters {
            hedges: self.requests.hedges.load(Ordering::Relaxed),
            hedges_won: self.requests.hedges_won.load(Ordering::Relaxed),
            resumed: self.requests.resumed.load(Ordering::Relaxed),
            throttled: self.requests.throttled.load(Ordering::Relaxed),
            cache_hits: cached(|cache| &cache.hits),
            cache_hit_bytes: cached(|cache| &cache.hit_bytes),
            cache_damaged: cached(|cache| &cache.damaged),
            ..counters
        }
    }

    /// Whether a store is silent, and that has been said.
    pub(crate) fn is_waited_for(&self) -> bool {
        let mut patience = self.readers.iter().map(|reader| &reader.object.patience);
        patience.any(|patience| patience.silent_for().is_some())
    }

    /// The range that has been asked for longest, for people.
    pub(crate) fn oldest_request(&self) -> Option<String> {
        self.requests.oldest()
    }

    /// What is in flight now, in detail: ranges with their age and failures, windows of requests, bytes held.
    pub fn io_report(&self) -> String {
        let counters = self.io_counters();
        format!(
            "{}\n  {} bytes held of at most {}; {} requests done, {} bytes received",
            self.requests.report(),
            counters.held_bytes,
            self.io.max_bytes,
            counters.requests,
            counters.bytes
        )
    }

    /// Fetches the columns of `parts` = (shard, index in [`Shard::parts`]), concurrently within the limits. `deliver` is called on an
    /// I/O thread once for each, in completion order, with the raw bytes; it must not block. Unpacking is for the CPU pool.
    ///
    /// The budget of `max_bytes` is taken in the order of the list, so whoever consumes in that order never waits for
    /// bytes that its own later row groups hold.
    #[cfg(not(nepa_interleavings))]
    pub fn fetch(self: &Arc<Self>, parts: &[(u32, u32)], deliver: Deliver) -> FetchHandle {
        let chunks = |shard: u32, part: u32| -> Vec<Range<u64>> {
            self.readers[shard as usize].chunks[part as usize].clone()
        };
        let runs = fetch::plan(parts, chunks, &self.io);
        let task = self
            .runtime
            .spawn(fetch::run_all(Arc::clone(self), runs, deliver));
        FetchHandle {
            task: task.abort_handle(),
        }
    }

    /// Decompresses and proves a fetched part (CPU work; never on an I/O thread).
    pub fn unpack(&self, bytes: PartBytes) -> Result<ShardBatch, DatasetError> {
        let shard = &self.shards[bytes.shard as usize];
        let part = shard.parts[bytes.part as usize];
        let place = self.place(bytes.shard, bytes.part);
        let batch = unpack::unpack(
            &bytes,
            &self.readers[bytes.shard as usize],
            &shard.mapping,
            part,
            place,
        );
        drop(bytes);
        batch
    }

    /// Where a part lies, for messages.
    pub(crate) fn place(&self, shard: u32, part: u32) -> Place {
        let shard = &self.shards[shard as usize];
        Place {
            object: shard.url.clone(),
            row_group: Some(shard.parts[part as usize].row_group as usize),
            ..Place::default()
        }
    }
}

/// A fetch in progress. Dropping it changes nothing; the fetch goes on.
#[cfg(not(nepa_interleavings))]
#[derive(Debug, Clone)]
pub struct FetchHandle {
    task: tokio::task::AbortHandle,
}

#[cfg(not(nepa_interleavings))]
impl FetchHandle {
    /// Stops what is still waiting or in flight; nothing more is delivered after a call that is already running.
    pub fn cancel(&self) {
        self.task.abort();
    }
}

/// Says in detail what is in flight whenever nothing has come for `after_s` seconds though ranges are being asked for; ends with the data set. For people it is
/// the store's patience that speaks.
async fn watch(dataset: Weak<Dataset>, after_s: f64) {
    let after = seconds(after_s.max(0.1));
    let (mut seen, mut since) = (None, tokio::time::Instant::now());
    loop {
        tokio::time::sleep(after / 4).await;
        let Some(dataset) = dataset.upgrade() else {
            return;
        };
        let progress = dataset.requests.progress();
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

/// The data sets that a configuration asks for.
fn sources_of(config: &DatasetConfig) -> Result<Vec<MixtureSource>, DatasetError> {
    if config.mixture.is_empty() {
        return Ok(vec![MixtureSource {
            urls: config.urls.clone(),
            weight: 1.0,
            schema: config.schema.clone(),
            split: config.split.clone(),
        }]);
    }
    if !config.urls.is_empty() {
        return Err(DatasetError::UrlsBesideMixture {
            urls: config.urls.clone(),
        });
    }
    for source in &config.mixture {
        if !(source.weight.is_finite() && source.weight > 0.0) {
            return Err(DatasetError::MixtureWeight {
                urls: source.urls.clone(),
                weight: source.weight,
            });
        }
    }
    let mut sources = config.mixture.clone();
    for source in &mut sources {
        source.split = source.split.take().or_else(|| config.split.clone());
    }
    Ok(sources)
}

/// Footers that are read at once, for each request that may be in flight later: they are small, and nothing starts before the last of them.
const FOOTERS_AT_ONCE: usize = 8;

/// Shards that cannot be read as images, before the first that can, after which no more are tried.
const ODD_SHARDS: usize = 64;

/// Is told how many footers were read, and of how many.
pub type WatchFooters = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Shards with what reading them needs, and what was doubtful on the way.
type ReadShards = (Vec<(Shard, footer::ShardReader)>, Vec<DatasetWarning>);

/// Lists the URLs of one data set and reads all footers. Objects without rows are left out.
async fn read_shards(
    source: &MixtureSource,
    io: &IoConfig,
    connector: &CountingConnector,
    counting: &Arc<counters::Counting>,
    watch: Option<&WatchFooters>,
) -> Result<ReadShards, DatasetError> {
    let list::Listed { mut objects, odd } = list::list(&source.urls, io, connector).await?;
    if let Some(split) = &source.split {
        let urls = objects
            .iter()
            .map(|object| object.url.as_str())
            .collect::<Vec<_>>();
        let mut chosen = splits::select(&urls, split)?.into_iter();
        objects.retain(|_| chosen.next().unwrap_or(false));
    }
    let (schema, total) = (&source.schema, objects.len());
    let done = AtomicU64::new(0);
    let footers = futures::stream::iter(objects.clone())
        .map(async |object| {
            let shard = footer::read_shard(object, schema, io.part_bytes, Arc::clone(counting));
            let shard = shard.await;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(watch) = watch {
                watch(done, total as u64);
            }
            shard
        })
        .buffered(io.max_requests.max(1).saturating_mul(FOOTERS_AT_ONCE));
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

/// The shards behind `footers`, or the first error. One without images ends nothing before it is known how it can be left out.
async fn sound_shards(
    footers: impl Stream<Item = Result<Option<(Shard, footer::ShardReader)>, DatasetError>>,
    objects: &[list::ListedObject],
) -> Result<Vec<(Shard, footer::ShardReader)>, DatasetError> {
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

/// Checks that the shards of one data set, the first of which has number `first`, read alike and hold images.
fn opened_source(
    shards: &[Shard],
    readers: &[footer::ShardReader],
    first: u32,
    weight: f64,
) -> Result<Source, DatasetError> {
    // Metadata is lost on the way: names that some shards give hold for all.
    let named = |shard: &&Shard| shard.mapping.class_names.is_some();
    let naming = shards.iter().find(named);
    for shard in &shards[1..] {
        let same = same_mapping(&shards[0], shard);
        same.map_err(|error| without_few(error, &shards[0], shards, readers))?;
        if let Some(naming) = naming {
            let named = same_mapping(naming, shard);
            named.map_err(|error| without_few(error, naming, shards, readers))?;
        }
    }
    if shards.iter().all(|shard| shard.mapping.is_empty()) {
        let column = shards[0].mapping.images[0].path.to_string();
        return Err(DatasetError::Schema {
            place: Place {
                object: shards[0].url.clone(),
                ..Place::default()
            },
            source: Box::new(SchemaError::NoBytes { column }),
            leave_out: LeaveOut::Nothing,
        });
    }
    let sum = |of: fn(&PartInfo) -> u32| -> u64 {
        let parts = shards.iter().flat_map(|shard| &shard.parts);
        parts.map(|part| u64::from(of(part))).sum()
    };
    let (num_samples, num_absent) = (sum(PartInfo::num_samples), sum(|part| part.num_absent));
    let url = || shards[0].url.clone();
    if num_samples == 0 {
        return Err(match num_absent {
            0 => DatasetError::NoRows { url: url() },
            num_rows => DatasetError::NoImages {
                url: url(),
                column: shards[0].mapping.images[0].path.to_string(),
                num_rows,
            },
        });
    }
    Ok(Source {
        shards: first..first + shards.len() as u32,
        num_samples,
        num_absent,
        weight,
        class_names: naming.and_then(|shard| shard.mapping.class_names.clone()),
    })
}

/// Says how most shards can be read without the few that differ.
fn without_few(
    mut error: DatasetError,
    first: &Shard,
    shards: &[Shard],
    readers: &[footer::ShardReader],
) -> DatasetError {
    if let DatasetError::SchemasDiffer { leave_out, .. } = &mut error {
        let differs = |shard| same_mapping(first, shard).is_err();
        let differs = shards.iter().map(differs).collect::<Vec<_>>();
        let few = differs.iter().filter(|differs| **differs).count() * 2 < shards.len();
        let is_odd = |index: usize| differs[index] == few;
        let objects = readers
            .iter()
            .map(|reader| reader.object.clone())
            .collect::<Vec<_>>();
        if let Some(odd) = (0..shards.len()).find(|&index| is_odd(index)) {
            *leave_out = leave_out::leave_out(&objects, odd, is_odd);
        }
    }
    error
}

/// Shards of one data set must read alike, or a sample would mean different things in different shards.
fn same_mapping(first: &Shard, second: &Shard) -> Result<(), DatasetError> {
    match first.mapping.difference(&second.mapping) {
        None => Ok(()),
        Some(difference) => Err(DatasetError::SchemasDiffer {
            first: first.url.clone(),
            second: second.url.clone(),
            difference,
            leave_out: LeaveOut::Nothing,
        }),
    }
}

/// Length of the folder part that all URLs share.
fn common_root(urls: &[&str]) -> usize {
    let first = urls[0].as_bytes();
    let shared = urls
        .iter()
        .map(|url| {
            let same = first.iter().zip(url.as_bytes());
            same.take_while(|(a, b)| a == b).count()
        })
        .min()
        .unwrap_or(0);
    first[..shared]
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |slash| slash + 1)
}

fn update_text(digest: &mut Sha256, text: &str) {
    digest.update((text.len() as u64).to_le_bytes());
    digest.update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    #[test]
    fn settings_of_older_checkpoints_are_read_and_not_written_again() {
        let old: super::IoConfig = serde_json::from_str(r#"{"max_retries": 8}"#).unwrap();
        assert_eq!(old.outage_s.to_bits(), 600f64.to_bits());
        let text = serde_json::to_string(&old).unwrap();
        assert!(!text.contains("max_retries"), "{text}");
    }

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
