//! Fetching as `tests/interleavings` needs it: the parts lie in memory already, and a thread under the scheduler's control delivers them in any order.
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use shuttle::rand::Rng;

use super::{Dataset, Deliver, PartBytes, fetch};
use crate::DatasetError;

/// Parts by (shard, index).
pub(super) type Prefetched = OnceLock<HashMap<(u32, u32), PartBytes>>;

/// A fetch in progress.
#[derive(Debug, Clone)]
pub struct FetchHandle {
    cancelled: Arc<AtomicBool>,
}

impl FetchHandle {
    /// Stops what is not delivered yet.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Dataset {
    /// Fetches all parts but `missing`, outside of the model; only for a data set just opened.
    pub fn prefetch(self: Arc<Self>, missing: &[(u32, u32)]) -> Arc<Self> {
        let wanted: Vec<_> = (0..)
            .zip(&self.shards)
            .flat_map(|(shard, content)| {
                (0..content.parts.len() as u32).map(move |part| (shard, part))
            })
            .filter(|part| !missing.contains(part))
            .collect();
        let chunks =
            |shard: u32, part: u32| self.readers[shard as usize].chunks[part as usize].clone();
        let runs = fetch::plan(&wanted, chunks, &self.io);
        let (sender, receiver) = mpsc::channel();
        let deliver: Deliver = Arc::new(move |shard, part, bytes| {
            let _ = sender.send(((shard, part), bytes));
        });
        let runtime = self.runtime.clone();
        runtime.block_on(fetch::run_all(Arc::clone(&self), runs, deliver));
        let parts = receiver
            .into_iter()
            .map(|(key, bytes)| (key, bytes.expect("it can be read")))
            .collect();
        self.prefetched.set(parts).expect("it is called once");
        self
    }

    /// Delivers `parts` in any order, from a thread of the model.
    pub fn fetch(self: &Arc<Self>, parts: &[(u32, u32)], deliver: Deliver) -> FetchHandle {
        let handle = FetchHandle {
            cancelled: Arc::default(),
        };
        let (dataset, cancelled) = (Arc::clone(self), Arc::clone(&handle.cancelled));
        let mut parts = parts.to_vec();
        shuttle::thread::spawn(move || {
            while !parts.is_empty() {
                let next = shuttle::rand::thread_rng().gen_range(0..parts.len());
                let (shard, part) = parts.swap_remove(next);
                shuttle::thread::yield_now();
                if cancelled.load(Ordering::Relaxed) {
                    return;
                }
                let bytes = dataset
                    .prefetched
                    .get()
                    .expect("it was prefetched")
                    .get(&(shard, part))
                    .cloned();
                let bytes = bytes.ok_or_else(|| DatasetError::SameRequest {
                    place: dataset.place(shard, part),
                    first: part,
                });
                deliver(shard, part, bytes);
            }
        });
        handle
    }
}
