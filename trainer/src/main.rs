//! The `nepa` program: reads its arguments, runs one command, turns the error into a message and an exit code.
use std::io::Write;

use clap::{CommandFactory, Parser, Subcommand};
use nepa_pipeline::store::redact;
use nepa_trainer::{commands, print, signals};

/// Pretrain vision models straight from image shards in object storage.
///
/// Start with `nepa sample-data /tmp/scenes`, then `nepa inspect /tmp/scenes`, then `nepa pretrain` with a recipe.
#[derive(Debug, Parser)]
#[command(version = nepa_trainer::VERSION, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pack folders of images into Parquet shards.
    Pack(commands::pack::Args),
    /// Show what a data set holds and how it will be read.
    Inspect(commands::inspect::Args),
    /// Pretrain a model from a recipe.
    Pretrain(commands::pretrain::Args),
    /// Evaluate a checkpoint's features.
    Eval(commands::eval::Args),
    /// Write a learning report of a run: curves, accuracy of its features, attention and predictions.
    Report(commands::report::Args),
    /// Check the model against tensors computed by the published code.
    Verify(commands::verify::Args),
    /// Write a checkpoint's weights in the published layout.
    Export(commands::export::Args),
    /// Render a labelled set of JPEG scenes to try everything without a download.
    SampleData(commands::sample_data::Args),
    /// Run the loader alone and name the stage that limits it.
    Profile(commands::profile::Args),
    /// Print a script that completes commands and flags in a shell.
    Completions(commands::completions::Args),
    /// Write the manual pages.
    Man(commands::man::Args),
}

/// Standard error for what libraries log: without secrets.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        print::err(format_args!("{}", String::from_utf8_lossy(line)));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Reads the command line. What is wrong with it is said without the secrets that a URL in it may hold.
fn parse_arguments() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        let text = error.to_string();
        if error.use_stderr() && redact(&text) != text {
            print::err(format_args!("{text}"));
            std::process::exit(error.exit_code());
        }
        error.exit()
    })
}

fn main() -> std::process::ExitCode {
    let listening = signals::listen();
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => backtrace.to_string(),
            _ => "set RUST_BACKTRACE=1 to see where".to_owned(),
        };
        print::err(format_args!("this is a bug: {panic}\n{backtrace}\n"));
    }));
    let cli = parse_arguments();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "warn,nepa=info".into()),
        )
        .with_writer(|| StandardError)
        .log_internal_errors(false)
        .with_ansi(false)
        .event_format(print::LogLines::new())
        .init();
    if matches!(
        cli.command,
        Command::Inspect(_) | Command::Verify(_) | Command::Profile(_)
    ) {
        print::end_with_reader();
    }
    if let Err(error) = listening {
        tracing::warn!("a signal will end the program without cleaning up: {error}");
    }
    nepa_trainer::output::remove_leftovers();
    let result = match cli.command {
        Command::Pack(args) => commands::pack::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Pretrain(args) => commands::pretrain::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Report(args) => commands::report::run(args),
        Command::Verify(args) => commands::verify::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::SampleData(args) => commands::sample_data::run(args),
        Command::Profile(args) => commands::profile::run(args),
        Command::Completions(args) => commands::completions::run(args, Cli::command()),
        Command::Man(args) => commands::man::run(args, Cli::command()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            print::message("error: ", &format!("{error:#}"));
            std::process::ExitCode::FAILURE
        }
    }
}
