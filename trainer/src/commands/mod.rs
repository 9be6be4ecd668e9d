//! One file a command; each has its `Args` and a `run`.
pub mod completions;
pub mod eval;
pub mod export;
pub mod inspect;
pub mod man;
pub mod pack;
pub mod pretrain;
pub mod profile;
pub mod recipes;
pub mod report;
pub mod sample_data;
mod values;
pub mod verify;

/// Which of the shards are read.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Data")]
pub struct ShardArgs {
    /// Read the shards of one split alone.
    ///
    /// As their names or folders say it: train, validation, test, or any word of theirs.
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// End where something about the shards is doubtful.
    ///
    /// Several splits, copies, missing shards; without it they are warned of.
    #[arg(long)]
    pub strict: bool,
}
