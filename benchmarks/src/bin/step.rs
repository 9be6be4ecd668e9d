//! How long does one optimiser step of a recipe's model take on this processor, and how much memory does it take?
//!
//! Forward, backward and update on random pixels; no loader. Prints a row of Markdown.
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use nepa_benchmarks::{median, peak_memory_mib, process_cpu_s};
use nepa_model::{RopeDraw, init_weights};
use nepa_trainer::engine::{Engine, Images, TrainingState};
use nepa_trainer::recipe::Recipe;
use nepa_trainer::tape_engine::TapeEngine;

/// Steps of a recipe's model alone.
#[derive(Debug, Parser)]
struct Args {
    /// The recipe: model, optimiser, batch and micro-batch.
    recipe: PathBuf,
    /// Steps; the median counts.
    #[arg(long, default_value_t = 10)]
    steps: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let recipe = Recipe::read(&args.recipe, &[])?;
    let (model, train) = (&recipe.model, &recipe.train);
    let weights = init_weights(model, recipe.seed);
    let num_weights = weights.flat.len();
    let mut engine = TapeEngine::new(
        model,
        &recipe.optimizer,
        TrainingState::new(weights),
        &candle_core::Device::Cpu,
    )?;
    // Any pixels do: the time does not depend on their values.
    let length = 3 * model.image_size * model.image_size;
    let pixels: Vec<Vec<f32>> = (0..train.batch)
        .map(|image| {
            (0..length)
                .map(|i| ((i * 31 + image * 7919) % 255) as f32 / 127.5 - 1.0)
                .collect()
        })
        .collect();
    let images: Vec<&[f32]> = pixels.iter().map(Vec::as_slice).collect();
    let (mut wall_ms, mut cpu_ms) = (Vec::new(), Vec::new());
    // The first step allocates and is not counted.
    for step in 0..=args.steps {
        let micro_batches = (train.batch / train.micro_batch) as u64;
        let ropes: Vec<RopeDraw> = (0..micro_batches)
            .map(|micro| RopeDraw::draw(model, recipe.seed, step, micro))
            .collect();
        let (wall, cpu) = (Instant::now(), process_cpu_s()?);
        engine.step(&Images::Host(&images), &ropes)?;
        engine.update(1e-4)?;
        if step > 0 {
            wall_ms.push(1000.0 * wall.elapsed().as_secs_f64());
            cpu_ms.push(1000.0 * (process_cpu_s()? - cpu));
        }
    }
    println!(
        "| {} | {:.2} M | {} / {} | {:.0} | {:.0} | {:.0} |",
        recipe.name,
        num_weights as f64 / 1e6,
        train.batch,
        train.micro_batch,
        median(&wall_ms),
        median(&cpu_ms),
        peak_memory_mib()?
    );
    Ok(())
}
