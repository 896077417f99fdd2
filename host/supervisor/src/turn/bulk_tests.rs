//! Bulk actions over turns: one slice each, as long as the shell keeps up, and broken off by a stop.

use tm_core::{
    api::{DlqAction, EnqueueRequest},
    backoff::RetryPolicy,
    flow::spec::{FlowDef, GrantsDef, StepDef},
    id::Digest,
    json::{Json, Payload},
    limits::Limits,
    wire::Required,
};

use super::super::*;
use crate::{
    evaluate::MiniJinja,
    store::{blobs::BlobStore, disk::MemDisk},
};

const SLICE: usize = decide::SLICE_MAX;

#[derive(Default)]
struct Hands {
    replies: Vec<Reply>,
    archived: usize,
    is_behind: bool,
}

impl Shell for Hands {
    fn slots(&mut self) -> Vec<Slot> {
        Vec::new()
    }

    fn flow(&mut self, _: FlowNo, _: &Registered) {}

    fn runnable(&self, _: FlowNo, _: u16) -> Runnable {
        Runnable::Yes
    }

    fn wanted(&mut self, _: &State, _: &[Want], _: Millis) {}

    fn perform(&mut self, _: Ended<'_>, effect: Effect, _: Millis) {
        match effect {
            Effect::Reply { ticket: Ticket(1), reply } => self.replies.push(reply),
            Effect::ArchiveRun { run, .. } => self.archived += run.letters().count(),
            _ => {}
        }
    }

    fn forgotten(&mut self, _: &FinishedRun) {}

    fn keeps_up(&self) -> bool {
        !self.is_behind
    }
}

/// A queue with so many dead letters: of steps whose condition cannot be evaluated.
fn queue(letters: usize) -> (Turn<MemDisk>, Hands, VecDeque<Input>) {
    let disk = MemDisk::default();
    let blobs = Box::new(BlobStore::new(disk.clone()).unwrap());
    let rules = Rules { policy: Policy::default(), evaluate: Box::new(MiniJinja::new()), blobs };
    let (turn, _) = Turn::open(disk, LogOptions::default(), rules, [7; 16], Millis(1000)).unwrap();
    let step = StepDef {
        id: "s".into(),
        component: Digest([1; 32]),
        required: Required::default(),
        needs: vec![],
        when: Some("input.missing.deep".into()),
        for_each: None,
        max_parallel: 1,
        input: None,
        limits: Limits::DEFAULT,
        retries: RetryPolicy::default(),
        grants: GrantsDef::default(),
    };
    let (digest, steps) = (Digest([2; 32]), vec![step]);
    let def = FlowDef { id: "f".into(), version: None, run_timeout_ms: None, digest, steps, caller_env: vec![] };
    let (ticket, tenant) = (Ticket(0), "default".into());
    let mut inputs = VecDeque::from([Input::Register { ticket, tenant, def: Box::new(def), warnings: vec![] }]);
    let input = Json::parse("{}").unwrap();
    inputs.extend((0..letters).map(|_| Input::Enqueue {
        ticket,
        request: Box::new(EnqueueRequest::of("default", "f", input.clone())),
        input: Payload::Inline(input.clone()),
    }));
    let (mut turn, mut hands) = (turn, Hands::default());
    while !inputs.is_empty() {
        turn.turn(Millis(1000), &mut inputs, &mut hands).unwrap();
    }
    assert_eq!(turn.state.letters.len(), letters);
    let action = DlqAction { pattern: "*".into(), all: true, ..DlqAction::default() };
    inputs.push_back(Input::Purge { ticket: Ticket(1), action });
    (turn, hands, inputs)
}

fn told(hands: &mut Hands) -> Vec<(usize, bool)> {
    let told = |reply: Reply| match reply {
        Reply::DlqSome(some) => (some.len(), false),
        Reply::DlqDone(last) => (last.len(), true),
        other => panic!("{other:?}"),
    };
    std::mem::take(&mut hands.replies).into_iter().map(told).collect()
}

#[test]
fn a_bulk_action_goes_on_in_slices_and_its_caller_is_told_of_each() {
    let (mut turn, mut hands, mut inputs) = queue(2 * SLICE + 5);
    for left in [SLICE + 5, 5, 0] {
        let due = turn.turn(Millis(1001), &mut inputs, &mut hands).unwrap();
        assert_eq!((turn.state.letters.len(), due == Some(Millis(1001))), (left, left > 0));
    }
    assert_eq!(told(&mut hands), [(SLICE, false), (SLICE, false), (5, true)]);
    assert_eq!((hands.archived, turn.has_bulk()), (2 * SLICE + 5, false));
}

#[test]
fn a_bulk_action_waits_for_a_shell_that_does_not_keep_up() {
    let (mut turn, mut hands, mut inputs) = queue(SLICE + 5);
    turn.turn(Millis(1001), &mut inputs, &mut hands).unwrap();
    hands.is_behind = true;
    let due = turn.turn(Millis(1002), &mut inputs, &mut hands).unwrap();
    assert_eq!((turn.state.letters.len(), due == Some(Millis(1002)), turn.has_bulk()), (5, false, true));
    hands.is_behind = false;
    turn.turn(Millis(1003), &mut inputs, &mut hands).unwrap();
    assert_eq!((turn.state.letters.len(), turn.has_bulk()), (0, false));
    assert_eq!(told(&mut hands), [(SLICE, false), (5, true)]);
}

#[test]
fn a_stop_breaks_a_bulk_action_off_between_two_slices_and_says_how_far_it_came() {
    let (mut turn, mut hands, mut inputs) = queue(SLICE + 5);
    turn.turn(Millis(1001), &mut inputs, &mut hands).unwrap();
    assert_eq!(told(&mut hands), [(SLICE, false)]);
    turn.break_off(&mut hands, Millis(1001));
    match hands.replies.as_slice() {
        [Reply::Error(error)] => assert!(error.message.contains(&format!("{SLICE} entries were purged")), "{error:?}"),
        other => panic!("{other:?}"),
    }
    turn.turn(Millis(1002), &mut inputs, &mut hands).unwrap();
    assert_eq!((turn.state.letters.len(), turn.has_bulk()), (5, false));
}
