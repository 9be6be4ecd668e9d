//! `--trace` writes Chrome's JSON that Perfetto opens: every request, row group, image, batch and
//! step that began while it recorded, whole whatever ends the program.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use nepa_tests::program::{
    RunFolder, assert_says, nepa, send_signal, start, succeed, text, wait_until, write_photo_shards,
};
use nepa_tests::s3::{Options, S3Server};
use serde_json::Value;

use super::profile::SHORT;

/// Events of a trace, each proved to be one that Perfetto reads.
struct Events(Vec<Value>);

impl Events {
    fn read(path: &Path) -> Self {
        let json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let events = json["traceEvents"].as_array().unwrap().clone();
        let mut open = BTreeMap::<_, Vec<f64>>::new();
        let mut threads = BTreeMap::<_, Vec<(f64, f64)>>::new();
        let (mut named, mut used) = (BTreeSet::new(), BTreeSet::new());
        for event in &events {
            let number = |key: &str| event[key].as_f64().unwrap_or_else(|| panic!("{event}"));
            let name = event["name"].as_str().unwrap();
            let (phase, ts) = (event["ph"].as_str().unwrap(), number("ts"));
            assert_eq!(event["pid"], 1);
            let thread = event["tid"].as_u64().unwrap();
            let row = || (event["id"].as_str().unwrap().to_owned(), name.to_owned());
            match phase {
                "M" => {
                    assert!(!event["args"]["name"].as_str().unwrap().is_empty());
                    named.insert(thread);
                }
                "X" => threads
                    .entry(thread)
                    .or_default()
                    .push((ts, ts + number("dur"))),
                "b" => open.entry(row()).or_default().push(ts),
                "e" => {
                    let begun = open.get_mut(&row()).and_then(Vec::pop);
                    assert!(begun.is_some_and(|begun| begun <= ts), "{event}");
                }
                "i" => {}
                other => panic!("{other}: {event}"),
            }
            used.insert(thread);
        }
        assert!(open.values().all(Vec::is_empty), "not ended: {open:?}");
        assert!(used.is_subset(&named), "threads without a name");
        // On a thread, one lies within the other or after it.
        for spans in threads.values_mut() {
            spans.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
            let mut around = Vec::<f64>::new();
            for (from, to) in spans {
                while around.last().is_some_and(|end| *end <= *from) {
                    around.pop();
                }
                let within = around.last().is_none_or(|end| *to <= *end + 0.001);
                assert!(within, "spans of a thread cross each other");
                around.push(*to);
            }
        }
        Self(events)
    }

    /// The beginnings of the spans of a name.
    fn of(&self, name: &str) -> Vec<&Value> {
        let of = |event: &&Value| event["name"] == name && event["ph"] != "e";
        self.0.iter().filter(of).collect()
    }

    fn thread_names(&self) -> Vec<&str> {
        let names = self.of("thread_name").into_iter();
        names
            .map(|event| event["args"]["name"].as_str().unwrap())
            .collect()
    }
}

#[test]
fn a_profile_traces_requests_and_images_of_one_trial() {
    let folder = tempfile::tempdir().unwrap();
    write_photo_shards(folder.path(), 4, 12, 8);
    let late = Duration::from_millis(30);
    let server = S3Server::start_with(Options {
        latency: late,
        ..Options::default()
    })
    .unwrap();
    server.load_folder("bucket", "", folder.path()).unwrap();
    let path = folder.path().join("trace.json");
    let mut command = nepa();
    command.args(["profile", "s3://bucket", "--seconds", "4"]);
    command.args(&SHORT[2..]);
    let output = succeed(command.arg("--trace").arg(&path).envs(server.env()));
    assert_says(
        &text(&output),
        &["spans in", "https://ui.perfetto.dev opens it"],
    );
    let events = Events::read(&path);

    let requests = events.of("request");
    let request = requests.first().expect("a request");
    let args = &request["args"];
    assert!(
        args["object"].as_str().unwrap().starts_with("s3://bucket/"),
        "{request}"
    );
    let asked = args["to"].as_u64().unwrap() - args["from"].as_u64().unwrap();
    assert_eq!(args["bytes"].as_u64(), Some(asked), "{request}");
    assert_eq!(args["attempt"], 1);
    // Sent to first byte, and within its request.
    let first_byte = events.of("first byte");
    // One may have been sent while recording began.
    let (sent, answered) = (ids(&requests), ids(&first_byte));
    assert!(sent.difference(&answered).count() <= 1);
    let (begin, end) = (first_byte[0], first_byte[0]["id"].as_str());
    let end = events.0.iter().find(|event| {
        event["ph"] == "e" && event["name"] == "first byte" && event["id"].as_str() == end
    });
    let waited = end.unwrap()["ts"].as_f64().unwrap() - begin["ts"].as_f64().unwrap();
    assert!(waited >= 0.9 * late.as_secs_f64() * 1e6, "{waited} us");
    // Several at once.
    assert!(ids(&requests).len() > 1);

    let image = events.of("decode")[0];
    assert_eq!(image["args"]["format"], "Jpeg", "{image}");
    for key in ["width", "height", "bytes", "row_group", "row"] {
        assert!(image["args"][key].is_u64(), "{key}: {image}");
    }
    for name in ["unpack", "batch", "wait for batch", "assemble"] {
        assert!(!events.of(name).is_empty(), "no {name}");
    }
    let names = events.thread_names();
    for name in ["main", "nepa-decode-0", "nepa-io-0"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

#[test]
fn a_run_traces_the_steps_that_it_is_told_to() {
    let place = RunFolder::new();
    let path = place.path("trace.json");
    let mut command = place.pretrain("data", "out", &["checkpoint.every_steps=4"]);
    command.args(["--max-steps", "6", "--trace-steps", "3-4"]);
    let output = succeed(command.arg("--trace").arg(&path));
    assert!(
        !text(&output).contains("the trace ends"),
        "{}",
        text(&output)
    );
    let events = Events::read(&path);
    let steps = |name: &str| {
        let steps = events.of(name).into_iter();
        steps
            .map(|event| event["args"]["step"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(steps("step"), [3, 4]);
    assert_eq!(steps("checkpoint"), [4]);
    assert_eq!(events.of("wait for batch").len(), 2);

    // Of steps that do not come there is nothing, and it is said.
    for (asked, says) in [
        (
            "6-9",
            "the trace ends with step 6: the run did not reach step 9",
        ),
        ("900-910", "did none of the steps 900 to 910"),
    ] {
        let out = format!("out-{asked}");
        let mut command = place.pretrain("data", &out, &[]);
        command.args(["--max-steps", "6", "--trace-steps", asked]);
        let output = succeed(command.arg("--trace").arg(&path));
        assert_says(&text(&output), &[says]);
        assert_eq!(
            Events::read(&path).of("step").len(),
            usize::from(asked == "6-9")
        );
    }
}

#[test]
fn a_trace_is_whole_whatever_ends_the_run() {
    for (signal, code) in [("-INT", Some(130)), ("-KILL", None)] {
        let place = RunFolder::new();
        let path = place.path("trace.json");
        let mut command = place.pretrain("data", "out", &["train.steps=100000"]);
        command
            .args(["--trace-steps", "1-100000", "--trace"])
            .arg(&path);
        let child = start(&mut command);
        wait_until("spans are written", || {
            path.metadata().is_ok_and(|file| file.len() > 300_000)
        });
        send_signal(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), code, "{}", text(&output));
        let events = Events::read(&path);
        assert!(events.of("step").len() > 1, "{signal}");
    }
}

/// The rows of spans.
fn ids<'a>(spans: &[&'a Value]) -> BTreeSet<Option<&'a str>> {
    spans.iter().map(|event| event["id"].as_str()).collect()
}
