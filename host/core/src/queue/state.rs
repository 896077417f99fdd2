//! All that the queue knows, in memory. Only [`super::apply`] changes what events say.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    string::{String, ToString},
    sync::Arc,
};

use crate::{
    api::Totals,
    flow::spec::{FlowDef, StepDef},
    id::{Digest, FlowNo, RunId, TaskRef},
    json::Payload,
    queue::{
        indexes::{Indexes, Place},
        run::{FinishedRun, Phase, Run, StepRun, Task},
    },
    time::Millis,
};

/// A flow as registered, pinned by its runs.
#[derive(Clone, Debug)]
pub struct Registered {
    pub tenant: Arc<str>,
    pub def: Arc<FlowDef>,
    pub home: u64,
}

/// The scope of an idempotency key.
pub type KeyName = (Arc<str>, String, String);

#[derive(Clone, Debug, Default)]
pub struct State {
    pub secret: [u8; 16],
    /// 0 until [`super::event::Event::Created`] was seen.
    pub format: u32,
    pub flows: BTreeMap<FlowNo, Registered>,
    /// The newest registration of each (tenant, flow id).
    pub latest: BTreeMap<(Arc<str>, String), FlowNo>,
    /// Unfinished runs.
    /// Boxed: the leaves of a tree that grows at its end stay half empty.
    pub runs: BTreeMap<RunId, Box<Run>>,
    pub finished: BTreeMap<RunId, FinishedRun>,
    /// (tenant, flow id, key): the run that holds it.
    pub keys: BTreeMap<KeyName, RunId>,
    /// Pending dead letters by entry id.
    pub letters: BTreeMap<String, TaskRef>,
    pub totals: Totals,

    // Derived from the above, kept by the same events.
    pub indexes: Indexes,
    /// Finished runs by the time at which they may be forgotten.
    pub expiry: BTreeSet<(Millis, RunId)>,
    pub results_bytes: u64,
    /// Finished runs whose results were evicted early and whose keys still hold, by the time they may be forgotten.
    pub evicted: BTreeSet<(Millis, RunId)>,

    // In memory only.
    /// The segment that takes the events being applied.
    pub segment: u64,
    pub progress: BTreeMap<TaskRef, u8>,
    pub refused_reports: u64,
    /// The time of the newest frame: no later one may be smaller.
    pub last_at: Millis,
}

impl State {
    #[must_use]
    pub fn flow_of(&self, run: &Run) -> Option<&Registered> {
        self.flows.get(&run.flow)
    }

    /// The definition of a task's step.
    #[must_use]
    pub fn step_of(&self, task: TaskRef) -> Option<(&Registered, &StepDef)> {
        let flow = self.flow_of(self.runs.get(&task.run)?)?;
        Some((flow, flow.def.steps.get(usize::from(task.step))?))
    }

    /// `RUN.step[item]`.
    #[must_use]
    pub fn task_name(&self, task: TaskRef) -> String {
        let flow = self
            .runs
            .get(&task.run)
            .map(|run| run.flow)
            .or_else(|| self.finished.get(&task.run).map(|run| run.flow))
            .and_then(|no| self.flows.get(&no));
        match flow.and_then(|flow| flow.def.steps.get(usize::from(task.step))) {
            Some(step) => task.name(&step.id),
            None => task.name(&task.step.to_string()),
        }
    }

    #[must_use]
    pub fn latest_flow(&self, tenant: &str, flow: &str) -> Option<FlowNo> {
        self.latest.get(&(Arc::from(tenant), String::from(flow))).copied()
    }

    /// Ready, delayed and leased tasks.
    #[must_use]
    pub fn depth(&self) -> u64 {
        self.indexes.lanes.len() + self.indexes.delayed.len() as u64 + self.indexes.leased
    }

    /// Moves what is due from delayed to ready. Not an event: the time of readiness stands in the task already.
    pub fn promote(&mut self, now: Millis) {
        while let Some(&(ready_at, task)) = self.indexes.delayed.first() {
            if ready_at > now {
                break;
            }
            let Some(run) = self.runs.get_mut(&task.run) else {
                self.indexes.delayed.pop_first();
                continue;
            };
            let (flow, priority) = (run.flow, run.priority);
            if let Some(found) = run.task_mut(task) {
                self.indexes.set_phase(Place { flow, priority, task }, found, Phase::Ready { since: ready_at });
            } else {
                self.indexes.delayed.pop_first();
            }
        }
    }

    /// Forgets finished runs past their time, at most `most`. Not an event: the time stands in the record.
    pub fn expire(&mut self, now: Millis, most: usize) -> alloc::vec::Vec<FinishedRun> {
        let mut gone = alloc::vec::Vec::new();
        while gone.len() < most
            && let Some(&(expires_at, run)) = self.expiry.first().into_iter().chain(self.evicted.first()).min()
            && expires_at <= now
        {
            self.expiry.remove(&(expires_at, run));
            self.evicted.remove(&(expires_at, run));
            gone.extend(self.forget_finished(run));
        }
        gone
    }

    /// Forgets the oldest result; its key, if it has one, goes on answering. False when there is none.
    pub(crate) fn evict_oldest_result(&mut self) -> bool {
        let Some(&(expires_at, run)) = self.expiry.first() else { return false };
        match self.finished.get_mut(&run) {
            Some(finished) if finished.key.is_some() => {
                self.results_bytes -= result_bytes(finished);
                finished.output = None;
                finished.tasks = alloc::vec::Vec::new();
                self.results_bytes += result_bytes(finished);
                self.expiry.remove(&(expires_at, run));
                self.evicted.insert((expires_at, run));
            }
            _ => {
                self.forget_finished(run);
            }
        }
        true
    }

    pub(crate) fn forget_finished(&mut self, run: RunId) -> Option<FinishedRun> {
        let finished = self.finished.remove(&run)?;
        self.expiry.remove(&(finished.expires_at, run));
        self.evicted.remove(&(finished.expires_at, run));
        self.results_bytes -= result_bytes(&finished);
        if let (Some(key), Some(flow)) = (&finished.key, self.flows.get(&finished.flow)) {
            let name = (flow.tenant.clone(), flow.def.id.clone(), key.clone());
            if self.keys.get(&name) == Some(&run) {
                self.keys.remove(&name);
            }
        }
        Some(finished)
    }

    /// The next point in time at which something is due without an input.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        let delayed = self.indexes.delayed.first().map(|&(at, _)| at);
        let expiry = self.expiry.first().map(|&(at, _)| at);
        let over = self.indexes.deadlines.first().map(|(at, _)| at);
        [delayed, expiry, over].into_iter().flatten().min()
    }

    /// Every blob that something live names (I10): payloads, and the components of all flows.
    #[must_use]
    pub fn live_blobs(&self) -> BTreeSet<Digest> {
        let mut live = self.blobs();
        live.extend(self.flows.values().flat_map(|flow| flow.def.steps.iter().map(|step| step.component)));
        live
    }

    fn blobs(&self) -> BTreeSet<Digest> {
        let mut blobs = BTreeSet::new();
        let mut see = |payload: &Payload| blobs.extend(payload.blob());
        for run in self.runs.values() {
            see(&run.input);
            for step in &run.steps {
                match step {
                    StepRun::Single(task) => see_task(task, &mut see),
                    StepRun::Fan(fan) => fan.tasks.iter().for_each(|task| see_task(task, &mut see)),
                    StepRun::Done(done) => done.output.iter().for_each(&mut see),
                    StepRun::Waiting | StepRun::Skipped | StepRun::Faulted(_) => {}
                }
            }
        }
        self.finished.values().filter_map(|run| run.output.as_ref()).for_each(&mut see);
        blobs
    }
}

fn see_task(task: &Task, see: &mut impl FnMut(&Payload)) {
    see(&task.input);
    if let Phase::Succeeded(success) = &task.phase {
        see(&success.output);
    }
}

/// What a finished run costs, with the history of its attempts: what `results_max_mb` bounds.
pub(crate) fn result_bytes(run: &FinishedRun) -> u64 {
    let attempts: u64 = run.tasks.iter().map(|(_, end)| 1 + end.earlier.len() as u64).sum();
    256 + run.output.as_ref().map_or(0, Payload::size_bytes) + ATTEMPT_BYTES * attempts
}

/// Of one [`AttemptRecord`](crate::queue::run::AttemptRecord) in memory, with its texts.
const ATTEMPT_BYTES: u64 = 192;
