//! Does the GPU path of the loader give what the CPU's gives, and how fast is it?
//!
//! One question a process, so that a device that fails in one leaves the others. Prints rows of the
//! report that scripts/gpu-check gathers, with peers beside them; ends with code 3 if a row says
//! FAILED.
mod engines;
mod facts;
mod image;
mod pixels;
mod rate;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use nepa_benchmarks::{augment, open};
use nepa_pipeline::{
    AugmentConfig, Dataset, IoRuntime, Loader, LoaderConfig, Normalize, PixelLayout, PixelType,
    cuda::CudaBackend, cuda::EngineConfig, cuda::check_device, cuda::cuda_backend,
    cuda::cudarc::driver::CudaContext, cuda::cudarc::driver::CudaStream,
};

use engines::EngineSet;

/// Tests and rates of the loader on CUDA device 0.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Which device, driver and libraries are these, and which JPEG engines?
    Facts,
    /// Does an engine set decode single images as the CPU does?
    Image {
        #[command(flatten)]
        common: Common,
        /// Images, each on its own.
        #[arg(long, default_value_t = 4)]
        images: usize,
    },
    /// How many images a second does the loader give?
    Rate {
        #[command(flatten)]
        common: Common,
        /// Time of the measurement in seconds.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Are an epoch's pixels those of the CPU's loader?
    Pixels {
        #[command(flatten)]
        common: Common,
    },
    /// What becomes of odd and broken JPEGs, and of ordinary ones after them?
    Zoo {
        #[command(flatten)]
        common: Common,
        /// Shards of odd and broken JPEGs.
        #[arg(long)]
        zoo: String,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Shards of photos of usual sizes.
    data: String,
    /// Who decodes.
    #[arg(long)]
    engines: EngineSet,
    #[arg(long, default_value_t = 16)]
    decode_threads: usize,
    /// Crops of 32 pixels in batches of 32: to try this program out where it is slow. Its rates
    /// mean nothing then.
    #[arg(long)]
    tiny: bool,
}

/// What every question about an engine set needs.
struct Bench {
    dataset: Arc<Dataset>,
    runtime: IoRuntime,
    stream: Arc<CudaStream>,
    common: Common,
}

impl Bench {
    fn new(common: Common) -> anyhow::Result<Self> {
        let runtime = IoRuntime::new(2)?;
        check_device(0)?;
        Ok(Self {
            dataset: open(&common.data, &runtime)?,
            runtime,
            stream: CudaContext::new(0)?.new_stream()?,
            common,
        })
    }

    /// Side of the crops.
    fn side(&self) -> u32 {
        if self.common.tiny { 32 } else { 224 }
    }

    fn layout(&self, pixel_type: PixelType) -> PixelLayout {
        PixelLayout {
            pixel_type,
            image_size: self.side(),
            patch_size: None,
        }
    }

    fn backend(&self, pixel_type: PixelType, engines: EngineConfig) -> anyhow::Result<CudaBackend> {
        Ok(cuda_backend(
            Arc::clone(&self.stream),
            self.layout(pixel_type),
            &Normalize::default(),
            engines,
        )?)
    }

    fn config(&self, batch: usize, epochs: Option<u64>) -> LoaderConfig {
        let AugmentConfig::RandomResizedCrop {
            scale,
            ratio,
            flip,
            filter,
            ..
        } = augment()
        else {
            unreachable!("the recipe's augmentation")
        };
        LoaderConfig {
            seed: 1337,
            global_batch: batch,
            epochs,
            drop_last: false,
            augment: AugmentConfig::RandomResizedCrop {
                size: self.side(),
                scale,
                ratio,
                flip,
                filter,
                rand_augment: None,
                erase: None,
            },
            decode_threads: self.common.decode_threads,
            shuffle_window_bytes: 1 << 30,
            max_bad_fraction: 1.0,
            ..LoaderConfig::default()
        }
    }

    fn loader(
        &self,
        dataset: &Arc<Dataset>,
        config: LoaderConfig,
        pixel_type: PixelType,
        engines: EngineConfig,
    ) -> anyhow::Result<Loader<CudaBackend>> {
        let backend = Arc::new(self.backend(pixel_type, engines)?);
        let dataset = Arc::clone(dataset);
        Ok(Loader::with_backend(dataset, config, None, backend)?)
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let passed = match Args::parse().question {
        Question::Facts => facts::print()?,
        Question::Image { common, images } => image::print(&Bench::new(common)?, images),
        Question::Rate { common, seconds } => rate::print(&Bench::new(common)?, seconds),
        Question::Pixels { common } => pixels::print(&Bench::new(common)?),
        Question::Zoo { common, zoo } => pixels::print_zoo(&Bench::new(common)?, &zoo)?,
    };
    Ok(ExitCode::from(if passed { 0 } else { 3 }))
}
