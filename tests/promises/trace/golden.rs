//! The recorded traces: read, compared, recorded anew.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};

use super::case::Case;

/// The lines of each case.
type Trace = BTreeMap<String, Vec<String>>;

fn golden_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden-trace.json")
}

fn read_golden() -> Result<Trace> {
    let path = golden_path();
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no trace", path.display()))
}

/// Held while cases are added to the recorded ones.
static RECORDING: Mutex<()> = Mutex::new(());

fn record(cases: &[Case]) -> Result<()> {
    let traces = cases
        .iter()
        .map(|case| Ok((case.name.clone(), case.trace()?)));
    let traces = traces.collect::<Result<Vec<_>>>()?;
    let _held = RECORDING.lock();
    let mut golden = if golden_path().exists() {
        read_golden()?
    } else {
        Trace::new()
    };
    golden.extend(traces);
    let text = serde_json::to_string_pretty(&golden)? + "\n";
    std::fs::write(golden_path(), text).context("the trace cannot be written")
}

/// Compares all cases with the recorded ones and says everything that differs.
pub(super) fn compare(cases: &[Case]) -> Result<()> {
    if std::env::var_os("NEPA_RECORD_TRACE").is_some() {
        return record(cases);
    }
    let golden = read_golden()?;
    let mut differences = Vec::new();
    for case in cases {
        let name = &case.name;
        let Some(recorded) = golden.get(name) else {
            bail!("case `{name}` is not recorded");
        };
        let now = case.trace()?;
        let found = recorded.iter().zip(&now).enumerate();
        let found = found.filter(|(_, (recorded, now))| recorded != now);
        differences.extend(
            found
                .take(3)
                .map(|(line, (recorded, now))| difference(name, line, recorded, now)),
        );
        if recorded.len() != now.len() {
            let (recorded, now) = (recorded.len(), now.len());
            differences.push(format!("case `{name}`: {now} lines, recorded {recorded}"));
        }
    }
    ensure!(
        differences.is_empty(),
        "not what was recorded:\n{}",
        differences.join("\n")
    );
    Ok(())
}

/// What a batch's line holds; see [`Case::trace`].
const OF_BATCH: [&str; 4] = ["epoch", "records", "pixels", "state"];

/// Says in which batch what differs. The first line is of the data set, the last ones of the whole.
fn difference(case: &str, line: usize, recorded: &str, now: &str) -> String {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let (recorded_words, now_words) = (words(recorded), words(now));
    let of_batch =
        |words: &[String]| words.len() == OF_BATCH.len() && words[0].parse::<u64>().is_ok();
    if !of_batch(&recorded_words) || !of_batch(&now_words) {
        return format!("case `{case}`: {now}; recorded: {recorded}");
    }
    let values = OF_BATCH.iter().zip(now_words.iter().zip(&recorded_words));
    let differing = values.filter(|(_, (now, recorded))| now != recorded);
    let differing =
        differing.map(|(name, (now, recorded))| format!("{name} {now}, not {recorded}"));
    let differing = differing.collect::<Vec<_>>().join("; ");
    format!("case `{case}`, batch {}: {differing}", line - 1)
}

/// A difference is told by its case, its batch and what differs there.
#[test]
fn a_difference_names_the_batch_and_what_differs() {
    let recorded = "0 00000001 00000002 00000003";
    assert_eq!(
        difference("crops", 4, recorded, "0 00000001 0000000a 00000003"),
        "case `crops`, batch 3: pixels 0000000a, not 00000002"
    );
    let ended = "requests 12 bytes 3400";
    assert_eq!(
        difference("crops", 4, recorded, ended),
        format!("case `crops`: {ended}; recorded: {recorded}")
    );
}
