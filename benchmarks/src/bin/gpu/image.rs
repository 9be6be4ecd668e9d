//! Single images through the decoder that an engine set is named for, without a loader: who decodes
//! is not left to chance.
use std::sync::Arc;

use anyhow::{Context, ensure};
use nepa_benchmarks::device_report::print_verdict;
use nepa_benchmarks::samples;
use nepa_pipeline::{
    Accelerator, CpuRenderer, Decode, DecoderStats, Normalize, PixelType, PlannedImage, Target,
    cuda::CudaAccelerator, cuda::EngineConfig, cuda::cuda_decoders,
};

use crate::Bench;
use crate::pixels::Difference;

pub(crate) fn print(bench: &Bench, images: usize) -> bool {
    let set = bench.common.engines;
    let name = format!("single images, {}", set.title());
    print_verdict(&name, &decode(bench, images))
}

fn decode(bench: &Bench, images: usize) -> anyhow::Result<String> {
    let set = bench.common.engines;
    let engines = EngineConfig {
        verify_hardware: true,
        ..set.config()
    };
    let layout = bench.layout(PixelType::F32);
    let context = Arc::clone(bench.stream.context());
    let accelerator = CudaAccelerator::new(context, layout, &Normalize::default())?;
    let accelerator = Arc::new(accelerator);
    let decoders = cuda_decoders(&accelerator, engines)?;
    let mut decoder = (decoders.decoder)(&accelerator, layout)?;
    let mut batch_decoder = if engines.uses_hardware() {
        let made = (decoders.batch_decoders)(&accelerator, layout)?;
        let first = made.into_iter().next();
        Some(first.context("the device's JPEG engines are not used: see the log")?)
    } else {
        None
    };
    let stream = accelerator.stream()?;
    let memory = accelerator.memory(layout.slot_bytes())?;
    let mut renderer = CpuRenderer::default();
    let mut expected = vec![0f32; layout.slot_bytes() / 4];
    let mut difference = Difference::default();
    for (bytes, mut plan) in samples(&bench.dataset, images)? {
        let bytes = bytes::Bytes::from(bytes);
        plan.output_size = bench.side();
        let image = PlannedImage {
            bytes: &bytes,
            header: decoder.header(&bytes)?,
            views: std::slice::from_ref(&plan),
        };
        let mut target = Target {
            memory: &memory,
            offset_bytes: 0,
            layout,
            stream: &stream,
        };
        let suits = (decoders.batch_accepts)(&image) && decoder.suits_batch(&image);
        let mut decode = [Decode::new(image, &mut target)];
        match &mut batch_decoder {
            Some(batch) if suits => batch.decode(&mut decode)?,
            _ => decoder.decode(&mut decode)?,
        }
        let [decode] = decode;
        decode.result?;
        let found = memory.read(layout.slot_bytes(), &stream)?;
        renderer.render_plan(&bytes, &plan, &mut expected)?;
        difference.add(&Difference::floats(&found), &expected);
    }
    let stats = (decoders.stats)().unwrap_or_default();
    let DecoderStats {
        hardware,
        hybrid,
        cpu,
        ..
    } = stats;
    let decoded = if engines.uses_hardware() {
        hardware
    } else if engines.hybrid {
        hybrid
    } else {
        cpu
    };
    let within = difference.within(set.limits());
    let text = format!("{}; {stats}", within?);
    ensure!(decoded > 0, "none by the decoder that was meant: {text}");
    Ok(text)
}
