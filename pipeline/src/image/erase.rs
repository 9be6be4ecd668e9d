//! Erased boxes of normalised pixels: noise, the same on every machine.
use super::normalize::{Normalize, Pixel};
use crate::EraseBox;
use crate::random::{Normal, noise_stream};

/// Replaces a box of a view of `side` x `side` pixels, `[3, S, S]` or in patches, by standard normal
/// draws: channel by channel, row by row. 8-bit pixels become what lies nearest to that once it is
/// normalised.
pub(super) fn erase<P: Pixel>(
    rect: &EraseBox,
    normalize: &Normalize,
    side: usize,
    patch_size: Option<u32>,
    output: &mut [P],
) {
    let [top, left, height, width] =
        [rect.top, rect.left, rect.height, rect.width].map(|length| length as usize);
    let mut stream = noise_stream(rect.noise_seed);
    let normal = Normal::default();
    // A view that is not cut is one patch.
    let patch = patch_size.map_or(side, |size| size as usize);
    for channel in 0..3 {
        for y in top..top + height {
            let mut x = left;
            while x < left + width {
                let column = x / patch;
                let end = ((column + 1) * patch).min(left + width);
                let number = y / patch * (side / patch) + column;
                let row = (number * 3 + channel) * patch + y % patch;
                let start = row * patch + x % patch;
                for value in &mut output[start..start + end - x] {
                    let noise = normal.draw(&mut stream) as f32;
                    *value = P::new(normalize.nearest(channel, noise), noise);
                }
                x = end;
            }
        }
    }
}
