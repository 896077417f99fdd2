//! What is made beside the loop, over turns: slices of items, and a disk that has no room for them.

use std::sync::atomic::Ordering::SeqCst;

use tm_core::{
    api::EnqueueRequest,
    backoff::RetryPolicy,
    flow::spec::{FlowDef, GrantsDef, StepDef},
    id::{TaskRef, WorkerId},
    json::{Json, Payload},
    limits::Limits,
    queue::{
        decide::Making,
        effect::{Outcome, Report},
        run::StepRun,
    },
    wire::{Required, Usage},
};

use super::super::*;
use crate::{
    evaluate::MiniJinja,
    store::{blobs::BlobStore, disk::MemDisk, faults::FaultDisk},
};

#[derive(Default)]
struct Hands {
    profile: Option<Slot>,
    started: Vec<(TaskRef, u32)>,
    asked: Vec<Making>,
}

impl Shell for Hands {
    fn slots(&mut self) -> Vec<Slot> {
        self.profile.into_iter().collect()
    }

    fn flow(&mut self, _: FlowNo, _: &Registered) {}

    fn runnable(&self, _: FlowNo, _: u16) -> Runnable {
        Runnable::Yes
    }

    fn wanted(&mut self, _: &State, wants: &[Want], _: Millis) {
        let slot = |want: &Want| Slot { worker: WorkerId(1), profile: want.profile, free: 1, idle: true };
        self.profile = wants.first().map(slot);
    }

    fn perform(&mut self, _: Ended<'_>, effect: Effect, _: Millis) {
        match effect {
            Effect::Start { task, attempt, .. } => self.started.push((task, attempt)),
            Effect::Make(making) => self.asked.push(making),
            _ => {}
        }
    }

    fn forgotten(&mut self, _: &FinishedRun) {}
}

struct Case {
    disk: FaultDisk,
    turn: Turn<FaultDisk>,
    hands: Hands,
    now: u64,
}

impl Case {
    /// A run whose first step has given a list of `items` items, of which a fan-out is due.
    fn new(items: usize) -> Self {
        let disk = FaultDisk::new(MemDisk::default());
        let blobs = Box::new(BlobStore::new(disk.clone()).unwrap());
        let rules = Rules { policy: Policy::default(), evaluate: Box::new(MiniJinja::new()), blobs };
        let options = LogOptions { segment_max_bytes: 64 * 1024, ..LogOptions::default() };
        let (turn, _) = Turn::open(disk.clone(), options, rules, [7; 16], Millis(1000)).unwrap();
        let mut case = Self { disk, turn: turn.with_items_slice(3), hands: Hands::default(), now: 1000 };
        let step = |id: &str, needs: &[u16]| StepDef {
            id: id.into(),
            component: Digest([1; 32]),
            required: Required::default(),
            needs: needs.to_vec(),
            when: None,
            for_each: (id == "each").then(|| "steps.list.output".into()),
            max_parallel: 100,
            input: None,
            limits: Limits::DEFAULT,
            retries: RetryPolicy::default(),
            grants: GrantsDef::default(),
        };
        let steps = vec![step("list", &[]), step("each", &[0])];
        let digest = Digest([2; 32]);
        let def = FlowDef { id: "f".into(), version: None, run_timeout_ms: None, digest, steps, caller_env: vec![] };
        let (ticket, input) = (Ticket(1), Json::parse("{}").unwrap());
        let request = Box::new(EnqueueRequest::of("default", "f", input.clone()));
        case.turn([Input::Register { ticket, tenant: "default".into(), def: Box::new(def), warnings: vec![] }]);
        case.turn([Input::Enqueue { ticket, request, input: Payload::Inline(input) }]);
        case.turn([]);
        let (task, attempt) = case.hands.started[0];
        let output = Payload::Inline(Json::of(&vec!["x".repeat(1000); items]));
        let outcome = Outcome::Succeeded { output, artifacts: vec![] };
        let report = Box::new(Report { task, attempt, outcome, usage: Usage::default() });
        case.hands.profile = None;
        case.turn([Input::Report { from: WorkerId(1), report }]);
        assert_eq!((case.hands.asked.len(), case.items()), (1, None));
        case
    }

    fn turn(&mut self, inputs: impl IntoIterator<Item = Input>) -> Option<Millis> {
        self.now += 1;
        self.turn.turn(Millis(self.now), &mut inputs.into_iter().collect(), &mut self.hands).unwrap()
    }

    fn made(&self) -> Input {
        let making = &self.hands.asked[0];
        Input::Made { run: making.run, step: making.step, made: making.make(&MiniJinja::new(), self.turn.blobs()) }
    }

    /// Items of the fan-out, once it is one.
    fn items(&self) -> Option<usize> {
        match &self.turn.state.runs.values().next()?.steps[1] {
            StepRun::Fan(fan) => Some(fan.tasks.len()),
            _ => None,
        }
    }
}

#[test]
fn a_long_list_takes_a_slice_a_turn_and_the_loop_comes_again_at_once() {
    let mut case = Case::new(7);
    let made = case.made();
    let mut inputs = vec![made];
    for items in [None, None, Some(7)] {
        let due = case.turn(inputs.drain(..));
        assert_eq!((case.items(), due == Some(Millis(case.now))), (items, items.is_none()));
    }
    assert!(!case.turn.has_made());
}

#[test]
fn without_room_what_was_made_waits_and_resumes_by_itself() {
    let mut case = Case::new(300);
    let mut inputs = vec![case.made()];
    case.disk.quota.store(0, SeqCst);
    let mut due = case.turn(inputs.drain(..));
    while due == Some(Millis(case.now)) {
        due = case.turn([]);
    }
    assert_eq!((case.items(), due), (None, Some(Millis(case.now + ROOM_AGAIN_MS))));
    assert!(case.turn.has_made());
    case.disk.quota.store(u64::MAX, SeqCst);
    while case.turn.has_made() {
        case.turn([]);
    }
    assert_eq!(case.items(), Some(300));
}
