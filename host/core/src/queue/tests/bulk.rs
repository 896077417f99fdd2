//! Requeues and purges of many, a slice at a time, with whatever happens between two slices.

use super::*;
use crate::{
    api::{DlqAction, DlqOutcome, ErrorKind},
    queue::decide::{Bulk, no_room, stopping},
};

const SLICE: usize = 2;

fn bench() -> Bench {
    let each = StepDef { for_each: Some("input.items".into()), ..step("each", &[]) };
    let faulty = StepDef { when: Some("no path".into()), ..step("s", &[]) };
    Bench::new(vec![flow("one", vec![step("s", &[])]), flow("fan", vec![each]), flow("faulty", vec![faulty])])
}

/// A run of which every task dies: one task, or five of a fan-out.
fn die(bench: &mut Bench, flow: &str) -> RunId {
    let input = Json::parse(r#"{"items":[1,2,3,4,5]}"#).expect("JSON");
    let run = run_of(&bench.ask(EnqueueRequest { input, ..request(flow) }));
    for lease in bench.lease(1, 1000) {
        bench.fail(lease, Class::Fatal);
    }
    bench.wait(1);
    run
}

fn die_each(bench: &mut Bench, flow: &str, runs: usize) -> Vec<RunId> {
    (0..runs).map(|_| die(bench, flow)).collect()
}

fn all(pattern: &str) -> DlqAction {
    DlqAction { pattern: pattern.into(), all: true, ..DlqAction::default() }
}

fn requeue(bench: &Bench, action: DlqAction) -> Bulk {
    Bulk::of(&bench.state, Input::Requeue { ticket: Ticket(7), action }, SLICE).expect("a bulk action")
}

fn purge(bench: &Bench, action: DlqAction) -> Bulk {
    Bulk::of(&bench.state, Input::Purge { ticket: Ticket(7), action }, SLICE).expect("a bulk action")
}

fn reply(effects: Vec<Effect>) -> Option<Reply> {
    effects.into_iter().find_map(|effect| match effect {
        Effect::Reply { ticket: Ticket(7), reply } => Some(reply),
        _ => None,
    })
}

/// One slice; what it tells.
fn slice(bench: &mut Bench, bulk: &mut Bulk) -> Vec<(String, String)> {
    bulk.look(&bench.state);
    let changes = bulk.changes(bench.ended());
    let frames = bench.log.len();
    let answer = reply(bench.make(|state, world| bulk.slice(state, world)));
    assert!(bench.log.len() <= frames + 1 && (bench.log.len() > frames) == (changes > 0));
    let told = match answer.or_else(|| reply(bulk.told().into_iter().collect())) {
        None => vec![],
        Some(Reply::DlqDone(outcomes) | Reply::DlqSome(outcomes)) => outcomes,
        Some(other) => panic!("{other:?}"),
    };
    let line = |DlqOutcome { entry_id, outcome, why, .. }: DlqOutcome| {
        (entry_id, why.map_or(outcome.clone(), |why| format!("{outcome}: {why}")))
    };
    told.into_iter().map(line).collect()
}

fn entries(bench: &Bench) -> Vec<String> {
    bench.state.letters.keys().cloned().collect()
}

fn with(entries: &[String], outcome: &str) -> Vec<(String, String)> {
    entries.iter().map(|entry| (entry.clone(), outcome.into())).collect()
}

#[test]
fn a_slice_is_one_frame_and_the_others_stay_pending_until_theirs() {
    let mut bench = bench();
    die_each(&mut bench, "one", 5);
    let entries = entries(&bench);
    let mut bulk = requeue(&bench, all("dlq-*"));
    assert_eq!(slice(&mut bench, &mut bulk), with(&entries[..2], "requeued"));
    assert_eq!((bench.state.letters.len(), bulk.is_through()), (3, false));
    // A crash now: what was done stays done, and nothing else.
    assert_same(&bench.replayed(), &bench.state);
    assert_eq!(slice(&mut bench, &mut bulk), with(&entries[2..4], "requeued"));
    assert_eq!(slice(&mut bench, &mut bulk), with(&entries[4..], "requeued"));
    assert_eq!((bench.state.letters.len(), bulk.is_through()), (0, true));
}

#[test]
fn what_another_took_between_two_slices_is_not_taken_again() {
    let mut bench = bench();
    let runs = die_each(&mut bench, "one", 5);
    let entries = entries(&bench);
    let mut bulk = purge(&bench, all("*"));
    slice(&mut bench, &mut bulk);
    bench.requeue(&entries[2], false);
    bench.cancel(&runs[3].to_string());
    assert_eq!(slice(&mut bench, &mut bulk), with(&entries[4..], "purged"));
    assert_eq!(bench.run_state(runs[2]), RunState::Active);
    assert_eq!(bench.state.totals.dlq_purged, 4);
}

#[test]
fn what_dies_after_the_beginning_is_not_looked_at() {
    let mut bench = bench();
    die_each(&mut bench, "one", 3);
    let mut bulk = requeue(&bench, all("*"));
    slice(&mut bench, &mut bulk);
    for lease in bench.lease(2, 10) {
        bench.fail(lease, Class::Fatal);
    }
    assert_eq!(slice(&mut bench, &mut bulk).len(), 1);
    assert_eq!((bulk.is_through(), bench.state.letters.len()), (true, 2));
}

#[test]
fn entries_that_were_named_by_their_run_and_taken_since_are_skipped_by_name() {
    let mut bench = bench();
    let run = die(&mut bench, "fan");
    let entries = entries(&bench);
    let mut bulk = requeue(&bench, all(&run.to_string()));
    assert_eq!(slice(&mut bench, &mut bulk), with(&entries[..2], "requeued"));
    bench.requeue(&entries[2], false);
    let told = slice(&mut bench, &mut bulk);
    assert_eq!(told, [with(&entries[2..3], "skipped: no longer pending"), with(&entries[3..4], "requeued")].concat());
    assert_eq!(slice(&mut bench, &mut bulk), with(&entries[4..], "requeued"));
}

#[test]
fn a_run_is_purged_in_one_small_frame_and_all_its_entries_are_told() {
    for pattern in ["a run", "*"] {
        let mut bench = bench();
        let run = die(&mut bench, "fan");
        let entries = entries(&bench);
        let pattern = if pattern == "*" { pattern.into() } else { run.to_string() };
        let mut bulk = purge(&bench, all(&pattern));
        let mut told = slice(&mut bench, &mut bulk);
        assert_eq!((bench.run_state(run), bench.state.letters.len()), (RunState::Failed, 0), "{pattern}");
        assert_eq!(bench.log.last().map(|(frame, _)| frame.events.len()), Some(2));
        let archived = bench.effects.iter().find_map(|effect| match effect {
            Effect::ArchiveRun { run, flow, at } => Some(decide::purged_entries(run, flow, *at).collect::<Vec<_>>()),
            _ => None,
        });
        let archived = archived.expect("the files are archived");
        assert!(archived.iter().all(|entry| entry.state == "purged" && entry.task_id.contains(".each[")));
        assert_eq!(archived.into_iter().map(|entry| entry.entry_id).collect::<Vec<_>>().len(), 5);
        while !bulk.is_through() {
            told.extend(slice(&mut bench, &mut bulk));
        }
        assert_eq!(told, with(&entries, "purged"), "{pattern}");
        assert_eq!(bench.state.totals.dlq_purged, 5);
        assert_same(&bench.replayed(), &bench.state);
    }
}

#[test]
fn cancelling_a_run_purges_its_entries_in_one_small_frame() {
    let mut bench = bench();
    let run = die(&mut bench, "fan");
    bench.cancel(&run.to_string());
    assert_eq!(bench.log.last().map(|(frame, _)| frame.events.len()), Some(1));
    assert_eq!((bench.state.letters.len(), bench.state.totals.dlq_purged), (0, 5));
    assert_same(&bench.replayed(), &bench.state);
}

#[test]
fn a_glob_is_counted_in_slices_before_anything_is_done() {
    let mut bench = bench();
    die_each(&mut bench, "one", 150);
    let action = DlqAction { pattern: "dlq-*".into(), ..DlqAction::default() };
    let mut bulk = requeue(&bench, action.clone());
    let mut slices = 0;
    let answer = loop {
        slices += 1;
        bulk.look(&bench.state);
        assert_eq!(bulk.changes(bench.ended()), 0);
        let answer = reply(bench.make(|state, world| bulk.slice(state, world)));
        if bulk.is_through() {
            break answer;
        }
    };
    assert!(matches!(answer, Some(Reply::Error(error)) if error.message.contains("150 entries; nothing was changed")));
    assert!(slices > 2, "{slices} slices");
    let one = DlqAction { pattern: format!("{}*", entries(&bench)[75]), ..action };
    assert!(matches!(bench.requeue(&one.pattern, false), Reply::DlqDone(outcomes) if outcomes.len() == 1));
}

#[test]
fn two_runs_with_one_key_are_not_both_requeued_by_one_slice() {
    let mut bench = bench();
    for _ in 0..2 {
        bench.ask(keyed("one", "k"));
        let lease = bench.lease(1, 1)[0];
        bench.fail(lease, Class::Fatal);
        bench.wait(1);
    }
    let entries = entries(&bench);
    let mut bulk = requeue(&bench, all("*"));
    let told = slice(&mut bench, &mut bulk);
    assert_eq!((&told[0].0, told[0].1.as_str()), (&entries[0], "requeued"));
    assert!(told[1].0 == entries[1] && told[1].1.starts_with("skipped: key held by"), "{told:?}");
    assert_eq!(bench.state.letters.len(), 1);
}

#[test]
fn a_step_whose_input_is_made_anew_ends_its_slice() {
    let mut bench = bench();
    die_each(&mut bench, "faulty", 3);
    let mut bulk = requeue(&bench, all("*"));
    assert_eq!(slice(&mut bench, &mut bulk).len(), 1);
    assert!(!bulk.is_through());
}

#[test]
fn who_is_broken_off_is_told_how_far_it_came() {
    let mut bench = bench();
    die_each(&mut bench, "one", 3);
    let mut bulk = requeue(&bench, all("*"));
    let told = |bulk: &Bulk, why| match bulk.clone().broken_off(why) {
        Effect::Reply { reply: Reply::Error(error), .. } if error.kind == ErrorKind::Busy => error.message,
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&bulk, no_room()), "the queue's disk has no room; nothing was changed");
    slice(&mut bench, &mut bulk);
    let message = "the supervisor stops: 2 entries were requeued, the others stay as they are";
    assert_eq!(told(&bulk, stopping()), message);
}
