//! `tm workers stop` never signals a stranger: a recorded pid counts only with its start time and its lock.

use std::process::{Command, Stdio};

use crate::home::{Home, snapshot};

#[test]
fn without_a_pid_file_nothing_runs() {
    snapshot!(Home::new().tm(&["workers", "stop"]), @"
    stderr:
    error: no worker supervisor is recorded in tm-workers.pid
    hint: name the file that 'tm workers start' wrote: --pid-file FILE
    exit: 4
    ");
}

#[test]
fn a_pid_file_without_a_pid_is_refused() {
    let home = Home::new();
    home.write("tm-workers.pid", "hello\n");
    snapshot!(home.tm(&["workers", "stop"]), @"
    stderr:
    error: tm-workers.pid does not hold a process id
    hint: nothing was signalled; the next start replaces the file
    exit: 4
    ");
}

#[test]
fn a_process_that_is_gone_is_not_running() {
    let home = Home::new();
    let mut gone = Command::new("/bin/true").spawn().unwrap();
    gone.wait().unwrap();
    home.write("tm-workers.pid", format!("{}\n", gone.id()));
    let ran = home.tm(&["workers", "stop"]);
    assert_eq!(ran.code, Some(4), "{ran}");
}

#[test]
fn a_stranger_is_not_signalled() {
    let home = Home::new();
    // Ends when its standard input is closed, or by a signal.
    let mut stranger = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
    home.write("tm-workers.pid", format!("{}\n", stranger.id()));
    let ran = home.tm(&["workers", "stop"]);
    drop(stranger.stdin.take());
    assert!(stranger.wait().unwrap().success(), "the stranger got a signal");
    let text = ran.to_string().replace(&stranger.id().to_string(), "N");
    insta::assert_snapshot!(text, @"
    stderr:
    error: tm-workers.pid is stale: process N is not the supervisor that wrote it
    hint: nothing was signalled; the next start replaces the file
    exit: 4
    ");
    assert_eq!(home.files(), ["tm-workers.pid"]);
}
