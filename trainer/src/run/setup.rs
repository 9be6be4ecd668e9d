//! What a recipe and the command line become before the first step: resolved recipe, data sets,
//! device, engine. Called by a run and by the measurement of overlap.
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device};
use nepa_pipeline::{Dataset, DatasetConfig, IoRuntime, LoaderConfig};
use nepa_schemas::SchemaOptions;

use super::draws::micro_batches;
use super::options::Options;
use super::phase::Phase;
use super::shared_data::open_shared;
use crate::data::show_warnings;
use crate::device;
use crate::engine::{
    AutogradEngine, CpuEngine, Engine, EngineError, Exchange, Summing, TrainingSetup, TrainingState,
};
use crate::error::RunError;
use crate::output::is_local;
use crate::ranks::Ranks;
use crate::recipe::{EngineChoice, Precision, Recipe, ResolvedRecipe, SumChoice};

/// A run before its first step.
pub(crate) struct Setup {
    pub recipe: ResolvedRecipe,
    pub phase: Box<dyn Phase>,
    pub dataset: Arc<Dataset>,
    pub device: Device,
    pub runtime: IoRuntime,
}

/// `--data` in place of the recipe's.
pub(crate) fn take_data(recipe: &mut Recipe, options: &Options) {
    if !options.data.is_empty() {
        recipe.data.urls.clone_from(&options.data);
        recipe.data.mixture.clear();
    }
}

/// Says what is to be said of a recipe, and opens this rank's device and its threads for network
/// and disk.
pub(crate) fn open_device(recipe: &Recipe, ranks: &Ranks) -> Result<(Device, IoRuntime), RunError> {
    for line in recipe.replaced() {
        eprintln!("{line}");
    }
    if let Some(warning) = recipe.slow_precision() {
        crate::console::print::message("warning: ", warning);
    }
    let device = if ranks.is_alone() {
        device::open(recipe.device)?
    } else {
        device::open_of_rank(recipe.device, ranks.local_rank())?
    };
    let threads = recipe.loader.io_threads.unwrap_or(2);
    Ok((device, IoRuntime::new(threads).map_err(RunError::Start)?))
}

/// The data set of a recipe, with labels of that column: an empty name reads none, and without one
/// the column is found.
pub(crate) fn dataset_config(recipe: &Recipe, label_column: Option<String>) -> DatasetConfig {
    let mut config = DatasetConfig {
        urls: recipe.data.urls.clone(),
        schema: SchemaOptions {
            image_column: recipe.data.image_column.clone(),
            label_column: label_column.clone(),
            ..SchemaOptions::default()
        },
        mixture: recipe.data.mixture.clone(),
        split: recipe.data.split.clone(),
        strict: recipe.data.strict,
        index: recipe.data.index.clone(),
    };
    for source in &mut config.mixture {
        source.schema.label_column.clone_from(&label_column);
    }
    config
}

/// Opens it, with the other ranks.
pub(crate) fn open_dataset(
    recipe: &Recipe,
    label_column: Option<String>,
    runtime: &IoRuntime,
    ranks: &Ranks,
) -> Result<Arc<Dataset>, RunError> {
    let config = dataset_config(recipe, label_column);
    let dataset = open_shared(&config, &recipe.io, runtime, ranks)?;
    show_warnings(&dataset);
    Ok(dataset)
}

/// Whether any of it lies in a store.
pub(crate) fn is_remote(dataset: &Dataset) -> bool {
    let mut shards = dataset.shards().iter();
    shards.any(|shard| !is_local(&shard.url))
}

/// The engine that the recipe names, for this rank's part of each step.
pub(crate) fn engine(
    recipe: &ResolvedRecipe,
    phase: &dyn Phase,
    training: TrainingState,
    device: &Device,
    ranks: &Ranks,
) -> Result<Box<dyn Engine>, EngineError> {
    let train = &recipe.train;
    let exchange = (!ranks.is_alone()).then(|| -> Arc<dyn Exchange> {
        Arc::new(ranks.with_summing(Summing {
            between_gpus: recipe.sums_by_nccl(),
            by_library: train.sum == SumChoice::Library,
        }))
    });
    let setup = TrainingSetup {
        config: &recipe.model,
        update: recipe.optimizer.settings(),
        groups: &|name| phase.group(recipe, name),
        micro_batch: train.micro_batch,
        micro_batches: micro_batches(recipe, ranks).len(),
        exchange: exchange.as_ref(),
        ablation: recipe.ablation,
    };
    build_engine(
        (train.engine, train.precision),
        &setup,
        training,
        device,
        recipe.loader_device_bytes(),
    )
}

/// An engine on a device where the loader will take so many bytes.
pub(crate) fn build_engine(
    choice: (EngineChoice, Precision),
    setup: &TrainingSetup<'_>,
    training: TrainingState,
    device: &Device,
    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_variables, reason = "there is no device but the processor")
    )]
    loader_bytes: u64,
) -> Result<Box<dyn Engine>, EngineError> {
    let matmul = match choice {
        (EngineChoice::Cpu, _) => return Ok(Box::new(CpuEngine::new(setup, training)?)),
        #[cfg(feature = "cuda")]
        (EngineChoice::Cuda, _) if device.is_cuda() => {
            let engine = crate::cuda::CudaEngine::new(setup, training, device, loader_bytes)?;
            return Ok(Box::new(engine));
        }
        (EngineChoice::Cuda, _) => return Err(EngineError::NeedsCuda),
        (EngineChoice::Autograd, Precision::F32) => DType::F32,
        (EngineChoice::Autograd, Precision::Bf16) => DType::BF16,
    };
    let engine = AutogradEngine::new(setup, training, device, matmul)?;
    Ok(Box::new(engine))
}

/// The loader's configuration for this rank's part of each batch; bad samples are listed in a file,
/// if one is given. Whether they are too many, several ranks decide together.
pub(crate) fn loader_config(
    recipe: &ResolvedRecipe,
    bad_samples_path: Option<PathBuf>,
    ranks: &Ranks,
) -> LoaderConfig {
    let max_bad_fraction = if ranks.is_alone() {
        recipe.data.max_bad_fraction
    } else {
        1.0
    };
    LoaderConfig {
        seed: recipe.seed,
        global_batch: recipe.train.batch,
        lanes: recipe.data.lanes,
        rank: ranks.rank(),
        world_size: ranks.size(),
        augment: recipe.data.augment.clone(),
        normalize: recipe.data.normalize,
        exif_orientation: recipe.data.exif_orientation,
        decode_threads: recipe.decode_threads,
        prefetch_batches: recipe.prefetch_batches,
        shuffle_window_bytes: recipe.data.shuffle_window_bytes,
        max_bad_fraction,
        bad_samples_path,
        ..LoaderConfig::default()
    }
}
