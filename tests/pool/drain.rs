//! What a signal does to running steps.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tm_core::api::RunState;

use crate::{
    home::{Home, until},
    supervisor::{Supervisor, exists},
};

fn sleep(ms: u64) -> String {
    format!(r#"{{"do":"sleep_ms","ms":{ms}}}"#)
}

#[test]
fn a_drain_lets_short_steps_finish_and_puts_long_ones_back() {
    let home = Home::new();
    // A failure would be the last one.
    home.flow("once", "hostile", &["retries: { max_attempts: 1 }"]);
    let mut pool = Supervisor::start(&home, &["--drain-grace", "2"]);
    let long = home.enqueue("once.yaml", &sleep(6000), &[]);
    pool.running(&long);
    let short = home.enqueue("once", &sleep(1000), &[]);
    pool.running(&short);
    let workers: Vec<_> = pool.workers().iter().map(|row| row.pid).collect();
    assert!(!workers.is_empty() && workers.iter().all(|&pid| exists(pid)));
    let supervisor = pool.pid();
    pool.signal(Signal::TERM);
    assert!(pool.wait().success());
    assert!(!exists(supervisor) && !workers.iter().any(|&pid| exists(pid)));

    let (finished, stopped) = (home.show(&short), home.show(&long));
    assert_eq!(finished["state"], "succeeded", "{finished}");
    assert_eq!(finished["tasks"][0]["attempts"][0]["attempt"], 1, "{finished}");
    assert_queued_again(&stopped);

    let mut pool = Supervisor::start(&home, &[]);
    let ended = pool.ended(&long);
    assert_eq!(ended.state, RunState::Succeeded);
    assert_eq!(ended.tasks[0].attempts.last().unwrap().attempt, 2);
    pool.stop();
}

#[test]
fn a_second_signal_stops_at_once() {
    let home = Home::new();
    home.flow("once", "hostile", &["limits: { timeout_ms: 600000 }", "retries: { max_attempts: 1 }"]);
    let mut pool = Supervisor::start(&home, &["--drain-grace", "600"]);
    let long = home.enqueue("once.yaml", &sleep(500_000), &[]);
    let (_, worker) = pool.running(&long);
    pool.signal(Signal::TERM);
    pool.says("draining");
    assert_eq!(pool.worker_of(&long).map(|row| row.pid), Some(worker.pid), "the first signal waits");
    let begun = Instant::now();
    pool.signal(Signal::TERM);
    assert!(pool.wait().success());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    until("the worker's end", || (!exists(worker.pid)).then_some(()));
    let stopped = home.show(&long);
    assert_queued_again(&stopped);
}

/// Its only step was stopped once and waits to be run again.
fn assert_queued_again(run: &Value) {
    assert_eq!((&run["state"], &run["tasks"][0]["state"]), (&json!("active"), &json!("ready")), "{run}");
    assert_eq!(run["tasks"][0]["attempts"][0]["outcome"], "aborted:shutdown", "{run}");
}
