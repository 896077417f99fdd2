//! Processes that stand still for a while, by SIGSTOP: no task is lost, none runs twice at once, nobody is killed unjustly.

use std::{
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;
use tm_core::api::{RunDetail, RunState};
use tm_supervisor::store::disk::Roots;

use crate::{
    history::History,
    home::{Home, ran, until},
    supervisor::{Supervisor, exists, send},
};

const TIMEOUT_MS: u64 = 1500;
const TICKS: usize = 300;

/// A home whose flow `tick` adds its attempt's number to a file every 10 ms.
fn ticking(isolation: &str) -> Home {
    let home = Home::new();
    let workers =
        format!("heartbeat = \"200ms\"\nheartbeat_timeout = \"{TIMEOUT_MS}ms\"\nisolation = \"{isolation}\"\n");
    let allow = "files = [ { host = \"ticks\", mode = \"write\" } ]\n";
    home.write("trace_config.toml", format!("[workers]\n{workers}[tenants.default.allow]\n{allow}"));
    fs::create_dir(home.path("ticks")).unwrap();
    // The workers' user is another one.
    fs::set_permissions(home.path("ticks"), Permissions::from_mode(0o777)).unwrap();
    let files = "files: [ { host: ticks, guest: /ticks, mode: write } ]";
    let grants = format!("grants: {{ {files}, scratch: true, artifacts: true, clocks: true, random: true }}");
    home.flow("tick", "hostile", &[&grants, "retries: { base_ms: 3600000, max_delay_ms: 3600000 }"]);
    home
}

fn enqueue(home: &Home, no: usize) -> String {
    let input = format!(r#"{{"do":"tick","path":"/ticks/{no}","every_ms":10,"count":{TICKS}}}"#);
    home.enqueue("tick.yaml", &input, &[])
}

/// Asserts that a run succeeded and that no attempt ticked beside or after its successor; returns the run.
fn succeeded_in_turn(home: &Home, pool: &mut Supervisor<'_>, no: usize, run: &str) -> RunDetail {
    let ended = pool.ended(run);
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.tasks);
    let text = fs::read_to_string(home.path(format!("ticks/{no}"))).unwrap();
    let ticks: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert!(ticks.is_sorted(), "two attempts ran at once: {ticks:?}");
    let last = ended.tasks[0].attempts.last().unwrap().attempt;
    assert_eq!(ticks.iter().filter(|&&attempt| attempt == last).count(), TICKS, "attempt {last}: {ticks:?}");
    ended
}

fn unix_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn judge(home: &Home) {
    History::read_after(&Roots::below(&home.path("data")), &History::default()).assert_done();
}

#[test]
fn a_silent_worker_is_killed_and_its_step_runs_elsewhere() {
    let home = ticking("shared");
    let mut pool = Supervisor::start(&home, &["-n", "2"]);
    let run = enqueue(&home, 0);
    let (_, silent) = pool.running(&run);
    let stopped_at = unix_ms();
    send(silent.pid, Signal::STOP);
    let other = until("the second attempt", || pool.worker_of(&run).filter(|worker| worker.worker != silent.worker));
    assert!(!exists(silent.pid), "the lease ended before the worker was reaped");
    let ended = succeeded_in_turn(&home, &mut pool, 0, &run);
    let [first, second] = &ended.tasks[0].attempts[..] else { panic!("{:?}", ended.tasks[0].attempts) };
    assert_eq!((first.outcome.as_str(), second.worker), ("requeued:stale", other.worker));
    // Its last heartbeat came up to one interval before it stood still.
    let (free_ms, again_ms) = (first.ended_at.unwrap().0 - stopped_at, second.started_at.0 - stopped_at);
    assert!(free_ms + 200 >= TIMEOUT_MS && again_ms <= TIMEOUT_MS + 1000, "free {free_ms} ms, again {again_ms} ms");
    pool.stop();
    judge(&home);
}

#[test]
fn a_worker_that_goes_on_about_when_it_is_killed_never_runs_beside_its_successor() {
    let home = ticking("task");
    let mut pool = Supervisor::start(&home, &["-n", "4"]);
    let runs: Vec<_> = (0..4).map(|no| enqueue(&home, no)).collect();
    let workers: Vec<_> = runs.iter().map(|run| pool.running(run).1.pid).collect();
    let begun = Instant::now();
    workers.iter().for_each(|&pid| send(pid, Signal::STOP));
    // They are killed between 1300 and 1665 ms from now, if nothing is slow.
    for (pid, at_ms) in workers.iter().zip([1250, 1400, 1550, 1700]) {
        thread::sleep(Duration::from_millis(at_ms).saturating_sub(begun.elapsed()));
        if exists(*pid) {
            send(*pid, Signal::CONT);
        }
    }
    for (no, run) in runs.iter().enumerate() {
        succeeded_in_turn(&home, &mut pool, no, run);
    }
    pool.stop();
    judge(&home);
}

#[test]
fn a_supervisor_that_stood_still_kills_nobody_and_loses_nothing() {
    let home = ticking("shared");
    let mut pool = Supervisor::start(&home, &["-n", "2", "--concurrency", "4"]);
    let runs: Vec<_> = (0..8).map(|no| enqueue(&home, no)).collect();
    let workers: Vec<_> = runs.iter().map(|run| pool.running(run).1.worker).collect();
    for pause_ms in [0, 130] {
        thread::sleep(Duration::from_millis(pause_ms));
        pool.signal(Signal::STOP);
        thread::scope(|scope| {
            // Who asks meanwhile waits.
            let asked = scope.spawn(|| home.tm(&["enqueue", "tick", "-i", r#"{"do":"nothing"}"#, "--wait"]));
            thread::sleep(Duration::from_millis(TIMEOUT_MS + 500));
            pool.signal(Signal::CONT);
            let ran = asked.join().unwrap();
            assert_eq!(ran.code, Some(0), "{ran}");
        });
    }
    for (no, run) in runs.iter().enumerate() {
        let ended = succeeded_in_turn(&home, &mut pool, no, run);
        let [only] = &ended.tasks[0].attempts[..] else { panic!("{:?}", ended.tasks[0].attempts) };
        assert_eq!((only.attempt, only.worker), (1, workers[no]));
    }
    let totals = pool.stats().totals;
    assert_eq!((totals.runs_enqueued, totals.tasks_started, totals.redelivered), (10, 10, 0));
    pool.stop();
    judge(&home);
}

const LINE: &[u8] = b"{\"input\":{\"do\":\"nothing\"}}\n";
const LINE_WITH_KEY: &[u8] = b"{\"input\":{\"do\":\"nothing\"},\"idempotency_key\":\"k\"}\n";

/// `tm enqueue --batch -`, of which a first line has been answered.
fn batch(home: &Home) -> Child {
    let mut command = home.command(&["enqueue", "tick", "--batch", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(LINE).unwrap();
    let mut reply = [0];
    while reply != *b"\n" {
        child.stdout.as_mut().unwrap().read_exact(&mut reply).unwrap();
    }
    child
}

#[test]
fn a_stop_gives_up_on_a_supervisor_that_stands_still_and_is_obeyed_when_it_goes_on() {
    let home = ticking("shared");
    let pool = Supervisor::start(&home, &[]);
    let pid = pool.pid();
    pool.signal(Signal::STOP);
    let ran = home.tm(&["workers", "stop"]);
    ran.refused(4, &[&format!("the supervisor (pid {pid}) has stood still (SIGSTOP) for 30 s")]);
    ran.refused(
        4,
        &[
            &format!("waiting for the supervisor (pid {pid})"),
            &format!("SIGTERM as soon as it goes on: kill -CONT {pid}"),
        ],
    );
    pool.signal(Signal::CONT);
    assert!(pool.wait().success());
}

#[test]
fn commands_give_up_on_a_supervisor_that_answers_nobody_and_say_what_is_in_doubt() {
    let home = ticking("shared");
    let mut pool = Supervisor::start(&home, &[]);
    home.enqueue("tick.yaml", r#"{"do":"nothing"}"#, &[]);
    let (mut with_key, mut without) = (batch(&home), batch(&home));
    let pid = pool.pid();
    pool.signal(Signal::STOP);
    with_key.stdin.as_mut().unwrap().write_all(LINE_WITH_KEY).unwrap();
    without.stdin.as_mut().unwrap().write_all(LINE).unwrap();
    let start =
        |arguments: &[&str]| home.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let asked: [(Child, &[&str]); 6] = [
        (start(&["queue", "stats"]), &["kill -CONT"]),
        (start(&["enqueue", "tick", "-i", "{}"]), &["not known whether the run was enqueued"]),
        (start(&["enqueue", "tick.yaml"]), &["not known whether the flow was registered", "nothing was enqueued"]),
        (start(&["dlq", "requeue", "*", "--all"]), &["some entries may have been taken"]),
        (with_key, &["not known whether the run was enqueued", "hint: asking again with the same key is safe"]),
        (without, &["not known whether the run was enqueued", "hint: look: tm queue ls --state all --flow tick"]),
    ];
    for (child, words) in asked {
        let ran = ran(child.wait_with_output().unwrap());
        ran.refused(4, words);
        ran.refused(4, &[&format!("the supervisor (pid {pid}) has not answered for 30 s")]);
        ran.refused(4, &[&format!("waiting for the supervisor (pid {pid}) to answer\n")]);
        assert!(ran.stdout.is_empty() && ran.stderr.lines().count() == 3, "{ran}");
    }
    pool.signal(Signal::CONT);
    // What was in doubt is done.
    until("all three runs", || (pool.stats().totals.runs_enqueued == 6).then_some(()));
    pool.stop();
}
