//! What comes in from the world, and what goes out once the facts are synced (I1).

use alloc::{boxed::Box, string::String, vec::Vec};

use crate::{
    api::{ApiError, DlqAction, DlqEntry, EnqueueRequest, Reply},
    flow::spec::FlowDef,
    id::{Attempt, RunId, TaskRef, WorkerId},
    json::Payload,
    queue::{
        decide::{Made, Making},
        event::Event,
        run::Run,
        state::Registered,
    },
    time::Millis,
    wire,
};

/// Whom an answer goes to: minted by the shell, one per request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A registration that the shell has loaded, inspected and resolved.
    Register {
        ticket: Ticket,
        tenant: String,
        def: Box<FlowDef>,
        warnings: Vec<String>,
    },
    /// `input` is the request's input, in a blob when it is large (synced before this, I10).
    Enqueue {
        ticket: Ticket,
        request: Box<EnqueueRequest>,
        input: Payload,
    },
    Cancel {
        ticket: Ticket,
        id: String,
    },
    ForgetKey {
        ticket: Ticket,
        tenant: String,
        flow: String,
        key: String,
    },
    /// A [`Bulk`](super::decide::Bulk) makes slices of it.
    Requeue {
        ticket: Ticket,
        action: DlqAction,
    },
    Purge {
        ticket: Ticket,
        action: DlqAction,
    },
    /// The end of an attempt, as the worker `from` says. Large outputs are in blobs, artefacts moved.
    Report {
        from: WorkerId,
        report: Box<Report>,
    },
    Progress {
        from: WorkerId,
        task: TaskRef,
        attempt: Attempt,
        percent: u8,
    },
    /// The worker process is dead and reaped.
    WorkerGone {
        worker: WorkerId,
    },
    /// The shell could not hand the start over; the guest never ran.
    NotStarted {
        worker: WorkerId,
        task: TaskRef,
        attempt: Attempt,
    },
    /// Shutdown: the attempt was stopped.
    Aborted {
        worker: WorkerId,
        task: TaskRef,
        attempt: Attempt,
    },
    /// A dead letter's file is synced.
    Filed {
        entry: String,
    },
    /// What [`Effect::Make`] asked for. An [`Arrival`](super::decide::Arrival) makes slices of it.
    Made {
        run: RunId,
        step: u16,
        made: Made,
    },
}

/// A worker's report whose bodies the shell has turned into payloads.
#[derive(Clone, Debug)]
pub struct Report {
    pub task: TaskRef,
    pub attempt: Attempt,
    pub outcome: Outcome,
    pub usage: wire::Usage,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    Succeeded { output: Payload, artifacts: Vec<wire::ArtifactEntry> },
    Failed(wire::Failure),
    NotStarted,
}

/// What to do once the events are synced, in order.
#[derive(Clone, Debug)]
pub enum Effect {
    Reply {
        ticket: Ticket,
        reply: Reply,
    },
    Start {
        worker: WorkerId,
        task: TaskRef,
        attempt: Attempt,
    },
    /// Makes what a step waits for, beside the loop, and brings it back as [`Input::Made`]. Asked once while the shell lives.
    Make(Making),
    /// Sets the cancel flag of a running attempt; it is stopped after the grace.
    Cancel {
        worker: WorkerId,
        task: TaskRef,
        attempt: Attempt,
    },
    /// Writes `pending/ID.json` and answers with [`Input::Filed`].
    FileEntry {
        entry: Box<DlqEntry>,
    },
    /// Moves an entry's file to `archive/requeued`.
    ArchiveEntry {
        entry: Box<DlqEntry>,
    },
    /// Moves the files of all dead letters of a run that was ended to `archive/purged`
    /// ([`purged_entries`](super::decide::purged_entries)); the run is gone from the state.
    ArchiveRun {
        run: Box<Run>,
        flow: Registered,
        at: Millis,
    },
    /// Answers those who wait for the run.
    RunEnded {
        run: RunId,
    },
}

/// A decision: facts and wishes, or a refusal, as data.
#[derive(Clone, Debug, Default)]
pub struct Step {
    pub events: Vec<Event>,
    pub effects: Vec<Effect>,
}

impl Step {
    #[must_use]
    pub fn reply(ticket: Ticket, reply: Reply) -> Self {
        Self { events: Vec::new(), effects: alloc::vec![Effect::Reply { ticket, reply }] }
    }

    #[must_use]
    pub fn refuse(ticket: Ticket, error: ApiError) -> Self {
        Self::reply(ticket, Reply::Error(error))
    }
}
