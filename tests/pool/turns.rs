//! Nobody waits behind another's backlog: profiles and tenants take turns.

use std::time::{Duration, Instant};

use tm_core::api::RunState;

use crate::{
    home::{Home, until},
    supervisor::Supervisor,
};

#[test]
fn forty_profiles_on_two_workers_are_all_served() {
    let home = Home::new();
    let runs: Vec<_> = (0..40)
        .map(|n| {
            home.write(&format!("folders/{n}/name"), n.to_string());
            let files = format!("files: [ {{ host: folders/{n}, guest: /given }} ]");
            let grants = format!("grants: {{ {files}, scratch: true, artifacts: true, clocks: true, random: true }}");
            let flow = format!("profile{n}");
            home.flow(&flow, "hostile", &[&grants]);
            home.batch(&format!("{flow}.yaml"), &vec![r#"{"do":"read","path":"/given/name"}"#.to_owned(); 2], &[])
        })
        .collect();
    let mut pool = Supervisor::start(&home, &["-n", "2"]);
    for (n, runs) in runs.iter().enumerate() {
        for run in runs {
            assert_eq!(pool.ended(run).state, RunState::Succeeded);
            assert_eq!(home.result(run)["output"]["ok"], n.to_string());
        }
    }
    assert!(pool.workers().len() <= 2);
    pool.stop();
}

/// What one task of these tenants takes.
const LENGTH: Duration = Duration::from_millis(400);
/// Beside two lengths: a worker of another tenant is taken away after 125 ms of waiting at the earliest, and its successor
/// is a new process that confines itself and loads the component, on a machine that may be ten times too busy. The backlog
/// takes far longer.
const SLACK: Duration = Duration::from_millis(125 + 10_000);

#[test]
fn a_tenants_single_task_does_not_wait_behind_a_hundred_thousand_of_another() {
    let home = Home::new();
    home.write("trace_config.toml", "[tenants.\"a\"]\n[tenants.\"b\"]\n");
    home.flow("sleep", "hostile", &[]);
    let input = format!(r#"{{"do":"sleep_ms","ms":{}}}"#, LENGTH.as_millis());
    let backlog = home.batch("sleep.yaml", &vec![input.clone(); 100_000], &["--tenant", "a"]);

    let mut pool = Supervisor::start(&home, &["-n", "2"]);
    pool.running(&backlog[0]);
    let single = home.enqueue("sleep.yaml", &input, &["--tenant", "b"]);
    let run = pool.ended(&single);
    assert_eq!(run.state, RunState::Succeeded);
    let waited = Duration::from_millis(run.tasks[0].attempts[0].started_at.since(run.enqueued_at));
    assert!(waited <= 2 * LENGTH + SLACK, "waited {waited:?}");
    let stats = pool.stats();
    assert!(stats.depth > 90_000, "the backlog was gone: {stats:?}");
    pool.signal(rustix::process::Signal::TERM);
    assert!(pool.wait().success());
}

#[test]
fn tenants_with_more_work_than_workers_finish_it_by_their_weights() {
    let home = Home::new();
    home.write("trace_config.toml", "[tenants.\"a\"]\nweight = 3\n[tenants.\"b\"]\n");
    home.flow("sleep", "hostile", &[]);
    for tenant in ["b", "a"] {
        home.batch("sleep.yaml", &vec![r#"{"do":"sleep_ms","ms":20}"#.to_owned(); 5_000], &["--tenant", tenant]);
    }
    let mut pool = Supervisor::start(&home, &["-n", "4", "--concurrency", "1"]);
    let mut finished = |more_than: usize| {
        until("tasks of both tenants", || {
            let [a, b] = pool.succeeded(["a", "b"]);
            (a.min(b) > 0 && a + b > more_than).then_some([a, b])
        })
    };
    // Not counted: what the first to be there did before the other one.
    let before = finished(0);
    let after = finished(before[0] + before[1] + 600);
    let [a, b] = [0, 1].map(|tenant| after[tenant] - before[tenant]);
    assert!(after.iter().sum::<usize>() < 5_000, "both had more to do all the time: {after:?}");
    assert!((2.2..3.9).contains(&(a as f64 / b as f64)), "{a} to {b}");
    assert_eq!(pool.workers().len(), 4);
    pool.signal(rustix::process::Signal::TERM);
    assert!(pool.wait().success());
}

#[test]
fn a_start_is_ready_at_once_although_nothing_of_its_flows_is_ready() {
    let home = Home::new();
    home.flow("quick", "compute", &[]);
    home.enqueue("quick.yaml", "{}", &["--delay", "1d"]);
    let begun = Instant::now();
    let mut pool = Supervisor::start(&home, &[]);
    // The patience with workers that do not come is 30 s.
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!(pool.workers().len(), 1);
    pool.stop();
}
