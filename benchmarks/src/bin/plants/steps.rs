//! What `nepa profile --consumer step` says beside the rate of the training run itself.
use std::io::BufRead;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use crate::data::{Folders, Shape};
use crate::plant::rate;
use crate::setup::{program, succeed};

/// A recipe whose steps wait for images, and one whose images wait for steps; with their batches.
const RECIPES: [(&str, u32); 2] = [("quickstart", 32), ("imagenette-small", 64)];
/// Time of a training run, in seconds.
const TRAIN_S: f64 = 8.0;
/// Share of a run's steps that are not measured.
const SETTLE: f64 = 0.25;

/// Measures both and prints the table.
pub(crate) fn run(folders: &Folders, repeats: usize, seconds: f64) -> anyhow::Result<()> {
    println!("| recipe | --consumer step, images/s | pretrain, images/s | error |");
    println!("|---|---|---|---|");
    for (recipe, batch) in RECIPES {
        for repeat in 1..=repeats {
            eprintln!("steps of {recipe}: {repeat} of {repeats}");
            let folder = folders.of(Shape::Plain)?;
            let foretold = profile(&folder, recipe, seconds)?;
            let really = pretrain(&folder, recipe, foretold, batch)?;
            let error = 100.0 * (foretold / really - 1.0);
            println!("| {recipe} | {foretold:.0} | {really:.0} | {error:+.0} % |");
        }
    }
    println!();
    Ok(())
}

fn profile(folder: &Path, recipe: &str, seconds: f64) -> anyhow::Result<f64> {
    let work = tempfile::tempdir()?;
    let json = work.path().join("profile.json");
    let mut command = Command::new(program()?);
    command
        .arg("profile")
        .arg(folder)
        .args(["--recipe", recipe]);
    command.args(["--consumer", "step", "--seconds", &seconds.to_string()]);
    succeed(command.arg("--json").arg(&json))?;
    Ok(rate(&serde_json::from_slice(&std::fs::read(&json)?)?))
}

/// Images a second of a training run that takes some seconds at the `foretold` rate.
fn pretrain(folder: &Path, recipe: &str, foretold: f64, batch: u32) -> anyhow::Result<f64> {
    let out = tempfile::tempdir()?;
    let steps = (foretold * TRAIN_S / f64::from(batch)).ceil().max(20.0);
    let mut command = Command::new(program()?);
    command.args(["pretrain", recipe, "--max-steps", &steps.to_string()]);
    command.arg("--data").arg(folder);
    succeed(command.arg("--out").arg(out.path().join("run")))?;
    let lines = std::fs::read(out.path().join("run/metrics.jsonl"))?;
    let mut times = Vec::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(&line?)?;
        let time = |key: &str| line[key].as_f64().context("no time of a step");
        times.push(time("data_wait_ms")? + time("step_ms")?);
    }
    let measured = &times[(times.len() as f64 * SETTLE) as usize..];
    let seconds = measured.iter().sum::<f64>() / 1e3;
    Ok(measured.len() as f64 * f64::from(batch) / seconds)
}
