//! `tm enqueue`, `run`, `check` and `build`: the commands that name a flow.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use tm_core::time::Millis;

use super::{BackendFlag, Folders, JsonFlag, TenantFlag};
use crate::cli::values::{duration_ms, time};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tm enqueue flows/hello.yaml -i '{\"name\": \"x\"}' --idempotency-key order-17\n  \
    tm enqueue hello -i @input.json --delay 10m\n  \
    tm enqueue hello --batch runs.jsonl\n\n\
    A line of a batch: {\"input\": {…}, \"idempotency_key\"?, \"headers\"?, \"priority\"?, \"delay\"?}\n\
    Its reply line:    {\"id\", \"status\": \"enqueued\"|\"duplicate\"|\"refused\", \"error\"?}, in order")]
pub(crate) struct EnqueueArgs {
    /// A flow file, which is registered, or the id of a registered flow
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) flow: String,
    /// The input, a JSON object: text, @FILE, or @- for standard input
    #[arg(short, long, default_value = "{}", value_name = "JSON")]
    pub(crate) input: String,
    /// Enqueue one run per line of a file of JSON lines; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["input", "idempotency_key", "wait"], value_hint = ValueHint::FilePath)]
    pub(crate) batch: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flags: EnqueueFlags,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

/// What `tm enqueue` and `tm run --detached` share.
#[derive(Debug, Args)]
pub(crate) struct EnqueueFlags {
    /// The caller's name for this work: the same key gives the same run
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Kept with the run: a JSON object
    #[arg(long, value_name = "JSON")]
    pub(crate) headers: Option<String>,
    /// The trace that the run belongs to: a JSON object with `traceparent`
    #[arg(long, value_name = "JSON")]
    pub(crate) trace: Option<String>,
    /// Start not before this span from now: 500ms, 10s, 5m, 2h, 1d
    #[arg(long, value_name = "DURATION", value_parser = duration_ms, conflicts_with = "at")]
    pub(crate) delay: Option<u64>,
    /// Start not before this time: RFC 3339, 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) at: Option<Millis>,
    /// 0 to 9, larger first [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub(crate) priority: Option<u8>,
    #[command(flatten)]
    pub(crate) tenant: TenantFlag,
    /// Wait for the end of the run and print it as `tm run` does; exit 1 when it did not succeed
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) backend: BackendFlag,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tm run flows/hello.yaml -i '{\"name\": \"x\"}'\n  \
    tm run flows/docs-site.yaml --out site\n\n\
    Prints {\"status\", \"run_id\", \"output\", \"exec_ms\"}; exit 1 when the run did not succeed.\n\
    Without --detached nothing is kept: the flags of `tm enqueue` need --detached.")]
pub(crate) struct RunArgs {
    /// A flow file; with --detached also the id of a registered flow
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) flow: String,
    /// The input, a JSON object: text, @FILE, or @- for standard input
    #[arg(short, long, default_value = "{}", value_name = "JSON")]
    pub(crate) input: String,
    /// Copy the artefacts of the run into this folder
    #[arg(long, value_name = "DIR", conflicts_with = "detached", value_hint = ValueHint::DirPath)]
    pub(crate) out: Option<PathBuf>,
    /// Enqueue the run instead, as `tm enqueue` does
    #[arg(long)]
    pub(crate) detached: bool,
    /// Go on when the kernel lacks landlock or seccomp
    #[arg(long, conflicts_with = "detached")]
    pub(crate) allow_weaker_confinement: bool,
    #[command(flatten)]
    pub(crate) flags: EnqueueFlags,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tm check flows/hello.yaml\n  tm check flows/*.yaml --json")]
pub(crate) struct CheckArgs {
    /// Flow files
    #[arg(required = true, value_name = "FLOW", value_hint = ValueHint::FilePath)]
    pub(crate) flows: Vec<PathBuf>,
    /// Go on when the kernel lacks landlock or seccomp
    #[arg(long)]
    pub(crate) allow_weaker_confinement: bool,
    #[command(flatten)]
    pub(crate) tenant: TenantFlag,
    /// The configuration, for the operator's ceiling [default: trace_config.toml]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tm build                       every step of every flow below flows/\n  \
    tm build flows/hello.yaml      the steps of one flow\n  \
    tm build flows/steps/hello     one step")]
pub(crate) struct BuildArgs {
    /// Flow files and step folders; nothing builds all flows below flows/
    #[arg(value_name = "STEP", value_hint = ValueHint::AnyPath)]
    pub(crate) targets: Vec<PathBuf>,
    /// Keep cargo's own output away
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
