//! One file a command; each has its `Args` and a `run`.
pub mod completions;
pub mod eval;
pub mod export;
pub mod inspect;
pub mod man;
pub mod pack;
pub mod pretrain;
pub mod profile;
pub mod report;
pub mod sample_data;
pub mod verify;

/// Which of the shards are read.
#[derive(Debug, Default, clap::Args)]
pub struct ShardArgs {
    /// Read the shards of one split alone, as their names or folders say it: train, validation, test, or any word of theirs.
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// Make it an error if something about the shards is doubtful: several splits, copies, missing ones.
    #[arg(long)]
    pub strict: bool,
}
