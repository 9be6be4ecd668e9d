//! TensorBoard's event file: the curves of a run's metrics. [`super::records`] knows the format.
use std::path::Path;

use super::error::LogError;
use super::evals::EvalRecord;
use super::file::LogFile;
use super::metrics::StepMetrics;
use super::records;

/// One TensorBoard event file for the whole run.
#[derive(Debug)]
pub(crate) struct EventFile(pub LogFile);

impl EventFile {
    /// Name of the file; TensorBoard looks for `tfevents` in it.
    pub(crate) const NAME: &str = "events.out.tfevents.nepa";

    /// Opens the file cut back to `length` bytes; a new one gets its head.
    pub(crate) fn open(path: &Path, length: u64) -> Result<Self, LogError> {
        let mut file = Self(LogFile::open(path, length)?);
        if length == 0 {
            let mut records = Vec::new();
            records::push_version(&mut records, wall_time());
            file.0.append(&records)?;
        }
        Ok(file)
    }

    pub(crate) fn write(&mut self, metrics: &StepMetrics) -> Result<(), LogError> {
        self.push(metrics.step, &metrics.scalars())
    }

    pub(crate) fn write_eval(&mut self, record: &EvalRecord) -> Result<(), LogError> {
        self.push(record.step, &record.scalars())
    }

    fn push(&mut self, step: u64, scalars: &[(&'static str, f64)]) -> Result<(), LogError> {
        let mut records = Vec::new();
        for (tag, value) in scalars {
            records::push_scalar(&mut records, wall_time(), step, tag, *value as f32);
        }
        self.0.append(&records)
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::super::metrics::tests::metrics;
    use super::*;

    #[test]
    fn event_files_hold_a_head_once_and_a_record_for_each_scalar() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(EventFile::NAME);
        let mut events = EventFile::open(&path, 0).unwrap();
        events.write(&metrics(7)).unwrap();
        let length = events.0.sync().unwrap();
        let mut events = EventFile::open(&path, length).unwrap();
        events.write(&metrics(8)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (mut at, mut found) = (0, Vec::new());
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            found.push(&bytes[at + 12..at + 12 + length]);
            at += 16 + length;
        }
        assert!(found[0].ends_with(b"brain.Event:2"));
        assert_eq!(found.len(), 1 + 2 * metrics(7).scalars().len());
        // After the time: the step, then the summary with its tag and number.
        let loss = [
            b"\x10\x07\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15",
            &(-0.7f32).to_le_bytes()[..],
        ]
        .concat();
        assert_eq!(found[1][9..], loss);
    }
}
