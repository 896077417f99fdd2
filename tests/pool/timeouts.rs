//! Runs over their time end at it, whoever is busy.

use tm_core::api::{RunDetail, RunState, TaskState};

use crate::{home::Home, supervisor::Supervisor};

const TIMEOUT_MS: u64 = 3_000;
const LONG: &str = r#"{"do":"sleep_ms","ms":600000}"#;

/// A flow of one step `s`, `hostile`, with a time for its runs.
fn timed(home: &Home) {
    let step = "{ id: s, component: guests/hostile.wasm, limits: { timeout_ms: 600000 }, \
                grants: { scratch: true, artifacts: true, clocks: true, random: true } }";
    home.write("timed.yaml", format!("flow:\n  id: timed\n  run_timeout_ms: {TIMEOUT_MS}\n  steps: [ {step} ]\n"));
}

/// The code that the only task of a stalled run died of.
fn died_of(run: &RunDetail) -> Option<&str> {
    assert_eq!((run.state, run.tasks[0].state), (RunState::Stalled, TaskState::Dead), "{run:?}");
    run.tasks[0].waiting_for.as_deref()?.split(':').next()
}

#[test]
fn a_run_that_waits_behind_a_full_pool_ends_at_its_time() {
    let home = Home::new();
    home.flow("long", "hostile", &["limits: { timeout_ms: 600000 }"]);
    timed(&home);
    let mut pool = Supervisor::start(&home, &["-n", "1", "--concurrency", "1"]);
    let busy = home.enqueue("long.yaml", LONG, &[]);
    pool.running(&busy);
    let run = home.enqueue("timed.yaml", r#"{"do":"nothing"}"#, &[]);
    let ended = pool.ended(&run);
    assert_eq!(died_of(&ended), Some("RUN_TIMEOUT"));
    assert!(ended.tasks[0].attempts.is_empty(), "it never started");
    assert!(pool.worker_of(&busy).is_some(), "the pool is full all the while");
    let letter = home.tm(&["dlq", "ls"]).json();
    assert_eq!(letter["error"]["error_code"], "RUN_TIMEOUT");
    // dlq-<unix ms>-<suffix>
    let died_at: u64 = letter["entry_id"].as_str().unwrap().split('-').nth(1).unwrap().parse().unwrap();
    let after_ms = died_at - ended.enqueued_at.0;
    assert!((TIMEOUT_MS..TIMEOUT_MS + 20_000).contains(&after_ms), "{after_ms} ms");
    assert_eq!(home.tm(&["queue", "cancel", &busy]).code, Some(0));
    pool.stop();
}

#[test]
fn what_runs_of_a_run_over_its_time_is_stopped_and_its_place_is_free() {
    let home = Home::new();
    timed(&home);
    let mut pool = Supervisor::start(&home, &["-n", "1", "--concurrency", "1"]);
    home.flow("quick", "hostile", &[]);
    let first = home.enqueue("quick.yaml", r#"{"do":"nothing"}"#, &[]);
    assert_eq!(pool.ended(&first).state, RunState::Succeeded, "the component is compiled");
    let run = home.enqueue("timed.yaml", LONG, &[]);
    let (_, worker) = pool.running(&run);
    let ended = pool.ended(&run);
    assert_eq!(died_of(&ended), Some("RUN_TIMEOUT"));
    let attempt = &ended.tasks[0].attempts[0];
    assert_eq!((attempt.outcome.as_str(), attempt.code.as_deref()), ("dead", Some("RUN_TIMEOUT")));
    let ran_ms = attempt.ended_at.unwrap().since(ended.enqueued_at);
    assert!((TIMEOUT_MS..TIMEOUT_MS + 20_000).contains(&ran_ms), "{ran_ms} ms");
    // The same worker, which has one place, does the next.
    let next = home.enqueue("quick", r#"{"do":"nothing"}"#, &[]);
    let next = pool.ended(&next);
    assert_eq!((next.state, next.tasks[0].attempts[0].worker), (RunState::Succeeded, worker.worker));
    pool.stop();
}
