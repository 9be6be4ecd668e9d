//! Which ranks exchange something with each other: those whose numbers differ in one bit.

/// Whether so many ranks can train together.
pub(super) fn is_possible(size: usize) -> bool {
    size.is_power_of_two()
}

/// The distances between neighbours, the nearest first: 1, 2, 4, ... below the number of ranks.
pub(super) fn distances(size: usize) -> impl DoubleEndedIterator<Item = usize> {
    (0..size.trailing_zeros()).map(|bit| 1 << bit)
}

/// The ranks that a rank exchanges something with, the nearest first.
pub(super) fn neighbours(rank: usize, size: usize) -> impl Iterator<Item = usize> {
    distances(size).map(move |distance| rank ^ distance)
}
