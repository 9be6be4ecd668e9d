//! A run goes on with any number of ranks after one of them was killed, as if it had never stopped.
use std::time::Duration;

use nepa_pipeline::random::{Purpose, below, epoch_stream};
use nepa_tests::program::{
    RunFolder, assert_says, count_lines, newest_checkpoint, send_signal, succeed, test_seed, text,
};
use nepa_tests::ranks::{assert_same_run, begin, children, end, kill, said};

use super::ranks;

const LONG: [&str; 2] = ["train.steps=300", "checkpoint.every_steps=50"];

#[test]
fn a_run_goes_on_with_other_numbers_of_ranks_after_a_rank_was_killed() {
    let place = RunFolder::new();
    succeed(&mut ranks(&place, 1, "straight", &LONG));
    let metrics = place.path("out").join("metrics.jsonl");
    succeed(ranks(&place, 1, "out", &LONG).args(["--max-steps", "40"]));

    let out = place.path("out");
    let launched = begin(ranks(&place, 4, "out", &LONG).arg("--resume"), &out, 60);
    kill(&children(&launched, "RANK")[2]);
    let output = end(launched);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    assert_says(
        &said(&output),
        &["rank 2 has ended without a word", "saved after step"],
    );
    assert!(count_lines(&metrics) < 300);

    // A signal at one of them stops all after the same step, saved.
    let before = count_lines(&metrics);
    let launched = begin(
        ranks(&place, 2, "out", &LONG).arg("--resume"),
        &out,
        before + 10,
    );
    send_signal(&launched, "-TERM");
    let output = end(launched);
    assert_eq!(output.status.code(), Some(143), "{}", text(&output));
    assert_says(
        &text(&output),
        &[
            "stopped by a signal and saved after step",
            "nepa launch -n 2 -- pretrain",
        ],
    );
    let steps = count_lines(&metrics);
    assert!(steps < 300);
    let name = newest_checkpoint(&place.path("out"));
    assert!(name.ends_with(format!("step-{steps:08}")), "{name:?}");

    succeed(ranks(&place, 2, "out", &LONG).arg("--resume"));
    assert_same_run(&place.path("straight"), &place.path("out"));
}

/// How often one rank is killed: `NEPA_RANK_KILLS`.
fn kills() -> usize {
    std::env::var("NEPA_RANK_KILLS").map_or(3, |text| text.parse().unwrap())
}

/// A process alone, one of eight ranks, one of two, and so on.
#[test]
fn a_rank_killed_at_a_random_moment_leaves_no_trace() {
    let kills = kills();
    let seed = test_seed();
    let mut rng = epoch_stream(seed, 0, 0, Purpose::Order);
    let place = RunFolder::new();
    let steps = format!("train.steps={}", 60 + 40 * kills);
    let settings = [
        "train.batch=16",
        "train.micro_batch=1",
        "data.lanes=8",
        "checkpoint.every_steps=3",
        &steps,
    ];
    let trace = |out: &str| place.path(&format!("{out}.trace"));
    let run = |count: usize, out: &str| {
        let mut command = ranks(&place, count, out, &settings);
        command.arg("--trace-samples").arg(trace(out));
        command
    };
    succeed(&mut run(1, "straight"));
    let metrics = place.path("killed").join("metrics.jsonl");
    for (number, count) in (1..=kills).zip([1, 8, 2].into_iter().cycle()) {
        let lines = count_lines(&metrics) + below(&mut rng, 6) as usize;
        let out = place.path("killed");
        let child = begin(run(count, "killed").arg("--resume"), &out, lines);
        std::thread::sleep(Duration::from_micros(below(&mut rng, 20_000)));
        let rank = below(&mut rng, count as u64) as usize;
        let processes = match count {
            1 => vec![child.id().to_string()],
            _ => children(&child, "RANK"),
        };
        println!("kill {number}: rank {rank} of {count} after more than {lines} lines");
        let process = processes.get(rank);
        kill(process.expect("the run has ended early: it needs more steps"));
        let output = end(child);
        assert!(!output.status.success(), "{}", text(&output));
        if count > 1 && rank > 0 {
            let ended = format!("rank {rank} has ended without a word");
            assert_says(&said(&output), &[&ended, "saved after step"]);
        }
    }
    succeed(run(2, "killed").arg("--resume"));
    assert_same_run(&place.path("straight"), &place.path("killed"));
    let read = |out: &str| std::fs::read(trace(out)).unwrap();
    assert!(read("straight") == read("killed"), "the traces differ");
}
