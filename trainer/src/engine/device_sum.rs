//! The sum over several processes that never leaves their devices.
use nepa_model::Step;

use super::EngineError;

/// Sums over the processes of an [`super::Exchange`] in the memory of their devices: to the bits of
/// its own sum, unless a library adds.
pub(crate) trait DeviceSum<D>: std::fmt::Debug + Send {
    /// Makes the gradient of this process's micro-batches that of all.
    fn sum(&mut self, step: &mut Step<D>) -> Result<(), EngineError>;
}
