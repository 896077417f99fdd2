//! A supervisor without flows: ready, one per queue, answers, drains.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Stdio},
};

use crate::{
    flows::faulty_flow,
    home::{Home, snapshot},
};

/// A supervisor that is ready; killed if a test leaves it behind.
struct Running<'a> {
    home: &'a Home,
    child: Child,
    ready: String,
}

impl<'a> Running<'a> {
    fn start(home: &'a Home, arguments: &[&str]) -> Self {
        let mut command = home.command(&[&["workers", "start", "--allow-weaker-confinement"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
        if ready.is_empty() {
            child.stderr.take().unwrap().read_to_string(&mut ready).unwrap();
        }
        assert!(ready.starts_with("worker supervisor running"), "{ready}");
        Self { home, child, ready }
    }

    fn stop(mut self) {
        let ran = self.home.tm(&["workers", "stop"]);
        assert_eq!(ran.code, Some(0), "{ran}");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_says_when_it_is_ready_and_how_it_ended() {
    let home = Home::new();
    let mut running = Running::start(&home, &[]);
    snapshot!(running.ready, @"worker supervisor running (pid N); ctrl-c or 'tm workers stop' to drain");
    snapshot!(home.tm(&["queue", "stats"]), @"
    stdout:
    backend=file depth=0 ready=0 inflight=0 lag_seconds=0.000
    exit: 0
    ");
    snapshot!(home.tm(&["workers", "stop"]), @"
    stdout:
    sent SIGTERM to worker supervisor (pid N)
    worker supervisor (pid N) drained and ended in N s
    exit: 0
    ");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    assert!(!home.path("tm-workers.pid").exists());
    snapshot!(home.tm(&["workers", "stop"]), @"
    stderr:
    error: no worker supervisor is recorded in tm-workers.pid
    hint: name the file that 'tm workers start' wrote: --pid-file FILE
    exit: 4
    ");
}

#[test]
fn it_says_all_that_is_wrong_with_a_flow_of_its_folder() {
    let home = Home::new();
    faulty_flow(&home);
    std::fs::create_dir(home.path("flows")).unwrap();
    for file in ["faulty.yaml", "broken.wasm"] {
        std::fs::rename(home.path(file), home.path("flows").join(file)).unwrap();
    }
    let mut running = Running::start(&home, &[]);
    let mut errors = running.child.stderr.take().unwrap();
    running.stop();
    let mut said = String::new();
    errors.read_to_string(&mut said).unwrap();
    let checked = home.tm(&["check", "flows/faulty.yaml"]);
    let faults = checked.stderr.lines().filter_map(|line| line.strip_prefix("error: "));
    let faults: Vec<_> =
        faults.map(|fault| fault.replace("HOME", home.path("").to_str().unwrap().trim_end_matches('/'))).collect();
    assert_eq!(faults.len(), 4, "{checked}");
    assert!(faults.iter().all(|fault| said.contains(fault.as_str())), "{said}\n{checked}");
}

#[test]
fn it_says_what_a_power_failure_may_take() {
    for (fsync, said) in [("always", false), ("interval", true), ("never", true)] {
        let home = Home::new();
        home.write("trace_config.toml", format!("[queue]\nfsync = \"{fsync}\"\n"));
        let mut running = Running::start(&home, &[]);
        let mut errors = running.child.stderr.take().unwrap();
        running.stop();
        let mut text = String::new();
        errors.read_to_string(&mut text).unwrap();
        let warning = format!("warning: queue.fsync is \"{fsync}\": a power failure may take");
        assert_eq!(text.contains(&warning), said, "{text}");
    }
}

#[test]
fn a_second_supervisor_is_refused_by_name() {
    let home = Home::new();
    let running = Running::start(&home, &[]);
    let ran = home.tm(&["workers", "start", "--pid-file", "other.pid"]);
    assert_eq!(ran.code, Some(4), "{ran}");
    let pid = running.child.id().to_string();
    assert!(ran.stderr.contains(&pid) && ran.stderr.contains("hint: use it, or stop it: tm workers stop"), "{ran}");
    assert!(!home.path("other.pid").exists());
    // One of its folders is enough, and those that are another's are not made.
    let ran = home.tm(&["workers", "start", "--pid-file", "other.pid", "--queue-dir", "other"]);
    assert_eq!(ran.code, Some(4), "{ran}");
    assert!(ran.stderr.contains("data/idempotency") && !home.path("other").exists(), "{ran}");
    running.stop();
}

/// Whoever removed the lock's file: the socket that is answered holds the queue.
#[test]
fn without_the_file_of_its_lock_a_supervisor_still_keeps_its_queue() {
    let home = Home::new();
    let running = Running::start(&home, &[]);
    for folder in ["queue", "idempotency", "dlq", "store"] {
        std::fs::remove_file(home.path(format!("data/{folder}/tm.lock"))).unwrap();
    }
    for command in [&["workers", "start", "--pid-file", "other.pid"][..], &["queue", "repair"]] {
        let ran = home.tm(command);
        let answers = ran.stderr.contains("another supervisor answers at data/queue/tm.sock");
        assert!(ran.code == Some(4) && answers, "{command:?}: {ran}");
    }
    assert!(home.tm(&["queue", "stats"]).stdout.starts_with("backend=file"), "it answers");
    running.stop();
}

#[test]
fn a_flow_that_nobody_knows_is_refused() {
    let home = Home::new();
    let running = Running::start(&home, &[]);
    snapshot!(home.tm(&["enqueue", "nobody"]), @"
    stderr:
    error: flow 'nobody' is not registered for tenant 'default'
    hint: give the path of a flow file, or start the pool with --runtime FOLDER to load its flows
    exit: 3
    ");
    snapshot!(home.tm(&["queue", "show", "01"]), @"
    stderr:
    error: no run or task '01'
    hint: results are kept for result_ttl; see: tm queue ls --state all
    exit: 1
    ");
    snapshot!(home.tm(&["dlq", "requeue", "dlq-*"]), @"
    stderr:
    error: no DLQ entries match 'dlq-*'
    exit: 1
    ");
    snapshot!(home.tm(&["queue", "forget-key", "nobody", "k"]), @"
    stderr:
    error: flow 'nobody' holds no key 'k'
    exit: 1
    ");
    running.stop();
}

#[test]
fn a_killed_supervisor_leaves_a_stale_socket_and_pid_file_that_stop_nobody() {
    let home = Home::new();
    let mut running = Running::start(&home, &[]);
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    assert!(home.path("data/queue/tm.sock").exists() && home.path("tm-workers.pid").exists());
    assert_eq!(home.tm(&["workers", "stop"]).code, Some(4));
    assert_eq!(home.tm(&["queue", "stats"]).code, Some(0));
    drop(running);
    Running::start(&home, &[]).stop();
}

#[test]
fn a_memory_queue_answers_as_one() {
    let home = Home::new();
    let running = Running::start(&home, &["--queue", "memory"]);
    snapshot!(home.tm(&["queue", "stats", "--queue", "memory"]), @"
    stdout:
    backend=memory depth=0 ready=0 inflight=0 lag_seconds=0.000
    exit: 0
    ");
    assert!(home.tm(&["queue", "stats"]).stdout.starts_with("backend=memory"), "whoever asks");
    running.stop();
    // What it leaves, its folders with their locks, is no queue on disk.
    let left = home.files();
    for command in ["queue stats", "queue ls", "queue verify", "queue repair", "dlq requeue x", "queue forget-key f k"]
    {
        let ran = home.tm(&command.split(' ').collect::<Vec<_>>());
        assert!(ran.code == Some(4) && ran.stderr.starts_with("error: no queue at data/queue\n"), "{command}: {ran}");
    }
    assert_eq!(home.files(), left, "nothing is created");
}

#[test]
fn a_runtime_that_is_named_must_exist() {
    snapshot!(Home::new().tm(&["workers", "start", "--runtime", "nowhere"]), @"
    stderr:
    error: no folder of flows at nowhere
    hint: name the folder that holds the flows: --runtime DIR
    exit: 3
    ");
}
