//! Puts a session together: the store's rooms, the turn, and, for a supervisor, the workers.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

use tm_core::{limits::Limits, time::Millis};

use super::{
    Happening, Options, RunError,
    catalogue::Catalogue,
    held::Held,
    house::House,
    inspect::{Remembered, forget, is_private},
    jobs::Lane,
    natives::Natives,
    pause::{Pause, processor_load},
    payloads::StoredBlobs,
    register::Registrar,
    session::Session,
    sweep::Sweeper,
};
use crate::{
    config::{Fsync, Settings, WatchedCeilings},
    evaluate::MiniJinja,
    store::{
        artifacts::Artifacts,
        blobs::BlobStore,
        disk::Disk,
        dlq::Dlq,
        log::{self, LogOptions},
        recover::Recovery,
    },
    turn::{Rules, Turn},
    workers::{
        Isolation, Pool, PoolSettings,
        child::{Program, Spawner},
        compile::{CompileSettings, Compiler},
        profile::{WorkerUser, share_mb, worker_mb},
    },
};

/// How long the end of a supervisor waits for files of dead letters; the next start writes those that are left.
const FILES_PATIENCE: Duration = Duration::from_secs(2);
/// From a worker's first packet to ready.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// What kind of life the session is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// With workers, and alone: what predecessors left is swept.
    Supervisor,
    /// A command that passes: no workers.
    Passing,
}

impl<D: Disk> Session<D> {
    pub(super) fn open(
        options: &Options,
        disk: D,
        backend: &'static str,
        happenings: &Sender<Happening>,
        life: Life,
        now: Millis,
    ) -> Result<(Self, Recovery), RunError> {
        let settings = &options.settings;
        let blobs = StoredBlobs::new(BlobStore::new(disk.clone())?);
        let artifacts = Artifacts::new(disk.clone())?;
        let rules =
            Rules { policy: settings.policy(), evaluate: Box::new(MiniJinja::new()), blobs: Box::new(blobs.clone()) };
        let (turn, recovery) = Turn::open(disk.clone(), log_options(settings), rules, new_secret()?, now)?;
        // Finishes moves of files: only when the log could be read.
        let letters = Dlq::open(disk.clone())?;
        if let Err(error) = letters.catch_up(turn.ended(now)) {
            tracing::warn!(%error, "files of requeued or purged dead letters could not be archived");
        }
        let user = WorkerUser::resolve(options.worker_user.as_deref())?;
        let spawner =
            Arc::new(Spawner::start(Program::this_binary(user.clone())).map_err(crate::workers::PoolError::from)?);
        let compile = CompileSettings { allow_weaker: options.allow_weaker, ..CompileSettings::default() };
        let compiler = Arc::new(Compiler::new(Arc::clone(&spawner), compile)?);
        let inspect = Arc::new(Remembered::new(disk.clone(), is_private(&options.roots.store), compiler.clone())?);
        let pool = match life {
            Life::Passing => None,
            Life::Supervisor => {
                sweep(&turn, &disk, &blobs, &artifacts)?;
                let events = happenings.clone();
                let forward = move |event| drop(events.send(Happening::Pool(event)));
                Some(Pool::start(pool_settings(options, user.clone()), spawner, Box::new(forward))?)
            }
        };
        let files = Lane::start("tm-files").map_err(RunError::Thread)?;
        let files = match life {
            Life::Supervisor => files.leaving(FILES_PATIENCE),
            // Nobody may come after it.
            Life::Passing => files,
        };
        let house = House {
            catalogue: Catalogue::new(WatchedCeilings::new(&options.config, settings), &options.roots.store),
            pool,
            natives: Natives::new(disk, blobs.clone(), Arc::clone(&compiler))?,
            held: Held::default(),
            keep_scratch: settings.scratch.keep_on_success,
            artifacts_stay: settings.retention.artifacts.max_age_ms > 0,
            pause: Pause::new(settings.backpressure.clone(), processor_load),
            artifacts,
            store: options.roots.store.clone(),
            user,
            blobs: blobs.clone(),
            letters,
            files,
            makers: Lane::start("tm-makers").map_err(RunError::Thread)?.leaving(Duration::ZERO),
            evaluate: Arc::new(MiniJinja::new()),
            making: 0,
            archives: Arc::default(),
            happenings: happenings.clone(),
            host_env: host_env(settings),
            inputs: std::collections::VecDeque::new(),
            replies: Vec::new(),
            waiters: BTreeMap::new(),
            again_at: None,
        };
        let mut session = Self {
            turn,
            house,
            registrar: Registrar::start(settings, inspect, blobs, happenings.clone(), life)?,
            movers: Lane::start("tm-movers").map_err(RunError::Thread)?,
            ending: BTreeMap::new(),
            backend,
            unfiled: false,
            file_at: None,
            sweeper: Sweeper::new(settings, now, !recovery.damaged.is_empty()),
            signal: None,
            reports: std::collections::VecDeque::new(),
            requests: crate::daemon::RoundRobin::default(),
            reads: Vec::new(),
            turns: 0,
            longest_turn: Duration::ZERO,
        };
        if life == Life::Supervisor {
            session.reports.extend(session.turn.recover());
        }
        Ok((session, recovery))
    }
}

/// What nothing names any more, and what attempts of a predecessor staged. Only at the start: nobody writes then.
fn sweep<D: Disk>(turn: &Turn<D>, disk: &D, blobs: &StoredBlobs<D>, artifacts: &Artifacts<D>) -> Result<(), RunError> {
    let live = turn.live_blobs();
    let swept = blobs.store().sweep(&|digest| live.contains(digest), false)?;
    let staged = artifacts.sweep_staging()?;
    forget(disk, &live)?;
    if swept.files > 0 || staged > 0 {
        tracing::info!(blobs = swept.files, bytes = swept.bytes, staged, "swept what nothing names");
    }
    Ok(())
}

pub(super) fn log_options(settings: &Settings) -> LogOptions {
    let fsync = match settings.queue.fsync {
        Fsync::Always => log::Fsync::Always,
        Fsync::Interval => log::Fsync::Interval(1000),
        Fsync::Never => log::Fsync::Never,
    };
    LogOptions { segment_max_bytes: settings.queue.segment_max_bytes, fsync }
}

fn pool_settings(options: &Options, user: Option<WorkerUser>) -> PoolSettings {
    let workers = &options.settings.workers;
    let (machine_bytes, memory_max_bytes) = (memory_bytes(), memory_max_bytes(&options.settings));
    if memory_max_bytes > machine_bytes {
        tracing::warn!(
            "workers.memory_max ({} MiB) is more than there is ({} MiB): a worker that finds none dies with its steps",
            memory_max_bytes >> 20,
            machine_bytes >> 20,
        );
    }
    PoolSettings {
        num: workers.num,
        warm_pool: workers.warm_pool,
        isolation: match workers.isolation {
            crate::config::Isolation::Shared => Isolation::Shared,
            crate::config::Isolation::Task => Isolation::Task,
        },
        concurrency: workers.concurrency,
        weights: options.settings.weights.clone(),
        heartbeat_ms: workers.heartbeat_ms,
        heartbeat_timeout_ms: workers.heartbeat_timeout_ms,
        start_timeout_ms: u64::try_from(START_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
        memory_max_bytes: Some(memory_max_bytes),
        allow_weaker: options.allow_weaker,
        user,
    }
}

/// What `workers.memory_max` is on this machine.
pub(super) fn memory_max_bytes(settings: &Settings) -> u64 {
    settings.workers.memory_max.of(memory_bytes())
}

/// Refuses settings under which the smallest worker, which needs so much, gets too little memory: none would ever start.
pub(super) fn refuse_too_little_memory(settings: &Settings, needs_mb: u64) -> Result<(), RunError> {
    let num = settings.workers.num;
    let share_mb = share_mb(memory_max_bytes(settings), num);
    if share_mb < needs_mb {
        return Err(RunError::NoMemory { memory_max: settings.workers.memory_max, num, share_mb, needs_mb });
    }
    Ok(())
}

/// What a step of these limits needs that no worker has; none when one can run it.
pub(super) fn fits_no_worker(settings: &Settings, limits: &Limits) -> Option<String> {
    let (num, needs_mb) = (settings.workers.num, worker_mb(limits.memory_mb, limits.stack_kb));
    let share_mb = share_mb(memory_max_bytes(settings), num);
    let most = settings.workers.memory_max;
    (share_mb < needs_mb).then(|| {
        format!("a worker of {needs_mb} MiB: workers.memory_max ({most}) leaves {share_mb} MiB for each with workers.num = {num}")
    })
}

/// The machine's memory, or the control group's when that is less.
fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(u64::from(info.mem_unit));
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let group = limits.iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    group.map_or(machine, |group| group.min(machine))
}

/// The variables of this process that some tenant's ceiling names; no others are even read.
fn host_env(settings: &Settings) -> BTreeMap<String, String> {
    settings.ceilings.env_names().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))).collect()
}

/// A secret that ids are minted with.
fn new_secret() -> Result<[u8; 16], RunError> {
    let mut secret = [0; 16];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut secret)).map_err(RunError::Random)?;
    Ok(secret)
}
