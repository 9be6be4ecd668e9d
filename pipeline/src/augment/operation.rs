//! The operations of RandAugment, with their arguments: plain data. What they do to pixels is
//! `image::operations`'.
use serde::{Deserialize, Serialize};

/// The level at which arguments are largest.
pub(super) const MAX_LEVEL: f64 = 10.0;

/// A change of an 8-bit RGB picture, with its argument; as Pillow's functions of these names, in
/// Pillow's arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Stretches each channel to the full range.
    AutoContrast,
    /// Makes each channel's histogram even.
    Equalize,
    /// 255 minus each value.
    Invert,
    /// Turns about the centre, against the clock, by degrees.
    Rotate(f64),
    /// Keeps so many of the highest bits of each value, 0 to 8; 0 makes the picture black.
    Posterize(u8),
    /// Inverts values from this one on; 256 changes nothing.
    Solarize(u16),
    /// Adds this to values below 128, up to 255.
    SolarizeAdd(u8),
    /// Between grey (0) and the picture (1), or beyond it.
    Color(f64),
    /// Between the mean grey (0) and the picture (1), or beyond it.
    Contrast(f64),
    /// Between black (0) and the picture (1), or beyond it.
    Brightness(f64),
    /// Between the smoothed picture (0) and the picture (1), or beyond it.
    Sharpness(f64),
    /// Each row moves by this share of its distance from the top.
    ShearX(f64),
    /// Each column moves by this share of its distance from the left.
    ShearY(f64),
    /// The picture moves to the left by this share of its width.
    TranslateX(f64),
    /// The picture moves up by this share of its height.
    TranslateY(f64),
}

impl Operation {
    /// How many operations RandAugment chooses from.
    pub(super) const COUNT: u64 = 15;

    /// Operation number `index` of timm's "increasing" set at `level`, 0 to 10; `negative` turns
    /// the argument of those that have two directions. Stronger at higher levels throughout.
    pub(super) fn at_level(index: u64, level: f64, negative: bool) -> Self {
        // In timm's order of operations, so that the arguments are the same bits.
        let share = level / MAX_LEVEL;
        let signed = |value: f64| if negative { -value } else { value };
        let factor = || (1.0 + signed(share * 0.9)).max(0.1);
        match index {
            0 => Self::AutoContrast,
            1 => Self::Equalize,
            2 => Self::Invert,
            3 => Self::Rotate(signed(share * 30.0)),
            4 => Self::Posterize(4 - (share * 4.0) as u8),
            5 => Self::Solarize(256 - ((share * 256.0) as u16).min(256)),
            6 => Self::SolarizeAdd(((share * 110.0) as u8).min(128)),
            7 => Self::Color(factor()),
            8 => Self::Contrast(factor()),
            9 => Self::Brightness(factor()),
            10 => Self::Sharpness(factor()),
            11 => Self::ShearX(signed(share * 0.3)),
            12 => Self::ShearY(signed(share * 0.3)),
            13 => Self::TranslateX(signed(share * 0.45)),
            14 => Self::TranslateY(signed(share * 0.45)),
            _ => unreachable!("there are {} operations", Self::COUNT),
        }
    }
}
