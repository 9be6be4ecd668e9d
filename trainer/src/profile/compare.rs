//! Two profiles beside each other, from their JSON. Called by `nepa profile --compare`.
use std::path::Path;

use serde_json::Value;

use super::ladder::Rate;
use super::rungs::{Rung, name, rate, rungs};
use super::saved::read;
use super::verdict::signed;
use crate::console::messages::quoted_path;
use crate::console::words::digits;

/// Columns of a name and of each value.
const NAME: usize = 34;
const VALUE: usize = 16;

/// What is said where two intervals have something in common.
const SAME: &str = "no difference shown";

/// Settings that are told where they differ.
const SETTINGS: [&str; 6] = [
    "urls",
    "batch",
    "image_size",
    "decode_threads",
    "max_requests",
    "cores",
];

/// The table of two profiles, that before a change and that after it.
pub(crate) fn compare(before: &Path, after: &Path) -> anyhow::Result<String> {
    let [a, b] = [read(before)?, read(after)?];
    let mut table = Table::default();
    table.line(&format!("A  {}", quoted_path(before)));
    table.line(&format!("B  {}", quoted_path(after)));
    for key in SETTINGS {
        if a[key] != b[key] {
            let text = format!(
                "{}: {} in A, {} in B",
                name(key),
                shown(&a[key]),
                shown(&b[key])
            );
            table.line(&text);
        }
    }
    table.line("");
    table.row("images/s", ["A", "B"], "change");
    let ladders = [&a, &b].map(|profile| rungs(&profile["ladder"]));
    let others = ladders[1]
        .iter()
        .filter(|rung| ladders[0].iter().all(|other| other.key != rung.key));
    for rung in ladders[0].iter().chain(others) {
        let of = |ladder: &[Rung]| {
            let found = ladder.iter().find(|other| other.key == rung.key);
            found.map(|rung| rung.rate)
        };
        table.rates(&rung.name(), of(&ladders[0]), of(&ladders[1]));
    }
    table.line("");
    for (title, pointer, factor) in [
        ("CPU-ms an image", "/cpu_ms_per_image", 1.0),
        ("first byte, ms", "/store/first_byte_p50_s", 1e3),
        ("first byte of 99 %, ms", "/store/first_byte_p99_s", 1e3),
        ("first batch, s", "/first_batch/seconds", 1.0),
        ("MB/s from the store", "/store/bytes_per_second", 1e-6),
    ] {
        let of = |profile: &Value| Some(factor * profile.pointer(pointer)?.as_f64()?);
        table.values(title, of(&a), of(&b));
    }
    table.line("");
    for (label, profile) in [("A", &a), ("B", &b)] {
        table.line(&format!("{label}  limit: {}", verdict(profile)));
    }
    table.line(&conclusion(&a, &b));
    Ok(table.0)
}

fn shown(value: &Value) -> String {
    match value.as_array() {
        Some(list) => list.iter().map(shown).collect::<Vec<_>>().join(" "),
        None => value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned),
    }
}

/// Where it limits, and the causes.
fn verdict(profile: &Value) -> String {
    let verdict = &profile["verdict"];
    let causes = verdict["causes"].as_array();
    let names = causes
        .into_iter()
        .flatten()
        .map(|cause| shown(&cause["name"]));
    format!(
        "{}: {}",
        shown(&verdict["limit"]),
        names.collect::<Vec<_>>().join(", ")
    )
}

/// What all comes to.
fn conclusion(a: &Value, b: &Value) -> String {
    let rates = [a, b].map(|profile| rate(&profile["images_per_second"]));
    let [Some(a), Some(b)] = rates else {
        return "Nothing was measured in one of them.".to_owned();
    };
    if a.median <= 0.0 || b.median <= 0.0 {
        return "As it is: in one of them no batch came in time; give more --seconds.".to_owned();
    }
    if overlap(a, b) {
        return format!("As it is: {SAME}, the rates of the rounds overlap.");
    }
    let faster = if b.median > a.median {
        "faster"
    } else {
        "slower"
    };
    let change = signed(b.median / a.median - 1.0);
    format!("As it is: B is {faster}, {change}.")
}

fn overlap(a: Rate, b: Rate) -> bool {
    a.least <= b.most && b.least <= a.most
}

/// Lines with columns.
#[derive(Default)]
struct Table(String);

impl Table {
    fn line(&mut self, text: &str) {
        self.0.push_str(text.trim_end());
        self.0.push('\n');
    }

    fn row(&mut self, name: &str, [a, b]: [&str; 2], change: &str) {
        self.line(&format!("{name:<NAME$}{a:>VALUE$}{b:>VALUE$}{change:>9}"));
    }

    fn values(&mut self, name: &str, a: Option<f64>, b: Option<f64>) {
        if a.is_none() && b.is_none() {
            return;
        }
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), digits);
        let change = a.zip(b).filter(|(a, _)| *a > 0.0);
        let change = change.map_or_else(String::new, |(a, b)| signed(b / a - 1.0));
        self.row(name, [&shown(a), &shown(b)], &change);
    }

    fn rates(&mut self, name: &str, a: Option<Rate>, b: Option<Rate>) {
        let median = |rate: Option<Rate>| rate.map(|rate| rate.median);
        self.values(name, median(a), median(b));
        let interval = |rate: Option<Rate>| {
            let rate = rate.filter(|rate| rate.most > rate.least);
            rate.map_or_else(String::new, |rate| {
                format!("{} to {}", digits(rate.least), digits(rate.most))
            })
        };
        let is_same = a.zip(b).is_some_and(|(a, b)| overlap(a, b) && a != b);
        let note = if is_same {
            format!("  {SAME}")
        } else {
            String::new()
        };
        let intervals = [interval(a), interval(b)];
        if is_same || intervals.iter().any(|interval| !interval.is_empty()) {
            self.row(&note, [&intervals[0], &intervals[1]], "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::saved::VERSION;
    use super::*;

    fn profile(rate: f64, version: u32) -> Value {
        let rates = |rate: f64| serde_json::json!({"median": rate, "least": 0.95 * rate, "most": 1.05 * rate});
        serde_json::json!({
            "version": version, "images_per_second": rates(rate), "urls": ["a b"], "batch": 8,
            "cpu_ms_per_image": 2.0, "store": {"first_byte_p50_s": 0.05},
            "ladder": {"as_is": rates(rate), "store": rates(2000.0), "consumer": 500.0},
            "verdict": {"limit": "processor", "causes": [{"name": "cores"}]},
        })
    }

    fn compared(a: &Value, b: &Value) -> anyhow::Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a.json", "b.json"].map(|name| folder.path().join(name));
        for (path, profile) in paths.iter().zip([a, b]) {
            std::fs::write(path, profile.to_string()).unwrap();
        }
        compare(&paths[0], &paths[1])
    }

    #[test]
    fn a_difference_is_shown_where_the_rounds_do_not_overlap() {
        let mut faster = profile(1500.0, VERSION);
        faster["batch"] = 16.into();
        let table = compared(&profile(1000.0, VERSION), &faster).unwrap();
        for says in [
            "batch: 8 in A, 16 in B",
            "1,000           1,500    +50 %",
            "950 to 1,050  1,425 to 1,575",
            "A  limit: processor: cores",
            "As it is: B is faster, +50 %.",
        ] {
            assert!(table.contains(says), "{says}:\n{table}");
        }
        assert!(
            table
                .lines()
                .all(|line| line.len() <= 80 || line.starts_with(['A', 'B']))
        );
        let table = compared(&profile(1000.0, VERSION), &profile(1050.0, VERSION)).unwrap();
        assert!(table.contains("As it is: no difference shown"), "{table}");
        assert!(table.contains("  no difference shown "), "{table}");
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        let good = profile(1000.0, VERSION);
        let error = compared(&good, &profile(1000.0, 1))
            .unwrap_err()
            .to_string();
        assert!(error.contains("a profile of version 1"), "{error}");
        let error = compared(&good, &serde_json::json!({"version": 2}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("is no profile"), "{error}");
    }
}
