//! Pages and what is drawn on them: curves, the style for light and dark, the script. Used by
//! `report` and `profile`.
mod curve;
mod document;
mod plots;
mod ticks;

pub(crate) use curve::{Curve, Point, Style, piece_of};
pub(crate) use document::{data_url, document, figure, picture_style, png};
pub(crate) use plots::{Drawing, Plot};
