//! The ranks of a process as a benchmark of their sums sees them. No part of a run uses it.
use std::sync::Arc;

use super::group::Ranks;
use super::join::{join, part};
use super::place::PlaceArgs;
use crate::engine::{Exchange, ExchangeError, Summing};

/// Ranks that add values; all end together when this is dropped.
#[derive(Debug)]
pub struct Adding {
    ranks: Ranks,
    /// By the tree.
    pub tree: Arc<dyn Exchange>,
    /// By the library that connects them, where one does.
    pub library: Option<Arc<dyn Exchange>>,
}

impl Adding {
    /// Joins the ranks of which the environment says this process is one: over TCP where `meet`
    /// gives `HOST:PORT`, else as a run would.
    pub fn join(meet: Option<&str>) -> Result<Self, ExchangeError> {
        let ranks = join(&PlaceArgs {
            meet: meet.map(str::to_owned),
            ..PlaceArgs::default()
        })?;
        let adding = |by_library| -> Arc<dyn Exchange> {
            Arc::new(ranks.with_summing(Summing {
                between_gpus: false,
                by_library,
            }))
        };
        Ok(Self {
            tree: adding(false),
            library: ranks.has_library().then(|| adding(true)),
            ranks,
        })
    }
}

impl Drop for Adding {
    fn drop(&mut self) {
        self.ranks.leave(None);
        part();
    }
}
