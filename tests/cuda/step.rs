//! The training step on the driver and cuBLASLt: kernels by the names that their PTX holds, memory and
//! order as the driver wants them.
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use nepa_model::cuda::{CudaLauncher, CudaStepError, KernelDevice};
use nepa_model::step::device::Device as StepDevice;
use nepa_model::{
    Ablation, Classes, DropPath, FlatState, NepaConfig, Pass, PretrainReport, RopeDraw,
    StepOptions, Weights, init_weights,
};
use nepa_pipeline::cuda::cudarc::driver::CudaContext;
use nepa_tests::emulated_device::emulated;
use nepa_tests::standins;
use nepa_tests::step_variants::{small, variants_of};
use nepa_tests::stepping::{self, ADAMW, add};
use nepa_trainer::cuda::CudaEngine;
use nepa_trainer::engine::{
    Engine, EngineError, Images, PassDraw, StepInput, StepReport, TrainingSetup, TrainingState,
};
use nepa_trainer::optimizer::OptimizerConfig;

fn pixels(config: &NepaConfig, batch: usize) -> Vec<Vec<f32>> {
    let len = 3 * config.image_size * config.image_size;
    let value = |image: usize, i: usize| ((i * 31 + image * 7919) % 255) as f32 / 127.5 - 1.0;
    let image = |image| (0..len).map(|i| value(image, i)).collect();
    (0..batch).map(image).collect()
}

/// Two micro-batches and an update: what the step reports, the gradient and the weights.
fn train<D: StepDevice<Wide = f32>>(
    config: &NepaConfig,
    weights: &Weights,
    device: D,
) -> (Vec<PretrainReport>, Vec<f32>, FlatState) {
    let pixels = pixels(config, 4);
    let mut step = stepping::pretraining(config, &weights.flat, 2, device).unwrap();
    let mut reports = Vec::new();
    for (number, images) in pixels.chunks(2).enumerate() {
        let slices = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let rope = RopeDraw::draw(config, 1, 1, number as u64);
        reports.push(add(&mut step, &slices, &rope, 0.5).unwrap());
    }
    step.finish(Some(1.0)).unwrap();
    let gradient = step.read_gradient().unwrap();
    step.update(&ADAMW, &[1e-3]).unwrap();
    (reports, gradient, step.export().unwrap())
}

/// A device on a stream of its own.
fn launcher() -> Result<CudaLauncher, CudaStepError> {
    CudaLauncher::new(CudaContext::new(0).unwrap().new_stream().unwrap())
}

#[test]
fn it_is_the_emulated_step_bit_for_bit() {
    for (number, (name, config)) in variants_of(&small()).into_iter().enumerate() {
        let standins = standins::load(100 + number as u64);
        // So that all products are by the first algorithm, which sums in order.
        standins.set("equal_times", "1");
        let weights = init_weights(&config, 3);
        let found = train(&config, &weights, KernelDevice::new(launcher().unwrap()));
        let expected = train(&config, &weights, emulated(0));
        assert!(found == expected, "{name}");
        assert!(standins.count("cublasLtMatmul") > 50);
        assert_eq!(
            standins.count("modules of PTX"),
            0,
            "H100 has code of its own"
        );
    }
}

#[test]
fn a_classifier_is_the_emulated_one_bit_for_bit() {
    let standins = standins::load(140);
    standins.set("equal_times", "1");
    for add_pooling_layer in [true, false] {
        let config = NepaConfig {
            add_pooling_layer,
            is_causal: false,
            drop_path_prob: 0.5,
            ..small().to_classifier(Classes::Count(5))
        };
        let (weights, pixels) = (init_weights(&config, 3), pixels(&config, 3));
        let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let targets = [[0.6, 0.1, 0.1, 0.1, 0.1]; 3];
        let factors = DropPath::draw(&config, 4, 1, 0, 3);
        let pass = Pass {
            drop_path: factors.as_deref(),
            ..Pass::default()
        };
        let (weights, targets) = (&weights.flat, targets.as_flattened());
        let device = KernelDevice::new(launcher().unwrap());
        let found = stepping::classify(&config, weights, &slices, targets, &pass, device);
        let expected = stepping::classify(&config, weights, &slices, targets, &pass, emulated(0));
        assert!(found.unwrap() == expected.unwrap(), "{add_pooling_layer}");
    }
}

/// The names of all kernels in a folder.
fn kernels(folder: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let source = std::fs::read_to_string(entry.path()).unwrap();
        for kernel in source.split("extern \"C\" __global__").skip(1) {
            let before = kernel.split("(const ").next().unwrap();
            let name = before.split_whitespace().next_back().unwrap();
            names.push(name.to_owned());
        }
    }
    names
}

/// One step of two micro-batches of a batch that lies on the device, and an update.
fn step_on_device(engine: &mut CudaEngine, config: &NepaConfig, pixels: &Tensor) -> StepReport {
    let report = engine.step(&StepInput::unlabelled(
        Images::Device(pixels),
        &passes(config),
    ));
    engine.update(&RATES).unwrap();
    report.unwrap()
}

/// Of the two groups of pretraining's weights.
const RATES: [f64; 2] = [1e-3; 2];

fn passes(config: &NepaConfig) -> [PassDraw; 2] {
    [0, 1].map(|number| RopeDraw::draw(config, 1, 1, number).into())
}

fn engine(config: &NepaConfig, device: &Device) -> Result<CudaEngine, EngineError> {
    let state = TrainingState::new(init_weights(config, 3));
    let optimizer = OptimizerConfig::default();
    let groups = |name: &str| optimizer.group(name);
    let setup = TrainingSetup {
        config,
        update: optimizer.settings(),
        groups: &groups,
        micro_batch: 2,
        micro_batches: 2,
        exchange: None,
        ablation: Ablation::default(),
    };
    CudaEngine::new(&setup, state, device, 0)
}

fn tensor(config: &NepaConfig, batch: usize, dtype: DType) -> Tensor {
    let side = config.image_size;
    let pixels = Tensor::from_vec(
        pixels(config, batch).concat(),
        (batch, 3, side, side),
        &Device::Cpu,
    );
    // The CPU changes the type: candle's kernels are not here.
    let device = Device::new_cuda_with_stream(0).unwrap();
    pixels
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
        .to_device(&device)
        .unwrap()
}

#[test]
fn every_kernel_is_loaded_and_launched() {
    let standins = standins::load(1);
    for (_, config) in variants_of(&small()) {
        for dtype in [DType::F32, DType::BF16] {
            let pixels = tensor(&config, 4, dtype);
            let mut engine = engine(&config, pixels.device()).unwrap();
            let report = step_on_device(&mut engine, &config, &pixels);
            assert!(report.loss.is_finite() && report.grad_norm > 0.0);
            assert!(
                engine
                    .gradient()
                    .unwrap()
                    .iter()
                    .all(|value| value.is_finite())
            );
        }
    }
    // A classifier, through its own engine.
    let config = NepaConfig {
        add_pooling_layer: true,
        is_causal: false,
        ..small().to_classifier(Classes::Count(5))
    };
    let pixels = tensor(&config, 4, DType::BF16);
    let mut engine = engine(&config, pixels.device()).unwrap();
    let report = engine.step(&StepInput {
        images: Images::Device(&pixels),
        targets: Some([[0.6, 0.1, 0.1, 0.1, 0.1]; 4].as_flattened()),
        passes: &passes(&config),
    });
    let report = report.unwrap();
    // Of a head that is zero.
    assert!((report.loss - 5f64.ln()).abs() < 1e-5 && report.grad_norm > 0.0);
    engine.update(&RATES).unwrap();

    let names = kernels("../model/src/cuda/kernels");
    assert!(names.len() >= 21, "{names:?}");
    for name in names {
        assert!(standins.count(&name) > 0, "{name} was not launched");
    }
}

#[test]
fn a_run_keeps_its_algorithms() {
    let standins = standins::load(1);
    let config = small();
    let pixels = tensor(&config, 4, DType::F32);
    let mut seen = Vec::new();
    let mut saved = None;
    for seed in 0..12 {
        standins.restart(seed);
        standins.set("random_times", "1");
        let mut engine = engine(&config, pixels.device()).unwrap();
        if seed >= 6 {
            assert!(engine.take_choices(saved.as_ref().unwrap()));
        }
        let report = step_on_device(&mut engine, &config, &pixels);
        saved.get_or_insert(engine.choices().unwrap());
        seen.push((report, engine.export().unwrap()));
    }
    let same = |part: &[(StepReport, TrainingState)]| part.iter().all(|one| *one == seen[0]);
    assert!(same(&seen[6..]), "the saved algorithms were not taken");
    assert!(!same(&seen[..6]), "another algorithm would not show");

    // Those of another device or version are not taken.
    let mut engine = engine(&config, pixels.device()).unwrap();
    let mut other = saved.unwrap();
    other["cublaslt"] = 1.into();
    assert!(!engine.take_choices(&other));
    assert!(!engine.take_choices(&serde_json::json!("no choices")));
}

#[test]
fn what_is_not_clearly_faster_is_not_chosen() {
    let standins = standins::load(2);
    let config = small();
    let pixels = tensor(&config, 4, DType::F32);
    let run = |seed, times| {
        standins.restart(seed);
        standins.set(times, "1");
        let mut engine = engine(&config, pixels.device()).unwrap();
        step_on_device(&mut engine, &config, &pixels);
        engine.choices().unwrap()
    };
    assert!(run(1, "equal_times") == run(2, "equal_times"));
    assert!(run(1, "random_times") != run(2, "random_times"));
}

#[test]
fn each_device_loads_what_it_can_run() {
    let standins = standins::load(3);
    for (capability, code, ptx) in [("80", 7, 0), ("86", 7, 0), ("90", 7, 0), ("100", 0, 7)] {
        standins.restart(3);
        standins.set("capability", capability);
        let found = launcher();
        assert!(found.is_ok(), "{capability}: {found:?}");
        assert_eq!(
            standins.count("modules of machine code"),
            code,
            "{capability}"
        );
        assert_eq!(standins.count("modules of PTX"), ptx, "{capability}");
    }
    // The shared memory of a small GPU: 99 KiB a block.
    standins.set("capability", "86");
    let large = NepaConfig {
        image_size: 14 * 20,
        patch_size: 14,
        ..small()
    };
    let options = |config| StepOptions::pretraining(config, 1);
    let error = launcher().unwrap().check(&large, &options(&large));
    let error = error.unwrap_err().to_string();
    for part in ["400 tokens", "101376", "larger patches"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let small = small();
    launcher().unwrap().check(&small, &options(&small)).unwrap();
}

#[test]
fn memory_that_does_not_fit_is_refused_with_what_does() {
    let standins = standins::load(4);
    let config = small();
    let device = Device::new_cuda_with_stream(0).unwrap();
    standins.set("memory", "800");
    engine(&config, &device).unwrap();
    standins.set("memory", "700");
    let error = engine(&config, &device).map(drop).unwrap_err();
    assert!(
        matches!(error, EngineError::Memory { fits: 0, .. }),
        "{error}"
    );
    for part in ["workspace of matmuls", "kernels of the libraries"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_refusal_of_the_driver_is_an_error_that_says_what_was_done() {
    let standins = standins::load(5);
    let config = small();
    let pixels = tensor(&config, 4, DType::F32);
    let passes = passes(&config);
    for (function, status) in [
        ("cuModuleLoadData", 209),
        ("cuModuleGetFunction", 500),
        ("cuFuncSetAttribute", 1),
        ("cuMemAlloc_v2", 2),
        ("cuLaunchKernel", 700),
        ("cuMemsetD8Async", 700),
        ("cuMemcpyHtoDAsync_v2", 700),
        ("cuMemcpyDtoHAsync_v2", 700),
        ("cuStreamSynchronize", 719),
        ("cuEventRecord", 400),
        ("cublasLtCreate", 1),
        ("cublasLtMatmulDescCreate", 3),
        ("cublasLtMatmulDescSetAttribute", 7),
        ("cublasLtMatrixLayoutCreate", 3),
        ("cublasLtMatmulPreferenceSetAttribute", 7),
        ("cublasLtMatmulAlgoGetHeuristic", 15),
        ("cublasLtMatmul", 14),
    ] {
        for when in ["1", "2-", "30-"] {
            standins.restart(5);
            standins.set("fault", &format!("{function}:{status}:{when}"));
            let run = || {
                let mut engine = engine(&config, pixels.device())?;
                engine.step(&StepInput::unlabelled(Images::Device(&pixels), &passes))?;
                engine.update(&RATES)
            };
            let result = run();
            // Of the products, the one that fails is a candidate; then the others serve.
            if when == "1" && function != "cublasLtMatmul" {
                assert!(result.is_err(), "{function}:{status}:{when}");
            }
            if let Err(error) = result {
                let error = format!("{:#}", anyhow::Error::from(error));
                assert!(error.contains("failed"), "{function}: {error}");
            }
        }
    }
}
