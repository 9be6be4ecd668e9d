//! Logits of a classifier: by the model's own step on the processor, else by candle's operations.
use candle_core::{DType, Device, Tensor};
use nepa_model::cpu::CpuDevice;
use nepa_model::{ModelError, Nepa, NepaConfig, Pass, Step, StepOptions, Weights};

/// A classifier that is asked, not trained.
pub(crate) enum Classifier<'a> {
    /// On the processor.
    Step {
        config: &'a NepaConfig,
        weights: &'a Weights,
        /// Made for the largest batch so far.
        step: Option<Box<Step<CpuDevice<f32>>>>,
    },
    /// On another device.
    Candle(Box<Nepa>, Device),
}

impl<'a> Classifier<'a> {
    /// On `device`.
    pub(crate) fn new(
        config: &'a NepaConfig,
        weights: &'a Weights,
        device: &Device,
    ) -> Result<Self, ModelError> {
        if device.is_cpu() {
            return Ok(Self::Step {
                config,
                weights,
                step: None,
            });
        }
        let model = Nepa::new(config, weights, DType::F32, device)?;
        Ok(Self::Candle(Box::new(model), device.clone()))
    }

    /// Of each of the images `[B, 3, S, S]`, normalised, on the processor, the logits `[K]`.
    pub(crate) fn logits(&mut self, pixels: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
        let (config, weights, made) = match self {
            Self::Candle(model, device) => {
                return Ok(model.logits(&pixels.to_device(device)?)?.to_vec2()?);
            }
            Self::Step {
                config,
                weights,
                step,
            } => (*config, *weights, step),
        };
        let images = pixels.flatten_from(1)?.to_vec2::<f32>()?;
        let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
        let step = match made {
            Some(step) if step.options().images >= images.len() => step,
            too_small => {
                let causal = config.is_causal;
                let options = StepOptions::inference(config, images.len(), causal);
                let mut step = Step::new(config, &options, CpuDevice::default())?;
                step.load_weights(&weights.flat)?;
                too_small.insert(Box::new(step))
            }
        };
        let staged = step.stage(&images)?;
        step.forward(staged, images.len(), &Pass::default())?;
        let logits = step.logits()?;
        let classes = logits.len() / images.len();
        Ok(logits.chunks(classes).map(<[f32]>::to_vec).collect())
    }
}

#[cfg(test)]
mod tests {
    use nepa_model::{Classes, init_weights};

    use super::*;

    /// The step's logits are those of candle's operations, for both heads, in a batch that is not
    /// full, too; and the reader grows.
    #[test]
    fn logits_are_those_of_the_reference() {
        for (add_pooling_layer, is_causal) in [(true, false), (false, true), (false, false)] {
            let config = NepaConfig {
                add_pooling_layer,
                is_causal,
                ..NepaConfig::tiny().to_classifier(Classes::Count(7))
            };
            let mut weights = init_weights(&config, 5);
            // The head of new weights is zero.
            for (index, value) in weights.flat.iter_mut().enumerate() {
                *value += 0.05 * ((index * 7919) as f32).sin();
            }
            let side = config.image_size;
            let pixels = Tensor::randn(0f32, 1.0, (5, 3, side, side), &Device::Cpu).unwrap();
            let model = Nepa::new(&config, &weights, DType::F32, &Device::Cpu).unwrap();
            let expected: Vec<Vec<f32>> = model.logits(&pixels).unwrap().to_vec2().unwrap();
            let mut classifier = Classifier::new(&config, &weights, &Device::Cpu).unwrap();
            for (start, count) in [(0, 2), (0, 5), (2, 3)] {
                let some = pixels.narrow(0, start, count).unwrap();
                let found = classifier.logits(&some).unwrap();
                assert_eq!((found.len(), found[0].len()), (count, 7));
                for (found, expected) in found.iter().zip(&expected[start..]) {
                    for (found, expected) in found.iter().zip(expected) {
                        assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
                    }
                }
            }
            let spread = expected[0].iter().any(|value| value.abs() > 1e-2);
            assert!(spread, "the logits are not all alike: {expected:?}");
        }
    }
}
