//! Runs over their time.

use super::*;
use crate::api::RunState;

const TIMEOUT_MS: u64 = 1000;

fn timed(id: &str, steps: Vec<StepDef>) -> FlowDef {
    FlowDef { run_timeout_ms: Some(TIMEOUT_MS), ..flow(id, steps) }
}

impl Bench {
    /// One slice.
    fn time_out(&mut self, most: usize) -> Vec<Effect> {
        self.make(|state, world| decide::time_out(state, world, most))
    }

    fn codes(&self, run: RunId) -> Vec<(String, Attempt)> {
        self.state.runs[&run].letters().map(|(_, letter)| (letter.code.clone(), letter.attempt)).collect()
    }
}

fn over(attempt: Attempt) -> (String, Attempt) {
    ("RUN_TIMEOUT".into(), attempt)
}

#[test]
fn a_run_that_waits_for_a_worker_ends_at_its_time_without_one() {
    let mut bench = Bench::new(vec![timed("one", vec![step("s", &[])])]);
    let run = bench.enqueue("one");
    assert_eq!(bench.state.next_deadline(), Some(bench.now.plus(TIMEOUT_MS)));
    bench.wait(TIMEOUT_MS - 1);
    assert!(bench.time_out(10).is_empty());
    bench.wait(1);
    bench.time_out(10);
    assert_eq!((bench.codes(run), bench.run_state(run)), (vec![over(0)], RunState::Stalled));
    assert_eq!(bench.state.next_deadline(), None);
    assert_same(&bench.state, &bench.replayed());
}

#[test]
fn what_runs_of_it_is_told_to_stop_and_its_report_comes_too_late() {
    let mut bench = Bench::new(vec![timed("two", vec![step("a", &[]), step("b", &[]), step("c", &[0])])]);
    let run = bench.enqueue("two");
    let lease = bench.lease(1, 1)[0];
    bench.fail(lease, Class::Retryable);
    let lease = bench.lease(1, 1)[0];
    bench.wait(TIMEOUT_MS);
    let effects = bench.time_out(10);
    let Lease { worker, task, attempt } = lease;
    let stops = |effect: &Effect| matches!(effect, Effect::Cancel { worker: w, task: t, attempt: a } if (*w, *t, *a) == (worker, task, attempt));
    assert!(effects.iter().any(stops), "{effects:?}");
    let tells = |effect: &Effect| matches!(effect, Effect::RunEnded { run: ended } if *ended == run);
    assert!(effects.iter().any(tells), "who waits for it is told: {effects:?}");
    // One waited for its second attempt, the other ran its first; the third never began.
    assert_eq!(bench.codes(run), [over(1), over(1)]);
    bench.succeed(lease, "1");
    assert_eq!((bench.state.refused_reports, bench.run_state(run)), (1, RunState::Stalled));
}

#[test]
fn a_large_fan_out_ends_in_slices() {
    let each = StepDef { for_each: Some("input.items".into()), max_parallel: 2, ..step("each", &[]) };
    let mut bench = Bench::new(vec![timed("fan", vec![each])]);
    let input = Json::parse(r#"{"items":[1,2,3,4,5,6,7]}"#).expect("JSON");
    let run = run_of(&bench.ask(EnqueueRequest { input, ..request("fan") }));
    bench.wait(TIMEOUT_MS);
    for ended in [3, 6] {
        bench.time_out(3);
        assert_eq!((bench.codes(run).len(), bench.run_state(run)), (ended, RunState::Active));
        assert!(bench.state.next_deadline() <= Some(bench.now), "the rest is due at once");
    }
    bench.time_out(3);
    assert_eq!((bench.codes(run).len(), bench.run_state(run)), (7, RunState::Stalled));
    assert_same(&bench.state, &bench.replayed());
}

#[test]
fn a_slice_that_ends_with_a_run_leaves_nothing_of_it_to_do() {
    let mut bench = Bench::new(vec![timed("one", vec![step("s", &[])])]);
    let runs = [bench.enqueue("one"), bench.enqueue("one")];
    bench.wait(TIMEOUT_MS);
    bench.time_out(1);
    assert_eq!(runs.map(|run| bench.run_state(run)), [RunState::Stalled, RunState::Active]);
    bench.time_out(1);
    assert_eq!(bench.run_state(runs[1]), RunState::Stalled);
}

#[test]
fn the_time_of_a_delayed_run_begins_when_it_may_start() {
    let mut bench = Bench::new(vec![timed("one", vec![step("s", &[])])]);
    let run = run_of(&bench.ask(EnqueueRequest { delay_ms: Some(5000), ..request("one") }));
    bench.wait(5000 + TIMEOUT_MS - 1);
    assert!(bench.time_out(10).is_empty());
    let lease = bench.lease(1, 1)[0];
    bench.wait(1);
    bench.time_out(10);
    assert_eq!(bench.codes(run), [over(lease.attempt)]);
}

#[test]
fn a_lease_passes_over_a_run_past_its_time_and_takes_no_slot_for_it() {
    let mut bench = Bench::new(vec![timed("one", vec![step("s", &[])]), flow("free", vec![step("s", &[])])]);
    let late = bench.enqueue("one");
    bench.wait(TIMEOUT_MS);
    let run = bench.enqueue("free");
    let leases = bench.lease(1, 1);
    assert_eq!(leases.iter().map(|lease| lease.task.run).collect::<Vec<_>>(), [run]);
    assert_eq!((bench.codes(late), bench.run_state(late)), (vec![over(0)], RunState::Stalled));
}

#[test]
fn a_run_that_ended_or_was_cancelled_has_no_deadline() {
    let mut bench = Bench::new(vec![timed("one", vec![step("s", &[])])]);
    bench.enqueue("one");
    bench.run_all("1");
    let run = bench.enqueue("one");
    bench.cancel(&run.to_string());
    assert_eq!(bench.state.indexes.deadlines.first(0), None);
}

#[test]
fn a_wall_that_was_set_forward_ends_no_run() {
    let mut bench = Bench::new(vec![timed("one", vec![step("s", &[])])]);
    let run = bench.enqueue("one");
    // Its hour comes with the wall; its time does not pass with it.
    let delayed = run_of(&bench.ask(EnqueueRequest { delay_ms: Some(3_600_000), ..request("one") }));
    bench.wait(TIMEOUT_MS - 100);
    for _ in 0..2 {
        bench.state.clock_moved(3_600_000, 0);
        bench.wait(3_600_000);
    }
    assert!(bench.time_out(10).is_empty());
    let leases = bench.lease(1, 2);
    assert_eq!(leases.iter().map(|lease| lease.task.run).collect::<Vec<_>>(), [run, delayed]);
    bench.wait(99);
    assert!(bench.time_out(10).is_empty());
    bench.wait(1);
    bench.time_out(10);
    assert_eq!(bench.codes(run), [over(1)]);
    bench.cancel(&delayed.to_string());
    assert_eq!(bench.state.indexes.deadlines.first(0), None);
}

#[test]
fn a_wall_that_was_set_back_is_waited_for_by_the_time_of_a_delayed_run() {
    let mut bench = Bench::new(vec![timed("one", vec![step("s", &[])])]);
    let run = run_of(&bench.ask(EnqueueRequest { delay_ms: Some(500), ..request("one") }));
    bench.state.clock_moved(0, 60_000);
    bench.wait(60_000 + 500 + TIMEOUT_MS - 1);
    assert!(bench.time_out(10).is_empty());
    assert_eq!(bench.lease(1, 1).len(), 1);
    bench.wait(1);
    bench.time_out(10);
    assert_eq!(bench.run_state(run), RunState::Stalled);
}

#[test]
fn a_requeue_gives_a_run_its_time_again() {
    for delay_ms in [None, Some(500)] {
        let mut bench = Bench::new(vec![timed("one", vec![step("s", &[])])]);
        let run = run_of(&bench.ask(EnqueueRequest { delay_ms, ..request("one") }));
        bench.wait(TIMEOUT_MS + 10_000);
        bench.time_out(10);
        assert_eq!(bench.run_state(run), RunState::Stalled);
        let entry = bench.letter();
        bench.requeue(&entry, false);
        assert_same(&bench.state, &bench.replayed());
        bench.wait(TIMEOUT_MS - 1);
        assert!(bench.time_out(10).is_empty());
        let lease = bench.lease(1, 1)[0];
        bench.wait(1);
        bench.time_out(10);
        assert_eq!((bench.codes(run), bench.run_state(run)), (vec![over(1)], RunState::Stalled));
        bench.succeed(lease, "1");
        let entry = bench.letter();
        bench.requeue(&entry, false);
        bench.run_all("1");
        assert_eq!(bench.run_state(run), RunState::Succeeded);
        assert_same(&bench.state, &bench.replayed());
    }
}
