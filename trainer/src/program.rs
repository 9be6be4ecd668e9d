//! The `nepa` program: reads its arguments, runs one command, turns the error into a message and an
//! exit code. Called by `main.rs`.
use std::io::Write;

use nepa_pipeline::redact;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::{Cli, Command, command};
use crate::console::messages::with_causes;
use crate::console::print;
use crate::{commands, launch, output, ranks, signals, trace};

/// Standard error for what libraries log: without secrets.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        print::urgent(format_args!("{}", String::from_utf8_lossy(line)));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Reads the command line. What is wrong with it is said without the secrets that a URL in it may
/// hold.
fn parse_arguments() -> Cli {
    Cli::read().unwrap_or_else(|error| end_with(&error))
}

/// Says what is wrong with a command line, or the help that was asked for, and ends.
fn end_with(error: &clap::Error) -> ! {
    let text = error.to_string();
    if error.use_stderr() && redact(&text) != text {
        print::err(format_args!("{text}"));
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// Runs the `nepa` program.
pub fn main() -> std::process::ExitCode {
    let listening = signals::listen();
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => backtrace.to_string(),
            _ => "set RUST_BACKTRACE=1 to see where".to_owned(),
        };
        print::urgent(format_args!("this is a bug: {panic}\n{backtrace}\n"));
    }));
    let cli = parse_arguments();
    let logged = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "warn,nepa=info".into());
    let log = tracing_subscriber::fmt::layer()
        .with_writer(|| StandardError)
        .log_internal_errors(false)
        .with_ansi(false)
        .event_format(print::LogLines::new())
        .with_filter(logged);
    tracing_subscriber::registry()
        .with(trace::layer())
        .with(log)
        .init();
    if matches!(
        cli.command,
        Command::Inspect(_)
            | Command::Verify(_)
            | Command::Profile(_)
            | Command::Recipes(_)
            | Command::Predict(_)
    ) {
        print::end_with_reader();
    }
    if let Err(error) = listening {
        tracing::warn!("a signal will end the program without cleaning up: {error}");
    }
    output::remove_leftovers();
    launch::obey();
    let result = match cli.command {
        Command::Pack(args) => commands::pack::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Pretrain(args) => commands::pretrain::run(args),
        Command::Finetune(args) => commands::finetune::run(args),
        Command::Launch(args) => commands::launch::run(args, |command| {
            if let Err(error) = Cli::check(command) {
                end_with(&error);
            }
        }),
        Command::Eval(args) => commands::eval::run(args),
        Command::Predict(args) => commands::predict::run(&args),
        Command::Recipes(args) => commands::recipes::run(args),
        Command::Report(args) => commands::report::run(args),
        Command::Verify(args) => commands::verify::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::SampleData(args) => commands::sample_data::run(args),
        Command::Profile(args) => commands::profile::run(args),
        Command::Completions(args) => Ok(commands::completions::run(args, command())),
        Command::Man(args) => commands::man::run(args, command()),
    };
    let code = result.unwrap_or_else(|error| {
        print::message(print::ERROR, &with_causes(&error));
        std::process::ExitCode::FAILURE
    });
    ranks::part();
    code
}
