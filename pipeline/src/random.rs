//! Random streams that are pure functions of (seed, epoch, sample): ChaCha8 with the numbers as its
//! key; and draws from them, the same bits on every machine.
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use crate::SampleId;

mod beta;
mod normal;
mod uniform;

pub use beta::beta;
pub(crate) use normal::Normal;
pub use normal::normal;
pub use uniform::{below, shuffle, uniform, unit};

/// A stream of random numbers.
pub type Stream = ChaCha8Rng;

/// What a stream of random numbers is for; different purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// The order of row groups and of samples within a window.
    Order = 1,
    /// A sample's crop and flip, operations and erased box.
    Augment = 2,
    /// The choice of a replacement for a bad sample.
    Replace = 3,
    /// The order of data sets within a batch of a mixture.
    Mix = 4,
    /// How the images of a micro-batch are mixed with one another.
    MixImages = 5,
    /// The noise of an erased box.
    Noise = 6,
}

/// The stream of one sample in one epoch.
pub fn sample_stream(seed: u64, epoch: u64, id: SampleId, purpose: Purpose) -> Stream {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..20].copy_from_slice(&id.shard.to_le_bytes());
    key[20..24].copy_from_slice(&id.row_group.to_le_bytes());
    key[24..28].copy_from_slice(&id.row.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(purpose as u64);
    rng
}

/// The stream of a whole epoch; `index` separates uses within it (a window, say).
pub fn epoch_stream(seed: u64, epoch: u64, index: u64, purpose: Purpose) -> Stream {
    lane_stream(seed, epoch, 0, index, purpose)
}

/// The stream of a lane in one epoch. That of the first lane is [`epoch_stream`], so that one lane
/// alone has the order that there was before there were lanes.
pub(crate) fn lane_stream(
    seed: u64,
    epoch: u64,
    lane: u64,
    index: u64,
    purpose: Purpose,
) -> Stream {
    let lane = u32::try_from(lane).expect("a batch of samples for each lane fits into memory");
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(&index.to_le_bytes());
    key[24..28].copy_from_slice(&lane.to_le_bytes());
    key[28..].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(purpose as u64);
    rng
}

/// The stream of a micro-batch, numbered over all ranks, of an optimiser step.
pub fn micro_batch_stream(seed: u64, step: u64, micro_batch: u64, purpose: Purpose) -> Stream {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&step.to_le_bytes());
    key[16..24].copy_from_slice(&micro_batch.to_le_bytes());
    key[28..].copy_from_slice(&(u32::MAX - 1).to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(purpose as u64);
    rng
}

/// The stream of the noise of an erased box.
pub(crate) fn noise_stream(seed: u64) -> Stream {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(Purpose::Noise as u64);
    rng
}
