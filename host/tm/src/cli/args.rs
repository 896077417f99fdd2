//! The command line's grammar: commands, flags, defaults and the help with its examples.

mod dlq;
mod flow;
mod queue;
mod workers;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use tm_supervisor::store::disk::Roots;

use super::exit::Failure;

pub(crate) use dlq::{DlqActionArgs, DlqCommand, DlqLsArgs, DlqShowArgs};
pub(crate) use flow::{BuildArgs, CheckArgs, EnqueueArgs, EnqueueFlags, RunArgs};
pub(crate) use queue::{
    CancelArgs, ForgetKeyArgs, LsArgs, QueueCommand, RepairArgs, ResultArgs, ShowArgs, StatsArgs, VerifyArgs,
};
pub(crate) use workers::{Signal, StartArgs, StopArgs, WorkersCommand};

/// Runs flows of confined WebAssembly steps from a durable file queue.
#[derive(Debug, Parser)]
#[command(
    name = "tm",
    version,
    disable_help_subcommand = true,
    after_help = "Examples:\n  \
        tm workers start -n 2 &\n  \
        tm enqueue flows/hello.yaml -i '{\"name\": \"x\"}'\n  \
        tm queue stats\n\n\
        TM_LOG=error|warn|info|debug|trace says how much is logged to standard error."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// How log lines on standard error look
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT",
        display_order = 1000)]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts and stops the supervisor with its worker processes
    #[command(subcommand, after_help = "Example:\n  tm workers start -n 4 &\n  tm workers stop")]
    Workers(WorkersCommand),
    /// Puts a run of a flow into the queue
    Enqueue(Box<EnqueueArgs>),
    /// Runs a flow now, in memory, in one confined worker
    Run(Box<RunArgs>),
    /// Looks into the queue and repairs it
    #[command(subcommand, after_help = "Example:\n  tm queue stats --json\n  tm queue ls --state all --limit 0")]
    Queue(QueueCommand),
    /// Lists, requeues and purges dead letters
    #[command(subcommand, after_help = "Example:\n  tm dlq ls --since 10m\n  tm dlq requeue 'dlq-1700*' --all")]
    Dlq(DlqCommand),
    /// Finds every fault of a flow and its components
    Check(CheckArgs),
    /// Builds the steps of flows to WASI components
    Build(BuildArgs),
    /// Prints a completion script for a shell
    #[command(after_help = "Example:\n  tm completions bash > ~/.local/share/bash-completion/completions/tm")]
    Completions {
        /// The shell that will read the script
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Where the queue's files are.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Folders")]
pub(crate) struct Folders {
    /// The queue: its log, its lock and its socket
    #[arg(long, default_value = "data/queue", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) queue_dir: PathBuf,
    /// Idempotency keys and results
    #[arg(long, default_value = "data/idempotency", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) idempotency_dir: PathBuf,
    /// Dead letters
    #[arg(long, default_value = "data/dlq", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dlq_dir: PathBuf,
    /// Components, large payloads and artefacts
    #[arg(long, default_value = "data/store", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) store_dir: PathBuf,
    /// The configuration; only a file that is named here must exist [default: trace_config.toml]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
}

impl Folders {
    /// Something else in the place of a folder is found before anything is opened or made.
    ///
    /// # Errors
    /// Usage.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self.roots().named().into_iter().find(|(_, path)| path.exists() && !path.is_dir()) {
            None => Ok(()),
            Some((_, path)) => Err(Failure::usage(format!("{} is not a folder", path.display()))
                .hint("name another one: --queue-dir, --idempotency-dir, --dlq-dir or --store-dir")),
        }
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots {
            queue: self.queue_dir.clone(),
            idempotency: self.idempotency_dir.clone(),
            dlq: self.dlq_dir.clone(),
            store: self.store_dir.clone(),
        }
    }
}

/// Where a queue keeps what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// A log on disk that survives power loss
    File,
    /// Nothing on disk: lives and ends with its supervisor
    Memory,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct BackendFlag {
    /// Where the queue keeps what it holds [default: the configuration's `queue.backend`, else file]
    #[arg(long, value_enum, value_name = "BACKEND")]
    pub(crate) queue: Option<Backend>,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct JsonFlag {
    /// Print JSON, one value per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct TenantFlag {
    /// The tenant that the flow belongs to
    #[arg(long, default_value = "default", value_name = "NAME", value_parser = crate::cli::values::name)]
    pub(crate) tenant: String,
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_description_and_an_example() {
        fn visit(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} has no description");
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.contains("Example") && example.contains("tm "), "{path} has no example");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
            }
            for inner in command.get_subcommands() {
                visit(inner, &format!("{path} {}", inner.get_name()));
            }
        }
        visit(&Cli::command(), "tm");
    }
}
