//! Stores that are away for a while, or slow: of data, of outputs, of both, at a step and at a save. The run waits for data, trains
//! on over a failed save, and ends with the numbers and weights of a run that nothing disturbed.
use std::time::{Duration, Instant};

use nepa_tests::program::{assert_says, jpeg, nepa, text};
use nepa_tests::proxy::Line;

use crate::run::{DATA, EVERY, OUT, Place, Reference, Started, is_long};

/// How long a store is away: longer than ten seconds, so that something must be said.
fn length() -> Duration {
    Duration::from_secs(if is_long() { 60 } else { 15 })
}

/// When a store goes away.
enum When {
    /// After this step, which is between two saves.
    Step(usize),
    /// In the middle of the save after this step: its first file is on its way.
    Save(usize),
}

impl Place {
    /// Sets the line of these buckets at that moment and gives back the step.
    fn disturb(&self, started: &mut Started, buckets: &[&str], line: Line, when: &When) -> usize {
        match when {
            When::Step(step) => {
                started.wait_for_step(*step);
                self.proxy.set(buckets, line);
            }
            When::Save(step) => {
                let part = format!("checkpoints/step-{step:08}/");
                self.proxy.set_at("PUT", &part, buckets, line);
                started.wait_until("save", |_| self.proxy.line(buckets[0]) == line);
            }
        }
        started.steps()
    }
}

/// One outage in the middle of a run.
fn outage(buckets: &[&str], line: Line, when: &When) {
    let place = Place::new();
    // Requests that hang are given up sooner than by default, but for the store's usual speed.
    let run = place.run().with(&["io.request_timeout_s=4"]);
    let mut started = run.start(&[]);
    let before = place.disturb(&mut started, buckets, line, when);
    let since = Instant::now();
    while since.elapsed() < length() {
        assert!(
            !started.has_ended() || !buckets.contains(&DATA),
            "it did not wait:\n{}",
            started.said()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let after = started.steps();
    place.proxy.set(buckets, Line::Open);
    let since = Instant::now();
    started.succeeds();
    println!(
        "{buckets:?} {line:?} for {:?}: step {before} before, {after} after; ended {:.1} s later. It said:\n{}",
        length(),
        since.elapsed().as_secs_f64(),
        started.said()
    );
    if !buckets.contains(&DATA) {
        assert!(
            after >= before + EVERY,
            "it did not train on: {before} to {after}"
        );
    }
    started.assert_same(&place.server);
    // What is waited for is named: every ten seconds, and when it is over.
    let warned = started.warned();
    let bucket = format!("s3://{}", buckets[0]);
    let named = warned.lines().filter(|line| line.contains(&bucket)).count();
    // One line for each checkpoint that is passed over, too.
    let most = 8 + 2 * length().as_secs() as usize / 10;
    assert!(
        (1..=most).contains(&named),
        "{named} times {bucket}:\n{warned}"
    );
}

#[test]
fn data_is_away_at_a_step() {
    outage(&[DATA], Line::Cut, &When::Step(60));
}

#[test]
fn data_hangs_at_a_step() {
    outage(&[DATA], Line::Frozen, &When::Step(60));
}

#[test]
fn data_is_away_at_a_save() {
    outage(&[DATA], Line::Cut, &When::Save(80));
}

#[test]
fn the_output_is_away_at_a_step() {
    outage(&[OUT], Line::Cut, &When::Step(60));
}

#[test]
fn the_output_is_away_at_a_save() {
    outage(&[OUT], Line::Cut, &When::Save(80));
}

#[test]
fn the_output_hangs_at_a_save() {
    outage(&[OUT], Line::Frozen, &When::Save(80));
}

#[test]
fn the_output_refuses_work_at_a_save() {
    outage(&[OUT], Line::Status(503), &When::Save(80));
}

#[test]
fn both_are_away_at_a_step() {
    outage(&[DATA, OUT], Line::Cut, &When::Step(60));
}

#[test]
fn both_are_away_at_a_save() {
    outage(&[DATA, OUT], Line::Cut, &When::Save(80));
}

/// As a host that is down: no connection is taken.
#[test]
fn the_host_is_down() {
    let place = Place::new();
    let run = place.run();
    let mut started = run.start(&[]);
    started.wait_for_step(60);
    place.proxy.refuse(true);
    std::thread::sleep(length());
    place.proxy.refuse(false);
    started.succeeds();
    println!("{}", started.said());
    started.assert_same(&place.server);
}

/// Answers that break off, again and again, at different lengths: nothing is lost and nothing is mixed.
#[test]
fn answers_break_off() {
    let place = Place::new();
    let run = place.run();
    let mut started = run.start(&[]);
    for (round, length) in [900, 5_000, 1_500, 12_000].into_iter().enumerate() {
        started.wait_for_step(20 + 40 * round);
        place.proxy.set(&[DATA, OUT], Line::CutAfter(length));
        std::thread::sleep(Duration::from_millis(1_500));
        place.proxy.set(&[DATA, OUT], Line::Open);
    }
    started.succeeds();
    println!("{}", started.said());
    started.assert_same(&place.server);
}

/// The output is away at the end, and for longer than the run may wait: it says where the checkpoint lies, and `--resume` sends that.
/// On another machine, which has no such folder, the run goes on from the last checkpoint that arrived.
#[test]
fn a_run_that_ends_without_its_output_says_where_the_checkpoint_lies() {
    for host in ["here", "elsewhere"] {
        let place = Place::new();
        let run = place.run().with(&["io.outage_s=4"]);
        let mut started = run.start(&[]);
        place.disturb(&mut started, &[OUT], Line::Cut, &When::Save(200));
        let status = started.ends_within(Duration::from_mins(1));
        let said = started.said();
        println!("{said}");
        assert_eq!(status.code(), Some(1), "{said}");
        let spool = run.path("here").to_str().unwrap().to_owned();
        assert_says(&said, &["--resume", run.out(), &spool]);
        place.proxy.set(&[OUT], Line::Open);
        let mut again = run.start_on(host, &[], &["--resume"]);
        again.succeeds();
        println!("again, {host}: {}", again.said());
        again.assert_same(&place.server);
    }
}

/// Data that is away for longer than the run may wait ends it, saved; it goes on exactly.
#[test]
fn a_run_that_waits_in_vain_is_saved() {
    let place = Place::new();
    let run = place.run().with(&["io.outage_s=4"]);
    let mut started = run.start(&[]);
    place.disturb(&mut started, &[DATA], Line::Cut, &When::Step(60));
    let status = started.ends_within(Duration::from_mins(1));
    let said = started.said();
    println!("{said}");
    assert_eq!(status.code(), Some(1), "{said}");
    assert_says(&said, &["resume", "s3://photos", "io.outage_s"]);
    let at = started.steps();
    place.proxy.set(&[DATA], Line::Open);
    let mut again = run.start(&["--resume"]);
    again.wait_until("word", |again| {
        again.said().contains(": goes on after step ")
    });
    assert_says(&again.said(), &[&format!("after step {at}")]);
    again.succeeds();
    again.assert_same(&place.server);
}

/// The other commands wait, too.
#[test]
fn pack_eval_report_and_export_wait() {
    let place = Place::new();
    let run = place.run();
    run.start(&[]).succeeds();
    place
        .server
        .upload(&Reference::get().path("val"), DATA, "val");
    let (set, val) = (place.server.url(DATA, "set"), place.server.url(DATA, "val"));
    let folder = tempfile::tempdir().unwrap();
    let local = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for class in ["cat", "dog"] {
        std::fs::create_dir_all(folder.path().join("photos").join(class)).unwrap();
        for number in 0..200 {
            let name = format!("photos/{class}/{number}.jpg");
            std::fs::write(folder.path().join(name), jpeg(number)).unwrap();
        }
    }
    let evaluated = ["--train", &set, "--test", &val, "--k", "3"];
    let packed = place.server.url(OUT, "packed");
    let (photos, exported, report) = (local("photos"), local("exported"), local("report"));
    let pack = [
        "pack",
        &photos,
        &packed,
        "--shard-mib",
        "0.2",
        "--row-group-mib",
        "0.05",
    ];
    let commands: [(&str, &str, Vec<&str>); 4] = [
        ("PUT", "packed/", pack.to_vec()),
        (
            "GET",
            "train-2",
            [&["eval", "knn", "--checkpoint", run.out()], &evaluated[..]].concat(),
        ),
        (
            "GET",
            "ema.safetensors",
            vec!["export", run.out(), &exported],
        ),
        (
            "GET",
            "optimizer",
            [
                &["report", run.out(), "--ridge-only", "--out", &report],
                &evaluated[..],
            ]
            .concat(),
        ),
    ];
    for (method, part, arguments) in &commands {
        place.proxy.set_at(method, part, &[DATA, OUT], Line::Cut);
        let child = nepa()
            .args(arguments)
            .envs(place.server.env_through(&place.proxy.endpoint()))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let since = Instant::now();
        while place.proxy.line(DATA) == Line::Open && since.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(
            place.proxy.line(DATA),
            Line::Cut,
            "{} never asked for {part}",
            arguments[0]
        );
        std::thread::sleep(length());
        place.proxy.set(&[DATA, OUT], Line::Open);
        let output = child.wait_with_output().unwrap();
        println!("{}: {}", arguments[0], text(&output));
        assert!(
            output.status.success(),
            "{}: {}",
            arguments[0],
            text(&output)
        );
    }
}

/// A checkpoint takes longer to send than a request may take without a byte: a slow line is no broken one.
#[test]
fn an_uplink_of_300_kb_a_second_is_enough() {
    // 3.5 MB a checkpoint, and 1.8 MB in its largest file; the long form has 28 MB there, in the parts of the default limits.
    let (width, timeout) = if is_long() { (384, 30) } else { (96, 2) };
    let settings = [
        format!("model.hidden_size={width}"),
        format!("model.intermediate_size={}", 4 * width),
        "train.steps=24".to_owned(),
        "checkpoint.every_steps=12".to_owned(),
        format!("io.request_timeout_s={timeout}"),
    ];
    let settings = settings.each_ref().map(String::as_str);
    let reference = Reference::with(&settings);
    let place = Place::new();
    place.proxy.throttle(OUT, Some(300e3), None);
    let run = place.run().with(&settings);
    let mut started = run.start(&[]);
    let since = Instant::now();
    let most = Duration::from_mins(if is_long() { 20 } else { 2 });
    let status = started.ends_within(most);
    println!(
        "ended after {:.1} s with {status}:\n{}",
        since.elapsed().as_secs_f64(),
        started.said()
    );
    assert!(status.success());
    started.assert_same_as(&reference, &place.server);
}
