//! A poison task takes nobody along.

use std::collections::BTreeSet;

use rustix::process::Signal;
use tm_core::api::{RunState, TaskState};

use crate::{
    home::{Home, until},
    supervisor::{Supervisor, send},
};

const GOOD: &str = r#"{"do":"sleep_ms","ms":80}"#;

#[test]
fn one_poison_task_among_63_good_ones_dies_alone() {
    let home = Home::new();
    home.flow("good", "hostile", &[]);
    home.flow("poison", "hostile", &["limits: { timeout_ms: 60000 }", "retries: { max_attempts: 3 }"]);
    let mut pool = Supervisor::start(&home, &["-n", "1", "--concurrency", "64"]);
    let poison = home.enqueue("poison.yaml", r#"{"do":"sleep_ms","ms":50000}"#, &[]);
    let first = home.enqueue("good.yaml", GOOD, &[]);
    pool.running(&poison);
    pool.ended(&first);
    // Over one connection: all of them run in the poison's worker before the first one ends.
    let mut good = pool.enqueue_all("good", GOOD, 62);
    good.push(first);

    let mut killed = BTreeSet::new();
    let dead = until("the poison task's end", || {
        let run = pool.show(&poison);
        if run.state != RunState::Active {
            return Some(run);
        }
        // Each worker that runs it dies, once.
        if let Some(worker) = pool.worker_of(&poison).filter(|worker| killed.insert(worker.pid)) {
            send(worker.pid, Signal::KILL);
        }
        None
    });
    assert_eq!((dead.state, dead.tasks[0].state), (RunState::Stalled, TaskState::Dead));
    assert!(dead.tasks[0].attempts.len() == killed.len() && killed.len() >= 3, "{:?}", dead.tasks[0]);

    let attempts: Vec<_> = good
        .iter()
        .map(|run| {
            let run = pool.ended(run);
            assert_eq!(run.state, RunState::Succeeded, "{:?}", run.tasks);
            run.tasks[0].attempts.last().unwrap().attempt
        })
        .collect();
    assert!(attempts.iter().any(|&attempts| attempts > 1), "no good task was in the poison's company: {attempts:?}");
    assert_eq!(pool.stats().totals.tasks_dead, 1);

    let letter = home.tm(&["dlq", "ls"]).json();
    assert_eq!(letter["run_id"], poison.as_str());
    assert_eq!(letter["error"]["error_code"], "RETRIES_EXHAUSTED");
    assert_eq!(letter["error"]["last_code"], "WORKER_LOST");
    pool.stop();
}

#[test]
fn with_isolation_per_task_no_two_tasks_share_a_process() {
    let home = Home::new();
    home.write("trace_config.toml", "[workers]\nisolation = \"task\"\n");
    home.flow("good", "hostile", &[]);
    let mut pool = Supervisor::start(&home, &["-n", "2"]);
    let mut runs = vec![home.enqueue("good.yaml", GOOD, &[])];
    runs.extend(pool.enqueue_all("good", GOOD, 5));
    let mut workers = BTreeSet::new();
    for run in &runs {
        let run = pool.ended(run);
        assert_eq!(run.state, RunState::Succeeded, "{:?}", run.tasks);
        assert!(workers.insert(run.tasks[0].attempts[0].worker), "two tasks ran in one process: {workers:?}");
    }
    pool.stop();
}
