//! What is left of workers when their pool or their supervisor ends: nothing.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{Bench, fake, settings};
use crate::workers::{PoolEvent, PoolSettings};

#[test]
fn stopping_ends_every_process_also_those_that_do_not_listen() {
    for behaviour in ["good", "deaf"] {
        let mut bench = Bench::with(behaviour, PoolSettings { num: 2, warm_pool: 1, ..settings() });
        bench.want(&[(1, 1), (2, 1)]);
        for _ in 0..2 {
            assert!(matches!(bench.next(), PoolEvent::Ready { .. }));
        }
        let pids: Vec<u32> = bench.pool.rows().iter().map(|row| row.pid).collect();
        assert_eq!(pids.len(), 2);
        bench.pool.stop(Duration::from_millis(300));
        for pid in pids {
            assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        }
        assert_eq!(bench.events.try_iter().filter(|event| matches!(event, PoolEvent::Gone { .. })).count(), 3);
    }
}

#[test]
fn no_descriptor_and_no_dead_process_is_left() {
    let program = fake::program("scenario leaves nothing");
    let output = Command::new(std::env::current_exe().unwrap()).args(&program.args).envs(program.env).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_worker_dies_with_its_supervisor() {
    let program = fake::program("scenario hold a worker");
    let mut supervisor = Command::new(std::env::current_exe().unwrap())
        .args(&program.args)
        .envs(program.env)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(supervisor.stdout.take().unwrap()).lines();
    let pid = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("worker ").map(str::to_owned)).unwrap();
    let worker = pidfd_open(Pid::from_raw(pid.parse().unwrap()).unwrap(), PidfdFlags::empty()).unwrap();
    let mut waits = [PollFd::new(&worker, PollFlags::IN)];
    assert_eq!(poll(&mut waits, Some(&Timespec::default())).unwrap(), 0, "it lives while its supervisor lives");
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    let bound = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut waits, Some(&bound)).unwrap(), 1, "it ignores its socket, so only the signal can end it");
}
