//! A window of row groups in memory, and the replacement of its bad samples.
use std::collections::HashMap;

use bytes::Bytes;
use nepa_schemas::{Label, ShardBatch};

use super::order::Window;
use crate::random::{Purpose, sample_stream, shuffle};
use crate::{DatasetError, SampleId};

/// All row groups of a window, unpacked.
#[derive(Debug)]
pub(super) struct LoadedWindow {
    batches: Vec<(SampleIdPrefix, ShardBatch)>,
    by_id: HashMap<SampleIdPrefix, usize>,
}

/// (shard, row group).
type SampleIdPrefix = (u32, u32);

impl LoadedWindow {
    /// The encoded image and its label.
    pub(super) fn image(
        &self,
        id: SampleId,
    ) -> Result<(Bytes, Option<Label>), nepa_schemas::RowError> {
        let (_, batch) = &self.batches[self.by_id[&(id.shard, id.row_group)]];
        Ok((batch.image(id.row as usize)?, batch.label(id.row as usize)))
    }

    /// Who may stand in for a bad sample, in order: the other rows of its row group by the sample's own random stream, then
    /// the rows of the window's other row groups. A pure function of (seed, epoch, id) and the order.
    pub(super) fn replacements(
        &self,
        seed: u64,
        epoch: u64,
        id: SampleId,
    ) -> impl Iterator<Item = SampleId> + '_ {
        let own = self.by_id[&(id.shard, id.row_group)];
        let mut rows: Vec<u32> = (0..self.batches[own].1.num_rows() as u32)
            .filter(|&row| row != id.row)
            .collect();
        shuffle(
            &mut sample_stream(seed, epoch, id, Purpose::Replace),
            &mut rows,
        );
        let others = (1..self.batches.len()).map(move |i| (own + i) % self.batches.len());
        let near = rows.into_iter().map(move |row| SampleId { row, ..id });
        let far = others.flat_map(|i| {
            let ((shard, row_group), batch) = &self.batches[i];
            (0..batch.num_rows() as u32).map(|row| SampleId {
                shard: *shard,
                row_group: *row_group,
                row,
            })
        });
        near.chain(far)
    }
}

/// A window that is being fetched and unpacked.
#[derive(Debug)]
pub(super) struct LoadingWindow {
    window: Window,
    arrived: HashMap<SampleIdPrefix, ShardBatch>,
    failed: Option<DatasetError>,
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
    pub(super) fn row_groups(&self) -> Vec<SampleIdPrefix> {
        self.window
            .row_groups
            .iter()
            .map(|group| (group.shard, group.row_group))
            .collect()
    }

    pub(super) fn arrive(
        &mut self,
        shard: u32,
        row_group: u32,
        batch: Result<ShardBatch, DatasetError>,
    ) {
        match batch {
            Ok(batch) => {
                self.arrived.insert((shard, row_group), batch);
            }
            // The first failure tells most; later ones often only follow from it.
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    /// Whether nothing more is to be waited for.
    pub(super) fn is_settled(&self) -> bool {
        self.failed.is_some() || self.arrived.len() == self.window.row_groups.len()
    }

    /// The settled window.
    pub(super) fn finish(mut self) -> Result<(Window, LoadedWindow), DatasetError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let batches: Vec<_> = self
            .window
            .row_groups
            .iter()
            .map(|group| {
                let id = (group.shard, group.row_group);
                (id, self.arrived.remove(&id).expect("the window is settled"))
            })
            .collect();
        let by_id = batches
            .iter()
            .enumerate()
            .map(|(i, (id, _))| (*id, i))
            .collect();
        Ok((self.window, LoadedWindow { batches, by_id }))
    }
}
