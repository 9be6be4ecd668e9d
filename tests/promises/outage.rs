//! A store that fails for a while is waited out by the clock and said to be; what waiting does not mend is told at once, in plain words, for reading and writing.
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use nepa_pipeline::{
    Action, DatasetError, IoConfig, IoRuntime, Place, StoreUrl, classify, open_url,
};
use nepa_tests::data;
use nepa_tests::program::{
    ServedRun, assert_says, count_lines, joined, nepa, start, text, wait_until,
};
use nepa_tests::s3::{Fault, Rule, S3Server};
use nepa_tests::shards::{flat_shard, hugging_face_shard};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, WriteMultipart};

fn io(server: &S3Server) -> IoConfig {
    IoConfig {
        request_timeout_s: 0.5,
        outage_s: 20.0,
        ..data::io(server)
    }
}

/// Samples of the data set at a URL.
fn open(url: &str, io: &IoConfig) -> Result<u64, DatasetError> {
    data::open(url, io).map(|dataset| dataset.num_samples())
}

/// An error and all its causes, in one line.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn xml(code: &str, message: &str, more: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{more}\
         <RequestId>4442587FB7D0A2F9</RequestId><HostId>iau34hfg==</HostId></Error>"
    )
}

const PAGE: &str = "<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body><center>nginx</center></body></html>";

/// The failures of servers that pass.
fn passing() -> Vec<Fault> {
    let answer = |status, body: &str| Fault::Answer(status, Vec::new(), body.to_owned());
    vec![
        answer(
            400,
            &xml("RequestTimeout", "Your socket connection was not read", ""),
        ),
        answer(408, ""),
        answer(429, "slow down"),
        answer(500, &xml("InternalError", "We encountered one", "")),
        answer(502, PAGE),
        answer(
            503,
            &xml("SlowDown", "Please reduce your request rate.", ""),
        ),
        answer(504, PAGE),
        answer(200, &xml("InternalError", "We encountered one", "")),
        Fault::Reset,
        Fault::Latency(Duration::from_millis(700)),
    ]
}

#[test]
fn failures_that_pass_are_waited_out_whatever_is_asked_for() {
    let server = S3Server::start();
    server.put("bucket", "x.parquet", flat_shard(3));
    let io = io(&server);
    let runtime = IoRuntime::new(2).unwrap();
    let out = open_url("s3://bucket/out", &io).unwrap();
    let content = Bytes::from((0..100_000u32).map(|n| n as u8).collect::<Vec<_>>());
    for fault in passing() {
        // A success that is none in truth: S3 does this where it completes an upload.
        let completion_only = matches!(&fault, Fault::Answer(200, ..));
        server.clear_faults();
        if completion_only {
            server.add_fault(Rule::of("POST", "out/large", 1..2, fault.clone()));
        } else {
            for rule in [
                Rule::list(0..1, fault.clone()),
                Rule::get("x.parquet", 0..1, fault.clone()),
                Rule::put("out/small", 0..1, fault.clone()),
                Rule::get("out/small", 0..1, fault.clone()),
                // The beginning, a part, the completion.
                Rule::of("POST", "out/large", 0..1, fault.clone()),
                Rule::put("out/large", 1..2, fault.clone()),
                Rule::of("POST", "out/large", 2..3, fault.clone()),
            ] {
                server.add_fault(rule);
            }
        }
        assert_eq!(open("s3://bucket/", &io).unwrap(), 3, "{fault:?}");
        let (store, content) = (out.store.clone(), content.clone());
        let (small, large) = (Path::from("out/small"), Path::from("out/large"));
        let read = runtime.block_on(async move {
            store.put(&small, content.clone().into()).await?;
            let upload = store.put_multipart(&large).await?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, 40_000);
            upload.write(&content);
            upload.finish().await?;
            store.get(&small).await?.bytes().await
        });
        let read = read.unwrap_or_else(|error| panic!("{fault:?}: {}", whole(&error)));
        assert!(read == server.get("bucket", "out/small").unwrap());
        assert!(
            read == server.get("bucket", "out/large").unwrap(),
            "{fault:?}"
        );
    }
}

#[test]
fn bodies_that_break_off_are_gone_on_with_and_lost_answers_do_no_harm() {
    let server = S3Server::start();
    let io = io(&server);
    let runtime = IoRuntime::new(2).unwrap();
    let out = open_url("s3://bucket/out", &io).unwrap();
    let content = Bytes::from((0..100_000u32).map(|n| (n / 7) as u8).collect::<Vec<_>>());
    server.put("bucket", "out/cut", content.clone());
    server.add_fault(Rule::get("out/cut", 0..2, Fault::Truncate(30_000)));
    server.add_fault(Rule::get("out/cut", 2..3, Fault::Stall(10_000)));
    server.add_fault(Rule::put("out/small", 0..1, Fault::AnswerLost));
    server.add_fault(Rule::of("POST", "out/large", 0..2, Fault::AnswerLost));
    server.add_fault(Rule::put("out/large", 1..2, Fault::AnswerLost));
    server.add_fault(Rule::of("POST", "out/large", 2..3, Fault::AnswerLost));
    server.add_fault(Rule::of("DELETE", "out/cut", 0..1, Fault::AnswerLost));
    let (store, bytes) = (out.store.clone(), content.clone());
    let read = runtime.block_on(async move {
        let read = store.get(&Path::from("out/cut")).await?.bytes().await?;
        store
            .put(&Path::from("out/small"), bytes.clone().into())
            .await?;
        let upload = store.put_multipart(&Path::from("out/large")).await?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, 40_000);
        upload.write(&bytes);
        upload.finish().await?;
        store.delete(&Path::from("out/cut")).await?;
        let left: Vec<_> = store.list(Some(&Path::from("out"))).try_collect().await?;
        Ok::<_, Error>((read, left))
    });
    let (read, left) = read.unwrap();
    assert!(read == content);
    assert_eq!(left.len(), 2);
    for key in ["out/small", "out/large"] {
        assert!(server.get("bucket", key).unwrap() == content, "{key}");
    }
    let gets: Vec<_> = server
        .log()
        .into_iter()
        .filter(|request| request.method == "GET" && request.key == "out/cut")
        .map(|request| request.range)
        .collect();
    assert_eq!(
        gets,
        [
            None,
            Some(30_000..100_000),
            Some(60_000..100_000),
            Some(70_000..100_000)
        ]
    );
}

#[test]
fn a_listing_goes_on_where_it_broke_off() {
    let server = S3Server::start();
    for i in 0..2500 {
        server.put("bucket", &format!("a/{i:05}"), "x");
    }
    server.add_fault(Rule::list(1..2, Fault::Reset));
    server.add_fault(Rule::list(3..4, Fault::Unavailable));
    let store = open_url("s3://bucket/", &io(&server)).unwrap().store;
    let listed = IoRuntime::new(1).unwrap().block_on(async move {
        let prefix = Path::from("a");
        store.list(Some(&prefix)).try_collect::<Vec<_>>().await
    });
    let names: Vec<_> = listed
        .unwrap()
        .into_iter()
        .map(|object| object.location.to_string())
        .collect();
    assert!(names == server.keys("bucket"), "{} names", names.len());
}

#[test]
fn what_is_put_on_a_condition_is_not_put_again() {
    let server = S3Server::start();
    server.create_bucket("bucket");
    let out = open_url("s3://bucket/out", &io(&server)).unwrap();
    server.add_fault(Rule::put("out/owner", 0..1, Fault::AnswerLost));
    let store = out.store.clone();
    let first = IoRuntime::new(1).unwrap().block_on(async move {
        let owner = Path::from("out/owner");
        store
            .put_opts(&owner, "me".into(), PutMode::Create.into())
            .await
    });
    let first = first.unwrap_err();
    assert!(!matches!(first, Error::AlreadyExists { .. }), "{first}");
}

/// What a store is asked to do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ask {
    List,
    Head,
    Get,
    Put,
}

/// What `error` is to a user who asks so.
fn ask(server: &S3Server, how: Ask, fault: &Fault) -> DatasetError {
    server.clear_faults();
    let always = 0..u64::MAX;
    server.add_fault(match how {
        Ask::List => Rule::list(always, fault.clone()),
        Ask::Head => Rule::of("HEAD", "x.parquet", always, fault.clone()),
        Ask::Get => Rule::get("x.parquet", always, fault.clone()),
        Ask::Put => Rule::put("out/file", always, fault.clone()),
    });
    let io = io(server);
    match how {
        Ask::List => open("s3://bucket/", &io).unwrap_err(),
        Ask::Head | Ask::Get => open("s3://bucket/x.parquet", &io).unwrap_err(),
        Ask::Put => {
            let StoreUrl {
                store, location, ..
            } = open_url("s3://bucket/out", &io).unwrap();
            let put = IoRuntime::new(1)
                .unwrap()
                .block_on(async move { store.put(&Path::from("out/file"), "x".into()).await });
            let place = Place {
                object: "s3://bucket/out/file".to_owned(),
                ..Place::default()
            };
            classify(&put.unwrap_err(), Action::Write, &location, place).into()
        }
    }
}

#[test]
fn a_refusal_is_told_at_once_in_plain_words() {
    let server = S3Server::start();
    server.put("bucket", "x.parquet", flat_shard(3));
    let answer = |status, body: &str| Fault::Answer(status, Vec::new(), body.to_owned());
    let region = |status, region: &str| {
        let headers = vec![("x-amz-bucket-region", region.to_owned())];
        Fault::Answer(status, headers, String::new())
    };
    let denied = xml("AccessDenied", "Access Denied", "");
    let json = r#"{"error": {"code": 403, "message": "x@y.iam does not have storage.objects.get access.",
        "errors": [{"reason": "forbidden", "message": "again"}]}}"#;
    let cases: Vec<(Ask, Fault, &[&str])> = vec![
        (
            Ask::List,
            answer(403, &denied),
            &[
                "refuses access to s3://bucket/",
                "list the bucket",
                "s3:ListBucket",
                "AccessDenied: Access Denied",
            ],
        ),
        (
            Ask::Head,
            answer(403, ""),
            &[
                "refuses access to s3://bucket/x.parquet",
                "s3:ListBucket",
                "does not exist",
                "403 Forbidden",
            ],
        ),
        (
            Ask::Get,
            answer(403, json),
            &["forbidden: x@y.iam does not have"],
        ),
        (
            Ask::Put,
            answer(403, &denied),
            &["(to write)", "s3:PutObject"],
        ),
        (
            Ask::Put,
            answer(
                405,
                &xml(
                    "MethodNotAllowed",
                    "The specified method is not allowed",
                    "",
                ),
            ),
            &[
                "cannot write s3://bucket/out/file",
                "does not take such requests",
                "a folder",
            ],
        ),
        (
            Ask::Put,
            answer(405, PAGE),
            &["405 Method Not Allowed: an HTML page"],
        ),
        (Ask::Put, answer(501, ""), &["does not take such requests"]),
        (
            Ask::Put,
            answer(
                404,
                &xml("NoSuchBucket", "The specified bucket does not exist", ""),
            ),
            &["the bucket of s3://bucket/out/file does not exist"],
        ),
        (
            Ask::List,
            answer(
                404,
                &xml(
                    "ContainerNotFound",
                    "The specified container does not exist.\nRequestId:1",
                    "",
                ),
            ),
            &[
                "does not exist",
                "ContainerNotFound: The specified container does not exist.",
            ],
        ),
        (
            Ask::Get,
            answer(
                403,
                &xml(
                    "SignatureDoesNotMatch",
                    "The request signature &quot;x&quot; does not match.",
                    "<StringToSign>AWS4</StringToSign>",
                ),
            ),
            &[
                "the key or its secret is wrong",
                "signature \"x\" does not match",
            ],
        ),
        (
            Ask::Put,
            answer(
                403,
                &xml("RequestTimeTooSkewed", "The difference is too large.", ""),
            ),
            &["this machine's clock"],
        ),
        (
            Ask::List,
            answer(
                403,
                &xml(
                    "AllAccessDisabled",
                    "All access to this bucket has been disabled.",
                    "",
                ),
            ),
            &["is disabled"],
        ),
        (
            Ask::Get,
            answer(
                400,
                &xml(
                    "UserProjectMissing",
                    "Bucket is requester pays bucket but no user project provided.",
                    "",
                ),
            ),
            &["pays for it"],
        ),
        (
            Ask::List,
            answer(
                403,
                &xml("ExpiredToken", "The provided token has expired.", ""),
            ),
            &["have expired"],
        ),
        (
            Ask::List,
            region(301, "eu-west-1"),
            &["another region", "set AWS_REGION to eu-west-1"],
        ),
        (
            Ask::Head,
            region(301, "eu-west-1"),
            &["set AWS_REGION to eu-west-1"],
        ),
        (
            Ask::Head,
            region(400, "eu-west-1"),
            &["set AWS_REGION to eu-west-1"],
        ),
        (
            Ask::Put,
            answer(
                400,
                &xml(
                    "AuthorizationHeaderMalformed",
                    "the region 'us-east-1' is wrong; expecting 'eu-central-1'",
                    "<Region>eu-central-1</Region>",
                ),
            ),
            &["set AWS_REGION to eu-central-1"],
        ),
        (
            Ask::List,
            answer(
                400,
                "<html><head><title>Blocked by policy</title></head></html>",
            ),
            &[
                "cannot list s3://bucket/",
                "400 Bad Request: an HTML page, \"Blocked by policy\"",
            ],
        ),
        (
            Ask::Put,
            answer(
                400,
                &xml(
                    "EntityTooLarge",
                    "Your proposed upload exceeds the maximum",
                    "",
                ),
            ),
            &[
                "cannot write s3://bucket/out/file",
                "EntityTooLarge: Your proposed",
            ],
        ),
    ];
    for (how, fault, parts) in cases {
        server.take_log();
        let said = whole(&ask(&server, how, &fault));
        eprintln!("{how:?}: {said}");
        // Nobody asks again and again, as through an outage of 20 s; at most with the region that was
        // named, or with credentials that were fetched anew.
        let Fault::Answer(status, ..) = fault else {
            unreachable!("all of them are answers")
        };
        let log = server.take_log();
        let refused = log.iter().filter(|request| request.status == status);
        assert!((1..=4).contains(&refused.count()), "{said}: {log:#?}");
        assert_says(&said, parts);
        for raw in ["<", "RequestId", "status code", "Error performing"] {
            assert!(!said.contains(raw), "{raw} in {said}");
        }
        if how == Ask::Put {
            assert!(!said.contains("cannot read"), "{said}");
        }
        // The cause is said once.
        let last = parts.last().unwrap();
        assert_eq!(said.matches(last).count(), 1, "{said}");
    }
}

#[test]
fn a_wrong_endpoint_is_told_at_once() {
    let server = S3Server::start();
    server.put("bucket", "x.parquet", flat_shard(3));
    server.close();
    // Whoever waited for the store would wait for ten minutes: a tenth of that tells them apart.
    let mut io = IoConfig {
        outage_s: 600.0,
        ..io(&server)
    };
    let at_once = Duration::from_mins(1);
    for url in ["s3://bucket/", "s3://bucket/x.parquet"] {
        let start = Instant::now();
        let said = whole(&open(url, &io).unwrap_err());
        assert!(start.elapsed() < at_once, "{said}");
        assert_says(
            &said,
            &[
                "cannot connect to http://127.0.0.1",
                "connection refused at http://127.0.0.1",
            ],
        );
    }
    let env = server.env().into_iter().map(|(name, value)| match name {
        "AWS_ENDPOINT_URL" => (name, "http://store.invalid".to_owned()),
        _ => (name, value),
    });
    io.store_options = nepa_pipeline::StoreOptions::new(env);
    let start = Instant::now();
    let said = whole(&open("s3://bucket/", &io).unwrap_err());
    assert!(start.elapsed() < at_once, "{said}");
    assert_says(
        &said,
        &["cannot connect to http://store.invalid", "name is unknown"],
    );
}

#[test]
fn many_footers_take_few_connections() {
    let server = S3Server::start();
    // Of several packets, so that a connection is not idle again the moment an answer is there.
    let shard = Bytes::from(hugging_face_shard(0, 1, 40));
    for i in 0..2000 {
        server.put("bucket", &format!("{i:05}.parquet"), shard.clone());
    }
    let mut io = io(&server);
    io.request_timeout_s = 30.0;
    assert_eq!(open("s3://bucket/", &io).unwrap(), 2000 * 40);
    let connections = server.num_connections();
    eprintln!("2000 footers, {connections} connections");
    assert!(connections <= 2 * 8 * 32, "{connections}");
}

/// Ends a program and gives what it said on standard error.
fn stop(mut child: Child) -> String {
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    joined(&String::from_utf8(output.stderr).unwrap())
}

/// A run on new data in every batch: a window is smaller than a row group.
fn pretrain(run: &ServedRun, data: &str, out: &str, settings: &[&str]) -> Command {
    let more = ["data.shuffle_window_bytes=1", "log.tensorboard=false"];
    run.pretrain(data, out, &[&more, settings].concat())
}

/// Waits until so many steps are done.
#[track_caller]
fn wait_for(run: &ServedRun, out: &str, steps: usize) {
    let metrics = run.path(out).join("metrics.jsonl");
    wait_until("so many steps", || count_lines(&metrics) >= steps);
}

#[test]
fn a_run_goes_on_after_an_outage_as_if_there_had_been_none() {
    let run = ServedRun::new();
    let steps = ["train.steps=300"];
    let straight = pretrain(&run, "data", "straight", &steps).output().unwrap();
    assert!(straight.status.success(), "{}", text(&straight));
    let child = start(&mut pretrain(&run, "s3://data/", "disturbed", &steps));
    wait_for(&run, "disturbed", 20);
    run.server.close();
    std::thread::sleep(Duration::from_millis(11_500));
    run.server.reopen();
    let output = child.wait_with_output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert_says(
        &said,
        &[
            "s3://data does not answer (connection refused at http://127.0.0.1",
            "for 10 s; waiting up to 600 s (io.outage_s)",
            "s3://data answers again after 1",
        ],
    );
    assert_eq!(said.matches("does not answer").count(), 1, "{said}");
    assert!(run.metrics("straight") == run.metrics("disturbed"));
}

#[test]
fn a_store_that_stays_away_ends_the_run_saved() {
    let run = ServedRun::new();
    let settings = [
        "train.steps=300",
        "io.outage_s=2",
        "checkpoint.every_steps=1000",
    ];
    let straight = pretrain(&run, "data", "straight", &settings)
        .output()
        .unwrap();
    assert!(straight.status.success(), "{}", text(&straight));
    let child = start(&mut pretrain(&run, "s3://data/", "ended", &settings));
    wait_for(&run, "ended", 20);
    run.server.close();
    let output = child.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_says(
        &said,
        &[
            "saved after step",
            "nothing has come from the store for 2 s (io.outage_s)",
            "resume",
            "connection refused",
        ],
    );
    run.server.reopen();
    let mut again = pretrain(&run, "s3://data/", "ended", &settings);
    let output = again.arg("--resume").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(run.metrics("straight") == run.metrics("ended"));
}

#[test]
fn whoever_waits_for_a_hanging_store_says_so_within_ten_seconds() {
    let run = ServedRun::new();
    let mut inspect = nepa();
    inspect
        .args(["inspect", "s3://data/"])
        .envs(run.server.env());
    run.server.freeze();
    let children = [
        start(&mut inspect),
        start(&mut pretrain(&run, "s3://data/", "start", &[])),
    ];
    std::thread::sleep(Duration::from_millis(11_500));
    for child in children {
        let said = stop(child);
        assert_says(
            &said,
            &["s3://data does not answer (no answer yet) for 10 s"],
        );
        assert_eq!(said.matches("does not answer").count(), 1, "{said}");
    }
}
