//! What `nepa profile` found, as a page and beside another profile; and what is seen while it measures.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nepa_tests::program::{assert_says, nepa, succeed, text, write_photo_shards};
use nepa_tests::s3::{Options, S3Server};
use serde_json::Value;

use super::profile::SHORT;

fn photos() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_photo_shards(folder.path(), 2, 4, 8);
    folder
}

/// `nepa profile` of small crops of what is in `place`.
fn profile(place: &str, seconds: &str) -> Command {
    let mut command = nepa();
    command.args(["profile", place, "--seconds", seconds]);
    command.args(&SHORT[2..]);
    command
}

#[test]
fn the_page_holds_all_of_it_by_itself() {
    let folder = photos();
    let server = S3Server::start_with(Options {
        latency: Duration::from_millis(50),
        ..Options::default()
    })
    .unwrap();
    server.load_folder("bucket", "", folder.path()).unwrap();
    let (html, json) = (
        folder.path().join("page.html"),
        folder.path().join("profile.json"),
    );
    let mut command = profile("s3://bucket", "4");
    command.args(["--max-requests", "2"]).envs(server.env());
    succeed(command.arg("--html").arg(&html).arg("--json").arg(&json));
    let page = std::fs::read_to_string(&html).unwrap();
    let found: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();

    let cause = &found["verdict"]["causes"][0];
    assert_says(
        &page,
        &[
            "<b>The store limits: latency. </b>",
            cause["set"].as_str().unwrap(),
            "Ceilings: each stage by itself",
            "class=\"whisker\"",
            "class=\"ceiling\"",
            "What if",
            "twice as many requests",
            "Images decoded a second",
            "<polyline",
            "Time to the first byte",
            "Time to decode",
            "src=\"data:image/",
            "row group",
            "prefers-color-scheme: dark",
            "width=device-width",
        ],
    );
    // The rung that limits is marked, and no other one.
    assert_eq!(page.matches("<b>limits</b>").count(), 1);
    let limits = page.split("class=\"limits\"").nth(1).expect("a rung");
    assert!(
        limits[..200].contains("store, without decoding"),
        "{}",
        &limits[..200]
    );
    // Nothing is asked of a network.
    for link in ["src=\"http", "<link", "url(", "@import"] {
        assert!(!page.contains(link), "{link}");
    }
    // Histograms count each thing once.
    let counts = |histogram: &Value| {
        let buckets = histogram.as_array().unwrap().iter();
        buckets
            .map(|bucket| bucket["count"].as_u64().unwrap())
            .sum::<u64>()
    };
    let formats = found["survey"]["formats"].as_array().unwrap().iter();
    let images = formats
        .map(|cost| cost["images"].as_u64().unwrap())
        .sum::<u64>();
    assert!(images > 0);
    assert_eq!(counts(&found["survey"]["costs"]), images);
    assert!(counts(&found["store"]["first_byte"]) > 0);
    assert!(found["store"]["first_byte"][0]["to_s"].as_f64().unwrap() > 0.05);
}

#[test]
fn two_profiles_are_compared() {
    let folder = photos();
    let path = folder.path().to_str().unwrap();
    let measured = |consumer: &str, name: &str| {
        let json = folder.path().join(name);
        let mut command = profile(path, "3");
        succeed(command.args(["--consumer", consumer, "--json"]).arg(&json));
        json
    };
    let compare = |before: &Path, after: &Path| {
        let mut command = nepa();
        command.args(["profile", "--compare"]).args([before, after]);
        command.output().unwrap()
    };
    let (slow, fast) = (measured("40", "slow.json"), measured("80", "fast.json"));
    let begun = Instant::now();
    let output = compare(&slow, &fast);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "it measures nothing"
    );
    let said = text(&output);
    assert_says(
        &said,
        &[
            "A  limit: consumer: consumer",
            "As it is: B is faster, +",
            "CPU-ms an image",
        ],
    );
    let consumer = said
        .lines()
        .find(|line| line.starts_with("the consumer"))
        .expect(&said);
    assert!(consumer.ends_with("+100 %"), "{consumer}");
    assert_says(
        &text(&compare(&slow, &slow)),
        &["As it is: no difference shown"],
    );

    let write = |name: &str, content: &str| -> PathBuf {
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        file
    };
    let mut old: Value = serde_json::from_slice(&std::fs::read(&slow).unwrap()).unwrap();
    old["version"] = 1.into();
    for (file, says) in [
        (
            write("old.json", &old.to_string()),
            "a profile of version 1",
        ),
        (
            write("other.json", "{\"version\": 2}"),
            "other.json is no profile",
        ),
        (
            write("text.json", "no JSON"),
            "text.json is no profile: it is not JSON",
        ),
        (folder.path().join("absent.json"), "cannot read"),
    ] {
        let output = compare(&slow, &file);
        assert_eq!(output.status.code(), Some(1));
        assert_says(&text(&output), &[says]);
    }
    // It takes nothing else.
    let output = nepa()
        .args(["profile", path, "--compare"])
        .args([&slow, &fast])
        .output();
    assert_eq!(output.unwrap().status.code(), Some(2));
}

#[test]
fn a_pipe_is_told_every_ten_seconds_what_is_measured() {
    let folder = photos();
    let output = succeed(&mut profile(folder.path().to_str().unwrap(), "15"));
    let said = String::from_utf8(output.stderr).unwrap();
    let line = said
        .lines()
        .find(|line| line.starts_with("profiling: "))
        .expect(&said);
    assert_says(line, &[" of ", " trials"]);
    assert!(
        !said.contains('\x1b') && !said.contains("consumer"),
        "{said}"
    );
}

#[test]
fn a_terminal_shows_each_stage_and_is_left_clean() {
    let folder = photos();
    let shown = folder.path().join("shown");
    let program = profile(folder.path().to_str().unwrap(), "4");
    let arguments = program
        .get_args()
        .map(|argument| argument.to_str().unwrap());
    let arguments = arguments.collect::<Vec<_>>().join(" ");
    let line = format!(
        "stty cols {COLUMNS} rows 24; {} {arguments}",
        program.get_program().to_str().unwrap()
    );
    let mut script = Command::new("script");
    script
        .args(["-qec", &line])
        .arg(&shown)
        .env("TERM", "xterm");
    let Ok(output) = script.stdin(std::process::Stdio::null()).output() else {
        eprintln!("SKIPPED: there is no program `script` to make a terminal");
        return;
    };
    assert!(output.status.success(), "{}", text(&output));
    let shown = std::fs::read_to_string(&shown).unwrap();
    assert_says(
        &shown,
        &[
            "profiling: the loader as it is",
            "  decoding  [",
            "  consumer  [",
        ],
    );
    // Behind the line that `script` writes itself.
    let screen = Screen::of(shown.split_once('\n').map_or("", |(_, shown)| shown));
    let (widest, lines) = (screen.widest, screen.lines);
    assert!(widest < COLUMNS, "a line of {widest} columns tears");
    let left = lines
        .iter()
        .filter(|line| line.contains("profiling") || line.trim_start().starts_with("consumer  ["));
    assert_eq!(left.count(), 0, "{lines:#?}");
    assert!(
        lines.iter().any(|line| line.contains("images/s (")),
        "{lines:#?}"
    );
}

/// Columns of the terminal.
const COLUMNS: usize = 80;

/// What a terminal shows in the end.
struct Screen {
    lines: Vec<String>,
    /// Columns of the longest line that is drawn over, at any time.
    widest: usize,
}

impl Screen {
    /// Knows what indicatif and this program write: text, new lines, and the cursor up and lines cleared.
    fn of(text: &str) -> Self {
        let mut screen = Self {
            lines: vec![String::new()],
            widest: 0,
        };
        let (mut row, mut column) = (0_usize, 0_usize);
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '\r' => column = 0,
                '\n' => {
                    row += 1;
                    if row >= screen.lines.len() {
                        screen.lines.resize(row + 1, String::new());
                    }
                }
                '\x1b' => {
                    let mut sequence = String::new();
                    for letter in letters.by_ref() {
                        sequence.push(letter);
                        if letter.is_ascii_alphabetic() {
                            break;
                        }
                    }
                    let number = sequence.trim_matches(|c: char| !c.is_ascii_digit()).parse();
                    match sequence.chars().last() {
                        Some('A') => row = row.saturating_sub(number.unwrap_or(1)),
                        Some('B') => row += number.unwrap_or(1),
                        Some('K') if row < screen.lines.len() => screen.lines[row].clear(),
                        Some('J') => screen.lines.truncate(row + 1),
                        _ => {}
                    }
                }
                letter => {
                    // A line that is full goes on in the next one.
                    if column == COLUMNS {
                        (row, column) = (row + 1, 0);
                    }
                    if row >= screen.lines.len() {
                        screen.lines.resize(row + 1, String::new());
                    }
                    let line = &mut screen.lines[row];
                    let mut shown = line.chars().collect::<Vec<_>>();
                    shown.resize(shown.len().max(column + 1), ' ');
                    shown[column] = letter;
                    *line = shown.into_iter().collect();
                    column += 1;
                    // The report itself has longer lines, such as places.
                    if line.starts_with("profiling") || line.contains("  [") {
                        screen.widest = screen.widest.max(line.trim_end().chars().count());
                    }
                }
            }
        }
        screen
    }
}
