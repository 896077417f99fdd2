//! Processes: how they end, and what is known of it.

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::workers::tests::fake;

/// Waits until the process is dead, then reaps it.
fn reaped(child: &mut Child) -> Exit {
    let pidfd = child.pidfd();
    let bound = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&bound)).unwrap(), 1, "it dies");
    child.try_reap().unwrap()
}

#[test]
fn a_killed_process_is_reaped_and_its_signal_has_a_name() {
    let (mut child, _link) = fake::spawner("park").spawn(None).unwrap();
    let spawner = fake::spawner("park");
    let (mut other, _other_link) = spawner.spawn(None).unwrap();
    assert_eq!(other.try_reap(), None);
    other.kill();
    assert_eq!(reaped(&mut other), Exit::Signal(9));
    assert_eq!(other.end(), Exit::Signal(9), "asked again, the answer is the same");
    assert_eq!(Exit::Signal(9).to_string(), "was killed by SIGKILL (signal 9)");
    child.end();
}

#[test]
fn a_process_dies_with_the_thread_that_started_it() {
    let spawner = fake::spawner("park");
    let (mut child, _link) = spawner.spawn(None).unwrap();
    assert_eq!(child.try_reap(), None);
    drop(spawner);
    assert_eq!(reaped(&mut child), Exit::Signal(9));
}

#[test]
fn the_last_words_are_kept_without_control_characters() {
    let spawner = fake::spawner("die early");
    let (mut child, _link) = spawner.spawn(None).unwrap();
    assert_eq!(reaped(&mut child), Exit::Code(7));
    assert!(child.last_words().contains("out of luck"));
    assert!(!child.last_words().contains(char::is_control));
}

#[test]
fn a_dropped_process_is_gone() {
    let spawner = fake::spawner("park");
    let (child, _link) = spawner.spawn(None).unwrap();
    let path = format!("/proc/{}", child.pid());
    assert!(std::path::Path::new(&path).exists());
    drop(child);
    assert!(!std::path::Path::new(&path).exists());
}

#[test]
fn a_program_that_cannot_be_executed_is_named() {
    let mut program = fake::program("park");
    program.path = "/nowhere/tm".into();
    let refused = Spawner::start(program).unwrap().spawn(None).unwrap_err();
    assert!(refused.to_string().contains("/nowhere/tm"), "{refused}");
}
