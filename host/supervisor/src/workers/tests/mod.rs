//! The pool with fake workers: real processes, sockets and signals, no wasmtime.

mod behaviour;
mod ends;
pub(super) mod fake;

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tm_core::{
    id::{RunId, TaskRef, WorkerId},
    json::Json,
    limits::Limits,
    queue::lanes::{Profile, ProfileNo, Slot, Want},
    time::Millis,
    wire::{Body, FromWorker, Outcome, Report, Required, Start, StartContext, StartGrants},
};

use super::{Isolation, NotHanded, Pool, PoolEvent, PoolSettings, profile::ProfileSpec};

/// Nothing here takes that long unless it is broken.
const BOUND: Duration = Duration::from_secs(20);

pub(super) fn settings() -> PoolSettings {
    PoolSettings {
        num: 1,
        warm_pool: 0,
        isolation: Isolation::Shared,
        concurrency: 16,
        weights: std::collections::BTreeMap::new(),
        heartbeat_ms: 20,
        heartbeat_timeout_ms: 10_000,
        start_timeout_ms: 10_000,
        memory_max_bytes: None,
        allow_weaker: false,
        user: super::profile::WorkerUser::resolve(None).unwrap(),
    }
}

/// A pool whose events are kept, with folders for its profiles.
struct Bench {
    pool: Pool,
    events: mpsc::Receiver<PoolEvent>,
    folder: TempDir,
    epoch: Instant,
    memory_max_mb: u32,
}

impl Bench {
    fn new(behaviour: &str) -> Self {
        Self::with(behaviour, settings())
    }

    fn with(behaviour: &str, settings: PoolSettings) -> Self {
        let (sender, events) = mpsc::channel();
        let emit = Box::new(move |event| drop(sender.send(event)));
        let pool = Pool::start(settings, fake::spawner(behaviour), emit).unwrap();
        Self { pool, events, folder: TempDir::new().unwrap(), epoch: Instant::now(), memory_max_mb: 64 }
    }

    /// Says that each of these profiles has so many ready tasks, since the beginning.
    fn want(&mut self, ready: &[(u32, u64)]) -> Option<Millis> {
        let wants: Vec<Want> = ready
            .iter()
            .map(|&(profile, ready)| Want { profile: ProfileNo(profile), ready, since: Millis(1_000_000) })
            .collect();
        let now_ms = 1_000_000 + u64::try_from(self.epoch.elapsed().as_millis()).unwrap();
        let (root, memory_max_mb) = (self.folder.path(), self.memory_max_mb);
        let spec = |no: ProfileNo| {
            let tenant = root.join(format!("t{}", no.0));
            Some(ProfileSpec {
                profile: Profile { tenant: format!("t{}", no.0), folders: Vec::new() },
                staging: tenant.join("tmp"),
                results: tenant.join("results"),
                scratch: tenant.join("scratch"),
                memory_max_mb,
                stack_max_kb: 1024,
                required: Required::default(),
            })
        };
        self.pool.want(&wants, &spec, now_ms)
    }

    fn next(&self) -> PoolEvent {
        self.events.recv_timeout(BOUND).expect("an event comes within its bound")
    }

    /// Wants one task of each profile until a worker is ready.
    fn ready(&mut self, profile: u32) -> WorkerId {
        self.want(&[(profile, 1)]);
        match self.next() {
            PoolEvent::Ready { worker, profile: of, .. } if of == ProfileNo(profile) => worker,
            other => panic!("ready was expected: {other:?}"),
        }
    }

    fn start(&mut self, worker: WorkerId, step: u16, input: Body, fds: Vec<super::OwnedFd>) -> Result<(), NotHanded> {
        self.pool.start_task(worker, start_message(step, input), fds)
    }

    /// Starts a small task and sends it off.
    fn go(&mut self, worker: WorkerId, step: u16) {
        self.start(worker, step, Body::Inline(Json::of(&step)), Vec::new()).unwrap();
        self.pool.flush();
    }

    fn report(&self) -> (WorkerId, Report, Vec<super::OwnedFd>) {
        match self.next() {
            PoolEvent::Message { worker, message: FromWorker::Report(report), fds } => (worker, *report, fds),
            other => panic!("a report was expected: {other:?}"),
        }
    }

    fn gone(&self) -> (WorkerId, String) {
        match self.next() {
            PoolEvent::Gone { worker, why } => (worker, why),
            other => panic!("the end of a worker was expected: {other:?}"),
        }
    }

    fn slot(&self, worker: WorkerId) -> Option<Slot> {
        self.pool.slots().into_iter().find(|slot| slot.worker == worker)
    }
}

fn task(step: u16) -> TaskRef {
    TaskRef { run: RunId(7), step, item: None }
}

fn start_message(step: u16, input: Body) -> Start {
    Start {
        task: task(step),
        attempt: 1,
        component: 1,
        context: StartContext {
            flow_id: "f".into(),
            step_id: "s".into(),
            max_attempts: 5,
            deadline_ms: 0,
            trace_parent: None,
        },
        input,
        limits: Limits::DEFAULT,
        grants: StartGrants::default(),
        in_flight: 1,
    }
}

fn output(report: &Report) -> &Json {
    match &report.outcome {
        Outcome::Succeeded { output: Body::Inline(json), .. } => json,
        other => panic!("an inline output was expected: {other:?}"),
    }
}

/// What runs alone in a process of its own, started by a test; a panic fails it.
fn scenario(name: &str) {
    match name {
        "leaves nothing" => {
            // Once before counting: the first use may open what stays.
            use_everything();
            let before = open_descriptors();
            for _ in 0..3 {
                use_everything();
            }
            assert_eq!(open_descriptors(), before, "descriptors are left open");
            let left = rustix::process::waitid(
                rustix::process::WaitId::All,
                rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOHANG,
            );
            assert!(matches!(left, Err(rustix::io::Errno::CHILD)), "no process is left, not even a dead one: {left:?}");
        }
        "hold a worker" => {
            let spawner = fake::spawner("park");
            let (child, link) = spawner.spawn(None).unwrap();
            println!("\nworker {}", child.pid());
            std::mem::forget((spawner, child, link));
            loop {
                std::thread::park();
            }
        }
        other => panic!("there is no scenario {other}"),
    }
}

/// Workers that end in every way: by themselves, killed, for a breach, with their pool.
fn use_everything() {
    for behaviour in ["good", "report and die", "many descriptors", "large output"] {
        let mut bench = Bench::with(behaviour, PoolSettings { num: 2, warm_pool: 1, ..settings() });
        let worker = bench.ready(1);
        let native = super::sealed::make(b"native").unwrap();
        bench.pool.load(worker, 1, native);
        let large = super::sealed::make(b"[1]").unwrap();
        bench.start(worker, 1, Body::Fd { size_bytes: 3 }, vec![large]).unwrap();
        bench.pool.flush();
        while !matches!(
            bench.next(),
            PoolEvent::Message { message: FromWorker::Report(_), .. } | PoolEvent::Gone { .. }
        ) {}
        bench.pool.kill(worker);
        bench.pool.stop(Duration::from_secs(5));
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
