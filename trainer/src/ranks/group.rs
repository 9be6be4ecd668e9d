//! The ranks of a run as its parts see them: a handle that is cheap to clone, also for a run that is
//! alone.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::gather::{all_gather, broadcast};
use super::sum::sum;
use super::wire::{Wire, WireError};
use crate::engine::{Exchange, ExchangeError, Summing};

/// All ranks of a run, of which this process is one.
#[derive(Debug, Clone)]
pub(crate) struct Ranks {
    rank: usize,
    size: usize,
    local_rank: usize,
    summing: Summing,
    /// None where it is alone.
    inner: Option<Arc<Mutex<Inner>>>,
}

#[derive(Debug)]
struct Inner {
    wire: Box<dyn Wire>,
    /// Memory for what is summed.
    other: Vec<f32>,
}

impl Ranks {
    /// One process.
    pub(crate) fn alone() -> Self {
        Self {
            rank: 0,
            size: 1,
            local_rank: 0,
            summing: Summing::default(),
            inner: None,
        }
    }

    /// This rank, which has that number among those of its machine.
    pub(super) fn of(wire: Box<dyn Wire>, local_rank: usize) -> Self {
        Self {
            rank: wire.rank(),
            size: wire.size(),
            local_rank,
            summing: Summing::default(),
            inner: Some(Arc::new(Mutex::new(Inner {
                wire,
                other: Vec::new(),
            }))),
        }
    }

    /// This rank.
    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    /// Their number.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// This rank's number among those of its machine, from 0.
    pub(crate) fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// The same ranks, which sum their gradients so.
    pub(crate) fn with_summing(&self, summing: Summing) -> Self {
        Self {
            summing,
            ..self.clone()
        }
    }

    /// Whether there is no other.
    pub(crate) fn is_alone(&self) -> bool {
        self.inner.is_none()
    }

    /// Whether a library connects them that has a sum of its own.
    pub(crate) fn has_library(&self) -> bool {
        self.inner()
            .is_some_and(|mut inner| inner.wire.library_sum(&mut []).is_some())
    }

    fn inner(&self) -> Option<MutexGuard<'_, Inner>> {
        let inner = self.inner.as_ref()?;
        Some(inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes values their sum over all ranks, the same bits on each: those of the tree, unless the
    /// library is to add.
    pub(crate) fn sum_values(&self, values: &mut [f32]) -> Result<(), WireError> {
        let Some(mut inner) = self.inner() else {
            return Ok(());
        };
        let Inner { wire, other } = &mut *inner;
        if self.summing.by_library
            && let Some(summed) = wire.library_sum(values)
        {
            return summed;
        }
        sum(wire.as_mut(), values, other)
    }

    /// The records of all ranks, in their order.
    pub(crate) fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, WireError> {
        match self.inner() {
            None => Ok(vec![own.to_vec()]),
            Some(mut inner) => all_gather(inner.wire.as_mut(), own),
        }
    }

    /// The same of records that are plain data.
    pub(crate) fn gather<T: Serialize + DeserializeOwned>(
        &self,
        own: &T,
    ) -> Result<Vec<T>, WireError> {
        let own = serde_json::to_vec(own).expect("a record is plain data");
        let all = self.gather_bytes(&own)?.into_iter().enumerate();
        let read = all.map(|(rank, record)| {
            serde_json::from_slice(&record).map_err(|_| WireError::OutOfStep {
                rank,
                got: record.len(),
                expected: own.len(),
            })
        });
        read.collect()
    }

    /// Makes values what rank 0 has.
    pub(crate) fn broadcast(&self, values: &mut [f32]) -> Result<(), WireError> {
        match self.inner() {
            None => Ok(()),
            Some(mut inner) => broadcast(inner.wire.as_mut(), bytemuck::cast_slice_mut(values)),
        }
    }

    /// The signal by which another rank was asked to stop, as far as that is heard between two
    /// exchanges.
    pub(crate) fn stop_heard(&self) -> Option<i32> {
        self.inner().and_then(|inner| inner.wire.stop_heard())
    }

    /// Tells the others that this rank ends: well, or because of a rank and for a reason.
    pub(crate) fn leave(&self, failed: Option<(usize, &str)>) {
        if let Some(mut inner) = self.inner() {
            inner.wire.leave(failed);
        }
    }
}

impl Exchange for Ranks {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn summing(&self) -> Summing {
        self.summing
    }

    fn sum(&self, values: &mut [f32]) -> Result<(), ExchangeError> {
        Ok(self.sum_values(values)?)
    }

    fn share(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        Ok(self.gather_bytes(own)?)
    }

    fn check(&self) -> Result<(), ExchangeError> {
        match self.inner() {
            None => Ok(()),
            Some(mut inner) => Ok(inner.wire.check()?),
        }
    }

    fn gather(&self, own: &[f64]) -> Result<Vec<Vec<f64>>, ExchangeError> {
        let records = self.gather_bytes(bytemuck::cast_slice(own))?;
        let numbers = |record: &Vec<u8>| {
            let numbers = record.as_chunks::<8>().0.iter();
            numbers.map(|bytes| f64::from_ne_bytes(*bytes)).collect()
        };
        Ok(records.iter().map(numbers).collect())
    }
}
