//! The supervisor's life: what is opened, the loop, and how it ends.
//!
//! Rooms: [`session`] is the queue with its surroundings, one happening at a time; [`house`] performs effects; [`open`]
//! puts them together; [`supervise`] is the loop; [`local`] and [`once`] are the short lives of commands without one.

mod answers;
mod catalogue;
mod ends;
mod held;
mod house;
mod inspect;
mod jobs;
mod local;
#[cfg(test)]
mod local_tests;
mod natives;
mod once;
mod open;
mod pause;
mod payloads;
mod private;
mod register;
mod reports;
mod session;
mod start;
mod supervise;
mod sweep;

pub use local::{Local, Reader, preview, rehearse};
pub use once::{Once, run_once};
pub use reports::report_of;
pub use supervise::{Ended, Ready, supervise};

use std::{os::fd::OwnedFd, path::PathBuf};

use tm_core::{
    api::ApiError,
    id::{RunId, WorkerId},
    queue::{
        decide::Made,
        effect::{Input, Report, Ticket},
    },
};

use crate::{
    config::{ConfigError, Settings, units::Share},
    daemon::{EdgeError, Incoming, ListenError, pid_file::PidFileError},
    store::{
        disk::{DiskError, Roots},
        lock::LockError,
        log::LogError,
    },
    workers::{PoolError, PoolEvent, compile::CompileError, profile::ProfileError},
};

/// What `tm` was told: the configuration with the flags put in.
#[derive(Clone, Debug)]
pub struct Options {
    pub settings: Settings,
    /// Where the settings came from: its ceilings are read again when it changes.
    pub config: PathBuf,
    pub roots: Roots,
    /// The folder of flows to load; an absent one is an error only when it was `named`.
    pub runtime: PathBuf,
    pub runtime_named: bool,
    pub pid_file: PathBuf,
    pub worker_user: Option<String>,
    pub allow_weaker: bool,
}

/// Why a supervisor or a command without one cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Edge(#[from] EdgeError),
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error("no worker can be started: {reason}")]
    NoWorker { reason: String },
    #[error(
        "workers.memory_max ({memory_max}) leaves {share_mb} MiB for each worker with workers.num = {num}; the smallest worker needs {needs_mb} MiB"
    )]
    NoMemory { memory_max: Share, num: u32, share_mb: u64, needs_mb: u64 },
    #[error("no queue at {path}", path = path.display())]
    NoQueue { path: PathBuf },
    #[error("no folder of flows at {path}", path = path.display())]
    NoRuntime { path: PathBuf },
    #[error("a folder cannot be used: {path}: {source}", path = path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
    #[error("the system gives no random bytes: {0}")]
    Random(std::io::Error),
    #[error("{}", .0.message)]
    Refused(Box<ApiError>),
    #[error("a background thread ended before its time")]
    Lonely,
}

/// Something that happened outside the loop.
pub(crate) enum Happening {
    Edge(Incoming),
    Pool(PoolEvent),
    Input(Input),
    /// A dead letter's file could not be written.
    Unfiled,
    /// What a step waits for, made beside the loop.
    Made {
        run: RunId,
        step: u16,
        made: Made,
    },
    /// Files of dead letters were archived: bulk actions may go on.
    CaughtUp,
    Registered {
        ticket: Ticket,
        outcome: Result<Box<Input>, Box<ApiError>>,
    },
    Compiled {
        key: catalogue::ComponentKey,
        outcome: Result<OwnedFd, natives::Failed>,
    },
    /// Runs that have artefacts: those that nothing knows are swept.
    LeftArtifacts(Vec<sweep::Left>),
    /// A large output and artefacts stand in their place, or the report says why not.
    Ended {
        from: WorkerId,
        report: Box<Report>,
    },
}
