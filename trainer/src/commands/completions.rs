//! `nepa completions`.
use std::process::ExitCode;

use clap_complete::Shell;

use super::help::with_exit_codes;

/// Print a script that completes commands and flags in a shell.
///
/// It goes to standard output; where a shell looks for it differs, see the examples. Write it again
/// after an update of nepa.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    after_long_help = with_exit_codes(
        EXAMPLES,
        "  0          printed\n  1          standard output cannot be written"
    )
)]
pub(crate) struct Args {
    /// The shell.
    pub shell: Shell,
}

const EXAMPLES: &str = "Examples:
  nepa completions bash \\
      > ~/.local/share/bash-completion/completions/nepa
  nepa completions zsh > ~/.zfunc/_nepa
  nepa completions fish \\
      > ~/.config/fish/completions/nepa.fish
For zsh, put fpath+=~/.zfunc before compinit in ~/.zshrc.";

/// Runs the command for the command line `nepa`.
pub(crate) fn run(args: Args, mut nepa: clap::Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut nepa, "nepa", &mut script);
    print!("{}", String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}
