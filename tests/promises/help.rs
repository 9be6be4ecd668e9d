//! The program explains itself: long help that holds its own sections, examples that can be pasted,
//! and what is said of wrong input.
use std::path::Path;

use nepa_tests::program::{assert_says, nepa, succeed, text, tiny_recipe, write_photo_shards};

/// Every command with its subcommands, as the program's own help lists them.
fn commands() -> Vec<Vec<String>> {
    let mut all = Vec::new();
    let mut open = vec![Vec::<String>::new()];
    while let Some(command) = open.pop() {
        let said = help(&command, "-h", 100);
        // The top level has them in groups, the others under one heading.
        let from = if command.is_empty() {
            "Data:"
        } else {
            "Commands:"
        };
        let list = said.split_once(&format!("\n{from}\n"));
        let list = list.map_or("", |(_, list)| list);
        let list = list.split("\nOptions:").next().unwrap_or_default();
        let entries = list
            .lines()
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        for name in entries.filter_map(|line| line.split_whitespace().next()) {
            if name != "help" {
                open.push(command.iter().cloned().chain([name.to_owned()]).collect());
            }
        }
        all.push(command);
    }
    all
}

fn help(command: &[String], flag: &str, columns: u32) -> String {
    let mut program = nepa();
    program
        .args(command)
        .arg(flag)
        .env("COLUMNS", columns.to_string());
    String::from_utf8(succeed(&mut program).stdout).unwrap()
}

/// The lines of a section, up to the next empty line.
fn section<'a>(help: &'a str, title: &str) -> Vec<&'a str> {
    let (_, rest) = help
        .split_once(&format!("\n{title}:\n"))
        .unwrap_or_else(|| panic!("no {title} in:\n{help}"));
    rest.lines().take_while(|line| !line.is_empty()).collect()
}

#[test]
fn every_command_has_a_short_help_and_a_long_one_that_says_more() {
    let commands = commands();
    assert!(commands.len() >= 15, "{commands:?}");
    for command in commands.iter().filter(|command| !command.is_empty()) {
        let (short, long) = (help(command, "-h", 80), help(command, "--help", 80));
        let lines = short.lines().count();
        assert!(lines <= 50, "{command:?} -h has {lines} lines:\n{short}");
        assert!(long.lines().count() > lines, "{command:?}:\n{long}");
        // The first line is the same; what follows up to the usage is the long one's own.
        let description = |help: &str| help.split("\nUsage:").next().unwrap_or_default().to_owned();
        let (short, long) = (description(&short), description(&long));
        assert!(
            long.len() > short.len() + 40 && long.starts_with(short.trim_end()),
            "{command:?} has no long description:\n{long}"
        );
    }
}

#[test]
fn every_command_has_examples_that_can_be_pasted_and_its_exit_codes() {
    for command in commands().iter().filter(|command| !command.is_empty()) {
        let at_60 = help(command, "--help", 60);
        assert_eq!(
            section(&at_60, "Examples"),
            section(&help(command, "-h", 60), "Examples")
        );
        for columns in [60, 80] {
            let long = help(command, "--help", columns);
            let examples = section(&long, "Examples");
            assert_eq!(
                examples,
                section(&at_60, "Examples"),
                "{command:?} at {columns}"
            );
            assert!(examples.iter().all(|line| line.len() <= 60), "{examples:?}");
            let mut goes_on = false;
            for line in examples.iter().filter(|line| line.starts_with("  ")) {
                let starts = line.starts_with("  nepa ");
                assert!(
                    starts != goes_on,
                    "{command:?}: broken in mid-command: {line}"
                );
                goes_on = line.ends_with('\\');
            }
            assert!(!goes_on);
            let codes = section(&long, "Exit codes");
            for code in ["0 ", "1 ", "2 ", "130, 143 "] {
                assert!(
                    codes.iter().any(|line| line.trim_start().starts_with(code)),
                    "{command:?}: {codes:?}"
                );
            }
            // Nothing else that is laid out by hand is broken either.
            // (A usage is one line to clap.)
            let lines = long.lines().filter(|line| !line.starts_with("Usage: "));
            for line in lines {
                assert!(
                    line.len() <= columns as usize,
                    "{command:?} at {columns}: {line}"
                );
            }
        }
    }
}

/// The examples are commands that the program understands: each fails for what it names, if at all.
#[test]
fn examples_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let mut tried = 0;
    for command in commands() {
        let long = help(&command, "--help", 80);
        let title = if command.is_empty() {
            "Try it without a download"
        } else {
            "Examples"
        };
        let lines = section(&long, title).join("\n").replace("\\\n", " ");
        for example in lines.lines().filter(|line| line.starts_with("  nepa ")) {
            // What a shell does with the output, and remarks, are not the program's.
            let example = example.split(" #").next().unwrap_or_default();
            let example = example.split(" > ").next().unwrap_or_default().trim();
            let script = format!("{example} --no-such-flag-at-all");
            let run = example.replacen("nepa", nepa().get_program().to_str().unwrap(), 1);
            // With a flag that is not there nothing runs, but all before it is read.
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("{run} --no-such-flag-at-all")])
                .current_dir(folder.path())
                .output()
                .unwrap();
            let said = text(&output);
            assert!(
                said.contains("'--no-such-flag-at-all'"),
                "{script}:\n{said}"
            );
            tried += 1;
        }
    }
    assert!(tried > 25, "only {tried} examples");
}

#[test]
fn long_help_holds_what_the_readme_says_of_it() {
    let long = |command: &str| help(&[command.to_owned()], "--help", 80);
    assert_says(
        &long("pretrain"),
        &[
            "Signals:",
            "Ctrl-C, SIGTERM",
            "Output:",
            "metrics.jsonl",
            "learning rate",
            "--resume",
        ],
    );
    assert_says(
        &long("verify"),
        &[
            "Layout of the folder:",
            "reference.safetensors",
            "grad.NAME",
            "trajectory.safetensors",
        ],
    );
    assert_says(&long("profile"), &["ceiling of each stage", "(computed)"]);
    assert_says(&long("inspect"), &["row groups", "with --strict"]);
    assert_says(&long("pack"), &["the same command goes on"]);
    let eval = help(&["eval".to_owned(), "all".to_owned()], "--help", 80);
    assert_says(&eval, &["random weights", "95 % interval"]);
    let top = help(&[], "--help", 80);
    assert_says(&top, &["Exit codes:", "RUST_LOG", "NO_COLOR"]);
}

#[test]
fn the_list_of_commands_fits_and_is_in_the_order_of_use() {
    let short = help(&[], "-h", 80);
    assert!(short.lines().count() <= 40, "{short}");
    assert!(short.lines().all(|line| line.len() <= 80), "{short}");
    let places = [
        "Data:",
        "sample-data",
        "inspect",
        "Training:",
        "recipes",
        "pretrain",
        "Weights:",
    ];
    let at = |part: &str| {
        short
            .find(&format!("\n{part}"))
            .or(short.find(&format!("\n  {part}")))
    };
    let places = places.map(|part| at(part).unwrap_or_else(|| panic!("{part}:\n{short}")));
    assert!(places.is_sorted(), "{short}");
    // Without a command the same, as an error.
    let alone = nepa().env("COLUMNS", "80").output().unwrap();
    assert_eq!(alone.status.code(), Some(2));
    assert_eq!(String::from_utf8(alone.stderr).unwrap(), short);
}

#[test]
fn the_version_says_program_commit_and_features() {
    let said = text(&succeed(nepa().arg("--version")));
    let said = said.trim();
    assert!(said.starts_with("nepa 0."), "{said}");
    assert!(said.contains("features: "), "{said}");
    let git = std::process::Command::new("git")
        .args(["rev-parse", "--short=7", "HEAD"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output();
    match git {
        Ok(git) if git.status.success() => {
            let commit = String::from_utf8_lossy(&git.stdout).trim().to_owned();
            assert!(said.contains(&format!("commit {commit}, ")), "{said}");
        }
        _ => println!("SKIPPED: no git repository"),
    }
}

#[test]
fn recipes_are_listed_and_shown_by_name() {
    let list = text(&succeed(nepa().arg("recipes")));
    for name in [
        "quickstart",
        "cifar10",
        "imagenette-small",
        "nepa-b14-in1k",
        "nepa-l14-in1k",
    ] {
        assert!(list.lines().any(|line| line == name), "{name}:\n{list}");
    }
    assert!(list.lines().all(|line| line.len() <= 80), "{list}");
    assert!(list.matches("hardware: ").count() >= 6 && list.matches("time: ").count() >= 6);
    let shown = String::from_utf8(succeed(nepa().args(["recipes", "show", "tiny"])).stdout);
    assert_eq!(
        shown.unwrap(),
        std::fs::read_to_string(tiny_recipe()).unwrap()
    );
    let output = nepa()
        .args(["recipes", "show", "cifra10"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_says(
        &text(&output),
        &["no recipe is called cifra10", "did you mean cifar10?"],
    );
}

/// A name is enough, also where a folder of that name is there.
#[test]
fn a_recipe_is_taken_by_its_name_and_a_file_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    write_photo_shards(&folder.path().join("data"), 2, 2, 10);
    std::fs::create_dir(folder.path().join("tiny")).unwrap();
    std::fs::write(folder.path().join("other"), "name = 3\n").unwrap();
    let mut command = nepa();
    command
        .current_dir(folder.path())
        .args(["pretrain", "tiny", "--data", "data"]);
    succeed(command.args(["--max-steps", "2"]));
    assert!(folder.path().join("runs/tiny/recipe.toml").exists());
    let said = |recipe: &str| {
        let mut command = nepa();
        command
            .current_dir(folder.path())
            .args(["pretrain", recipe, "--data", "data"]);
        text(&command.output().unwrap())
    };
    assert_says(
        &said("./other"),
        &["name = 3: it must be text in quotes (./other, line 1)"],
    );
    assert_says(&said("other"), &["no recipe is called other", "./other"]);
    let profile = ["profile", "data", "--recipe", "tiny", "--seconds", "0.1"];
    let profile = text(&succeed(nepa().current_dir(folder.path()).args(profile)));
    assert_says(&profile, &["28 px, batch 8"]);
}

#[test]
fn wrong_input_is_told_in_plain_words() {
    let folder = tempfile::tempdir().unwrap();
    write_photo_shards(&folder.path().join("data"), 2, 2, 10);
    std::fs::write(folder.path().join("a file"), "x").unwrap();
    let set = |set| ["pretrain", "tiny", "--data", "data", "--set", set];
    let cases: &[(&[&str], i32, &[&str])] = &[
        // A command and a flag.
        (&["pretrian", "tiny"], 2, &["similar subcommand"]),
        (
            &["pretrain", "tiny", "--resum"],
            2,
            &["a similar argument exists: '--resume'"],
        ),
        (
            &["pretrain", "tiny", "--epochs", "3"],
            2,
            &[
                "'--epochs'",
                "it is a value of the recipe: --set train.epochs=3",
            ],
        ),
        (
            &["pretrain", "tiny", "--batch=8"],
            2,
            &["--set train.batch="],
        ),
        (
            &["pretrain", "tiny", "--data", "a.parquet", "b.parquet"],
            2,
            &["'b.parquet'", "put it in quotes"],
        ),
        // A key, a type, a value.
        (
            &set("train.batchsize=8"),
            1,
            &["unknown key `train.batchsize`", "train.batch?"],
        ),
        (
            &set("train.batch=many"),
            1,
            &["train.batch = \"many\"", "whole number"],
        ),
        (
            &set("train.batch=0"),
            1,
            &["train.batch = 0", "at least 1", "(--set train.batch=0)"],
        ),
        (
            &set("data.augment.kind=random_crop"),
            1,
            &["\"random_resized_crop\"?"],
        ),
        (
            &["inspect", "data", "--size", "2"],
            2,
            &["'2'", "a whole number from 8 to 1024"],
        ),
        (
            &["inspect", "data", "--samples", "all"],
            2,
            &["'all'", "a whole number, 0 or more"],
        ),
        (
            &["profile", "data", "--seconds", "soon"],
            2,
            &["'soon'", "it must be a number"],
        ),
        (&["pretrain", "tiny", "--max-steps", "-1"], 2, &["'-1'"]),
        // A path and a URL.
        (&["inspect", "no data"], 1, &["no data"]),
        (
            &["verify", "no such"],
            1,
            &["'no such/reference.safetensors' is not there"],
        ),
        (
            &["pretrain", "tiny", "--data", "s4://b/x"],
            1,
            &["s4://", "s3://"],
        ),
        (&["export", "no run", "out"], 1, &["'no run'"]),
        // A recipe.
        (
            &["pretrain", "quikstart", "--data", "data"],
            1,
            &["did you mean quickstart?"],
        ),
        (
            &["pretrain", "no/such.toml"],
            1,
            &["no/such.toml", "No such file", "nepa recipes"],
        ),
        // An output.
        (
            &["pretrain", "tiny", "--data", "data", "--out", "a file"],
            1,
            &["'a file/checkpoints'"],
        ),
        // A device and a precision.
        (
            &set("device=cudaa"),
            1,
            &["\"cudaa\" is no device", "did you mean cuda?"],
        ),
        (
            &[
                "eval",
                "knn",
                "--checkpoint",
                "x",
                "--train",
                "x",
                "--test",
                "x",
                "--device",
                "gpu",
            ],
            2,
            &["\"gpu\" is no device", "did you mean cuda?"],
        ),
        (
            &set("train.precision=fp16"),
            1,
            &["\"f32\" or \"bf16\"", "did you mean \"bf16\"?"],
        ),
        // Lists.
        (
            &[
                "eval",
                "knn",
                "--checkpoint",
                "x",
                "--train",
                "x",
                "--test",
                "x",
                "--features",
                "emaa",
            ],
            2,
            &["'emaa'", "'ema'"],
        ),
    ];
    for (arguments, code, parts) in cases {
        let output = nepa()
            .args(*arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}:\n{said}");
        assert_says(&said, parts);
        for word in [
            "usize",
            "u64",
            "u32",
            "u16",
            "f64",
            "invalid digit",
            "invalid float",
            "serde",
        ] {
            assert!(!said.contains(word), "{arguments:?}: {word} is in:\n{said}");
        }
        // No cause twice.
        for cause in ["No such file", "os error", "Not a directory"] {
            assert!(
                said.matches(cause).count() <= 1,
                "{arguments:?}: {cause} twice:\n{said}"
            );
        }
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            assert!(
                line.len() <= 120,
                "{arguments:?}: {} columns: {line}",
                line.len()
            );
        }
    }
}
