//! NEPA, a causal vision transformer that predicts the embedding of the next image patch
//! (arXiv 2512.16922), on candle. Tensors only; of files, its own weights only.

mod config;
pub mod cpu;
pub mod cuda;
mod error;
mod init;
pub mod objective;
mod real;
mod reference;
mod rotary;
pub mod step;
mod weights;

pub use config::{HiddenAct, NepaConfig};
pub use error::ModelError;
pub use init::init_weights;
pub use objective::PretrainReport;
pub use real::Real;
pub use reference::{Nepa, NepaOutput, PretrainLoss, pretrain_loss_of};
pub use rotary::RopeDraw;
pub use step::{FlatState, MemoryPlan, Pass, Step, StepOptions};
pub use weights::{
    ParamSpec, Weights, published_files, read_config, read_published, write_published,
};
