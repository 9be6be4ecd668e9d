//! Features of images: a model's layers, pooled, or the pixels themselves.
use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Tensor};
use nepa_model::cpu::CpuDevice;
use nepa_model::{ModelError, Nepa, Pass, Step, StepOptions};

/// One row an image, `[N, width]`, with its class.
#[derive(Debug, Clone, Default)]
pub(crate) struct Features {
    values: Vec<f32>,
    width: usize,
    classes: Vec<usize>,
}

impl Features {
    /// An empty set of features of that width.
    pub(crate) fn new(width: usize) -> Self {
        Self {
            values: Vec::new(),
            width,
            classes: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, feature: &[f32], class: usize) {
        assert_eq!(feature.len(), self.width, "features of one kind");
        self.values.extend(feature);
        self.classes.push(class);
    }

    pub(crate) fn len(&self) -> usize {
        self.classes.len()
    }

    /// Values of one image.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// All values, row by row.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The class of each row.
    pub(crate) fn classes(&self) -> &[usize] {
        &self.classes
    }

    /// Share of the most frequent class.
    pub(crate) fn most_frequent(&self) -> f64 {
        let mut counts = vec![0u64; self.num_classes()];
        for class in &self.classes {
            counts[*class] += 1;
        }
        counts.iter().max().copied().unwrap_or(0) as f64 / self.len().max(1) as f64
    }

    /// Number of classes, as seen here.
    pub(crate) fn num_classes(&self) -> usize {
        self.classes.iter().max().map_or(0, |class| class + 1)
    }
}

/// Where in the model a feature is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    /// The output of block N, from 1; 0 is what goes into the first block.
    Block(usize),
    /// The output of the norm after the last block.
    Last,
}

impl Layer {
    /// Every layer of a model with so many blocks.
    pub(crate) fn all(num_blocks: usize) -> Vec<Self> {
        (0..=num_blocks)
            .map(Self::Block)
            .chain([Self::Last])
            .collect()
    }

    /// Its place in [`Nepa::hidden_states`] of a model with so many blocks.
    fn index(self, num_blocks: usize) -> usize {
        match self {
            Self::Block(block) => block,
            Self::Last => num_blocks + 1,
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(block) => f.pad(&block.to_string()),
            Self::Last => f.pad("last"),
        }
    }
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "last" => Ok(Self::Last),
            number => number
                .parse()
                .map(Self::Block)
                .map_err(|_| format!("'{text}' is neither the number of a block nor 'last'")),
        }
    }
}

/// How the tokens of a layer become one feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pool {
    /// Mean over the patch tokens.
    PatchMean,
    /// The class token, which sees nothing but itself under causal attention.
    ClassToken,
}

/// Reads features of one model: by the model's own step on the processor, else by candle's
/// operations.
pub(crate) struct LayerReader<'a> {
    model: &'a Nepa,
    causal: bool,
    /// Made for the largest batch so far.
    step: Option<Step<CpuDevice<f32>>>,
}

impl<'a> LayerReader<'a> {
    /// A reader whose tokens see those before only, or all.
    pub(crate) fn new(model: &'a Nepa, causal: bool) -> Self {
        Self {
            model,
            causal,
            step: None,
        }
    }

    /// Features of a batch, `[B, D]` a layer. `pixels` is `[B, 3, S, S]`, normalised, on the
    /// model's device.
    pub(crate) fn features(
        &mut self,
        pixels: &Tensor,
        layers: &[Layer],
        pool: Pool,
    ) -> Result<Vec<Vec<Vec<f32>>>, ModelError> {
        if !pixels.device().is_cpu() {
            let states = self.model.hidden_states(pixels, self.causal)?;
            let blocks = self.model.config().num_hidden_layers;
            let of_layer = |layer: &Layer| -> Result<_, ModelError> {
                let state = &states[layer.index(blocks)];
                Ok(pooled(state, pool)?.to_dtype(DType::F32)?.to_vec2()?)
            };
            return layers.iter().map(of_layer).collect();
        }
        let images = pixels.flatten_from(1)?.to_vec2::<f32>()?;
        let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
        let step = self.step_for(images.len())?;
        let staged = step.stage(&images)?;
        step.forward(staged, images.len(), &Pass::default())?;
        let width = step.config().hidden_size;
        let of_layer = |layer: &Layer| {
            let state = match layer {
                Layer::Block(block) => step.read_hidden(*block)?,
                Layer::Last => step.read_output()?,
            };
            let tokens = state.len() / images.len() / width;
            let shape = (images.len(), tokens, width);
            let state = Tensor::from_vec(state, shape, pixels.device())?;
            Ok(pooled(&state, pool)?.to_vec2()?)
        };
        layers.iter().map(of_layer).collect()
    }

    fn step_for(&mut self, images: usize) -> Result<&mut Step<CpuDevice<f32>>, ModelError> {
        let fits = |step: &Step<CpuDevice<f32>>| step.options().images >= images;
        if !self.step.as_ref().is_some_and(fits) {
            let options = StepOptions::inference(self.model.config(), images, self.causal);
            let mut step = Step::new(self.model.config(), &options, CpuDevice::default())?;
            step.load_weights(&self.model.flat_weights()?)?;
            self.step = Some(step);
        }
        Ok(self.step.as_mut().expect("made above"))
    }
}

/// `[B, T, D]` to `[B, D]`.
fn pooled(state: &Tensor, pool: Pool) -> Result<Tensor, ModelError> {
    Ok(match pool {
        Pool::PatchMean => state.narrow(1, 1, state.dim(1)? - 1)?.mean(1)?,
        Pool::ClassToken => state.narrow(1, 0, 1)?.squeeze(1)?,
    })
}

/// The pixels of a batch as features, `[B, 3 S S]`.
pub(crate) fn pixel_features(pixels: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
    Ok(pixels.flatten_from(1)?.to_vec2::<f32>()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use nepa_model::{NepaConfig, init_weights};

    use super::*;

    #[test]
    fn layers_and_pools() {
        let config = NepaConfig::tiny();
        let blocks = config.num_hidden_layers;
        let model = Nepa::new(&config, &init_weights(&config, 3), DType::F32, &Device::Cpu)
            .expect("a model");
        let side = config.image_size;
        let pixels = Tensor::randn(0f32, 1.0, (2, 3, side, side), &Device::Cpu).expect("pixels");
        let layers = Layer::all(blocks);
        assert_eq!(layers.len(), blocks + 2);
        let read = |causal, pool| {
            let mut reader = LayerReader::new(&model, causal);
            // A smaller batch first: the reader grows.
            let one = pixels.narrow(0, 0, 1).expect("one image");
            reader.features(&one, &layers, pool).expect("features");
            reader.features(&pixels, &layers, pool).expect("features")
        };
        let found = read(false, Pool::PatchMean);
        let states = model.hidden_states(&pixels, false).expect("states");
        for (layer, state) in states.iter().enumerate() {
            let expected = pooled(state, Pool::PatchMean).and_then(|mean| Ok(mean.to_vec2()?));
            let expected: Vec<Vec<f32>> = expected.expect("values");
            for (found, expected) in found[layer].iter().flatten().zip(expected.iter().flatten()) {
                assert!((found - expected).abs() < 1e-5, "layer {layer}");
            }
        }
        assert_ne!(found[blocks], found[blocks + 1], "the norm comes between");
        // Under causal attention, the class token is the same for every image.
        let class = read(true, Pool::ClassToken);
        assert!(class.iter().all(|layer| layer[0] == layer[1]));
        let class = read(false, Pool::ClassToken);
        assert_ne!(class[1][0], class[1][1]);
        let flat = pixel_features(&pixels).expect("pixels");
        assert_eq!((flat.len(), flat[0].len()), (2, 3 * side * side));
    }

    #[test]
    fn names_of_layers() {
        for (text, layer) in [
            ("last", Layer::Last),
            ("0", Layer::Block(0)),
            ("12", Layer::Block(12)),
        ] {
            assert_eq!(text.parse(), Ok(layer));
            assert_eq!(layer.to_string(), text);
        }
        assert!("first".parse::<Layer>().is_err());
    }
}
