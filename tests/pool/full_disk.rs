//! A disk without room: nothing more is leased, those who ask are told, and work goes on once there is room.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::Value;
use tm_core::api::{RunState, TaskState};
use tm_supervisor::store::disk::Roots;

use crate::{
    history::History,
    home::{Home, until},
    mounts::{Disk, on_a_disk_of_its_own},
    supervisor::{Supervisor, send, started},
};

const NOTE: &str = "nothing is leased: the queue's disk has no room for the end of another task";
const RUNS: usize = 80;
const DISK_BYTES: u64 = 48 << 20;
const NOTHING: &str = r#"{"do":"nothing"}"#;

#[test]
fn a_full_disk_loses_nothing_and_takes_work_again_once_there_is_room() {
    let name = "full_disk::a_full_disk_loses_nothing_and_takes_work_again_once_there_is_room";
    on_a_disk_of_its_own(name, DISK_BYTES, fill_and_make_room);
}

#[test]
fn a_disk_that_is_full_from_the_beginning_is_told() {
    let name = "full_disk::a_disk_that_is_full_from_the_beginning_is_told";
    on_a_disk_of_its_own(name, 1 << 20, |disk| {
        let home = Home::new();
        disk.hold(&home);
        home.flow("echo", "echo", &[]);
        disk.fill();
        for command in [&["enqueue", "echo.yaml"][..], &["workers", "start"]] {
            home.tm(command).refused(4, &["no room for ", "data/", "hint: free space on that disk"]);
        }
        // Folders that an earlier, luckier command made.
        disk.make_room();
        for (_, folder) in Roots::below(&home.path("data")).named() {
            fs::create_dir_all(folder).unwrap();
        }
        disk.fill();
        for command in [&["enqueue", "echo.yaml"][..], &["workers", "start"]] {
            home.tm(command).refused(4, &["no room for ", "data/queue", "hint: free space on that disk"]);
        }
    });
}

fn fill_and_make_room(disk: &Disk) {
    let home = Home::new();
    disk.hold(&home);
    home.write("trace_config.toml", "[workers]\nheartbeat_timeout = \"30s\"\n");
    home.flow("step", "compute", &["retries: { max_attempts: 3, base_ms: 20, jitter_ms: 0 }"]);
    home.flow("large", "compute", &["retries: { max_attempts: 100, base_ms: 500, factor: 1.0, jitter_ms: 0 }"]);
    home.flow("echo", "echo", &[]);
    let start = ["-n", "1", "--concurrency", "8"];
    let mut pool = Supervisor::start(&home, &start);
    for flow in ["step", "large", "echo"] {
        let ran = home.tm(&["enqueue", &format!("{flow}.yaml"), "-i", NOTHING, "--wait"]);
        assert_eq!(ran.code, Some(0), "{ran}");
    }

    // Handed to a worker that stands still: what they bring comes when the disk is full.
    let worker = pool.workers()[0].pid;
    send(worker, Signal::STOP);
    let good = home.enqueue("step", NOTHING, &[]);
    let fatal = home.enqueue("step", r#"{"do":"fail","class":"fatal","bytes":4000}"#, &[]);
    let failing = home.enqueue("step", r#"{"do":"fail","class":"retryable","bytes":4000}"#, &[]);
    let large = home.enqueue("large", r#"{"do":"output","bytes":200000}"#, &[]);
    until("four leases", || (pool.stats().inflight == 4).then_some(()));
    disk.fill();
    let mut accepted = enqueue_until_refused(&home);
    assert!(disk.is_full());

    send(worker, Signal::CONT);
    assert_eq!(pool.ended(&good).state, RunState::Succeeded);
    assert_eq!(pool.ended(&fatal).state, RunState::Stalled);
    let failed = pool.ended(&failing);
    assert_eq!((failed.state, failed.tasks[0].attempts.len()), (RunState::Stalled, 3));
    until("an output without room", || {
        let mut codes = pool.show(&large).tasks.remove(0).attempts.into_iter().filter_map(|attempt| attempt.code);
        codes.next_back().filter(|code| code == "DISK_FULL")
    });
    assert!(disk.is_full(), "something made room");

    pool.signal(Signal::KILL);
    assert!(!pool.wait().success());
    let mut pool = Supervisor::start(&home, &start);
    assert_eq!(home.tm(&["queue", "verify"]).code, Some(0));
    // What was reserved for the ends of attempts is free for others by now.
    let worker = pool.workers()[0].pid;
    send(worker, Signal::STOP);
    accepted.extend(enqueue_until_refused(&home));
    send(worker, Signal::CONT);
    assert!(disk.is_full(), "the next supervisor made room");

    disk.make_room();
    let last =
        until("an enqueue", || Some(home.tm(&["enqueue", "step", "-i", NOTHING])).filter(|ran| ran.code == Some(0)));
    until("the queue runs empty", || (pool.stats().depth == 0).then_some(()));
    assert_eq!(pool.ended(&large).state, RunState::Succeeded);
    let letters = || home.tm(&["dlq", "ls"]).stdout.lines().count();
    until("the files of the dead letters", || (letters() == 2).then_some(()));
    pool.stop();

    let verified = home.tm(&["queue", "verify"]);
    assert_eq!(verified.code, Some(0), "{verified}");
    let history = History::read_after(&Roots::below(&home.path("data")), &History::default());
    history.assert_done();
    let ends: BTreeMap<_, _> = history.runs.iter().map(|(run, end)| (run.to_string(), *end)).collect();
    for run in accepted.iter().chain([&good, &large]) {
        assert_eq!(ends.get(run), Some(&Some(RunState::Succeeded)), "{run} was acknowledged");
    }
    // Those before the disk was full, those that were accepted, two dead letters, and the last one.
    assert_eq!(ends.len(), 3 + 4 + accepted.len() + 1, "{last}");

    without_supervisor(&home, disk);
}

/// Enqueues large and then small inputs until nothing more is taken; returns the runs that were acknowledged.
fn enqueue_until_refused(home: &Home) -> Vec<String> {
    let lines = |bytes, count| format!("{{\"input\":{{\"text\":\"{}\"}}}}\n", "x".repeat(bytes)).repeat(count);
    home.write("many.jsonl", lines(40_000, 40) + &lines(400, 400));
    let batch = home.tm(&["enqueue", "echo", "--batch", "many.jsonl"]);
    assert_eq!(batch.code, Some(1), "{batch}");
    let id = |reply: &Value| reply["id"].as_str().unwrap().to_owned();
    let replies = batch.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (accepted, refused): (Vec<_>, Vec<_>) = replies.partition(|reply| reply["status"] == "enqueued");
    assert!(!accepted.is_empty() && !refused.is_empty(), "accepted {}, refused {}", accepted.len(), refused.len());
    let mut accepted: Vec<_> = accepted.iter().map(id).collect();
    loop {
        let ran = home.tm(&["enqueue", "echo", "--json"]);
        if ran.code != Some(0) {
            let hint = "hint: free space on the disk of the queue directory";
            ran.refused(4, &["QUEUE_FULL", "no room; nothing was changed", hint]);
            return accepted;
        }
        // Others gave a block back meanwhile.
        accepted.push(id(&ran.json()));
    }
}

/// A command that writes to the files itself is told the same.
fn without_supervisor(home: &Home, disk: &Disk) {
    disk.fill();
    enqueue_until_refused(home);
    assert_eq!(home.tm(&["queue", "verify"]).code, Some(0));
    disk.make_room();
    assert_eq!(home.tm(&["enqueue", "echo"]).code, Some(0));
}

/// The command with a limit of 4 MiB to what it writes into one file; without the trap a signal would end it.
fn limited(command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", r#"trap '' XFSZ; ulimit -S -f 8192; exec "$0" "$@""#]);
    shell.arg(command.get_program()).args(command.get_args()).current_dir(command.get_current_dir().unwrap());
    shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    shell
}

/// The limit of the size of a file stands for the full disk here: the system refuses to let the log grow.
#[test]
fn a_full_disk_is_told_and_holds_back_what_has_no_room_for_its_end() {
    let home = Home::new();
    home.flow("sleep", "hostile", &["limits: { timeout_ms: 600000 }"]);
    // Whoever compiles needs memory files that are larger than the log may be.
    let pool = Supervisor::start(&home, &[]);
    let ran = home.tm(&["enqueue", "sleep.yaml", "-i", r#"{"do":"nothing"}"#, "--wait"]);
    assert_eq!(ran.code, Some(0), "{ran}");
    pool.stop();
    let runs = home.batch("sleep", &vec![r#"{"do":"sleep_ms","ms":500000}"#.to_owned(); RUNS], &[]);

    let arguments = ["-n", "1", "--concurrency", "100", "--drain-grace", "0"];
    let mut pool = Supervisor::start_by(&home, &arguments, |command| started(&mut limited(command)));
    until("a full disk", || pool.stats().held_back.map(drop));
    let stats = home.tm(&["queue", "stats"]);
    assert!(stats.stdout.contains(&format!("\nnote: {NOTE}\n")), "{stats}");
    assert!(pool.stats().inflight > 1 && pool.stats().ready > 1, "{stats}");
    for (state, told) in [(TaskState::Ready, true), (TaskState::Leased, false)] {
        let run = runs.iter().find(|run| pool.show(run).tasks[0].state == state).unwrap();
        let shown = home.tm(&["queue", "show", run]);
        assert_eq!(shown.stdout.contains(NOTE), told, "{shown}");
    }

    let unlimited = Rlimit { current: None, maximum: None };
    prlimit(Pid::from_raw(pool.pid().cast_signed()), Resource::Fsize, unlimited).unwrap();
    until("room", || (pool.stats().inflight == RUNS as u64).then_some(()));
    assert!(!home.tm(&["queue", "stats"]).stdout.contains("note"));
    for run in &runs {
        assert_eq!(home.tm(&["queue", "cancel", run]).code, Some(0));
    }
    assert_eq!(pool.ended(&runs[0]).state, RunState::Cancelled);
    pool.stop();
}
