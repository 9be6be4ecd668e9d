//! A run says where its time goes while it trains: in each line of its metrics, at its end, and to
//! whoever scrapes it.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use nepa_tests::photos::encode_jpeg;
use nepa_tests::program::{
    RunFolder, ServedRun, assert_says, count_lines, joined, jpeg, nepa, send_signal, start,
    succeed, text, wait_until,
};
use nepa_tests::s3::{Fault, Rule};
use nepa_tests::shards::labelled_shard;
use serde_json::Value;

/// The lines of a run's metrics.
fn lines(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    // The last one may be being written.
    let whole = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
    whole.map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// A value of what the loader did, in the mean over the lines.
fn mean(lines: &[Value], key: &str) -> f64 {
    let values = lines.iter().map(|line| line["loader"][key].as_f64());
    let values = values.map(|value| value.unwrap_or_else(|| panic!("{key}: {lines:?}")));
    values.sum::<f64>() / lines.len() as f64
}

/// The line that begins with `waited`, with what it was broken into.
fn waited(said: &str) -> String {
    let mut lines = said.lines().skip_while(|l| !l.starts_with("waited "));
    let first = lines.next().unwrap_or_else(|| panic!("{said}"));
    let more = lines.take_while(|line| line.starts_with("        "));
    let more = more.map(str::trim).collect::<Vec<_>>().join(" ");
    format!("{} {more}", first.trim_start_matches("waited").trim())
}

#[test]
fn each_line_says_what_the_loader_did_and_the_end_what_was_waited_for() {
    let place = ServedRun::new();
    let slow = Duration::from_millis(200);
    let rule = Rule::get("", 0..u64::MAX, Fault::Latency(slow));
    place.server.add_fault(rule);
    let settings = ["io.max_requests=1", "train.steps=40"];
    let output = succeed(&mut place.pretrain("s3://data", "out", &settings));
    let lines = lines(&place.path("out"));
    assert_eq!(lines.len(), 40);
    for line in &lines {
        for stage in ["fetch", "unpack", "decode"] {
            let share = line["loader"][stage].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&share), "{line}");
        }
        assert!(line.to_string().len() < 700, "{line}");
    }
    let mean = |key: &str| mean(&lines, key);
    // One request after the other, and nothing else takes time.
    assert!(mean("fetch") > 0.3, "{}", mean("fetch"));
    assert!(
        (0.2..=1.05).contains(&mean("in_flight")),
        "{}",
        mean("in_flight")
    );
    assert!(mean("mb_per_second") > 0.0 && mean("held_mb") > 0.0);
    assert!(mean("batches_ready") <= 3.0, "{}", mean("batches_ready"));
    assert!(
        !lines[0]["loader"]
            .as_object()
            .unwrap()
            .contains_key("throttled")
    );

    let events = std::fs::read(place.path("out/events.out.tfevents.nepa")).unwrap();
    let events = String::from_utf8_lossy(&events);
    for tag in ["loader/fetch", "loader/in_flight", "loader/batches_ready"] {
        assert_eq!(events.matches(tag).count(), lines.len(), "{tag}");
    }

    let said = text(&output);
    let waited = waited(&said);
    assert!(
        waited.contains(" % of the time for data: the store (") && waited.contains(" of 1 request"),
        "{waited}"
    );
    let (_, latency) = waited.split_once("first byte after ").expect(&waited);
    let (latency, _) = latency.split_once(" ms").expect(&waited);
    let latency = latency.replace(',', "").parse::<f64>().unwrap();
    assert!((165.0..600.0).contains(&latency), "{waited}");
    let (_, profile) = waited.split_once("what would help: ").expect(&waited);
    assert!(
        profile.starts_with("nepa profile --recipe ") && profile.contains("io.max_requests=1"),
        "{profile}"
    );
}

/// A JPEG that takes much longer to decode than the smallest model to be trained on it.
fn large_photo(number: u32) -> Vec<u8> {
    let side = 1600;
    let pixels = (0..3 * side * side).map(|i| {
        let (x, y) = (i / 3 % side, i / 3 / side);
        ((x * 7 + y * 13 + number as usize * 31) * (1 + x * y % 5)) as u8
    });
    let pixels = pixels.collect::<Vec<_>>();
    encode_jpeg(&pixels, side, side, turbojpeg::Subsamp::None)
}

#[test]
fn decoding_that_is_waited_for_is_named_with_its_threads() {
    let place = RunFolder::new();
    let rows = (0..16).map(|n| (Some(large_photo(n)), None, i64::from(n)));
    let shard = labelled_shard([rows.collect()]);
    std::fs::write(place.path("large.parquet"), shard).unwrap();
    let settings = [
        "loader.decode_threads=1",
        "train.steps=6",
        // Whole images, so that all of each is decoded.
        "data.augment.scale=[0.9, 1.0]",
    ];
    let output = succeed(&mut place.pretrain("large.parquet", "out", &settings));
    let said = text(&output);
    let waited = waited(&said);
    assert!(
        waited.contains(" % of the time for data: decoding (1 thread busy "),
        "{waited}"
    );
    let lines = lines(&place.path("out"));
    assert!(mean(&lines, "decode") > 0.5, "{lines:?}");
    assert!(mean(&lines, "fetch") < 0.3, "{lines:?}");
}

/// A run that serves its metrics, and the rest of what it says.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    /// Starts a run with `--metrics-addr 127.0.0.1:0` and reads where it serves.
    fn start(command: &mut Command) -> Self {
        let mut child = start(command.args(["--metrics-addr", "127.0.0.1:0"]));
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let address = line.strip_prefix("metrics at http://");
        let address = address.and_then(|rest| rest.trim().strip_suffix("/metrics"));
        let address = address.unwrap_or_else(|| panic!("{line}")).to_owned();
        // What is not read would stop it in the end.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, address }
    }

    /// The values by their names and labels.
    fn scrape(&self) -> BTreeMap<String, f64> {
        let page = get(&self.address);
        let (head, body) = page.split_once("\r\n\r\n").expect(&page);
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        let lines = body.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').expect(line);
                assert!(name.starts_with("nepa_"), "{line}");
                (name.to_owned(), value.parse().expect(line))
            })
            .collect()
    }
}

fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let timeout = Some(Duration::from_secs(20));
    stream.set_read_timeout(timeout).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

#[test]
fn a_run_is_scraped_while_it_waits_and_says_what_its_metrics_say() {
    let place = ServedRun::new();
    let settings = ["train.steps=100000", "checkpoint.every_steps=10"];
    let mut run = Served::start(&mut place.pretrain("s3://data", "out", &settings));
    let metrics = place.path("out/metrics.jsonl");
    wait_until("some steps", || count_lines(&metrics) >= 12);
    // No row group comes any more, so that the run waits before long.
    place.server.freeze();
    let wait = "nepa_data_wait_seconds_total";
    let mut seen = run.scrape();
    wait_until("a wait", || {
        let before = std::mem::replace(&mut seen, run.scrape());
        let waited = seen[wait] - before[wait];
        std::thread::sleep(Duration::from_millis(300));
        waited > 0.25 && seen["nepa_step"].to_bits() == before["nepa_step"].to_bits()
    });
    let lines = lines(&place.path("out"));
    let last = lines.last().unwrap();
    let same = |name: &str, key: &str| {
        let (served, written) = (seen[&format!("nepa_{name}")], last[key].as_f64().unwrap());
        assert!(
            (served - written).abs() <= 1e-9 * written.abs(),
            "{name}: {served} {written}"
        );
    };
    for key in [
        "step",
        "epoch",
        "loss",
        "lr",
        "grad_norm",
        "images_per_second",
    ] {
        same(key, key);
    }
    same("samples_total", "samples");
    let sum = |key: &str| {
        lines
            .iter()
            .map(|line| line[key].as_f64().unwrap())
            .sum::<f64>()
    };
    let steps = seen["nepa_step_seconds_total"];
    assert!((1e3 * steps / sum("step_ms") - 1.0).abs() < 1e-6, "{steps}");
    assert!(
        1e3 * seen[wait] > sum("data_wait_ms"),
        "the wait that lasts"
    );
    assert!((seen["nepa_last_step"] - 100_000.0).abs() < 0.5);
    let saved = seen["nepa_checkpoints_saved_total"] as usize;
    assert_eq!(saved, lines.len() / 10);
    // The store is asked for more, in vain.
    assert!(seen["nepa_store_in_flight"] >= 1.0, "{seen:?}");
    assert!(seen["nepa_loader_batches_ready"] < 1.0, "{seen:?}");
    assert!(seen["nepa_store_bytes_total"] > 10_000.0, "{seen:?}");
    let decoded = seen["nepa_loader_decoded_images_total"];
    assert!((0.0..8.0).contains(&(decoded - last["samples"].as_f64().unwrap())));
    let count = seen["nepa_store_first_byte_seconds_count"];
    assert!(count >= 3.0, "{seen:?}");
    assert!((seen["nepa_store_first_byte_seconds_bucket{le=\"+Inf\"}"] - count).abs() < 0.5);
    for stage in ["fetch", "unpack", "decode", "consume"] {
        assert!(seen[&format!("nepa_loader_busy_seconds_total{{stage=\"{stage}\"}}")] > 0.0);
    }
    assert!(seen["nepa_resident_memory_bytes"] > 1e6);

    place.server.reopen();
    wait_until("more steps", || {
        run.scrape()["nepa_step"] > seen["nepa_step"]
    });
    send_signal(&run.child, "-TERM");
    assert_eq!(run.child.wait().unwrap().code(), Some(143));
    assert!(TcpStream::connect(&run.address).is_err());
}

#[test]
fn bad_images_are_counted_for_those_who_scrape() {
    let place = RunFolder::new();
    let rows = (0..40).map(|row| {
        let image = match row {
            7 => b"no image".to_vec(),
            _ => jpeg(row),
        };
        (Some(image), None, i64::from(row % 10))
    });
    std::fs::write(
        place.path("dirty.parquet"),
        labelled_shard([rows.collect()]),
    )
    .unwrap();
    let settings = ["train.steps=100000", "data.max_bad_fraction=1.0"];
    let mut run = Served::start(&mut place.pretrain("dirty.parquet", "out", &settings));
    wait_until("an epoch", || {
        count_lines(&place.path("out/metrics.jsonl")) > 12
    });
    let seen = run.scrape();
    let bad = seen["nepa_bad_samples_total"];
    // Once an epoch of five batches.
    assert!(bad >= 1.0 && bad <= seen["nepa_step"] / 5.0 + 1.0, "{bad}");
    assert!(seen["nepa_absent_samples_total"] < 0.5);
    send_signal(&run.child, "-TERM");
    assert_eq!(run.child.wait().unwrap().code(), Some(143));
}

#[test]
fn an_address_that_cannot_be_served_is_told_before_anything_else() {
    let place = RunFolder::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let with = |address: &str| {
        // There is no such data, which would be said next.
        let mut command = place.pretrain("none", "out", &[]);
        command.args(["--metrics-addr", address]).output().unwrap()
    };
    let refused = with(&address);
    assert_eq!(refused.status.code(), Some(1));
    let said = joined(&String::from_utf8_lossy(&refused.stderr));
    assert_says(
        &said,
        &[
            "cannot serve metrics at ",
            &address,
            "in use",
            "--metrics-addr",
            "port 0",
        ],
    );
    assert!(
        !said.contains("none") && !place.path("out").exists(),
        "{said}"
    );
    // An address for documentation, of no machine.
    let elsewhere = with("192.0.2.1:9400");
    assert_says(
        &text(&elsewhere),
        &["cannot serve metrics at 192.0.2.1:9400", "of this machine"],
    );
    for odd in ["9400", "localhost:9400", "127.0.0.1"] {
        let refused = with(odd);
        assert_eq!(refused.status.code(), Some(2), "{odd}");
        assert_says(&text(&refused), &[odd, "--metrics-addr", "127.0.0.1:9400"]);
    }
    let mut measured = nepa();
    measured.args([
        "pretrain",
        "tiny",
        "--synthetic",
        "3",
        "--metrics-addr",
        "127.0.0.1:0",
    ]);
    assert_eq!(measured.output().unwrap().status.code(), Some(2));
}
