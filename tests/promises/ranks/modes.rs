//! What a run can do besides training, on several ranks: try, measure, and list what it trained on.
use nepa_tests::photos::some_bad;
use nepa_tests::program::{
    RunFolder, assert_says, nepa, newest_checkpoint, succeed, text, tiny_recipe,
};
use nepa_tests::ranks::launched;

use super::{ranks, ranks_on};

#[test]
fn a_dry_run_tries_a_step_on_all_ranks_and_leaves_nothing() {
    let place = RunFolder::new();
    let mut command = ranks(&place, 4, "out", &[]);
    let said = text(&succeed(command.arg("--dry-run")));
    let parts = [
        "ranks   4, each with 1 of the 4",
        "all is well; nothing was trained or written. A step takes ",
        "6 steps take about ",
    ];
    assert_says(&said, &parts);
    assert!(!said.contains("rank 1:"), "{said}");
    assert!(!place.path("out").exists());

    // Of a run that goes on, with another number of ranks than before.
    succeed(&mut ranks(&place, 1, "out", &[]));
    let mut command = ranks(&place, 2, "out", &["train.steps=8"]);
    let said = text(&succeed(command.args(["--resume", "--dry-run"])));
    assert_says(&said, &["goes on after step 6", "2 steps take about "]);
    let name = newest_checkpoint(&place.path("out"));
    assert!(name.ends_with("step-00000006"), "{name:?}");
}

#[test]
fn ranks_measure_together() {
    let place = RunFolder::new();
    let mut run = nepa();
    run.arg("pretrain").arg(tiny_recipe());
    run.arg("--data").arg(place.path("data"));
    run.args(["--set", "train.micro_batch=2"]);
    run.args(["--synthetic", "4", "--json"]);
    let output = succeed(launched(run, 2).current_dir(place.path("")));
    let said = String::from_utf8(output.stdout).unwrap();
    let mut lines = said.lines().filter(|line| line.starts_with('{'));
    let line = lines.next().expect("a line of JSON");
    assert_eq!(lines.next(), None, "only rank 0 speaks");
    let found: serde_json::Value = serde_json::from_str(line).unwrap();
    let number = |key: &str| found[key].as_f64().unwrap();
    assert_eq!(found["ranks"], 2);
    assert_eq!(found["steps"], 4);
    assert_eq!(found["batch"], 8);
    let ratio = number("loaded_images_per_second") / number("synthetic_images_per_second");
    assert!((ratio - number("ratio")).abs() < 1e-9, "{said}");
    assert!(number("wait_ms_max") >= number("wait_ms_mean"), "{said}");
    assert!(!place.path("runs").exists());
}

/// Rank 0 lists the samples of all, in the order of the batch, also where bad ones were replaced
/// and over an interruption.
#[test]
fn the_trace_of_samples_is_that_of_one_process() {
    let (place, data) = (RunFolder::new(), some_bad());
    let data = data.path().to_str().unwrap();
    let trace = |out: &str| place.path(&format!("{out}.trace"));
    let run = |count: usize, out: &str, arguments: &[&str]| {
        let settings = ["train.steps=12", "data.lanes=4"];
        let mut command = ranks_on(&place, data, count, out, &settings);
        command.arg("--trace-samples").arg(trace(out));
        succeed(command.args(arguments));
        std::fs::read_to_string(trace(out)).unwrap()
    };
    let one = run(1, "1", &[]);
    assert_eq!(one.lines().count(), 12 * 8);
    assert_says(&one, &["\"replaces\":{"]);
    assert!(one == run(4, "4", &[]), "four ranks list other samples");
    run(2, "joined", &["--max-steps", "5"]);
    let joined = run(4, "joined", &["--resume"]);
    assert!(one == joined, "what goes on lists other samples");
}
