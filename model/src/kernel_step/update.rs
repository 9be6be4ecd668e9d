//! The end of a step on the device: LayerScale's gradients, the norm, AdamW; and the way of all
//! state to the device and back.
use super::arguments::{AdamW, CopyToBf16, GradientNorm, LayerScale, NORM_RESULT_BYTES, Segment};
use super::{KernelStep, StepDevice};

/// All that training changes, flat, in the order of [`crate::Weights`].
#[derive(Debug, Clone, PartialEq)]
pub struct FlatState {
    /// Weights.
    pub weights: Vec<f32>,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// Moving average of the weights; empty if there is none yet.
    pub average: Vec<f32>,
}

impl FlatState {
    /// The state before the first step.
    pub fn new(weights: Vec<f32>) -> Self {
        let zeros = vec![0.0; weights.len()];
        Self {
            weights,
            m: zeros.clone(),
            v: zeros,
            average: Vec::new(),
        }
    }
}

/// One update of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Number of the update, from 1.
    pub step: u64,
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of the moving average; it starts as a copy after the first update. `None` keeps none.
    pub average_decay: Option<f64>,
}

impl<D: StepDevice> KernelStep<D> {
    /// Weight decay and factor of the learning rate of each weight, by its name.
    pub fn set_groups(&mut self, of: impl Fn(&str) -> (f64, f64)) -> Result<(), D::Error> {
        let runs = self.layout.runs(of);
        let segments = runs
            .into_iter()
            .map(|(range, (weight_decay, lr_factor))| Segment {
                start: range.start as u64,
                end: range.end as u64,
                weight_decay,
                lr_factor,
            });
        let bytes: Vec<[u8; 32]> = segments.map(|segment| segment.bytes()).collect();
        self.num_segments = bytes.len() as u32;
        self.device
            .write(self.regions.segments, bytes.as_flattened())
    }

    /// Takes over a state.
    pub fn load(&mut self, state: &FlatState) -> Result<(), D::Error> {
        let flat = self.regions.flat;
        self.has_average = !state.average.is_empty();
        for (address, values) in [
            (flat.weights, &state.weights),
            (flat.m, &state.m),
            (flat.v, &state.v),
            (flat.average, &state.average),
        ] {
            if !values.is_empty() {
                let arena = self.layout.to_arena(values);
                self.device.write(address, bytemuck::cast_slice(&arena))?;
            }
        }
        let copy = CopyToBf16 {
            values: flat.weights,
            copy: flat.weights_bf16,
            len: self.layout.len() as u64,
        };
        self.device.launch(copy.launch())
    }

    /// A copy of the state.
    pub fn export(&mut self) -> Result<FlatState, D::Error> {
        let flat = self.regions.flat;
        Ok(FlatState {
            weights: self.read_arena(flat.weights)?,
            m: self.read_arena(flat.m)?,
            v: self.read_arena(flat.v)?,
            average: if self.has_average {
                self.read_arena(flat.average)?
            } else {
                Vec::new()
            },
        })
    }

    /// A copy of the gradient, in the order of [`crate::Weights`].
    pub fn read_gradient(&mut self) -> Result<Vec<f32>, D::Error> {
        self.read_arena(self.regions.flat.gradient)
    }

    fn read_arena(&mut self, address: u64) -> Result<Vec<f32>, D::Error> {
        let mut arena = vec![0.0f32; self.layout.len()];
        self.device
            .read(address, bytemuck::cast_slice_mut(&mut arena))?;
        Ok(self.layout.from_arena(&arena))
    }

    /// After the last micro-batch: what was summed becomes the gradient of every weight, as in
    /// [`crate::ExplicitNepa::finish`]. Returns its norm, and leaves on the device how it is to be
    /// clipped.
    pub fn finish(&mut self, max_norm: Option<f64>) -> Result<f64, D::Error> {
        let (width, mlp) = (self.shape.width, self.shape.mlp);
        for index in 0..self.shape.blocks {
            let places = self.layout.blocks[index];
            for ([weight, bias], scale, columns) in [
                (places.attention_output, places.attention_scale, width),
                (places.down, places.mlp_scale, mlp),
            ] {
                let finish = LayerScale {
                    weight: self.weight(weight),
                    d_weight: self.gradient(weight),
                    bias: self.weight(bias),
                    d_bias: self.gradient(bias),
                    scale: self.weight(scale),
                    d_scale: self.gradient(scale),
                    columns: columns as u32,
                };
                self.device.launch(finish.launch(width as u32))?;
            }
        }
        let norm = GradientNorm {
            gradient: self.regions.flat.gradient,
            partials: self.regions.norm_partials,
            result: self.regions.norm_result,
            max_norm: max_norm.unwrap_or(f64::INFINITY),
            len: self.layout.len() as u64,
        };
        for launch in norm.launches() {
            self.device.launch(launch)?;
        }
        let mut result = [0; NORM_RESULT_BYTES];
        self.device.read(self.regions.norm_result, &mut result)?;
        let [norm, ..] = *result.as_chunks::<8>().0 else {
            unreachable!("16 bytes are two words")
        };
        Ok(f64::from_ne_bytes(norm))
    }

    /// Clips and applies the gradient; where its norm is not finite, nothing is changed.
    pub fn update(&mut self, update: &Update) -> Result<(), D::Error> {
        let flat = self.regions.flat;
        let (decay, rest) = match update.average_decay {
            Some(decay) if self.has_average => (decay, 1.0 - decay),
            _ => (0.0, 1.0),
        };
        let step = update.step as f64;
        let adamw = AdamW {
            weights: flat.weights,
            gradient: flat.gradient,
            m: flat.m,
            v: flat.v,
            average: if update.average_decay.is_some() {
                flat.average
            } else {
                0
            },
            copy: flat.weights_bf16,
            segments: self.regions.segments,
            norm: self.regions.norm_result,
            len: self.layout.len() as u64,
            lr: update.lr,
            correction1: 1.0 - update.beta1.powf(step),
            correction2: (1.0 - update.beta2.powf(step)).sqrt() as f32,
            beta1: update.beta1 as f32,
            rest1: (1.0 - update.beta1) as f32,
            beta2: update.beta2 as f32,
            rest2: (1.0 - update.beta2) as f32,
            eps: update.eps as f32,
            decay: decay as f32,
            rest: rest as f32,
            num_segments: self.num_segments,
        };
        self.has_average = update.average_decay.is_some();
        self.device.launch(adamw.launch())
    }
}
