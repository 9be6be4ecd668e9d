//! Prints the folder with the stand-ins of NVIDIA's libraries, for `LD_LIBRARY_PATH`;
//! scripts/gpu-check rehearses on them.
fn main() {
    println!("{}", nepa_tests::standins::folder().display());
}
