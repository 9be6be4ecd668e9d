//! Runs a loader as so many ranks and writes down every global batch and the state after it, until it is killed: for tests of exact, elastic resumption.
//!
//! `nepa-test-ranks FOLDER WORLD_SIZE DATA:WEIGHT...`: the trace is FOLDER/trace.jsonl, a line a batch; the state FOLDER/state.json. It goes on from the state, if there is one.
//! `NEPA_TEST_CACHE` names a folder as `io.cache_dir`, `NEPA_TEST_LANES` says how many lanes there are.
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, ensure};
use nepa_pipeline::{IoConfig, Loader, LoaderConfig, LoaderState, SampleRecord};
use nepa_tests::data::{mixture, open_as};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What is saved after each batch.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// Global batches in the trace.
    batches: usize,
    loader: LoaderState,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, world_size, sources @ ..] = &arguments[..] else {
        anyhow::bail!("usage: nepa-test-ranks FOLDER WORLD_SIZE DATA:WEIGHT...");
    };
    let folder = Path::new(folder);
    let world_size: usize = world_size.parse()?;
    let sources = sources.iter().map(|source| {
        let (url, weight) = source.rsplit_once(':').context("DATA:WEIGHT")?;
        Ok((url, weight.parse()?))
    });
    let config = mixture(sources.collect::<anyhow::Result<Vec<_>>>()?);
    let io = IoConfig {
        cache_dir: std::env::var_os("NEPA_TEST_CACHE").map(Into::into),
        ..IoConfig::default()
    };
    let dataset = open_as(&config, &io)?;
    let lanes = match std::env::var("NEPA_TEST_LANES") {
        Ok(text) => text.parse()?,
        Err(_) => 1,
    };
    let state_path = folder.join("state.json");
    let mut saved: Option<Saved> = match std::fs::read(&state_path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes)?),
        Err(_) => None,
    };
    let mut batches = saved.as_ref().map_or(0, |saved| saved.batches);
    let trace_path = folder.join("trace.jsonl");
    cut_to_lines(&trace_path, batches)?;
    let mut trace = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&trace_path)?;

    let state = saved.take().map(|saved| saved.loader);
    let mut ranks = (0..world_size)
        .map(|rank| {
            let config = LoaderConfig {
                lanes,
                ..nepa_tests::loading::config_of_rank(rank, world_size)
            };
            Loader::new(std::sync::Arc::clone(&dataset), config, state.as_ref())
        })
        .collect::<Result<Vec<_>, _>>()?;
    loop {
        let mut records: Vec<SampleRecord> = Vec::new();
        let mut pixels = Sha256::new();
        let mut ended = 0;
        for rank in &mut ranks {
            match rank.next_batch()? {
                Some(batch) => {
                    records.extend_from_slice(batch.samples());
                    for value in batch.array() {
                        pixels.update(value.to_le_bytes());
                    }
                }
                None => ended += 1,
            }
        }
        if ended > 0 {
            ensure!(
                ended == world_size,
                "only {ended} of {world_size} ranks have ended"
            );
            return Ok(());
        }
        let samples: Vec<_> = records
            .iter()
            .map(|record| (record.id, &record.views, record.replaces))
            .collect();
        let line = serde_json::to_string(&(batches, samples, format!("{:x}", pixels.finalize())))?;
        writeln!(trace, "{line}")?;
        batches += 1;
        let saved = Saved {
            batches,
            loader: ranks[0].state(),
        };
        let new = folder.join("state.json.new");
        std::fs::write(&new, serde_json::to_vec(&saved)?)?;
        std::fs::rename(&new, &state_path)?;
    }
}

/// Keeps the first `lines` lines of a file, if there is one: the killed run may have written more than its state knows.
fn cut_to_lines(path: &Path, lines: usize) -> anyhow::Result<()> {
    let Ok(text) = std::fs::read_to_string(path) else {
        return Ok(());
    };
    let mut kept = text.split_inclusive('\n').map(str::len);
    let length: usize = kept.by_ref().take(lines).sum();
    ensure!(
        text[..length].lines().count() == lines,
        "the trace is shorter than the state says"
    );
    // In one step: it may be killed here, too.
    Ok(OpenOptions::new()
        .write(true)
        .open(path)?
        .set_len(length as u64)?)
}
