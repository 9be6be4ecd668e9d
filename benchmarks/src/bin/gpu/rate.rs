//! Images a second of the loader alone, into bf16.
use std::time::{Duration, Instant};

use anyhow::Context;
use nepa_benchmarks::device_report::print_measured;
use nepa_benchmarks::process_cpu_s;
use nepa_pipeline::{Loader, PixelType, cuda::CudaBackend, cuda::nvjpeg};

use crate::Bench;

/// Batches before the measurement.
const WARM_UP: usize = 8;
const WARM_UP_TINY: usize = 2;

/// Prints a row: images a second, of one core, cores used, intervals between batches, memory taken
/// meanwhile, who decoded.
pub(crate) fn print(bench: &Bench, seconds: f64) -> bool {
    let title = bench.common.engines.title();
    print_measured(title, &measure(bench, seconds))
}

/// Pieces of memory taken so far.
fn allocations(loader: &Loader<CudaBackend>) -> usize {
    loader.backend().accelerator().allocations() + nvjpeg::allocations()
}

fn measure(bench: &Bench, seconds: f64) -> anyhow::Result<[String; 6]> {
    let (batch, warm_up) = if bench.common.tiny {
        (32, WARM_UP_TINY)
    } else {
        (256, WARM_UP)
    };
    let mut loader = bench.loader(
        &bench.dataset,
        bench.config(batch, None),
        PixelType::Bf16,
        bench.common.engines.config(),
    )?;
    for _ in 0..warm_up {
        loader.next_batch()?.context("the loader ended")?;
    }
    let (mut images, mut intervals) = (0, Vec::new());
    let (taken, stats) = (allocations(&loader), loader.stats());
    let (started, cpu) = (Instant::now(), process_cpu_s()?);
    let limit = Duration::from_secs_f64(seconds);
    while started.elapsed() < limit {
        let waiting = Instant::now();
        let next = loader.next_batch()?.context("the loader ended")?;
        // The pixels are there when the consumer's stream says so.
        bench.stream.synchronize()?;
        images += next.len();
        intervals.push(1e3 * waiting.elapsed().as_secs_f64());
    }
    let (wall, cpu) = (started.elapsed().as_secs_f64(), process_cpu_s()? - cpu);
    let (taken, stats) = (allocations(&loader) - taken, loader.stats().since(&stats));
    let (limiting, share) = stats.limiting_stage();
    let decoders = stats.decoders.map_or_else(
        || "no decoder counts".to_owned(),
        |decoders| decoders.to_string(),
    );
    intervals.sort_by(f64::total_cmp);
    let at = |share: f64| intervals[((intervals.len() - 1) as f64 * share) as usize];
    Ok([
        format!("{:.0}", images as f64 / wall),
        // In steps of 10 ms.
        format!("{:.0}", images as f64 / cpu.max(0.01)),
        format!("{:.1}", cpu / wall),
        format!("{:.1} / {:.1} / {:.1}", at(0.5), at(0.99), at(1.0)),
        format!("{taken}"),
        format!("{limiting} {:.0} %; {decoders}", 100.0 * share),
    ])
}
