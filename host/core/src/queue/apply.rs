//! The only mutation of what the queue knows: a fold over events.
//!
//! `apply` is total (I2): it has no branch on time, randomness or configuration, and an event about something unknown is
//! an orphan, counted, never a panic. It takes facts as facts: what may happen is decided in [`super::decide`].

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};
use core::mem::take;

use crate::{
    api::RunState,
    code,
    id::{Attempt, RunId, TaskRef},
    json::Payload,
    queue::{
        event::{Dead, Enqueued, Event, Frame, ReleaseReason, RetryScheduled, Succeeded},
        indexes::{Place, due_steps},
        run::{
            AttemptRecord, Due, Fan, FinishedRun, Letter, Phase, Run, RunExtra, StepDone, StepRun, Success, Task,
            TaskEnd,
        },
        state::{KeyName, Registered, State, result_bytes},
    },
    record::codec::SEGMENTS_END,
    time::Millis,
    wire::Usage,
};

impl State {
    /// Replays one frame of segment `segment`.
    pub fn replay(&mut self, frame: &Frame, segment: u64) {
        self.segment = segment;
        for event in &frame.events {
            self.apply(event, frame.at);
        }
        // The start looks for files that were not archived.
        self.purged = None;
    }

    /// Takes one fact, decided at `at`.
    pub fn apply(&mut self, event: &Event, at: Millis) {
        self.last_at = self.last_at.max(at);
        if self.try_apply(event, at).is_none() {
            self.totals.orphans += 1;
        }
    }

    fn try_apply(&mut self, event: &Event, at: Millis) -> Option<()> {
        match event {
            Event::Created { secret, format } => {
                self.secret = *secret;
                self.format = *format;
            }
            Event::FlowRegistered { no, tenant, def } => {
                let tenant: Arc<str> = tenant.as_str().into();
                self.indexes.lanes.register(*no, &tenant, def);
                let newest = self.latest.entry((tenant.clone(), def.id.clone())).or_insert(*no);
                *newest = (*newest).max(*no);
                self.flows.insert(*no, Registered { tenant, def: Arc::new((**def).clone()), home: self.segment });
            }
            Event::Enqueued(enqueued) => self.enqueued(enqueued, at)?,
            Event::Deduplicated { .. } => self.totals.idempotency_hits += 1,
            Event::Leased { task, attempt, worker } => {
                self.totals.tasks_started += 1;
                let (place, found, indexes) = self.open_task(*task)?;
                indexes.set_phase(place, found, Phase::Leased { worker: *worker });
                found.attempt = found.attempt.max(*attempt);
                found.attempts.push(AttemptRecord {
                    attempt: *attempt,
                    started_at: at,
                    ended_at: None,
                    worker: *worker,
                    outcome: String::new(),
                    code: None,
                    usage: Usage::default(),
                });
            }
            Event::Succeeded(succeeded) => self.succeeded(succeeded, at)?,
            Event::RetryScheduled(retry) => self.retry_scheduled(retry, at)?,
            Event::Released { task, attempt, reason } => {
                let outcome = match reason {
                    ReleaseReason::Shutdown => "aborted:shutdown",
                    ReleaseReason::NotStarted => "not started",
                };
                self.progress.remove(task);
                self.totals.redelivered += 1;
                let (place, found, indexes) = self.open_task(*task)?;
                end_attempt(found, *attempt, at, outcome, None, Usage::default());
                indexes.set_phase(place, found, Phase::Ready { since: at });
            }
            Event::Lost { task, attempt, counted } => {
                self.progress.remove(task);
                self.totals.redelivered += 1;
                let (place, found, indexes) = self.open_task(*task)?;
                end_attempt(found, *attempt, at, "requeued:stale", Some(code::WORKER_LOST), Usage::default());
                indexes.remove(place, found);
                found.suspect = true;
                found.failures = found.failures.saturating_add(u32::from(*counted));
                found.limited_since = None;
                found.lost_in_company = if *counted { 0 } else { found.lost_in_company.saturating_add(1) };
                found.phase = Phase::Ready { since: at };
                indexes.insert(place, found);
            }
            Event::Dead(dead) => self.dead(dead, at)?,
            Event::StepReady { run, step, input } => {
                let found = self.runs.get_mut(run)?;
                let phase = match found.extra.as_ref().and_then(|extra| extra.ready_at) {
                    Some(ready_at) if needless(&self.flows, found, *step) => Phase::Delayed { ready_at },
                    _ => Phase::Ready { since: at },
                };
                let (flow, priority) = (found.flow, found.priority);
                let task = TaskRef { run: *run, step: *step, item: None };
                let slot = found.steps.get_mut(usize::from(*step)).filter(|slot| is_unstarted(slot))?;
                let made = Task::new(input.as_ref().unwrap_or(&found.input).clone(), phase);
                self.indexes.insert(Place { flow, priority, task }, &made);
                *slot = StepRun::Single(Box::new(made));
                self.set_due((*run, *step), false);
            }
            Event::StepDue { run, step } => {
                let slot = self.runs.get_mut(run)?.steps.get_mut(usize::from(*step));
                *slot.filter(|slot| matches!(slot, StepRun::Waiting))? = StepRun::Due(Box::default());
                self.indexes.due.insert((*run, *step));
            }
            Event::FanInputs { run, step, from, inputs } => {
                let slot = self.runs.get_mut(run)?.steps.get_mut(usize::from(*step))?;
                let mut said = inputs_before(slot, *from)?;
                said.extend_from_slice(inputs);
                *slot = StepRun::Due(Box::new(Due { inputs: said }));
                self.indexes.due.insert((*run, *step));
            }
            Event::StepFanned { run, step, from, inputs } => {
                let found = self.runs.get_mut(run)?;
                let (flow, priority) = (found.flow, found.priority);
                let parallel = self.flows.get(&flow)?.def.steps.get(usize::from(*step))?.max_parallel.max(1);
                let slot = found.steps.get_mut(usize::from(*step))?;
                let said = inputs_before(slot, *from)?;
                let mut tasks = Vec::with_capacity(said.len() + inputs.len());
                for (input, item) in said.into_iter().chain(inputs.iter().cloned()).zip(0u32..) {
                    let phase = if item < parallel { Phase::Ready { since: at } } else { Phase::Held };
                    let task = TaskRef { run: *run, step: *step, item: Some(item) };
                    let made = Task::new(input, phase);
                    self.indexes.insert(Place { flow, priority, task }, &made);
                    tasks.push(made);
                }
                let next = parallel.min(u32::try_from(tasks.len()).unwrap_or(u32::MAX));
                let fan = Fan { tasks, next, succeeded: 0, dead: 0, output_bytes: 0 };
                self.set_due((*run, *step), fan.is_full());
                let slot = self.runs.get_mut(run)?.steps.get_mut(usize::from(*step))?;
                *slot = StepRun::Fan(Box::new(fan));
            }
            Event::FanDone { run, step, output } => {
                let found = self.runs.get_mut(run)?;
                let (flow, priority) = (found.flow, found.priority);
                let slot = found.steps.get_mut(usize::from(*step))?;
                let StepRun::Fan(fan) = slot else { return None };
                // An item whose own end was in a damaged record is over too.
                for (task, item) in fan.tasks.iter().zip(0u32..) {
                    let place = Place { flow, priority, task: TaskRef { run: *run, step: *step, item: Some(item) } };
                    self.indexes.remove(place, task);
                    if let Phase::Dead(letter) = &task.phase {
                        self.letters.remove(&letter.entry);
                    }
                }
                let (items, tasks) = (fan.tasks.len(), fan_ends(fan));
                let items = Some(u32::try_from(items).unwrap_or(u32::MAX));
                *slot = StepRun::Done(Box::new(StepDone { output: Some(output.clone()), items, tasks }));
                self.set_due((*run, *step), false);
                self.drop_outputs(*run, *step);
            }
            Event::StepSkipped { run, step } => {
                let slot = self.runs.get_mut(run)?.steps.get_mut(usize::from(*step))?;
                *slot = Some(StepRun::Skipped).filter(|_| is_unstarted(slot))?;
                self.set_due((*run, *step), false);
                self.drop_outputs(*run, *step);
            }
            Event::Stalled { run } => {
                let found = self.runs.get_mut(run)?;
                found.state = RunState::Stalled;
                self.indexes.unwatch(found);
                let name = key_name(&self.flows, found);
                self.free_key(name, *run);
            }
            Event::RunEnded { run, state, output, step, expires_at } => {
                let output = output.clone().or_else(|| self.runs.get(run)?.output_of((*step)?).cloned());
                self.run_ended(*run, *state, output, *expires_at, at)?;
            }
            Event::Filed { entry } => {
                let task = *self.letters.get(entry)?;
                self.runs.get_mut(&task.run)?.letter_mut(task)?.filed = true;
            }
            Event::Requeued { entry, task } => self.requeued(entry, *task, at)?,
            Event::Purged { entry, .. } => {
                self.letters.remove(entry)?;
                self.totals.dlq_purged += 1;
            }
            Event::KeyForgotten { tenant, flow, key } => {
                let name = (Arc::from(tenant.as_str()), flow.clone(), key.clone());
                let holder = self.keys.remove(&name)?;
                if let Some(extra) = self.runs.get_mut(&holder).and_then(|run| run.extra.as_mut()) {
                    extra.key = None;
                }
            }
            Event::KeyFreed { run, until } => {
                self.freed_keys.insert(*run, *until);
                self.forget_key_of(*run);
            }
            Event::ResultsDropped { segment } if *segment >= SEGMENTS_END => return None,
            Event::ResultsDropped { segment } => self.results.drop_segment(*segment),
            Event::ResultsKept(mark) if !mark.is_possible() => return None,
            Event::ResultsKept(mark) => {
                self.results = (**mark).clone();
                let ended: Vec<RunId> = self.finished.keys().copied().collect();
                for run in ended {
                    self.forget_finished(run);
                }
            }
            // The number of a flow whose record is damaged goes to another flow: its runs must not.
            Event::RunSnapshot(run) => {
                self.flows.get(&run.flow)?;
                self.run_snapshot(run);
            }
            Event::TotalsSnapshot(totals) if !totals.are_possible() => return None,
            Event::TotalsSnapshot(totals) => self.totals = (**totals).clone(),
        }
        Some(())
    }

    fn enqueued(&mut self, enqueued: &Enqueued, at: Millis) -> Option<()> {
        self.totals.runs_enqueued += 1;
        self.newest_run = self.newest_run.max(Some(enqueued.run));
        let flow = self.flows.get(&enqueued.flow)?;
        let extra = RunExtra {
            key: enqueued.key.clone(),
            input_digest: enqueued.input_digest,
            headers: enqueued.headers.clone(),
            trace: enqueued.trace.clone(),
            env: enqueued.env.clone(),
            ready_at: enqueued.ready_at,
            requeued_at: None,
        };
        let run = Run {
            id: enqueued.run,
            flow: enqueued.flow,
            state: RunState::Active,
            priority: enqueued.priority,
            enqueued_at: at,
            input: enqueued.input.clone(),
            extra: (extra != RunExtra::default()).then(|| Box::new(extra)),
            steps: flow.def.steps.iter().map(|_| StepRun::Waiting).collect(),
            home: self.segment,
        };
        if let Some(name) = key_name(&self.flows, &run) {
            self.keys.insert(name, run.id);
        }
        if let Some(before) = self.runs.remove(&run.id) {
            self.indexes.remove_run(&before);
        }
        self.indexes.watch(&run, timeout_ms(&self.flows, &run));
        self.runs.insert(run.id, Box::new(run));
        Some(())
    }

    fn succeeded(&mut self, succeeded: &Succeeded, at: Millis) -> Option<()> {
        let task = succeeded.task;
        self.totals.tasks_succeeded += 1;
        self.progress.remove(&task);
        let (place, found, indexes) = self.open_task(task)?;
        end_attempt(found, succeeded.attempt, at, "succeeded", None, succeeded.usage);
        let (output, artifacts) = (succeeded.output.clone(), succeeded.artifacts.clone());
        indexes.set_phase(place, found, Phase::Succeeded(Box::new(Success { output, artifacts })));
        found.attempt = found.attempt.max(succeeded.attempt);
        if task.item.is_some() {
            if let Some(StepRun::Fan(fan)) = self.runs.get_mut(&task.run)?.steps.get_mut(usize::from(task.step)) {
                fan.output_bytes = fan.output_bytes.saturating_add(succeeded.output.size_bytes());
            }
            return self.item_ended(task, true, at);
        }
        let slot = self.runs.get_mut(&task.run)?.steps.get_mut(usize::from(task.step))?;
        if let StepRun::Single(single) = slot {
            let tasks = TaskEnd::of(None, take(&mut single.attempts)).into_iter().collect();
            let output = Some(succeeded.output.clone());
            *slot = StepRun::Done(Box::new(StepDone { output, items: None, tasks }));
        }
        self.drop_outputs(task.run, task.step);
        Some(())
    }

    /// An item of a fan-out reached its end: counts it, and lets the next held item go.
    fn item_ended(&mut self, task: TaskRef, succeeded: bool, at: Millis) -> Option<()> {
        let run = self.runs.get_mut(&task.run)?;
        let (flow, priority) = (run.flow, run.priority);
        let Some(StepRun::Fan(fan)) = run.steps.get_mut(usize::from(task.step)) else { return None };
        let ended = if succeeded { &mut fan.succeeded } else { &mut fan.dead };
        *ended = ended.saturating_add(1);
        if fan.is_full() {
            self.indexes.due.insert((task.run, task.step));
        }
        while let Some(held) = fan.tasks.get_mut(fan.next as usize) {
            let item = Some(fan.next);
            fan.next += 1;
            if held.phase == Phase::Held {
                self.indexes.set_phase(
                    Place { flow, priority, task: TaskRef { item, ..task } },
                    held,
                    Phase::Ready { since: at },
                );
                break;
            }
        }
        Some(())
    }

    fn retry_scheduled(&mut self, retry: &RetryScheduled, at: Millis) -> Option<()> {
        self.totals.retries += 1;
        self.progress.remove(&retry.task);
        let (place, found, indexes) = self.open_task(retry.task)?;
        let outcome = if retry.counted { "retry" } else { "rate-limited" };
        end_attempt(found, retry.attempt, at, outcome, Some(&retry.code), retry.usage);
        found.failures = found.failures.saturating_add(u32::from(retry.counted));
        indexes.remove(place, found);
        found.limited_since = if retry.counted {
            None
        } else {
            let started_at = found.attempts.last().map_or(at, |last| last.started_at);
            found.limited_since.take().or_else(|| Some(Box::new(started_at)))
        };
        // It ended by itself: it did not bring its worker down.
        found.suspect = false;
        found.lost_in_company = 0;
        found.phase = Phase::Delayed { ready_at: retry.ready_at };
        indexes.insert(place, found);
        Some(())
    }

    fn dead(&mut self, dead: &Dead, at: Millis) -> Option<()> {
        self.totals.tasks_dead += 1;
        self.progress.remove(&dead.task);
        let mut letter = Letter {
            entry: dead.entry.clone(),
            at,
            attempt: dead.attempt,
            failures: 0,
            code: dead.code.clone(),
            message: dead.message.clone(),
            reason: dead.reason.clone(),
            last_code: dead.last_code.clone(),
            filed: false,
        };
        let task = dead.task;
        let slot = self.runs.get_mut(&task.run)?.steps.get_mut(usize::from(task.step))?;
        // A fan-out whose list of results cannot be made faults as a whole.
        if is_unstarted(slot) || (task.item.is_none() && matches!(slot, StepRun::Fan(_))) {
            *slot = StepRun::Faulted(Box::new(letter));
            self.set_due((task.run, task.step), false);
        } else {
            let (place, found, indexes) = self.open_task(task)?;
            // A start that was never made leaves no attempt behind; a refused lease ends here too.
            end_attempt(found, dead.attempt, at, "dead", Some(&dead.code), dead.usage);
            letter.attempt = letter.attempt.max(found.attempt);
            found.failures = found.failures.saturating_add(u32::from(dead.last_code.is_some()));
            letter.failures = found.failures;
            indexes.set_phase(place, found, Phase::Dead(Box::new(letter)));
            if task.item.is_some() {
                self.item_ended(task, false, at)?;
            }
        }
        self.letters.insert(dead.entry.clone(), task);
        Some(())
    }

    fn requeued(&mut self, entry: &str, task: TaskRef, at: Millis) -> Option<()> {
        self.letters.remove(entry)?;
        self.totals.dlq_requeued += 1;
        let run = self.runs.get_mut(&task.run)?;
        run.state = RunState::Active;
        let timeout_ms = timeout_ms(&self.flows, run);
        if timeout_ms.is_some() {
            run.extra.get_or_insert_default().requeued_at = Some(at);
        }
        self.indexes.watch(run, timeout_ms);
        if let Some(name) = key_name(&self.flows, run) {
            self.keys.insert(name, task.run);
        }
        let (flow, priority) = (run.flow, run.priority);
        let slot = run.steps.get_mut(usize::from(task.step))?;
        if matches!(slot, StepRun::Faulted(_)) {
            *slot = StepRun::Waiting;
            return Some(());
        }
        if let StepRun::Fan(fan) = slot {
            fan.dead = fan.dead.saturating_sub(1);
        }
        let found = run.task_mut(task)?;
        found.failures = 0;
        found.limited_since = None;
        found.suspect = false;
        found.lost_in_company = 0;
        self.indexes.set_phase(Place { flow, priority, task }, found, Phase::Ready { since: at });
        Some(())
    }

    fn run_ended(
        &mut self,
        id: RunId,
        state: RunState,
        output: Option<Payload>,
        expires_at: Millis,
        at: Millis,
    ) -> Option<()> {
        let mut run = self.runs.remove(&id)?;
        for step in due_steps(&run) {
            self.asked.remove(&step);
        }
        self.indexes.remove_run(&run);
        match state {
            RunState::Succeeded => self.totals.runs_succeeded += 1,
            RunState::Cancelled => self.totals.runs_cancelled += 1,
            _ => self.totals.runs_failed += 1,
        }
        let name = key_name(&self.flows, &run);
        let letter = run.letters().next().map(|(_, letter)| Box::new(letter.clone()));
        for (_, letter) in run.letters() {
            let is_purged = self.letters.remove(&letter.entry).is_some() && state != RunState::Succeeded;
            self.totals.dlq_purged += u64::from(is_purged);
        }
        if state != RunState::Succeeded {
            self.free_key(name, id);
        }
        let mut tasks = Vec::new();
        for (step, place) in run.steps.iter_mut().zip(0u16..) {
            match step {
                StepRun::Done(done) => tasks.extend(take(&mut done.tasks).into_iter().map(|end| (place, end))),
                StepRun::Single(task) => {
                    tasks.extend(TaskEnd::of(None, take(&mut task.attempts)).map(|end| (place, end)));
                }
                StepRun::Fan(fan) => tasks.extend(fan_ends(fan).into_iter().map(|end| (place, end))),
                StepRun::Waiting | StepRun::Due(_) | StepRun::Skipped | StepRun::Faulted(_) => {}
            }
        }
        let exec_us: u64 = tasks.iter().map(|(_, end)| end.last.usage.exec_us).sum();
        let has_letters = letter.is_some();
        let extra = run.extra.as_deref();
        self.keep_finished(FinishedRun {
            id,
            flow: run.flow,
            state,
            priority: run.priority,
            enqueued_at: run.enqueued_at,
            ended_at: at,
            expires_at,
            output,
            key: extra.filter(|_| state == RunState::Succeeded).and_then(|extra| extra.key.clone()),
            input_digest: extra.and_then(|extra| extra.input_digest),
            exec_ms: exec_us.div_ceil(1000),
            letter,
            tasks,
        });
        self.purged = (has_letters && state != RunState::Succeeded).then_some(run);
        Some(())
    }

    fn keep_finished(&mut self, finished: FinishedRun) {
        self.forget_finished(finished.id);
        if let (Some(key), Some(flow)) = (&finished.key, self.flows.get(&finished.flow)) {
            self.keys.insert((flow.tenant.clone(), flow.def.id.clone(), key.clone()), finished.id);
        }
        self.expiry.insert((finished.expires_at, finished.id));
        self.results_bytes += result_bytes(&finished);
        self.finished.insert(finished.id, finished);
    }

    fn run_snapshot(&mut self, run: &Run) {
        if let Some(before) = self.runs.remove(&run.id) {
            self.indexes.remove_run(&before);
            for (_, letter) in before.letters() {
                self.letters.remove(&letter.entry);
            }
        }
        self.forget_finished(run.id);
        self.newest_run = self.newest_run.max(Some(run.id));
        let mut run = run.clone();
        run.share_input();
        run.home = self.segment;
        self.indexes.insert_run(&run, timeout_ms(&self.flows, &run));
        for (task, letter) in run.letters() {
            self.letters.insert(letter.entry.clone(), task);
        }
        if run.state == RunState::Active
            && let Some(name) = key_name(&self.flows, &run)
        {
            self.keys.insert(name, run.id);
        }
        self.runs.insert(run.id, Box::new(run));
    }

    /// Forgets outputs that the end of `step` made unneeded, and the step's own when nothing waits for it.
    fn drop_outputs(&mut self, run: RunId, step: u16) {
        let Some(run) = self.runs.get_mut(&run) else { return };
        let Some(flow) = self.flows.get(&run.flow) else { return };
        let Some(def) = flow.def.steps.get(usize::from(step)) else { return };
        for &need in def.needs.iter().chain([&step]) {
            let mut dependants =
                flow.def.steps.iter().zip(run.steps.iter()).filter(|(other, _)| other.needs.contains(&need)).peekable();
            // What nothing needs is the run's result, kept to its end.
            let kept = dependants.peek().is_none()
                || dependants.any(|(_, state)| !matches!(state, StepRun::Done(_) | StepRun::Skipped));
            if !kept && let Some(StepRun::Done(done)) = run.steps.get_mut(usize::from(need)) {
                done.output = None;
            }
        }
    }

    fn forget_key_of(&mut self, run: RunId) {
        let Some(finished) = self.finished.get_mut(&run) else { return };
        let flow = self.flows.get(&finished.flow);
        let name = finished.key.take().zip(flow).map(|(key, flow)| (flow.tenant.clone(), flow.def.id.clone(), key));
        self.free_key(name, run);
    }

    /// Whether something is made for a step beside the loop.
    fn set_due(&mut self, step: (RunId, u16), is_due: bool) {
        if is_due {
            self.indexes.due.insert(step);
        } else {
            self.indexes.due.remove(&step);
            self.asked.remove(&step);
        }
    }

    fn free_key(&mut self, name: Option<KeyName>, run: RunId) {
        if let Some(name) = name
            && self.keys.get(&name) == Some(&run)
        {
            self.keys.remove(&name);
        }
    }

    /// A task that has no end yet, with its place and the indexes.
    fn open_task(&mut self, task: TaskRef) -> Option<(Place, &mut Task, &mut crate::queue::indexes::Indexes)> {
        let run = self.runs.get_mut(&task.run)?;
        let place = Place { flow: run.flow, priority: run.priority, task };
        if !run.is_open(task) {
            return None;
        }
        Some((place, run.task_mut(task)?, &mut self.indexes))
    }
}

/// Whether a step can still be given its tasks. A step whose frame was damaged may be given them late.
fn is_unstarted(slot: &StepRun) -> bool {
    matches!(slot, StepRun::Waiting | StepRun::Due(_))
}

/// Takes the inputs of a fan-out that were said before number `from`; those of a list that was begun again are dropped.
fn inputs_before(slot: &mut StepRun, from: u32) -> Option<Vec<Payload>> {
    match slot {
        _ if from == 0 => Some(Vec::new()).filter(|_| is_unstarted(slot)),
        StepRun::Due(due) if due.inputs.len() == from as usize => Some(take(&mut due.inputs)),
        _ => None,
    }
}

fn needless(flows: &alloc::collections::BTreeMap<crate::id::FlowNo, Registered>, run: &Run, step: u16) -> bool {
    flows
        .get(&run.flow)
        .and_then(|flow| flow.def.steps.get(usize::from(step)))
        .is_some_and(|step| step.needs.is_empty())
}

/// `run_timeout_ms` of the flow that a run pins.
pub(crate) fn timeout_ms(
    flows: &alloc::collections::BTreeMap<crate::id::FlowNo, Registered>,
    run: &Run,
) -> Option<u64> {
    flows.get(&run.flow)?.def.run_timeout_ms
}

pub(crate) fn key_name(
    flows: &alloc::collections::BTreeMap<crate::id::FlowNo, Registered>,
    run: &Run,
) -> Option<KeyName> {
    let flow = flows.get(&run.flow)?;
    Some((flow.tenant.clone(), flow.def.id.clone(), run.key()?.into()))
}

/// Takes the ends out of a fan-out that is over.
fn fan_ends(fan: &mut Fan) -> Vec<TaskEnd> {
    let tasks = fan.tasks.iter_mut().zip(0u32..);
    tasks.filter_map(|(task, item)| TaskEnd::of(Some(item), take(&mut task.attempts))).collect()
}

fn end_attempt(task: &mut Task, attempt: Attempt, at: Millis, outcome: &str, code: Option<&str>, usage: Usage) {
    if let Some(record) = task.attempts.iter_mut().rev().find(|record| record.attempt == attempt) {
        record.ended_at = Some(at);
        record.outcome = outcome.into();
        record.code = code.map(Into::into);
        record.usage = usage;
    }
}
