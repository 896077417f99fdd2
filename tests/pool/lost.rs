//! Workers that die lose no task.

use rustix::process::Signal;
use tm_core::api::RunState;

use crate::{
    home::Home,
    supervisor::{Supervisor, send},
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
