//! What is summed in registers at a time, and how panels of factors lie in memory for it.

/// Rows and columns of the result that are summed in registers.
pub(super) const TILE_ROWS: usize = 6;
pub(super) const TILE_COLUMNS: usize = 16;

/// A row of a panel of B: a line of the cache.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [f32; TILE_COLUMNS]);

/// A column of a panel of A.
pub(super) type Column = [f32; TILE_ROWS];
