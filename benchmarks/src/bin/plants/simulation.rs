//! What `nepa profile --simulate` says beside what a profile of the real thing finds.
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::data::{Folders, Shape};
use crate::plant::{Setup, Store, rate};

/// What is profiled, and scenarios of it, each with the setup that makes it real.
struct Case {
    name: &'static str,
    setup: Setup,
    scenarios: Vec<(&'static str, Setup)>,
}

fn cases() -> [Case; 2] {
    let with = Setup::new;
    let one_core = |setup| Setup {
        one_core: true,
        ..setup
    };
    let small = Shape::SmallGroups;
    [
        Case {
            name: "5-row groups, 100 ms, 8 requests",
            setup: with(small, Store::Server(100, 0.0), "--max-requests 8"),
            scenarios: vec![
                (
                    "requests=4",
                    with(small, Store::Server(100, 0.0), "--max-requests 4"),
                ),
                (
                    "requests=16",
                    with(small, Store::Server(100, 0.0), "--max-requests 16"),
                ),
                (
                    "latency=200",
                    with(small, Store::Server(200, 0.0), "--max-requests 8"),
                ),
                (
                    "latency=200,requests=16",
                    with(small, Store::Server(200, 0.0), "--max-requests 16"),
                ),
                (
                    "bandwidth=5",
                    with(small, Store::Server(100, 5.0), "--max-requests 8"),
                ),
                (
                    "consumer=100",
                    with(
                        small,
                        Store::Server(100, 0.0),
                        "--max-requests 8 --consumer 100",
                    ),
                ),
            ],
        },
        Case {
            name: "photos on the disk",
            setup: with(Shape::Plain, Store::Disk, ""),
            scenarios: vec![
                ("cores=1", one_core(with(Shape::Plain, Store::Disk, ""))),
                (
                    "threads=1",
                    with(Shape::Plain, Store::Disk, "--decode-threads 1"),
                ),
                (
                    "consumer=300",
                    with(Shape::Plain, Store::Disk, "--consumer 300"),
                ),
            ],
        },
    ]
}

/// Measures all cases and prints the table.
pub(crate) fn run(folders: &Folders, seconds: f64) -> anyhow::Result<()> {
    println!("| measured | changed | computed, images/s | really, images/s | error |");
    println!("|---|---|---|---|---|");
    for Case {
        name,
        setup,
        scenarios,
    } in cases()
    {
        eprintln!("simulation: {name}");
        let costs = setup.profile(folders, seconds)?;
        for (scenario, real) in scenarios {
            let computed = simulate(&costs, scenario)?;
            let really = rate(&real.profile(folders, seconds)?);
            let error = 100.0 * (computed / really - 1.0);
            println!("| {name} | {scenario} | {computed:.0} | {really:.0} | {error:+.0} % |");
        }
    }
    println!();
    Ok(())
}

fn simulate(costs: &Value, scenario: &str) -> anyhow::Result<f64> {
    let work = tempfile::tempdir()?;
    let [measured, json] = ["measured.json", "simulated.json"].map(|name| work.path().join(name));
    std::fs::write(&measured, costs.to_string())?;
    let mut command = Command::new(std::env::current_exe()?.with_file_name("nepa"));
    command.args(["profile", "--simulate", scenario, "--measured"]);
    let output = command.arg(&measured).arg("--json").arg(&json).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let found: Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    let rate = found[0]["images_per_second"].as_f64();
    rate.context("it computed no rate")
}
