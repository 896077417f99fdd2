//! Reading the queue: what `stats`, `show` and `result` answer. Nothing here changes anything (I12).

use alloc::{
    boxed::Box,
    collections::BTreeSet,
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::ops::ControlFlow;

use crate::{
    api::{ApiError, AttemptRow, ErrorKind, RunDetail, RunEnd, RunState, Stats, TaskRow, TaskState},
    code,
    flow::{advance::Blobs, spec::FlowDef},
    id::{Attempt, FlowNo, RunId, TaskRef},
    json::{Json, Payload},
    queue::{
        decide::error_of,
        indexes::each_task,
        results::{DamagedResult, Ended},
        run::{AttemptRecord, Letter, Phase, Run, StepRun, Task, TaskEnd},
        state::State,
    },
    time::Millis,
};

/// Of a dead letter's message in a task's row; the whole of it is in the letter.
const MESSAGE_CHARS_MAX: usize = 240;

/// Of runs that a prefix names, no more are counted.
const SEVERAL_MAX: usize = 100;

/// What an id or a unique prefix names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Run(RunId),
    None,
    Several(usize),
}

/// Finds a run by its id, a unique prefix of it, or the id of one of its tasks.
#[must_use]
pub fn find_run(ended: Ended<'_>, id: &str) -> Found {
    let text = id.split('.').next().unwrap_or(id);
    if let Ok(run) = text.parse::<RunId>() {
        return if ended.knows(run) { Found::Run(run) } else { Found::None };
    }
    if text.is_empty() || text.len() > 26 {
        return Found::None;
    }
    // A prefix is a range of ids.
    let fill = |with: char| {
        let mut whole = String::from(text);
        whole.extend(core::iter::repeat_n(with, 26 - text.len()));
        whole.parse::<RunId>()
    };
    let (Ok(low), Ok(high)) = (fill('0'), fill('Z')) else { return Found::None };
    let (mut found, mut count) = (None, 0);
    ended.range(low, high, &mut |run| {
        if ended.knows(run) {
            (found, count) = (Some(run), count + 1);
        }
        if count < SEVERAL_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    match (found, count) {
        (Some(run), 1) => Found::Run(run),
        (None, _) => Found::None,
        (Some(_), several) => Found::Several(several),
    }
}

/// The error for an id that names nothing.
#[must_use]
pub fn no_run(id: &str) -> ApiError {
    ApiError {
        kind: ErrorKind::Failed,
        code: None,
        message: format!("no run or task '{id}'"),
        hint: Some("results are kept for result_ttl; see: tm queue ls --state all".into()),
        retry_after_ms: None,
    }
}

/// Whether the run has the step or task of an id such as `RUN.step` or `RUN.step[3]`; true for an id of the run alone.
#[must_use]
pub fn has_step(run: &RunDetail, id: &str) -> bool {
    let Some((_, step)) = id.split_once('.') else { return true };
    let is_it = |task: &TaskRow| task.step == step || task.task_id.split_once('.').is_some_and(|(_, own)| own == step);
    run.tasks.iter().any(is_it)
}

/// The error for an id of a run that has no such step.
#[must_use]
pub fn no_step(id: &str) -> ApiError {
    let (run, step) = id.split_once('.').unwrap_or((id, ""));
    ApiError {
        kind: ErrorKind::Failed,
        code: None,
        message: format!("run {run} has no step '{step}'"),
        hint: Some(format!("see its steps: tm queue show {run}")),
        retry_after_ms: None,
    }
}

/// The error for a prefix that names several runs.
#[must_use]
pub fn several_runs(id: &str, count: usize) -> ApiError {
    ApiError {
        kind: ErrorKind::Usage,
        code: None,
        message: format!("'{id}' names {count} runs{}", if count < SEVERAL_MAX { "" } else { " or more" }),
        hint: Some("give more of the id".into()),
        retry_after_ms: None,
    }
}

/// Finds a run or says why not.
///
/// # Errors
/// When nothing or more than one matches.
pub fn run_by_id(ended: Ended<'_>, id: &str) -> Result<RunId, Box<ApiError>> {
    match find_run(ended, id) {
        Found::Run(run) => Ok(run),
        Found::None => Err(Box::new(no_run(id))),
        Found::Several(count) => Err(Box::new(several_runs(id, count))),
    }
}

/// Counts; `backend` and `workers_live` are the shell's to fill.
#[must_use]
pub fn stats(state: &State, now: Millis) -> Stats {
    // Delayed tasks that are due count as ready, whether or not they were promoted yet.
    let due = |waiting: &BTreeSet<(Millis, TaskRef)>, now| waiting.iter().take_while(|(at, _)| *at <= now).count();
    let due = due(&state.indexes.delayed, state.wall(now)) + due(&state.indexes.backing_off, now);
    let ready = state.indexes.lanes.len() + due as u64;
    let delayed = state.delayed() - due as u64;
    let oldest =
        state.indexes.lanes.oldest().into_iter().chain(state.next_delayed().map(|(at, _)| at).filter(|at| *at <= now));
    #[expect(clippy::cast_precision_loss, reason = "an age in milliseconds is far below 2^52")]
    let lag_seconds = oldest.min().map_or(0.0, |since| now.since(since) as f64 / 1000.0);
    Stats {
        backend: String::from("file"),
        depth: ready + delayed + state.indexes.leased,
        pending: ready + delayed,
        ready,
        delayed,
        inflight: state.indexes.leased,
        lag_seconds,
        totals: state.totals.clone(),
        dlq_pending: state.letters.len() as u64,
        workers_live: 0,
        held_back: None,
    }
}

pub(super) fn names(state: &State, flow: FlowNo) -> (String, String) {
    state.flows.get(&flow).map_or_else(Default::default, |flow| (flow.def.id.clone(), (*flow.tenant).into()))
}

/// The error for a run whose result cannot be read any more.
#[must_use]
pub fn damaged_result(id: RunId, damaged: &DamagedResult) -> ApiError {
    ApiError {
        kind: ErrorKind::Damaged,
        code: None,
        message: format!("run {id} ended, and the record of its end is damaged: {}", damaged.place),
        hint: Some("see what else is: tm queue verify".into()),
        retry_after_ms: None,
    }
}

/// One run with its tasks. `blocked` says what keeps a ready task of a step from running (`compiling`, `profile`).
///
/// # Errors
/// When there is no such run, or its record is damaged.
pub fn detail(
    ended: Ended<'_>,
    id: RunId,
    blobs: &dyn Blobs,
    blocked: &dyn Fn(FlowNo, u16) -> Option<String>,
) -> Result<RunDetail, Box<ApiError>> {
    let gone = || Box::new(no_run(&id.to_string()));
    let state = ended.state;
    if let Some(run) = state.runs.get(&id) {
        let flow = state.flow_of(run).ok_or_else(gone)?;
        let mut tasks = Vec::new();
        for (place, step) in (0u16..).zip(run.steps.iter()) {
            step_rows(state, run, &flow.def, place, step, blocked, &mut tasks);
        }
        let extra = run.extra.clone().unwrap_or_default();
        return Ok(RunDetail {
            run_id: id,
            flow_id: flow.def.id.clone(),
            flow_digest: flow.def.digest.to_string(),
            tenant: (*flow.tenant).into(),
            state: run.state,
            enqueued_at: run.enqueued_at,
            ended_at: None,
            priority: run.priority,
            idempotency_key: extra.key,
            env: extra.env,
            headers: extra.headers,
            input: read(&run.input, blobs),
            held_back: None,
            tasks,
        });
    }
    let run = ended.run(id).ok_or_else(gone)?.map_err(|damaged| Box::new(damaged_result(id, &damaged)))?;
    let def = state.flows.get(&run.flow).map(|flow| &*flow.def);
    let tasks = run.tasks.iter().map(|(place, end)| ended_row(id, def, *place, end)).collect();
    let (flow_id, tenant) = names(state, run.flow);
    Ok(RunDetail {
        run_id: id,
        flow_id,
        flow_digest: def.map_or_else(String::new, |def| def.digest.to_string()),
        tenant,
        state: run.state,
        enqueued_at: run.enqueued_at,
        ended_at: Some(run.ended_at),
        priority: run.priority,
        idempotency_key: run.key.clone(),
        env: Vec::new(),
        headers: None,
        input: None,
        held_back: None,
        tasks,
    })
}

fn step_id(def: &FlowDef, place: u16) -> &str {
    def.steps.get(usize::from(place)).map_or("", |step| step.id.as_str())
}

fn step_rows(
    state: &State,
    run: &Run,
    def: &FlowDef,
    place: u16,
    step: &StepRun,
    blocked: &dyn Fn(FlowNo, u16) -> Option<String>,
    rows: &mut Vec<TaskRow>,
) {
    let id = step_id(def, place);
    let whole = TaskRef { run: run.id, step: place, item: None };
    let bare = |state, waiting_for| TaskRow {
        task_id: whole.name(id),
        step: id.into(),
        state,
        waiting_for,
        percent: None,
        attempts_left_out: 0,
        attempts: Vec::new(),
    };
    let row = |task: TaskRef, found: &Task| {
        let (as_state, waiting_for) = match &found.phase {
            Phase::Held => (TaskState::Waiting, Some(String::from("max_parallel"))),
            Phase::Ready { .. } if found.suspect => {
                (TaskState::Ready, Some(String::from("an idle worker: runs alone")))
            }
            Phase::Ready { .. } => (TaskState::Ready, blocked(run.flow, place)),
            Phase::Delayed { ready_at } => (TaskState::Delayed, Some(format!("{ready_at}"))),
            Phase::Leased { .. } => (TaskState::Leased, None),
            Phase::Succeeded(_) => (TaskState::Succeeded, None),
            Phase::Dead(letter) => (TaskState::Dead, Some(death(letter))),
        };
        TaskRow {
            task_id: task.name(id),
            step: id.into(),
            state: as_state,
            waiting_for,
            percent: state.progress.get(&task).copied(),
            attempts_left_out: left_out(found.attempt, found.attempts.len()),
            attempts: found.attempts.iter().map(attempt_row).collect(),
        }
    };
    match step {
        StepRun::Waiting => {
            let needs = def.steps.get(usize::from(place)).map_or(&[][..], |step| &step.needs);
            let open = needs.iter().filter(|need| {
                !matches!(run.steps.get(usize::from(**need)), Some(StepRun::Done(_) | StepRun::Skipped))
            });
            let names = open.map(|need| step_id(def, *need)).collect::<Vec<_>>().join(", ");
            rows.push(bare(TaskState::Waiting, Some(names)));
        }
        StepRun::Due(_) => rows.push(bare(TaskState::Waiting, Some(String::from("its input is made")))),
        StepRun::Single(task) => rows.push(row(whole, task)),
        StepRun::Fan(fan) => rows
            .extend(fan.tasks.iter().zip(0u32..).map(|(task, item)| row(TaskRef { item: Some(item), ..whole }, task))),
        StepRun::Skipped => rows.push(bare(TaskState::Skipped, None)),
        StepRun::Faulted(letter) => {
            rows.push(bare(TaskState::Dead, Some(death(letter))));
        }
        StepRun::Done(done) => rows.extend(done.tasks.iter().map(|end| ended_row(run.id, Some(def), place, end))),
    }
}

/// Why a task is dead, on one line: its message may be a tenant's text.
fn death(letter: &Letter) -> String {
    let line: String =
        letter.message.chars().map(|char| if char.is_control() { ' ' } else { char }).take(MESSAGE_CHARS_MAX).collect();
    format!("{}: {}: {line}", letter.code, letter.entry)
}

fn ended_row(run: RunId, def: Option<&FlowDef>, place: u16, end: &TaskEnd) -> TaskRow {
    let id = def.map_or("", |def| step_id(def, place));
    let state = match end.last.outcome.as_str() {
        "succeeded" => TaskState::Succeeded,
        "dead" => TaskState::Dead,
        _ => TaskState::Cancelled,
    };
    TaskRow {
        task_id: TaskRef { run, step: place, item: end.item }.name(id),
        step: id.into(),
        state,
        waiting_for: None,
        percent: None,
        attempts_left_out: left_out(end.last.attempt, 1 + end.earlier.len()),
        attempts: end.attempts().map(attempt_row).collect(),
    }
}

/// Attempts are numbered from 1: those that are not among the kept ones were left out.
fn left_out(last: Attempt, kept: usize) -> u32 {
    last.saturating_sub(u32::try_from(kept).unwrap_or(u32::MAX))
}

fn attempt_row(record: &AttemptRecord) -> AttemptRow {
    AttemptRow {
        attempt: record.attempt,
        started_at: record.started_at,
        ended_at: record.ended_at,
        worker: record.worker.0,
        outcome: if record.outcome.is_empty() { String::from("running") } else { record.outcome.clone() },
        code: record.code.clone(),
        fuel: record.usage.fuel,
        peak_memory_bytes: record.usage.peak_memory_bytes,
    }
}

/// How a run ended, when it did: what `--wait`, `run` and `result` answer. A stalled run counts as ended.
///
/// # Errors
/// When the record of its end is damaged.
pub fn run_end(ended: Ended<'_>, id: RunId, blobs: &dyn Blobs) -> Result<Option<RunEnd>, Box<ApiError>> {
    if let Some(run) = ended.state.runs.get(&id) {
        if run.state != RunState::Stalled {
            return Ok(None);
        }
        let error = run.letters().next().map(|(_, letter)| error_of(letter));
        let exec_ms = exec_us(run).div_ceil(1000);
        return Ok(Some(RunEnd { run_id: id, status: run.state, output: None, exec_ms, error }));
    }
    let Some(found) = ended.run(id) else { return Ok(None) };
    let run = found.map_err(|damaged| Box::new(damaged_result(id, &damaged)))?;
    let error = match run.state {
        RunState::Cancelled => Some(crate::api::TaskError {
            code: code::CANCELLED.into(),
            message: "the run was cancelled".into(),
            retryable: false,
            reason: "cancelled".into(),
            last_code: None,
        }),
        _ => run.letter.as_deref().map(error_of),
    };
    let output = run.output.as_ref().and_then(|output| read(output, blobs));
    Ok(Some(RunEnd { run_id: id, status: run.state, output, exec_ms: run.exec_ms, error }))
}

/// What the last attempts of a run's tasks took together so far, as the record of its end would say.
fn exec_us(run: &Run) -> u64 {
    let done = run.steps.iter().map(|step| match step {
        StepRun::Done(done) => done.tasks.iter().map(|end| end.last.usage.exec_us).sum(),
        _ => 0,
    });
    let mut exec_us: u64 = done.sum();
    each_task(run, |_, task| exec_us += task.attempts.last().map_or(0, |last| last.usage.exec_us));
    exec_us
}

fn read(payload: &Payload, blobs: &dyn Blobs) -> Option<Json> {
    match payload {
        Payload::Inline(json) => Some(json.clone()),
        Payload::Blob(blob) => blobs.read(&blob.digest),
    }
}
