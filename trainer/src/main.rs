//! The `nepa` program.

fn main() -> std::process::ExitCode {
    nepa_trainer::main()
}
