//! Where tasks are found by their phase: ready in lanes, delayed by time, leased by worker.
//!
//! Derived from the runs by the same events that change them; [`super::check`] compares the two.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::{
    api::RunState,
    id::{FlowNo, RunId, TaskRef, WorkerId},
    queue::{
        deadlines::Deadlines,
        lanes::{Lanes, Rank},
        run::{Phase, Run, StepRun, Task},
    },
    time::Millis,
};

#[derive(Clone, Debug, Default)]
pub struct Indexes {
    pub lanes: Lanes,
    /// Before their first attempt, by the wall's time that they wait for.
    pub delayed: BTreeSet<(Millis, TaskRef)>,
    /// After a failed one, by the queue's time at which their backoff is over.
    pub backing_off: BTreeSet<(Millis, TaskRef)>,
    pub leases: BTreeMap<WorkerId, BTreeSet<TaskRef>>,
    /// Leased tasks in all.
    pub leased: u64,
    /// Steps for which something is made beside the loop: inputs, or the list of a fan-out's outputs.
    pub due: BTreeSet<(RunId, u16)>,
    pub deadlines: Deadlines,
}

/// Where a task stands among the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) flow: FlowNo,
    pub(crate) priority: u8,
    pub(crate) task: TaskRef,
}

impl Indexes {
    pub(crate) fn remove(&mut self, place: Place, task: &Task) {
        match task.phase {
            Phase::Ready { since } => self.lanes.remove(place.flow, Rank::new(place.priority, since, place.task)),
            Phase::Delayed { ready_at } => {
                self.waiting(task).remove(&(ready_at, place.task));
            }
            Phase::Leased { worker } => {
                if let Some(held) = self.leases.get_mut(&worker) {
                    self.leased -= u64::from(held.remove(&place.task));
                    if held.is_empty() {
                        self.leases.remove(&worker);
                    }
                }
            }
            Phase::Held | Phase::Succeeded(_) | Phase::Dead(_) => {}
        }
    }

    pub(crate) fn insert(&mut self, place: Place, task: &Task) {
        match task.phase {
            Phase::Ready { since } => {
                self.lanes.insert(place.flow, Rank::new(place.priority, since, place.task), task.suspect);
            }
            Phase::Delayed { ready_at } => {
                self.waiting(task).insert((ready_at, place.task));
            }
            Phase::Leased { worker } => {
                self.leased += u64::from(self.leases.entry(worker).or_default().insert(place.task));
            }
            Phase::Held | Phase::Succeeded(_) | Phase::Dead(_) => {}
        }
    }

    fn waiting(&mut self, task: &Task) -> &mut BTreeSet<(Millis, TaskRef)> {
        if task.attempt == 0 { &mut self.delayed } else { &mut self.backing_off }
    }

    /// A task that is in no run.
    pub(crate) fn forget_delayed(&mut self, task: TaskRef) {
        self.delayed.retain(|(_, other)| *other != task);
        self.backing_off.retain(|(_, other)| *other != task);
    }

    pub(crate) fn set_phase(&mut self, place: Place, task: &mut Task, phase: Phase) {
        self.remove(place, task);
        task.phase = phase;
        self.insert(place, task);
    }

    /// `timeout_ms` is that of its flow.
    pub(crate) fn insert_run(&mut self, run: &Run, timeout_ms: Option<u64>) {
        self.watch(run, timeout_ms);
        self.due.extend(due_steps(run));
        each_task(run, |task, found| self.insert(Place { flow: run.flow, priority: run.priority, task }, found));
    }

    pub(crate) fn remove_run(&mut self, run: &Run) {
        self.unwatch(run);
        for due in due_steps(run) {
            self.due.remove(&due);
        }
        each_task(run, |task, found| self.remove(Place { flow: run.flow, priority: run.priority, task }, found));
    }

    /// An active run has a deadline, when its flow has one.
    pub(crate) fn watch(&mut self, run: &Run, timeout_ms: Option<u64>) {
        if let Some(timeout_ms) = timeout_ms.filter(|_| run.state == RunState::Active) {
            self.deadlines.insert(run, timeout_ms);
        }
    }

    pub(crate) fn unwatch(&mut self, run: &Run) {
        self.deadlines.remove(run);
    }
}

/// The steps of a run for which something is made beside the loop.
pub(crate) fn due_steps(run: &Run) -> impl Iterator<Item = (RunId, u16)> {
    let is_due = |step: &StepRun| match step {
        StepRun::Due(_) => true,
        StepRun::Fan(fan) => fan.is_full(),
        _ => false,
    };
    (0u16..).zip(run.steps.iter()).filter(move |(_, step)| is_due(step)).map(|(place, _)| (run.id, place))
}

/// Calls `see` with every task of a run that exists and has no step result yet.
pub(crate) fn each_task(run: &Run, mut see: impl FnMut(TaskRef, &Task)) {
    for (state, step) in run.steps.iter().zip(0u16..) {
        match state {
            StepRun::Single(task) => see(TaskRef { run: run.id, step, item: None }, task),
            StepRun::Fan(fan) => {
                for (task, item) in fan.tasks.iter().zip(0u32..) {
                    see(TaskRef { run: run.id, step, item: Some(item) }, task);
                }
            }
            StepRun::Waiting | StepRun::Due(_) | StepRun::Skipped | StepRun::Done(_) | StepRun::Faulted(_) => {}
        }
    }
}
