//! Facts, as the log keeps them: every number resolved, so that replay needs no clock and no configuration.
//!
//! One [`Frame`] is one decision; its events stand or fall together. Field names are short because a task writes three
//! frames; docs/reference/log-format.md lists them.

use alloc::{boxed::Box, string::String, vec::Vec};
use serde::{Deserialize, Serialize};

use crate::{
    api::{RunState, Totals},
    code::Class,
    flow::spec::FlowDef,
    id::{Attempt, Digest, FlowNo, RunId, TaskRef, WorkerId},
    json::{Json, Payload},
    queue::{results::ResultsMark, run::Run},
    time::Millis,
    wire::{ArtifactEntry, Usage},
};

/// One decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Frame {
    /// When it was decided; never smaller than the frame before it.
    #[serde(rename = "t")]
    pub at: Millis,
    #[serde(rename = "e")]
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// The first frame of a queue.
    Created {
        secret: [u8; 16],
        format: u32,
    },
    FlowRegistered {
        no: FlowNo,
        tenant: String,
        def: Box<FlowDef>,
    },
    Enqueued(Box<Enqueued>),
    /// A key was asked for again; counted only.
    Deduplicated {
        run: RunId,
    },
    /// On disk before the attempt starts (I4).
    Leased {
        #[serde(rename = "k")]
        task: TaskRef,
        #[serde(rename = "a")]
        attempt: Attempt,
        #[serde(rename = "w")]
        worker: WorkerId,
    },
    Succeeded(Box<Succeeded>),
    RetryScheduled(Box<RetryScheduled>),
    /// The attempt ended without being a failure and the task is ready at once.
    Released {
        #[serde(rename = "k")]
        task: TaskRef,
        #[serde(rename = "a")]
        attempt: Attempt,
        reason: ReleaseReason,
    },
    /// The worker died (`requeued:stale`). The task runs next alone.
    Lost {
        #[serde(rename = "k")]
        task: TaskRef,
        #[serde(rename = "a")]
        attempt: Attempt,
        /// Whether it counts as a failure.
        counted: bool,
    },
    Dead(Box<Dead>),
    /// A step whose needs are met: its input stands here, so replay never evaluates. None: the run's own input.
    StepReady {
        run: RunId,
        step: u16,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        input: Option<Payload>,
    },
    /// A step whose needs are met: what it gets is made beside the loop, because it may be large. [`Event::StepReady`],
    /// [`Event::StepFanned`], [`Event::StepSkipped`] or [`Event::Dead`] follows.
    StepDue {
        run: RunId,
        step: u16,
    },
    /// Inputs of a fan-out from this one on, before the [`Event::StepFanned`] that has the last of them.
    FanInputs {
        run: RunId,
        step: u16,
        from: u32,
        inputs: Vec<Payload>,
    },
    /// One task per item. The inputs before `from` were said before.
    StepFanned {
        run: RunId,
        step: u16,
        #[serde(default, skip_serializing_if = "is_zero")]
        from: u32,
        inputs: Vec<Payload>,
    },
    /// All items of a fan-out succeeded: their outputs in the order of the list.
    FanDone {
        run: RunId,
        step: u16,
        output: Payload,
    },
    StepSkipped {
        run: RunId,
        step: u16,
    },
    /// Nothing of the run can go on, and a task of it is dead.
    Stalled {
        run: RunId,
    },
    /// Unless it succeeded, the dead letters that it still has are purged with it.
    RunEnded {
        run: RunId,
        state: RunState,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Payload>,
        /// The step whose output is the run's, in place of `output`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<u16>,
        expires_at: Millis,
    },
    /// The entry's file is synced; from here on the file is the truth.
    Filed {
        entry: String,
    },
    /// A dead letter went back into the queue; its failures start again from zero, its attempts go on.
    Requeued {
        entry: String,
        task: TaskRef,
    },
    /// An entry was given up; its run ends as failed in the same frame.
    Purged {
        entry: String,
        task: TaskRef,
    },
    KeyForgotten {
        tenant: String,
        flow: String,
        key: String,
    },
    /// A run that ended and whose result stays no longer holds its key.
    KeyFreed {
        run: RunId,
        /// When its result expires.
        until: Millis,
    },
    /// The results of all runs that ended before this stand in the results segments, synced: the log need not tell of
    /// them any more.
    ResultsKept(Box<ResultsMark>),
    /// A results segment is forgotten: what it holds has expired, or there was too much.
    ResultsDropped {
        segment: u64,
    },
    /// Compaction: the whole of an unfinished run, in place of all that was said of it before.
    RunSnapshot(Box<Run>),
    TotalsSnapshot(Box<Totals>),
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enqueued {
    pub run: RunId,
    pub flow: FlowNo,
    pub input: Payload,
    #[serde(rename = "p")]
    pub priority: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Of the input, so that a key cannot be used with another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Json>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// Not before this time of the wall; at once when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Millis>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Succeeded {
    #[serde(rename = "k")]
    pub task: TaskRef,
    #[serde(rename = "a")]
    pub attempt: Attempt,
    pub output: Payload,
    #[serde(rename = "u")]
    pub usage: Usage,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<ArtifactEntry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RetryScheduled {
    #[serde(rename = "k")]
    pub task: TaskRef,
    #[serde(rename = "a")]
    pub attempt: Attempt,
    pub ready_at: Millis,
    pub class: Class,
    pub code: String,
    pub message: String,
    /// Whether it counted as a failure.
    pub counted: bool,
    #[serde(rename = "u")]
    pub usage: Usage,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dead {
    #[serde(rename = "k")]
    pub task: TaskRef,
    /// The one that ended with it; 0 when none did (a template that failed, a run over its time while the task waited).
    #[serde(rename = "a")]
    pub attempt: Attempt,
    pub entry: String,
    pub code: String,
    pub message: String,
    /// `non_retryable`, `max_attempts`, `rate_limited_max`.
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_code: Option<String>,
    #[serde(rename = "u")]
    pub usage: Usage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReleaseReason {
    /// `aborted:shutdown`.
    Shutdown,
    /// The guest never ran.
    NotStarted,
}
