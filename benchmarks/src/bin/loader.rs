//! How many images a second of one core does the whole loader give, from wherever the URL points,
//! and how much memory does it take?
//!
//! Nothing consumes the batches. Processor time is that of the whole process: fetching, unpacking,
//! decoding, hand-over; it is read from the first batch on, as are allocations and page faults.
//! Prints a row of Markdown, or JSON.
use std::time::Instant;

use clap::Parser;
use nepa_benchmarks::{
    CountingAllocator, loader, open, page_faults, peak_memory_mib, process_cpu_s,
};
use nepa_pipeline::IoRuntime;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The whole loader alone.
#[derive(Debug, Parser)]
struct Args {
    /// Shards of images.
    url: String,
    /// Name in the report.
    #[arg(long, default_value = "")]
    name: String,
    /// Passes over the images.
    #[arg(long, default_value_t = 3)]
    epochs: u64,
    /// Decode threads.
    #[arg(long, default_value_t = 2)]
    decode_threads: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let started = Instant::now();
    let runtime = IoRuntime::new(2)?;
    let dataset = open(&args.url, &runtime)?;
    let mut loader = loader(dataset, args.epochs, args.decode_threads)?;
    drop(loader.next_batch()?);
    let first_batch_s = started.elapsed().as_secs_f64();
    let (wall, cpu) = (Instant::now(), process_cpu_s()?);
    let (allocations, faults) = (CountingAllocator::count(), page_faults()?);
    let mut images = 0;
    while let Some(batch) = loader.next_batch()? {
        images += batch.len();
    }
    let (wall_s, cpu_s) = (wall.elapsed().as_secs_f64(), process_cpu_s()? - cpu);
    let per_image = |count: u64| count as f64 / images as f64;
    let allocations = per_image(CountingAllocator::count() - allocations);
    let faults = per_image(page_faults()? - faults);
    let io = loader.dataset().io_counters();
    let peak_mib = peak_memory_mib()?;
    if args.json {
        let result = serde_json::json!({
            "images": images, "wall_s": wall_s, "cpu_s": cpu_s, "peak_mib": peak_mib, "first_batch_s": first_batch_s,
            "requests": io.requests, "bytes": io.bytes, "allocations_per_image": allocations, "page_faults_per_image": faults,
        });
        println!("{result}");
    } else {
        println!(
            "| {} | {images} | {:.0} | {:.2} | {:.0} | {peak_mib:.0} | {first_batch_s:.2} | {allocations:.1} | {faults:.1} |",
            args.name,
            images as f64 / cpu_s,
            1000.0 * cpu_s / images as f64,
            images as f64 / wall_s,
        );
    }
    Ok(())
}
