//! The loader gives the same batches whatever the threads and the timing, every sample once,
//! resumes from anywhere, replaces bad samples alike, and stops when told.
mod bad_samples;
mod changed_pixels;
mod ends;
mod lanes;
mod order;
mod resume;
mod settings;

// What the tests of other modules take from here.
pub(crate) use nepa_tests::data::open_folder as open;
pub(crate) use nepa_tests::loading::{Kept, all, config};
pub(crate) use nepa_tests::photos::{all_good, some_bad};
