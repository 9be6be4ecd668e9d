//! Whoever reads what the program says may go (`nepa inspect X | head -4`): no panic, no word, and nothing that was being done is left half done.
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use nepa_tests::program::{nepa, newest_checkpoint, text, timeless_metrics, tiny_recipe};

/// Runs a command whose standard output nobody reads; with `both`, nor its standard error. Gives its status and what it says on standard error.
fn unread(command: &mut Command, both: bool) -> (ExitStatus, String) {
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    command.stdout(closed());
    command.stderr(if both { closed() } else { Stdio::piped() });
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    (output.status, text(&output))
}

fn command(arguments: &[&str], paths: &[&Path]) -> Command {
    let mut command = nepa();
    command.args(arguments).args(paths);
    command
}

#[cfg(unix)]
fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[test]
fn commands_end_quietly_or_do_all_that_they_were_asked() {
    const SIGPIPE: i32 = 13;
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let (scenes, photos, run) = (path("scenes"), path("photos"), path("run"));
    let assert_quiet = |said: &str, what: &str| {
        assert!(
            !said.contains("panicked") && !said.contains("Broken pipe"),
            "{what}:\n{said}"
        );
    };
    for both in [false, true] {
        // What does something, does it to the end.
        let done = |command: &mut Command, proof: &Path, what: &str| {
            let (status, said) = unread(command, both);
            assert_quiet(&said, what);
            assert!(
                status.success() && proof.exists(),
                "{what}: {status}\n{said}"
            );
        };
        for folder in [
            &scenes,
            &run,
            &path("packed"),
            &path("exported"),
            &path("report"),
        ] {
            let _ = std::fs::remove_dir_all(folder);
        }
        let mut make = command(&["sample-data"], &[&scenes]);
        make.args(["--images", "64", "--val-images", "16", "--shards", "2"]);
        done(
            &mut make,
            &scenes.join("val-00000-of-00001.parquet"),
            "sample-data",
        );
        std::fs::create_dir_all(&photos).unwrap();
        for number in 0..4 {
            let image = nepa_tests::program::jpeg(number);
            std::fs::write(photos.join(format!("{number}.jpg")), image).unwrap();
        }
        let packed = path("packed").join("train-00000-of-00001.parquet");
        done(
            &mut command(&["pack"], &[&photos, &path("packed")]),
            &packed,
            "pack",
        );
        let (train, val) = (scenes.join("train-*.parquet"), scenes.join("val-*.parquet"));
        let mut pretrain = command(&["pretrain"], &[&tiny_recipe()]);
        pretrain.arg("--data").arg(&train).arg("--out").arg(&run);
        pretrain.args(["--set", "train.steps=5"]);
        done(&mut pretrain, &run.join("metrics.jsonl"), "pretrain");
        assert_eq!(timeless_metrics(&run.join("metrics.jsonl")).len(), 5);
        let exported = path("exported");
        let checkpoint = newest_checkpoint(&run);
        done(
            &mut command(&["export"], &[&checkpoint, &exported]),
            &exported,
            "export",
        );
        let mut eval = command(&["eval", "knn", "--k", "3", "--checkpoint"], &[&run]);
        eval.arg("--train").arg(&train).arg("--test").arg(&val);
        let json = path("eval.json");
        let _ = std::fs::remove_file(&json);
        done(eval.arg("--json").arg(&json), &json, "eval");
        let mut report = command(&["report"], &[&run]);
        report.arg("--out").arg(path("report"));
        done(&mut report, &path("report/report.md"), "report");

        // What does nothing but say ends as the system would end it.
        let mut profile = command(&["profile"], &[&scenes]);
        profile.args(["--seconds", "1", "--batch", "8"]);
        for (mut command, what) in [
            (command(&["inspect"], &[&scenes]), "inspect"),
            (profile, "profile"),
        ] {
            let (status, said) = unread(&mut command, both);
            assert_quiet(&said, what);
            assert_eq!(signal(status), Some(SIGPIPE), "{what}: {status}\n{said}");
        }
        // An error keeps its exit code.
        let (status, said) = unread(&mut command(&["inspect"], &[&path("nothing")]), both);
        assert_quiet(&said, "an error");
        assert_eq!(status.code(), Some(1), "{said}");
        let (status, _) = unread(&mut command(&["--help"], &[]), both);
        assert!(
            status.success() || signal(status) == Some(SIGPIPE),
            "help: {status}"
        );
    }
}
