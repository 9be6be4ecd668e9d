//! Several ranks, each with a GPU: the same bits by NCCL, through the memory of the machine, and on one GPU alone; what is told where they
//! cannot sum.
use std::path::PathBuf;
use std::process::{Command, Output};

use nepa_pipeline::cuda::cudarc::nccl::result::{get_nccl_version, get_uniqueid};
use nepa_pipeline::cuda::libraries::Library;
use nepa_tests::program::{RunFolder, assert_says, start, succeed, text};
use nepa_tests::ranks::{assert_same_run, end, fail, launched, master_port, metrics, said};
use nepa_tests::standins::on_standins;

use crate::program::without;

/// Four micro-batches a step, and a model that the kernels can compute.
const SETTINGS: [&str; 9] = [
    "model.hidden_size=64",
    "model.num_attention_heads=1",
    "device=\"cuda\"",
    "train.precision=\"bf16\"",
    "train.micro_batch=2",
    "train.warmup_steps=1",
    "checkpoint.every_steps=2",
    "loader.jpeg_largest=[96,96]",
    // Whoever decodes gives other pixels.
    "loader.jpeg=\"fixed\"",
];
const HOST: &str = "train.wire=host";
const LIBRARY: &str = "train.sum=library";

/// A run on one GPU.
fn run(place: &RunFolder, out: &str, settings: &[&str]) -> Command {
    let short = ["train.steps=4"];
    place.pretrain("data", out, &[&SETTINGS[..], &short, settings].concat())
}

/// The same as so many ranks on a machine with four GPUs; of one, without `launch`.
fn ranks(place: &RunFolder, count: usize, out: &str, settings: &[&str]) -> Command {
    let mut command = launched(run(place, out, settings), count);
    on_standins(&mut command, "seed=1,devices=4,equal_times=1");
    command
}

/// One of two ranks, started by hand as torchrun would, each with stand-ins of its own.
fn rank(place: &RunFolder, rank: &str, port: &str, out: &str, standins: &str) -> Command {
    let mut command = run(place, out, &[]);
    on_standins(&mut command, standins).envs([
        ("RANK", rank),
        ("LOCAL_RANK", rank),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", port),
    ]);
    command
}

/// Two ranks with these stand-ins, to their end.
fn two_ranks(place: &RunFolder, out: &str, standins: [&str; 2]) -> [Output; 2] {
    let port = master_port();
    let children = [("0", standins[0]), ("1", standins[1])]
        .map(|(number, standins)| start(&mut rank(place, number, &port, out, standins)));
    children.map(end)
}

#[test]
fn any_number_of_gpus_gives_the_bits_of_one() {
    let place = RunFolder::new();
    succeed(&mut ranks(&place, 1, "1", &[]));
    for (count, settings, out) in [
        (2, &[] as &[&str], "2"),
        (4, &[], "4"),
        (2, &[HOST], "2-host"),
        (4, &[HOST], "4-host"),
    ] {
        let said = text(&succeed(&mut ranks(&place, count, out, settings)));
        let by_nccl = said.contains("NCCL sums from GPU to GPU");
        assert_eq!(by_nccl, settings.is_empty(), "{said}");
        assert!(!said.contains("violation"), "{said}");
        assert_same_run(&place.path("1"), &place.path(out));
    }
    // It goes on with any other number, however they sum.
    let longer = |count: usize, out: &str, settings: &[&str]| {
        let settings = [settings, &["train.steps=6"]].concat();
        succeed(ranks(&place, count, out, &settings).arg("--resume"));
    };
    longer(1, "1", &[]);
    longer(2, "4", &[]);
    longer(4, "2-host", &[]);
    longer(2, "2", &[HOST]);
    for out in ["4", "2-host", "2"] {
        assert_same_run(&place.path("1"), &place.path(out));
    }
}

/// How a product is computed decides bits, and is chosen by timing. Each rank is shown a GPU of its own here.
#[test]
fn all_ranks_compute_by_the_choices_of_rank_0() {
    const FIRST: &str = "seed=1,equal_times=1";
    let place = RunFolder::new();
    succeed(on_standins(&mut run(&place, "first", &[]), FIRST));
    let mut others = run(&place, "others", &[]);
    succeed(on_standins(&mut others, "seed=2,random_times=1"));
    assert_ne!(
        metrics(&place.path("first")),
        metrics(&place.path("others")),
        "choices would not matter"
    );
    let standins = [FIRST, "seed=2,random_times=1,first_gpu=1"];
    for output in two_ranks(&place, "both", standins) {
        assert!(output.status.success(), "{}", text(&output));
    }
    assert_same_run(&place.path("first"), &place.path("both"));
}

/// NCCL adds in an order of its own: as well as the tree, and to the same bits each time.
#[test]
fn the_library_adds_where_that_is_asked_for() {
    let place = RunFolder::new();
    succeed(&mut ranks(&place, 1, "tree", &[]));
    let last_loss = |out: &str| {
        let lines = metrics(&place.path(out));
        let line: serde_json::Value = serde_json::from_str(lines.last().unwrap()).unwrap();
        line["loss"].as_f64().unwrap()
    };
    let tree = last_loss("tree");
    for (count, out, again) in [(2, "2", "2-again"), (4, "4", "4-again")] {
        for out in [out, again] {
            let mut command = ranks(&place, count, out, &[LIBRARY]);
            // No rank sends anything to another one by itself.
            let alone = "seed=1,devices=4,equal_times=1,fault=ncclSend:5:all";
            let said = text(&succeed(command.env("NEPA_STANDIN", alone)));
            assert!(!said.contains("violation"), "{said}");
        }
        assert_same_run(&place.path(out), &place.path(again));
        let library = last_loss(out);
        assert!(
            (library / tree - 1.0).abs() < 1e-3,
            "{count} ranks: {library}, not {tree}"
        );
    }
    // A run goes on with the other choice.
    succeed(ranks(&place, 2, "4", &["train.steps=6"]).arg("--resume"));

    let on = |out: &str, fault: &str| {
        let mut command = ranks(&place, 4, out, &[LIBRARY]);
        let standins = format!("seed=1,devices=4,equal_times=1,{fault}");
        command.env("NEPA_STANDIN", standins);
        command
    };
    // One sum a step: in the third.
    let said = fail(&mut on("killed", "nccl.dies=3:3"));
    assert_says(
        &said,
        &["rank 3 has ended without a word", "saved after step 2"],
    );
    let said = fail(&mut on("refused", "fault=ncclAllReduce:3:3"));
    assert_says(&said, &["summing between GPUs", "saved after step 2"]);
    // TCP has no sum of its own.
    let said = fail(&mut ranks(&place, 2, "host", &[LIBRARY, HOST]));
    assert_says(&said, &["--set train.wire=nccl", "--set train.sum=tree"]);
}

#[test]
fn a_rank_that_dies_in_the_sum_ends_all() {
    let place = RunFolder::new();
    succeed(&mut ranks(&place, 1, "straight", &[]));
    let mut command = ranks(&place, 4, "out", &[]);
    // Four groups a step: in the third.
    command.env(
        "NEPA_STANDIN",
        "seed=1,devices=4,equal_times=1,nccl.dies=3:10",
    );
    let output = end(start(&mut command));
    let said = said(&output);
    assert_eq!(output.status.code(), Some(137), "{said}");
    // Rank 0 has no connection to it, and is told.
    assert_says(
        &said,
        &["rank 3 has ended without a word", "saved after step 2"],
    );
    assert!(!said.contains("violation"), "{said}");
    succeed(ranks(&place, 1, "out", &[]).arg("--resume"));
    assert_same_run(&place.path("straight"), &place.path("out"));
}

#[test]
fn a_communicator_that_is_refused_is_told_with_what_to_do() {
    let place = RunFolder::new();
    for (fault, why) in [
        ("ncclGetUniqueId:2:all", "unhandled system error"),
        ("ncclCommInitRankConfig:5:all", "invalid usage"),
        // While it is made.
        ("ncclCommGetAsyncError:1:1", "unhandled cuda error"),
    ] {
        let mut command = ranks(&place, 2, "out", &[]);
        command.env("NEPA_STANDIN", format!("seed=1,devices=4,fault={fault}"));
        assert_says(
            &fail(&mut command),
            &[
                "the gradient cannot be summed over the ranks",
                "NCCL failed at",
                why,
                "NCCL_DEBUG",
                HOST,
            ],
        );
        assert!(!place.path("out/recipe.toml").exists());
    }
    // In the third step: what was trained is there.
    let mut command = ranks(&place, 2, "out", &[]);
    let fault = "seed=1,devices=4,fault=ncclSend:3:5";
    let said = fail(command.env("NEPA_STANDIN", fault));
    assert_says(&said, &["sending between GPUs", "saved after step 2"]);
}

#[test]
fn without_nccl_the_memory_of_the_machine_is_left() {
    let place = RunFolder::new();
    let some = without(&["libnccl.so.2"]);
    let run = |settings: &[&str]| {
        let mut command = ranks(&place, 2, "out", settings);
        command
            .env("LD_LIBRARY_PATH", some.path())
            .env_remove("CUDA_HOME")
            .env("XDG_CACHE_HOME", some.path());
        command
    };
    assert_says(
        &fail(&mut run(&[])),
        &[
            "NCCL, which sums between GPUs, is not on this machine",
            "libnccl.so.2: cannot open",
            "cuda-toolkit.sh",
            HOST,
        ],
    );
    succeed(&mut run(&[HOST]));
}

#[test]
fn ranks_whose_gpus_do_not_fit_are_told_how() {
    let place = RunFolder::new();
    let on = |standins: &str, count: usize, settings: &[&str]| {
        let mut command = ranks(&place, count, "out", settings);
        command.env("NEPA_STANDIN", standins);
        command
    };
    assert_says(
        &fail(&mut on("seed=1,devices=2", 4, &[])),
        &["number 2 of its machine", "sees 2 GPUs"],
    );
    assert_says(
        &fail(&mut on("seed=1,devices=2", 2, &["device=cuda:1"])),
        &["\"cuda:1\" names one GPU"],
    );
    assert_says(
        &fail(&mut on("seed=1", 2, &[])),
        &["ranks 0 and 1 compute on the same GPU", HOST],
    );
    succeed(&mut on("seed=1", 2, &[HOST]));

    for (standins, parts) in [
        (
            "seed=1,first_gpu=1,name=another GPU",
            &["rank 1 has another kind of GPU", "another GPU"][..],
        ),
        (
            "seed=1,first_gpu=1,nccl.version=22703",
            &["rank 1 has NCCL 2.27.3, rank 0 has 2.28.9"],
        ),
    ] {
        for output in two_ranks(&place, "other", ["seed=1", standins]) {
            assert_eq!(output.status.code(), Some(1), "{}", text(&output));
            assert_says(&said(&output), parts);
        }
        assert!(!place.path("other/recipe.toml").exists());
    }
}

/// A folder with NVIDIA's own library, which works without a GPU so far: `NEPA_TEST_NCCL`, or where scripts/cuda-toolkit.sh puts it.
fn real_nccl() -> Option<PathBuf> {
    let named = std::env::var_os("NEPA_TEST_NCCL").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cached = cache.or_else(home);
    let cached = cached.map(|cache| cache.join("nepa-cuda-13.0/lib"));
    let mut folders = named.into_iter().chain(cached);
    folders.find(|folder| folder.join("libnccl.so.2").is_file())
}

/// In a process of its own, which has no stand-ins.
#[test]
fn the_real_library_begins_a_communicator() {
    const INSIDE: &str = "NEPA_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        assert_eq!(Library::Nccl.load_error(), None);
        let version = get_nccl_version().unwrap();
        let id = get_uniqueid().unwrap();
        assert!(id.internal.iter().any(|byte| *byte != 0));
        println!("version {version}");
        return;
    }
    let Some(folder) = real_nccl() else {
        println!("SKIPPED: no libnccl.so.2 of NVIDIA's is here; NEPA_TEST_NCCL names its folder");
        return;
    };
    let mut inside = Command::new(std::env::current_exe().unwrap());
    inside
        .args(["--exact", "ranks::the_real_library_begins_a_communicator"])
        .arg("--nocapture")
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", folder);
    assert_says(&text(&succeed(&mut inside)), &["1 passed", "version 2"]);
}
