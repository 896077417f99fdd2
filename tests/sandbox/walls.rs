//! What has to work behind the walls, and that a worker puts them up. What they hold: see `table`.

use std::{collections::BTreeMap, fs, io::Read, os::fd::AsFd, os::unix::process::ExitStatusExt};

use tempfile::TempDir;
use tm_worker::packet;

use crate::harness::{Setup, Worker, granted, native, spawn};

const ENOSYS: &str = "errno 38";

struct Probe {
    root: TempDir,
}

/// What each call answered.
type Answers = BTreeMap<String, String>;

impl Probe {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        for name in ["granted/a", "granted/b", "other"] {
            fs::create_dir_all(root.path().join(name)).expect("a folder");
        }
        fs::write(root.path().join("granted/file"), "mine").expect("a file");
        fs::write(root.path().join("granted/a/file"), "mine").expect("a file");
        fs::write(root.path().join("other/file"), "not mine").expect("a file");
        Self { root }
    }

    fn at(&self, name: &str) -> String {
        self.root.path().join(name).display().to_string()
    }

    /// Makes the calls behind these walls; the process must end well, except where a call ends it.
    fn calls(&self, walls: &'static str, calls: &[String]) -> (Answers, std::process::ExitStatus) {
        let arguments: Vec<&str> = ["__probe", walls].into_iter().chain(calls.iter().map(String::as_str)).collect();
        let (mut child, socket) = spawn(&arguments, true);
        let setup = Setup { folders: vec![granted(&self.root.path().join("granted"), true)], ..Setup::default() };
        packet::send_messages(socket.as_fd(), &[setup.init()], &setup.open_folders()).expect("Init is sent");
        let late = fs::File::open(self.root.path().join("other")).expect("a folder");
        // Only the probe that wants it takes this one out of the socket.
        let _ = packet::send(socket.as_fd(), b"[]", &[late.into()]);
        let mut text = String::new();
        child.stdout.take().expect("a pipe").read_to_string(&mut text).expect("text");
        let answers = text.lines().filter_map(|line| line.split_once(": ").map(|(a, b)| (a.to_owned(), b.to_owned())));
        (answers.collect(), child.wait().expect("the probe ends"))
    }

    fn one(&self, walls: &'static str, call: &str) -> String {
        let (answers, status) = self.calls(walls, &[call.to_owned()]);
        answers.get(call).unwrap_or_else(|| panic!("{call}: no answer, {status:?}")).clone()
    }
}

#[test]
fn granted_folders_stay_reachable_by_descriptor_and_by_proc() {
    let probe = Probe::new();
    let rename = format!("rename={},{}", probe.at("granted/a/file"), probe.at("granted/b/file"));
    let calls = ["read-own-folder=file".to_owned(), "own-folder-by-proc".to_owned()];
    let (answers, status) = probe.calls("both", &calls);
    assert!(status.success());
    assert!(answers.values().all(|answer| answer == "ok"), "{answers:?}");
    // The rename of std is not among the listed calls; landlock alone shows that Refer was given.
    assert_eq!(probe.one("landlock", &rename), "ok");
}

#[test]
fn a_folder_descriptor_that_arrives_after_landlock_is_useless() {
    let probe = Probe::new();
    assert_eq!(probe.one("both", "late-folder=file"), "errno 13");
    assert_eq!(probe.one("seccomp", "late-folder=file"), "ok", "landlock is what holds it");
}

#[test]
fn threads_start_though_clone3_does_not_exist() {
    let probe = Probe::new();
    assert_eq!(probe.one("both", "clone3"), ENOSYS);
    assert_eq!(probe.one("both", "thread"), "ok");
}

#[test]
fn a_process_may_signal_itself_alone_and_abort_works() {
    let probe = Probe::new();
    assert_eq!(probe.one("both", "signal-self"), "ok");
    let (_, status) = probe.calls("both", &["abort".to_owned()]);
    assert_eq!(status.signal(), Some(libc::SIGABRT));
}

#[test]
fn a_worker_tells_both_walls_and_uses_the_page_scan() {
    use wasmtime::PoolingAllocationConfig;
    let worker = Worker::start(&Setup::default());
    assert!(worker.confinement.missing.is_empty() && worker.confinement.seccomp);
    assert!(worker.confinement.landlock_abi.is_some_and(|abi| abi >= 4), "{:?}", worker.confinement.landlock_abi);
    // A kernel that has it must offer it; without, the worker would not have become ready.
    let maps = fs::read_dir(format!("/proc/{}/fd", worker.child.id()));
    if PoolingAllocationConfig::is_pagemap_scan_available()
        && let Ok(descriptors) = maps
    {
        let links: Vec<_> = descriptors.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
        assert!(links.iter().any(|link| link.ends_with("pagemap")), "{links:?}");
    }
}

#[test]
fn a_worker_ends_when_its_supervisor_closes_the_socket() {
    let mut worker = Worker::start(&Setup::default());
    let (replaced, _) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .expect("a socket pair");
    drop(std::mem::replace(&mut worker.socket, replaced));
    assert!(worker.child.wait().expect("it ends").success());
}

#[test]
fn a_spinning_guest_does_not_silence_the_heartbeat() {
    use tm_core::wire::{FromWorker, ToWorker};
    let mut worker = Worker::start(&Setup { heartbeat_ms: 20, ..Setup::default() });
    worker.load(1, &native("spin"));
    let mut start = worker.start_of(1, "{}");
    start.limits.timeout_ms = 400;
    start.limits.fuel = u64::MAX / 2;
    worker.send(&[ToWorker::Start(Box::new(start))], &[]);
    let mut beats = 0;
    loop {
        match worker.next().0 {
            FromWorker::Heartbeat { running, memory_bytes } => {
                beats += u32::from(running == 1);
                assert!(memory_bytes > 1 << 20, "{memory_bytes}");
            }
            FromWorker::Report(_) => break,
            _ => {}
        }
    }
    assert!(beats >= 10, "{beats} beats in 400 ms at one each 20 ms");
}
