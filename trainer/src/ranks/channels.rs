//! A wire between threads of one process, for tests.
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::neighbours::neighbours;
use super::wire::{Wire, WireError};

/// Ways to another rank and back.
type Ways = (Sender<Vec<u8>>, Receiver<Vec<u8>>);

/// One end.
#[derive(Debug)]
pub(super) struct Channels {
    rank: usize,
    size: usize,
    peers: BTreeMap<usize, Ways>,
}

impl Channels {
    /// An end for each of so many ranks.
    pub(super) fn new(size: usize) -> Vec<Self> {
        let mut ends = (0..size)
            .map(|rank| Self {
                rank,
                size,
                peers: BTreeMap::new(),
            })
            .collect::<Vec<_>>();
        for rank in 0..size {
            for peer in neighbours(rank, size).filter(|peer| *peer > rank) {
                let ((to, from), (back_to, back_from)) = (channel(), channel());
                ends[rank].peers.insert(peer, (to, back_from));
                ends[peer].peers.insert(rank, (back_to, from));
            }
        }
        ends
    }
}

impl Wire for Channels {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn send_receive(
        &mut self,
        peer: usize,
        send: &[u8],
        receive: &mut [u8],
    ) -> Result<(), WireError> {
        let ended = || WireError::Ended {
            rank: peer,
            cause: "is gone".to_owned(),
        };
        let (to, from) = self.peers.get(&peer).expect("a neighbour");
        to.send(send.to_vec()).map_err(|_| ended())?;
        let received = from.recv().map_err(|_| ended())?;
        if received.len() != receive.len() {
            return Err(WireError::OutOfStep {
                rank: peer,
                got: received.len(),
                expected: receive.len(),
            });
        }
        receive.copy_from_slice(&received);
        Ok(())
    }

    fn check(&mut self) -> Result<(), WireError> {
        Ok(())
    }
}
