//! The training step's device: kernels by the names that their PTX holds, products by cuBLASLt, memory and order as the driver wants them.
use nepa_model::cuda::CudaStepDevice;
use nepa_model::kernel_step::{FlatState, KernelStep, StepDevice};
use nepa_model::{NepaConfig, PretrainReport, RopeDraw, Weights, init_weights};
use nepa_pipeline::cuda::cudarc::driver::CudaContext;
use nepa_tests::emulated_device::EmulatedDevice;
use nepa_tests::standins;
use nepa_tests::step_variants::variants_of;

/// Two heads of 64, 16 patches, two blocks; LayerScale such that the blocks matter.
fn small() -> NepaConfig {
    NepaConfig {
        hidden_size: 128,
        num_attention_heads: 2,
        num_hidden_layers: 2,
        intermediate_size: 192,
        layerscale_value: 0.5,
        ..NepaConfig::tiny()
    }
}

fn pixels(config: &NepaConfig, batch: usize) -> Vec<Vec<f32>> {
    let len = 3 * config.image_size * config.image_size;
    let value = |image: usize, i: usize| ((i * 31 + image * 7919) % 255) as f32 / 127.5 - 1.0;
    let image = |image| (0..len).map(|i| value(image, i)).collect();
    (0..batch).map(image).collect()
}

/// Two micro-batches and an update: what the step reports, the gradient and the weights.
fn train<D: StepDevice>(
    config: &NepaConfig,
    weights: &Weights,
    device: D,
) -> (Vec<PretrainReport>, Vec<f32>, FlatState)
where
    D::Error: std::fmt::Debug + From<nepa_model::ModelError>,
{
    let pixels = pixels(config, 4);
    let mut step = KernelStep::new(config, 2, device).unwrap();
    step.load(&FlatState::new(weights.flat.clone())).unwrap();
    step.set_groups(|_| (0.1, 1.0)).unwrap();
    step.clear_gradient().unwrap();
    let mut reports = Vec::new();
    for (number, images) in pixels.chunks(2).enumerate() {
        let slices = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let rope = RopeDraw::draw(config, 1, 1, number as u64);
        let staged = step.stage(&slices).unwrap();
        reports.push(step.add_gradient(staged, &rope, 0.5).unwrap());
    }
    step.finish(Some(1.0)).unwrap();
    let gradient = step.read_gradient().unwrap();
    step.update(&nepa_model::kernel_step::Update {
        step: 1,
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        average_decay: Some(0.99),
    })
    .unwrap();
    (reports, gradient, step.export().unwrap())
}

#[test]
fn it_is_the_emulated_step_bit_for_bit() {
    for (number, (name, config)) in variants_of(&small()).into_iter().enumerate() {
        let standins = standins::load(100 + number as u64);
        let weights = init_weights(&config, 3);
        let context = CudaContext::new(0).unwrap();
        let device = CudaStepDevice::new(context.new_stream().unwrap()).unwrap();
        let found = train(&config, &weights, device);
        let expected = train(&config, &weights, EmulatedDevice::default());
        assert!(found == expected, "{name}");
        assert!(standins.count("cublasLtMatmul") > 50);
    }
}
