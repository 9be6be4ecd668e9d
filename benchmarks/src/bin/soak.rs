//! Does the loader's memory stay flat over many samples? Runs it over small images and fits a line
//! to the resident memory.
//!
//! The images are tiny, so that millions of samples take minutes, not hours: what grows by the
//! sample shows, whatever its size. Prints Markdown.
use std::time::Instant;

use clap::Parser;
use nepa_benchmarks::{CountingAllocator, memory_mib, open, page_faults};
use nepa_pipeline::{AugmentConfig, IoRuntime, LoaderBuilder};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Memory over many samples.
#[derive(Debug, Parser)]
struct Args {
    /// Shards of small images.
    url: String,
    /// Samples in all.
    #[arg(long, default_value_t = 3_000_000)]
    samples: u64,
}

/// Readings of the memory; the first quarter is warm-up and not part of the line.
const READINGS: u64 = 200;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = IoRuntime::new(1)?;
    let mut loader = LoaderBuilder::default()
        .dataset(open(&args.url, &runtime)?)
        .batch_size(64)
        .decode_threads(2)
        .augment(AugmentConfig::random_resized_crop(8, [0.08, 1.0]))
        .open()?;
    let started = Instant::now();
    let mut readings: Vec<(f64, f64)> = Vec::new();
    let (mut samples, mut counted) = (0, (0, 0, 0));
    while samples < args.samples {
        samples += loader.next_batch()?.map_or(0, |batch| batch.len() as u64);
        if samples >= readings.len() as u64 * args.samples / READINGS {
            readings.push((samples as f64, memory_mib()?));
            if readings.len() as u64 == READINGS / 4 {
                counted = (samples, CountingAllocator::count(), page_faults()?);
            }
        }
    }
    let settled = &readings[(READINGS / 4) as usize..];
    let count = settled.len() as f64;
    let mean = |value: fn(&(f64, f64)) -> f64| settled.iter().map(value).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|reading| reading.0), mean(|reading| reading.1));
    let covariance: f64 = settled
        .iter()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum();
    let variance: f64 = settled.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let least = settled
        .iter()
        .map(|reading| reading.1)
        .fold(f64::MAX, f64::min);
    let most = settled.iter().map(|reading| reading.1).fold(0.0, f64::max);
    let per_sample = |end: u64, start: u64| (end - start) as f64 / (samples - counted.0) as f64;
    println!(
        "| samples | samples/s | resident memory after the first quarter, MiB | slope, MiB a million samples | allocations a sample | page faults a sample |"
    );
    println!("|---|---|---|---|---|---|");
    println!(
        "| {samples} | {:.0} | {least:.1} to {most:.1} | {:+.2} | {:.1} | {:.3} |",
        samples as f64 / started.elapsed().as_secs_f64(),
        covariance / variance * 1e6,
        per_sample(CountingAllocator::count(), counted.1),
        per_sample(page_faults()?, counted.2),
    );
    Ok(())
}
