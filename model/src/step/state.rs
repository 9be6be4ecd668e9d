//! All that training changes: its way to the device and back, the end of a gradient, the update.
use super::adamw::{AdamW, AdamWSettings, Group, WeightGroup};
use super::device::{Arenas, Device, LayerScale, Region};
use super::step::{Gradient, Progress, Step};
use super::tree::SumTree;
use crate::ModelError;
use crate::real::Real;

/// All that training changes, flat, in the order of [`crate::Weights`].
#[derive(Debug, Clone, PartialEq)]
pub struct FlatState<T = f32> {
    /// Weights.
    pub weights: Vec<T>,
    /// First moments.
    pub m: Vec<T>,
    /// Second moments.
    pub v: Vec<T>,
    /// Moving average of the weights; empty if there is none yet.
    pub average: Vec<T>,
    /// Updates so far.
    pub updates: u64,
}

impl<T: Real> FlatState<T> {
    /// The state before the first step.
    pub fn new(weights: Vec<T>) -> Self {
        let zeros = vec![T::zero(); weights.len()];
        Self {
            weights,
            m: zeros.clone(),
            v: zeros,
            average: Vec::new(),
            updates: 0,
        }
    }
}

impl<D: Device> Step<D> {
    /// What updates do with each weight, by its name. A gradient that [`Self::finish`] has ended
    /// already is not of these groups and is forgotten.
    pub fn set_groups(&mut self, of: impl Fn(&str) -> WeightGroup) {
        self.depth = self.layout.depth(|name| !of(name).frozen);
        let runs = self.layout.runs(of).into_iter();
        self.groups = runs.map(|(range, of)| Group { range, of }).collect();
        if let Gradient::Whole(_) = self.progress.gradient {
            self.progress.gradient = Gradient::Old;
        }
    }

    /// Takes over weights alone.
    pub fn load_weights(&mut self, weights: &[D::Wide]) -> Result<(), D::Error> {
        self.write_arena(self.regions.weights, weights)?;
        self.device
            .narrow(self.regions.weights, self.regions.narrow)
    }

    /// Takes over a state.
    pub fn load(&mut self, state: &FlatState<D::Wide>) -> Result<(), D::Error> {
        self.load_weights(&state.weights)?;
        self.write_arena(self.regions.m, &state.m)?;
        self.write_arena(self.regions.v, &state.v)?;
        if !state.average.is_empty() {
            self.write_arena(self.regions.average, &state.average)?;
        }
        self.progress = Progress {
            updates: state.updates,
            has_average: !state.average.is_empty(),
            ..Progress::default()
        };
        Ok(())
    }

    /// A copy of the state.
    pub fn export(&mut self) -> Result<FlatState<D::Wide>, D::Error> {
        Ok(FlatState {
            weights: self.read_arena(self.regions.weights)?,
            m: self.read_arena(self.regions.m)?,
            v: self.read_arena(self.regions.v)?,
            average: if self.progress.has_average {
                self.read_arena(self.regions.average)?
            } else {
                Vec::new()
            },
            updates: self.progress.updates,
        })
    }

    /// A copy of the gradient, in the order of [`crate::Weights`].
    pub fn read_gradient(&mut self) -> Result<Vec<D::Wide>, D::Error> {
        self.read_arena(self.regions.gradient)
    }

    /// The gradient of the sequence that went into the first block, `[B, T, D]`. Refused where the
    /// embeddings are frozen: no gradient goes so deep then.
    pub fn read_input_gradient(&mut self) -> Result<Vec<D::Wide>, D::Error> {
        if self.depth > 0 {
            return Err(D::Error::from(ModelError::Step {
                reason: "its embeddings are frozen, and so its input has no gradient",
            }));
        }
        self.read_rows(self.regions.dx)
    }

    /// What a layer holds, `[B, T, D]`: what goes into the first block (0), the output of block n
    /// (n).
    pub fn read_hidden(&mut self, layer: usize) -> Result<Vec<D::Wide>, D::Error> {
        assert!(layer <= self.shape.blocks, "a layer of the model");
        self.read_rows(self.stream(layer))
    }

    /// The final norm of the last layer, `[B, T, D]`.
    pub fn read_output(&mut self) -> Result<Vec<D::Wide>, D::Error> {
        let (regions, rows) = (&self.regions, self.rows());
        let norm = self.norm_of(
            self.layout.norm,
            regions.normed_output,
            regions.output_statistics,
        );
        let x = self.stream(self.shape.blocks);
        self.device.layer_norm(&rows, x, &norm)?;
        let mut values = vec![D::Wide::default(); norm.normed.len];
        self.device.read_narrow(norm.normed, &mut values)?;
        Ok(values)
    }

    fn read_rows(&mut self, region: Region) -> Result<Vec<D::Wide>, D::Error> {
        let region = self.of_rows(region, self.shape.width);
        let mut values = vec![D::Wide::default(); region.len];
        self.device.read(region, &mut values)?;
        Ok(values)
    }

    fn write_arena(&mut self, region: Region, flat: &[D::Wide]) -> Result<(), D::Error> {
        let (got, expected) = (flat.len(), self.layout.num_values());
        if got != expected {
            return Err(D::Error::from(ModelError::FlatLength { got, expected }));
        }
        self.device.write(region, &self.layout.to_arena(flat))
    }

    fn read_arena(&mut self, region: Region) -> Result<Vec<D::Wide>, D::Error> {
        let mut arena = vec![D::Wide::default(); region.len];
        self.device.read(region, &mut arena)?;
        Ok(self.layout.from_arena(&arena))
    }

    /// Forgets the gradient, so that the next one is not added to it.
    pub fn clear_gradient(&mut self) -> Result<(), D::Error> {
        self.progress.gradient = Gradient::Sum;
        (self.progress.tree, self.progress.below) = (None, 0);
        self.device.zero(self.regions.gradient)
    }

    /// The same before so many micro-batches, whose gradients are added as a [`SumTree`] says. There
    /// must be room for its partial sums ([`super::StepOptions::partial_sums`]).
    pub fn begin_gradient(&mut self, micro_batches: usize) -> Result<(), D::Error> {
        let refused = |reason| Err(D::Error::from(ModelError::Step { reason }));
        if micro_batches == 0 {
            return refused("it gets no micro-batch");
        }
        let tree = SumTree::new(micro_batches);
        if tree.partial_sums() > self.regions.partial_sums.len() {
            return refused("it was made for fewer micro-batches: it lacks room for their sums");
        }
        self.clear_gradient()?;
        self.progress.tree = Some((tree, 0));
        Ok(())
    }

    /// Makes room for the gradient of the next micro-batch.
    pub(crate) fn begin_micro_batch(&mut self) -> Result<(), D::Error> {
        let Some((tree, number)) = self.progress.tree else {
            return Ok(());
        };
        if number == tree.count() {
            return Err(D::Error::from(ModelError::Step {
                reason: "it gets more micro-batches than it was told of",
            }));
        }
        self.progress.below = tree.before(number);
        // The first is cleared already.
        if number > 0 {
            self.device.zero(self.gradients(self.progress.below))?;
        }
        Ok(())
    }

    /// Adds what the tree adds after a micro-batch.
    pub(crate) fn end_micro_batch(&mut self) -> Result<(), D::Error> {
        let Some((tree, number)) = self.progress.tree else {
            return Ok(());
        };
        for _ in 0..tree.additions(number) {
            let top = self.gradients(self.progress.below);
            self.progress.below -= 1;
            self.device.add(self.gradients(self.progress.below), top)?;
        }
        self.progress.tree = Some((tree, number + 1));
        Ok(())
    }

    /// Whether all micro-batches have come.
    fn check_whole(&self) -> Result<(), ModelError> {
        match self.progress.tree {
            Some((tree, number)) if number < tree.count() => Err(ModelError::Step {
                reason: "it gets more micro-batches before their gradient is whole",
            }),
            _ => self.check_sum(),
        }
    }

    /// What all micro-batches of this process sum to, in the order of the device's memory, before
    /// [`Self::finish`]: to be added to that of other processes.
    pub fn read_sum(&mut self, sum: &mut Vec<D::Wide>) -> Result<(), D::Error> {
        self.check_whole()?;
        sum.resize(self.regions.gradient.len, D::Wide::default());
        self.device.read(self.regions.gradient, sum)
    }

    /// Where that sum lies, for those who add to it on the device.
    pub fn sum_region(&self) -> Result<Region, D::Error> {
        self.check_whole()?;
        Ok(self.regions.gradient)
    }

    /// Puts the sum over all processes in its place.
    pub fn write_sum(&mut self, sum: &[D::Wide]) -> Result<(), D::Error> {
        self.check_whole()?;
        self.device.write(self.regions.gradient, sum)
    }

    /// Whether something may be added to the gradient.
    pub(crate) fn check_sum(&self) -> Result<(), ModelError> {
        if self.progress.gradient == Gradient::Sum {
            return Ok(());
        }
        Err(ModelError::Step {
            reason: "its gradient was ended, applied or never begun: clear it before a micro-batch",
        })
    }

    /// After the last micro-batch, once: what was summed becomes the gradient of every weight, and
    /// that of frozen ones zero. Returns its norm; the update clips by `max_norm`.
    pub fn finish(&mut self, max_norm: Option<f64>) -> Result<f64, D::Error> {
        self.check_whole()?;
        self.progress.gradient = Gradient::Old;
        let (width, mlp) = (self.shape.width, self.shape.mlp);
        for index in 0..self.shape.blocks {
            let places = self.layout.blocks[index];
            for ([weight, bias], scale, columns) in [
                (places.attention_output, places.attention_scale, width),
                (places.down, places.mlp_scale, mlp),
            ] {
                let Some(scale) = scale else { continue };
                self.device.layer_scale(&LayerScale {
                    weight: self.weight(weight, width * columns),
                    d_weight: self.gradient(weight, width * columns),
                    bias: self.weight(bias, width),
                    d_bias: self.gradient(bias, width),
                    scale: self.weight(scale, width),
                    d_scale: self.gradient(scale, width),
                    columns,
                })?;
            }
        }
        for group in self.groups.iter().filter(|group| group.of.frozen) {
            let (first, len) = (group.range.start, group.range.len());
            self.device.zero(self.regions.gradient.part(first, len))?;
        }
        let norm = self.device.gradient_norm(self.regions.gradient, max_norm)?;
        self.progress.gradient = Gradient::Whole(norm);
        Ok(norm)
    }

    /// Clips and applies the gradient, at the learning rates to which the groups refer; where its
    /// norm is not finite, nothing is changed. Without a gradient that [`Self::finish`] has ended
    /// since the last update, it is refused.
    pub fn update(&mut self, settings: &AdamWSettings, rates: &[f64]) -> Result<(), D::Error> {
        let refused = |reason| Err(D::Error::from(ModelError::Step { reason }));
        let Gradient::Whole(norm) = self.progress.gradient else {
            return refused(
                "it has no gradient: after an update, a gradient is summed and ended first",
            );
        };
        if self.groups.is_empty() {
            return refused("its groups of weights are not set");
        }
        if rates.len() < Group::rates(&self.groups) {
            return refused("its groups of weights have more learning rates than the update");
        }
        self.progress.gradient = Gradient::Old;
        self.progress.updates += 1;
        let rule = AdamW::new(
            settings,
            self.progress.updates,
            rates,
            self.progress.has_average,
        );
        let arenas = Arenas {
            weights: self.regions.weights,
            gradient: self.regions.gradient,
            m: self.regions.m,
            v: self.regions.v,
            average: self.regions.average,
            narrow: self.regions.narrow,
        };
        self.device.adamw(&arenas, &self.groups, &rule)?;
        if norm.is_finite() {
            self.progress.has_average = settings.average_decay.is_some();
        }
        Ok(())
    }
}
