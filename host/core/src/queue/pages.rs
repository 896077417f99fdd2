//! What `queue ls` and `dlq ls` answer: a page at a time, because a queue may hold millions. Nothing here changes anything (I12).

use alloc::{boxed::Box, string::String, vec::Vec};
use core::ops::{Bound, ControlFlow};

use crate::{
    api::{ApiError, DlqEntry, DlqFilter, ErrorKind, ListRequest, RunRow, RunState},
    id::{FlowNo, RunId},
    queue::{
        decide::entry_of,
        results::Ended,
        run::{FinishedRun, Run, StepRun},
        state::State,
        view::names,
    },
};

/// What a page looks at, whether or not it passes the filter: so many runs in memory, so that no page holds up the loop.
const LOOKED_MAX: usize = 2048;
/// Of these, as many as one that has to be read from a results segment counts.
const READ_COST: usize = 8;
/// Dead letters that a page looks at. A letter may hold a message of kilobytes.
const LETTERS_MAX: usize = 512;

/// A part of the runs that pass a filter, newest first, and the run below which the next part begins, if there may be more.
pub type RunPage = (Vec<RunRow>, Option<RunId>);

/// A part of the dead letters that pass a filter, newest first, and the entry below which the next part begins, if there
/// may be more.
pub type LetterPage = (Vec<DlqEntry>, Option<String>);

/// Runs by the filter, newest first.
///
/// # Errors
/// When the state is not one of a run.
pub fn runs(ended: Ended<'_>, request: &ListRequest) -> Result<RunPage, Box<ApiError>> {
    let state = ended.state;
    let wanted = states(request.state.as_deref())?;
    let most = most(request.limit);
    let of_flow = |no: &FlowNo| {
        let flow = state.flows.get(no);
        request.flow.as_ref().is_none_or(|id| flow.is_some_and(|flow| flow.def.id == *id))
    };
    let Some(high) = request.below.map_or(Some(u128::MAX), |below| below.0.checked_sub(1)) else {
        return Ok((Vec::new(), None));
    };
    let (mut rows, mut left, mut last) = (Vec::new(), LOOKED_MAX, None);
    let mut look = |id: RunId, run: Option<&Run>| {
        if let Some(run) = run {
            left = left.saturating_sub(1);
            if wanted.contains(&run.state) && of_flow(&run.flow) {
                rows.push(unfinished_row(state, run));
            }
        } else {
            left = left.saturating_sub(READ_COST);
            if let Some(Ok(run)) = ended.run(id)
                && wanted.contains(&run.state)
                && of_flow(&run.flow)
            {
                rows.push(finished_row(state, &run));
            }
        }
        if rows.len() < most && left > 0 {
            return ControlFlow::Continue(());
        }
        last = (rows.len() < most).then_some(id);
        ControlFlow::Break(())
    };
    if wanted.iter().all(|wanted| matches!(wanted, RunState::Active | RunState::Stalled)) {
        // Whoever asks for these alone does not read what ended.
        let _ = state.runs.range(..=RunId(high)).rev().try_for_each(|(id, run)| look(*id, Some(run)));
    } else {
        ended.range(RunId(0), RunId(high), &mut |id| look(id, state.runs.get(&id).map(|run| &**run)));
    }
    Ok((rows, last))
}

fn states(named: Option<&str>) -> Result<&'static [RunState], Box<ApiError>> {
    Ok(match named {
        None | Some("unfinished") => &[RunState::Active, RunState::Stalled],
        Some("all") => {
            &[RunState::Active, RunState::Stalled, RunState::Succeeded, RunState::Failed, RunState::Cancelled]
        }
        Some("active") => &[RunState::Active],
        Some("stalled") => &[RunState::Stalled],
        Some("succeeded") => &[RunState::Succeeded],
        Some("failed") => &[RunState::Failed],
        Some("cancelled") => &[RunState::Cancelled],
        Some(other) => {
            return Err(Box::new(ApiError {
                kind: ErrorKind::Usage,
                code: None,
                message: alloc::format!("'{other}' is not a state of a run"),
                hint: Some("one of: unfinished, all, active, stalled, succeeded, failed, cancelled".into()),
                retry_after_ms: None,
            }));
        }
    })
}

fn most(limit: u64) -> usize {
    if limit == 0 { usize::MAX } else { usize::try_from(limit).unwrap_or(usize::MAX) }
}

fn unfinished_row(state: &State, run: &Run) -> RunRow {
    let (mut done, mut total) = (0, 0);
    for step in &run.steps {
        let (d, t) = match step {
            StepRun::Waiting | StepRun::Due(_) | StepRun::Single(_) | StepRun::Faulted(_) => (0, 1),
            StepRun::Fan(fan) => (u64::from(fan.succeeded), fan.tasks.len() as u64),
            StepRun::Skipped => (1, 1),
            StepRun::Done(step) => (step.tasks.len() as u64, step.tasks.len() as u64),
        };
        done += d;
        total += t;
    }
    let (flow_id, tenant) = names(state, run.flow);
    let Run { id: run_id, state, enqueued_at, priority, .. } = *run;
    RunRow { run_id, flow_id, tenant, state, enqueued_at, priority, tasks_done: done, tasks_total: total }
}

fn finished_row(state: &State, run: &FinishedRun) -> RunRow {
    let (flow_id, tenant) = names(state, run.flow);
    let tasks_done = run.tasks.iter().filter(|(_, end)| end.last.outcome == "succeeded").count() as u64;
    let FinishedRun { id: run_id, state, enqueued_at, priority, .. } = *run;
    let tasks_total = run.tasks.len() as u64;
    RunRow { run_id, flow_id, tenant, state, enqueued_at, priority, tasks_done, tasks_total }
}

/// Pending dead letters by the filter, newest first.
#[must_use]
pub fn letters(state: &State, filter: &DlqFilter) -> LetterPage {
    let most = most(filter.limit);
    let below = filter.below.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let (mut entries, mut last) = (Vec::new(), None);
    // Entry ids begin with the time: their order is the order of death.
    for (looked, (id, task)) in state.letters.range::<str, _>((Bound::Unbounded, below)).rev().enumerate() {
        let entry = entry_of(state, *task, "pending", None);
        entries.extend(entry.filter(|entry| passes(entry, filter)));
        if entries.len() >= most {
            break;
        }
        if looked + 1 >= LETTERS_MAX {
            last = Some(id.clone());
            break;
        }
    }
    (entries, last)
}

fn passes(entry: &DlqEntry, filter: &DlqFilter) -> bool {
    let (code, last) = (&entry.error.code, &entry.error.last_code);
    filter.since.is_none_or(|since| entry.timestamp >= since)
        && filter.flow.as_ref().is_none_or(|flow| entry.flow_id == *flow)
        && filter.code.as_ref().is_none_or(|wanted| code == wanted || last.as_ref() == Some(wanted))
}
