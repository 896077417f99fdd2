//! Messages between the supervisor and one worker process.
//!
//! A packet (SOCK_SEQPACKET, at most [`crate::limits::PACKET_MAX_BYTES`]) holds messages, one after the other as
//! [`codec::write`] makes them; the descriptors of all its messages travel with it in the order in which the messages
//! count them. The first packet to a worker is one [`Init`]; it answers with [`FromWorker::Ready`] once confined. What a
//! worker sends is hostile input: typed, bounded, and believed only for leases that this worker holds (I3).

pub mod codec;

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

use crate::{
    code::Class,
    id::{Attempt, Digest, TaskRef},
    json::Json,
    limits::Limits,
};

/// What a fresh worker process becomes. Descriptors: those of its folders or its component, in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Init {
    /// Runs steps of one tenant until it is stopped. One descriptor per folder.
    Execute(ExecuteInit),
    /// Inspects and compiles one component, then exits. One descriptor: the component's bytes (sealed memfd).
    Compile(CompileInit),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecuteInit {
    pub folders: Vec<Folder>,
    /// Steps interleaved on the worker's one thread.
    pub concurrency: u32,
    pub heartbeat_ms: u64,
    /// The pool is sized by these: the largest limits of the profile's steps.
    pub memory_max_mb: u32,
    pub stack_max_kb: u32,
    pub required: Required,
    /// Go on without landlock or seccomp when the kernel lacks them (`--allow-weaker-confinement`).
    pub allow_weaker: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompileInit {
    pub allow_weaker: bool,
    /// RLIMIT_CPU and RLIMIT_AS of the process.
    pub cpu_seconds_max: u64,
    pub memory_max_mb: u64,
    /// False: stop after the inspection.
    pub compile: bool,
    pub native_max_bytes: u64,
}

/// One folder of a worker's profile, opened by the supervisor, known by its place in [`ExecuteInit::folders`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    pub role: FolderRole,
    pub write: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FolderRole {
    /// A granted host folder.
    Granted,
    /// The tenant's `tmp`: artefacts being written, as `TASK/ATTEMPT/…` (see [`staging_path`]).
    Staging,
    /// The tenant's finished results, `RUN/STEP[item]/…`, read only.
    Results,
    /// Private folders per attempt, [`staging_path`] too.
    Scratch,
}

/// The folder of one attempt below staging or scratch: `RUN.step[item].attempt`.
#[must_use]
pub fn staging_path(task_name: &str, attempt: Attempt) -> String {
    alloc::format!("{task_name}.{attempt}")
}

/// What a component needs from the pool, from its inspection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Required {
    pub core_instances: u32,
    pub memories: u32,
    pub tables: u32,
    pub table_elements_max: u64,
    pub memory_min_bytes: u64,
    /// Bytes of the pooled component and instance structures; 0 when unknown.
    pub instance_bytes: u64,
}

/// Supervisor to worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// Loads a native artefact. One descriptor: a sealed memfd of the artefact.
    Load {
        component: u32,
    },
    /// Forgets a component that no running step uses.
    Unload {
        component: u32,
    },
    Start(alloc::boxed::Box<Start>),
    /// Sets the attempt's cancel flag; after `grace_ms` the attempt is stopped and reported as CANCELLED.
    Cancel {
        #[serde(with = "codec::task")]
        task: TaskRef,
        attempt: Attempt,
        grace_ms: u64,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    #[serde(with = "codec::task")]
    pub task: TaskRef,
    pub attempt: Attempt,
    pub component: u32,
    pub context: StartContext,
    pub input: Body,
    pub limits: Limits,
    pub grants: StartGrants,
    /// Tasks of the whole queue that ran or waited for a worker when this was handed over: while they are few, a worker
    /// stays awake for the next one ([`crate::spin`]).
    pub in_flight: u64,
}

impl Start {
    /// `RUN.step` or `RUN.step[item]`: the same for all attempts, so it is the idempotency key too.
    #[must_use]
    pub fn task_name(&self) -> String {
        self.task.name(&self.context.step_id)
    }
}

/// JSON in the packet, or as the next descriptor of the packet (a sealed memfd read from 0).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    Inline(#[serde(with = "codec::json")] Json),
    Fd { size_bytes: u64 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartContext {
    pub flow_id: String,
    pub step_id: String,
    pub max_attempts: u32,
    pub deadline_ms: u64,
    pub trace_parent: Option<String>,
}

/// What this attempt may touch, resolved to the worker's folders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartGrants {
    pub files: Vec<StartFiles>,
    pub env: Vec<(String, String)>,
    pub scratch: bool,
    /// The scratch folder stays when the attempt succeeds (`scratch.keep_on_success`).
    pub keep_scratch: bool,
    pub artifacts: bool,
    pub clocks: bool,
    pub random: bool,
    /// The steps whose artefacts may be read: step id and the folder names below Results.
    pub readable: Vec<ReadableStep>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFiles {
    /// Place in [`ExecuteInit::folders`].
    pub folder: u32,
    pub guest: String,
    pub write: bool,
    pub max_mb: u32,
}

/// A needed step: its results stand in `RUN/STEP` when `items` is none, else in `RUN/STEP[0]` … `RUN/STEP[items-1]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadableStep {
    pub step_id: String,
    pub items: Option<u32>,
}

/// Worker to supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// Confined and able to take work.
    Ready(Confinement),
    /// Could not become a worker at all; the process ends.
    Unable {
        reason: String,
    },
    Loaded {
        component: u32,
    },
    LoadFailed {
        component: u32,
        reason: String,
    },
    /// From a thread that runs no guest, batched over all running steps.
    Heartbeat {
        running: u32,
        memory_bytes: u64,
    },
    Progress {
        #[serde(with = "codec::task")]
        task: TaskRef,
        attempt: Attempt,
        percent: u8,
        message: Option<String>,
    },
    Report(alloc::boxed::Box<Report>),
    /// Compile role: what the component is, in milliseconds.
    Inspected(alloc::boxed::Box<Inspection>),
    /// Compile role: one descriptor, the native artefact (sealed memfd).
    Compiled {
        size_bytes: u64,
        compatibility: String,
    },
    /// Compile role: `code` is COMPILE_FAILED or COMPILE_LIMIT.
    CompileFailed {
        code: String,
        message: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The landlock ABI in force; none when missing.
    pub landlock_abi: Option<u32>,
    pub seccomp: bool,
    /// What is missing, in words; empty when both walls stand.
    pub missing: Vec<String>,
    /// The most memory that this worker's pool can hold.
    pub memory_bound_bytes: u64,
    /// Hex of `Engine::precompile_compatibility_hash`.
    pub compatibility: String,
}

/// The end of one attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    #[serde(with = "codec::task")]
    pub task: TaskRef,
    pub attempt: Attempt,
    pub outcome: Outcome,
    pub usage: Usage,
    /// Standard output, standard error and log, cut at `log_kb`.
    pub log: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The output; artefacts stand finished in staging.
    Succeeded {
        output: Body,
        artifacts: Vec<ArtifactEntry>,
    },
    Failed(Failure),
    /// The guest never ran: the start is undone and does not count.
    NotStarted {
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whether `code` is of the host's table ([`crate::code`]) or the step's own word.
    pub by_host: bool,
    pub class: Class,
    pub code: String,
    pub message: String,
    pub retry_after_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactEntry {
    pub name: String,
    pub size_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub fuel: u64,
    pub peak_memory_bytes: u64,
    pub exec_us: u64,
}

/// What a component is, found without compiling it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    pub digest: Digest,
    /// Full names, `wasi:io/streams@0.2.6`.
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    /// What it imports of this host's interfaces and they do not have, or have with another type: one sentence each, that
    /// begins with "imports".
    pub import_faults: Vec<String>,
    pub required: Required,
}
