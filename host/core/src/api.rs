//! Requests and replies between a client and the supervisor: one JSON value per line over `tm.sock`.
//!
//! A client may pipeline; replies come in the order of the requests, one each but for [`Reply::DlqSome`]. A connection's
//! first request with descriptors ([`Request::Register`]) sends them with its line by SCM_RIGHTS.

use alloc::{boxed::Box, string::String, vec::Vec};
use serde::{Deserialize, Serialize};

use crate::{
    id::{Attempt, RunId},
    json::Json,
    time::Millis,
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Who answers.
    Ping,
    /// Registers a flow. Descriptors: one per component, in the order of `components`.
    Register(Box<RegisterRequest>),
    /// The variables that the newest registration of a flow asks of its caller: a client sends no others.
    FlowEnv {
        tenant: String,
        flow: String,
    },
    Enqueue(Box<EnqueueRequest>),
    /// Answers when the run ended or stalled.
    Wait {
        run: RunId,
    },
    Stats,
    List(ListRequest),
    /// A run or task by id or unique prefix.
    Show {
        id: String,
    },
    Result {
        id: String,
    },
    Cancel {
        id: String,
    },
    ForgetKey {
        tenant: String,
        flow: String,
        key: String,
    },
    DlqList(DlqFilter),
    DlqShow {
        entry: String,
    },
    DlqRequeue(DlqAction),
    DlqPurge(DlqAction),
    /// The worker processes and what confines them.
    Workers,
    /// What the supervisor counts about itself, for measuring.
    Counters,
}

/// A flow by its text; the CLI passes open descriptors, so permissions and paths are the caller's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegisterRequest {
    pub tenant: String,
    /// YAML or JSON.
    pub text: String,
    /// The flow file, absolute: shown in faults, and `files.host` is relative to its folder.
    pub path: String,
    /// What each step's `component` resolved to, in the order of the steps.
    pub components: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnqueueRequest {
    pub tenant: String,
    pub flow: String,
    pub input: Json,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// A JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Json>,
    /// A JSON object with `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Json>,
    /// Not before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Millis>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// The caller's variables; the supervisor keeps those that the flow asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// The client does not know what the flow asks of its caller. Where it asks for anything, nothing is enqueued, and the
    /// answer is [`Reply::FlowEnv`].
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub asks_env: bool,
}

impl EnqueueRequest {
    /// A request that says nothing but what to run.
    #[must_use]
    pub fn of(tenant: &str, flow: &str, input: Json) -> Self {
        Self {
            tenant: tenant.into(),
            flow: flow.into(),
            input,
            idempotency_key: None,
            headers: None,
            trace: None,
            at: None,
            delay_ms: None,
            priority: None,
            env: Vec::new(),
            asks_env: false,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ListRequest {
    /// `unfinished` (default), `all`, or a state of a run.
    pub state: Option<String>,
    pub flow: Option<String>,
    /// 0: as many as a page holds.
    pub limit: u64,
    /// Only those before this run: where the last page ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<RunId>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DlqFilter {
    pub since: Option<Millis>,
    pub flow: Option<String>,
    pub code: Option<String>,
    /// 0: as many as a page holds.
    pub limit: u64,
    /// Only those before this entry: where the last page ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<String>,
}

/// Entries by pattern: an entry id, task id, run id, or a glob on entry ids.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DlqAction {
    pub pattern: String,
    pub all: bool,
    pub dry_run: bool,
    pub flow: Option<String>,
    pub code: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    Pong {
        pid: u32,
        version: String,
    },
    Registered {
        flow: String,
        digest: String,
        warnings: Vec<String>,
        new: bool,
    },
    /// Names, in the flow's order.
    FlowEnv(Vec<String>),
    Enqueued {
        run: RunId,
    },
    /// The key is taken. `result` is there when the run succeeded.
    Duplicate {
        run: RunId,
        state: RunState,
        result: Option<Json>,
    },
    Ended(Box<RunEnd>),
    Stats(Stats),
    /// A page of a list, newest first.
    Runs {
        rows: Vec<RunRow>,
        /// There may be more before this run.
        below: Option<RunId>,
    },
    Run(Box<RunDetail>),
    Cancelled {
        run: RunId,
    },
    Forgotten {
        existed: bool,
    },
    /// A page of a list, newest first, or the one that was asked for.
    DlqEntries {
        entries: Vec<DlqEntry>,
        /// There may be more before this entry.
        below: Option<String>,
    },
    /// A part of the answer to a requeue or purge of many; more follow on lines of their own, the last one is another.
    DlqSome(Vec<DlqOutcome>),
    DlqDone(Vec<DlqOutcome>),
    Workers(Vec<WorkerRow>),
    Counters(Counters),
    Error(ApiError),
    /// The last line of a connection that a stopping supervisor closes: no request after the answered ones was taken.
    Stopping,
}

impl Reply {
    /// Whether the same request has more answers.
    #[must_use]
    pub const fn is_part(&self) -> bool {
        matches!(self, Self::DlqSome(_))
    }

    /// The whole answer, when `self` is the first part of it and `more` brings the others.
    ///
    /// # Errors
    /// Those of `more`.
    pub fn whole<E>(self, mut more: impl FnMut() -> Result<Self, E>) -> Result<Self, E> {
        let (mut parts, mut reply) = (Vec::new(), self);
        loop {
            match reply {
                Self::DlqSome(mut part) => parts.append(&mut part),
                Self::DlqDone(mut last) => {
                    parts.append(&mut last);
                    return Ok(Self::DlqDone(parts));
                }
                other => return Ok(other),
            }
            reply = more()?;
        }
    }
}

/// Why a request was refused: whose fault it is decides the exit code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    pub kind: ErrorKind,
    /// A code of [`crate::code::TABLE`], where one fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// The exit code of each: docs/reference/exit-codes.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// 1: nothing matches, the command failed.
    Failed,
    /// 2: the request itself is wrong.
    Usage,
    /// 3: configuration or flow invalid.
    Invalid,
    /// 4: busy, full, not running.
    Busy,
    /// 5: data damaged.
    Damaged,
    /// 70: our bug.
    Internal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    Active,
    /// A task of it is dead; the rest went as far as it could.
    Stalled,
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    Waiting,
    Ready,
    Delayed,
    Leased,
    Succeeded,
    Dead,
    Skipped,
    Cancelled,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunEnd {
    pub run_id: RunId,
    pub status: RunState,
    pub output: Option<Json>,
    pub exec_ms: u64,
    /// The first dead task, when the run did not succeed.
    pub error: Option<TaskError>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskError {
    #[serde(rename = "error_code")]
    pub code: String,
    #[serde(rename = "error_message")]
    pub message: String,
    pub retryable: bool,
    /// `non_retryable`, `max_attempts`, `cancelled`.
    pub reason: String,
    pub last_code: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub backend: String,
    /// ready + delayed + inflight, in tasks.
    pub depth: u64,
    /// ready + delayed.
    pub pending: u64,
    pub ready: u64,
    pub delayed: u64,
    pub inflight: u64,
    /// Age of the oldest ready task, 0 when none.
    pub lag_seconds: f64,
    /// Totals since the queue was made.
    pub totals: Totals,
    pub dlq_pending: u64,
    pub workers_live: u64,
    /// Why nothing is leased although tasks are ready.
    #[serde(default)]
    pub held_back: Option<String>,
}

/// Counted since the queue was made; they survive compaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    pub runs_enqueued: u64,
    pub runs_succeeded: u64,
    pub runs_failed: u64,
    pub runs_cancelled: u64,
    pub tasks_started: u64,
    pub tasks_succeeded: u64,
    pub tasks_dead: u64,
    pub retries: u64,
    pub redelivered: u64,
    pub idempotency_hits: u64,
    pub dlq_requeued: u64,
    pub dlq_purged: u64,
    pub orphans: u64,
    pub refused_reports: u64,
}

impl Totals {
    /// Whether a queue can have counted so far: at a million a second, these take centuries.
    #[must_use]
    pub fn are_possible(&self) -> bool {
        let runs = [self.runs_enqueued, self.runs_succeeded, self.runs_failed, self.runs_cancelled];
        let tasks = [self.tasks_started, self.tasks_succeeded, self.tasks_dead, self.retries, self.redelivered];
        let others = [self.idempotency_hits, self.dlq_requeued, self.dlq_purged, self.orphans, self.refused_reports];
        runs.iter().chain(&tasks).chain(&others).all(|count| *count < 1 << 53)
    }
}

/// What [`Request::Counters`] answers: since the supervisor started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Turns of the loop.
    pub turns: u64,
    /// Calls of fsync and fdatasync, of files and folders.
    pub syncs: u64,
    /// The longest that the loop was busy at once, since this was asked last.
    pub longest_turn_us: u64,
    /// Pauses of dequeuing under `[backpressure]`.
    #[serde(default)]
    pub worker_pauses_total: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRow {
    pub run_id: RunId,
    pub flow_id: String,
    pub tenant: String,
    pub state: RunState,
    pub enqueued_at: Millis,
    pub priority: u8,
    pub tasks_done: u64,
    pub tasks_total: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunDetail {
    pub run_id: RunId,
    pub flow_id: String,
    pub flow_digest: String,
    pub tenant: String,
    pub state: RunState,
    pub enqueued_at: Millis,
    pub ended_at: Option<Millis>,
    pub priority: u8,
    pub idempotency_key: Option<String>,
    pub env: Vec<(String, String)>,
    pub headers: Option<Json>,
    pub input: Option<Json>,
    /// Why none of the run's ready tasks is leased.
    #[serde(default)]
    pub held_back: Option<String>,
    pub tasks: Vec<TaskRow>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskRow {
    pub task_id: String,
    pub step: String,
    pub state: TaskState,
    /// Needs, `compiling`, `profile`, `retry at …`, `max_parallel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Earlier attempts that are not kept any more.
    #[serde(default)]
    pub attempts_left_out: u32,
    /// Oldest first.
    pub attempts: Vec<AttemptRow>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttemptRow {
    pub attempt: Attempt,
    pub started_at: Millis,
    pub ended_at: Option<Millis>,
    pub worker: u64,
    /// `running`, `succeeded`, `retry`, `rate-limited`, `dead`, `requeued:stale`, `aborted:shutdown`, `cancelled`.
    pub outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    pub fuel: u64,
    pub peak_memory_bytes: u64,
}

/// A dead letter as `dlq ls` prints it and as its entry file holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DlqEntry {
    pub entry_id: String,
    pub run_id: RunId,
    pub task_id: String,
    pub flow_id: String,
    pub tenant: String,
    pub attempt: Attempt,
    pub failures: u32,
    pub timestamp: Millis,
    /// `pending`, `requeued`, `purged`.
    pub state: String,
    #[serde(default)]
    pub consumed_at: Option<Millis>,
    pub error: TaskError,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DlqOutcome {
    pub entry_id: String,
    pub task_id: String,
    /// `requeued`, `purged`, `skipped`, `would requeue`, `would purge`.
    pub outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerRow {
    pub worker: u64,
    pub pid: u32,
    pub tenant: String,
    pub running: u32,
    pub started_at: Millis,
    /// What confinement is missing; empty when both walls stand.
    pub missing: Vec<String>,
    pub memory_bytes: u64,
}
