//! Does the training step on the GPU give what the processor's gives, and how far is each of its
//! kernels and matmuls from what the device can?
//!
//! One question a process. Prints rows of the report that scripts/gpu-check gathers, with PyTorch
//! beside them; ends with code 3 if a row says FAILED.
mod matmuls;
mod models;
mod profile;
mod rates;
mod timed;
mod twins;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use models::Model;

/// Tests and rates of the training step on CUDA device 0.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    question: Question,
    /// Models of two blocks and fewer steps: to try this program out where it is slow. Its rates
    /// mean nothing then.
    #[arg(long, global = true)]
    tiny: bool,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Is each matmul of a step of B/14 right, and how fast?
    Matmuls {
        /// Images of the step.
        #[arg(long, default_value_t = 16)]
        batch: usize,
    },
    /// Is the engine built for B/14, and does it compute one step?
    Engine {
        /// Images of the step.
        #[arg(long, default_value_t = 16)]
        batch: usize,
    },
    /// Does one step of a small model give what the processor's engine gives?
    Twin,
    /// How many images a second does a model train?
    Rate {
        #[arg(long)]
        model: Model,
        /// Images of each forward and backward pass.
        #[arg(long, value_delimiter = ',', default_value = "64,128,256")]
        batches: Vec<usize>,
        /// Steps of each rate.
        #[arg(long, default_value_t = 10)]
        steps: usize,
    },
    /// What takes the time of a step of B/14?
    Profile {
        /// Images of the step.
        #[arg(long, default_value_t = 256)]
        batch: usize,
    },
    /// Are loss and gradients those of the f32 engine, for each variant of the architecture?
    Gradients,
    /// Does a step repeat bit for bit?
    Repeats,
    /// Does a model learn as with the f32 engine?
    Trains,
}

fn main() -> anyhow::Result<ExitCode> {
    let Args { question, tiny } = Args::parse();
    let passed = match question {
        Question::Matmuls { batch } => matmuls::print(tiny, batch)?,
        Question::Engine { batch } => rates::print_engine(tiny, batch),
        Question::Twin => twins::print_twin(tiny),
        Question::Rate {
            model,
            batches,
            steps,
        } => rates::print(model, tiny, &batches, steps)?,
        Question::Profile { batch } => profile::print(tiny, batch)?,
        Question::Gradients => twins::print_gradients(tiny),
        Question::Repeats => twins::print_repeats(tiny),
        Question::Trains => twins::print_trains(tiny),
    };
    Ok(ExitCode::from(if passed { 0 } else { 3 }))
}
