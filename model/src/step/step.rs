//! A model on a device.
use super::adamw::Group;
use super::device::{Device, Region};
use super::memory::Regions;
use super::options::{Shape, StepOptions};
use super::places::Layout;
use super::plan::MemoryPlan;
use super::tree::SumTree;
use crate::{ModelError, NepaConfig};

/// Where training is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) updates: u64,
    pub(super) has_average: bool,
    pub(super) gradient: Gradient,
    /// The order of the sum, and the micro-batches that are in it; none adds each to all before it.
    pub(super) tree: Option<(SumTree, usize)>,
    /// Sums on the stack below the one that is added to.
    pub(super) below: usize,
}

/// What the memory of the gradient holds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Gradient {
    /// Nothing, or what an update has applied.
    #[default]
    Old,
    /// Sums of some micro-batches, to which more may be added.
    Sum,
    /// The gradient of every weight, of this norm, which waits for its update.
    Whole(f64),
}

/// A model on a device, with all memory for its steps.
#[derive(Debug)]
pub struct Step<D> {
    pub(super) device: D,
    pub(super) config: NepaConfig,
    pub(super) options: StepOptions,
    pub(super) layout: Layout,
    pub(super) regions: Regions,
    pub(super) plan: MemoryPlan,
    /// Sizes of the last pass, which may have had fewer images than there is room for.
    pub(super) shape: Shape,
    pub(super) progress: Progress,
    /// None until they are set.
    pub(super) groups: Vec<Group>,
    /// [`Layout::depth`] of what these train.
    pub(super) depth: usize,
}

impl<D: Device> Step<D> {
    /// Checks that the device can compute the model, and takes all memory.
    pub fn new(
        config: &NepaConfig,
        options: &StepOptions,
        mut device: D,
    ) -> Result<Self, D::Error> {
        config.validate()?;
        options.check(config)?;
        D::check(config, options)?;
        let (regions, map, plan) = Regions::new::<D>(config, options);
        device.allocate(map, config, options)?;
        Ok(Self {
            device,
            config: config.clone(),
            options: options.clone(),
            layout: Layout::new(config),
            regions,
            plan,
            shape: Shape::new(config, options),
            progress: Progress::default(),
            groups: Vec::new(),
            depth: 0,
        })
    }

    /// The memory that a step takes.
    pub fn plan(config: &NepaConfig, options: &StepOptions) -> MemoryPlan {
        Regions::new::<D>(config, options).2
    }

    /// Where it runs.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The same, to change how it computes.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The memory that it took.
    pub fn memory(&self) -> &MemoryPlan {
        &self.plan
    }

    /// The model's.
    pub fn config(&self) -> &NepaConfig {
        &self.config
    }

    /// What it was made for.
    pub fn options(&self) -> &StepOptions {
        &self.options
    }

    /// Takes images of the host, `[C, height, width]` each, normalised.
    pub fn stage<'a>(&mut self, images: &'a [&'a [D::Wide]]) -> Result<D::Pixels<'a>, D::Error> {
        let (channels, patch) = (self.config.num_channels, self.config.patch_size);
        let [height, width] = self.shape.grid.map(|patches| patches * patch);
        let len = channels * height * width;
        let wrong = images.iter().find(|image| image.len() != len);
        if images.is_empty() || images.len() > self.options.images || wrong.is_some() {
            return Err(D::Error::from(ModelError::Images {
                images: images.len(),
                len: wrong.map_or(len, |image| image.len()),
                most: self.options.images,
                shape: [channels, height, width],
            }));
        }
        self.device.stage(images, self.regions.pixels)
    }

    pub(super) fn weight(&self, offset: usize, len: usize) -> Region {
        self.regions.weights.part(offset, len)
    }

    pub(super) fn narrow_weight(&self, offset: usize, len: usize) -> Region {
        self.regions.narrow.part(offset, len)
    }

    /// A part of the gradient that is added to.
    pub(super) fn gradient(&self, offset: usize, len: usize) -> Region {
        self.gradients(self.progress.below).part(offset, len)
    }

    /// The stack of sums, the gradient itself being the first.
    pub(super) fn gradients(&self, place: usize) -> Region {
        match place.checked_sub(1) {
            None => self.regions.gradient,
            Some(place) => self.regions.partial_sums[place],
        }
    }
}
