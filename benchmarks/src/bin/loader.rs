//! How many images a second of one core does the whole loader give, from wherever the URL points, and how much memory does it take?
//!
//! Nothing consumes the batches. Processor time is that of the whole process: fetching, unpacking, decoding, hand-over. Prints a row of Markdown.
use std::time::Instant;

use clap::Parser;
use nepa_benchmarks::{loader, open, peak_memory_mib, process_cpu_s};
use nepa_pipeline::IoRuntime;

/// The whole loader alone.
#[derive(Debug, Parser)]
struct Args {
    /// Shards of images.
    url: String,
    /// Name in the report.
    #[arg(long)]
    name: String,
    /// Passes over the images.
    #[arg(long, default_value_t = 3)]
    epochs: u64,
    /// Decode threads.
    #[arg(long, default_value_t = 2)]
    decode_threads: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = IoRuntime::new(2)?;
    let dataset = open(&args.url, &runtime)?;
    let (wall, cpu) = (Instant::now(), process_cpu_s()?);
    let mut loader = loader(dataset, args.epochs, args.decode_threads)?;
    let mut images = 0;
    while let Some(batch) = loader.next_batch()? {
        images += batch.len();
    }
    drop(loader);
    let (wall_s, cpu_s) = (wall.elapsed().as_secs_f64(), process_cpu_s()? - cpu);
    println!(
        "| {} | {images} | {:.0} | {:.2} | {:.0} | {:.0} |",
        args.name,
        images as f64 / cpu_s,
        1000.0 * cpu_s / images as f64,
        images as f64 / wall_s,
        peak_memory_mib()?
    );
    Ok(())
}
