//! The quickstart's script, with a stand-in for the program: what it prints can be pasted and is short, and it says what to do where
//! it cannot go on.
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nepa_tests::program::{assert_says, text};
use tempfile::TempDir;

/// Writes its arguments into a file, and a report, as the script looks for it.
const STAND_IN: &str = r#"#!/usr/bin/env bash
printf '%s\n' "$@" '--' >> "$CALLS"
case $1 in
    "${FAILS:-none}") exit 7 ;;
    report) mkdir -p quickstart/report && touch quickstart/report/index.html ;;
esac
"#;

struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(place.home()).unwrap();
        std::fs::write(place.program(), STAND_IN).unwrap();
        std::fs::set_permissions(place.program(), PermissionsExt::from_mode(0o755)).unwrap();
        place
    }

    /// Where the script is started: not where it lies, and called so that quotes are needed.
    fn home(&self) -> PathBuf {
        self.folder.path().join("it's here")
    }

    fn program(&self) -> PathBuf {
        self.home().join("ne pa")
    }

    /// Bash, where each call of the program is noted in a file.
    fn bash(&self, calls: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .current_dir(self.home())
            .env("NEPA_BIN", self.program())
            .env("CALLS", self.folder.path().join(calls));
        command
    }

    fn script(&self) -> Command {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
        let mut command = self.bash("calls");
        command.arg(scripts.join("quickstart.sh"));
        command
    }

    fn calls(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap()
    }
}

/// The commands that were printed, each with its further lines.
fn commands(said: &str) -> String {
    let mut found = String::new();
    let mut goes_on = false;
    for line in said.lines() {
        if goes_on || line.starts_with("$ ") {
            found += line.strip_prefix("$ ").unwrap_or(line);
            found += "\n";
            goes_on = line.ends_with('\\');
        }
    }
    found
}

#[test]
fn its_commands_can_be_pasted_and_its_lines_are_few_and_short() {
    let place = Place::new();
    let output = place.script().output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    // What the commands themselves say comes on top; the whole has 150 lines at most.
    assert!(said.lines().count() < 75, "{said}");
    let folder = place.folder.path().to_string_lossy().into_owned();
    for line in said.lines().filter(|line| !line.contains(&folder)) {
        assert!(line.chars().count() <= 120, "{line}");
    }
    // The picture and the report are named last.
    let last = said
        .trim()
        .lines()
        .rev()
        .take(2)
        .collect::<Vec<_>>()
        .join("\n");
    assert_says(
        &last,
        &["quickstart/grid.png", "quickstart/report/index.html"],
    );

    let pasted = commands(&said);
    let calls = place.calls("calls");
    assert_eq!(calls.matches("\n--\n").count(), 9, "{calls}");
    assert_says(&calls, &["\nquickstart/scenes/train-*.parquet\n"]);
    let mut shell = place.bash("pasted");
    let wrong = text(&shell.arg("-c").arg(&pasted).output().unwrap());
    let again = place.calls("pasted");
    assert!(
        again.starts_with(&calls),
        "pasted, the commands are others:\n{pasted}\n{wrong}\n{again}\nin place of\n{calls}"
    );
}

#[test]
fn a_second_run_says_that_nothing_is_overwritten() {
    let place = Place::new();
    assert!(place.script().output().unwrap().status.success());
    let calls = place.calls("calls");
    let output = place.script().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_says(
        &text(&output),
        &["was done here before", "rm -r quickstart"],
    );
    assert_eq!(place.calls("calls"), calls, "nothing was started");
}

#[test]
fn a_step_that_fails_is_named_with_what_to_do() {
    let place = Place::new();
    let output = place.script().env("FAILS", "pretrain").output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_says(
        &text(&output),
        &[
            "ended early, at \"Pretrain",
            "exit code 7",
            "rm -r quickstart",
        ],
    );
    let output = place.script().output().unwrap();
    assert_says(&text(&output), &["did not come to its end"]);
}
