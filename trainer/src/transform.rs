//! Evaluation pixels: how an image becomes the square that a model sees. The three transforms by
//! which published numbers were measured have names; a folder may say another.
use nepa_pipeline::{AugmentConfig, Filter};
use serde::{Deserialize, Serialize};

/// The transforms of the published evaluations, by their sizes for a model of 224 pixels; those of
/// others are in proportion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum NamedTransform {
    /// The shorter side to 256, bicubic, then the centre (B as published).
    #[default]
    #[serde(rename = "shorter-256-bicubic")]
    #[value(name = "shorter-256-bicubic")]
    Shorter256Bicubic,
    /// To 235 x 235 whatever the aspect ratio, bicubic, then the centre (L as published).
    #[serde(rename = "squash-235-bicubic")]
    #[value(name = "squash-235-bicubic")]
    Squash235Bicubic,
    /// To 224 x 224 whatever the aspect ratio, bilinear (the published image processor).
    #[serde(rename = "squash-224-bilinear")]
    #[value(name = "squash-224-bilinear")]
    Squash224Bilinear,
}

impl NamedTransform {
    /// For a model of so many pixels.
    pub fn of(self, image_size: u32) -> Transform {
        let (resize, filter) = match self {
            Self::Shorter256Bicubic => (
                Resize::ShorterSide((image_size * 8).div_ceil(7)),
                Filter::Bicubic,
            ),
            // 224 / 0.95, cut to whole pixels.
            Self::Squash235Bicubic => (Resize::Squash(image_size * 100 / 95), Filter::Bicubic),
            Self::Squash224Bilinear => (Resize::Squash(image_size), Filter::Bilinear),
        };
        Transform {
            resize,
            size: image_size,
            filter,
        }
    }
}

/// What is resized to so many pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The shorter side; the other in proportion.
    ShorterSide(u32),
    /// Both sides, whatever the aspect ratio.
    Squash(u32),
}

/// Resizes, then cuts a square from the centre.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transform {
    /// To which size.
    pub resize: Resize,
    /// Side of the square in pixels.
    pub size: u32,
    /// Interpolation.
    pub filter: Filter,
}

impl Transform {
    /// For the loader.
    pub fn augment(self) -> AugmentConfig {
        let Self { size, filter, .. } = self;
        match self.resize {
            Resize::ShorterSide(resize) => AugmentConfig::CenterCrop {
                size,
                resize,
                filter,
            },
            Resize::Squash(resize) => AugmentConfig::Squash {
                size,
                resize,
                filter,
            },
        }
    }

    /// What is done where nothing else is said: the shorter side to 8/7 of the model's size, then
    /// the centre. Models of less than 64 pixels see all of the shorter side: their images have as
    /// few, and no frame to lose.
    pub fn usual(image_size: u32) -> Self {
        let usual = NamedTransform::Shorter256Bicubic.of(image_size);
        if image_size < 64 {
            usual.from_shorter_side(image_size)
        } else {
            usual
        }
    }

    /// The same with the shorter side resized to so many pixels.
    #[must_use]
    pub fn from_shorter_side(self, resize: u32) -> Self {
        Self {
            resize: Resize::ShorterSide(resize),
            ..self
        }
    }

    /// The same of a smaller square.
    #[must_use]
    pub fn shrunk_to(self, size: u32) -> Self {
        let shrunk = |resize: u32| (resize * size).div_ceil(self.size);
        Self {
            resize: match self.resize {
                Resize::ShorterSide(resize) => Resize::ShorterSide(shrunk(resize)),
                Resize::Squash(resize) => Resize::Squash(shrunk(resize)),
            },
            size,
            ..self
        }
    }
}

/// For people: `shorter side 256, bicubic, centre 224`.
impl std::fmt::Display for Transform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let filter = match self.filter {
            Filter::Bilinear => "bilinear",
            Filter::Bicubic => "bicubic",
        };
        let resized = match self.resize {
            Resize::ShorterSide(resize) => {
                write!(f, "shorter side {resize}, {filter}")?;
                resize
            }
            Resize::Squash(resize) => {
                write!(f, "squashed to {resize} x {resize}, {filter}")?;
                resize
            }
        };
        match (self.resize, resized == self.size) {
            (Resize::Squash(_), true) => Ok(()),
            _ => write!(f, ", centre {}", self.size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_published_sizes_and_others_in_proportion() {
        let shown = |name: NamedTransform, size| name.of(size).to_string();
        let (shorter, bicubic, bilinear) = (
            NamedTransform::Shorter256Bicubic,
            NamedTransform::Squash235Bicubic,
            NamedTransform::Squash224Bilinear,
        );
        assert_eq!(shown(shorter, 224), "shorter side 256, bicubic, centre 224");
        assert_eq!(
            shown(bicubic, 224),
            "squashed to 235 x 235, bicubic, centre 224"
        );
        assert_eq!(shown(bilinear, 224), "squashed to 224 x 224, bilinear");
        assert_eq!(shown(shorter, 98), "shorter side 112, bicubic, centre 98");
        assert_eq!(
            shown(bicubic, 98),
            "squashed to 103 x 103, bicubic, centre 98"
        );
        assert_eq!(shown(shorter, 32), "shorter side 37, bicubic, centre 32");
        for name in [shorter, bicubic, bilinear] {
            for size in [1, 28, 63, 64, 224, 518] {
                name.of(size).augment().build().expect("fits");
            }
        }
        let usual = |size| Transform::usual(size).to_string();
        assert_eq!(usual(32), "shorter side 32, bicubic, centre 32");
        assert_eq!(usual(224), shown(shorter, 224));
        let small = shorter.of(224).shrunk_to(32);
        assert_eq!(small.to_string(), "shorter side 37, bicubic, centre 32");
    }

    #[test]
    fn a_recipe_writes_the_name() {
        let names = [
            NamedTransform::Shorter256Bicubic,
            NamedTransform::Squash235Bicubic,
            NamedTransform::Squash224Bilinear,
        ];
        let written = serde_json::to_string(&names).unwrap();
        assert_eq!(
            written,
            r#"["shorter-256-bicubic","squash-235-bicubic","squash-224-bilinear"]"#
        );
        let read: [NamedTransform; 3] = serde_json::from_str(&written).unwrap();
        assert_eq!(read, names);
    }
}
