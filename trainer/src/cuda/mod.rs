//! The GPU loader's batches as candle tensors, without a copy. Built with the feature `cuda` only.
#![expect(
    unsafe_code,
    reason = "a candle tensor is made of memory that the loader owns"
)]
mod engine;
mod nccl;
mod sum;

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;

use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Storage, Tensor};
use half::bf16;
use nepa_pipeline::{
    BackendError, Batch, Dataset, DecoderStats, EpochReport, Loader, LoaderConfig, LoaderError,
    LoaderState, PipelineStats, PixelLayout, PixelType, SampleRecord, StatsReader,
    cuda::CudaBackend, cuda::EngineConfig, cuda::cuda_backend,
};

use crate::recipe::Precision;

pub use engine::CudaEngine;

/// The loader of a run on a GPU. Batches are filled on streams of the loader's own and handed over
/// to candle's stream by events.
pub struct CudaBatches {
    loader: Loader<CudaBackend>,
    device: CudaDevice,
    layout: PixelLayout,
    batch_size: usize,
    /// By the address of a batch's memory. Never dropped: the memory is the loader's, and a tensor
    /// would free it.
    tensors: HashMap<u64, ManuallyDrop<Tensor>>,
}

impl std::fmt::Debug for CudaBatches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaBatches")
            .field("loader", &self.loader)
            .finish_non_exhaustive()
    }
}

/// One batch in device memory.
#[derive(Debug)]
pub struct CudaBatch {
    /// A view that shares its memory with a tensor that is never dropped, so that dropping this one
    /// frees nothing.
    tensor: Tensor,
    batch: Batch<CudaBackend>,
}

impl CudaBatches {
    /// Starts the loader on the device's stream.
    pub fn open(
        dataset: Arc<Dataset>,
        config: LoaderConfig,
        state: Option<&LoaderState>,
        device: &CudaDevice,
        precision: Precision,
        engines: EngineConfig,
    ) -> Result<Self, LoaderError> {
        let layout = PixelLayout {
            pixel_type: match precision {
                Precision::F32 => PixelType::F32,
                Precision::Bf16 => PixelType::Bf16,
            },
            image_size: config.augment.build()?.view_sides()[0],
            patch_size: None,
        };
        let stream = device.cuda_stream();
        let engines = EngineConfig {
            exif_orientation: config.exif_orientation,
            ..engines
        };
        let backend = cuda_backend(stream, layout, &config.normalize, engines)?;
        let batch_size = config.global_batch / config.world_size;
        Ok(Self {
            loader: Loader::with_backend(dataset, config, state, Arc::new(backend))?,
            device: device.clone(),
            layout,
            batch_size,
            tensors: HashMap::new(),
        })
    }

    /// Waits for the next batch for at most `timeout`; whether [`Self::next_batch`] will not wait.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        self.loader.wait(timeout)
    }

    /// The next batch. Work that candle enqueues on it from now on comes after the pixels.
    pub fn next_batch(&mut self) -> Result<Option<CudaBatch>, LoaderError> {
        let Some(batch) = self.loader.next_batch()? else {
            return Ok(None);
        };
        let start = batch.memory().of_device().start();
        let whole = if let Some(tensor) = self.tensors.get(&start) {
            Tensor::clone(tensor)
        } else {
            // SAFETY: the loader's memory of one batch of this layout; this tensor is kept for
            // good.
            let tensor = unsafe { self.tensor(start) };
            let kept = ManuallyDrop::new(tensor.clone());
            self.tensors.insert(start, kept);
            tensor
        };
        let tensor = whole
            .narrow(0, 0, batch.len())
            .map_err(|error| BackendError {
                doing: "making a tensor of a batch",
                source: Box::new(error),
            })?;
        Ok(Some(CudaBatch { tensor, batch }))
    }

    /// A tensor `[B, 3, S, S]` over the memory of a batch.
    ///
    /// # Safety
    ///
    /// `start` is device memory for B slots of the layout, which outlives every use of the tensor;
    /// some clone of the tensor is never dropped.
    unsafe fn tensor(&self, start: u64) -> Tensor {
        let side = self.layout.image_size as usize;
        let shape = (self.batch_size, 3, side, side);
        let len = self.batch_size * 3 * side * side;
        let stream = self.device.cuda_stream();
        // SAFETY: the caller's promise. Both types allow all bits.
        let storage = unsafe {
            match self.layout.pixel_type {
                PixelType::F32 => CudaStorage::wrap_cuda_slice(
                    stream.upgrade_device_ptr::<f32>(start, len),
                    self.device.clone(),
                ),
                PixelType::Bf16 => CudaStorage::wrap_cuda_slice(
                    stream.upgrade_device_ptr::<bf16>(start, len),
                    self.device.clone(),
                ),
            }
        };
        Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
    }

    /// The position after the last batch handed out.
    pub fn state(&self) -> LoaderState {
        self.loader.state()
    }

    /// What each stage did since the loader started, and who decoded.
    pub fn stats(&self) -> PipelineStats {
        self.loader.stats()
    }

    /// Reads what the stages did, from any thread.
    pub fn stats_reader(&self) -> StatsReader {
        self.loader.stats_reader()
    }

    /// What became of the samples of the last epoch that ended.
    pub fn last_epoch(&self) -> Option<&EpochReport> {
        self.loader.last_epoch()
    }

    /// Who decoded since the loader started.
    pub fn decoder_stats(&self) -> Option<DecoderStats> {
        self.loader.decoder_stats()
    }
}

impl CudaBatch {
    /// Epoch it belongs to, from 0.
    pub fn epoch(&self) -> u64 {
        self.batch.epoch()
    }

    /// Samples, in order.
    pub fn samples(&self) -> &[SampleRecord] {
        self.batch.samples()
    }

    /// `[B, 3, S, S]` on the device, f32 or bf16. To be used before this batch is dropped only:
    /// then the loader writes the memory anew.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}
