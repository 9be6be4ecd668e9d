//! Several ranks on one machine, each a process of this program: `nepa launch` starts them, and each
//! of them listens to it. The variables are torchrun's, so that a rank does not know the difference.
mod children;
mod obey;

pub(crate) use children::launch;
pub(crate) use obey::{is_launched, obey};
