//! Requests that only read: answered from the state after the turn, so that they tell of nothing that is not synced.

use tm_core::{
    api::{ApiError, Counters, ErrorKind, Reply, Request, RunState, TaskRow, TaskState, WorkerRow},
    code,
    flow::advance::Blobs,
    id::{FlowNo, RunId},
    queue::{
        decide::{Runnable, entry_of},
        pages,
        results::Ended,
        view,
    },
};

/// What an answer needs beside the state.
pub(super) struct Asked<'a> {
    pub(super) ended: Ended<'a>,
    pub(super) blobs: &'a dyn Blobs,
    pub(super) runnable: &'a dyn Fn(FlowNo, u16) -> Runnable,
    pub(super) workers: &'a dyn Fn() -> Vec<WorkerRow>,
    pub(super) backend: &'static str,
    /// A supervisor answers, and not a command that reads its files.
    pub(super) served: bool,
    /// Nothing is leased because the disk has no room.
    pub(super) disk_full: bool,
    /// Why nothing is leased for a moment.
    pub(super) paused: Option<&'a str>,
}

/// The answer, or `None` when the request is not one that only reads.
pub(super) fn answer(asked: &Asked<'_>, request: &Request) -> Option<Reply> {
    let Ended { state, now, .. } = asked.ended;
    Some(match request {
        Request::Ping => Reply::Pong { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").into() },
        Request::FlowEnv { tenant, flow } => {
            match state.latest_flow(tenant, flow).and_then(|no| state.flows.get(&no)) {
                Some(flow) => Reply::FlowEnv(flow.def.caller_env.clone()),
                None => Reply::FlowEnv(Vec::new()),
            }
        }
        Request::Stats => {
            let mut stats = view::stats(state, now);
            stats.backend = asked.backend.into();
            stats.workers_live = (asked.workers)().len() as u64;
            stats.held_back = held_back(asked).filter(|_| stats.ready > 0 || (!asked.served && stats.depth > 0));
            Reply::Stats(stats)
        }
        Request::List(list) => match pages::runs(asked.ended, list) {
            Ok((rows, below)) => Reply::Runs { rows, below },
            Err(error) => Reply::Error(*error),
        },
        Request::Show { id } => match view::run_by_id(asked.ended, id) {
            Err(error) => Reply::Error(*error),
            Ok(run) => match view::detail(asked.ended, run, asked.blobs, &|flow, step| blocked(asked, flow, step)) {
                Ok(detail) if !view::has_step(&detail, id) => Reply::Error(view::no_step(id)),
                Ok(mut detail) => {
                    let waits = |task: &TaskRow| task.state == TaskState::Ready;
                    detail.held_back = held_back(asked).filter(|_| detail.tasks.iter().any(waits));
                    Reply::Run(Box::new(detail))
                }
                Err(error) => Reply::Error(*error),
            },
        },
        Request::Result { id } => match view::run_by_id(asked.ended, id) {
            Err(error) => Reply::Error(*error),
            Ok(run) => match view::run_end(asked.ended, run, asked.blobs) {
                Ok(Some(end)) => Reply::Ended(Box::new(end)),
                Err(error) => Reply::Error(*error),
                Ok(None) => Reply::Error(ApiError {
                    kind: ErrorKind::Failed,
                    code: None,
                    message: format!("run {run} has not ended"),
                    hint: Some(format!("see where it is: tm queue show {run}")),
                    retry_after_ms: Some(1000),
                }),
            },
        },
        Request::DlqList(filter) => {
            let (entries, below) = pages::letters(state, filter);
            Reply::DlqEntries { entries, below }
        }
        Request::DlqShow { entry } => {
            match state.letters.get(entry).and_then(|task| entry_of(state, *task, "pending", None)) {
                Some(found) => Reply::DlqEntries { entries: vec![found], below: None },
                None => Reply::Error(ApiError {
                    kind: ErrorKind::Failed,
                    code: None,
                    message: format!("no DLQ entries match '{entry}'"),
                    hint: Some("see them all: tm dlq ls --limit 0".into()),
                    retry_after_ms: None,
                }),
            }
        }
        Request::Workers => Reply::Workers((asked.workers)()),
        // A loop knows them; without one nothing is counted.
        Request::Counters => Reply::Counters(Counters::default()),
        Request::Register(_)
        | Request::Enqueue(_)
        | Request::Wait { .. }
        | Request::Cancel { .. }
        | Request::ForgetKey { .. }
        | Request::DlqRequeue(_)
        | Request::DlqPurge(_) => return None,
    })
}

fn held_back(asked: &Asked<'_>) -> Option<String> {
    if !asked.served {
        return Some("no supervisor runs; start one: tm workers start".into());
    }
    if asked.disk_full {
        return Some("the queue's disk has no room for the end of another task".into());
    }
    asked.paused.map(str::to_owned)
}

fn blocked(asked: &Asked<'_>, flow: FlowNo, step: u16) -> Option<String> {
    match (asked.runnable)(flow, step) {
        _ if !asked.served => Some("a supervisor".into()),
        Runnable::Yes if asked.disk_full => Some("room on the queue's disk".into()),
        Runnable::Yes => Some("a free worker".into()),
        Runnable::Compiling => Some("compiling".into()),
        Runnable::Held { why } => Some(format!("{}: {why}", code::HOST_ERROR)),
        Runnable::Denied { code, .. } => Some(code.into()),
    }
}

/// Whether a run's end is one that `--wait` answers.
pub(super) fn has_ended(ended: Ended<'_>, run: RunId) -> bool {
    match ended.state.runs.get(&run) {
        Some(run) => run.state == RunState::Stalled,
        None => ended.run(run).is_some(),
    }
}
