//! What a run says: the form of its lines where they go into a file or a program, and what `--dry-run` tries.
use std::path::Path;
use std::process::Command;

use nepa_tests::program::{assert_says, nepa, succeed, text, tiny_recipe, write_photo_shards};

/// Columns of the longest line.
const WIDEST: usize = 120;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_photo_shards(&folder.path().join("set"), 2, 2, 20);
        Self { folder }
    }

    fn pretrain(&self, out: &str, settings: &[&str]) -> Command {
        let mut command = nepa();
        command.arg("pretrain").arg(tiny_recipe());
        command.args(["--data", "set/train-*.parquet", "--out", out]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        command.current_dir(self.folder.path());
        command
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(succeed(command).stdout).unwrap()
}

fn lines_of<'a>(said: &'a str, head: &str) -> Vec<&'a str> {
    said.lines().filter(|line| line.starts_with(head)).collect()
}

/// The seconds of `ETA 1 min 05 s` at the end of a line.
fn seconds_left(line: &str) -> f64 {
    let (_, time) = line.rsplit_once("ETA ").expect(line);
    let words = time.split_whitespace().collect::<Vec<_>>();
    let seconds_of = |pair: &[&str]| {
        let unit = match pair[1] {
            "s" => 1.0,
            "min" => 60.0,
            "h" => 3600.0,
            other => panic!("{other} in {line}"),
        };
        unit * pair[0].parse::<f64>().unwrap()
    };
    words.chunks(2).map(seconds_of).sum()
}

#[test]
fn a_run_into_a_pipe_says_what_it_is_how_it_goes_and_what_to_do_next() {
    let place = Place::new();
    let settings = [
        "train.steps=60",
        "log.every_steps=10",
        "checkpoint.every_steps=30",
    ];
    let output = succeed(&mut place.pretrain("run", &settings));
    let said = text(&output);
    for line in said.lines() {
        assert!(
            line.chars().count() <= WIDEST,
            "{} columns: {line}",
            line.len()
        );
    }
    let said = String::from_utf8(output.stdout).unwrap();
    let recap = said
        .lines()
        .take_while(|line| !line.starts_with("step "))
        .collect::<Vec<_>>();
    let labels = recap.iter().filter_map(|line| line.split("  ").next());
    let labels = labels.filter(|label| !label.is_empty()).collect::<Vec<_>>();
    assert_eq!(
        labels,
        ["model", "data", "train", "engine", "output"],
        "{said}"
    );
    assert_says(
        &recap.join("\n"),
        &[
            "'set/train-*.parquet': 2 shards, 80 images, ",
            "60 steps of 8 images, 6 epochs; learning rate to ",
            "run: a new run; saved every 30 steps",
            "parameters: ",
        ],
    );
    // The whole recipe lies in the output alone.
    assert!(!said.contains("[data.augment]"), "{said}");
    assert!(place.path("run/recipe.toml").is_file());

    let steps = lines_of(&said, "step ");
    let numbers = steps
        .iter()
        .map(|line| line.split([' ', '/']).nth(1).unwrap());
    assert_eq!(
        numbers.collect::<Vec<_>>(),
        ["1", "10", "20", "30", "40", "50", "60"]
    );
    for line in &steps {
        for part in [
            "  loss -",
            "  lr ",
            "  grad ",
            " images/s  wait ",
            " %  mem ",
        ] {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
    }
    // The numbers are those of the step in metrics.jsonl.
    let metrics = std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    let tenth: serde_json::Value = serde_json::from_str(metrics.lines().nth(9).unwrap()).unwrap();
    let loss = format!("loss {:.4} ", tenth["loss"].as_f64().unwrap());
    assert!(steps[1].contains(&loss), "{loss} is not in {}", steps[1]);
    // Short epochs have a line together.
    let epochs = lines_of(&said, "epochs ");
    assert_eq!(epochs.len(), 1, "{said}");
    assert!(
        epochs[0].starts_with("epochs 1 to 6/6  mean loss -"),
        "{}",
        epochs[0]
    );
    assert!(epochs[0].contains("480 images in "), "{}", epochs[0]);

    let end = said
        .lines()
        .skip_while(|line| !line.starts_with("done "))
        .collect::<Vec<_>>();
    assert!(end.len() <= 8, "{end:#?}");
    assert_says(
        &end.join("\n"),
        &[
            "60 steps in ",
            "480 images",
            "loss    -",
            "saved   run: checkpoints",
            "nepa eval all --checkpoint run --train 'set/train-*.parquet' --test",
        ],
    );
}

#[test]
fn a_run_that_is_stopped_says_how_to_go_on_and_a_resumed_one_where_it_is() {
    let place = Place::new();
    let settings = ["train.steps=60", "log.every_steps=7"];
    let said = stdout(
        place
            .pretrain("a run", &settings)
            .args(["--max-steps", "20"]),
    );
    let go_on = said.lines().last().unwrap();
    let recipe = tiny_recipe().display().to_string();
    assert_eq!(
        go_on,
        format!(
            "stopped at step 20 of 60; go on with: nepa pretrain {recipe} --data 'set/train-*.parquet' \
             --set train.steps=60 --set log.every_steps=7 --out 'a run' --resume"
        )
    );
    // As a shell takes it.
    let (_, command) = go_on.split_once("with: nepa ").unwrap();
    let program = nepa().get_program().to_owned();
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("{} {command}", program.display()));
    let said = stdout(shell.current_dir(place.folder.path()));
    assert_says(
        &said,
        &[
            "'a run': goes on after step 20; ",
            "step 21/60  ",
            "step 28/60  ",
        ],
    );
    assert_eq!(lines_of(&said, "step ")[0].split(' ').nth(1), Some("21/60"));
}

/// The time of a step is made by the store: batches come at a known rate.
#[test]
fn the_time_left_is_right_after_a_resume() {
    let place = Place::new();
    let settings = [
        "train.steps=1600",
        "log.every_steps=50",
        "checkpoint.every_steps=400",
    ];
    stdout(
        place
            .pretrain("run", &settings)
            .args(["--max-steps", "400"]),
    );
    let started = std::time::Instant::now();
    let said = stdout(place.pretrain("run", &settings).arg("--resume"));
    let took = started.elapsed().as_secs_f64();
    let steps = lines_of(&said, "step ");
    assert!(steps[0].starts_with("step 401/1,600  "), "{}", steps[0]);
    // A share of the whole that the first lines expected, halfway through the rest: by then the
    // rate of this machine is known, whatever else runs on it.
    let halfway = steps
        .iter()
        .find(|line| line.starts_with("step 1,000/"))
        .unwrap();
    let expected = seconds_left(halfway);
    println!("expected {expected} s for half of {took:.1} s");
    assert!(
        (0.25..1.0).contains(&(expected / took)),
        "{expected} s of {took} s: {halfway}"
    );
    let without = steps.iter().filter(|line| !line.contains("ETA"));
    assert_eq!(
        without.count(),
        1,
        "the last one alone has no time left: {said}"
    );
}

#[test]
fn a_dry_run_checks_all_and_leaves_nothing() {
    let place = Place::new();
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        let mut names = entries.map(|entry| entry.file_name()).collect::<Vec<_>>();
        names.sort();
        names
    };
    let before = names(place.folder.path());
    let said = stdout(
        place
            .pretrain("deep/down/run", &["train.steps=60"])
            .arg("--dry-run"),
    );
    assert_says(
        &said,
        &[
            "model   ",
            "2 shards, 80 images",
            "all is well; nothing was trained or written",
            "60 steps take about ",
        ],
    );
    assert_eq!(names(place.folder.path()), before);

    // A folder that is there already stays, and so does a run.
    std::fs::create_dir(place.path("empty")).unwrap();
    stdout(
        place
            .pretrain("empty", &["train.steps=60"])
            .arg("--dry-run"),
    );
    stdout(
        place
            .pretrain("run", &["train.steps=60"])
            .args(["--max-steps", "10"]),
    );
    let run = names(&place.path("run"));
    let metrics = std::fs::read(place.path("run/metrics.jsonl")).unwrap();
    let said = stdout(
        place
            .pretrain("run", &["train.steps=60"])
            .args(["--resume", "--dry-run"]),
    );
    assert_says(
        &said,
        &["run: goes on after step 10", "50 steps take about "],
    );
    assert_eq!(names(&place.path("run")), run);
    assert_eq!(
        std::fs::read(place.path("run/metrics.jsonl")).unwrap(),
        metrics
    );

    // What would end the run ends it here, too.
    let fails = |out: &str, settings: &[&str], arguments: &[&str], says: &[&str]| {
        let output = place
            .pretrain(out, settings)
            .arg("--dry-run")
            .args(arguments)
            .output();
        let output = output.unwrap();
        assert!(!output.status.success(), "{}", text(&output));
        assert_says(&text(&output), says);
    };
    fails("run", &["train.steps=60"], &[], &["already holds a run"]);
    fails(
        "run",
        &["train.steps=60", "seed=2"],
        &["--resume"],
        &["with another seed"],
    );
    fails(
        "set/train-0.parquet/run",
        &[],
        &[],
        &["set/train-0.parquet"],
    );
    let broken = place.path("set/train-1.parquet");
    let mut bytes = std::fs::read(&broken).unwrap();
    let half = bytes.len() / 2;
    bytes[4..half].fill(0);
    std::fs::write(&broken, bytes).unwrap();
    fails("new", &[], &[], &["train-1.parquet"]);
    assert!(!place.path("new").exists());
}
