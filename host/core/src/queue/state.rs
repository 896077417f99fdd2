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
        results::ResultsMark,
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
    /// Runs that ended and are not in a results segment yet ([`super::results`]).
    pub finished: BTreeMap<RunId, FinishedRun>,
    /// The results segments that hold all that ended before the newest [`super::event::Event::ResultsKept`].
    pub results: ResultsMark,
    /// Ended runs whose keys were given free before their results expire, with that time.
    pub freed_keys: BTreeMap<RunId, Millis>,
    /// (tenant, flow id, key): the run that holds it, of those that are in memory.
    pub keys: BTreeMap<KeyName, RunId>,
    /// Pending dead letters by entry id.
    pub letters: BTreeMap<String, TaskRef>,
    pub totals: Totals,

    // Derived from the above, kept by the same events.
    pub indexes: Indexes,
    /// Finished runs by the time at which they may be forgotten.
    pub expiry: BTreeSet<(Millis, RunId)>,
    /// Of the finished runs in memory.
    pub results_bytes: u64,

    // In memory only.
    /// The largest id that was given out, as far as memory tells: a later one of the same millisecond is larger.
    pub newest_run: Option<RunId>,
    /// The segment that takes the events being applied.
    pub segment: u64,
    pub progress: BTreeMap<TaskRef, u8>,
    /// Steps for which the shell makes something; what is missing of [`Indexes::due`] is asked for at the start.
    pub asked: BTreeSet<(RunId, u16)>,
    /// The run that the newest event ended with dead letters: the files of these are to be archived. Replay drops it.
    pub purged: Option<Box<Run>>,
    pub refused_reports: u64,
    /// The time of the newest frame: no later one may be smaller.
    pub last_at: Millis,
    /// How far the queue's time, which never goes back, is ahead of the wall's, which was set back.
    pub ahead_ms: u64,
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
        self.indexes.lanes.len() + self.delayed() + self.indexes.leased
    }

    /// Tasks that run, or wait for nothing but a worker.
    #[must_use]
    pub const fn in_flight(&self) -> u64 {
        self.indexes.lanes.len() + self.indexes.leased
    }

    /// Delayed tasks, also those that are due.
    #[must_use]
    pub fn delayed(&self) -> u64 {
        (self.indexes.delayed.len() + self.indexes.backing_off.len()) as u64
    }

    /// The wall's time at a time of the queue.
    #[must_use]
    pub const fn wall(&self, now: Millis) -> Millis {
        Millis(now.0.saturating_sub(self.ahead_ms))
    }

    /// The wall was set. The queue's time leapt forward by `leapt_ms` that did not pass, and is `ahead_ms` ahead of the wall
    /// now: who is in backoff waits for as long as was left, and a run has what was left of its time. Not an event: a later
    /// start finds the clock as it is then.
    pub fn clock_moved(&mut self, leapt_ms: u64, ahead_ms: u64) {
        self.ahead_ms = ahead_ms;
        if leapt_ms > 0 {
            self.indexes.deadlines.leap(leapt_ms);
        }
        let before = if leapt_ms > 0 { core::mem::take(&mut self.indexes.backing_off) } else { BTreeSet::new() };
        for (ready_at, task) in before {
            let ready_at = ready_at.plus(leapt_ms);
            if let Some(found) = self.runs.get_mut(&task.run).and_then(|run| run.task_mut(task)) {
                found.phase = Phase::Delayed { ready_at };
                self.indexes.backing_off.insert((ready_at, task));
            }
        }
    }

    /// The delayed task that is ready next, with the queue's time of that.
    pub(crate) fn next_delayed(&self) -> Option<(Millis, TaskRef)> {
        let by_wall = self.indexes.delayed.first().map(|&(at, task)| (at.plus(self.ahead_ms), task));
        by_wall.into_iter().chain(self.indexes.backing_off.first().copied()).min()
    }

    /// Moves what is due from delayed to ready. Not an event: the time of readiness stands in the task already.
    pub fn promote(&mut self, now: Millis) {
        while let Some((since, task)) = self.next_delayed().filter(|(at, _)| *at <= now) {
            let found = self.runs.get_mut(&task.run).and_then(|run| {
                let place = Place { flow: run.flow, priority: run.priority, task };
                Some((place, run.task_mut(task)?))
            });
            match found {
                Some((place, found)) => self.indexes.set_phase(place, found, Phase::Ready { since }),
                None => self.indexes.forget_delayed(task),
            }
        }
    }

    /// Forgets finished runs past their time, at most `most`. Not an event: the time stands in the record.
    pub fn expire(&mut self, now: Millis, most: usize) -> alloc::vec::Vec<FinishedRun> {
        let mut gone = alloc::vec::Vec::new();
        while gone.len() < most
            && let Some(&(expires_at, run)) = self.expiry.first()
            && expires_at <= now
        {
            self.expiry.remove(&(expires_at, run));
            gone.extend(self.forget_finished(run));
        }
        while let Some(entry) = self.freed_keys.first_entry()
            && *entry.get() <= now
        {
            entry.remove();
        }
        gone
    }

    /// Takes a run that ended out of memory: it expired, or stands in a results segment. Not an event.
    pub fn forget_finished(&mut self, run: RunId) -> Option<FinishedRun> {
        let finished = self.finished.remove(&run)?;
        self.expiry.remove(&(finished.expires_at, run));
        self.results_bytes -= result_bytes(&finished);
        if let (Some(key), Some(flow)) = (&finished.key, self.flows.get(&finished.flow)) {
            let name = (flow.tenant.clone(), flow.def.id.clone(), key.clone());
            if self.keys.get(&name) == Some(&run) {
                self.keys.remove(&name);
            }
        }
        Some(finished)
    }

    /// The run whose time is up first, when it is up.
    #[must_use]
    pub fn run_over(&self, now: Millis) -> Option<RunId> {
        self.indexes.deadlines.first(self.ahead_ms).filter(|(at, _)| *at <= now).map(|(_, run)| run)
    }

    /// The next point in time at which something is due without an input.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        let delayed = self.next_delayed().map(|(at, _)| at);
        let expiry = self.expiry.first().map(|&(at, _)| at);
        let over = self.indexes.deadlines.first(self.ahead_ms).map(|(at, _)| at);
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
                    StepRun::Due(due) => due.inputs.iter().for_each(&mut see),
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

/// What a finished run costs, with the history of its attempts: until it stands in a results segment.
pub(crate) fn result_bytes(run: &FinishedRun) -> u64 {
    let attempts: u64 = run.tasks.iter().map(|(_, end)| 1 + end.earlier.len() as u64).sum();
    256 + run.output.as_ref().map_or(0, Payload::size_bytes) + ATTEMPT_BYTES * attempts
}

/// Of one [`AttemptRecord`](crate::queue::run::AttemptRecord) in memory, with its texts.
const ATTEMPT_BYTES: u64 = 192;
