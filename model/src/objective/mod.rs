//! What an encoder is trained for: its output in, a loss and the gradient of the output out. One
//! file each.
mod autograd;
mod classification;
mod nepa;
#[expect(clippy::module_inception, reason = "the folder's main trait")]
mod objective;

pub use autograd::{Autograd, HeadLoss};
pub use classification::{Classification, ClassificationReport};
pub use nepa::{NextEmbedding, PretrainReport};
pub use objective::Objective;
