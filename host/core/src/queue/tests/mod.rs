//! The rules of the queue, one behaviour each, on a bench that records every frame.

mod attempts;
mod bulk;
mod compaction;
mod flows;
mod keys;
mod made;
mod model;
mod operator;
mod order;
mod pages;
mod timeouts;

use alloc::{
    boxed::Box,
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
use core::ops::ControlFlow;
use serde_json::Value;

use crate::{
    api::{EnqueueRequest, Reply, RunState},
    backoff::RetryPolicy,
    code::Class,
    flow::{
        advance::Blobs,
        evaluate::{Evaluate, EvaluateFault},
        spec::{FlowDef, GrantsDef, StepDef},
    },
    id::{Attempt, Digest, RunId, TaskRef, WorkerId},
    json::{Json, Payload},
    limits::Limits,
    queue::{
        check::check,
        decide::{self, Making, Runnable, World, decide},
        effect::{Effect, Input, Outcome, Report, Step, Ticket},
        event::{Event, Frame},
        lanes::{FairOrder, Profile, ProfileNo, Slot},
        policy::Policy,
        results::{Ended, Kept, NoResults, Results, Shelved},
        run::{FinishedRun, Phase},
        state::{KeyName, State},
    },
    time::Millis,
    wire::{Failure, Required, Usage},
};

/// Knows no expression, so that everything but a plain path faults.
struct Paths;

impl Evaluate for Paths {
    fn value(&self, expression: &str, _: &Value) -> Result<Value, EvaluateFault> {
        Err(EvaluateFault { message: format!("`{expression}` is not a path") })
    }
    fn text(&self, template: &str, _: &Value) -> Result<String, EvaluateFault> {
        Ok(template.into())
    }
    fn check_value(&self, _: &str) -> Result<(), EvaluateFault> {
        Ok(())
    }
    fn check_text(&self, _: &str) -> Result<(), EvaluateFault> {
        Ok(())
    }
}

struct NoBlobs;

impl Blobs for NoBlobs {
    fn read(&self, _: &Digest) -> Option<Json> {
        None
    }
    fn put(&self, _: &Json) -> Option<Digest> {
        None
    }
}

pub(super) fn step(id: &str, needs: &[u16]) -> StepDef {
    StepDef {
        id: id.into(),
        component: Digest([1; 32]),
        required: Required::default(),
        needs: needs.to_vec(),
        when: None,
        for_each: None,
        max_parallel: 1000,
        input: None,
        limits: Limits::DEFAULT,
        retries: RetryPolicy { jitter_ms: 0, ..RetryPolicy::default() },
        grants: GrantsDef::default(),
    }
}

pub(super) fn flow(id: &str, steps: Vec<StepDef>) -> FlowDef {
    let digest = Digest::of(format!("{id}{}", steps.len()).as_bytes());
    FlowDef { id: id.into(), version: None, run_timeout_ms: None, digest, steps, caller_env: Vec::new() }
}

/// A queue with its log in memory.
pub(super) struct Bench {
    pub(super) state: State,
    pub(super) policy: Policy,
    pub(super) now: Millis,
    pub(super) fair: FairOrder,
    pub(super) log: Vec<(Frame, u64)>,
    pub(super) effects: Vec<Effect>,
    pub(super) shelf: Shelf,
}

/// The results that left memory.
#[derive(Default)]
pub(super) struct Shelf(pub(super) BTreeMap<RunId, (KeyName, FinishedRun)>);

impl Results for Shelf {
    fn run(&self, run: RunId) -> Option<Kept> {
        let ((tenant, flow, _), run) = self.0.get(&run)?;
        Some(Ok(Shelved { tenant: (**tenant).into(), flow: flow.clone(), run: run.clone() }))
    }

    fn key(&self, name: &KeyName, each: &mut dyn FnMut(FinishedRun) -> ControlFlow<()>) {
        let held = self.0.values().rev().filter(|(held, run)| run.key.is_some() && held == name);
        let _ = held.map(|(_, run)| run.clone()).try_for_each(each);
    }

    fn range(&self, low: RunId, high: RunId, each: &mut dyn FnMut(RunId) -> ControlFlow<()>) {
        let _ = self.0.range(low..=high).rev().map(|(run, _)| *run).try_for_each(each);
    }

    fn key_count(&self) -> u64 {
        self.0.values().filter(|(_, run)| run.key.is_some()).count() as u64
    }
}

/// A lease as it was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) worker: WorkerId,
    pub(super) task: TaskRef,
    pub(super) attempt: Attempt,
}

impl Bench {
    pub(super) fn new(flows: Vec<FlowDef>) -> Self {
        let mut bench = Self {
            state: State { segment: 1, ..State::default() },
            policy: Policy::default(),
            now: Millis(1_000_000),
            fair: FairOrder::default(),
            log: Vec::new(),
            effects: Vec::new(),
            shelf: Shelf::default(),
        };
        bench.make(|state, world| decide::create(state, world, [5; 16]));
        for flow in flows {
            bench.register("default", flow);
        }
        bench
    }

    /// Makes one decision, and what it asks for; frames are recorded.
    pub(super) fn make(&mut self, make: impl FnOnce(&mut State, World<'_>) -> Step) -> Vec<Effect> {
        let mut effects = self.make_one(make);
        let mut next = 0;
        while next < effects.len() {
            if let Effect::Make(making) = &effects[next] {
                let made = made(making);
                effects.extend(self.make_one(|state, world| decide(state, world, made)));
            }
            next += 1;
        }
        effects
    }

    /// Makes one decision; its frame is recorded.
    pub(super) fn make_one(&mut self, make: impl FnOnce(&mut State, World<'_>) -> Step) -> Vec<Effect> {
        let world = World {
            policy: &self.policy,
            evaluate: &Paths,
            blobs: &NoBlobs,
            results: &self.shelf,
            now: self.now,
            sequence: self.log.len() as u64 + 1,
        };
        let Step { events, effects } = make(&mut self.state, world);
        if !events.is_empty() {
            self.log.push((Frame { at: self.now, events }, self.state.segment));
        }
        let broken = check(&self.state);
        assert!(broken.is_empty(), "{broken:#?}");
        self.effects.extend(effects.iter().cloned());
        effects
    }

    pub(super) fn put(&mut self, input: Input) -> Vec<Effect> {
        self.make(|state, world| decide(state, world, input))
    }

    fn reply(&mut self, input: Input) -> Reply {
        let replies = self.put(input).into_iter().find_map(|effect| match effect {
            Effect::Reply { reply, .. } => Some(reply),
            _ => None,
        });
        replies.expect("a request is answered")
    }

    pub(super) fn register(&mut self, tenant: &str, flow: FlowDef) -> Reply {
        let (tenant, def) = (tenant.into(), Box::new(flow));
        self.reply(Input::Register { ticket: Ticket(1), tenant, def, warnings: vec![] })
    }

    pub(super) fn ask(&mut self, request: EnqueueRequest) -> Reply {
        let input = Payload::Inline(request.input.clone());
        self.reply(Input::Enqueue { ticket: Ticket(1), request: Box::new(request), input })
    }

    pub(super) fn enqueue(&mut self, flow: &str) -> RunId {
        run_of(&self.ask(request(flow)))
    }

    pub(super) fn cancel(&mut self, id: &str) -> Reply {
        self.reply(Input::Cancel { ticket: Ticket(1), id: id.into() })
    }

    pub(super) fn requeue(&mut self, pattern: &str, all: bool) -> Reply {
        let action = crate::api::DlqAction { pattern: pattern.into(), all, ..Default::default() };
        self.reply(Input::Requeue { ticket: Ticket(1), action })
    }

    pub(super) fn purge(&mut self, pattern: &str, all: bool) -> Reply {
        let action = crate::api::DlqAction { pattern: pattern.into(), all, ..Default::default() };
        self.reply(Input::Purge { ticket: Ticket(1), action })
    }

    pub(super) fn forget_key(&mut self, flow: &str, key: &str) -> Reply {
        let (tenant, flow, key) = ("default".into(), flow.into(), key.into());
        self.reply(Input::ForgetKey { ticket: Ticket(1), tenant, flow, key })
    }

    /// The profile of a tenant's steps without folders.
    pub(super) fn profile(&self, tenant: &str) -> ProfileNo {
        let wanted = Profile { tenant: tenant.into(), folders: vec![] };
        (0..).map(ProfileNo).find(|no| self.state.indexes.lanes.profile(*no) == Some(&wanted)).expect("a profile")
    }

    /// Hands tasks to one worker of the default tenant with `free` slots.
    pub(super) fn lease(&mut self, worker: u64, free: u32) -> Vec<Lease> {
        let profile = self.profile("default");
        self.lease_to(vec![Slot { worker: WorkerId(worker), profile, free, idle: true }])
    }

    pub(super) fn lease_to(&mut self, mut slots: Vec<Slot>) -> Vec<Lease> {
        let mut fair = core::mem::take(&mut self.fair);
        let effects = self
            .make(|state, world| decide::lease(state, world, &mut fair, &mut slots, usize::MAX, &|_, _| Runnable::Yes));
        self.fair = fair;
        effects
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Start { worker, task, attempt } => Some(Lease { worker, task, attempt }),
                _ => None,
            })
            .collect()
    }

    pub(super) fn end(&mut self, lease: Lease, outcome: Outcome) {
        let Lease { worker, task, attempt } = lease;
        let report = Box::new(Report { task, attempt, outcome, usage: Usage::default() });
        self.put(Input::Report { from: worker, report });
    }

    pub(super) fn succeed(&mut self, lease: Lease, output: &str) {
        self.end(lease, succeeded(output));
    }

    pub(super) fn fail(&mut self, lease: Lease, class: Class) {
        self.end(lease, failed(class, None));
    }

    pub(super) fn gone(&mut self, worker: u64) {
        self.put(Input::WorkerGone { worker: WorkerId(worker) });
    }

    /// Leases all that is ready to worker 1 and succeeds it, until nothing is ready.
    pub(super) fn run_all(&mut self, output: &str) {
        loop {
            let leases = self.lease(1, 1000);
            if leases.is_empty() {
                return;
            }
            leases.into_iter().for_each(|lease| self.succeed(lease, output));
        }
    }

    /// Takes all that ended out of memory, as a shell does with its results segments.
    pub(super) fn keep_results(&mut self) {
        for run in self.state.finished.values() {
            let flow = &self.state.flows[&run.flow];
            let name = (flow.tenant.clone(), flow.def.id.clone(), run.key.clone().unwrap_or_default());
            self.shelf.0.insert(run.id, (name, run.clone()));
        }
        self.make(|state, world| decide::results_kept(state, world, 1, 0));
    }

    pub(super) fn ended(&self) -> Ended<'_> {
        Ended { state: &self.state, results: &self.shelf, now: self.now }
    }

    pub(super) fn wait(&mut self, ms: u64) {
        self.now = self.now.plus(ms);
        self.state.promote(self.now);
        self.state.expire(self.now, usize::MAX);
    }

    pub(super) fn phase(&self, task: TaskRef) -> Phase {
        self.state.runs[&task.run].task(task).expect("a task").phase.clone()
    }

    pub(super) fn run_state(&self, run: RunId) -> RunState {
        self.state
            .runs
            .get(&run)
            .map(|run| run.state)
            .unwrap_or_else(|| self.ended().run(run).expect("ended").expect("whole").state)
    }

    /// The one pending dead letter.
    pub(super) fn letter(&self) -> String {
        assert_eq!(self.state.letters.len(), 1, "one dead letter");
        self.state.letters.keys().next().expect("a letter").clone()
    }

    /// A state made of the recorded frames alone.
    pub(super) fn replayed(&self) -> State {
        replay(&self.log)
    }
}

/// What the shell brings for what was asked.
pub(super) fn made(making: &Making) -> Input {
    Input::Made { run: making.run, step: making.step, made: making.make(&Paths, &NoBlobs) }
}

pub(super) fn replay(log: &[(Frame, u64)]) -> State {
    let mut state = State::default();
    log.iter().for_each(|(frame, segment)| state.replay(frame, *segment));
    state
}

pub(super) fn request(flow: &str) -> EnqueueRequest {
    EnqueueRequest::of("default", flow, Json::parse("{}").expect("JSON"))
}

pub(super) fn keyed(flow: &str, key: &str) -> EnqueueRequest {
    EnqueueRequest { idempotency_key: Some(key.into()), ..request(flow) }
}

pub(super) fn run_of(reply: &Reply) -> RunId {
    match reply {
        Reply::Enqueued { run } => *run,
        other => panic!("not enqueued: {other:?}"),
    }
}

pub(super) fn message_of(reply: &Reply) -> String {
    match reply {
        Reply::Error(error) => error.message.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

pub(super) fn hint_of(reply: &Reply) -> String {
    match reply {
        Reply::Error(error) => error.hint.clone().unwrap_or_default(),
        other => panic!("not refused: {other:?}"),
    }
}

pub(super) fn succeeded(output: &str) -> Outcome {
    Outcome::Succeeded { output: Payload::Inline(Json::parse(output).expect("JSON")), artifacts: vec![] }
}

pub(super) fn failed(class: Class, retry_after_ms: Option<u64>) -> Outcome {
    let (code, message) = ("TRAP".into(), "no".into());
    Outcome::Failed(Failure { by_host: true, class, code, message, retry_after_ms })
}

pub(super) fn single(run: RunId) -> TaskRef {
    TaskRef { run, step: 0, item: None }
}

/// All of a state that must survive a restart, as text to compare. What is only in memory is left out.
pub(super) fn image(state: &State) -> String {
    let mut state = state.clone();
    (state.segment, state.refused_reports, state.last_at, state.totals.orphans) = (0, 0, Millis(0), 0);
    state.newest_run = None;
    state.progress.clear();
    state.asked.clear();
    for run in state.runs.values_mut() {
        run.home = 0;
    }
    for flow in state.flows.values_mut() {
        flow.home = 0;
    }
    // Lanes are numbered in the order in which flows were seen, and that is not stored.
    let lanes = core::mem::take(&mut state.indexes.lanes);
    let mut ready: Vec<_> = lanes.busy().map(|lane| (lane.flow, lane.step, &lane.ready, &lane.solo)).collect();
    ready.sort();
    format!("{state:?} {ready:?}").replace("}, ", "},\n")
}

pub(super) fn assert_same(left: &State, right: &State) {
    let (left, right) = (image(left), image(right));
    for (left, right) in left.lines().zip(right.lines()) {
        assert_eq!(left, right, "the states differ");
    }
    assert_eq!(left.len(), right.len(), "the states differ");
}
