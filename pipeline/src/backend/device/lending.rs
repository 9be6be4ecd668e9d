//! Batches that are used by work on other streams than the consumer's: a library's, which names its
//! stream when it takes a batch, and none when it is done with it.
//!
//! Such work waits for the consumer's stream, which waits for the writers. Its end is not asked of
//! the streams that were named: a program may go on with the batch on others, and may have destroyed
//! those. New pixels wait for all that was enqueued on the device before the batch was given back.
use std::sync::atomic::Ordering;

use super::{Accelerator, DeviceBackend, DeviceMemory};
use crate::backend::BackendError;

impl<A: Accelerator> DeviceMemory<A> {
    /// New pixels wait for work on any stream, once.
    pub(crate) fn lend(&self) {
        self.batch.is_lent.store(true, Ordering::Release);
    }
}

impl<A: Accelerator> DeviceBackend<A> {
    /// [`DeviceMemory::lend`], and what is enqueued on `stream` from now on comes after the pixels.
    pub(crate) fn lend_to(
        &self,
        memory: &DeviceMemory<A>,
        stream: &A::Stream,
    ) -> Result<(), BackendError> {
        memory.lend();
        let handed = &memory.batch.handed;
        self.accelerator.record(handed, &self.consumer)?;
        self.accelerator.wait(stream, handed)
    }

    /// Marks the last use of a batch that is given back.
    pub(super) fn mark_release(&self, memory: &DeviceMemory<A>) -> Result<(), BackendError> {
        let batch = &memory.batch;
        if batch.is_lent.swap(false, Ordering::AcqRel) {
            self.accelerator.record_all(&batch.released)
        } else {
            self.accelerator.record(&batch.released, &self.consumer)
        }
    }
}
