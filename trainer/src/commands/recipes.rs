//! `nepa recipes`: the recipes that are built into the program.
use std::process::ExitCode;

use clap::Subcommand;

use super::help::with_exit_codes;
use crate::recipe::built_in::{BUILT_IN, find, unknown};

/// List the built-in recipes, or print one.
///
/// A recipe is one TOML file that is a whole pretraining run: model, data, length, learning rate.
/// Every command that takes a recipe takes the name of a built-in one, or the path of a file; what
/// holds a `/` or ends in `.toml` is a path. To change one value, `nepa pretrain NAME --set
/// KEY=VALUE` is enough; to change many, save the file and give its path.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    after_long_help = with_exit_codes(EXAMPLES, EXITS)
)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print a recipe, as it is in the program.
    ///
    /// Its head says command, hardware, time and what came out. docs/recipe.md explains every key.
    #[command(
        after_help = SHOW_EXAMPLES,
        after_long_help = with_exit_codes(SHOW_EXAMPLES, EXITS)
    )]
    Show {
        /// The recipe's name; `nepa recipes` lists them.
        name: String,
    },
}

const EXITS: &str = "  0          done\n  1          there is no such recipe";
const EXAMPLES: &str = "Examples:
  nepa recipes
  nepa recipes show cifar10 > my.toml
  nepa pretrain my.toml --data 'shards/train-*.parquet'";
const SHOW_EXAMPLES: &str = "Examples:
  nepa recipes show quickstart
  nepa recipes show cifar10 > my.toml";

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(What::Show { name }) = args.what {
        let recipe = find(&name).ok_or_else(|| unknown(&name))?;
        print!("{}", recipe.text);
        return Ok(ExitCode::SUCCESS);
    }
    for recipe in BUILT_IN {
        println!("{}", recipe.name);
        println!("    {}", recipe.about());
        println!("    hardware: {}", recipe.head("Hardware"));
        println!("    time: {}", recipe.head("Time"));
    }
    println!("\nnepa pretrain NAME trains one, nepa recipes show NAME prints it.");
    Ok(ExitCode::SUCCESS)
}
