//! Keys that expire in the middle of a run: new ones are fetched from where the first came from, and the run does not notice.
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::run::{Place, Run, Started};
use crate::servers::{KEY, SECRET};

/// A key and its secret, by number.
fn key(number: usize) -> (String, String) {
    (format!("KEY{number}"), format!("hidden-secret-{number}"))
}

/// Where keys are fetched: the number of the key in force, which a file holds, too.
struct Source {
    number: Arc<Mutex<usize>>,
    file: PathBuf,
    /// Seconds from each fetch to when the key is said to expire.
    lasts_s: u32,
    folder: TempDir,
}

impl Source {
    fn new(lasts_s: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        std::fs::write(&file, "0").unwrap();
        Self {
            number: Arc::default(),
            file,
            lasts_s,
            folder,
        }
    }

    /// The store takes no key but this from now on.
    fn change(place: &Place, number: usize) {
        let (access_key, secret) = key(number);
        place.server.in_process().change_key(&access_key, &secret);
    }

    /// The next key can be fetched, and the store takes no other.
    fn renew(&self, place: &Place) {
        let mut number = self.number.lock().unwrap();
        *number += 1;
        std::fs::write(&self.file, number.to_string()).unwrap();
        Self::change(place, *number);
    }
}

const KEYS: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];

/// A run whose keys come from a program that `~/.aws/config` names.
fn with_process(place: &Place, source: &Source) -> Run {
    let script = source.folder.path().join("credentials.sh");
    let text = format!(
        r#"number=$(cat '{file}')
echo "$number" >>'{file}.fetched'
printf '{{"Version": 1, "AccessKeyId": "KEY%s", "SecretAccessKey": "hidden-secret-%s", "SessionToken": "hidden-token", "Expiration": "%s"}}' \
    "$number" "$number" "$(date -u -d '+{lasts} seconds' +%Y-%m-%dT%H:%M:%SZ)"
"#,
        file = source.file.display(),
        lasts = source.lasts_s
    );
    std::fs::write(&script, text).unwrap();
    let config = source.folder.path().join("config");
    let text = format!("[default]\ncredential_process = sh {}\n", script.display());
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap().to_owned();
    let run = place.run().with_env(&KEYS, &[("AWS_CONFIG_FILE", config)]);
    Source::change(place, 0);
    run
}

/// The run ends well and as the undisturbed one; no secret is shown.
#[track_caller]
fn ends_the_same(started: &mut Started, place: &Place) {
    started.succeeds();
    let said = started.said();
    println!("{said}");
    assert!(!said.contains("hidden-"), "{said}");
    place.server.in_process().change_key(KEY, SECRET);
    started.assert_same(&place.server);
}

/// The key that is in force changes after these steps; the run ends as if it had not.
fn keys_change(lasts_s: u32) {
    let place = Place::new();
    let source = Source::new(lasts_s);
    let run = with_process(&place, &source);
    let mut started = run.start(&[]);
    for step in [50, 100, 150, 200] {
        started.wait_for_step(step);
        source.renew(&place);
    }
    ends_the_same(&mut started, &place);
    let fetched = std::fs::read_to_string(source.folder.path().join("number.fetched")).unwrap();
    println!("fetched: {}", fetched.replace('\n', " "));
}

/// Each is said to expire soon, so new ones are fetched in time or just after.
#[test]
fn keys_that_expire_are_renewed() {
    keys_change(4);
}

/// Each is said to last for hours, but the store says `ExpiredToken`.
#[test]
fn keys_that_are_revoked_are_renewed() {
    keys_change(36_000);
}

/// As containers get them: from an address that the environment names.
#[test]
fn keys_of_a_container_are_renewed() {
    let place = Place::new();
    let source = Source::new(4);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let number = Arc::clone(&source.number);
    // Ends with the test program.
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 4096]);
            let (access_key, secret) = key(*number.lock().unwrap());
            let date = ["-u", "-d", "+4 seconds", "+%Y-%m-%dT%H:%M:%SZ"];
            let until = std::process::Command::new("date")
                .args(date)
                .output()
                .unwrap();
            let body = serde_json::json!({
                "AccessKeyId": access_key, "SecretAccessKey": secret, "Token": "hidden-token",
                "Expiration": String::from_utf8(until.stdout).unwrap().trim(),
            });
            let body = body.to_string();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
            let _ = write!(
                client,
                "{head}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    let set = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)];
    let run = place.run().with_env(&KEYS, &set);
    Source::change(&place, 0);
    let mut started = run.start(&[]);
    for step in [60, 120, 180] {
        started.wait_for_step(step);
        source.renew(&place);
    }
    ends_the_same(&mut started, &place);
}

/// Where no new ones are to be had yet, the run waits for them, and says what for.
#[test]
fn a_run_waits_for_new_keys() {
    let place = Place::new();
    let source = Source::new(36_000);
    let run = with_process(&place, &source);
    let mut started = run.start(&[]);
    started.wait_for_step(60);
    Source::change(&place, 1);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(12) {
        assert!(!started.has_ended(), "{}", started.said());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(&source.file, "1").unwrap();
    ends_the_same(&mut started, &place);
    let said = started.said();
    assert!(said.contains("expired"), "{said}");
}
