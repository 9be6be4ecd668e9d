//! Operations that map each value by itself, by a table of 256.
//!
//! A channel's table may follow from its histogram (`ImageOps.autocontrast`, `equalize`).

/// A channel's number of pixels of each value.
type Histogram = [u32; 256];

/// Maps all channels alike.
pub(super) fn map(pixels: &mut [u8], of_value: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|value| of_value(value as u8));
    for value in pixels {
        *value = table[usize::from(*value)];
    }
}

/// Maps each channel by what is made of its histogram; `None` leaves it as it is.
fn map_channels(pixels: &mut [u8], of_histogram: impl Fn(&Histogram) -> Option<[u8; 256]>) {
    let unchanged = || std::array::from_fn(|value| value as u8);
    let tables =
        histograms(pixels).map(|histogram| of_histogram(&histogram).unwrap_or_else(unchanged));
    let [red, green, blue] = tables;
    for [r, g, b] in pixels.as_chunks_mut::<3>().0 {
        *r = red[usize::from(*r)];
        *g = green[usize::from(*g)];
        *b = blue[usize::from(*b)];
    }
}

fn histograms(pixels: &[u8]) -> [Histogram; 3] {
    let mut histograms = [[0; 256]; 3];
    for pixel in pixels.as_chunks::<3>().0 {
        for (histogram, &value) in histograms.iter_mut().zip(pixel) {
            histogram[usize::from(value)] += 1;
        }
    }
    histograms
}

pub(super) fn auto_contrast(pixels: &mut [u8]) {
    map_channels(pixels, |histogram| {
        let low = histogram.iter().position(|&count| count > 0)?;
        let high = histogram.iter().rposition(|&count| count > 0)?;
        if high <= low {
            return None;
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        // Cut towards 0 and to 0..=255, which is what the conversion does.
        Some(std::array::from_fn(|value| {
            (value as f64 * scale + offset) as u8
        }))
    });
}

pub(super) fn equalize(pixels: &mut [u8]) {
    map_channels(pixels, |histogram| {
        let last = histogram.iter().rposition(|&count| count > 0)?;
        let num_pixels: u32 = histogram.iter().sum();
        let step = (num_pixels - histogram[last]) / 255;
        // Also where there is one value alone: nothing is left then.
        if step == 0 {
            return None;
        }
        let mut below = step / 2;
        Some(histogram.map(|count| {
            let value = (below / step).min(255) as u8;
            below += count;
            value
        }))
    });
}

pub(super) fn posterize(pixels: &mut [u8], bits: u8) {
    let mask = match bits {
        0 => 0,
        1..8 => !0 << (8 - bits),
        _ => !0,
    };
    for value in pixels {
        *value &= mask;
    }
}

pub(super) fn solarize(pixels: &mut [u8], from: u16) {
    map(pixels, |value| {
        if u16::from(value) < from {
            value
        } else {
            255 - value
        }
    });
}

pub(super) fn solarize_add(pixels: &mut [u8], add: u8) {
    map(pixels, |value| {
        if value < 128 {
            value.saturating_add(add)
        } else {
            value
        }
    });
}
