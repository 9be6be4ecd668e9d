//! Which values a rank adds with whom, so that the sum over all ranks has one order whatever their
//! number: neighbours first, so that the sums of ranks 0 and 1, then those of 0 to 3, are the nodes
//! of one binary tree over everything that is added.
//!
//! Recursive halving: of what two ranks hold, each keeps one half and gives the other. Then
//! doubling, the same way back. Each rank sends and receives about twice the values, in 2 log2 of
//! the ranks exchanges.
use std::ops::Range;

use super::neighbours::distances;

/// One exchange. In halving, `given` goes to the peer and its values of `kept` come; in doubling,
/// `kept` goes and `given` comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Halving {
    pub(crate) peer: usize,
    pub(crate) kept: Range<usize>,
    pub(crate) given: Range<usize>,
}

/// The exchanges of a rank over so many values: forwards they halve, backwards they double. Halves
/// begin at multiples of `aligned`.
pub(crate) fn halvings(rank: usize, size: usize, len: usize, aligned: usize) -> Vec<Halving> {
    let mut range = 0..len;
    let halve = |distance| {
        let middle = range.start + larger_half(range.len(), aligned);
        let (lower, upper) = (range.start..middle, middle..range.end);
        let (kept, given) = if rank & distance == 0 {
            (lower, upper)
        } else {
            (upper, lower)
        };
        range = kept.clone();
        Halving {
            peer: rank ^ distance,
            kept,
            given,
        }
    };
    distances(size).map(halve).collect()
}

/// Of so many values as many as a rank keeps at most; the lower of two halves.
pub(crate) fn larger_half(len: usize, aligned: usize) -> usize {
    len.div_ceil(2).next_multiple_of(aligned).min(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ranks_keep_and_give_the_same_halves() {
        for (size, len, aligned) in [(2, 5, 1), (8, 1_000, 64), (8, 3, 64), (4, 0, 1)] {
            let all = (0..size).map(|rank| halvings(rank, size, len, aligned));
            let all = all.collect::<Vec<_>>();
            for (rank, own) in all.iter().enumerate() {
                for (round, Halving { peer, kept, given }) in own.iter().enumerate() {
                    let theirs = &all[*peer][round];
                    let expected = (rank, given, kept);
                    assert_eq!((theirs.peer, &theirs.kept, &theirs.given), expected);
                    assert!(kept.len() <= larger_half(len, aligned));
                    assert!(kept.start.max(given.start).is_multiple_of(aligned) || len < aligned);
                }
            }
            // What is left to each is all, once.
            let mut left: Vec<_> = all
                .iter()
                .map(|own| own.last().unwrap().kept.clone())
                .collect();
            left.sort_by_key(|range| (range.start, range.end));
            let ends = left.iter().fold(0, |end, range| {
                assert!(range.is_empty() || range.start == end, "{left:?}");
                end.max(range.end)
            });
            assert_eq!(ends, len);
        }
    }
}
