//! What the pool does with workers that behave, and with those that do not.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use tm_core::{
    id::WorkerId,
    json::Json,
    limits::PACKET_MAX_BYTES,
    wire::{Body, FromWorker, Outcome},
};

use super::{BOUND, Bench, fake, output, settings, task};
use crate::workers::{Isolation, NotHanded, PoolEvent, PoolSettings, link::PushError, sealed};

#[test]
fn a_ready_worker_takes_a_task_and_reports_it() {
    let mut bench = Bench::new("good");
    assert!(bench.pool.slots().is_empty());
    let worker = bench.ready(3);
    let slot = bench.slot(worker).unwrap();
    assert_eq!((slot.free, slot.idle), (16, true));
    assert_eq!(bench.pool.memory_bound_bytes(), 1 << 20);
    bench.go(worker, 5);
    assert_eq!(bench.slot(worker).map(|slot| (slot.free, slot.idle)), Some((15, false)));
    let (from, report, _) = bench.report();
    assert_eq!((from, report.task, output(&report).get()), (worker, task(5), "5"));
    assert_eq!(bench.pool.rows()[0].running, 1);
    bench.pool.ended(worker, task(5));
    assert_eq!(bench.slot(worker).map(|slot| (slot.free, slot.idle)), Some((16, true)));
    assert_eq!(bench.pool.rows()[0].tenant, "t3");
}

#[test]
fn large_bodies_travel_as_sealed_files_in_both_directions() {
    let mut bench = Bench::new("large output");
    let worker = bench.ready(1);
    let size_bytes = PACKET_MAX_BYTES + 1;
    let inline = Body::Inline(Json::of(&"y".repeat(size_bytes)));
    assert!(matches!(bench.start(worker, 1, inline, vec![]), Err(NotHanded::Push(PushError::TooLarge { .. }))));
    assert_eq!(bench.slot(worker).unwrap().free, 16, "a refused start takes no slot");
    let text = Json::of(&"y".repeat(size_bytes));
    let fd = sealed::make(text.get().as_bytes()).unwrap();
    bench.start(worker, 1, Body::Fd { size_bytes: text.size_bytes() }, vec![fd]).unwrap();
    bench.pool.flush();
    let (_, report, fds) = bench.report();
    let Outcome::Succeeded { output: Body::Fd { size_bytes }, .. } = report.outcome else { panic!("a descriptor") };
    assert_eq!(sealed::read(&fds[0], 1 << 20).unwrap().len() as u64, size_bytes);
}

#[test]
fn a_component_is_loaded_once_and_the_longest_unused_is_forgotten() {
    let mut bench = Bench::new("good");
    let worker = bench.ready(1);
    for component in [1, 1, 2] {
        bench.pool.load(worker, component, sealed::make(b"n").unwrap());
    }
    bench.pool.flush();
    for expected in [1, 2] {
        match bench.next() {
            PoolEvent::Message { message: FromWorker::Loaded { component }, .. } => assert_eq!(component, expected),
            other => panic!("loaded was expected: {other:?}"),
        }
    }
    bench.go(worker, 1); // uses component 1
    for component in 3..=65 {
        bench.pool.load(worker, component, sealed::make(b"n").unwrap());
    }
    assert!(!bench.pool.has_loaded(worker, 2), "64 are kept");
    assert!(bench.pool.has_loaded(worker, 1) && bench.pool.has_loaded(worker, 65));
}

#[test]
fn a_hundred_starts_and_their_reports_go_in_order() {
    let mut bench = Bench::with("good", PoolSettings { concurrency: 100, ..settings() });
    let worker = bench.ready(1);
    for step in 0..100 {
        bench.start(worker, step, Body::Inline(Json::of(&"z".repeat(4000))), vec![]).unwrap();
    }
    assert!(bench.pool.slots().is_empty(), "a worker never runs more than its concurrency");
    bench.pool.flush();
    for step in 0..100 {
        assert_eq!(bench.report().1.task, task(step));
    }
}

#[test]
fn a_cancelled_task_ends() {
    let mut bench = Bench::new("hold");
    let worker = bench.ready(1);
    bench.go(worker, 1);
    bench.pool.cancel(worker, task(1), 1, 100);
    bench.pool.flush();
    assert!(matches!(bench.report().1.outcome, Outcome::Failed(failure) if failure.code == "CANCELLED"));
}

#[test]
fn a_death_is_seen_at_once_after_what_the_worker_had_said() {
    let mut bench = Bench::new("report and die");
    let worker = bench.ready(1);
    bench.go(worker, 1);
    assert_eq!(bench.report().1.task, task(1));
    let since = Instant::now();
    let (gone, why) = bench.gone();
    assert_eq!(gone, worker);
    assert!(since.elapsed() < Duration::from_secs(5), "not after the heartbeat timeout");
    assert!(why.contains("bye"), "{why}");
    assert!(matches!(
        bench.start(worker, 2, Body::Inline(Json::null()), vec![]),
        Err(NotHanded::Gone(of)) if of == worker
    ));
    // The first death is made good at once.
    assert_ne!(bench.ready(1), worker);
}

#[test]
fn everything_that_a_dead_worker_had_said_comes_before_its_end() {
    let ((sender, events), (gate, gated)) = (mpsc::channel(), mpsc::channel::<()>());
    let gated = std::sync::Mutex::new(gated);
    let emit = Box::new(move |event| {
        if matches!(event, PoolEvent::Message { message: FromWorker::Loaded { component: 0 }, .. }) {
            // Holds the receiving thread until the worker is dead and all else waits in its socket.
            gated.lock().unwrap().recv_timeout(BOUND).unwrap();
        }
        drop(sender.send(event));
    });
    let pool = crate::workers::Pool::start(settings(), fake::spawner("talk and die"), emit).unwrap();
    let mut bench = Bench { pool, events, ..Bench::new("good") };
    let worker = bench.ready(1);
    let pid = Pid::from_raw(bench.pool.rows()[0].pid.cast_signed()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    bench.go(worker, 1);
    let bound = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&bound)).unwrap(), 1);
    gate.send(()).unwrap();
    for expected in 0..100 {
        match bench.next() {
            PoolEvent::Message { message: FromWorker::Loaded { component }, .. } => assert_eq!(component, expected),
            other => panic!("message {expected} was expected: {other:?}"),
        }
    }
    assert_eq!(bench.gone().0, worker);
}

#[test]
fn a_silent_worker_is_killed_and_reaped() {
    let settings = PoolSettings { heartbeat_timeout_ms: 300, ..settings() };
    let mut bench = Bench::with("silent", settings);
    let worker = bench.ready(1);
    let pid = bench.pool.rows()[0].pid;
    let since = Instant::now();
    bench.go(worker, 1);
    let (gone, why) = bench.gone();
    assert_eq!(gone, worker);
    assert!(why.contains("silent"), "{why}");
    assert!(since.elapsed() >= Duration::from_millis(300));
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "it is reaped before it is called gone");
}

#[test]
fn a_long_step_in_a_worker_with_heartbeats_is_not_a_dead_worker() {
    let mut bench = Bench::with("hold", PoolSettings { heartbeat_timeout_ms: 300, ..settings() });
    let worker = bench.ready(1);
    bench.go(worker, 1);
    assert!(bench.events.recv_timeout(Duration::from_secs(1)).is_err());
    assert_eq!(bench.pool.rows()[0].memory_bytes, 4096);
}

#[test]
fn a_worker_that_breaks_the_protocol_is_killed_and_the_reason_is_told() {
    for (behaviour, reason) in [
        ("garbage", "does not hold messages"),
        ("oversize", "more than 163840 bytes"),
        ("many descriptors", "more than 64 descriptors"),
        ("unannounced descriptor", "sent 1 descriptors, its messages announce 0"),
        ("unsealed descriptor", "not a memory file sealed"),
        ("other role", "another role"),
    ] {
        let mut bench = Bench::new(behaviour);
        let worker = bench.ready(1);
        bench.go(worker, 1);
        let (gone, why) = bench.gone();
        assert_eq!(gone, worker);
        assert!(why.contains(reason), "{behaviour}: {why}");
    }
}

#[test]
fn workers_that_cannot_start_fail_the_pool_instead_of_looping() {
    for (behaviour, words, deaths_expected) in
        [("die early", "out of luck", 3), ("unable", "no walls here", 1), ("weak", "is not confined (landlock)", 3)]
    {
        let mut bench = Bench::new(behaviour);
        let (since, mut deaths) = (Instant::now(), 0);
        let reason = loop {
            assert!(since.elapsed() < BOUND);
            bench.want(&[(1, 1)]);
            match bench.events.recv_timeout(Duration::from_millis(20)) {
                Ok(PoolEvent::Gone { .. }) => deaths += 1,
                Ok(PoolEvent::CannotStart { reason }) => break reason,
                Ok(other) => panic!("{other:?}"),
                Err(_) => {}
            }
        };
        assert!(reason.contains(words), "{behaviour}: {reason}");
        assert_eq!(deaths, deaths_expected, "{behaviour}");
        assert_eq!(bench.want(&[(1, 1)]), None);
        assert!(bench.events.recv_timeout(Duration::from_millis(300)).is_err(), "nothing is started any more");
    }
}

#[test]
fn a_program_that_cannot_be_executed_fails_the_pool_with_its_path() {
    let (sender, events) = mpsc::channel();
    let mut program = fake::program("good");
    program.path = "/nowhere/tm".into();
    let spawner = std::sync::Arc::new(crate::workers::child::Spawner::start(program).unwrap());
    let emit = Box::new(move |event| drop(sender.send(event)));
    let pool = crate::workers::Pool::start(settings(), spawner, emit).unwrap();
    let mut bench = Bench { pool, events, ..Bench::new("good") };
    let since = Instant::now();
    loop {
        assert!(since.elapsed() < BOUND);
        bench.want(&[(1, 1)]);
        if let Ok(PoolEvent::CannotStart { reason }) = bench.events.recv_timeout(Duration::from_millis(20)) {
            assert!(reason.contains("/nowhere/tm"), "{reason}");
            return;
        }
    }
}

#[test]
fn with_walls_missing_a_worker_is_used_only_when_that_is_allowed() {
    let mut bench = Bench::with("weak", PoolSettings { allow_weaker: true, ..settings() });
    bench.ready(1);
    assert_eq!(bench.pool.rows()[0].missing, ["landlock"]);
}

#[test]
fn a_worker_whose_pool_is_larger_than_its_share_is_refused() {
    // The fake one says 1 GiB.
    let mut bench = Bench::with("huge", PoolSettings { memory_max_bytes: Some(1000 << 20), ..settings() });
    bench.want(&[(1, 1)]);
    let why = bench.gone().1;
    assert!(why.contains("can hold 1024 MiB of memory, its share is 1000 MiB"), "{why}");
}

#[test]
fn a_profile_that_does_not_fit_is_told_and_others_go_on() {
    let mut bench = Bench::with("good", PoolSettings { memory_max_bytes: Some(300 << 20), ..settings() });
    bench.memory_max_mb = 500;
    let again_at = bench.want(&[(1, 1)]);
    match bench.next() {
        PoolEvent::ProfileBroken { profile, reason } => {
            assert!(profile.0 == 1 && reason.contains("its share is 300 MiB"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(again_at.is_some(), "it is tried again");
    bench.memory_max_mb = 64;
    bench.ready(2);
}

#[test]
fn a_worker_of_another_profile_is_replaced_and_never_runs_a_foreign_task() {
    let mut bench = Bench::new("good");
    let first = bench.ready(1);
    bench.want(&[(2, 1)]);
    assert_eq!(bench.slot(first), None, "its place is given away");
    assert_eq!(bench.gone().0, first);
    let second = bench.ready(2);
    assert_eq!(bench.slot(second).unwrap().profile.0, 2);
}

#[test]
fn a_spare_process_is_used_for_the_next_profile_and_made_good() {
    let mut bench = Bench::with("good", PoolSettings { warm_pool: 1, ..settings() });
    bench.want(&[]);
    assert!(bench.pool.slots().is_empty());
    assert_eq!(bench.ready(1), WorkerId(1), "the spare one");
    bench.want(&[(2, 1)]);
    assert_eq!(bench.gone().0, WorkerId(1));
    assert_eq!(bench.ready(2), WorkerId(2), "its successor");
}

#[test]
fn with_isolation_per_task_a_process_runs_one_task() {
    let mut bench = Bench::with("good", PoolSettings { isolation: Isolation::Task, ..settings() });
    let first = bench.ready(1);
    assert_eq!(bench.slot(first).unwrap().free, 1);
    bench.go(first, 1);
    bench.report();
    bench.pool.ended(first, task(1));
    assert!(bench.pool.slots().is_empty());
    bench.want(&[(1, 1)]);
    assert_eq!(bench.gone().0, first);
    assert_ne!(bench.ready(1), first);
}

#[test]
fn a_worker_that_its_profile_has_outgrown_is_replaced_once_it_is_idle() {
    let mut bench = Bench::new("good");
    let first = bench.ready(1);
    bench.go(first, 1);
    bench.report();
    bench.memory_max_mb = 128;
    bench.want(&[(1, 1)]);
    assert!(bench.pool.slots().is_empty(), "its pool is too small for what comes");
    bench.pool.ended(first, task(1));
    bench.want(&[(1, 1)]);
    assert_eq!(bench.gone().0, first);
    bench.ready(1);
}

#[test]
fn a_worker_that_does_not_read_gets_no_more_work_and_cannot_fill_our_memory() {
    let mut bench = Bench::with("deaf", PoolSettings { concurrency: 10_000, ..settings() });
    let worker = bench.ready(1);
    let mut refused = false;
    for step in 0..200 {
        let started = bench.start(worker, step, Body::Inline(Json::of(&"w".repeat(60_000))), vec![]);
        bench.pool.flush();
        refused |= matches!(started, Err(NotHanded::Push(PushError::Full)));
    }
    assert!(refused, "at most 8 MiB wait");
    assert_eq!(bench.slot(worker), None, "no slot while so much waits");
}

#[test]
fn a_process_has_only_its_socket_and_nothing_of_its_parent() {
    let mut bench = Bench::new("probe");
    // Descriptors that an exec would pass on.
    let open: Vec<_> = (0..3).map(|_| rustix::io::dup(std::io::stderr()).unwrap()).collect();
    let worker = bench.ready(1);
    drop(open);
    bench.go(worker, 1);
    let (_, report, _) = bench.report();
    let found: serde_json::Value = serde_json::from_str(output(&report).get()).unwrap();
    assert_eq!(found["env"], serde_json::json!(["TM_FAKE_WORKER"]));
    assert_eq!(found["session"], true, "ctrl-c at the terminal does not reach it");
    let limits = found["limits"].as_str().unwrap();
    let line = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("Max core file size").contains(" 0  "), "{}", line("Max core file size"));
    assert!(line("Max file size").contains("4294967296"), "{}", line("Max file size"));
    let status = found["status"].as_str().unwrap();
    if rustix::process::geteuid().is_root() {
        let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
        let uid = nobody.uid.as_raw();
        assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")), "{status}");
        assert!(status.contains("Groups:\t \n"), "{status}");
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    }
    // 0 to 3, its folders (3), the probe's own descriptor, the heartbeat's copy of the socket.
    let fds = found["fds"].as_array().unwrap();
    assert!(fds.len() <= 10, "{fds:?}");
}
