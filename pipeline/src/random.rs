//! Random streams that are pure functions of (seed, epoch, sample): ChaCha8 with the numbers as its
//! key.
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::SampleId;

/// A stream of random numbers.
pub type Stream = ChaCha8Rng;

/// What a stream of random numbers is for; different purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// The order of row groups and of samples within a window.
    Order = 1,
    /// A sample's crop and flip.
    Augment = 2,
    /// The choice of a replacement for a bad sample.
    Replace = 3,
    /// The order of data sets within a batch of a mixture.
    Mix = 4,
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
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(&index.to_le_bytes());
    key[28..].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(purpose as u64);
    rng
}

/// Uniform in `[0, 1)` with 53 random bits.
pub fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Uniform in `[low, high)`.
pub fn uniform(rng: &mut impl Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * unit(rng)
}

/// Uniform integer in `0..bound`, without bias (Lemire's method,
/// <https://arxiv.org/abs/1805.10941>).
pub fn below(rng: &mut impl Rng, bound: u64) -> u64 {
    assert!(bound > 0, "an empty range has no random member");
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        let low = product as u64;
        if low >= bound || low >= bound.wrapping_neg() % bound {
            return (product >> 64) as u64;
        }
    }
}

/// A uniform permutation of `items` in place (Fisher-Yates).
pub fn shuffle<T>(rng: &mut impl Rng, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        let j = below(rng, i as u64 + 1) as usize;
        items.swap(i, j);
    }
}
