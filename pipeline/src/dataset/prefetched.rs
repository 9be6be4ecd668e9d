//! Fetching as `tests/interleavings` needs it: the parts lie in memory already, and a thread under
//! the scheduler's control delivers them in any order.
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use shuttle::rand::Rng;

use super::Dataset;
use super::fetch::{self, Deliver};
use crate::{DatasetError, PartId};

/// A fetch in progress. Dropping it stops what is not delivered yet.
#[derive(Debug)]
pub(crate) struct FetchTask {
    cancelled: Arc<AtomicBool>,
}

impl Drop for FetchTask {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Dataset {
    /// Fetches all parts but `missing`, outside of the model; only for a data set just opened.
    pub fn prefetch(self: Arc<Self>, missing: &[PartId]) -> Arc<Self> {
        let parts = (0..).zip(&self.shards[..]).flat_map(|(shard, content)| {
            (0..content.parts.len() as u32).map(move |part| PartId { shard, part })
        });
        let wanted: Vec<_> = parts.filter(|part| !missing.contains(part)).collect();
        let ranges = |id: PartId| self.part(id).ranges.clone();
        let runs = fetch::plan(&wanted, ranges, &self.io.config);
        let (sender, receiver) = mpsc::channel();
        let deliver: Deliver = Arc::new(move |id, bytes| {
            let _ = sender.send((id, bytes));
        });
        let runtime = self.io.runtime.clone();
        runtime.block_on(fetch::run_all(Arc::clone(&self), runs, deliver));
        let parts = receiver
            .into_iter()
            .map(|(id, bytes)| (id, bytes.expect("it can be read")))
            .collect();
        self.prefetched.set(parts).expect("it is called once");
        self
    }
}

impl FetchTask {
    /// Delivers `parts` in any order, from a thread of the model.
    pub(crate) fn new(dataset: &Arc<Dataset>, parts: &[PartId], deliver: Deliver) -> Self {
        let cancelled = Arc::new(AtomicBool::new(false));
        let task = Self {
            cancelled: Arc::clone(&cancelled),
        };
        let dataset = Arc::clone(dataset);
        let mut parts = parts.to_vec();
        shuttle::thread::spawn(move || {
            while !parts.is_empty() {
                let next = shuttle::rand::thread_rng().gen_range(0..parts.len());
                let id = parts.swap_remove(next);
                shuttle::thread::yield_now();
                if cancelled.load(Ordering::Relaxed) {
                    return;
                }
                let prefetched = dataset.prefetched.get().expect("it was prefetched");
                let url = String::from("a part that is missing");
                let missing = || Arc::new(DatasetError::NoRows { url });
                deliver(id, prefetched.get(&id).cloned().ok_or_else(missing));
            }
        });
        task
    }
}
