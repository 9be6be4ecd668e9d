//! Our errors as Python's: classes of `nepa._errors`, with the place as attributes.
use nepa_pipeline::{DatasetError, LoaderError, Place, full_text};
use pyo3::prelude::*;

/// The classes, by their names in Python.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Dataset,
    Device,
    Fork,
    Image,
    KeptTooMany,
    /// Any other.
    Nepa,
    Setting,
    State,
}

impl Kind {
    fn class(self) -> &'static str {
        match self {
            Self::Dataset => "DatasetError",
            Self::Device => "DeviceError",
            Self::Fork => "ForkError",
            Self::Image => "ImageError",
            Self::KeptTooMany => "KeptTooManyError",
            Self::Nepa => "NepaError",
            Self::Setting => "SettingError",
            Self::State => "StateError",
        }
    }
}

/// An error of this class; `place` becomes its attributes.
pub(crate) fn error(py: Python<'_>, kind: Kind, text: String, place: Option<Place>) -> PyErr {
    let make = || {
        let class = py.import("nepa._errors")?.getattr(kind.class())?;
        let error = class.call1((text,))?;
        if let Some(place) = place {
            error.setattr("object", place.object)?;
            error.setattr("row_group", place.row_group)?;
            error.setattr("row", place.row)?;
        }
        Ok(PyErr::from_value(error))
    };
    make().unwrap_or_else(|error| error)
}

/// What ends a loader.
pub(crate) fn of_loader(py: Python<'_>, cause: &LoaderError) -> PyErr {
    let kind = match cause {
        LoaderError::Dataset(cause) => of_kind(cause),
        LoaderError::TooManyKept { .. } => Kind::KeptTooMany,
        LoaderError::StateMismatch { .. } => Kind::State,
        LoaderError::TooManyBad { .. } | LoaderError::NothingToReplace { .. } => Kind::Image,
        LoaderError::Backend(_) | LoaderError::Thread(_) | LoaderError::ThreadDied => Kind::Device,
        _ => Kind::Setting,
    };
    error(py, kind, full_text(cause), cause.place())
}

/// Some errors of data sets are of their settings.
fn of_kind(cause: &DatasetError) -> Kind {
    match cause {
        DatasetError::UrlsBesideMixture { .. }
        | DatasetError::IndexBesideMixture { .. }
        | DatasetError::MixtureWeight { .. } => Kind::Setting,
        _ => Kind::Dataset,
    }
}
