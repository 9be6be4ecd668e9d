//! Other processes that compute the rest of a step, as an engine sees them.
use std::error::Error;

/// Why the others cannot be reached.
pub type ExchangeError = Box<dyn Error + Send + Sync>;

/// How processes sum their gradients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summing {
    /// From GPU to GPU, where an engine on a GPU can; else by [`Exchange::sum`].
    pub between_gpus: bool,
    /// The library that carries the values adds them, too, where it can: in an order of its own,
    /// which may be another one for another number of processes. Else a balanced binary tree does.
    pub by_library: bool,
}

/// The processes of a step, each with as many micro-batches, in their order. All ask for the same
/// things in the same order.
pub trait Exchange: std::fmt::Debug + Send + Sync {
    /// This one.
    fn rank(&self) -> usize;

    /// Their number, a power of two.
    fn size(&self) -> usize;

    /// How gradients are summed.
    fn summing(&self) -> Summing {
        Summing::default()
    }

    /// Makes values their sum over all, the same bits everywhere: those of the tree, unless the
    /// library adds.
    fn sum(&self, values: &mut [f32]) -> Result<(), ExchangeError>;

    /// A record of each, in order.
    fn share(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError>;

    /// Fails once another one has ended, or cannot be reached any more; does not wait.
    fn check(&self) -> Result<(), ExchangeError>;

    /// The numbers of each, in order; as many of each.
    fn gather(&self, own: &[f64]) -> Result<Vec<Vec<f64>>, ExchangeError>;
}
