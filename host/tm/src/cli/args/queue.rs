//! `tm queue …`: reading the queue, cancelling, and looking after its files.

use clap::{Args, Subcommand};

use super::{BackendFlag, Folders, JsonFlag, TenantFlag};
use crate::cli::values::interval_ms;

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Shows how much waits and how long
    Stats(StatsArgs),
    /// Lists runs, newest first
    Ls(LsArgs),
    /// Shows a run with its tasks and their attempts
    Show(ShowArgs),
    /// Prints the result of a run
    Result(ResultArgs),
    /// Cancels a run
    Cancel(CancelArgs),
    /// Says what is damaged and what opening would do; changes nothing
    Verify(VerifyArgs),
    /// Mends what `verify` found; damaged records are kept aside
    Repair(RepairArgs),
    /// Frees an idempotency key
    ForgetKey(ForgetKeyArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tm queue stats --queue file\n  tm queue stats --json | jq .depth\n  tm queue stats --watch 2s"
)]
pub(crate) struct StatsArgs {
    /// Print again after every interval, until interrupted [default interval: 1s]
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "1s", value_parser = interval_ms)]
    pub(crate) watch: Option<u64>,
    #[command(flatten)]
    pub(crate) backend: BackendFlag,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tm queue ls\n  tm queue ls --state succeeded --flow hello --limit 5 --json")]
pub(crate) struct LsArgs {
    /// The state of a run, `unfinished` or `all`
    #[arg(long, default_value = "unfinished", value_name = "STATE",
        value_parser = ["unfinished", "all", "active", "stalled", "succeeded", "failed", "cancelled"])]
    pub(crate) state: String,
    /// Only runs of this flow
    #[arg(long, value_name = "ID")]
    pub(crate) flow: Option<String>,
    /// At most so many; 0 for all
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(crate) limit: u64,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tm queue show 01J9ZK3\n  tm queue show 01J9ZK3 --json | jq .tasks")]
pub(crate) struct ShowArgs {
    /// A run or a task: its id or the unique beginning of it
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tm queue result 01J9ZK3 | jq .output\n  tm queue result 01J9ZK3 --wait")]
pub(crate) struct ResultArgs {
    /// A run or a task: its id or the unique beginning of it
    pub(crate) id: String,
    /// Wait for the end of the run
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tm queue cancel 01J9ZK3")]
pub(crate) struct CancelArgs {
    /// A run or a task: its id or the unique beginning of it
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tm queue verify\n  tm queue verify --json")]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tm queue repair --dry-run\n  tm queue repair")]
pub(crate) struct RepairArgs {
    /// Say what would be done and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tm queue forget-key hello order-17")]
pub(crate) struct ForgetKeyArgs {
    /// The flow's id
    pub(crate) flow: String,
    /// The idempotency key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) tenant: TenantFlag,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}
