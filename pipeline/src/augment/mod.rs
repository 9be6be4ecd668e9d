//! Augmentations draw a [`CropPlan`] for each view from a sample's random stream; they touch no
//! pixel. The list of augmentations is [`AugmentConfig`]; each has its own file.

mod center_crop;
mod config;
mod error;
mod multi_crop;
mod operation;
mod plan;
mod rand_augment;
mod random_erasing;
mod random_resized_crop;
mod squash;

pub use center_crop::CenterCrop;
pub use config::AugmentConfig;
pub use error::AugmentError;
pub use multi_crop::MultiCrop;
pub use operation::Operation;
pub use plan::{Augment, CropPlan, CropRect, EdgeSupport, Filter};
pub use rand_augment::RandAugment;
pub use random_erasing::{EraseBox, RandomErasing};
pub use random_resized_crop::RandomResizedCrop;
pub use squash::Squash;
