//! Workers that die or fall silent lose no task.

use rustix::process::Signal;
use tm_core::api::RunState;

use crate::{
    home::{Home, until},
    supervisor::{Supervisor, exists, send},
};

const STEP: &str = r#"{"do":"sleep_ms","ms":1500}"#;

#[test]
fn the_step_of_a_killed_worker_is_queued_again_at_once() {
    let home = Home::new();
    // A backoff would outlast the test.
    home.flow("sleep", "hostile", &["retries: { base_ms: 3600000, max_delay_ms: 3600000 }"]);
    let mut pool = Supervisor::start(&home, &[]);
    let run = home.enqueue("sleep.yaml", STEP, &[]);
    let (attempt, worker) = pool.running(&run);
    send(worker.pid, Signal::KILL);
    let ended = pool.ended(&run);
    assert_eq!(ended.state, RunState::Succeeded);
    let last = ended.tasks[0].attempts.last().unwrap();
    assert_eq!((attempt, last.attempt, last.outcome.as_str()), (1, 2, "succeeded"));
    assert_ne!(last.worker, worker.worker);
    assert_eq!(pool.stats().totals.redelivered, 1);
    pool.stop();
}

#[test]
fn a_silent_worker_is_killed_and_its_step_runs_elsewhere() {
    let home = Home::new();
    home.write("trace_config.toml", "[workers]\nheartbeat = \"200ms\"\nheartbeat_timeout = \"1500ms\"\n");
    home.flow("sleep", "hostile", &["retries: { base_ms: 3600000, max_delay_ms: 3600000 }"]);
    let mut pool = Supervisor::start(&home, &["-n", "2"]);
    let run = home.enqueue("sleep.yaml", STEP, &[]);
    let (_, silent) = pool.running(&run);
    send(silent.pid, Signal::STOP);
    let (attempt, other) = until("the second attempt", || {
        let worker = pool.worker_of(&run)?;
        Some((2, worker)).filter(|(_, worker)| worker.worker != silent.worker)
    });
    assert!(!exists(silent.pid), "the lease ended before the worker was reaped");
    let rows = pool.show(&run).tasks.remove(0).attempts;
    assert_eq!(rows[0].outcome, "requeued:stale");
    let held_ms = rows[0].ended_at.unwrap().since(rows[0].started_at);
    assert!((1500..15_000).contains(&held_ms), "held for {held_ms} ms");
    let ended = pool.ended(&run);
    assert_eq!(ended.state, RunState::Succeeded);
    let last = ended.tasks[0].attempts.last().unwrap();
    assert_eq!((last.attempt, last.worker), (attempt, other.worker));
    pool.stop();
}
