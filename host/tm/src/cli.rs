//! From arguments to an exit code.

pub(crate) mod args;
pub(crate) mod blame;
pub(crate) mod checker;
pub(crate) mod client;
pub(crate) mod commands;
pub(crate) mod exit;
pub(crate) mod flow;
pub(crate) mod logging;
pub(crate) mod render;
pub(crate) mod settings;
pub(crate) mod values;

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;

use args::{Cli, Command, DlqCommand, QueueCommand, WorkersCommand};
use exit::{End, Outcome};

/// Parses the command line, does what it says and reports how it ended.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help into a closed pipe ends quietly.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let outcome = logging::init(&cli).and_then(|()| run(cli.command)).and_then(flushed);
    match outcome {
        Ok(end) => end.into(),
        Err(failure) => failure.report(),
    }
}

fn flushed(end: End) -> Outcome {
    std::io::stdout().flush()?;
    Ok(end)
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Workers(WorkersCommand::Start(args)) => commands::workers_start::run(*args),
        Command::Workers(WorkersCommand::Stop(args)) => commands::workers_stop::run(&args),
        Command::Enqueue(args) => commands::enqueue::run(&args),
        Command::Run(args) => commands::run::run(*args),
        Command::Queue(QueueCommand::Stats(args)) => commands::queue_stats::run(&args),
        Command::Queue(QueueCommand::Ls(args)) => commands::queue_runs::ls(args),
        Command::Queue(QueueCommand::Show(args)) => commands::queue_runs::show(args),
        Command::Queue(QueueCommand::Result(args)) => commands::queue_runs::result(args),
        Command::Queue(QueueCommand::Cancel(args)) => commands::queue_runs::cancel(args),
        Command::Queue(QueueCommand::ForgetKey(args)) => commands::queue_runs::forget_key(args),
        Command::Queue(QueueCommand::Verify(args)) => commands::queue_verify::verify(&args),
        Command::Queue(QueueCommand::Repair(args)) => commands::queue_verify::repair(&args),
        Command::Dlq(DlqCommand::Ls(args)) => commands::dlq::ls(args),
        Command::Dlq(DlqCommand::Show(args)) => commands::dlq::show(args),
        Command::Dlq(DlqCommand::Requeue(args)) => commands::dlq::requeue(&args),
        Command::Dlq(DlqCommand::Purge(args)) => commands::dlq::purge(&args),
        Command::Check(args) => commands::check::run(&args),
        Command::Build(args) => commands::build::run(&args),
        Command::Completions { shell } => commands::completions::run(shell),
    }
}
