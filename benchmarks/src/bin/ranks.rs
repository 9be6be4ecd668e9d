//! What does it take to add gradients over ranks: by our tree over TCP and over MPI, and by the MPI
//! library?
//!
//! Started by mpirun, from which it has its rank; each way has its turn in the same processes.
//! Read: the clock of the slowest rank, from when all are there. Rank 0 prints rows of Markdown.
//! The feature `mpi` builds it; `report ranks` runs it.
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use clap::Parser;
use nepa_benchmarks::median;
use nepa_trainer::Adding;

/// Times of sums over ranks.
#[derive(Debug, Parser)]
struct Args {
    /// Values that each rank adds.
    #[arg(long)]
    values: usize,
    /// Sums by each way, behind one that is not counted.
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Where rank 0 waits for the others over TCP.
    #[arg(long, value_name = "HOST:PORT")]
    meet: String,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.turns > 0, "--turns 0: at least one is measured");
    let join = |meet| Adding::join(meet).map_err(|error| anyhow!(error));
    let over_tcp = join(Some(args.meet.as_str()))?;
    let over_mpi = join(None)?;
    let library = over_mpi.library.as_ref();
    let ways = [
        ("tree over TCP", &over_tcp.tree),
        ("tree over MPI", &over_mpi.tree),
        (
            "MPI_Allreduce",
            library.context("MPI does not connect these ranks: start them with mpirun")?,
        ),
    ];
    let mut seconds = ways.each_ref().map(|_| Vec::new());
    // Their sums stay far below the largest number.
    let mut values = vec![1e-3f32; args.values];
    for turn in 0..=args.turns {
        for ((_, way), seconds) in ways.iter().zip(&mut seconds) {
            let gather = |own: &[f64]| way.gather(own).map_err(|error| anyhow!(error));
            gather(&[])?;
            let started = Instant::now();
            way.sum(&mut values).map_err(|error| anyhow!(error))?;
            let all = gather(&[started.elapsed().as_secs_f64()])?;
            let slowest = all.into_iter().flatten().fold(0.0, f64::max);
            // The first takes memory.
            if turn > 0 {
                seconds.push(slowest);
            }
        }
    }
    if std::env::var("OMPI_COMM_WORLD_RANK").as_deref() != Ok("0") {
        return Ok(());
    }
    let ranks = ways[0].1.size();
    // Halving and doubling, as any algorithm that sends no more than it must.
    let sent_bytes = 2.0 * 4.0 * args.values as f64 * (ranks - 1) as f64 / ranks as f64;
    for ((name, _), seconds) in ways.iter().zip(&seconds) {
        let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = seconds.iter().copied().fold(0.0, f64::max);
        let middle = median(seconds);
        println!(
            "| {ranks} | {:.0} | {name} | {middle:.3} | {least:.3} to {most:.3} | {:.2} |",
            args.values as f64 / 1e6,
            sent_bytes / middle / 1e9,
        );
    }
    Ok(())
}
