//! What `nepa profile --simulate` says beside what a real run gives.
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use crate::data::{Folders, Shape};
use crate::setup::{Setup, Store, program, succeed};

/// What is profiled, and scenarios of it, each with the setup that makes it real.
struct Case {
    name: &'static str,
    setup: Setup,
    scenarios: Vec<(&'static str, Setup)>,
}

fn cases() -> [Case; 2] {
    let with = |ms, mb| Setup::new(Shape::SmallGroups, Store::Server(ms, mb));
    let local = || Setup::new(Shape::Plain, Store::Disk);
    let taken = |setup, rate| Setup {
        consumer: Some(rate),
        ..setup
    };
    let one_core = Setup {
        one_core: true,
        ..local()
    };
    [
        Case {
            name: "5-row groups, 100 ms, 8 requests",
            setup: with(100, 0.0).requests(8),
            scenarios: vec![
                ("requests=4", with(100, 0.0).requests(4)),
                ("requests=16", with(100, 0.0).requests(16)),
                ("latency=200", with(200, 0.0).requests(8)),
                ("latency=200,requests=16", with(200, 0.0).requests(16)),
                ("bandwidth=5", with(100, 5.0).requests(8)),
                ("consumer=100", taken(with(100, 0.0).requests(8), 100.0)),
            ],
        },
        Case {
            name: "photos on the disk",
            setup: local(),
            scenarios: vec![
                ("cores=1", one_core),
                ("threads=1", local().threads(1)),
                ("consumer=300", taken(local(), 300.0)),
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
            let really = real.really(folders)?;
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
    let mut command = Command::new(program()?);
    command.args(["profile", "--simulate", scenario, "--measured"]);
    succeed(command.arg(&measured).arg("--json").arg(&json))?;
    let found: Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    let rate = found[0]["images_per_second"].as_f64();
    rate.context("it computed no rate")
}
