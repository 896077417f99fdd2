//! What a queue that cannot take work says.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use tm_core::api::RunState;

use crate::{
    home::{Home, NOBODY},
    supervisor::Supervisor,
};

#[test]
fn a_full_queue_refuses_with_exit_4_and_takes_again_once_there_is_room() {
    let home = Home::new();
    home.write("trace_config.toml", "[queue]\nhard_depth = 3\n");
    home.flow("quick", "compute", &[]);
    let input = r#"{"do":"nothing"}"#;
    let runs: Vec<_> = (0..3).map(|_| home.enqueue("quick.yaml", input, &[])).collect();
    home.tm(&["enqueue", "quick", "-i", input]).refused(4, &["QUEUE_FULL", "hint: "]);
    home.write("two.jsonl", format!("{{\"input\":{input}}}\n").repeat(2));
    let batch = home.tm(&["enqueue", "quick", "--batch", "two.jsonl"]);
    assert_eq!((batch.code, batch.stdout.matches("refused").count()), (Some(1), 2), "{batch}");
    let mut pool = Supervisor::start(&home, &[]);
    for run in &runs {
        assert_eq!(pool.ended(run).state, RunState::Succeeded);
    }
    let ran = home.tm(&["enqueue", "quick", "-i", input, "--wait"]);
    assert_eq!(ran.code, Some(0), "{ran}");
    pool.stop();
}

#[test]
fn a_supervisor_whose_workers_can_never_start_is_refused() {
    let home = Home::new();
    home.flow("small", "compute", &["limits: { memory_mb: 16 }"]);
    home.flow("large", "compute", &["limits: { memory_mb: 200 }"]);
    let run = home.enqueue("large.yaml", r#"{"do":"nothing"}"#, &[]);
    let tenants = "[tenants.default]\n[tenants.other]\n";
    home.write("trace_config.toml", format!("{tenants}[workers]\nnum = 2\nmemory_max = \"300MiB\"\n"));
    let needs = "leaves 150 MiB for each worker with workers.num = 2; the smallest worker needs 417 MiB";
    home.tm(&["workers", "start"]).refused(3, &["workers.memory_max (300 MiB)", needs, "hint: "]);
    // One profile that fits is enough.
    home.enqueue("small.yaml", r#"{"do":"nothing"}"#, &["--tenant", "other"]);
    Supervisor::start(&home, &[]).stop();
    home.write("trace_config.toml", format!("{tenants}[workers]\nmemory_max = \"1GiB\"\n"));
    let mut pool = Supervisor::start(&home, &[]);
    assert_eq!(pool.ended(&run).state, RunState::Succeeded);
    pool.stop();
}

#[test]
fn a_queue_that_cannot_be_written_is_named() {
    let home = Home::new();
    home.flow("quick", "compute", &[]);
    home.enqueue("quick.yaml", "{}", &[]);
    give(&home.path(""), 0o755);
    give(&home.path("data/queue"), 0o500);
    queue_files(&home, 0o400);
    home.tm_unprivileged(&["enqueue", "quick"])
        .refused(1, &["data/queue cannot be written", "hint: make data/queue writable"]);
    home.tm_unprivileged(&["workers", "start"])
        .refused(1, &["data/queue cannot be written", "hint: make data/queue writable"]);
    let stats = home.tm_unprivileged(&["queue", "stats"]);
    assert_eq!(stats.code, Some(0), "reading needs no right to write: {stats}");
    give(&home.path("data/queue"), 0o700);
    queue_files(&home, 0o600);
    assert_eq!(home.tm_unprivileged(&["enqueue", "quick"]).code, Some(0));
}

fn queue_files(home: &Home, mode: u32) {
    for entry in fs::read_dir(home.path("data/queue")).unwrap() {
        fs::set_permissions(entry.unwrap().path(), Permissions::from_mode(mode)).unwrap();
    }
}

/// Gives all below a folder to the unprivileged user, and the folder these permissions.
fn give(folder: &Path, mode: u32) {
    if rustix::process::getuid().is_root() {
        own(folder);
    }
    fs::set_permissions(folder, Permissions::from_mode(mode)).unwrap();
}

fn own(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| own(&entry.unwrap().path()));
    }
}

#[test]
fn folders_of_another_supervisor_are_refused_by_its_pid() {
    let home = Home::new();
    let pool = Supervisor::start(&home, &[]);
    let pid = pool.pid().to_string();
    let start = ["workers", "start", "--pid-file", "other.pid"];
    home.tm(&start).refused(4, &["data/queue", &pid]);
    // A queue of its own does not help when it would write another's dead letters.
    let elsewhere = ["--queue-dir", "other/queue", "--idempotency-dir", "other/keys", "--store-dir", "other/store"];
    home.tm(&[&start[..], &elsewhere[..]].concat()).refused(4, &["data/dlq", &pid]);
    assert!(!home.path("other.pid").exists());
    pool.stop();
}

#[test]
fn a_stale_socket_stops_nobody_but_those_who_would_wait() {
    let home = Home::new();
    home.flow("quick", "compute", &[]);
    let pool = Supervisor::start(&home, &[]);
    home.enqueue("quick.yaml", r#"{"do":"nothing"}"#, &["--delay", "1h"]);
    pool.signal(rustix::process::Signal::KILL);
    assert!(!pool.wait().success());
    assert!(home.path("data/queue/tm.sock").exists());
    home.tm(&["enqueue", "quick", "--wait"]).refused(4, &["data/queue", "hint: start one: tm workers start"]);
    let run = home.enqueue("quick", r#"{"do":"nothing"}"#, &[]);
    let mut pool = Supervisor::start(&home, &[]);
    assert_eq!(pool.ended(&run).state, RunState::Succeeded);
    pool.stop();
}

#[test]
fn a_bad_line_of_a_batch_is_named_once_and_stops_no_other() {
    let home = Home::new();
    home.flow("quick", "compute", &[]);
    home.enqueue("quick.yaml", "{}", &["--delay", "1d"]);
    home.write("some.jsonl", "{\"input\":{}}\n{\"input\":{},\"nope\":1}\n{\"input\":{}}\n");
    let ran = home.tm(&["enqueue", "quick", "--delay", "1d", "--batch", "some.jsonl"]);
    assert_eq!((ran.code, ran.stdout.matches("\"enqueued\"").count()), (Some(1), 2), "{ran}");
    assert!(ran.stdout.contains("line 2: column 18: unknown field `nope`"), "{ran}");
    assert!(!ran.stdout.contains("line 1"), "{ran}");
}

#[test]
fn a_step_that_a_run_does_not_have_is_not_shown_as_the_run() {
    let home = Home::new();
    home.flow("quick", "compute", &[]);
    let run = home.enqueue("quick.yaml", "{}", &["--delay", "1d"]);
    home.tm(&["queue", "show", &format!("{run}.nope")]).refused(1, &[&run, "has no step 'nope'", "hint: "]);
    assert_eq!(home.tm(&["queue", "show", &format!("{run}.s")]).code, Some(0));
}

#[test]
fn a_first_enqueue_that_is_refused_leaves_nothing_behind() {
    let home = Home::new();
    home.flow("echo", "echo", &[]).write("guests/bad.wasm", b"\0asm\x0d\0\x01\0bad").flow("bad", "bad", &[]);
    home.write("lines.jsonl", "{\"input\":{}}\n");
    let large = format!(r#"{{"x":"{}"}}"#, "x".repeat(100_000));
    for (arguments, words) in [
        (&["enqueue", "bad.yaml"][..], "bad.wasm"),
        (&["enqueue", "bad.yaml", "--batch", "lines.jsonl"], "bad.wasm"),
        (&["enqueue", "echo.yaml", "--headers", &large], "headers has 100008 bytes"),
        (&["enqueue", "echo.yaml", "--tenant", "other"], "there is only the tenant 'default'"),
        (&["run", "--detached", "bad.yaml"], "bad.wasm"),
    ] {
        let ran = home.tm(arguments);
        assert!(matches!(ran.code, Some(2 | 3)) && ran.stderr.contains(words), "{arguments:?}: {ran}");
        assert!(!home.path("data").exists(), "{arguments:?}");
    }
    home.enqueue("echo.yaml", "{}", &[]);
}

#[test]
fn a_flow_whose_grant_was_revoked_is_refused_as_if_it_were_new() {
    let home = Home::new();
    let allow = |clocks: bool| format!("[tenants.default.allow]\nclocks = {clocks}\n");
    let input = r#"{"do":"nothing"}"#;
    home.flow("timed", "hostile", &[]).write("trace_config.toml", allow(true));
    home.enqueue("timed.yaml", input, &["--idempotency-key", "k"]);
    // By the files, with what the configuration says now.
    home.write("trace_config.toml", allow(false));
    home.tm(&["enqueue", "timed", "-i", input]).refused(3, &["CAPABILITY_DENIED", "step 's' asks clocks", "hint: "]);
    home.write("trace_config.toml", allow(true));
    let pool = Supervisor::start(&home, &[]);
    home.enqueue("timed", input, &[]);
    home.write("trace_config.toml", allow(false));
    home.tm(&["enqueue", "timed", "-i", input]).refused(3, &["CAPABILITY_DENIED", "step 's' asks clocks", "hint: "]);
    home.tm(&["enqueue", "timed.yaml", "-i", input]).refused(3, &["CAPABILITY_DENIED", "step 's' asks clocks"]);
    // A new flow is held against what is allowed now, too, and so is one once more is allowed.
    home.flow("other", "hostile", &["max_parallel: 2", "for_each: input.items"]);
    home.tm(&["enqueue", "other.yaml", "-i", input]).refused(3, &["CAPABILITY_DENIED", "step 's' asks clocks"]);
    home.write("trace_config.toml", allow(true));
    home.enqueue("timed", input, &[]);
    home.enqueue("other.yaml", r#"{"items":[]}"#, &[]);
    pool.stop();
}

#[test]
fn a_flow_that_fits_no_worker_is_refused_while_a_supervisor_runs_and_warned_of_before() {
    let home = Home::new();
    home.flow("small", "compute", &["limits: { memory_mb: 16 }"]);
    home.flow("large", "compute", &["limits: { memory_mb: 200 }"]);
    home.write("trace_config.toml", "[workers]\nnum = 2\nmemory_max = \"300MiB\"\n");
    let needs = "flow 'large': step 's' needs a worker of 417 MiB: workers.memory_max (300 MiB) leaves 150 MiB for each with workers.num = 2";
    let mut pool = Supervisor::start(&home, &[]);
    home.tm(&["enqueue", "large.yaml", "-i", "{}"]).refused(3, &[needs, "hint: "]);
    // The flows that share its workers go on.
    let run = home.enqueue("small.yaml", r#"{"do":"nothing"}"#, &[]);
    assert_eq!(pool.ended(&run).state, RunState::Succeeded);
    pool.stop();
    home.tm(&["run", "large.yaml", "-i", "{}"]).refused(3, &["needs a worker of 417 MiB"]);
    // A supervisor may be started with other flags.
    let ran = home.tm(&["enqueue", "large.yaml", "-i", "{}"]);
    assert!(ran.code == Some(0) && ran.stderr.contains(&format!("warning: {needs}")), "{ran}");
}
