//! The thread that receives: waits for all sockets and process descriptors of a pool and turns what happens into events.
//!
//! It alone reaps, and it alone emits, so that a worker's messages keep their order and its end comes last. The lock on
//! the state is never held while an event is handed over, so the receiver of events may make this thread wait.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};
use tm_core::{
    id::WorkerId,
    spin::Spin,
    wire::{Confinement, FromWorker},
};

use super::{
    PoolEvent,
    child::{Child, ChildError, Exit},
    link::{Inbox, Link, LinkError, Received},
    pool::Phase,
    state::{Member, Process, State, Verdict},
    watch::Watch,
};

/// Packets taken from one worker before the others get their turn.
const PACKETS_PER_TURN_MAX: usize = 16;
/// What an epoll event is about: the two lowest bits beside the worker's number.
const WAKE: u64 = u64::MAX;
const SOCKET: u64 = 0;
const PROCESS: u64 = 1;

/// What both threads use.
pub(super) struct Shared {
    state: Mutex<State>,
    epoll: OwnedFd,
    wake: OwnedFd,
}

impl Shared {
    pub(super) fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Self { state: Mutex::new(State::default()), epoll, wake })
    }

    /// The state; a panic elsewhere while it was held changes nothing about its use.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the receiving thread look at the state.
    pub(super) fn wake(&self) {
        // Fails only when the counter is full, and then the thread wakes anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Whether the receiving thread should wait for room in the worker's socket.
    pub(super) fn watch_room(&self, worker: WorkerId, link: &Link, room: bool) {
        let flags = if room { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        // Fails only when the link was taken out, because its worker is gone.
        let _ = epoll::modify(&self.epoll, link, epoll::EventData::new_u64(worker.0 << 1 | SOCKET), flags);
    }
}

pub(super) type Emit = Arc<dyn Fn(PoolEvent) + Send + Sync>;

pub(super) struct Receiver {
    pub shared: Arc<Shared>,
    pub emit: Emit,
    pub watch: Watch,
    pub epoch: Instant,
    pub allow_weaker: bool,
    /// One worker's part of `memory_max`.
    pub share_mb: Option<u64>,
    pub inbox: Inbox,
    pub spin: Spin,
    /// Tasks that run in workers or wait for one, when this was last looked at.
    pub in_flight: u64,
    /// Links that are still listened to.
    pub links: BTreeMap<WorkerId, Arc<Link>>,
}

impl Receiver {
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Runs until the pool is stopping and its last process is reaped.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            if let Err(errno) = self.wait(&mut events) {
                // Without its waits the pool can see nothing: the command has to end.
                (self.emit)(PoolEvent::CannotStart { reason: format!("cannot wait for workers: {errno}") });
                return;
            }
            let now = self.now();
            self.watch.turn(now);
            self.take_spawned(now);
            self.follow_running(now);
            for event in &events {
                let data = event.data.u64();
                let worker = WorkerId(data >> 1);
                if data == WAKE {
                    let _ = rustix::io::read(&self.shared.wake, &mut [0u8; 8]);
                } else if data & 1 == PROCESS {
                    self.process_ended(worker);
                } else {
                    self.socket_ready(worker, event.flags);
                }
            }
            self.kill_silent();
            let state = self.shared.lock();
            if state.stopping && state.members.is_empty() {
                return;
            }
        }
    }

    /// Waits until something happens or the watch has to look again.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) -> Result<(), Errno> {
        let begun = Instant::now();
        let waited_us = || u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut look = |timeout: Timespec| match epoll::wait(&self.shared.epoll, spare_capacity(events), Some(&timeout))
        {
            Err(Errno::INTR) => Ok(0),
            looked => looked,
        };
        let soon = self.spin.ask(waited_us, || match look(Timespec { tv_sec: 0, tv_nsec: 0 }) {
            Ok(0) => {
                std::thread::yield_now();
                None
            }
            looked => Some(looked),
        });
        let span = self.watch.wait(self.now()).min(Duration::from_secs(1));
        let timeout = Timespec { tv_sec: i64::from(span.as_secs() > 0), tv_nsec: i64::from(span.subsec_nanos()) };
        let looked = soon.unwrap_or_else(|| look(timeout));
        self.spin.waited(waited_us(), self.in_flight);
        looked.map(drop)
    }

    /// Takes over processes that the spawner has started.
    fn take_spawned(&mut self, now: u64) {
        let spawned = std::mem::take(&mut self.shared.lock().spawned);
        for (worker, made) in spawned {
            let adopted = made.and_then(|(child, link)| {
                let link = Arc::new(link);
                let data = |kind| epoll::EventData::new_u64(worker.0 << 1 | kind);
                epoll::add(&self.shared.epoll, &link, data(SOCKET), epoll::EventFlags::IN)
                    .and_then(|()| epoll::add(&self.shared.epoll, child.pidfd(), data(PROCESS), epoll::EventFlags::IN))
                    .map_err(ChildError::Prepare)?;
                Ok((child, link))
            });
            match adopted {
                Ok((child, link)) => self.adopt(worker, child, link, now),
                Err(error) => self.end(worker, None, error.to_string(), false),
            }
        }
    }

    fn adopt(&mut self, worker: WorkerId, child: Child, link: Arc<Link>, now: u64) {
        self.links.insert(worker, Arc::clone(&link));
        let mut state = self.shared.lock();
        let Some(member) = state.members.get_mut(&worker) else { return };
        if member.phase == Phase::Dying {
            child.kill();
        }
        member.process = Some(Process { child, link });
        if member.phase == Phase::Starting {
            self.watch.starting(worker, now);
        }
        if member.send() {
            self.shared.watch_room(worker, &self.links[&worker], true);
        }
    }

    /// Tells the watch which workers owe what; the loop's thread changes that.
    fn follow_running(&mut self, now: u64) {
        let state = self.shared.lock();
        let running: usize = state.members.values().map(|member| member.running.len()).sum();
        self.in_flight = state.ready + running as u64;
        for (&worker, member) in &state.members {
            match member.phase {
                Phase::Starting if member.process.is_some() => self.watch.starting(worker, now),
                Phase::Ready => self.watch.busy(worker, !member.running.is_empty(), now),
                Phase::Dying => self.watch.gone(worker),
                Phase::Starting | Phase::Spare => {}
            }
        }
    }

    fn socket_ready(&mut self, worker: WorkerId, flags: epoll::EventFlags) {
        if flags.contains(epoll::EventFlags::OUT) {
            let mut state = self.shared.lock();
            let blocked = state.members.get_mut(&worker).is_some_and(Member::send);
            if let (false, Some(link)) = (blocked, self.links.get(&worker)) {
                self.shared.watch_room(worker, link, false);
            }
        }
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            self.receive(worker, PACKETS_PER_TURN_MAX);
        }
    }

    /// Takes at most `packets_max` packets of a worker; a link that ends or breaks ends its worker.
    fn receive(&mut self, worker: WorkerId, packets_max: usize) {
        for _ in 0..packets_max {
            let Some(link) = self.links.get(&worker) else { return };
            match link.receive(&mut self.inbox) {
                Ok(None) => return,
                Ok(Some(messages)) => {
                    let now = self.now();
                    self.watch.heard(worker, now);
                    for received in messages {
                        if let Err(breach) = self.message(worker, received, now) {
                            return self.break_off(worker, breach);
                        }
                    }
                }
                Err(LinkError::Closed) => return self.break_off(worker, "closed its socket".to_owned()),
                Err(error) => return self.break_off(worker, error.to_string()),
            }
        }
    }

    /// Listens no longer and kills; the process descriptor says when it is dead.
    fn break_off(&mut self, worker: WorkerId, why: String) {
        if let Some(link) = self.links.remove(&worker) {
            let _ = epoll::delete(&self.shared.epoll, &link);
        }
        let mut state = self.shared.lock();
        if let Some(member) = state.members.get_mut(&worker) {
            member.kill(why);
        }
        drop(state);
        self.watch.gone(worker);
    }

    /// Takes one message; an error is a breach of the protocol.
    fn message(&mut self, worker: WorkerId, received: Received, now: u64) -> Result<(), String> {
        let Received { message, fds } = received;
        let mut state = self.shared.lock();
        let State { members, starts, .. } = &mut *state;
        let Some(member) = members.get_mut(&worker) else { return Ok(()) };
        // A worker that was killed may have said something before; what it said as a worker still counts.
        if !member.was_ready && !matches!(message, FromWorker::Ready(_) | FromWorker::Unable { .. }) {
            return Err("sent a message before it was ready".to_owned());
        }
        match message {
            FromWorker::Ready(confinement) => {
                if member.phase != Phase::Starting {
                    return if member.phase == Phase::Dying { Ok(()) } else { Err("said ready twice".to_owned()) };
                }
                weaker_than_allowed(&confinement, self.allow_weaker)?;
                within_share(&confinement, self.share_mb)?;
                let Some(profile) = member.profile else { return Ok(()) };
                (member.phase, member.was_ready, member.idle_since) = (Phase::Ready, true, Instant::now());
                member.confinement = Some(confinement.clone());
                starts.ready(Some(profile));
                drop(state);
                self.watch.ready(worker, now);
                (self.emit)(PoolEvent::Ready { worker, profile, confinement });
                return Ok(());
            }
            FromWorker::Unable { reason } => {
                member.unable = true;
                return Err(format!("cannot become a worker: {}", one_line(&reason)));
            }
            FromWorker::Heartbeat { memory_bytes, .. } => {
                member.memory_bytes = memory_bytes;
                drop(state);
                if let Some(degraded) = self.watch.beat(worker, now) {
                    tracing::warn!(
                        code = "HEARTBEAT_DEGRADED",
                        worker = worker.0,
                        late_in_row = degraded.late_in_row,
                        gap_ms = degraded.gap_ms,
                        "heartbeats of a worker come late: the host is overloaded, or the worker is"
                    );
                }
                return Ok(());
            }
            FromWorker::Inspected(_) | FromWorker::Compiled { .. } | FromWorker::CompileFailed { .. } => {
                return Err("sent a message of another role".to_owned());
            }
            FromWorker::LoadFailed { component, .. } => {
                member.loaded.remove(&component);
            }
            FromWorker::Report(_) => starts.reported(),
            FromWorker::Loaded { .. } | FromWorker::Progress { .. } => {}
        }
        drop(state);
        (self.emit)(PoolEvent::Message { worker, message, fds });
        Ok(())
    }

    /// The process is dead: takes what it still had said, reaps it, and says so.
    fn process_ended(&mut self, worker: WorkerId) {
        // All its packets are in the socket, which holds a bounded number of them and gets no more.
        self.receive(worker, usize::MAX);
        let mut state = self.shared.lock();
        let Some(process) = state.members.get_mut(&worker).and_then(|member| member.process.as_mut()) else { return };
        let Some(exit) = process.child.try_reap() else { return };
        let words = process.child.last_words();
        let _ = epoll::delete(&self.shared.epoll, process.child.pidfd());
        drop(state);
        if let Some(link) = self.links.remove(&worker) {
            let _ = epoll::delete(&self.shared.epoll, &link);
        }
        self.end(worker, Some(exit), words, true);
    }

    /// Removes a worker that has no process (any more) and emits what follows.
    fn end(&mut self, worker: WorkerId, exit: Option<Exit>, words: String, ran: bool) {
        self.watch.gone(worker);
        let mut state = self.shared.lock();
        let Some(member) = state.members.remove(&worker) else { return };
        let why = match (&member.why, exit) {
            (Some(why), _) => why.clone(),
            (None, Some(exit)) => exit.to_string(),
            (None, None) => String::new(),
        };
        let why = [why, words].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ");
        let mut follow = None;
        if !member.by_us && !state.stopping {
            let now = Instant::now();
            if member.was_ready {
                state.starts.died(now);
            } else {
                let verdict = state.starts.failed(member.profile, member.unable, now);
                follow = match (verdict, member.profile) {
                    (Verdict::TryAgain, _) => None,
                    (Verdict::ProfileBroken, Some(profile)) => {
                        Some(PoolEvent::ProfileBroken { profile, reason: why.clone() })
                    }
                    (Verdict::ProfileBroken | Verdict::CannotStart, _) => {
                        Some(PoolEvent::CannotStart { reason: why.clone() })
                    }
                };
            }
        }
        drop(state);
        tracing::debug!(worker = worker.0, ran, why, "worker gone");
        drop(member);
        (self.emit)(PoolEvent::Gone { worker, why });
        if let Some(event) = follow {
            (self.emit)(event);
        }
    }

    fn kill_silent(&mut self) {
        let now = self.now();
        for (worker, silent_ms) in self.watch.scan(now) {
            tracing::warn!(worker = worker.0, silent_ms, "worker is silent and is killed");
            if let Some(member) = self.shared.lock().members.get_mut(&worker) {
                member.kill(format!("was silent for {silent_ms} ms and was killed"));
            }
            self.watch.gone(worker);
        }
    }
}

/// Refuses a worker that stands without walls that it must have.
pub(super) fn weaker_than_allowed(confinement: &Confinement, allow_weaker: bool) -> Result<(), String> {
    let whole = confinement.missing.is_empty() && confinement.seccomp && confinement.landlock_abi.is_some();
    if whole || allow_weaker {
        return Ok(());
    }
    let missing = confinement.missing.iter().map(|missing| one_line(missing)).collect::<Vec<_>>().join(", ");
    Err(format!("is not confined ({missing}); --allow-weaker-confinement goes on without"))
}

/// Refuses a worker whose pool can hold more than its share of `memory_max`.
fn within_share(confinement: &Confinement, share_mb: Option<u64>) -> Result<(), String> {
    let bound_mb = confinement.memory_bound_bytes >> 20;
    match share_mb {
        Some(share_mb) if bound_mb > share_mb => Err(format!(
            "can hold {bound_mb} MiB of memory, its share is {share_mb} MiB: raise memory_max or start fewer workers"
        )),
        _ => Ok(()),
    }
}

/// Text of a worker for a log or a terminal: no control characters, at most 1000 characters.
pub(super) fn one_line(text: &str) -> String {
    text.chars().take(1000).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
