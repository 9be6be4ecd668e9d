//! Encoded bytes to an upright-able RGB image.
