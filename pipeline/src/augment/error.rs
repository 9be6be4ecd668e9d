//! What can be wrong with the settings of an augmentation.

/// A setting of an augmentation is impossible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AugmentError {
    /// A length in pixels is zero or absurd.
    #[error("augment.{field} is {value}, but it must be from 1 to {MAX_SIDE} pixels")]
    Side {
        /// The setting.
        field: &'static str,
        /// What it was set to.
        value: u32,
    },
    /// The range of a share of the area.
    #[error(
        "augment.{field} is [{min}, {max}], but it must be [min, max] with 0 < min <= max <= 1"
    )]
    Scale {
        /// The setting.
        field: &'static str,
        /// Its lower end.
        min: f64,
        /// Its upper end.
        max: f64,
    },
    /// The range of an aspect ratio.
    #[error(
        "augment.{field} is [{min}, {max}] ({what}), but it must be [min, max] with 0 < min <= max and both finite"
    )]
    Ratio {
        /// The setting.
        field: &'static str,
        /// Which side over which.
        what: &'static str,
        /// Its lower end.
        min: f64,
        /// Its upper end.
        max: f64,
    },
    /// The probability of a flip.
    #[error("augment.flip is {value}, but a probability must be from 0 to 1")]
    Flip {
        /// What it was set to.
        value: f64,
    },
    /// A number outside of its range.
    #[error("augment.{field} is {value}, but it must be {rule}")]
    Value {
        /// The setting.
        field: &'static str,
        /// What it was set to.
        value: f64,
        /// What it may be.
        rule: &'static str,
    },
    /// The number of views.
    #[error(
        "augment asks for {num_global} global and {num_local} local views, but there must be at least one global view and at most {MAX_VIEWS} in all"
    )]
    Views {
        /// Global views.
        num_global: u32,
        /// Local views.
        num_local: u32,
    },
    /// The centre crop would not fit in the resized image.
    #[error(
        "augment.size is {size}, but it must not exceed augment.resize, which is {resize}: the crop is cut from the resized image"
    )]
    CropExceedsResize {
        /// Side of the crop.
        size: u32,
        /// Shorter side of the resized image.
        resize: u32,
    },
}

impl AugmentError {
    /// The error of a setting of [`crate::RandomResizedCrop`] that is one kind of view of
    /// [`crate::MultiCrop`].
    pub(super) fn of(self, kind: &str) -> Self {
        let name = |field| match (kind, field) {
            ("global", "size") => "global_size",
            ("global", "scale") => "global_scale",
            ("local", "size") => "local_size",
            ("local", "scale") => "local_scale",
            (_, other) => other,
        };
        match self {
            Self::Side { field, value } => Self::Side {
                field: name(field),
                value,
            },
            Self::Scale { field, min, max } => Self::Scale {
                field: name(field),
                min,
                max,
            },
            other => other,
        }
    }
}

/// The longest side of an output image in pixels; longer ones are surely mistaken.
const MAX_SIDE: u32 = 1 << 14;

pub(super) fn check_side(field: &'static str, value: u32) -> Result<u32, AugmentError> {
    if (1..=MAX_SIDE).contains(&value) {
        Ok(value)
    } else {
        Err(AugmentError::Side { field, value })
    }
}

/// Whether a crop of `size` can be cut from what was resized to `resize`.
pub(super) fn check_resize(size: u32, resize: u32) -> Result<(), AugmentError> {
    check_side("size", size)?;
    check_side("resize", resize)?;
    if size > resize {
        return Err(AugmentError::CropExceedsResize { size, resize });
    }
    Ok(())
}

/// Most views of one image; more are surely mistaken.
pub(super) const MAX_VIEWS: u32 = 64;
