//! A window of parts in memory, and the replacement of its bad samples.
use std::collections::HashMap;

use bytes::Bytes;
use nepa_schemas::{Label, RowError, ShardBatch};

use super::order::{Part, Window};
use crate::random::{Purpose, sample_stream, shuffle};
use crate::{DatasetError, SampleId};

/// An unpacked part.
#[derive(Debug)]
struct LoadedPart {
    part: Part,
    batch: ShardBatch,
    /// Rows without an image that the footer counts: they are no samples. Sorted.
    left_out: Vec<u32>,
}

impl LoadedPart {
    fn new(part: Part, batch: ShardBatch) -> Self {
        let num_absent = (part.num_rows - part.num_samples) as usize;
        // Those that the footer does not count stay in the order, and are replaced when they are met.
        let absent = batch.absent_rows().take(num_absent);
        let left_out = absent.map(|row| row as u32).collect();
        Self {
            part,
            batch,
            left_out,
        }
    }

    /// Its samples, in the order of the file.
    fn samples(&self) -> impl Iterator<Item = SampleId> + '_ {
        (0..self.part.num_rows)
            .filter(|row| self.left_out.binary_search(row).is_err())
            .map(|row| self.part.sample(row))
    }
}

/// All parts of a window, unpacked.
#[derive(Debug)]
pub(super) struct LoadedWindow {
    /// Sorted as the samples' ids are, so that a sample's part is found by search.
    parts: Vec<LoadedPart>,
}

impl LoadedWindow {
    /// The samples of a part of the window, in the order of the file.
    pub(super) fn samples(&self, part: &Part) -> impl Iterator<Item = SampleId> + use<'_> {
        self.parts[self.part_of(part.sample(0))].samples()
    }

    /// The index of the part that holds a sample of the window.
    fn part_of(&self, id: SampleId) -> usize {
        let first = |part: &Part| (part.shard, part.row_group, part.first_row);
        self.parts
            .partition_point(|loaded| first(&loaded.part) <= (id.shard, id.row_group, id.row))
            - 1
    }

    /// The encoded image and its label.
    pub(super) fn image(&self, id: SampleId) -> Result<(Bytes, Option<Label>), RowError> {
        let LoadedPart { part, batch, .. } = &self.parts[self.part_of(id)];
        let row = (id.row - part.first_row) as usize;
        Ok((batch.image(row)?, batch.label(row)))
    }

    /// Who may stand in for a bad sample, in order: the other rows of its part by the sample's own random stream, then
    /// the rows of the window's other parts. A pure function of (seed, epoch, id) and the order.
    pub(super) fn replacements(
        &self,
        seed: u64,
        epoch: u64,
        id: SampleId,
    ) -> impl Iterator<Item = SampleId> + '_ {
        let own = self.part_of(id);
        let mut near: Vec<SampleId> = self.parts[own]
            .samples()
            .filter(|&other| other != id)
            .collect();
        shuffle(
            &mut sample_stream(seed, epoch, id, Purpose::Replace),
            &mut near,
        );
        let others = (1..self.parts.len()).map(move |i| (own + i) % self.parts.len());
        near.into_iter()
            .chain(others.flat_map(|i| self.parts[i].samples()))
    }
}

/// (shard, index of the part).
type PartKey = (u32, u32);

/// A window that is being fetched and unpacked.
#[derive(Debug)]
pub(super) struct LoadingWindow {
    window: Window,
    arrived: HashMap<PartKey, ShardBatch>,
    num_failed: usize,
    failed: Option<DatasetError>,
}

impl LoadingWindow {
    pub(super) fn new(window: Window) -> Self {
        Self {
            window,
            arrived: HashMap::new(),
            num_failed: 0,
            failed: None,
        }
    }

    /// What to fetch.
    pub(super) fn parts(&self) -> Vec<PartKey> {
        self.window
            .parts
            .iter()
            .map(|part| (part.shard, part.index))
            .collect()
    }

    pub(super) fn arrive(
        &mut self,
        shard: u32,
        part: u32,
        batch: Result<ShardBatch, DatasetError>,
    ) {
        match batch {
            Ok(batch) => {
                self.arrived.insert((shard, part), batch);
            }
            // The first failure tells most; later ones often only follow from it. Of the parts of one request, one carries the cause.
            Err(error) => {
                self.num_failed += 1;
                if !self.has_cause() {
                    self.failed = Some(error);
                }
            }
        }
    }

    fn has_cause(&self) -> bool {
        let failed = self.failed.as_ref();
        failed.is_some_and(|error| !matches!(error, DatasetError::SameRequest { .. }))
    }

    /// Whether nothing more is to be waited for.
    pub(super) fn is_settled(&self) -> bool {
        self.has_cause() || self.arrived.len() + self.num_failed == self.window.parts.len()
    }

    /// The settled window.
    pub(super) fn finish(mut self) -> Result<(Window, LoadedWindow), DatasetError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut parts: Vec<_> = self
            .window
            .parts
            .iter()
            .map(|part| {
                let key = (part.shard, part.index);
                let batch = self.arrived.remove(&key).expect("the window is settled");
                LoadedPart::new(*part, batch)
            })
            .collect();
        parts.sort_by_key(|LoadedPart { part, .. }| (part.shard, part.row_group, part.first_row));
        Ok((self.window, LoadedWindow { parts }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Place;

    /// Which part's error comes first is a race between threads; the cause is told in any order.
    #[test]
    fn the_cause_is_waited_for() {
        let place = || Place {
            object: "shard".to_owned(),
            ..Place::default()
        };
        let follows = || {
            Err(DatasetError::SameRequest {
                place: place(),
                first: 0,
            })
        };
        let cause = || {
            Err(DatasetError::Truncated {
                place: place(),
                what: "a test cuts it",
                size: 3,
            })
        };
        let part = |index| Part {
            shard: 0,
            index,
            row_group: index,
            first_row: 0,
            num_rows: 1,
            num_samples: 1,
            memory_bytes: 1,
        };
        let window = || Window {
            index: 0,
            start: 0,
            parts: (0..3).map(part).collect(),
        };
        let mut loading = LoadingWindow::new(window());
        loading.arrive(0, 1, follows());
        assert!(!loading.is_settled());
        loading.arrive(0, 0, cause());
        assert!(loading.is_settled());
        loading.arrive(0, 2, follows());
        let error = loading.finish().unwrap_err();
        assert!(matches!(error, DatasetError::Truncated { .. }), "{error}");
        // Without a cause, all parts are waited for, and no longer.
        let mut loading = LoadingWindow::new(window());
        for index in 0..3 {
            assert!(!loading.is_settled());
            loading.arrive(0, index, follows());
        }
        assert!(loading.is_settled() && loading.finish().is_err());
    }
}
