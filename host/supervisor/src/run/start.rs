//! What a worker is told when it is given a task.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use tm_core::{
    id::{Attempt, TaskRef},
    json::{Json, Payload},
    limits::INLINE_MAX_BYTES,
    queue::{
        lanes::Profile,
        run::{Run, StepRun},
        state::State,
    },
    time::Millis,
    wire::{Body, ReadableStep, Start, StartContext, StartFiles, StartGrants},
};

use super::catalogue::folder_no;

/// Why a task could not be handed over; it is released and tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("the run or its flow is gone")]
    Gone,
    #[error("the task's input cannot be opened: {0}")]
    Input(String),
    #[error("folder {0} is not in the worker's profile")]
    Folder(String),
}

/// The message for one attempt, with the descriptors that it counts.
#[expect(clippy::too_many_arguments, reason = "all that an attempt is made of")]
pub(super) fn start_of(
    state: &State,
    task: TaskRef,
    attempt: Attempt,
    component: u32,
    host_env: &BTreeMap<String, String>,
    keep_scratch: bool,
    now: Millis,
    open_blob: &dyn Fn(&Payload) -> Result<OwnedFd, String>,
) -> Result<(Start, Vec<OwnedFd>), StartError> {
    let run = state.runs.get(&task.run).ok_or(StartError::Gone)?;
    let (flow, step) = state.step_of(task).ok_or(StartError::Gone)?;
    let found = run.task(task).ok_or(StartError::Gone)?;
    let mut fds = Vec::new();
    let input = match &found.input {
        Payload::Inline(json) if json.size_bytes() <= INLINE_MAX_BYTES => Body::Inline(json.clone()),
        payload => {
            fds.push(open_blob(payload).map_err(StartError::Input)?);
            Body::Fd { size_bytes: payload.size_bytes() }
        }
    };
    let mut files = Vec::new();
    // Most steps have no folders, and then nobody asks for their places.
    let profile = (!step.grants.files.is_empty()).then(|| Profile::of(&flow.tenant, step));
    for granted in &step.grants.files {
        let place = profile.as_ref().and_then(|profile| folder_no(profile, &granted.host));
        files.push(StartFiles {
            folder: place.ok_or_else(|| StartError::Folder(granted.host.clone()))?,
            guest: granted.guest.clone(),
            write: granted.mode == tm_core::flow::spec::Mode::Write,
            max_mb: granted.max_mb,
        });
    }
    let extra = run.extra.as_deref();
    let mut env = Vec::new();
    for wanted in &step.grants.env {
        let value = if wanted.from_caller() {
            extra.and_then(|extra| extra.env.iter().find(|(name, _)| name == wanted.name())).map(|(_, value)| value)
        } else {
            host_env.get(wanted.name())
        };
        env.extend(value.map(|value| (wanted.name().to_owned(), value.clone())));
    }
    let start = Start {
        task,
        attempt,
        component,
        context: StartContext {
            flow_id: flow.def.id.clone(),
            step_id: step.id.clone(),
            max_attempts: step.retries.max_attempts,
            // A guest that looks at a clock sees the wall's.
            deadline_ms: state.wall(now).plus(step.limits.timeout_ms).0,
            trace_parent: extra.and_then(|extra| trace_parent(extra.trace.as_ref())),
        },
        input,
        limits: step.limits.clone(),
        grants: StartGrants {
            files,
            env,
            scratch: step.grants.scratch,
            keep_scratch: step.grants.scratch && keep_scratch,
            artifacts: step.grants.artifacts,
            clocks: step.grants.clocks,
            random: step.grants.random,
            readable: step.needs.iter().filter_map(|&need| readable(run, flow, need)).collect(),
        },
        in_flight: state.in_flight(),
    };
    Ok((start, fds))
}

fn readable(run: &Run, flow: &tm_core::queue::state::Registered, need: u16) -> Option<ReadableStep> {
    let step_id = flow.def.steps.get(usize::from(need))?.id.clone();
    match run.steps.get(usize::from(need))? {
        StepRun::Done(done) => Some(ReadableStep { step_id, items: done.items }),
        _ => None,
    }
}

fn trace_parent(trace: Option<&Json>) -> Option<String> {
    let trace: serde_json::Value = serde_json::from_str(trace?.get()).ok()?;
    trace.get("traceparent")?.as_str().map(str::to_owned)
}
