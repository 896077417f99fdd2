//! What a pool is told and what it tells: settings, events, errors.

use std::collections::BTreeMap;

use rustix::{fd::OwnedFd, io::Errno};
use tm_core::{
    id::WorkerId,
    queue::lanes::ProfileNo,
    wire::{Confinement, FromWorker},
};

use super::{child::ChildError, link::PushError, profile::WorkerUser};
use crate::config::Isolation;

#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("cannot wait for workers: {0}")]
    Wait(Errno),
    #[error("cannot start the thread that receives from workers: {0}")]
    Thread(std::io::Error),
}

/// Why a task was not handed to its worker; the guest never ran.
#[derive(Debug, thiserror::Error)]
pub enum NotHanded {
    #[error("worker {} takes no more tasks", .0.0)]
    Gone(WorkerId),
    #[error(transparent)]
    Push(#[from] PushError),
}

#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Live processes with a profile.
    pub num: u32,
    /// Processes that are started and have no profile yet.
    pub warm_pool: u32,
    pub isolation: Isolation,
    /// Steps interleaved in one worker.
    pub concurrency: u32,
    /// Of the tenants, for their shares of the processes; who is not named weighs 1.
    pub weights: BTreeMap<String, u32>,
    pub heartbeat_ms: u64,
    pub heartbeat_timeout_ms: u64,
    /// From the first packet to ready.
    pub start_timeout_ms: u64,
    /// What all pools together may hold; each worker interleaves only as many steps as fit into its share.
    pub memory_max_bytes: Option<u64>,
    pub allow_weaker: bool,
    /// The user of [`child::Program`], for handing over folders.
    pub user: Option<WorkerUser>,
}

/// What happened to a worker. Per worker the order is kept and `Gone` comes last.
#[derive(Debug)]
pub enum PoolEvent {
    Ready {
        worker: WorkerId,
        profile: ProfileNo,
        confinement: Confinement,
    },
    /// Well formed, with the descriptors that it announces (sealed memory files); not yet believed. Heartbeats, and
    /// what else is the pool's own business, do not come.
    Message {
        worker: WorkerId,
        message: FromWorker,
        fds: Vec<OwnedFd>,
    },
    /// The process is dead and reaped. Comes also for workers that never were ready.
    Gone {
        worker: WorkerId,
        why: String,
    },
    /// No worker can be started at all; nothing is tried any more.
    CannotStart {
        reason: String,
    },
    /// Workers of this profile cannot be started, others can; it is tried again after 30 s.
    ProfileBroken {
        profile: ProfileNo,
        reason: String,
    },
}
