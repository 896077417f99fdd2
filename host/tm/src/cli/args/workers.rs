//! `tm workers …`: the flags of the supervisor.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::{BackendFlag, Folders};
use crate::cli::values::{seconds, some_seconds};

#[derive(Debug, Subcommand)]
pub(crate) enum WorkersCommand {
    /// Starts the supervisor and its workers, in the foreground
    Start(Box<StartArgs>),
    /// Drains a running supervisor and waits for its end
    Stop(StopArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  TM_LOG=info tm workers start -n 4 --queue file --lease-ms 30000 &\n\n\
    SIGTERM or SIGINT drains: nothing new starts, running steps get --drain-grace. A second signal stops at once.")]
pub(crate) struct StartArgs {
    /// Worker processes, 1 to 1024 [default: the configuration's `workers.num`, else 1]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) num: Option<u32>,
    /// Steps interleaved in one worker, 1 to 4096 [default: the configuration's `workers.concurrency`, else 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) concurrency: Option<u32>,
    /// The folder of flows to load; a missing default folder loads nothing
    #[arg(long, default_value = "flows", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) runtime: PathBuf,
    /// How long a lease hides its task, in milliseconds [default: the configuration's `queue.lease_ms`, else 30000]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) lease_ms: Option<u64>,
    /// Seconds between two heartbeats of a worker [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) heartbeat: Option<u64>,
    /// Seconds of silence after which a worker is killed and its tasks are queued again [default: 15]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) heartbeat_timeout: Option<u64>,
    /// Seconds that results and idempotency keys are kept [default: `idempotency.result_ttl_sec`, else 3600]
    #[arg(long, value_name = "SECONDS", value_parser = some_seconds)]
    pub(crate) result_ttl: Option<u64>,
    /// Seconds that running steps get when draining [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) drain_grace: Option<u64>,
    /// Where the process id is written
    #[arg(long, default_value = "tm-workers.pid", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) pid_file: PathBuf,
    /// The user that workers run as when started as root [default: nobody]
    #[arg(long, value_name = "USER", value_hint = ValueHint::Username)]
    pub(crate) worker_user: Option<String>,
    /// Go on when the kernel lacks landlock or seccomp
    #[arg(long)]
    pub(crate) allow_weaker_confinement: bool,
    #[command(flatten)]
    pub(crate) backend: BackendFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Signal {
    #[value(name = "TERM", alias = "term", alias = "SIGTERM")]
    Term,
    #[value(name = "INT", alias = "int", alias = "SIGINT")]
    Int,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tm workers stop\n  tm workers stop --signal INT --no-wait")]
pub(crate) struct StopArgs {
    /// Where `tm workers start` wrote its process id
    #[arg(long, default_value = "tm-workers.pid", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) pid_file: PathBuf,
    /// Both drain
    #[arg(long, value_enum, default_value_t = Signal::Term, value_name = "SIGNAL")]
    pub(crate) signal: Signal,
    /// Return once the signal is sent
    #[arg(long)]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) folders: Folders,
}
