//! The sum of flat values over all ranks, in one order whatever their number: neighbours first, so
//! that the sums of ranks 0 and 1, then those of 0 to 3, are the nodes of one binary tree over
//! everything that is added.
//!
//! Recursive halving: of what two ranks hold, each takes one half and gives the other. Then
//! doubling, the same way back. Each rank sends and receives about twice the values, in 2 log2 of
//! the ranks exchanges.
use rayon::prelude::*;

use super::neighbours::distances;
use super::wire::{Wire, WireError};

/// Values that are worth a thread's while.
const VALUES_PER_JOB: usize = 1 << 16;

/// Makes `values` the sum over all ranks, the same bits on each. `other` is memory, kept from call
/// to call.
pub(super) fn sum(
    wire: &mut dyn Wire,
    values: &mut [f32],
    other: &mut Vec<f32>,
) -> Result<(), WireError> {
    let (rank, mut range) = (wire.rank(), 0..values.len());
    // The larger half of all.
    other.resize(values.len().div_ceil(2), 0.0);
    let mut halves = Vec::new();
    for distance in distances(wire.size()) {
        let middle = range.start.midpoint(range.end);
        let (lower, upper) = (range.start..middle, middle..range.end);
        let (kept, given) = if rank & distance == 0 {
            (lower, upper)
        } else {
            (upper, lower)
        };
        let received = &mut other[..kept.len()];
        wire.send_receive(
            rank ^ distance,
            bytemuck::cast_slice(&values[given.clone()]),
            bytemuck::cast_slice_mut(received),
        )?;
        add(&mut values[kept.clone()], received);
        range = kept.clone();
        halves.push((distance, kept, given));
    }
    for (distance, kept, given) in halves.into_iter().rev() {
        // What is received and what is sent lie beside each other.
        let (kept, given) = if kept.end <= given.start {
            let (low, high) = values.split_at_mut(given.start);
            (&low[kept], &mut high[..given.len()])
        } else {
            let (low, high) = values.split_at_mut(kept.start);
            (&high[..kept.len()], &mut low[given])
        };
        wire.send_receive(
            rank ^ distance,
            bytemuck::cast_slice(kept),
            bytemuck::cast_slice_mut(given),
        )?;
    }
    Ok(())
}

/// Adds value by value. An addition gives the same bits either way round, so the lower rank's sum
/// may stand on either side.
fn add(sums: &mut [f32], values: &[f32]) {
    sums.par_chunks_mut(VALUES_PER_JOB)
        .zip(values.par_chunks(VALUES_PER_JOB))
        .for_each(|(sums, values)| {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += *value;
            }
        });
}
