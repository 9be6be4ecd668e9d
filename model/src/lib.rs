//! NEPA, a causal vision transformer that predicts the embedding of the next image patch
//! (arXiv 2512.16922), on candle. Tensors only; of files, its own weights only.

mod ablation;
mod config;
mod conversion;
pub mod cpu;
pub mod cuda;
mod drop_path;
mod error;
mod init;
mod layerscale;
pub mod objective;
mod real;
mod reference;
mod rotary;
pub mod step;
mod weights;

pub use ablation::Ablation;
pub use config::{Classes, HiddenAct, NepaConfig};
pub use conversion::{Conversion, classifier_weights};
pub use drop_path::DropPath;
pub use error::ModelError;
pub use init::init_weights;
pub use layerscale::fold_layerscale;
pub use objective::PretrainReport;
pub use real::Real;
pub use reference::{
    Nepa, NepaOutput, PretrainDraw, PretrainLoss, pretrain_loss_of, soft_cross_entropy,
};
pub use rotary::RopeDraw;
pub use step::{FlatState, MemoryPlan, Pass, Step, StepOptions};
pub use weights::{
    ParamSpec, Weights, pickle_conversion, published_files, read_config, read_published,
    shard_files, write_published,
};
