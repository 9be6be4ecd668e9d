//! Every operation of a training step, alone, on every device: from the same inputs each leaves
//! what the CPU in f64 leaves, which whole steps hold to automatic differentiation
//! (`model/src/step/tests.rs`), and changes nothing else.
//!
//! Each operation is a function of a device, which does it in all its variants and gives what was
//! left in every region. A new device is one line at the end of this file.
use candle_core::WithDType;
use nepa_model::cpu::CpuDevice;
use nepa_model::step::Layout;
use nepa_model::step::device::{Device, MemoryMap, RedZone, Region, Rows};
use nepa_model::{NepaConfig, StepOptions};
use nepa_tests::emulated_device::emulated;
use nepa_tests::engine_kernels::{bf16, widen};

use crate::engine_kernels::Random;

mod attention;
mod embed;
mod loss;
mod matmul;
mod mlp;
mod norm;
mod pool;
mod update;

use Kind::{Index, Narrow, Wide};

/// How far a value may be off, relative to its own size and to the root mean square of its region,
/// and how far a whole region, relative to its norm: by sums in f32, by rounding the result to
/// bf16, and by rounding on the way to it, which a single value may feel more than the region.
const F32: f64 = 5e-6;
const BF16: f64 = 1.0 / 256.0;
const BF16_WITHIN: f64 = 1e-2;
const WITHIN_OF_VALUE: f64 = 8.0 * BF16_WITHIN;

const EPS: f64 = 1e-12;

/// What a region holds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Wide,
    Narrow,
    Index,
}

/// What an operation does with a region.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Role {
    /// Leaves it as it is.
    Reads,
    /// Writes or changes it.
    Leaves,
    /// May leave anything there.
    UsesUp,
}

/// What a region holds before.
enum Start {
    Values(Vec<f32>),
    Indices(Vec<u32>),
    /// What was written to the region of another part.
    Shared,
}

struct Part {
    name: &'static str,
    region: Region,
    kind: Kind,
    role: Role,
    start: Start,
    /// As the device reads it; of what the operation reads only.
    before: Vec<f64>,
}

/// B, T and D of a case, and H where there are heads.
#[derive(Debug, Clone, Copy)]
struct Size {
    images: usize,
    tokens: usize,
    width: usize,
    heads: usize,
}

impl Size {
    const fn new(images: usize, tokens: usize, width: usize) -> Self {
        Self {
            images,
            tokens,
            width,
            heads: 1,
        }
    }

    fn rows(self) -> usize {
        self.images * self.tokens
    }

    /// Of the stream.
    fn values(self) -> usize {
        self.rows() * self.width
    }

    fn as_rows(self) -> Rows {
        Rows {
            rows: self.rows(),
            width: self.width,
            tokens: self.tokens,
            eps: EPS,
        }
    }
}

/// One operation on a device: first its regions, then [`Bench::start`], then what is to be done
/// with `device`, then [`Bench::finish`].
struct Bench<D: Device> {
    device: D,
    case: String,
    size: Size,
    map: MemoryMap,
    parts: Vec<Part>,
    rounds_within: bool,
}

/// What an operation left in a region.
struct Left {
    what: String,
    values: Vec<f64>,
    limits: Limits,
}

/// See the constants at the top.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Of each value, relative to it.
    value: f64,
    /// Of each value, relative to it and to those of its region.
    values: f64,
    /// Of the region, relative to its norm.
    region: f64,
}

impl<D: Device> Bench<D> {
    fn new(device: D, case: impl Into<String>, size: Size) -> Self {
        Self {
            device,
            case: case.into(),
            size,
            map: MemoryMap::default(),
            parts: Vec::new(),
            rounds_within: false,
        }
    }

    fn take(&mut self, behind: &'static str, len: usize, value_bytes: u64) -> Region {
        if len == 0 {
            return Region::default();
        }
        let region = Region {
            start: self.map.num_bytes,
            len,
            value_bytes,
        };
        let end = region.start + region.num_bytes();
        self.map.num_bytes = end.next_multiple_of(256) + D::RED_ZONE_BYTES;
        if D::RED_ZONE_BYTES > 0 {
            let bytes = end..self.map.num_bytes;
            self.map.red_zones.push(RedZone { behind, bytes });
        }
        region
    }

    fn part(&mut self, name: &'static str, kind: Kind, role: Role, start: Start) -> Region {
        let len = match &start {
            Start::Values(values) => values.len(),
            Start::Indices(indices) => indices.len(),
            Start::Shared => unreachable!("it has no region of its own"),
        };
        let bytes = match kind {
            Narrow => D::NARROW_BYTES,
            Wide | Index => size_of::<D::Wide>() as u64,
        };
        let region = self.take(name, len, bytes);
        self.parts.push(Part {
            name,
            region,
            kind,
            role,
            start,
            before: Vec::new(),
        });
        region
    }

    /// What the operation reads and leaves alone.
    fn reads(&mut self, name: &'static str, kind: Kind, mut values: Vec<f32>) -> Region {
        round(kind, &mut values);
        self.part(name, kind, Role::Reads, Start::Values(values))
    }

    fn reads_indices(&mut self, name: &'static str, indices: Vec<u32>) -> Region {
        self.part(name, Index, Role::Reads, Start::Indices(indices))
    }

    /// What it changes, or adds to.
    fn changes(&mut self, name: &'static str, kind: Kind, mut values: Vec<f32>) -> Region {
        round(kind, &mut values);
        self.part(name, kind, Role::Leaves, Start::Values(values))
    }

    /// What it writes, every value of it.
    fn writes(&mut self, name: &'static str, kind: Kind, len: usize) -> Region {
        self.part(name, kind, Role::Leaves, Start::Values(vec![f32::NAN; len]))
    }

    /// What it reads, and may change.
    fn uses_up(&mut self, name: &'static str, kind: Kind, mut values: Vec<f32>) -> Region {
        round(kind, &mut values);
        self.part(name, kind, Role::UsesUp, Start::Values(values))
    }

    /// Where it works.
    fn workspace(&mut self, name: &'static str, len: usize) -> Region {
        self.uses_up(name, Wide, vec![f32::NAN; len])
    }

    /// What other devices have in a narrow region of its own and this one in a wide one of another
    /// name.
    fn shares(&mut self, name: &'static str, region: Region) {
        self.parts.push(Part {
            name,
            region,
            kind: Wide,
            role: Role::Leaves,
            start: Start::Shared,
            before: Vec::new(),
        });
    }

    /// Takes the memory and writes what the regions hold before.
    fn start(&mut self) {
        let Size {
            images,
            tokens,
            width,
            heads,
        } = self.size;
        let config = NepaConfig {
            hidden_size: width,
            num_attention_heads: heads,
            ..NepaConfig::tiny()
        };
        let options = StepOptions {
            grid: Some([1, tokens]),
            without_last: true,
            ..StepOptions::whole(&config, images)
        };
        let layout = Layout::new(&config);
        let own = D::own_bytes(images * tokens, layout.len(), layout.num_weights());
        self.map.own = self.take("the device's own", own as usize, 1);
        let map = std::mem::take(&mut self.map);
        self.device.allocate(map, &config, &options).unwrap();
        for part in &self.parts {
            match &part.start {
                Start::Values(values) => write(&mut self.device, part, values),
                Start::Indices(indices) if indices.is_empty() => {}
                Start::Indices(indices) => {
                    self.device.write_indices(part.region, indices).unwrap();
                }
                Start::Shared => {}
            }
        }
        for part in &mut self.parts {
            if part.role == Role::Reads {
                part.before = read(&mut self.device, part);
            }
        }
    }

    /// Writes over a region that the device is to write again.
    fn spoil(&mut self, region: Region) {
        let part = self.parts.iter().find(|part| part.region == region);
        let values = vec![f32::NAN; region.len];
        write(&mut self.device, part.expect("a region"), &values);
    }

    /// Reads what was left in all regions.
    #[track_caller]
    fn finish(mut self, left: &mut Vec<Left>) {
        for part in &self.parts {
            let (case, name) = (&self.case, part.name);
            let values = match part.role {
                Role::UsesUp => continue,
                Role::Reads | Role::Leaves => read(&mut self.device, part),
            };
            if part.role == Role::Leaves {
                let rounded = D::HAS_NARROW && part.kind == Narrow;
                let within = D::HAS_NARROW && self.rounds_within;
                left.push(Left {
                    what: format!("{case}: {name}"),
                    values,
                    limits: Limits {
                        value: if rounded { BF16 } else { 0.0 },
                        values: if within { WITHIN_OF_VALUE } else { F32 },
                        region: match (within, rounded) {
                            (true, _) => BF16_WITHIN,
                            (false, true) => BF16,
                            (false, false) => F32,
                        },
                    },
                });
                continue;
            }
            let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(
                bits(&values) == bits(&part.before),
                "{case}: {name} was changed"
            );
        }
    }
}

/// Numbers that an operation gives beside what it leaves in regions.
fn numbers(what: String, values: Vec<f64>) -> Left {
    Left {
        what,
        values,
        limits: Limits {
            value: 0.0,
            values: F32,
            region: F32,
        },
    }
}

/// All devices get what the narrowest type can hold.
fn round(kind: Kind, values: &mut [f32]) {
    if kind == Narrow {
        for value in values.iter_mut().filter(|value| !value.is_nan()) {
            *value = widen(bf16(*value));
        }
    }
}

fn write<D: Device>(device: &mut D, part: &Part, values: &[f32]) {
    if values.is_empty() {
        return;
    }
    let values: Vec<D::Wide> = values
        .iter()
        .map(|value| WithDType::from_f64(f64::from(*value)))
        .collect();
    let written = match part.kind {
        Narrow => device.write_narrow(part.region, &values),
        Wide | Index => device.write(part.region, &values),
    };
    written.unwrap();
}

fn read<D: Device>(device: &mut D, part: &Part) -> Vec<f64> {
    let mut values = vec![D::Wide::default(); part.region.len];
    if values.is_empty() {
        return Vec::new();
    }
    let read = match part.kind {
        Narrow => device.read_narrow(part.region, &mut values),
        Wide | Index => device.read(part.region, &mut values),
    };
    read.unwrap();
    values.into_iter().map(WithDType::to_f64).collect()
}

/// Compares what a device left with what it should have.
#[track_caller]
fn agree(left: &[Left], expected: &[Left]) {
    assert_eq!(left.len(), expected.len());
    for (left, expected) in left.iter().zip(expected) {
        let what = &left.what;
        assert_eq!(what, &expected.what);
        assert_eq!(left.values.len(), expected.values.len(), "{what}");
        let norm = norm_of(expected.values.iter().copied());
        let size = norm / (expected.values.len().max(1) as f64).sqrt();
        let limits = left.limits;
        for (place, (left, expected)) in left.values.iter().zip(&expected.values).enumerate() {
            let limit = limits.value * expected.abs() + limits.values * (expected.abs() + size);
            assert!(
                (left - expected).abs() <= limit,
                "{what}[{place}] is {left}, in f64 {expected} (+- {limit:.1e})"
            );
        }
        let each = left.values.iter().zip(&expected.values);
        let off = norm_of(each.map(|(left, expected)| left - expected));
        assert!(
            off <= limits.region * norm,
            "{what} is off by {:.1e} of its norm",
            off / norm
        );
    }
}

/// The Euclidean norm.
fn norm_of(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// A module of tests for each device.
macro_rules! on_every_device {
    ($devices:tt $operations:tt) => {
        on_every_device! { @each $devices $operations }
    };
    (@each { $($module:ident: $device:expr,)* } $operations:tt) => {
        $(on_every_device! { @one $module $device, $operations })*
    };
    (@one $module:ident $device:expr, { $($file:ident::$operation:ident,)* }) => {
        mod $module {
            use super::*;
            $(
                #[test]
                fn $operation() {
                    let left = $file::$operation($device);
                    agree(&left, &$file::$operation(CpuDevice::<f64>::default));
                }
            )*
        }
    };
}

on_every_device! {
    {
        cpu_in_f32: CpuDevice::<f32>::default,
        kernels: || emulated(1),
    }
    {
        embed::patchify,
        embed::assemble,
        embed::disassemble,
        matmul::matmul,
        norm::layer_norm,
        norm::add_branch,
        norm::norm_backward,
        mlp::activation,
        mlp::activation_backward,
        attention::attention,
        attention::attention_backward,
        loss::cosine_loss,
        loss::where_vectors_have_no_length,
        pool::pool,
        pool::pool_backward,
        update::layer_scale,
        update::adamw,
        update::where_the_norm_is_not_finite_nothing_changes,
        update::narrow,
        update::add,
    }
}
