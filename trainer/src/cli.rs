//! The command line of `nepa`: its commands, their help as a whole, and what is said of arguments
//! that are not understood.
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands;
use crate::console::messages::quoted;
use crate::recipe::key_like_flag;

/// Pretrain vision models straight from image shards in object storage.
///
/// A recipe says what is trained, and how; `nepa recipes` lists those that are built in. Images are
/// read from Parquet shards, on a disk or in a store (s3://, gs://, az://, http://).
#[derive(Debug, Parser)]
#[command(
    name = "nepa",
    version = crate::VERSION,
    after_help = AFTER_HELP,
    after_long_help = format!("{AFTER_HELP}\n\n{ENVIRONMENT}\n\n{EXIT_CODES}")
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// The commands. A comment on one would hide that of its arguments in the help.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    SampleData(commands::sample_data::Args),
    Pack(commands::pack::Args),
    Inspect(commands::inspect::Args),
    Profile(commands::profile::Args),
    Recipes(commands::recipes::Args),
    Pretrain(commands::pretrain::Args),
    Finetune(commands::finetune::Args),
    Launch(commands::launch::Args),
    Report(commands::report::Args),
    Eval(commands::eval::Args),
    Predict(commands::predict::Args),
    Export(commands::export::Args),
    Verify(commands::verify::Args),
    Completions(commands::completions::Args),
    Man(commands::man::Args),
}

/// The commands in the order in which one comes to them.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Data", &["sample-data", "pack", "inspect", "profile"]),
    (
        "Training",
        &["recipes", "pretrain", "finetune", "launch", "report"],
    ),
    ("Weights", &["eval", "predict", "export", "verify"]),
    ("Help", &["help", "completions", "man"]),
];

const AFTER_HELP: &str = "Try it without a download:
  nepa sample-data scenes
  nepa inspect scenes
  nepa pretrain quickstart --data 'scenes/train-*.parquet'
  nepa report runs/quickstart

`nepa COMMAND -h` is short, `nepa COMMAND --help` says all.";

const ENVIRONMENT: &str = "Environment:
  RUST_LOG   what is logged: warn,nepa=info where it is not
             set; debug for more
  NO_COLOR   set to anything: no colours
  AWS_..., GOOGLE_..., AZURE_...
             credentials and servers of the stores";

const EXIT_CODES: &str = "Exit codes:
  0          done
  1          it cannot be done, or a check does not hold;
             standard error says why
  2          the command line is not understood
  130, 143   ended by Ctrl-C or SIGTERM, saved where there
             is something to save; the same command goes on
             (pretrain, finetune: with --resume). 138: by
             SIGUSR1
  141        nobody reads the output any more (| head)";

/// The command line, with its commands in groups, which clap does not know.
pub(crate) fn command() -> clap::Command {
    let command = Cli::command();
    let header = *command.get_styles().get_header();
    let literal = *command.get_styles().get_literal();
    let mut list = String::new();
    let mut add = |title: &str, names: &[&str]| {
        list.push_str(&format!("{header}{title}:{header:#}\n"));
        for name in names {
            let found = command.find_subcommand(name);
            let about = found.and_then(clap::Command::get_about);
            // clap adds this one by itself, later.
            let about = about.map_or(
                "Print the help of a command".to_owned(),
                ToString::to_string,
            );
            list.push_str(&format!("  {literal}{name:<11}{literal:#}  {about}\n"));
        }
        list.push('\n');
    };
    for (title, names) in GROUPS {
        add(title, names);
    }
    let grouped = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    let names = command.get_subcommands().map(clap::Command::get_name);
    let other = names.filter(|name| !grouped(name));
    let other = other.collect::<Vec<_>>();
    if !other.is_empty() {
        add("Other", &other);
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}\
         {header}Options:{header:#}\n{{options}}{{after-help}}"
    );
    command.help_template(template)
}

impl Cli {
    /// Reads the arguments of the program; the error may be help that was asked for.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let matches = command().try_get_matches().map_err(with_what_was_meant);
        Self::from_arg_matches(&matches?)
    }

    /// Whether the program understands these arguments; the error may be help that was asked for.
    pub(crate) fn check(arguments: &[String]) -> Result<(), clap::Error> {
        let arguments = arguments.iter().map(String::as_str);
        let matches = command().try_get_matches_from(std::iter::once("nepa").chain(arguments));
        matches.map(drop)
    }
}

/// Whether the command is one that takes a recipe to train by.
fn is_training() -> bool {
    let command = std::env::args().nth(1);
    command.is_some_and(|command| ["pretrain", "finetune"].contains(&command.as_str()))
}

/// Says what an argument that is not known was probably meant to be: a value of the recipe
/// (`--batch 64`), or one of the names that a shell has made of a glob.
fn with_what_was_meant(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let given = given.clone();
    let is_flag = given.starts_with("--") && is_training();
    let tip = if given.ends_with(".parquet") {
        "the shell makes several names of a glob: put it in quotes".to_owned()
    } else if let Some(key) = key_like_flag(&given).filter(|_| is_flag) {
        let value = std::env::args()
            .skip_while(|argument| *argument != given)
            .nth(1)
            .filter(|value| !value.starts_with('-'))
            .unwrap_or_else(|| "VALUE".to_owned());
        let set = quoted(&format!("{key}={value}"));
        error.remove(ContextKind::SuggestedArg);
        format!("it is a value of the recipe: --set {set}")
    } else {
        return error;
    };
    error.insert(
        ContextKind::Suggested,
        ContextValue::StyledStrs(vec![tip.into()]),
    );
    error
}
