//! Where the training loop's batches come from: the loader into host memory, or straight into a
//! GPU's.
use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use nepa_pipeline::{
    Dataset, DecoderStats, EngineConfig, EpochReport, HostBatch, Loader, LoaderConfig, LoaderError,
    LoaderState, PipelineStats, SampleRecord, StatsReader,
};

#[cfg(feature = "cuda")]
use crate::cuda::{CudaBatch, CudaBatches};
use crate::engine::Images;
use crate::recipe::Precision;

/// The loader of one run.
#[derive(Debug)]
pub(crate) enum Batches {
    /// Decoded by the processor into its own memory.
    Host(Box<Loader>),
    /// Decoded by nvJPEG and the processor into device memory.
    #[cfg(feature = "cuda")]
    Cuda(Box<CudaBatches>),
}

/// One batch; its memory goes back to the loader when it is dropped.
#[derive(Debug)]
pub(crate) enum TrainBatch {
    /// In host memory.
    Host(HostBatch),
    /// In device memory.
    #[cfg(feature = "cuda")]
    Cuda(CudaBatch),
}

/// How many samples stand for bad ones.
pub(crate) fn num_replaced(samples: &[SampleRecord]) -> usize {
    let replaced = samples.iter().filter(|sample| sample.replaces.is_some());
    replaced.count()
}

impl Batches {
    /// Starts the loader for training on `device`, from the beginning or from `state`. The
    /// precision only chooses the type of the pixels on a GPU, `engines` who decodes there.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_variables, reason = "only a CUDA device changes anything")
    )]
    pub(crate) fn open(
        dataset: Arc<Dataset>,
        config: LoaderConfig,
        state: Option<&LoaderState>,
        device: &Device,
        precision: Precision,
        engines: EngineConfig,
    ) -> Result<Self, LoaderError> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            let batches = CudaBatches::open(dataset, config, state, device, precision, engines)?;
            return Ok(Self::Cuda(Box::new(batches)));
        }
        Ok(Self::Host(Box::new(Loader::new(dataset, config, state)?)))
    }

    /// The next batch, or `None` after the last epoch.
    pub(crate) fn next_batch(&mut self) -> Result<Option<TrainBatch>, LoaderError> {
        Ok(match self {
            Self::Host(loader) => loader.next_batch()?.map(TrainBatch::Host),
            #[cfg(feature = "cuda")]
            Self::Cuda(batches) => batches.next_batch()?.map(TrainBatch::Cuda),
        })
    }

    /// Waits for the next batch for at most `timeout`; whether [`Self::next_batch`] will not wait.
    pub(crate) fn wait(&mut self, timeout: Duration) -> bool {
        match self {
            Self::Host(loader) => loader.wait(timeout),
            #[cfg(feature = "cuda")]
            Self::Cuda(batches) => batches.wait(timeout),
        }
    }

    /// The position after the last batch handed out.
    pub(crate) fn state(&self) -> LoaderState {
        match self {
            Self::Host(loader) => loader.state(),
            #[cfg(feature = "cuda")]
            Self::Cuda(batches) => batches.state(),
        }
    }

    /// What each stage did since the loader started, and who decoded.
    pub(crate) fn stats(&self) -> PipelineStats {
        match self {
            Self::Host(loader) => loader.stats(),
            #[cfg(feature = "cuda")]
            Self::Cuda(batches) => batches.stats(),
        }
    }

    /// Reads what the stages did, from any thread.
    pub(crate) fn stats_reader(&self) -> StatsReader {
        match self {
            Self::Host(loader) => loader.stats_reader(),
            #[cfg(feature = "cuda")]
            Self::Cuda(batches) => batches.stats_reader(),
        }
    }

    /// What became of the samples of the last epoch that ended.
    pub(crate) fn last_epoch(&self) -> Option<&EpochReport> {
        match self {
            Self::Host(loader) => loader.last_epoch(),
            #[cfg(feature = "cuda")]
            Self::Cuda(batches) => batches.last_epoch(),
        }
    }

    /// Who decoded since the loader started; `None` where there is only the processor to do it.
    pub(crate) fn decoder_stats(&self) -> Option<DecoderStats> {
        match self {
            Self::Host(loader) => loader.decoder_stats(),
            #[cfg(feature = "cuda")]
            Self::Cuda(batches) => batches.decoder_stats(),
        }
    }
}

impl TrainBatch {
    /// Epoch it belongs to, from 0.
    pub(crate) fn epoch(&self) -> u64 {
        match self {
            Self::Host(batch) => batch.epoch(),
            #[cfg(feature = "cuda")]
            Self::Cuda(batch) => batch.epoch(),
        }
    }

    /// Samples, in order.
    pub(crate) fn samples(&self) -> &[SampleRecord] {
        match self {
            Self::Host(batch) => batch.samples(),
            #[cfg(feature = "cuda")]
            Self::Cuda(batch) => batch.samples(),
        }
    }

    /// Calls `body` with the images.
    pub(crate) fn with_images<T>(&self, body: impl FnOnce(&Images<'_>) -> T) -> T {
        match self {
            Self::Host(batch) => {
                let images = (0..batch.len())
                    .map(|i| batch.pixels(i))
                    .collect::<Vec<_>>();
                body(&Images::Host(&images))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(batch) => body(&Images::Device(batch.tensor())),
        }
    }
}
