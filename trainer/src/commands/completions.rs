//! `nepa completions`.
use std::process::ExitCode;

use clap_complete::Shell;

/// Print a script that completes commands and flags in a shell.
///
/// It goes to standard output; where a shell looks for it differs, see the examples. Write it again
/// after an update of nepa.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nepa completions bash > ~/.local/share/bash-completion/completions/nepa
  nepa completions zsh > ~/.zfunc/_nepa      (with fpath+=~/.zfunc before compinit)
  nepa completions fish > ~/.config/fish/completions/nepa.fish")]
pub struct Args {
    /// The shell.
    pub shell: Shell,
}

/// Runs the command for the command line `nepa`.
pub fn run(args: Args, mut nepa: clap::Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut nepa, "nepa", &mut script);
    print!("{}", String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}
