//! `tm dlq …`: dead letters.

use clap::{Args, Subcommand};

use super::{BackendFlag, Folders, JsonFlag};
use crate::cli::values::duration_ms;

#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// Lists dead letters as JSON lines, newest first
    Ls(DlqLsArgs),
    /// Shows one dead letter
    Show(DlqShowArgs),
    /// Puts the tasks of dead letters back into their runs
    #[command(
        after_help = "Example:\n  tm dlq requeue 01J9ZK3F5YQ8G2R4T6V7W8X9AB.greet\n  tm dlq requeue 'dlq-1700*' --all"
    )]
    Requeue(DlqActionArgs),
    /// Ends the runs of dead letters as failed and archives the letters
    #[command(
        after_help = "Example:\n  tm dlq purge 'dlq-1700*' --all --dry-run\n  tm dlq purge 'dlq-1700*' --all --yes"
    )]
    Purge(DlqActionArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tm dlq ls --since 10m --limit 5\n  tm dlq ls --code TRAP --limit 0 | jq -r .task_id"
)]
pub(crate) struct DlqLsArgs {
    /// Only those of the last span: 500ms, 10s, 5m, 2h, 1d
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    pub(crate) since: Option<u64>,
    /// At most so many; 0 for all
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(crate) limit: u64,
    #[command(flatten)]
    pub(crate) filter: DlqFilterArgs,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[derive(Debug, Args)]
pub(crate) struct DlqFilterArgs {
    /// Only those of this flow
    #[arg(long, value_name = "ID")]
    pub(crate) flow: Option<String>,
    /// Only those with this error code
    #[arg(long, value_name = "CODE")]
    pub(crate) code: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tm dlq show dlq-1767225600000-0a1b")]
pub(crate) struct DlqShowArgs {
    /// The entry's id
    pub(crate) entry: String,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[derive(Debug, Args)]
pub(crate) struct DlqActionArgs {
    /// An entry id, task id or run id, or a pattern over entry ids with * and ?
    pub(crate) pattern: String,
    /// Allow the pattern to match several entries
    #[arg(long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Say what would be done and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) filter: DlqFilterArgs,
    #[command(flatten)]
    pub(crate) backend: BackendFlag,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}
