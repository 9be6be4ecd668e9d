//! Two processes on one output: one of them runs, the other is told, and nothing that either saved is lost.
use std::process::ExitStatus;
use std::time::Duration;

use nepa_tests::program::assert_says;

use crate::run::{Place, Started};

#[track_caller]
fn refused(started: &mut Started, out: &str, most: Duration) -> String {
    let status = started.ends_within(most);
    let said = started.said();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_says(&said, &[out, "process"]);
    said
}

#[test]
fn an_output_in_use_is_refused() {
    let place = Place::new();
    let run = place.run();
    let mut first = run.start(&[]);
    first.wait_for_step(60);
    for arguments in [&["--resume"][..], &[]] {
        let mut second = run.start_on("elsewhere", &[], arguments);
        println!(
            "{}",
            refused(&mut second, run.out(), Duration::from_secs(20))
        );
    }
    first.succeeds();
    first.assert_same(&place.server);
}

#[test]
fn of_two_that_resume_at_once_one_goes_on() {
    let place = Place::new();
    let run = place.run();
    let mut first = run.start(&[]);
    first.wait_for_step(60);
    first.send("-TERM");
    first.ends_within(Duration::from_secs(20));
    drop(first);
    let mut both = ["here", "elsewhere"].map(|host| run.start_on(host, &[], &["--resume"]));
    let status = both
        .each_mut()
        .map(|one| one.ends_within(Duration::from_mins(2)));
    let said = both.each_ref().map(Started::said);
    println!("{said:#?}");
    let goes_on = status
        .iter()
        .position(ExitStatus::success)
        .unwrap_or_else(|| panic!("{said:#?}"));
    assert_eq!(status[1 - goes_on].code(), Some(1), "{said:#?}");
    assert_says(&said[1 - goes_on], &[run.out(), "process"]);
    both[goes_on].assert_same(&place.server);
}

/// The first stops answering, as a machine that is suspended; the second, on another machine, takes its place; the first wakes up
/// in the middle. Namespaces stand for machines.
#[test]
fn a_writer_that_wakes_up_when_another_has_taken_its_place_harms_nothing() {
    let machine = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let can = std::process::Command::new(machine[0])
        .args(&machine[1..])
        .arg("true")
        .output();
    if !can.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: no namespace for processes can be made here");
        return;
    }
    let place = Place::new();
    let run = place.run().with(&["checkpoint.takeover_s=6"]);
    let mut first = run.start_on("here", &machine, &[]);
    first.wait_for_step(90);
    first.send("-STOP");
    let mut second = run.start_on("elsewhere", &[], &["--resume"]);
    second.wait_until("steps of the second", |second| second.steps() >= 150);
    first.send("-CONT");
    let said = refused(&mut first, run.out(), Duration::from_secs(30));
    println!("the first:\n{said}");
    second.succeeds();
    println!("the second:\n{}", second.said());
    second.assert_same(&place.server);
    // And a third finds nothing to do, but everything in order.
    let mut third = run.start_on("elsewhere", &[], &["--resume"]);
    third.succeeds();
    third.assert_same(&place.server);
}
