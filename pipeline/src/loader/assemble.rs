//! The last stage: rendered samples become batches, in order; bad ones are counted and listed.
use super::bad_samples::{BadSample, Replacement};
use super::job::{ComingBatch, Outcome, Rendered};
use super::mixing::EpochMeter;
use super::rows::{self, ExtraRow};
use super::{Loader, LoaderError, has_classes};
use crate::backend::ImageBackend;
use crate::batch::{Batch, SampleRecord};
use crate::spans::SPANS_ON_A_THREAD;
use crate::{Place, SampleId};

/// What became of the samples of a batch.
#[derive(Default)]
struct Outcomes {
    samples: Vec<SampleRecord>,
    extra: Vec<Option<ExtraRow>>,
    bad: Vec<BadSample>,
    /// Rows without an image that were replaced.
    absent: u64,
}

impl Outcomes {
    fn push(&mut self, Rendered { record, extra }: Rendered) {
        self.samples.push(record);
        self.extra.push(extra);
    }
}

impl<B: ImageBackend> Loader<B> {
    /// Makes a batch of what was collected; `None` after the last epoch.
    pub(super) fn assemble(&mut self) -> Result<Option<Batch<B>>, LoaderError> {
        let Some(ComingBatch { pending, mut done }) = self.coming.take() else {
            return match self.failure.try_recv() {
                Ok(error) => Err(error),
                Err(_) if self.is_at_the_end() => Ok(None),
                Err(_) => Err(LoaderError::ThreadDied),
            };
        };
        // It ends when the batch is handed out.
        let _batch = pending.span;
        let _span = tracing::trace_span!(
            target: SPANS_ON_A_THREAD,
            "assemble",
            epoch = pending.epoch,
            batch = pending.batch_in_epoch,
        );
        if done.len() < pending.num_samples {
            // Either the walk failed within this batch, and says why, or a thread died, and the
            // walk may not have noticed.
            self.stop = None;
            return Err(self.failure.recv().unwrap_or(LoaderError::ThreadDied));
        }
        done.sort_by_key(|done| done.position);
        let (mut slots, outcomes): (Vec<_>, Vec<_>) = done
            .into_iter()
            .map(|done| (done.slot, done.outcome))
            .unzip();
        slots.extend(pending.spare);
        let outcomes = self.judge(pending.epoch, outcomes);
        let handed_over = outcomes.and_then(|outcomes| {
            let columns = rows::gathered(&outcomes.extra).map_err(LoaderError::Columns)?;
            self.backend
                .hand_over(&mut slots[..outcomes.samples.len()])?;
            Ok((outcomes, columns))
        });
        let memory = self.backend.join(slots);
        let (outcomes, columns) = match handed_over {
            Ok(handed_over) => handed_over,
            Err(error) => {
                self.pool.give_back(memory);
                return Err(error);
            }
        };
        let Outcomes {
            samples,
            bad,
            absent,
            ..
        } = outcomes;
        let batch = Batch::new(pending.epoch, samples, columns, memory, self.pool.clone())?;
        let replaced = bad.len() as u64;
        // First, so that a batch which is not handed out does not count as handed out.
        self.bad_samples.record(batch.len() as u64, bad)?;
        self.counters.consume.item(0);
        self.meter.batch(batch.samples(), replaced, absent);
        if pending.batch_in_epoch + 1 == self.per_epoch {
            self.next = (pending.epoch + 1, 0);
            self.end_epoch(pending.epoch);
        } else {
            self.next = (pending.epoch, pending.batch_in_epoch + 1);
        }
        Ok(Some(batch))
    }

    fn is_at_the_end(&self) -> bool {
        let epochs = self.config.epochs;
        epochs.is_some_and(|epochs| self.next.0 >= epochs)
    }

    /// The records of a batch, or the first error that ends the run.
    fn judge(&self, epoch: u64, all: Vec<Outcome>) -> Result<Outcomes, LoaderError> {
        let mut outcomes = Outcomes {
            samples: Vec::with_capacity(all.len()),
            extra: Vec::with_capacity(all.len()),
            ..Outcomes::default()
        };
        let (mut exhausted, mut failed) = (None, None);
        for outcome in all {
            match outcome {
                Outcome::Good(rendered) => outcomes.push(rendered),
                Outcome::Replaced(rendered, flaw) => {
                    let record = &rendered.record;
                    let id = record.replaces.unwrap_or(record.id);
                    if flaw.absent {
                        outcomes.absent += 1;
                    } else {
                        let bad = self.bad_sample(epoch, id, record.id, flaw.reason);
                        outcomes.bad.push(bad);
                    }
                    outcomes.push(rendered);
                }
                Outcome::Exhausted(id, reason) => {
                    exhausted.get_or_insert((id, reason));
                }
                Outcome::Failed(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if let Some((id, reason)) = exhausted {
            return Err(LoaderError::NothingToReplace {
                place: self.place(id),
                reason,
            });
        }
        Ok(outcomes)
    }

    /// Says what became of the epoch's samples.
    fn end_epoch(&mut self, epoch: u64) {
        let report = self.meter.report(
            epoch,
            self.dataset.num_samples(),
            self.used_samples,
            &self.config,
        );
        // The first windows of a run are small: where they are much of the epoch, it says little
        // about the later ones.
        let parts = self.dataset.shards().iter().flat_map(|shard| &shard.parts);
        let bytes = parts.map(|part| part.memory_bytes).sum::<u64>();
        let settled = epoch > 0 || bytes / 20 > self.config.shuffle_window_bytes;
        tracing::debug!("{report}");
        if settled && report.is_badly_mixed() && !self.warned_of_mixing {
            // Once: every epoch is as long, in the same windows.
            self.warned_of_mixing = true;
            tracing::warn!(
                "the rows are sorted more than the shuffle window can mix, so that batches are less even than random ones: enlarge \
                 shuffle_window_bytes ({}), or shuffle the rows before writing the shards (`nepa pack` does)",
                self.config.shuffle_window_bytes
            );
        }
        self.last_epoch = Some(report);
        self.meter = EpochMeter::new(has_classes(&self.dataset), 0);
    }

    fn place(&self, id: SampleId) -> Place {
        Place {
            object: self.dataset.shards()[id.shard as usize].url.clone(),
            row_group: Some(id.row_group as usize),
            row: Some(id.row as usize),
            bytes: None,
        }
    }

    fn bad_sample(&self, epoch: u64, id: SampleId, by: SampleId, reason: String) -> BadSample {
        BadSample {
            epoch,
            object: self.dataset.shards()[id.shard as usize].url.clone(),
            row_group: id.row_group,
            row: id.row,
            reason,
            replaced_by: Replacement {
                shard: by.shard,
                row_group: by.row_group,
                row: by.row,
            },
        }
    }
}
