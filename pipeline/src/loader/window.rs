//! A window of a lane's parts in memory, and the replacement of its bad samples.
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use nepa_schemas::{Label, RowError, ShardBatch};

use super::order::Window;
use super::part::Part;
use super::rows::ExtraRow;
use crate::random::{Purpose, sample_stream, shuffle};
use crate::{DatasetError, PartId, SampleId};

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
        let num_absent = (part.num_rows - part.num_present) as usize;
        // Those that the footer does not count stay in the order, and are replaced when they are
        // met.
        let absent = batch.absent_rows().take(num_absent);
        let left_out = absent.map(|row| row as u32).collect();
        Self {
            part,
            batch,
            left_out,
        }
    }

    /// Its samples, in the order of the file; where two lanes share it, those of this one.
    fn samples(&self) -> impl Iterator<Item = SampleId> + '_ {
        (0..self.part.num_rows)
            .filter(|row| self.left_out.binary_search(row).is_err())
            .skip(self.part.skipped as usize)
            .take(self.part.num_samples as usize)
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
        let first = |part: &Part| (part.id.shard, part.row_group, part.first_row);
        self.parts
            .partition_point(|loaded| first(&loaded.part) <= (id.shard, id.row_group, id.row))
            - 1
    }

    /// The encoded image, its label, its row of the further columns.
    pub(super) fn image(
        &self,
        id: SampleId,
    ) -> Result<(Bytes, Option<Label>, Option<ExtraRow>), RowError> {
        let LoadedPart { part, batch, .. } = &self.parts[self.part_of(id)];
        let row = (id.row - part.first_row) as usize;
        let extra = batch.extra().cloned();
        let extra = extra.map(|columns| ExtraRow { columns, row });
        Ok((batch.image(row)?, batch.label(row), extra))
    }

    /// Who may stand in for a bad sample, in order: the other samples of its part by the sample's
    /// own random stream, then those of the window's other parts. All of them are of its lane. A
    /// pure function of (seed, epoch, id) and the order.
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

/// A window that is being fetched and unpacked.
#[derive(Debug)]
pub(super) struct LoadingWindow {
    window: Window,
    arrived: HashMap<PartId, ShardBatch>,
    failed: Option<Arc<DatasetError>>,
}

impl LoadingWindow {
    pub(super) fn new(window: Window) -> Self {
        Self {
            window,
            arrived: HashMap::new(),
            failed: None,
        }
    }

    /// What to fetch.
    pub(super) fn parts(&self) -> Vec<PartId> {
        self.window.parts.iter().map(|part| part.id).collect()
    }

    pub(super) fn arrive(&mut self, part: PartId, batch: Result<ShardBatch, Arc<DatasetError>>) {
        match batch {
            Ok(batch) => {
                self.arrived.insert(part, batch);
            }
            // The first failure tells most; later ones often only follow from it.
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    /// Whether nothing more is to be waited for.
    pub(super) fn is_settled(&self) -> bool {
        self.failed.is_some() || self.arrived.len() == self.window.parts.len()
    }

    /// The settled window.
    pub(super) fn finish(mut self) -> Result<(Window, LoadedWindow), Arc<DatasetError>> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut parts: Vec<_> = self
            .window
            .parts
            .iter()
            .map(|part| {
                let batch = self
                    .arrived
                    .remove(&part.id)
                    .expect("the window is settled");
                LoadedPart::new(*part, batch)
            })
            .collect();
        parts
            .sort_by_key(|LoadedPart { part, .. }| (part.id.shard, part.row_group, part.first_row));
        Ok((self.window, LoadedWindow { parts }))
    }
}
