//! Runs over their time: what is open of them ends, whether or not a worker is free.

use alloc::{format, vec::Vec};

use crate::{
    code,
    id::{RunId, TaskRef},
    queue::{
        decide::{Desk, World},
        effect::{Effect, Step},
        indexes::{due_steps, each_task},
        run::Phase,
        state::State,
    },
    wire::Usage,
};

/// Ends the open tasks of runs whose time is up, at most `most`: each becomes a dead letter with RUN_TIMEOUT, and one that
/// runs is told to stop. A run of which nothing is open any more stalls. What is left is due at once.
pub fn time_out(state: &mut State, world: World<'_>, most: usize) -> Step {
    let mut desk = Desk::new(state, world);
    let mut left = most;
    while left > 0
        && let Some(run) = desk.state.run_over(desk.world.now)
    {
        let tasks = open_tasks(desk.state, run, left);
        left -= tasks.len();
        tasks.into_iter().for_each(|task| desk.end_task_over(task));
        if !has_open_tasks(desk.state, run) {
            desk.advance(run);
            // It has stalled and is due no more. One that a damaged record left unable to must not be met again and again.
            if desk.state.run_over(desk.world.now) == Some(run) && !has_open_tasks(desk.state, run) {
                desk.state.indexes.deadlines.forget(run);
            }
        }
    }
    desk.done()
}

/// The first open tasks of a run, at most `most`.
fn open_tasks(state: &State, run: RunId, most: usize) -> Vec<TaskRef> {
    let Some(run) = state.runs.get(&run) else { return Vec::new() };
    // A step for which something is made beside the loop has no open task yet, or none any more: it ends as a whole.
    let made = due_steps(run).map(|(run, step)| TaskRef { run, step, item: None });
    let mut open: Vec<TaskRef> = made.take(most).collect();
    each_task(run, |task, _| {
        if open.len() < most && run.is_open(task) {
            open.push(task);
        }
    });
    open
}

fn has_open_tasks(state: &State, run: RunId) -> bool {
    !open_tasks(state, run, 1).is_empty()
}

impl Desk<'_> {
    /// Whether a run's time is up.
    pub(crate) fn is_over(&self, run: RunId) -> bool {
        let Some(run) = self.state.runs.get(&run) else { return false };
        let deadline = self.state.indexes.deadlines.of(run, self.state.ahead_ms);
        deadline.is_some_and(|at| at <= self.world.now)
    }

    /// Ends a task of a run whose time is up.
    pub(crate) fn end_task_over(&mut self, task: TaskRef) {
        let Some(run) = self.state.runs.get(&task.run) else { return };
        let leased = run.task(task).and_then(|found| match found.phase {
            Phase::Leased { worker } => Some((worker, found.attempt)),
            _ => None,
        });
        let timeout_ms = self.state.flow_of(run).and_then(|flow| flow.def.run_timeout_ms).unwrap_or(0);
        let message = format!("the run is older than run_timeout_ms ({timeout_ms})");
        // The attempt that runs ends with it; where none runs, none ends.
        let ended = leased.map_or(0, |(_, attempt)| attempt);
        self.dead(task, ended, code::RUN_TIMEOUT, message, "non_retryable", None, Usage::default());
        if let Some((worker, attempt)) = leased {
            self.effect(Effect::Cancel { worker, task, attempt });
        }
    }
}
