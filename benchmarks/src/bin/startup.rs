//! How long after its start does a loader give the first batch from S3, by the number of shards,
//! and with an index of them?
//!
//! The server is in this process, in memory, with a latency if asked for; the shards are small
//! copies of one, 8 images each. Read: the clock, from before the data set is opened. Prints
//! Markdown.
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use nepa_benchmarks::median;
use nepa_pipeline::{AugmentConfig, Dataset, DatasetConfig, IoConfig, IoRuntime, LoaderBuilder};
use nepa_tests::s3::{Options, S3Server};

/// The key of the index.
const INDEX: &str = "shards.index";

/// Time to the first batch by the number of shards.
#[derive(Debug, Parser)]
struct Args {
    /// A shard to copy.
    shard: PathBuf,
    /// Numbers of shards.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000, 10_000])]
    shards: Vec<usize>,
    /// Milliseconds from each request to the first byte of its answer.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 100])]
    latency_ms: Vec<u64>,
    /// Also opens each data set by its index, which lies in the same bucket.
    #[arg(long)]
    index: bool,
    /// Repetitions; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let bytes = bytes::Bytes::from(
        std::fs::read(&args.shard).with_context(|| args.shard.display().to_string())?,
    );
    println!("Shards of {} kB.\n", bytes.len() / 1000);
    println!(
        "| shards | latency, ms | index, kB | opened after, s | first batch after, s | requests until then |\n|---|---|---|---|---|---|"
    );
    for &latency_ms in &args.latency_ms {
        for &shards in &args.shards {
            let server = S3Server::start_with(Options {
                latency: Duration::from_millis(latency_ms),
                ..Options::default()
            })?;
            for shard in 0..shards {
                server.put("bench", &format!("train-{shard:05}.parquet"), bytes.clone());
            }
            let mut config = DatasetConfig {
                urls: vec!["s3://bench/".to_owned()],
                ..DatasetConfig::default()
            };
            let io = IoConfig {
                store_options: server.store_options(),
                ..IoConfig::default()
            };
            measure(&args, (shards, latency_ms), &server, (&config, &io))?;
            if args.index {
                let dataset = Dataset::open(&config, &io, &IoRuntime::new(2)?)?;
                let index = dataset.indexes()?.pop().context("one data set")?;
                server.put("bench", INDEX, index);
                config.index = Some(format!("s3://bench/{INDEX}"));
                measure(&args, (shards, latency_ms), &server, (&config, &io))?;
            }
        }
    }
    Ok(())
}

/// Opens it some times and prints a row.
fn measure(
    args: &Args,
    (shards, latency_ms): (usize, u64),
    server: &S3Server,
    (config, io): (&DatasetConfig, &IoConfig),
) -> anyhow::Result<()> {
    let (mut opened_s, mut first_s) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        server.take_log();
        let start = Instant::now();
        let runtime = IoRuntime::new(2)?;
        let dataset = Dataset::open(config, io, &runtime)?;
        opened_s.push(start.elapsed().as_secs_f64());
        let mut loader = LoaderBuilder::default()
            .dataset(dataset)
            .batch_size(64)
            .decode_threads(2)
            .augment(AugmentConfig::random_resized_crop(224, [0.08, 1.0]))
            .open()?;
        loader.next_batch()?.context("no batch")?;
        first_s.push(start.elapsed().as_secs_f64());
    }
    let index = config
        .index
        .as_ref()
        .and_then(|_| server.get("bench", INDEX));
    let index = index.map_or_else(
        || "none".to_owned(),
        |index| (index.len() / 1000).to_string(),
    );
    println!(
        "| {shards} | {latency_ms} | {index} | {:.2} | {:.2} | {} |",
        median(&opened_s),
        median(&first_s),
        server.take_log().len()
    );
    Ok(())
}
