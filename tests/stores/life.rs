//! The whole life of a run on servers that nobody here wrote: look, measure, train, be stopped and killed,
//! go on through an outage, judge, report, export, pack.
//! Every number is that of the same run on the local disk.
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nepa_tests::program::{assert_says, jpeg, nepa, succeed, text};
use nepa_tests::proxy::{Line, Proxy};

use crate::run::{DATA, OUT, Reference, Run};
use crate::servers::Server;

/// The rows of the table: what was done, and how long it took.
struct Life<'a> {
    server: &'a Server,
    rows: Vec<(String, Duration)>,
}

impl Life<'_> {
    fn timed<T>(&mut self, what: &str, work: impl FnOnce() -> T) -> T {
        let since = Instant::now();
        let result = work();
        self.rows.push((what.to_owned(), since.elapsed()));
        result
    }

    fn nepa(&mut self, arguments: &[&str]) -> String {
        let mut command = program(self.server);
        let what = arguments[..if arguments[0] == "eval" { 2 } else { 1 }].join(" ");
        let output = self.timed(&what, || succeed(command.args(arguments)));
        text(&output)
    }
}

fn program(server: &Server) -> Command {
    let mut command = nepa();
    command.envs(server.env());
    command
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a command says about a place, with the place's name left out.
fn said_of(output: &str, place: &str) -> String {
    output.replace(place, "PLACE")
}

fn live(server: &Server) {
    let reference = Reference::get();
    // Slow enough that a moment in the middle of the run can be met.
    let proxy = Proxy::before(&base(server.endpoint()), &[DATA, OUT]);
    proxy.throttle(DATA, None, Some(600e3));
    let through = server
        .endpoint()
        .replace(&base(server.endpoint()), &proxy.endpoint());
    let run = Run::new(server, &through, "a");
    let mut life = Life {
        server,
        rows: Vec::new(),
    };
    let place = tempfile::tempdir().unwrap();
    let local = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    server.upload(&reference.path("val"), DATA, "val");
    let (set, val, out) = (
        server.url(DATA, "set"),
        server.url(DATA, "val"),
        server.url(OUT, "a"),
    );
    let (local_set, local_val, local_out) = (
        reference.data().to_str().unwrap().to_owned(),
        reference.path("val").to_str().unwrap().to_owned(),
        reference.out().to_str().unwrap().to_owned(),
    );

    let seen = life.nepa(&["inspect", &set]);
    let expected = text(&succeed(nepa().args(["inspect", &local_set])));
    assert_eq!(said_of(&seen, &set), said_of(&expected, &local_set));
    life.nepa(&[
        "profile",
        &set,
        "--seconds",
        "0.5",
        "--batch",
        "8",
        "--image-size",
        "28",
    ]);

    life.timed("pretrain, SIGTERM", || {
        let mut started = run.start(&[]);
        started.wait_for_step(60);
        started.send("-TERM");
        let status = started.ends_within(Duration::from_secs(20));
        assert_eq!(status.code(), Some(143), "{}", started.said());
    });
    life.timed("--resume, SIGKILL", || {
        let mut started = run.start(&["--resume"]);
        started.wait_for_step(130);
        started.send("-KILL");
        started.ends_within(Duration::from_secs(5));
    });
    life.timed("--resume through an outage of 4 s to the end", || {
        let mut started = run.start(&["--resume"]);
        started.wait_for_step(170);
        proxy.set(&[DATA, OUT], Line::Cut);
        std::thread::sleep(Duration::from_secs(4));
        proxy.set(&[DATA, OUT], Line::Open);
        started.succeeds();
        started.assert_same(server);
    });

    let eval = |checkpoint: &str, train: &str, test: &str, json: &str| {
        let arguments = [
            "eval",
            "knn",
            "--k",
            "3",
            "--checkpoint",
            checkpoint,
            "--train",
            train,
            "--test",
            test,
        ];
        [&arguments[..], &["--json", json]]
            .concat()
            .iter()
            .map(|part| (*part).to_owned())
            .collect::<Vec<_>>()
    };
    let arguments = eval(&out, &set, &val, &local("there.json"));
    life.nepa(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    succeed(nepa().args(eval(
        &local_out,
        &local_set,
        &local_val,
        &local("here.json"),
    )));
    assert_eq!(scores(&local("there.json")), scores(&local("here.json")));

    life.nepa(&[
        "report",
        &out,
        "--train",
        &set,
        "--test",
        &val,
        "--ridge-only",
        "--maps",
        "1",
        "--k",
        "3",
        "--out",
        &local("report"),
    ]);
    let page = std::fs::read_to_string(place.path().join("report/report.md")).unwrap();
    assert_says(&page, &[&format!("{out}, step 240 of 240")]);

    life.nepa(&["export", &out, &local("there"), "--ema"]);
    succeed(nepa().args(["export", &local_out, &local("here"), "--ema"]));
    for name in ["config.json", "model.safetensors"] {
        let of = |export: &str| read(&place.path().join(export).join(name));
        assert!(of("there") == of("here"), "{name} differs");
    }

    for number in 0..60 {
        let class = place
            .path()
            .join("photos")
            .join(["cat", "dog", "tree"][number % 3]);
        std::fs::create_dir_all(&class).unwrap();
        std::fs::write(class.join(format!("{number}.jpg")), jpeg(number as u32)).unwrap();
    }
    let packed = server.url(DATA, "packed");
    life.nepa(&["pack", &local("photos"), &packed, "--val-fraction", "0.2"]);
    succeed(nepa().args([
        "pack",
        &local("photos"),
        &local("packed"),
        "--val-fraction",
        "0.2",
    ]));
    let names = server.download(DATA, "packed", &place.path().join("brought"));
    assert_eq!(
        names.len(),
        std::fs::read_dir(place.path().join("packed"))
            .unwrap()
            .count()
    );
    for name in &names {
        assert!(
            read(&place.path().join("brought").join(name))
                == read(&place.path().join("packed").join(name)),
            "{name} differs"
        );
    }
    assert_says(&life.nepa(&["inspect", &packed]), &["cat, dog, tree"]);

    let total = life.rows.iter().map(|(_, took)| *took).sum::<Duration>();
    for (what, took) in &life.rows {
        println!(
            "| {} | {what} | ok | {:.1} s |",
            server.name,
            took.as_secs_f64()
        );
    }
    println!(
        "| {} | all | ok | {:.1} s |",
        server.name,
        total.as_secs_f64()
    );
}

/// `http://ADDRESS:PORT` of an endpoint with a path.
fn base(endpoint: &str) -> String {
    let host = endpoint.find("://").map_or(0, |at| at + 3);
    let end = endpoint[host..]
        .find('/')
        .map_or(endpoint.len(), |at| host + at);
    endpoint[..end].to_owned()
}

/// The results of an evaluation without what names its place or takes time.
fn scores(path: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["rows"].clone()
}

#[test]
fn on_our_own_server() {
    live(&Server::ours());
}

#[test]
fn on_moto() {
    if let Some(server) = Server::moto() {
        live(&server);
    }
}

#[test]
fn on_seaweedfs() {
    if let Some(server) = Server::seaweed() {
        live(&server);
    }
}

#[test]
fn on_azurite() {
    if let Some(server) = Server::azurite() {
        live(&server);
    }
}

/// Servers that check signatures: a mistyped secret, or another one, is told for what it is, on every way to the store.
#[test]
fn a_wrong_secret_is_told_without_being_shown() {
    let wrong = |server: &Server| {
        let run = Run::new(server, server.endpoint(), "a");
        let secret = "d3Jvbmctc2VjcmV0LXdyb25nLXNlY3JldC13cm9uZw==";
        let set = server.url(DATA, "set");
        let ways: [&[&str]; 2] = [&["inspect", &set], &["export", run.out(), "nowhere"]];
        for arguments in ways {
            let mut command = program(server);
            command
                .env("AWS_SECRET_ACCESS_KEY", secret)
                .env("AZURE_STORAGE_ACCOUNT_KEY", secret);
            let output = command.args(arguments).output().unwrap();
            let said = text(&output);
            println!("{}, {}: {said}", server.name, arguments[0]);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(
                !said.contains(secret) && !said.contains("<Error>") && !said.contains("panicked"),
                "{said}"
            );
            assert!(
                said.to_lowercase().contains("denied")
                    || said.contains("refused")
                    || said.contains("credentials"),
                "{said}"
            );
        }
    };
    wrong(&Server::ours());
    Server::seaweed().iter().for_each(wrong);
    Server::azurite().iter().for_each(wrong);
}
