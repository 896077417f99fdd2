//! What the queue promises of order, time, keys and versions, with steps that really run.

use serde_json::json;
use tm_core::api::{RunState, TaskState};

use crate::{home::Home, supervisor::Supervisor};

const QUICK: &str = r#"{"do":"nothing"}"#;

#[test]
fn a_cancelled_run_ends_and_gives_its_place_away() {
    let home = Home::new();
    home.flow("sleep", "hostile", &["limits: { timeout_ms: 600000 }"]);
    let mut pool = Supervisor::start(&home, &["--concurrency", "1"]);
    let long = home.enqueue("sleep.yaml", r#"{"do":"sleep_ms","ms":500000}"#, &[]);
    pool.running(&long);
    let next = home.enqueue("sleep", QUICK, &[]);
    let ran = home.tm(&["queue", "cancel", &long]);
    assert_eq!(ran.code, Some(0), "{ran}");
    assert_eq!(pool.ended(&next).state, RunState::Succeeded);
    let cancelled = pool.ended(&long);
    assert_eq!(cancelled.state, RunState::Cancelled);
    assert_eq!(cancelled.tasks[0].state, TaskState::Cancelled);
    let ran = home.tm(&["queue", "result", &long]);
    assert_eq!((ran.code, ran.json()["status"].as_str()), (Some(1), Some("cancelled")), "{ran}");
    home.tm(&["queue", "cancel", &long]).refused(1, &[&format!("run {long} has ended already: cancelled")]);
    pool.stop();
}

#[test]
fn a_delayed_run_starts_not_before_its_time() {
    let home = Home::new();
    home.flow("quick", "compute", &[]);
    let mut pool = Supervisor::start(&home, &[]);
    let run = home.enqueue("quick.yaml", QUICK, &["--delay", "2s"]);
    assert_eq!(pool.show(&run).tasks[0].state, TaskState::Delayed);
    let ended = pool.ended(&run);
    let waited_ms = ended.tasks[0].attempts[0].started_at.since(ended.enqueued_at);
    assert!((2000..30_000).contains(&waited_ms), "{waited_ms}");
    pool.stop();
}

#[test]
fn larger_priorities_go_first_and_equal_ones_in_their_order() {
    let home = Home::new();
    // Long enough that two starts are not within one millisecond.
    home.flow("sleep", "hostile", &[]);
    let input = r#"{"do":"sleep_ms","ms":20}"#;
    let given = ["1", "5", "9", "5", "0"].map(|priority| home.enqueue("sleep.yaml", input, &["--priority", priority]));
    let mut pool = Supervisor::start(&home, &["-n", "1", "--concurrency", "1"]);
    let mut started: Vec<_> = given.iter().map(|run| pool.ended(run)).collect();
    started.sort_by_key(|run| run.tasks[0].attempts[0].started_at);
    let order: Vec<_> = started.iter().map(|run| run.run_id.to_string()).collect();
    assert_eq!(order, [2, 1, 3, 0, 4].map(|at: usize| given[at].clone()));
    pool.stop();
}

#[test]
fn a_duplicate_is_answered_with_the_stored_result() {
    let home = Home::new();
    home.flow("count", "compute", &[]);
    let input = r#"{"do":"progress_flood","count":5}"#;
    let mut pool = Supervisor::start(&home, &[]);
    let run = home.enqueue("count.yaml", input, &["--idempotency-key", "k"]);
    pool.ended(&run);
    let ran = home.tm(&["enqueue", "count", "-i", input, "--idempotency-key", "k"]);
    assert_eq!(ran.code, Some(0), "{ran}");
    assert_eq!(ran.stdout, "duplicate request (served from idempotency cache)\n{\"ok\":5}\n");
    home.tm(&["enqueue", "count", "-i", QUICK, "--idempotency-key", "k"]).refused(1, &[&run, "another input"]);
    pool.stop();

    // Across a restart, and by a command alone.
    let reply = home.tm(&["enqueue", "count", "--json", "-i", input, "--idempotency-key", "k"]).json();
    assert_eq!((&reply["id"], &reply["result"]), (&json!(run), &json!({ "ok": 5 })));
    let mut pool = Supervisor::start(&home, &[]);
    assert_eq!(pool.stats().totals.tasks_started, 1);
    pool.stop();
}

#[test]
fn a_run_in_flight_keeps_the_version_that_it_was_enqueued_with() {
    let home = Home::new();
    let version = |n: u32| {
        let input = format!("input: {{ do: progress_flood, count: {n} }}");
        home.flow("flow", "compute", &[&input]);
    };
    version(1);
    let old = home.enqueue("flow.yaml", "{}", &["--delay", "2s"]);
    version(2);
    let new = home.enqueue("flow.yaml", "{}", &[]);
    let pool = Supervisor::start(&home, &[]);
    assert_eq!(home.result(&new)["output"], json!({ "ok": 2 }));
    assert_eq!(home.result(&old)["output"], json!({ "ok": 1 }));
    assert_ne!(home.show(&old)["flow_digest"], home.show(&new)["flow_digest"]);
    pool.stop();
}

#[test]
fn a_list_of_thousands_comes_whole_with_and_without_a_supervisor() {
    let home = Home::new();
    home.flow("sleep", "hostile", &[]);
    let mut pool = Supervisor::start(&home, &["-n", "1", "--concurrency", "1"]);
    let first = home.enqueue("sleep.yaml", r#"{"do":"sleep_ms","ms":100}"#, &[]);
    let mut runs = pool.enqueue_all("sleep", r#"{"do":"sleep_ms","ms":100}"#, 3000);
    runs.insert(0, first);
    runs.reverse();
    let listed = |arguments: &[&str]| -> Vec<String> {
        let ran = home.tm(&[&["queue", "ls", "--state", "all"], arguments].concat());
        assert_eq!(ran.code, Some(0), "{ran}");
        ran.stdout.lines().map(str::to_owned).collect()
    };
    let all = |pool: &str| {
        let rows = listed(&["--limit", "0", "--json"]);
        let ids: Vec<String> = rows.iter().map(|row| row[11..37].to_owned()).collect();
        assert!(ids == runs, "{pool}: {} of {}", ids.len(), runs.len());
        let table = listed(&["--limit", "2500"]);
        assert!(table[0].starts_with("RUN ") && table.len() == 2501, "{pool}: {}", table.len());
        assert!(table[1..].iter().map(|row| &row[..26]).eq(&runs[..2500]), "{pool}");
    };
    all("served");
    pool.stop();
    all("unserved");
}
