//! `tm workers start`: locks, opens, starts, serves, drains.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use tm_core::{
    api::Reply,
    queue::effect::{Input, Ticket},
    spin::Spin,
    time::Millis,
};

use super::{
    Happening, Options, RunError,
    local::refuse_newer_program,
    open::{Life, memory_max_bytes, refuse_too_little_memory},
    private::Private,
    register::flow_files,
    session::Session,
};
use crate::{
    clock::Clock,
    config::{Backend, Fsync},
    daemon::{Edge, Signal, edge::connection_of, listen, pid_file},
    store::{
        disk::{Disk, RealDisk},
        idempotency::KeyFile,
        lock::{Locks, Role},
    },
    workers::{
        Pool, PoolEvent,
        profile::{WorkerUser, worker_mb},
    },
};

/// Happenings that the loop takes before it turns.
const HAPPENINGS_PER_TURN_MAX: usize = 1024;
/// How long a command that writes to the queue right now is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How long the first workers may take to be confined.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// How long the other workers may take after the first.
const OTHERS_PATIENCE: Duration = Duration::from_millis(500);
/// How long the loop sleeps at most while something waits for a time of the wall, which may be set meanwhile.
const WALL_AGAIN_MS: u64 = 1000;

/// What stands once the pool is up.
#[derive(Clone, Debug)]
pub struct Ready {
    pub pid: u32,
    /// Registered flows, with those of the runtime folder.
    pub flows: usize,
    /// Files of the runtime folder that could not be loaded, with the reason.
    pub not_loaded: Vec<String>,
    pub workers: usize,
    /// What confinement is missing, with `--allow-weaker-confinement`.
    pub missing: Vec<String>,
    /// The most memory that the pools of the workers that are up can hold.
    pub memory_bound_bytes: u64,
    /// The most that workers ever hold together, whatever they are started for: `workers.memory_max`.
    pub memory_max_bytes: u64,
    /// What is reserved in the log for the end of each leased task (I7).
    pub end_reserve_bytes: u64,
    pub recovered_runs: usize,
    pub damaged_records: usize,
}

/// How a supervisor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// No step was running any more.
    Drained,
    /// The grace was over, or a second signal came: this many attempts were stopped and stay queued.
    Stopped { aborted: usize },
}

/// Runs a supervisor until a signal ends it. `ready` is called once, when flows are loaded and workers are confined.
///
/// # Errors
/// When the queue belongs to another process, cannot be opened, or no worker can be started.
pub fn supervise(options: &Options, ready: &mut dyn FnMut(&Ready)) -> Result<Ended, RunError> {
    refuse_before_anything_is_made(options)?;
    if options.settings.queue.backend == Backend::File {
        refuse_newer_program(&options.roots)?;
    }
    let disk = RealDisk::create(&options.roots)?;
    let _locks = Locks::acquire(&options.roots, Role::Supervisor, LOCK_PATIENCE)?;
    listen::refuse_live(&options.roots.queue)?;
    let pid_file = pid_file::write(&options.pid_file)?;
    let ended = match options.settings.queue.backend {
        Backend::File => serve(options, &options.roots.queue, disk, "file", ready),
        Backend::Memory => {
            // The same code on a file system in memory; socket and lock stand where clients look for them.
            let private = Private::make()?;
            let mut inside = Options { roots: private.roots(), ..options.clone() };
            inside.settings.queue.fsync = Fsync::Never;
            let disk = RealDisk::create(&inside.roots)?;
            serve(&inside, &options.roots.queue, disk, "memory", ready)
        }
    };
    drop(pid_file);
    ended
}

/// What can be known to be wrong without a queue: whoever is refused leaves no folder behind.
fn refuse_before_anything_is_made(options: &Options) -> Result<(), RunError> {
    options.settings.check()?;
    refuse_too_little_memory(&options.settings, worker_mb(1, 1))?;
    if options.runtime_named && !options.runtime.is_dir() {
        return Err(RunError::NoRuntime { path: options.runtime.clone() });
    }
    WorkerUser::resolve(options.worker_user.as_deref())?;
    pid_file::check(&options.pid_file)?;
    Ok(Locks::refuse_supervised(&options.roots)?)
}

struct Loop<'a, D: Disk> {
    options: &'a Options,
    session: Session<D>,
    edge: Edge,
    inbox: Receiver<Happening>,
    clock: Clock,
    keys: KeyFile<D>,
    /// When the loop was last done waiting.
    awake_since: Instant,
    spin: Spin,
}

fn serve<D: Disk>(
    options: &Options,
    socket_folder: &Path,
    disk: D,
    backend: &'static str,
    ready: &mut dyn FnMut(&Ready),
) -> Result<Ended, RunError> {
    let (sender, inbox) = mpsc::channel();
    let mut clock = Clock::new();
    let (mut session, recovery) =
        Session::open(options, disk.clone(), backend, &sender, Life::Supervisor, clock.now())?;
    let clock = Clock::not_before(session.turn.state.last_at);
    let recovered_runs = session.turn.state.runs.len();
    // Without a wall nothing could run: said now, not at the first task.
    session.house.natives.compatibility().map_err(|failed| RunError::NoWorker { reason: failed.to_string() })?;
    let listener = listen::bind(socket_folder)?;
    let calls = sender.clone();
    let edge = Edge::start(listener, true, move |incoming| drop(calls.send(Happening::Edge(incoming))))?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let (keys, awake_since, spin) = (KeyFile::new(disk), Instant::now(), Spin::on(processors));
    let mut running = Loop { options, session, edge, inbox, clock, keys, awake_since, spin };
    let not_loaded = running.load_folder()?;
    running.wait_for_workers()?;
    let rows = running.session.house.workers();
    let missing: BTreeSet<String> = rows.iter().flat_map(|row| row.missing.clone()).collect();
    ready(&Ready {
        pid: std::process::id(),
        flows: running.session.turn.state.latest.len(),
        not_loaded,
        workers: rows.len(),
        missing: missing.into_iter().collect(),
        memory_bound_bytes: running.session.house.pool.as_ref().map_or(0, Pool::memory_bound_bytes),
        memory_max_bytes: memory_max_bytes(&options.settings),
        end_reserve_bytes: tm_core::limits::END_RESERVE_BYTES,
        recovered_runs,
        damaged_records: recovery.damaged.len(),
    });
    running.run()
}

impl<D: Disk> Loop<'_, D> {
    /// Turns until a signal was obeyed.
    fn run(mut self) -> Result<Ended, RunError> {
        let mut drain_until: Option<Instant> = None;
        loop {
            let mut due = self.session.turn(&mut self.clock)?;
            self.answer();
            let now = self.clock.now();
            let keys = self.keys.turn(self.session.turn.ended(now));
            due = [due, keys].into_iter().flatten().min();
            match self.session.signal {
                None => {}
                Some(Signal::Stop) => return self.stop(),
                Some(Signal::Drain) => {
                    let until = *drain_until.get_or_insert_with(|| {
                        tracing::info!("draining: nothing new is started");
                        Instant::now() + Duration::from_millis(self.options.settings.workers.drain_grace_ms)
                    });
                    self.session.turn.draining = true;
                    let left = until.saturating_duration_since(Instant::now());
                    if self.session.turn.state.indexes.leased == 0 || left.is_zero() {
                        return self.stop();
                    }
                    let until = now.plus(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).saturating_add(1));
                    due = Some(due.map_or(until, |due| due.min(until)));
                }
            }
            self.wait(due)?;
        }
    }

    /// Takes what happened, or waits for it until `due`.
    fn wait(&mut self, due: Option<Millis>) -> Result<(), RunError> {
        self.session.longest_turn = self.session.longest_turn.max(self.awake_since.elapsed());
        let span = due.map(|due| {
            let span_ms = due.since(self.clock.now());
            let is_delaying = !self.session.turn.state.indexes.delayed.is_empty();
            Duration::from_millis(if is_delaying { span_ms.min(WALL_AGAIN_MS) } else { span_ms })
        });
        let first = if span.is_some_and(|span| span.is_zero()) { None } else { self.next(span)? };
        self.awake_since = Instant::now();
        if let Some(first) = first {
            self.session.take(first)?;
        }
        for _ in 0..HAPPENINGS_PER_TURN_MAX {
            match self.inbox.try_recv() {
                Ok(happening) => self.session.take(happening)?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// The next happening, or none within `span`.
    fn next(&mut self, span: Option<Duration>) -> Result<Option<Happening>, RunError> {
        let begun = Instant::now();
        let waited_us = || u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let soon = self.spin.ask(waited_us, || {
            let next = self.inbox.try_recv().ok();
            if next.is_none() {
                std::thread::yield_now();
            }
            next
        });
        let next = match (soon, span) {
            (Some(happening), _) => Ok(happening),
            (None, None) => self.inbox.recv().map_err(RecvTimeoutError::from),
            (None, Some(span)) => self.inbox.recv_timeout(span),
        };
        self.spin.waited(waited_us(), self.session.turn.state.in_flight());
        match next {
            Ok(happening) => Ok(Some(happening)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(RunError::Lonely),
        }
    }

    fn answer(&mut self) {
        self.edge.answer(self.session.house.replies.drain(..));
    }

    /// Registers the flows of the runtime folder; returns what could not be loaded.
    fn load_folder(&mut self) -> Result<Vec<String>, RunError> {
        let path = &self.options.runtime;
        if !self.options.runtime_named && !path.is_dir() {
            return Ok(Vec::new());
        }
        let files = flow_files(path).map_err(|source| RunError::Folder { path: path.clone(), source })?;
        let (mut not_loaded, mut waiting) = (Vec::new(), BTreeSet::new());
        // Tickets of connection 0 are the shell's own.
        for (file, number) in files.into_iter().zip(1u64..) {
            self.session.registrar.give_file(Ticket(number), file, self.session.house.catalogue.ceilings());
            waiting.insert(Ticket(number));
        }
        while !waiting.is_empty() && self.session.signal.is_none() {
            self.wait(None)?;
            self.session.turn(&mut self.clock)?;
            let (own, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.session.house.replies)
                .into_iter()
                .partition(|(ticket, _)| connection_of(*ticket) == 0);
            self.session.house.replies = others;
            self.answer();
            for (ticket, reply) in own {
                waiting.remove(&ticket);
                match reply {
                    Reply::Error(error) => not_loaded.push(error.message),
                    Reply::Registered { flow, warnings, .. } => {
                        warnings.iter().for_each(|warning| tracing::warn!(%flow, "{warning}"));
                    }
                    _ => {}
                }
            }
        }
        Ok(not_loaded)
    }

    /// Waits until as many workers as are wanted are confined, so that READY means ready.
    fn wait_for_workers(&mut self) -> Result<(), RunError> {
        if self.session.turn.state.flows.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + READY_PATIENCE;
        // The first turn tells of the flows in the log, without which nothing is known to warm up.
        self.session.turn(&mut self.clock)?;
        self.answer();
        if let Some(needs_mb) = self.session.house.catalogue.smallest_worker_mb() {
            refuse_too_little_memory(&self.options.settings, needs_mb)?;
        }
        self.session.house.warm_up(&self.session.turn.state, self.clock.now());
        let wanted = usize::try_from(self.options.settings.workers.num).unwrap_or(usize::MAX);
        // One profile can have fewer workers than there are places: after the first, the others get a moment.
        let mut first: Option<Instant> = None;
        while self.session.signal.is_none() && Instant::now() < until {
            let up = self.session.house.workers().len();
            if up > 0 {
                first.get_or_insert_with(Instant::now);
            }
            if up >= wanted || first.is_some_and(|first| first.elapsed() > OTHERS_PATIENCE) {
                break;
            }
            let soon = self.clock.now().plus(20);
            self.wait(Some(soon))?;
            self.session.turn(&mut self.clock)?;
            self.answer();
        }
        Ok(())
    }

    /// Decides and answers everything that was taken in.
    fn settle(&mut self) -> Result<(), RunError> {
        loop {
            self.session.turn(&mut self.clock)?;
            self.answer();
            if self.session.is_settled() {
                return Ok(());
            }
        }
    }

    /// Stops workers, puts back what they were running, and closes.
    fn stop(mut self) -> Result<Ended, RunError> {
        self.session.turn.draining = true;
        // Every request that was taken before is answered; who sends one after it is told that it was not taken.
        self.edge.close();
        if let Some(pool) = self.session.house.pool.take() {
            pool.stop(Duration::from_millis(200));
        }
        // What was reported before the end counts; a worker's end does not, it was ours.
        loop {
            let writing = !self.session.ending.is_empty();
            let next = if writing { self.inbox.recv().ok() } else { self.inbox.try_recv().ok() };
            let Some(happening) = next else { break };
            if !matches!(happening, Happening::Pool(PoolEvent::Gone { .. } | PoolEvent::CannotStart { .. })) {
                self.session.take(happening)?;
            }
        }
        self.settle()?;
        let now = self.clock.now();
        self.session.turn.break_off(&mut self.session.house, now);
        let state = &self.session.turn.state;
        let leased: Vec<Input> = state
            .indexes
            .leases
            .iter()
            .flat_map(|(&worker, tasks)| tasks.iter().map(move |&task| (worker, task)))
            .filter_map(|(worker, task)| {
                let attempt = state.runs.get(&task.run)?.task(task)?.attempt;
                Some(Input::Aborted { worker, task, attempt })
            })
            .collect();
        let aborted = leased.len();
        self.session.reports.extend(leased);
        self.settle()?;
        self.edge.stop();
        let Session { turn, house, registrar, movers, .. } = self.session;
        drop((house, registrar, movers));
        turn.close()?;
        Ok(if aborted == 0 { Ended::Drained } else { Ended::Stopped { aborted } })
    }
}
