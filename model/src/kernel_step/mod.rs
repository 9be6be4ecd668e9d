//! The pretraining step in launches of our kernels and products of bf16 matrices: what is computed
//! where, in which order, over which memory. Generic over the device, so that a test runs the very
//! same launches on the CPU; [`crate::cuda`] has the GPU. Shapes as in [`crate::explicit`], whose
//! backward this is: the residual stream, statistics, weights and all sums are f32, what products
//! read and write is bf16.
pub mod arguments;
mod backward;
mod forward;
pub mod layout;
mod memory;
mod update;

use crate::explicit::Shape;
use crate::{MemoryPlan, ModelError, NepaConfig, PretrainReport, RopeDraw};

use arguments::{AddPartials, HEAD, Launch, MAX_TOKENS};
use layout::Layout;
pub use memory::RedZone;
use memory::{Placing, ROWS_PER_PIECE, Regions};
pub use update::{FlatState, Update};

/// A matrix in row-major memory, of bf16.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// Of its first value.
    pub address: u64,
    /// Values from one row in memory to the next.
    pub stride: usize,
    /// Whether the operand is the transpose of what lies in memory.
    pub transposed: bool,
}

/// Where a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Rounded to bf16, with a bias of bf16 for each column, or none (0).
    Bf16 {
        /// Its address.
        bias: u64,
    },
    /// Added to what is there, f32.
    SumF32,
    /// f32, with a bias of f32 for each column, or none (0).
    F32 {
        /// Its address.
        bias: u64,
    },
}

/// `C [m, n] = A [m, k] B [k, n]`, sums in f32.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Left operand.
    pub a: Operand,
    /// Right operand.
    pub b: Operand,
    /// Address of the result, whose rows have no gaps.
    pub c: u64,
    /// Its type.
    pub output: Output,
}

/// What the step asks of a device. All calls are done in order.
pub trait StepDevice {
    /// What can go wrong.
    type Error;
    /// Takes memory, once; its address, a multiple of 256. It may hold anything.
    fn allocate(&mut self, num_bytes: u64) -> Result<u64, Self::Error>;
    /// Bytes to leave behind each region of the memory, a multiple of 256: none, but for a device
    /// that looks whether something was written past a region's end.
    fn red_zone_bytes(&self) -> u64 {
        0
    }
    /// Where those bytes are, told once behind `allocate`.
    fn watch(&mut self, _red_zones: Vec<RedZone>) -> Result<(), Self::Error> {
        Ok(())
    }
    /// Launches a kernel.
    fn launch<A: Copy>(&mut self, launch: Launch<A>) -> Result<(), Self::Error>;
    /// Multiplies.
    fn multiply(&mut self, product: Product) -> Result<(), Self::Error>;
    /// Writes zeros.
    fn zero(&mut self, address: u64, num_bytes: u64) -> Result<(), Self::Error>;
    /// Copies to the device; the bytes may be changed when it returns.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Copies from the device, after all that was asked before.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;
}

/// What the forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kept {
    /// What cannot be computed again in one pass over memory.
    #[default]
    Least,
    /// The activations of the MLPs too, `[N, mlp]` of bf16 a block: 4.8 GB for B/14 with 256
    /// images. The backward pass then writes two bytes a value less, of eight.
    Activations,
}

/// Pixels of a micro-batch on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pixels {
    /// `[B, 3, S, S]`, normalised.
    pub address: u64,
    /// bf16, or f32.
    pub bf16: bool,
}

/// The step on one device.
#[derive(Debug)]
pub struct KernelStep<D> {
    device: D,
    config: NepaConfig,
    shape: Shape,
    layout: Layout,
    regions: Regions,
    plan: MemoryPlan,
    kept: Kept,
    num_segments: u32,
    has_average: bool,
}

impl<D: StepDevice> KernelStep<D> {
    /// Checks that the kernels can compute the model, and takes all memory for micro-batches of
    /// `micro_batch` images.
    pub fn new(config: &NepaConfig, micro_batch: usize, device: D) -> Result<Self, D::Error>
    where
        D::Error: From<ModelError>,
    {
        Self::keeping(config, micro_batch, device, Kept::Least)
    }

    /// The same with a choice of what the forward pass keeps; no number depends on it.
    pub fn keeping(
        config: &NepaConfig,
        micro_batch: usize,
        mut device: D,
        kept: Kept,
    ) -> Result<Self, D::Error>
    where
        D::Error: From<ModelError>,
    {
        check(config)?;
        let shape = Shape::new(config, micro_batch);
        let layout = Layout::new(config);
        let mut placing = Placing {
            base: 0,
            red_zone_bytes: device.red_zone_bytes(),
            keeps_hidden: kept == Kept::Activations,
        };
        let (_, plan, _) = Regions::new(config, &shape, &layout, placing);
        placing.base = device.allocate(plan.total_bytes())?;
        let (regions, plan, red_zones) = Regions::new(config, &shape, &layout, placing);
        device.watch(red_zones)?;
        Ok(Self {
            device,
            config: config.clone(),
            shape,
            layout,
            regions,
            plan,
            kept,
            num_segments: 0,
            has_average: false,
        })
    }

    /// Memory of an engine for such micro-batches.
    pub fn plan(config: &NepaConfig, micro_batch: usize) -> MemoryPlan {
        Self::plan_keeping(config, micro_batch, Kept::Least)
    }

    /// The same with a choice of what the forward pass keeps.
    pub fn plan_keeping(config: &NepaConfig, micro_batch: usize, kept: Kept) -> MemoryPlan {
        let placing = Placing {
            base: 0,
            red_zone_bytes: 0,
            keeps_hidden: kept == Kept::Activations,
        };
        let shape = Shape::new(config, micro_batch);
        Regions::new(config, &shape, &Layout::new(config), placing).1
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

    /// Copies images from the host, `[3, S, S]` each.
    pub fn stage(&mut self, images: &[&[f32]]) -> Result<Pixels, D::Error>
    where
        D::Error: From<ModelError>,
    {
        let (channels, size) = (self.config.num_channels, self.config.image_size);
        let len = channels * size * size;
        if images.len() != self.shape.batch || images.iter().any(|image| image.len() != len) {
            let got = images.iter().map(|image| image.len()).collect();
            return Err(D::Error::from(ModelError::PixelShape {
                got,
                channels,
                image_size: size,
            }));
        }
        for (number, image) in images.iter().enumerate() {
            let address = self.regions.pixels + (4 * number * len) as u64;
            self.device.write(address, bytemuck::cast_slice(image))?;
        }
        Ok(Pixels {
            address: self.regions.pixels,
            bf16: false,
        })
    }

    /// Forgets the gradient.
    pub fn clear_gradient(&mut self) -> Result<(), D::Error> {
        let num_bytes = 4 * self.layout.len() as u64;
        self.device.zero(self.regions.flat.gradient, num_bytes)
    }

    /// Adds `share` times the gradient of one micro-batch's loss, as
    /// [`crate::ExplicitNepa::add_gradient`] does.
    pub fn add_gradient(
        &mut self,
        pixels: Pixels,
        rope: &RopeDraw,
        share: f64,
    ) -> Result<PretrainReport, D::Error> {
        self.embed(pixels, rope)?;
        for index in 0..self.shape.blocks {
            self.block(index)?;
        }
        self.loss(share)?;
        for index in (0..self.shape.blocks).rev() {
            self.mlp_backward(index)?;
            self.attention_backward(index)?;
        }
        self.embedding_backward()?;
        self.report()
    }

    fn weight(&self, offset: usize) -> u64 {
        self.regions.flat.weights + 4 * offset as u64
    }

    fn weight_bf16(&self, offset: usize) -> u64 {
        self.regions.flat.weights_bf16 + 2 * offset as u64
    }

    fn gradient(&self, offset: usize) -> u64 {
        self.regions.flat.gradient + 4 * offset as u64
    }

    /// `out [m, outputs] = x [m, inputs] W^T + b`.
    fn linear(
        &mut self,
        m: usize,
        (inputs, outputs): (usize, usize),
        x: u64,
        weight: usize,
        bias: Option<usize>,
        out: u64,
    ) -> Result<(), D::Error> {
        let bias = bias.map_or(0, |bias| self.weight_bf16(bias));
        self.device.multiply(Product {
            m,
            n: outputs,
            k: inputs,
            a: rows(x, inputs),
            b: transposed(self.weight_bf16(weight), inputs),
            c: out,
            output: Output::Bf16 { bias },
        })
    }

    /// `out [m, inputs] = grad [m, outputs] W`.
    fn linear_backward(
        &mut self,
        m: usize,
        (inputs, outputs): (usize, usize),
        grad: u64,
        weight: usize,
        out: u64,
    ) -> Result<(), D::Error> {
        self.device.multiply(Product {
            m,
            n: inputs,
            k: outputs,
            a: rows(grad, outputs),
            b: rows(self.weight_bf16(weight), inputs),
            c: out,
            output: Output::Bf16 { bias: 0 },
        })
    }

    /// The weight's gradient `+= grad [m, outputs]^T x [m, inputs]`.
    fn weight_gradient(
        &mut self,
        m: usize,
        (inputs, outputs): (usize, usize),
        grad: u64,
        x: u64,
        weight: usize,
    ) -> Result<(), D::Error> {
        self.device.multiply(Product {
            m: outputs,
            n: inputs,
            k: m,
            a: transposed(grad, outputs),
            b: rows(x, inputs),
            c: self.gradient(weight),
            output: Output::SumF32,
        })
    }

    /// Adds the sums of all pieces in `partials`, `width` values for each of `outputs`, to the
    /// gradients of those that are there.
    fn add_sums(
        &mut self,
        partials: u64,
        pieces: usize,
        width: usize,
        outputs: &[Option<usize>],
    ) -> Result<(), D::Error> {
        if outputs.iter().all(Option::is_none) {
            return Ok(());
        }
        let mut out = [0; 4];
        for (out, offset) in out.iter_mut().zip(outputs) {
            *out = offset.map_or(0, |offset| self.gradient(offset));
        }
        let sums = AddPartials {
            partials,
            out,
            stride: (outputs.len() * width) as u64,
            pieces: pieces as u32,
            width: width as u32,
            outputs: outputs.len() as u32,
        };
        self.device.launch(sums.launch())
    }

    fn add_partials(
        &mut self,
        pieces: usize,
        width: usize,
        outputs: &[Option<usize>],
    ) -> Result<(), D::Error> {
        self.add_sums(self.regions.partials, pieces, width, outputs)
    }

    fn pieces(&self) -> usize {
        self.shape.rows().div_ceil(ROWS_PER_PIECE)
    }

    fn eps(&self) -> f32 {
        self.config.layer_norm_eps as f32
    }
}

fn rows(address: u64, stride: usize) -> Operand {
    Operand {
        address,
        stride,
        transposed: false,
    }
}

fn transposed(address: u64, stride: usize) -> Operand {
    Operand {
        transposed: true,
        ..rows(address, stride)
    }
}

/// Whether the kernels can compute a model.
pub fn check(config: &NepaConfig) -> Result<(), ModelError> {
    config.validate()?;
    let tokens = Shape::new(config, 1).tokens;
    let rules = [
        (
            config.head_size() == HEAD,
            "num_attention_heads",
            config.num_attention_heads,
            "the kernels compute heads of 64 values: hidden_size / 64 of them",
        ),
        (
            config.hidden_size <= 1024,
            "hidden_size",
            config.hidden_size,
            "the kernels' norms take at most 1024",
        ),
        (
            config.intermediate_size.is_multiple_of(8),
            "intermediate_size",
            config.intermediate_size,
            "the kernels take a multiple of 8",
        ),
        (
            tokens <= MAX_TOKENS,
            "image_size",
            config.image_size,
            "the attention kernels take at most 512 tokens an image: choose larger patches or smaller images",
        ),
        (
            config.num_channels == 3,
            "num_channels",
            config.num_channels,
            "the kernels take images of three channels",
        ),
    ];
    for (holds, key, value, rule) in rules {
        if !holds {
            return Err(ModelError::Config {
                key,
                value: value.to_string(),
                rule: rule.to_owned(),
            });
        }
    }
    Ok(())
}
