//! What is made beside the loop: asked once, taken into the log in slices, forgotten by a crash and asked for again.

use super::*;
use crate::queue::{
    decide::{Arrival, unmade},
    run::StepRun,
};

/// A list, a fan-out over it, and a step that gets the list of its outputs.
fn bench() -> Bench {
    let each = StepDef { for_each: Some("steps.list.output".into()), ..step("each", &[0]) };
    Bench::new(vec![flow("fan", vec![step("list", &[]), each, step("sum", &[1])])])
}

/// A success, with what it asks for left unmade.
fn succeed(bench: &mut Bench, lease: Lease, output: &str) -> Vec<Making> {
    let Lease { worker, task, attempt } = lease;
    let report = Box::new(Report { task, attempt, outcome: succeeded(output), usage: Usage::default() });
    let effects = bench.make_one(|state, world| decide(state, world, Input::Report { from: worker, report }));
    asked(effects)
}

fn asked(effects: Vec<Effect>) -> Vec<Making> {
    let making = |effect| match effect {
        Effect::Make(making) => Some(making),
        _ => None,
    };
    effects.into_iter().filter_map(making).collect()
}

/// A run whose first step has given `list`, and what it asked for.
fn listed(bench: &mut Bench, list: &str) -> (RunId, Making) {
    let run = bench.enqueue("fan");
    let lease = bench.lease(1, 1)[0];
    let frames = bench.log.len();
    let mut asked = succeed(bench, lease, list);
    // The success and what is due because of it are one frame (I5).
    assert!(matches!(bench.log[frames].0.events.as_slice(), [Event::Succeeded(_), Event::StepDue { step: 1, .. }]));
    assert_eq!((bench.log.len(), asked.len()), (frames + 1, 1));
    (run, asked.remove(0))
}

fn arrival(making: &Making) -> Arrival {
    Arrival::of(made(making)).expect("something made")
}

fn slice(bench: &mut Bench, arrival: &mut Arrival, most: usize) {
    assert!(!arrival.is_through() && arrival.cost(most) <= most);
    assert_eq!(bench.make_one(|state, world| arrival.slice(state, world, most)).len(), 0);
}

fn tasks(bench: &Bench, run: RunId) -> usize {
    match &bench.state.runs[&run].steps[1] {
        StepRun::Fan(fan) => fan.tasks.len(),
        _ => 0,
    }
}

#[test]
fn inputs_of_a_fan_out_are_logged_in_slices_and_become_tasks_with_the_last_one() {
    let mut bench = bench();
    let (run, making) = listed(&mut bench, r#"["a","b","c","d","e"]"#);
    let mut arrival = arrival(&making);
    for (frames, count) in [(1, 0), (2, 0), (3, 5)] {
        let before = bench.log.len();
        slice(&mut bench, &mut arrival, 2);
        assert_eq!((bench.log.len(), tasks(&bench, run)), (before + 1, count), "slice {frames}");
        assert_same(&bench.replayed(), &bench.state);
    }
    assert!(arrival.is_through());
    for (item, input) in [(0, r#""a""#), (2, r#""c""#), (4, r#""e""#)] {
        let task = bench.state.runs[&run].task(TaskRef { run, step: 1, item: Some(item) }).expect("a task");
        assert_eq!(task.input, Payload::Inline(Json::parse(input).expect("JSON")));
    }
    bench.run_all("1");
    assert_eq!(bench.run_state(run), RunState::Succeeded);
}

#[test]
fn what_is_made_is_asked_for_once_and_again_after_a_crash() {
    let mut bench = bench();
    let (run, making) = listed(&mut bench, r#"["a","b","c"]"#);
    assert_eq!(unmade(&mut bench.state).len(), 0);
    let mut first = arrival(&making);
    slice(&mut bench, &mut first, 2);
    // The crash: what was made is gone, what was logged of it is not.
    bench.state = bench.replayed();
    let again = asked(unmade(&mut bench.state));
    assert_eq!((again.len(), again[0].run, again[0].step), (1, run, 1));
    assert_eq!(unmade(&mut bench.state).len(), 0);
    // It begins anew, also when it comes to other slices.
    let mut second = arrival(&again[0]);
    slice(&mut bench, &mut second, 1);
    slice(&mut bench, &mut second, 9);
    assert_eq!(tasks(&bench, run), 3);
    assert_same(&bench.replayed(), &bench.state);
    // What came of the first time is dropped.
    let frames = bench.log.len();
    slice(&mut bench, &mut first, 2);
    assert!(first.is_through() && bench.log.len() == frames);
}

#[test]
fn what_comes_for_a_run_that_was_cancelled_is_dropped() {
    let mut bench = bench();
    let (run, making) = listed(&mut bench, r#"["a","b","c"]"#);
    let mut arrival = arrival(&making);
    slice(&mut bench, &mut arrival, 2);
    bench.cancel(&run.to_string());
    let frames = bench.log.len();
    slice(&mut bench, &mut arrival, 2);
    assert!(arrival.is_through() && bench.log.len() == frames);
    bench.put(made(&making));
    assert_eq!((bench.log.len(), bench.run_state(run)), (frames, RunState::Cancelled));
}

#[test]
fn compaction_between_two_slices_keeps_what_was_logged() {
    let mut bench = bench();
    let (run, making) = listed(&mut bench, r#"["a","b","c"]"#);
    let mut arrival = arrival(&making);
    slice(&mut bench, &mut arrival, 2);
    let copy = bench.state.runs[&run].clone();
    bench.make_one(|state, world| {
        let events = vec![Event::RunSnapshot(copy)];
        state.apply(&events[0], world.now);
        Step { events, effects: vec![] }
    });
    slice(&mut bench, &mut arrival, 2);
    assert_eq!(tasks(&bench, run), 3);
    assert_same(&bench.replayed(), &bench.state);
}

#[test]
fn the_list_of_outputs_is_made_once_the_last_item_succeeded() {
    let mut bench = bench();
    let (run, making) = listed(&mut bench, r#"["a","b"]"#);
    bench.put(made(&making));
    let leases = bench.lease(1, 9);
    assert_eq!(succeed(&mut bench, leases[1], "2").len(), 0);
    let list = succeed(&mut bench, leases[0], "1");
    assert_eq!((list.len(), bench.run_state(run), bench.lease(1, 9).len()), (1, RunState::Active, 0));
    bench.state = bench.replayed();
    let again = asked(unmade(&mut bench.state));
    bench.put(made(&again[0]));
    let task = bench.lease(1, 1)[0].task;
    let input = bench.state.runs[&run].task(task).expect("a task").input.clone();
    assert_eq!(input, Payload::Inline(Json::parse(r#"{"each":[1,2]}"#).expect("JSON")));
    // The same list a second time means nothing.
    let frames = bench.log.len();
    bench.put(made(&list[0]));
    assert_eq!(bench.log.len(), frames);
}

#[test]
fn small_inputs_are_made_at_once_and_large_ones_beside_the_loop() {
    let named = StepDef { input: Json::parse(r#"{"name":"{{ steps.a.output.name }}"}"#).ok(), ..step("b", &[0]) };
    let mut bench = Bench::new(vec![flow("two", vec![step("a", &[]), named])]);
    for (bytes, at_once) in [(100, true), (5000, false)] {
        let run = bench.enqueue("two");
        let lease = bench.lease(1, 1)[0];
        let output = format!(r#"{{"name":"{}"}}"#, "x".repeat(bytes));
        let asked = succeed(&mut bench, lease, &output);
        assert_eq!((asked.is_empty(), bench.state.indexes.lanes.len()), (at_once, u64::from(at_once)));
        asked.iter().for_each(|making| drop(bench.put(made(making))));
        let lease = bench.lease(1, 1)[0];
        let input = bench.state.runs[&run].task(lease.task).expect("a task").input.clone();
        assert_eq!(input, Payload::Inline(Json::parse(&output).expect("JSON")));
    }
}

#[test]
fn a_success_with_many_followers_makes_at_once_no_more_than_its_reserve_holds() {
    let mut steps = vec![step("first", &[])];
    steps.extend((0..40).map(|n| step(&format!("s{n}"), &[0])));
    let mut bench = Bench::new(vec![flow("wide", steps)]);
    bench.enqueue("wide");
    let lease = bench.lease(1, 1)[0];
    let asked = succeed(&mut bench, lease, &format!(r#""{}""#, "x".repeat(1000)));
    let mut line = Vec::new();
    let (frame, _) = bench.log.last().expect("a frame");
    crate::record::codec::encode(frame, 1, &mut line);
    assert!((1..40).contains(&asked.len()), "{} are made beside the loop", asked.len());
    assert!((line.len() as u64) < 1000 + crate::limits::END_RESERVE_BYTES - crate::limits::INLINE_MAX_BYTES);
    for making in &asked {
        bench.put(made(making));
    }
    assert_eq!(bench.lease(1, 100).len(), 40);
}

/// The same flow, which has a second.
fn timed() -> Bench {
    let each = StepDef { for_each: Some("steps.list.output".into()), ..step("each", &[0]) };
    let steps = vec![step("list", &[]), each, step("sum", &[1])];
    Bench::new(vec![FlowDef { run_timeout_ms: Some(1000), ..flow("fan", steps) }])
}

fn time_out(bench: &mut Bench) {
    bench.wait(1000);
    bench.make(|state, world| decide::time_out(state, world, 10));
}

/// The run stalled with one dead letter for the whole fan-out, and nothing of it is due any more.
fn assert_over(bench: &Bench, run: RunId) {
    let letters: Vec<_> = bench.state.runs[&run].letters().map(|(task, letter)| (task, letter.code.as_str())).collect();
    assert_eq!(letters, [(TaskRef { run, step: 1, item: None }, "RUN_TIMEOUT")]);
    assert_eq!((bench.run_state(run), bench.state.next_deadline()), (RunState::Stalled, None));
    assert!(bench.state.indexes.due.is_empty());
    assert_same(&bench.replayed(), &bench.state);
}

#[test]
fn a_run_whose_time_is_up_while_inputs_are_made_ends_and_late_ones_write_nothing() {
    for slices in 0..2 {
        let mut bench = timed();
        let (run, making) = listed(&mut bench, r#"["a","b","c"]"#);
        let mut arrival = arrival(&making);
        for _ in 0..slices {
            slice(&mut bench, &mut arrival, 2);
        }
        time_out(&mut bench);
        assert_over(&bench, run);
        let frames = bench.log.len();
        slice(&mut bench, &mut arrival, 2);
        assert!(arrival.is_through() && bench.log.len() == frames, "{slices} slices before");
        bench.put(made(&making));
        assert_eq!((bench.log.len(), tasks(&bench, run)), (frames, 0));
    }
}

#[test]
fn a_run_whose_time_is_up_while_the_list_of_outputs_is_made_ends_and_a_late_one_writes_nothing() {
    let mut bench = timed();
    let (run, making) = listed(&mut bench, r#"["a","b"]"#);
    bench.put(made(&making));
    let leases = bench.lease(1, 9);
    succeed(&mut bench, leases[0], "1");
    let list = succeed(&mut bench, leases[1], "2");
    time_out(&mut bench);
    assert_over(&bench, run);
    let frames = bench.log.len();
    bench.put(made(&list[0]));
    assert_eq!(bench.log.len(), frames);
}
