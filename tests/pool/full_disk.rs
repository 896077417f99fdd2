//! A disk without room: nothing more is leased, those who ask are told, and work goes on once there is room.
//!
//! The limit of the size of a file stands for the full disk: the system refuses to let the log grow, without root.

use std::process::{Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tm_core::api::{RunState, TaskState};

use crate::{
    home::{Home, until},
    supervisor::{Supervisor, started},
};

const NOTE: &str = "nothing is leased: the queue's disk has no room for the end of another task";
const RUNS: usize = 80;

/// The command with a limit of 4 MiB to what it writes into one file; without the trap a signal would end it.
fn limited(command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", r#"trap '' XFSZ; ulimit -S -f 8192; exec "$0" "$@""#]);
    shell.arg(command.get_program()).args(command.get_args()).current_dir(command.get_current_dir().unwrap());
    shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    shell
}

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
