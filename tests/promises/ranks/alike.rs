//! Ranks that were not started alike do not begin, and what several cannot do is said.
use std::process::Command;

use nepa_tests::program::{
    RunFolder, assert_says, nepa, start, succeed, text, tiny_recipe, write_photo_shards,
};
use nepa_tests::ranks::{end, fail, master_port, said};

use super::{SETTINGS, one_of_two, ranks};

/// A run with these variables.
fn rank(place: &RunFolder, variables: &[(&str, &str)]) -> Command {
    let mut command = place.pretrain("data", "out", &SETTINGS);
    command.envs(variables.iter().copied());
    command
}

#[test]
fn variables_that_contradict_each_other_are_named() {
    let place = RunFolder::new();
    let said = fail(&mut rank(&place, &[("RANK", "1")]));
    assert_says(&said, &["RANK is set and WORLD_SIZE is not"]);
    let both = [
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("OMPI_COMM_WORLD_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
    ];
    assert_says(
        &fail(&mut rank(&place, &both)),
        &["RANK = 0", "OMPI_COMM_WORLD_RANK = 1", "contradict"],
    );
    let five = [("RANK", "0"), ("WORLD_SIZE", "5")];
    assert_says(
        &fail(&mut rank(&place, &five)),
        &["5 ranks (WORLD_SIZE)", "start 4 ranks"],
    );
    assert!(!place.path("out").exists());
    // What a job of Slurm leaves in a shell makes no ranks.
    let shell = [
        ("SLURM_JOB_ID", "1"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_PROCID", "0"),
    ];
    succeed(&mut rank(&place, &shell));
}

#[test]
fn ranks_that_were_not_started_alike_do_not_begin() {
    let place = RunFolder::new();
    write_photo_shards(&place.path("other"), 2, 2, 10);
    let other = place.path("other").display().to_string();
    let cases: [(&[&str], &[&str]); 5] = [
        (
            &["--set", "train.lr=2e-3"],
            &["rank 1 has another train.lr than rank 0", "0.002", "0.001"],
        ),
        (&["--data", &other], &["rank 1 has another", "than rank 0"]),
        (
            &["--max-steps", "3"],
            &["rank 1 has another --max-steps than rank 0: 3"],
        ),
        (
            &["--dry-run"],
            &["rank 1 has another --dry-run than rank 0: true, rank 0 has false"],
        ),
        (
            &["--trace-samples", "trace"],
            &["rank 1 has another --trace-samples than rank 0: true"],
        ),
    ];
    for (arguments, parts) in cases {
        let port = master_port();
        let alike = || place.pretrain("data", "out", &SETTINGS);
        let mut other = if arguments[0] == "--data" {
            let mut command = nepa();
            command.arg("pretrain").arg(tiny_recipe());
            command.arg("--out").arg(place.path("out"));
            command.args(SETTINGS.iter().flat_map(|setting| ["--set", setting]));
            command
        } else {
            alike()
        };
        other.args(arguments);
        let first = start(&mut one_of_two(alike(), 0, &port));
        let second = start(&mut one_of_two(other, 1, &port));
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
    let said = fail(&mut ranks(&place, 2, "out", &["device=cuda"]));
    assert_says(&said, &["device = \"cuda\""]);
    let said = fail(&mut ranks(&place, 2, "out", &["train.sum=library"]));
    assert_says(
        &said,
        &[
            "train.sum = \"library\"",
            "TCP connects them",
            "--set train.sum=tree",
        ],
    );
    let said = fail(nepa().args(["launch", "-n", "3", "--", "pretrain", "tiny"]));
    assert_says(&said, &["3 ranks: a run has 1, 2, 4, 8"]);
    let said = fail(nepa().args(["launch", "-n", "2", "--", "inspect", "x"]));
    assert_says(&said, &["several ranks of `pretrain` or `finetune`"]);
    let said = fail(nepa().args(["launch", "-n", "2", "--", "pretrain", "tiny", "--resum"]));
    assert_says(&said, &["a similar argument exists: '--resume'"]);
}
