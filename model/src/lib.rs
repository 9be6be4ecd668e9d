//! NEPA, a causal vision transformer that predicts the embedding of the next image patch
//! (arXiv 2512.16922), on candle. Tensors only; of files, its own weights only.

mod config;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod explicit;
mod init;
pub mod kernel_step;
mod nepa;
mod ops;
mod rotary;
mod weights;

pub use config::{HiddenAct, NepaConfig};
pub use error::ModelError;
pub use explicit::{ExplicitNepa, MemoryPlan, PretrainReport};
pub use init::init_weights;
pub use nepa::{Arithmetic, Nepa, NepaOutput, PretrainLoss, pretrain_loss_of};
pub use rotary::RopeDraw;
pub use weights::{
    ParamSpec, Weights, published_files, read_config, read_published, write_published,
};
