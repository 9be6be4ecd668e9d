//! Small records of all ranks for all, and large values of rank 0 for all.
use super::neighbours::distances;
use super::wire::{Wire, WireError};

/// The records of all ranks, in their order; they may differ in length. First the lengths, then the
/// records, by recursive doubling: what 1, 2, 4, ... ranks know, as many others know next.
pub(super) fn all_gather(wire: &mut dyn Wire, own: &[u8]) -> Result<Vec<Vec<u8>>, WireError> {
    let (rank, size) = (wire.rank(), wire.size());
    let mut lengths = vec![0u64; size];
    lengths[rank] = own.len() as u64;
    for distance in distances(size) {
        let (mine, theirs) = blocks(rank, distance);
        let sent = lengths[mine].to_vec();
        let received = bytemuck::cast_slice_mut(&mut lengths[theirs]);
        wire.send_receive(rank ^ distance, bytemuck::cast_slice(&sent), received)?;
    }
    let mut records = vec![Vec::new(); size];
    records[rank] = own.to_vec();
    for distance in distances(size) {
        let (mine, theirs) = blocks(rank, distance);
        let sent = records[mine].concat();
        let length: u64 = lengths[theirs.clone()].iter().sum();
        let mut received = vec![0; length as usize];
        wire.send_receive(rank ^ distance, &sent, &mut received)?;
        let mut rest = &received[..];
        for (record, length) in records[theirs.clone()].iter_mut().zip(&lengths[theirs]) {
            let (first, behind) = rest.split_at(*length as usize);
            (*record, rest) = (first.to_vec(), behind);
        }
    }
    Ok(records)
}

/// The ranks whose records a rank knows before it meets the one at that distance, and those that
/// the other one knows.
fn blocks(rank: usize, distance: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let of = |rank: usize| {
        let first = rank & !(distance - 1);
        first..first + distance
    };
    (of(rank), of(rank ^ distance))
}

/// Makes `bytes`, of one length everywhere, what rank 0 has.
pub(super) fn broadcast(wire: &mut dyn Wire, bytes: &mut [u8]) -> Result<(), WireError> {
    let rank = wire.rank();
    for distance in distances(wire.size()) {
        // Ranks below the distance have it by now.
        if rank < distance {
            wire.send_receive(rank ^ distance, bytes, &mut [])?;
        } else if rank < 2 * distance {
            wire.send_receive(rank ^ distance, &[], bytes)?;
        }
    }
    Ok(())
}
