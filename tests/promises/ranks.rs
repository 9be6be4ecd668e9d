//! Several ranks train as one process does, bit for bit, from and to any number of them; one that ends
//! ends all, by name; ranks that were not started alike do not begin.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nepa_tests::photos::some_bad;
use nepa_tests::program::{
    RunFolder, assert_says, count_lines, nepa, newest_checkpoint, send_signal, succeed, text,
    tiny_recipe, wait_until, write_photo_shards,
};

/// Four micro-batches a step, of two images each.
const SETTINGS: [&str; 3] = [
    "train.micro_batch=2",
    "train.steps=6",
    "checkpoint.every_steps=2",
];
/// Far more than the end of a rank takes to be seen, and less than a minute, in which silence would
/// be.
const SOON: Duration = Duration::from_secs(40);

/// The same run as so many ranks; of one, without `launch`.
fn ranks(place: &RunFolder, count: usize, out: &str, settings: &[&str]) -> Command {
    ranks_on(place, "data", count, out, settings)
}

fn ranks_on(place: &RunFolder, data: &str, count: usize, out: &str, settings: &[&str]) -> Command {
    let run = place.pretrain(data, out, &[&SETTINGS[..], settings].concat());
    if count == 1 {
        return run;
    }
    let mut command = nepa();
    command.args(["launch", "-n", &count.to_string(), "--"]);
    command.args(run.get_args());
    command
}

/// The lines of the metrics without times, and without those of the ranks.
fn metrics(out: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        let times = ["images_per_second", "data_wait_ms", "step_ms", "loader"];
        for name in times.into_iter().chain(["ranks"]) {
            fields.remove(name);
        }
        line.to_string()
    };
    text.lines().map(timeless).collect()
}

#[track_caller]
fn assert_same_run(one: &Path, other: &Path) {
    assert_eq!(metrics(one), metrics(other), "{}", other.display());
    let [one, other] = [one, other].map(newest_checkpoint);
    assert_eq!(one.file_name(), other.file_name());
    let read = |folder: &PathBuf, name: &str| std::fs::read(folder.join(name)).unwrap();
    for name in [
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
    ] {
        assert!(
            read(&one, name) == read(&other, name),
            "{name} of {} differs",
            other.display()
        );
    }
    let loader = |folder: &PathBuf| {
        let state: serde_json::Value = serde_json::from_slice(&read(folder, "state.json")).unwrap();
        state["loader"].clone()
    };
    assert_eq!(loader(&one), loader(&other));
}

/// What was said, with the lines of each message joined.
fn said(output: &Output) -> String {
    let mut said = text(output);
    for rank in 1..8 {
        said = said.replace(&format!("\nrank {rank}:   "), " ");
    }
    said
}

/// What a command that must fail has said.
#[track_caller]
fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = said(&output);
    assert!(!output.status.success(), "{command:?}:\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn any_number_of_ranks_gives_the_bits_of_one() {
    let place = RunFolder::new();
    for count in [1, 2, 4] {
        let out = count.to_string();
        let output = succeed(&mut ranks(&place, count, &out, &[]));
        let said = text(&output);
        // Rank 0 alone speaks.
        assert_eq!(said.matches("model   ").count(), 1, "{said}");
        assert!(!said.contains("rank 1:"), "{said}");
        if count > 1 {
            let all = format!("ranks   {count}, each with {} of the 4", 4 / count);
            assert_says(&said, &[&all]);
        }
    }
    for count in ["2", "4"] {
        assert_same_run(&place.path("1"), &place.path(count));
    }
    let text = std::fs::read_to_string(place.path("4").join("metrics.jsonl")).unwrap();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["ranks"]["count"], 4, "{line}");
        for of in ["data_wait_ms", "compute_ms"] {
            let spread = &line["ranks"][of];
            let number = |key: &str| spread[key].as_f64().unwrap();
            assert!(number("min") <= number("mean") && number("mean") <= number("max"));
            assert!(spread["slowest"].as_u64().unwrap() < 4);
        }
    }
}

/// Each rank reads its own lanes alone; the order is that of the lanes, whoever reads them.
#[test]
fn lanes_are_shared_among_the_ranks() {
    let place = RunFolder::new();
    let lanes = ["data.lanes=4"];
    for count in [1, 4] {
        succeed(&mut ranks(&place, count, &count.to_string(), &lanes));
    }
    assert_same_run(&place.path("1"), &place.path("4"));
    // It goes on with two ranks, and not with more than there are lanes.
    let more = ["data.lanes=4", "train.steps=8"];
    let longer = |count: usize| {
        let mut command = ranks(&place, count, "4", &more);
        command.arg("--resume");
        command
    };
    succeed(&mut longer(2));
    succeed(ranks(&place, 1, "1", &more).arg("--resume"));
    assert_same_run(&place.path("1"), &place.path("4"));
    let said = fail(&mut ranks(&place, 4, "few", &["data.lanes=2"]));
    assert_says(&said, &["data.lanes", "multiple"]);
}

#[test]
fn the_other_engine_too() {
    let place = RunFolder::new();
    let settings = [
        "train.engine=autograd",
        "train.steps=3",
        "train.warmup_steps=1",
    ];
    for count in [1, 4] {
        succeed(&mut ranks(&place, count, &count.to_string(), &settings));
    }
    assert_same_run(&place.path("1"), &place.path("4"));
}

/// Bad samples are counted, listed and replaced as by one process.
#[test]
fn bad_samples_are_those_of_one_process() {
    let (place, data) = (RunFolder::new(), some_bad());
    let data = data.path().to_str().unwrap();
    let lists = [1, 2, 4].map(|count| {
        let out = count.to_string();
        succeed(&mut ranks_on(
            &place,
            data,
            count,
            &out,
            &["train.steps=12"],
        ));
        std::fs::read_to_string(place.path(&out).join("bad_samples.jsonl")).unwrap()
    });
    assert!(lists[0].lines().count() > 3, "{}", lists[0]);
    for (count, list) in [2, 4].into_iter().zip(&lists[1..]) {
        assert_eq!(*list, lists[0], "{count} ranks");
        assert_same_run(&place.path("1"), &place.path(&count.to_string()));
    }
    // A budget that is used up ends all, and the step before is saved.
    let settings = ["train.steps=200", "data.max_bad_fraction=0.001"];
    let said = fail(&mut ranks_on(&place, data, 2, "over", &settings));
    assert_says(
        &said,
        &[
            "samples are bad, more than the 0.10 %",
            "saved after step 12",
        ],
    );
}

fn start(command: &mut Command) -> Child {
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits for an end that is near.
#[track_caller]
fn end(child: Child) -> Output {
    let since = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(since.elapsed() < SOON, "{}", text(&output));
    output
}

/// The process ids of the ranks that a process has started, by their ranks.
fn children(of: &Child) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut found = Vec::new();
    for process in processes {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent != Some(&of.id().to_string()) {
            continue;
        }
        let variables = std::fs::read(process.path().join("environ")).unwrap_or_default();
        let variables = String::from_utf8_lossy(&variables).into_owned();
        let rank = variables
            .split('\0')
            .find_map(|one| one.strip_prefix("RANK="));
        if let Some(rank) = rank.and_then(|rank| rank.parse::<usize>().ok()) {
            found.push((rank, process.file_name().to_string_lossy().into_owned()));
        }
    }
    found.sort();
    found.into_iter().map(|(_, process)| process).collect()
}

fn kill(process: &str) {
    let status = Command::new("kill").args(["-KILL", process]).status();
    assert!(status.unwrap().success(), "{process}");
}

const LONG: [&str; 2] = ["train.steps=300", "checkpoint.every_steps=50"];

#[test]
fn a_run_goes_on_with_other_numbers_of_ranks_after_a_rank_was_killed() {
    let place = RunFolder::new();
    succeed(&mut ranks(&place, 1, "straight", &LONG));
    let metrics = place.path("out").join("metrics.jsonl");
    succeed(ranks(&place, 1, "out", &LONG).args(["--max-steps", "40"]));

    let mut launched = start(ranks(&place, 4, "out", &LONG).arg("--resume"));
    wait_until("some steps", || {
        count_lines(&metrics) > 60 || launched.try_wait().unwrap().is_some()
    });
    kill(&children(&launched)[2]);
    let output = end(launched);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    assert_says(
        &said(&output),
        &["rank 2 has ended without a word", "saved after step"],
    );
    assert!(count_lines(&metrics) < 300);

    // A signal at one of them stops all after the same step, saved.
    let mut launched = start(ranks(&place, 2, "out", &LONG).arg("--resume"));
    let before = count_lines(&metrics);
    wait_until("more steps", || {
        count_lines(&metrics) > before + 10 || launched.try_wait().unwrap().is_some()
    });
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

/// Whether a process of that number is there and has not ended.
fn lives(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest.trim_start());
    !state.is_empty() && !state.starts_with('Z')
}

#[test]
fn ranks_do_not_outlive_what_launched_them() {
    let place = RunFolder::new();
    let metrics = place.path("out").join("metrics.jsonl");
    let mut launched = start(&mut ranks(&place, 2, "out", &["train.steps=100000"]));
    wait_until("some steps", || count_lines(&metrics) > 3);
    let processes = children(&launched);
    assert_eq!(processes.len(), 2);
    send_signal(&launched, "-KILL");
    launched.wait().unwrap();
    wait_until("the ranks end", || !processes.iter().any(|one| lives(one)));
    let steps = count_lines(&metrics);
    let name = newest_checkpoint(&place.path("out"));
    assert!(name.ends_with(format!("step-{steps:08}")), "{name:?}");
}

/// One rank, started by hand as torchrun would.
fn rank(place: &RunFolder, variables: &[(&str, &str)], settings: &[&str]) -> Command {
    let mut command = place.pretrain("data", "out", &[&SETTINGS[..], settings].concat());
    command.envs(variables.iter().copied());
    command
}

/// A port of which the next one is free now.
fn master_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (port - 1).to_string()
}

#[test]
fn variables_that_contradict_each_other_are_named() {
    let place = RunFolder::new();
    let said = fail(&mut rank(&place, &[("RANK", "1")], &[]));
    assert_says(&said, &["RANK is set and WORLD_SIZE is not"]);
    let both = [
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("OMPI_COMM_WORLD_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
    ];
    assert_says(
        &fail(&mut rank(&place, &both, &[])),
        &["RANK = 0", "OMPI_COMM_WORLD_RANK = 1", "contradict"],
    );
    let five = [("RANK", "0"), ("WORLD_SIZE", "5")];
    assert_says(
        &fail(&mut rank(&place, &five, &[])),
        &["5 ranks (WORLD_SIZE)", "start 4 ranks"],
    );
    assert!(!place.path("out").exists());
    // What a job of Slurm leaves in a shell makes no ranks.
    let shell = [
        ("SLURM_JOB_ID", "1"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_PROCID", "0"),
    ];
    succeed(&mut rank(&place, &shell, &[]));
}

#[test]
fn ranks_that_were_not_started_alike_do_not_begin() {
    let place = RunFolder::new();
    write_photo_shards(&place.path("other"), 2, 2, 10);
    let other = place.path("other").display().to_string();
    let cases: [(&[&str], &[&str]); 3] = [
        (
            &["--set", "train.lr=2e-3"],
            &["rank 1 has another train.lr than rank 0", "0.002", "0.001"],
        ),
        (&["--data", &other], &["rank 1 has another", "than rank 0"]),
        (
            &["--max-steps", "3"],
            &["rank 1 has another --max-steps than rank 0: 3"],
        ),
    ];
    for (arguments, parts) in cases {
        let port = master_port();
        let port = port.as_str();
        let of = |rank: &str| {
            let variables = [
                ("RANK", rank),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", port),
            ];
            self::rank(&place, &variables, &[])
        };
        let first = start(&mut of("0"));
        let mut second = if arguments[0] == "--data" {
            let mut command = nepa();
            command.arg("pretrain").arg(tiny_recipe()).args(arguments);
            command.arg("--out").arg(place.path("out"));
            command.args(SETTINGS.iter().flat_map(|setting| ["--set", setting]));
            command.envs([
                ("RANK", "1"),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", port),
            ]);
            command
        } else {
            let mut command = of("1");
            command.args(arguments);
            command
        };
        let second = start(&mut second);
        for output in [end(first), end(second)] {
            assert_eq!(output.status.code(), Some(1), "{}", text(&output));
            assert_says(&said(&output), parts);
        }
    }
    assert!(!place.path("out").exists());
}

#[test]
fn what_ranks_cannot_do_is_said_with_what_they_can() {
    let place = RunFolder::new();
    let said = fail(&mut ranks(&place, 8, "out", &[]));
    assert_says(
        &said,
        &[
            "does not divide into micro-batches of train.micro_batch = 2 among 8 ranks",
            "--set train.micro_batch=1",
        ],
    );
    let mut command = ranks(&place, 2, "out", &[]);
    let said = fail(command.arg("--dry-run"));
    assert_says(&said, &["--dry-run does not work with several ranks yet"]);
    let mut command = ranks(&place, 2, "out", &[]);
    let said = fail(command.arg("--trace-samples").arg(place.path("trace")));
    assert_says(&said, &["--trace-samples does not work with several ranks"]);
    let said = fail(&mut ranks(&place, 2, "out", &["device=cuda"]));
    assert_says(&said, &["device = \"cuda\""]);
    let said = fail(nepa().args(["launch", "-n", "3", "--", "pretrain", "tiny"]));
    assert_says(&said, &["3 ranks: a run has 1, 2, 4, 8"]);
    let said = fail(nepa().args(["launch", "-n", "2", "--", "inspect", "x"]));
    assert_says(&said, &["several ranks of `pretrain` or `finetune`"]);
    let said = fail(nepa().args(["launch", "-n", "2", "--", "pretrain", "tiny", "--resum"]));
    assert_says(&said, &["a similar argument exists: '--resume'"]);
}

/// A rank that cannot go on tells the others why; what it says bears its name.
#[test]
fn a_rank_that_fails_ends_the_others_with_its_reason() {
    let place = RunFolder::new();
    let port = master_port();
    let port = port.as_str();
    let of = |rank: &str, data: &str| {
        let mut command = place.pretrain(data, "out", &SETTINGS);
        command.envs([
            ("RANK", rank),
            ("WORLD_SIZE", "2"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", port),
        ]);
        start(&mut command)
    };
    let (first, second) = (of("0", "data"), of("1", "nowhere"));
    let (first, second) = (end(first), end(second));
    assert_eq!(first.status.code(), Some(1), "{}", text(&first));
    assert_says(&text(&first), &["rank 1 has failed", "nowhere"]);
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.starts_with("rank 1: error: "), "{said}");
    assert!(second.stdout.is_empty());
}

#[test]
fn fine_tuning_on_ranks_is_that_of_one_process() {
    let place = RunFolder::new();
    succeed(&mut place.pretrain("data", "base", &["train.steps=4"]));
    let run = |count: usize| {
        let mut command = nepa();
        if count > 1 {
            command.args(["launch", "-n", &count.to_string(), "--"]);
        }
        command.args(["finetune", "quickstart-finetune", "--from"]);
        command.arg(place.path("base"));
        for flag in ["--data", "--test"] {
            command.arg(flag).arg(place.path("data"));
        }
        for setting in [
            "data.augment.size=28",
            "finetune.num_classes=10",
            "finetune.mix.mixup_alpha=0.8",
            "finetune.mix.cutmix_alpha=1.0",
            "model.drop_path_prob=0.2",
            "train.batch=8",
            "train.micro_batch=2",
            "train.epochs=1",
            "log.tensorboard=false",
        ] {
            command.args(["--set", setting]);
        }
        command
            .arg("--out")
            .arg(place.path(&format!("tuned-{count}")));
        command
    };
    for count in [1, 4] {
        succeed(&mut run(count));
    }
    let [one, four] = ["tuned-1", "tuned-4"].map(|out| place.path(out));
    assert_same_run(&one, &four);
    let evals = |out: &Path| {
        let text = std::fs::read_to_string(out.join("evals.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        (line["raw"].clone(), line["ema"].clone())
    };
    assert_eq!(evals(&one), evals(&four));
}
