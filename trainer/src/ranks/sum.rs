//! The sum of flat values over all ranks, by recursive halving and doubling.
use rayon::prelude::*;

use super::halving::{Halving, halvings, larger_half};
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
    other.resize(larger_half(values.len(), 1), 0.0);
    let halvings = halvings(wire.rank(), wire.size(), values.len(), 1);
    for Halving { peer, kept, given } in halvings.iter().cloned() {
        let received = &mut other[..kept.len()];
        wire.send_receive(
            peer,
            bytemuck::cast_slice(&values[given]),
            bytemuck::cast_slice_mut(received),
        )?;
        add(&mut values[kept], received);
    }
    for Halving { peer, kept, given } in halvings.into_iter().rev() {
        // What is received and what is sent lie beside each other.
        let (kept, given) = if kept.end <= given.start {
            let (low, high) = values.split_at_mut(given.start);
            (&low[kept], &mut high[..given.len()])
        } else {
            let (low, high) = values.split_at_mut(kept.start);
            (&high[..kept.len()], &mut low[given])
        };
        wire.send_receive(
            peer,
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
