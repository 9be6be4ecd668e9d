//! Other processes that compute the rest of a step, as an engine sees them.
use std::error::Error;

/// Why the others cannot be reached.
pub type ExchangeError = Box<dyn Error + Send + Sync>;

/// The processes of a step, each with as many micro-batches, in their order. All ask for the same
/// things in the same order.
pub trait Exchange: std::fmt::Debug + Send + Sync {
    /// This one.
    fn rank(&self) -> usize;

    /// Their number, a power of two.
    fn size(&self) -> usize;

    /// Whether an engine on a GPU sums from GPU to GPU, as [`Self::sum`] would.
    fn sums_between_gpus(&self) -> bool {
        false
    }

    /// Makes values their sum over all, the same bits everywhere: those of a balanced binary tree,
    /// unless a library was chosen to add.
    fn sum(&self, values: &mut [f32]) -> Result<(), ExchangeError>;

    /// A record of each, in order.
    fn share(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError>;

    /// Fails once another one has ended, or cannot be reached any more; does not wait.
    fn check(&self) -> Result<(), ExchangeError>;

    /// The numbers of each, in order; as many of each.
    fn gather(&self, own: &[f64]) -> Result<Vec<Vec<f64>>, ExchangeError>;
}
