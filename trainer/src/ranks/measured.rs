//! The ranks of a process as a benchmark of their sums sees them. No part of a run uses it.
use std::sync::Arc;

use super::join::join;
use super::place::PlaceArgs;
use crate::engine::{Exchange, ExchangeError};

/// One process among those with which it adds values.
pub type Adding = Arc<dyn Exchange>;

/// Joins the ranks of which the environment says this process is one: over TCP where `meet` gives
/// `HOST:PORT`, else as a run would. Gives them adding by the tree and, where a library connects
/// them, by that.
pub fn exchanges(meet: Option<&str>) -> Result<(Adding, Option<Adding>), ExchangeError> {
    let ranks = join(&PlaceArgs {
        meet: meet.map(str::to_owned),
        ..PlaceArgs::default()
    })?;
    let library = ranks
        .has_library()
        .then(|| -> Adding { Arc::new(ranks.adding(true)) });
    let tree: Adding = Arc::new(ranks);
    Ok((tree, library))
}
