//! An independent account of what the log says: who holds a task, who may end it, which run has which key.
//!
//! It reads frames, never the state, and refuses what no promise allows: a second result, two live leases, an attempt
//! that does not rise, a key with two runs, a run that ends twice.

use std::collections::{BTreeMap, BTreeSet};

use tm_core::{
    api::RunState,
    id::{Attempt, Digest, FlowNo, RunId, TaskRef, WorkerId},
    queue::event::{Event, Frame, ReleaseReason},
    record::codec,
    time::Millis,
};

use crate::coverage::Coverage;

/// Stands in every report that must never be believed.
pub(crate) const MARK: &str = "forged";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Waiting,
    Held,
    Ready,
    Delayed,
    Leased(WorkerId),
    Succeeded,
    Dead,
    Skipped,
}

impl At {
    const fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Held | Self::Ready | Self::Delayed | Self::Leased(_))
    }
}

#[derive(Debug)]
struct Task {
    at: At,
    attempt: Attempt,
    entry: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) flow: FlowNo,
    pub(crate) key: Option<String>,
    pub(crate) state: RunState,
    pub(crate) expires_at: Option<Millis>,
    delayed: bool,
    /// The newest record that alone says that the run exists, and the one that says so of its flow.
    carriers: (u64, u64),
}

struct Flow {
    tenant: String,
    id: String,
    /// By step: how many needs it has, and its component.
    steps: Vec<(usize, Digest)>,
    /// The newest record that registers it.
    carrier: u64,
}

#[derive(Default)]
pub(crate) struct Ledger {
    flows: BTreeMap<FlowNo, Flow>,
    pub(crate) runs: BTreeMap<RunId, Run>,
    tasks: BTreeMap<TaskRef, Task>,
    keys: BTreeMap<(String, String, String), RunId>,
    pub(crate) letters: BTreeSet<String>,
    pub(crate) next_sequence: u64,
    frames: Vec<(u64, Frame)>,
    /// Of the frame that is being taken.
    sequence: u64,
    last_at: Millis,
    /// Fan-outs of which some inputs are said: the first of the newest slice.
    said: BTreeMap<(RunId, u16), u32>,
    pub(crate) deduplicated: u64,
    pub(crate) requeued: u64,
    /// Entries that were given up, by name or with their run.
    pub(crate) purged: u64,
    /// What of the queue's time did not pass, because a running supervisor's wall was set forward. None: the clock is one
    /// that goes back within a process, so that nothing is known of what passed.
    pub(crate) leapt_ms: Option<u64>,
    /// Backoffs: how long each is, and what had passed of time when it began.
    backoffs: BTreeMap<TaskRef, (u64, u64)>,
}

impl Ledger {
    /// The queue's time leapt without passing.
    pub(crate) fn leapt(&mut self, leapt_ms: u64) {
        self.leapt_ms = self.leapt_ms.map(|before| before + leapt_ms);
    }

    /// A new process finds the wall as it is: what was left of backoffs by the old one's clock is not known to it.
    pub(crate) fn clock_starts(&mut self) {
        self.backoffs.clear();
    }

    /// Takes the bytes of commits: frames that are not yet known to be durable.
    pub(crate) fn written(&mut self, bytes: &[u8]) {
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let frame = codec::decode(line).unwrap_or_else(|why| panic!("the log wrote what it cannot read: {why}"));
            self.frames.push(frame);
        }
    }

    /// What follows the newest frame that was written.
    pub(crate) fn written_to(&self) -> u64 {
        self.frames.last().map_or(self.next_sequence, |(sequence, _)| sequence + 1)
    }

    /// The frames below `next_sequence` are durable, the others never were.
    pub(crate) fn settle(&mut self, next_sequence: u64, coverage: &mut Coverage) {
        for (sequence, frame) in std::mem::take(&mut self.frames) {
            if sequence < next_sequence && sequence >= self.next_sequence {
                assert_eq!(sequence, self.next_sequence.max(1), "the sequence has a gap");
                (self.sequence, self.next_sequence) = (sequence, sequence + 1);
                coverage.frames += 1;
                self.frame(&frame, coverage);
            }
        }
        assert!(
            self.next_sequence.max(1) == next_sequence,
            "{} frames were written, {next_sequence} recovered",
            self.next_sequence
        );
    }

    fn frame(&mut self, frame: &Frame, coverage: &mut Coverage) {
        assert!(frame.at >= self.last_at, "a frame's time went back");
        self.last_at = frame.at;
        for event in &frame.events {
            self.event(event, frame.at, coverage);
        }
    }

    fn name(&self, run: &Run) -> Option<(String, String, String)> {
        let flow = &self.flows[&run.flow];
        Some((flow.tenant.clone(), flow.id.clone(), run.key.clone()?))
    }

    fn free_key(&mut self, id: RunId) {
        if let Some(name) = self.name(&self.runs[&id])
            && self.keys.get(&name) == Some(&id)
        {
            self.keys.remove(&name);
        }
    }

    /// The run that holds a key at `now`.
    pub(crate) fn holder(&self, tenant: &str, flow: &str, key: &str, now: Millis) -> Option<RunId> {
        let run = *self.keys.get(&(tenant.into(), flow.into(), key.into()))?;
        self.runs[&run].expires_at.is_none_or(|at| at > now).then_some(run)
    }

    pub(crate) fn tenant_of(&self, run: RunId) -> Option<(&str, &str)> {
        let flow = &self.flows[&self.runs.get(&run)?.flow];
        Some((&flow.tenant, &flow.id))
    }

    /// The component that a task's run was enqueued with.
    pub(crate) fn pinned(&self, task: TaskRef) -> Option<Digest> {
        let flow = &self.flows[&self.runs.get(&task.run)?.flow];
        flow.steps.get(usize::from(task.step)).map(|(_, component)| *component)
    }

    /// Whether a run is gone when one record is.
    pub(crate) fn hangs_on(&self, run: RunId, sequence: u64) -> bool {
        self.runs.get(&run).is_some_and(|run| run.carriers.0 == sequence || run.carriers.1 == sequence)
    }

    /// What follows the newest of these frames, which may end in the middle of one.
    pub(crate) fn sequence_after(&self, written: &[u8]) -> u64 {
        let lines = written.split(|&byte| byte == b'\n').rev().filter(|line| !line.is_empty());
        let newest = lines.take(2).find_map(|line| codec::decode(line).ok());
        newest.map_or(0, |(sequence, _)| sequence + 1).max(self.next_sequence)
    }

    /// The lease of a task: worker and attempt.
    pub(crate) fn lease(&self, task: TaskRef) -> Option<(WorkerId, Attempt)> {
        let found = self.tasks.get(&task)?;
        match found.at {
            At::Leased(worker) => Some((worker, found.attempt)),
            _ => None,
        }
    }

    pub(crate) fn leased(&self) -> Vec<(TaskRef, WorkerId, Attempt)> {
        self.tasks
            .keys()
            .filter_map(|&task| self.lease(task).map(|(worker, attempt)| (task, worker, attempt)))
            .collect()
    }

    fn task(&mut self, task: TaskRef) -> &mut Task {
        self.tasks.get_mut(&task).unwrap_or_else(|| panic!("an event names task {task:?}, which does not exist"))
    }

    fn end(&mut self, task: TaskRef, attempt: Attempt, to: At, how: &'static str, coverage: &mut Coverage) {
        let found = self.task(task);
        assert!(matches!(found.at, At::Leased(_)), "task {task:?} ends ({how}) without a lease: {:?} (I3)", found.at);
        assert_eq!(found.attempt, attempt, "another attempt of {task:?} ends ({how}) than the one that runs (I3)");
        found.at = to;
        coverage.see("task", how);
    }

    fn release_held(&mut self, task: TaskRef, coverage: &mut Coverage) {
        if task.item.is_none() {
            return;
        }
        let after = TaskRef { item: Some(0), ..task }..=TaskRef { item: Some(u32::MAX), ..task };
        if let Some((_, held)) = self.tasks.range_mut(after).find(|(_, other)| other.at == At::Held) {
            held.at = At::Ready;
            coverage.see("task", "held -> ready");
        }
    }

    fn event(&mut self, event: &Event, at: Millis, coverage: &mut Coverage) {
        match event {
            Event::FlowRegistered { no, tenant, def } => {
                let steps = def.steps.iter().map(|step| (step.needs.len(), step.component)).collect();
                let flow = Flow { tenant: tenant.clone(), id: def.id.clone(), steps, carrier: self.sequence };
                self.flows.insert(*no, flow);
            }
            Event::Enqueued(enqueued) => {
                let run = Run {
                    flow: enqueued.flow,
                    key: enqueued.key.clone(),
                    state: RunState::Active,
                    expires_at: None,
                    delayed: enqueued.ready_at.is_some(),
                    carriers: (self.sequence, self.flows[&enqueued.flow].carrier),
                };
                if let Some(name) = self.name(&run) {
                    let holder = self.holder(&name.0, &name.1, &name.2, at);
                    assert_eq!(holder, None, "key {name:?} is given to a second run (I6)");
                    self.keys.insert(name, enqueued.run);
                }
                for step in 0..self.flows[&enqueued.flow].steps.len() {
                    let task = TaskRef { run: enqueued.run, step: u16::try_from(step).unwrap_or(0), item: None };
                    self.tasks.insert(task, Task { at: At::Waiting, attempt: 0, entry: None });
                }
                assert!(self.runs.insert(enqueued.run, run).is_none(), "run {} is enqueued twice", enqueued.run);
            }
            Event::Deduplicated { .. } => self.deduplicated += 1,
            Event::StepReady { run, step, .. } => {
                let delayed =
                    self.runs[run].delayed && self.flows[&self.runs[run].flow].steps[usize::from(*step)].0 == 0;
                let found = self.task(TaskRef { run: *run, step: *step, item: None });
                assert_eq!(found.at, At::Waiting);
                found.at = if delayed { At::Delayed } else { At::Ready };
                coverage.see("task", if delayed { "waiting -> delayed" } else { "waiting -> ready" });
            }
            Event::StepDue { run, step } => {
                assert_eq!(self.task(TaskRef { run: *run, step: *step, item: None }).at, At::Waiting);
                coverage.see("made beside the loop", "is due");
            }
            Event::FanInputs { run, step, from, .. } => {
                assert_eq!(self.task(TaskRef { run: *run, step: *step, item: None }).at, At::Waiting);
                let said = self.said.insert((*run, *step), *from);
                assert!(*from == 0 || said.is_some_and(|said| said < *from), "inputs have a gap");
                let again = *from == 0 && said.is_some();
                coverage.see("made beside the loop", if again { "is begun again" } else { "comes in slices" });
            }
            Event::StepFanned { run, step, from, inputs } => {
                let said = self.said.remove(&(*run, *step));
                assert!(*from == 0 || said.is_some_and(|said| said < *from), "inputs have a gap");
                let whole = TaskRef { run: *run, step: *step, item: None };
                assert_eq!(self.tasks.remove(&whole).map(|task| task.at), Some(At::Waiting));
                for item in 0..*from + u32::try_from(inputs.len()).unwrap_or(0) {
                    let (at, how) =
                        if item < 2 { (At::Ready, "waiting -> ready") } else { (At::Held, "waiting -> held") };
                    self.tasks.insert(TaskRef { item: Some(item), ..whole }, Task { at, attempt: 0, entry: None });
                    coverage.see("task", how);
                }
            }
            Event::FanDone { run, step, .. } => {
                let items = TaskRef { run: *run, step: *step, item: Some(0) }..=TaskRef {
                    run: *run,
                    step: *step,
                    item: Some(u32::MAX),
                };
                assert!(
                    self.tasks.range(items).all(|(_, task)| task.at == At::Succeeded),
                    "a fan-out is done too early"
                );
            }
            Event::StepSkipped { run, step } => {
                let found = self.task(TaskRef { run: *run, step: *step, item: None });
                assert_eq!(found.at, At::Waiting);
                found.at = At::Skipped;
                coverage.see("task", "waiting -> skipped");
            }
            Event::Leased { task, attempt, worker } => {
                let found = self.task(*task);
                assert!(*attempt > found.attempt, "attempts of {task:?} do not rise (I3)");
                match found.at {
                    At::Ready => coverage.see("task", "ready -> leased"),
                    At::Delayed => coverage.see("task", "delayed -> leased"),
                    other => panic!("task {task:?} is leased while {other:?} (I3)"),
                }
                (found.at, found.attempt) = (At::Leased(*worker), *attempt);
                if let Some((span_ms, since)) = self.backoffs.remove(task)
                    && let Some(leapt_ms) = self.leapt_ms
                {
                    let passed_ms = at.0 - leapt_ms - since;
                    assert!(passed_ms >= span_ms, "{task:?} starts after {passed_ms} ms of a backoff of {span_ms} ms");
                }
            }
            Event::Succeeded(succeeded) => {
                assert!(
                    !format!("{:?}", succeeded.output).contains(MARK),
                    "a result is believed that nobody may give (I3)"
                );
                self.end(succeeded.task, succeeded.attempt, At::Succeeded, "leased -> succeeded", coverage);
                self.release_held(succeeded.task, coverage);
            }
            Event::RetryScheduled(retry) => {
                assert_ne!(retry.message, MARK, "a failure is believed that nobody may report (I3)");
                self.end(retry.task, retry.attempt, At::Delayed, "leased -> delayed", coverage);
                if let Some(leapt_ms) = self.leapt_ms {
                    self.backoffs.insert(retry.task, (retry.ready_at.since(at), at.0 - leapt_ms));
                }
            }
            Event::Released { task, attempt, reason } => {
                assert_eq!(*reason, ReleaseReason::NotStarted);
                self.end(*task, *attempt, At::Ready, "leased -> ready (released)", coverage);
            }
            Event::Lost { task, attempt, .. } => {
                self.end(*task, *attempt, At::Ready, "leased -> ready (lost)", coverage);
            }
            Event::Dead(dead) => {
                assert!(!dead.message.contains(MARK), "a failure is believed that nobody may report (I3)");
                if dead.attempt > 0 {
                    self.end(dead.task, dead.attempt, At::Dead, "leased -> dead", coverage);
                } else {
                    let found = self.task(dead.task);
                    match found.at {
                        At::Waiting => coverage.see("task", "waiting -> dead"),
                        At::Ready | At::Delayed => coverage.see("task", "ready -> dead"),
                        other => panic!("task {:?} dies without an attempt while {other:?}", dead.task),
                    }
                    found.at = At::Dead;
                }
                self.task(dead.task).entry = Some(dead.entry.clone());
                self.backoffs.remove(&dead.task);
                assert!(self.letters.insert(dead.entry.clone()), "entry {} exists twice", dead.entry);
                self.release_held(dead.task, coverage);
            }
            Event::Stalled { run } => {
                coverage.see("run", "active -> stalled");
                self.free_key(*run);
                self.run(*run).state = RunState::Stalled;
            }
            Event::RunEnded { run, state, expires_at, .. } => {
                if *state != RunState::Succeeded {
                    self.free_key(*run);
                }
                let found = self.run(*run);
                assert!(found.expires_at.is_none(), "run {run} ends twice");
                (found.state, found.expires_at) = (*state, Some(*expires_at));
                match state {
                    RunState::Succeeded => coverage.see("run", "succeeded"),
                    RunState::Failed => coverage.see("run", "failed"),
                    _ => coverage.see("run", "cancelled"),
                }
                self.forget_tasks(*run, *state, coverage);
            }
            Event::Requeued { entry, task } => {
                coverage.see("operator", "requeue");
                self.requeued += 1;
                assert!(self.letters.remove(entry), "entry {entry} is requeued and was not pending");
                let found = self.task(*task);
                assert_eq!(found.at, At::Dead);
                found.entry = None;
                // A step that never became a task waits again.
                let (to, how) = if found.attempt == 0 && self.was_faulted(*task) {
                    (At::Waiting, "dead -> waiting")
                } else {
                    (At::Ready, "dead -> ready")
                };
                self.task(*task).at = to;
                coverage.see("task", how);
                if self.run(task.run).state == RunState::Stalled {
                    coverage.see("run", "stalled -> active");
                }
                self.run(task.run).state = RunState::Active;
                if let Some(name) = self.name(&self.runs[&task.run]) {
                    let holder = self.holder(&name.0, &name.1, &name.2, at);
                    assert!(holder.is_none_or(|run| run == task.run), "a requeue takes a key away (I6)");
                    self.keys.insert(name, task.run);
                }
            }
            Event::Purged { entry, .. } => {
                coverage.see("operator", "purge");
                self.purged += 1;
                assert!(self.letters.remove(entry), "entry {entry} is purged and was not pending");
            }
            Event::KeyForgotten { tenant, flow, key } => {
                coverage.see("operator", "forget key");
                let run = self.keys.remove(&(tenant.clone(), flow.clone(), key.clone()));
                if let Some(run) = run {
                    self.run(run).key = None;
                }
            }
            Event::RunSnapshot(run) => self.copied(run.id, "a run copied", coverage),
            Event::KeyFreed { run, .. } => {
                // Compaction says it again.
                if let Some(name) = self.runs.get(run).and_then(|run| self.name(run)) {
                    coverage.see("operator", "forget key of a kept result");
                    if self.keys.get(&name) == Some(run) {
                        self.keys.remove(&name);
                    }
                    self.run(*run).key = None;
                }
            }
            Event::ResultsKept(_) => coverage.see("compaction", "results kept"),
            Event::ResultsDropped { .. } => coverage.see("compaction", "results forgotten"),
            Event::Filed { .. } | Event::Created { .. } | Event::TotalsSnapshot(_) => {}
        }
    }

    fn copied(&mut self, run: RunId, what: &'static str, coverage: &mut Coverage) {
        let flow = self.flows[&self.runs[&run].flow].carrier;
        self.run(run).carriers = (self.sequence, flow);
        coverage.see("compaction", what);
    }

    fn was_faulted(&self, task: TaskRef) -> bool {
        let id = &self.flows[&self.runs[&task.run].flow].id;
        matches!(id.as_str(), "faulty" | "late-fault") && task.item.is_none()
    }

    fn run(&mut self, run: RunId) -> &mut Run {
        self.runs.get_mut(&run).unwrap_or_else(|| panic!("an event names run {run}, which does not exist"))
    }

    fn forget_tasks(&mut self, run: RunId, state: RunState, coverage: &mut Coverage) {
        let range = TaskRef { run, step: 0, item: None }..=TaskRef { run, step: u16::MAX, item: Some(u32::MAX) };
        let gone: Vec<TaskRef> = self.tasks.range(range).map(|(task, _)| *task).collect();
        for task in gone {
            let Some(found) = self.tasks.remove(&task) else { continue };
            if found.entry.is_some_and(|entry| self.letters.remove(&entry)) {
                self.purged += 1;
            }
            if state == RunState::Succeeded {
                assert!(
                    !found.at.is_open() && found.at != At::Dead,
                    "run {run} succeeds while {task:?} is {:?}",
                    found.at
                );
                continue;
            }
            let how = match found.at {
                At::Waiting => "waiting -> cancelled",
                At::Held => "held -> cancelled",
                At::Ready => "ready -> cancelled",
                At::Delayed => "delayed -> cancelled",
                At::Leased(_) => "leased -> cancelled",
                At::Dead => "dead -> cancelled",
                At::Succeeded | At::Skipped => continue,
            };
            coverage.see("task", how);
        }
    }
}
