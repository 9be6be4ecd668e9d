//! What a recipe and the command line become before the first step: resolved recipe, data set,
//! device, engine. Called by the pretraining run and by the measurement of overlap.
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device};
use nepa_model::{NepaConfig, RopeDraw};
use nepa_pipeline::{Dataset, DatasetConfig, IoRuntime, LoaderConfig};

use super::options::Options;
use crate::data::show_warnings;
use crate::device;
use crate::engine::{AutogradEngine, CpuEngine, Engine, EngineError, TrainingState};
use crate::error::RunError;
use crate::optimizer::OptimizerConfig;
use crate::recipe::{EngineChoice, Precision, Recipe, ResolvedRecipe};

/// A run before its first step.
pub(crate) struct Setup {
    pub recipe: ResolvedRecipe,
    pub dataset: Arc<Dataset>,
    pub device: Device,
    pub runtime: IoRuntime,
}

impl Setup {
    /// Reads and checks the recipe, then opens the device and the data set.
    pub(crate) fn new(options: &Options) -> Result<Self, RunError> {
        let mut recipe = Recipe::read(&options.recipe, &options.sets)?;
        if !options.data.is_empty() {
            recipe.data.urls.clone_from(&options.data);
            recipe.data.mixture.clear();
        }
        recipe.check(1)?;
        for line in recipe.replaced() {
            eprintln!("{line}");
        }
        if let Some(warning) = recipe.slow_precision() {
            crate::console::print::message("warning: ", warning);
        }
        let device = device::open(recipe.device)?;
        let runtime =
            IoRuntime::new(recipe.loader.io_threads.unwrap_or(2)).map_err(RunError::Start)?;
        let schema = nepa_schemas::SchemaOptions {
            image_column: recipe.data.image_column.clone(),
            // Pretraining reads no labels.
            label_column: Some(String::new()),
            ..nepa_schemas::SchemaOptions::default()
        };
        let mut dataset_config = DatasetConfig {
            urls: recipe.data.urls.clone(),
            schema,
            mixture: recipe.data.mixture.clone(),
            split: recipe.data.split.clone(),
            strict: recipe.data.strict,
        };
        for source in &mut dataset_config.mixture {
            source.schema.label_column = Some(String::new());
        }
        let dataset = Dataset::open(&dataset_config, &recipe.io, &runtime)?;
        show_warnings(&dataset);
        let recipe = recipe.resolve(dataset.num_samples(), dataset.fingerprint())?;
        Ok(Self {
            recipe,
            dataset,
            device,
            runtime,
        })
    }
}

/// The engine that the recipe names.
pub(crate) fn engine(
    recipe: &ResolvedRecipe,
    training: TrainingState,
    device: &Device,
) -> Result<Box<dyn Engine>, EngineError> {
    let train = &recipe.train;
    build_engine(
        train.engine,
        train.precision,
        &recipe.model,
        &recipe.optimizer,
        training,
        train.micro_batch,
        device,
        recipe.loader_device_bytes(),
    )
}

/// An engine for micro-batches of so many images, on a device where the loader will take so many
/// bytes.
#[expect(
    clippy::too_many_arguments,
    reason = "all that decides which engine it is, once"
)]
pub(crate) fn build_engine(
    choice: EngineChoice,
    precision: Precision,
    model: &NepaConfig,
    optimizer: &OptimizerConfig,
    training: TrainingState,
    micro_batch: usize,
    device: &Device,
    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_variables, reason = "there is no device but the processor")
    )]
    loader_bytes: u64,
) -> Result<Box<dyn Engine>, EngineError> {
    let matmul = match (choice, precision) {
        (EngineChoice::Cpu, _) => {
            let engine = CpuEngine::new(model, optimizer, training, micro_batch)?;
            return Ok(Box::new(engine));
        }
        #[cfg(feature = "cuda")]
        (EngineChoice::Cuda, _) if device.is_cuda() => {
            let engine = crate::cuda::CudaEngine::new(
                model,
                optimizer,
                training,
                micro_batch,
                device,
                loader_bytes,
            )?;
            return Ok(Box::new(engine));
        }
        (EngineChoice::Cuda, _) => return Err(EngineError::NeedsCuda),
        (EngineChoice::Autograd, Precision::F32) => DType::F32,
        (EngineChoice::Autograd, Precision::Bf16) => DType::BF16,
    };
    let engine = AutogradEngine::new(model, optimizer, training, device, matmul)?;
    Ok(Box::new(engine))
}

/// The rotary draws of one step, one a micro-batch.
pub(crate) fn ropes(recipe: &ResolvedRecipe, step: u64) -> Vec<RopeDraw> {
    (0..recipe.train.accumulation as u64)
        .map(|micro_batch| RopeDraw::draw(&recipe.model, recipe.seed, step, micro_batch))
        .collect()
}

/// The loader's configuration; bad samples are listed in a file, if one is given.
pub(crate) fn loader_config(
    recipe: &ResolvedRecipe,
    bad_samples_path: Option<PathBuf>,
) -> LoaderConfig {
    LoaderConfig {
        seed: recipe.seed,
        global_batch: recipe.train.batch,
        augment: recipe.data.augment.clone(),
        normalize: recipe.data.normalize,
        exif_orientation: recipe.data.exif_orientation,
        decode_threads: recipe.decode_threads,
        prefetch_batches: recipe.prefetch_batches,
        shuffle_window_bytes: recipe.data.shuffle_window_bytes,
        max_bad_fraction: recipe.data.max_bad_fraction,
        bad_samples_path,
        ..LoaderConfig::default()
    }
}
