//! Several ranks train as one process does, bit for bit, from and to any number of them; one that ends
//! ends all, by name; ranks that were not started alike do not begin.
use std::process::Command;

use nepa_tests::program::RunFolder;
use nepa_tests::ranks::launched;

mod alike;
mod failures;
mod modes;
mod numbers;
mod requests;
mod resume;

/// Four micro-batches a step, of two images each.
const SETTINGS: [&str; 3] = [
    "train.micro_batch=2",
    "train.steps=6",
    "checkpoint.every_steps=2",
];

/// The same run as so many ranks; of one, without `launch`.
fn ranks(place: &RunFolder, count: usize, out: &str, settings: &[&str]) -> Command {
    ranks_on(place, "data", count, out, settings)
}

fn ranks_on(place: &RunFolder, data: &str, count: usize, out: &str, settings: &[&str]) -> Command {
    let run = place.pretrain(data, out, &[&SETTINGS[..], settings].concat());
    launched(run, count)
}

/// One of two ranks, as torchrun would start it.
fn one_of_two(mut command: Command, rank: usize, master_port: &str) -> Command {
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2");
    command.env("MASTER_ADDR", "127.0.0.1");
    command.env("MASTER_PORT", master_port);
    command
}
