//! SIGTERM at random moments of a run on a store that is slow, hangs, or fails: it ends soon, says so by its code, loses no step that
//! it has done, and goes on exactly.
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use nepa_pipeline::{random::Purpose, random::below, random::epoch_stream};
use nepa_tests::program::test_seed;
use nepa_tests::proxy::Line;

use crate::run::{DATA, OUT, Place, Reference, is_long};

/// Time that a run has from the signal to its end where a save may take one second (`checkpoint.stop_s`), and what a busy machine may add.
const SOON: Duration = Duration::from_millis(2_000 + 300);
/// Stops a run again and again, each time at most this long after the store began to misbehave.
fn stop(kind: &str, line: Line) {
    let moments = if is_long() { 17 } else { 3 };
    let mut rng = epoch_stream(test_seed(), 0, 0, Purpose::Order);
    let mut up_to = |most_ms: u64| Duration::from_millis(below(&mut rng, most_ms));
    // So many that the run lasts for all moments.
    let steps = format!("train.steps={}", 120 + 100 * moments);
    let reference = Reference::with(&[&steps]);
    let place = Place::new();
    let steady = || {
        place.proxy.set(&[DATA, OUT], Line::Open);
        if kind == "slow" {
            place.proxy.throttle(OUT, Some(100e3), Some(100e3));
            place.proxy.delay(DATA, Duration::from_millis(100));
            place.proxy.delay(OUT, Duration::from_millis(300));
        }
    };
    let run = place.run().with(&[&steps]);
    let mut done = 0;
    for moment in 0..moments {
        steady();
        let began = Instant::now();
        // A save may go on for so long.
        let stop_s = 1 + 3 * (moment % 2);
        let setting = format!("checkpoint.stop_s={stop_s}");
        let mut started = run.start(&["--resume", "--set", &setting]);
        if moment == 0 {
            // Some steps are done at least.
            started.wait_for_step(20);
        }
        std::thread::sleep(up_to(3_000));
        place.proxy.set(&[DATA, OUT], line);
        std::thread::sleep(up_to(3_000));
        let at = began.elapsed();
        let steps = started.steps();
        started.send("-TERM");
        let since = Instant::now();
        let status = started.ends_within(Duration::from_mins(2));
        let took = since.elapsed();
        println!(
            "{kind}, moment {moment}: {:.2} s after its start and step {steps}, ended {:.2} s after the signal with {status}",
            at.as_secs_f64(),
            took.as_secs_f64(),
        );
        let said = started.said();
        // Before the program listens to signals, the system ends it.
        let is_early = at < Duration::from_millis(300) && status.signal() == Some(15);
        assert!(status.code() == Some(143) || is_early, "{status}:\n{said}");
        let soon = SOON + Duration::from_secs(stop_s - 1);
        assert!(took <= soon, "it took {took:?} and not {soon:?}:\n{said}");
        assert!(
            started.steps() >= done,
            "{} of {done} steps left:\n{said}",
            started.steps()
        );
        done = started.steps();
    }
    place.proxy.set(&[DATA, OUT], Line::Open);
    for bucket in [DATA, OUT] {
        place.proxy.throttle(bucket, None, None);
        place.proxy.delay(bucket, Duration::ZERO);
    }
    let mut started = run.start(&["--resume"]);
    started.wait_until("word", |started| started.steps() > done);
    let said = started.said();
    let went_on = said
        .lines()
        .rfind(|line| line.contains(": goes on after step "));
    let expected = format!("after step {done}");
    assert!(
        went_on.is_some_and(|line| line.contains(&expected)),
        "{done} steps were done:\n{said}"
    );
    started.succeeds();
    println!("{}", started.said());
    started.assert_same_as(&reference, &place.server);
}

#[test]
fn a_run_on_a_slow_store_stops_soon() {
    stop("slow", Line::Open);
}

#[test]
fn a_run_on_a_store_that_hangs_stops_soon() {
    stop("hanging", Line::Frozen);
}

#[test]
fn a_run_on_a_store_that_fails_stops_soon() {
    stop("failing", Line::Status(500));
}
