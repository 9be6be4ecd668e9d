//! Any number of ranks gives what one process gives: losses, weights, samples, bad samples.
use std::path::Path;

use nepa_tests::photos::some_bad;
use nepa_tests::program::{RunFolder, assert_says, nepa, succeed, text};
use nepa_tests::ranks::{assert_same_run, fail, launched};

use super::{ranks, ranks_on};

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

/// 50 steps of 16 micro-batches of an image each, two for each of eight ranks.
#[test]
fn so_do_eight_with_several_micro_batches_each_whatever_the_model() {
    let place = RunFolder::new();
    for activation in ["gelu", "silu"] {
        let (act, gated) = (
            format!("model.hidden_act={activation}"),
            format!("model.use_gated_mlp={}", activation == "silu"),
        );
        let settings = [
            "train.batch=16",
            "train.micro_batch=1",
            "train.steps=50",
            "checkpoint.every_steps=50",
            &act,
            &gated,
        ];
        let out = |count: usize| place.path(&format!("{activation}-{count}"));
        let trace = |count: usize| out(count).with_extension("trace");
        for count in [1, 8] {
            let name = format!("{activation}-{count}");
            let mut command = ranks(&place, count, &name, &settings);
            succeed(command.arg("--trace-samples").arg(trace(count)));
        }
        assert_same_run(&out(1), &out(8));
        let read = |count| std::fs::read(trace(count)).unwrap();
        assert!(read(1) == read(8), "{activation}");
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

#[test]
fn fine_tuning_on_ranks_is_that_of_one_process() {
    let place = RunFolder::new();
    succeed(&mut place.pretrain("data", "base", &["train.steps=4"]));
    let run = |count: usize| {
        let mut command = nepa();
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
        let trace = place.path(&format!("tuned-{count}.trace"));
        command.arg("--trace-samples").arg(trace);
        launched(command, count)
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
    // With whom each image was mixed, too.
    let trace = |out: &Path| std::fs::read_to_string(out.with_extension("trace")).unwrap();
    assert!(trace(&one) == trace(&four), "the traces differ");
    assert_says(&trace(&one), &["\"partner\":{"]);
}
