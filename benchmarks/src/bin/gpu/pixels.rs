//! Epochs of the device's loader against the CPU's: the same samples, plans and replacements, and
//! how far pixels are apart.
use std::sync::Arc;

use anyhow::ensure;
use nepa_benchmarks::device_report::print_verdict;
use nepa_benchmarks::open;
use nepa_pipeline::{Dataset, DecoderStats, Loader, PixelType, SampleRecord, cuda::EngineConfig};

use crate::Bench;
use crate::engines::EngineSet;

/// Images of a batch.
const BATCH: usize = 32;
/// Levels of a byte for one unit of a pixel that was normalised by 0.5 and 0.5.
const LEVELS: f64 = 127.5;

/// How far pixels are apart: values by their difference, in 16ths of a level.
#[derive(Debug)]
pub(crate) struct Difference {
    counts: Vec<u64>,
    sum: f64,
}

impl Default for Difference {
    fn default() -> Self {
        Self {
            counts: vec![0; 255 * 16 + 1],
            sum: 0.0,
        }
    }
}

impl Difference {
    pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
        let (values, _) = bytes.as_chunks::<4>();
        values
            .iter()
            .map(|value| f32::from_le_bytes(*value))
            .collect()
    }

    pub(crate) fn add(&mut self, found: &[f32], expected: &[f32]) {
        for (found, expected) in found.iter().zip(expected) {
            let levels = f64::from((found - expected).abs()) * LEVELS;
            // What is no number is as wrong as can be.
            let levels = if levels <= 255.0 { levels } else { 255.0 };
            self.counts[(levels * 16.0) as usize] += 1;
            self.sum += levels;
        }
    }

    /// The least difference, in levels, that so few values exceed.
    fn above(&self, exceeding: u64) -> f64 {
        let mut seen = 0;
        for (step, count) in self.counts.iter().enumerate().rev() {
            seen += count;
            if seen > exceeding {
                return step as f64 / 16.0;
            }
        }
        0.0
    }

    /// In words; an error if the mean, or one value in a thousand, is above its limit.
    pub(crate) fn within(&self, (mean_limit, tail_limit): (f64, f64)) -> anyhow::Result<String> {
        let num_values = self.counts.iter().sum::<u64>();
        ensure!(num_values > 0, "nothing was compared");
        let mean = self.sum / num_values as f64;
        let (tail, most) = (self.above(num_values / 1000), self.above(0));
        let text = format!(
            "off by {mean:.3}/255 on average, {tail:.1} in one of 1,000 values, {most:.1} at most"
        );
        ensure!(mean <= mean_limit && tail <= tail_limit, "{text}");
        Ok(text)
    }
}

/// One epoch.
struct Epoch {
    samples: Vec<SampleRecord>,
    pixels: Vec<f32>,
    decoders: DecoderStats,
}

impl Bench {
    fn on_cpu(&self, dataset: &Arc<Dataset>) -> anyhow::Result<Epoch> {
        let config = self.config(BATCH, Some(1));
        let mut loader = Loader::new(Arc::clone(dataset), config, None)?;
        let (mut samples, mut pixels) = (Vec::new(), Vec::new());
        while let Some(batch) = loader.next_batch()? {
            samples.extend_from_slice(batch.samples());
            pixels.extend_from_slice(batch.array());
        }
        let decoders = DecoderStats::default();
        Ok(Epoch {
            samples,
            pixels,
            decoders,
        })
    }

    fn on_device(&self, dataset: &Arc<Dataset>) -> anyhow::Result<Epoch> {
        let engines = EngineConfig {
            verify_hardware: true,
            ..self.common.engines.config()
        };
        let config = self.config(BATCH, Some(1));
        let mut loader = self.loader(dataset, config, PixelType::F32, engines)?;
        let slot_bytes = self.layout(PixelType::F32).slot_bytes();
        let (mut samples, mut pixels) = (Vec::new(), Vec::new());
        while let Some(batch) = loader.next_batch()? {
            let memory = batch.memory().of_device();
            let bytes = memory.read(batch.len() * slot_bytes, loader.backend().consumer())?;
            samples.extend_from_slice(batch.samples());
            pixels.extend(Difference::floats(&bytes));
        }
        let decoders = loader.decoder_stats().unwrap_or_default();
        Ok(Epoch {
            samples,
            pixels,
            decoders,
        })
    }

    /// The same samples and plans as on the CPU; pixels within the limits. Says how far they are
    /// apart, and who decoded.
    fn parity(
        &self,
        dataset: &Arc<Dataset>,
        found: &Epoch,
        limits: (f64, f64),
    ) -> anyhow::Result<String> {
        let expected = self.on_cpu(dataset)?;
        ensure!(
            found.samples == expected.samples,
            "samples, plans or replacements differ"
        );
        let mut difference = Difference::default();
        difference.add(&found.pixels, &expected.pixels);
        let text = |text: &dyn std::fmt::Display| {
            let (images, decoders) = (found.samples.len(), &found.decoders);
            format!("{images} images: {text}; {decoders}")
        };
        match difference.within(limits) {
            Ok(within) => Ok(text(&within)),
            Err(error) => Err(anyhow::anyhow!(text(&error))),
        }
    }

    /// Another epoch of the same seed, bit for bit.
    fn repeats(&self, first: &Epoch) -> anyhow::Result<String> {
        let second = self.on_device(&self.dataset)?;
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
        ensure!(
            first.pixels.len() == second.pixels.len()
                && first.pixels.iter().zip(&second.pixels).all(same),
            "two runs differ"
        );
        Ok(format!("two runs bit for bit; {}", second.decoders))
    }
}

pub(crate) fn print(bench: &Bench) -> bool {
    let set = bench.common.engines;
    let epoch = bench.on_device(&bench.dataset);
    let found = epoch
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error:#}"))
        .and_then(|epoch| bench.parity(&bench.dataset, epoch, set.limits()));
    let mut passed = print_verdict(&format!("pixels, {}", set.title()), &found);
    if let (EngineSet::Fixed, Ok(epoch)) = (set, &epoch) {
        passed &= print_verdict(&format!("again, {}", set.title()), &bench.repeats(epoch));
    }
    passed
}

pub(crate) fn print_zoo(bench: &Bench, zoo: &str) -> anyhow::Result<bool> {
    let set = bench.common.engines;
    let zoo = open(zoo, &bench.runtime)?;
    let parity = |dataset: &Arc<Dataset>, limits| {
        let found = bench.on_device(dataset)?;
        bench.parity(dataset, &found, limits)
    };
    // Damaged files may look different; only samples, plans and replacements count.
    let found = parity(&zoo, (f64::MAX, f64::MAX));
    let mut passed = print_verdict(&format!("odd and broken JPEGs, {}", set.title()), &found);
    let found = parity(&bench.dataset, set.limits());
    passed &= print_verdict(&format!("pixels after those, {}", set.title()), &found);
    Ok(passed)
}
