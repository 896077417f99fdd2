//! The packet loop of a worker that runs steps: takes starts, interleaves attempts on one thread, answers in batches.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::io::Errno;
use tm_core::{
    code,
    id::{Attempt, TaskRef},
    limits::{PACKET_MAX_BYTES, PACKET_MAX_FDS},
    spin::Spin,
    wire::{
        Confinement, ExecuteInit, Failure, Folder, FolderRole, FromWorker, Outcome, Report, Start, ToWorker, Usage,
        codec,
    },
};
use tokio::{
    io::unix::AsyncFd,
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
};
use wasmtime::{
    Engine,
    component::{Component, ComponentExportIndex, Linker},
};
use wasmtime_wasi::{FsPerms, OpenMode, filesystem::Dir};

use crate::{
    confine::{self, Role, Walls},
    packet::{self, Packet, PacketError, Receiver},
    pulse::{Pulse, Resident},
    sandbox::{
        ctx::{Ctx, Signals},
        engine,
        linker::{Capabilities, linker},
        run::{self, Entry, Place},
        verdict,
    },
    start::StartError,
};

/// Attempts that are polled between two looks at the socket: reports leave in batches of at most so many, so that the
/// supervisor's disk works while the guests do.
const POLLS_PER_LOOK: u32 = 16;
/// Threads for the few file operations that wasmtime never does in place.
const BLOCKING_THREADS_MAX: usize = 4;

/// Ends a log of which the rest did not fit.
const LOG_CUT: &str = "\n[log cut to fit its packet]\n";

/// One message to the supervisor, with its descriptor.
pub struct Outgoing {
    pub message: FromWorker,
    pub fd: Option<OwnedFd>,
}

/// The folders of this worker's profile, open for its whole life.
pub struct Folders(Vec<(Folder, Dir)>);

impl Folders {
    #[must_use]
    pub(crate) fn get(&self, place: u32) -> Option<(&Folder, &Dir)> {
        self.0.get(place as usize).map(|(folder, dir)| (folder, dir))
    }

    fn by_role(&self, role: FolderRole) -> Option<&File> {
        self.0.iter().find(|(folder, _)| folder.role == role).map(|(_, dir)| &*dir.dir)
    }

    #[must_use]
    pub(crate) fn staging(&self) -> Option<&File> {
        self.by_role(FolderRole::Staging)
    }

    #[must_use]
    pub(crate) fn results(&self) -> Option<&File> {
        self.by_role(FolderRole::Results)
    }

    #[must_use]
    pub(crate) fn scratch(&self) -> Option<&File> {
        self.by_role(FolderRole::Scratch)
    }
}

/// Becomes a worker that runs steps, confines itself, and serves until the supervisor closes its end.
///
/// # Errors
/// When it cannot be confined, or the supervisor breaks the contract of the messages.
pub(crate) fn execute(
    socket: &OwnedFd,
    receiver: Receiver,
    init: ExecuteInit,
    fds: Vec<OwnedFd>,
    which: Walls,
) -> Result<(), StartError> {
    let (engine, memory_bound_bytes) = engine::executor(&init)?;
    let plain = linker(&engine, Capabilities::default()).map_err(engine::EngineError::from)?;
    let resident = Resident::open();
    // Before the walls: it reads what the control group allows.
    let spin = Spin::on(std::thread::available_parallelism().map_or(1, usize::from));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .event_interval(POLLS_PER_LOOK)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .map_err(StartError::Runtime)?;
    let folders: Vec<(Folder, File)> = init.folders.iter().cloned().zip(fds.into_iter().map(File::from)).collect();
    let standing = confine::walls(Role::Execute, which, &folders, init.allow_weaker)?;

    // A host function that panics has no answer to give: the supervisor learns of it by the death.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("worker: {info}");
        std::process::abort();
    }));
    let pulse = Pulse::start(engine.weak()).map_err(StartError::Runtime)?;
    let beat_socket = socket.try_clone().map_err(StartError::Runtime)?;
    rustix::fs::fcntl_setfl(socket, rustix::fs::OFlags::NONBLOCK).map_err(PacketError::from)?;
    let ready = FromWorker::Ready(Confinement {
        landlock_abi: standing.landlock_abi,
        seccomp: standing.seccomp,
        missing: standing.missing,
        memory_bound_bytes,
        compatibility: engine::compatibility(&engine),
    });
    packet::send_messages(socket.as_fd(), &[ready], &[])?;
    pulse.beat(beat_socket, resident, Duration::from_millis(init.heartbeat_ms.max(1))).map_err(StartError::Runtime)?;

    let (out, reports) = mpsc::unbounded_channel();
    let worker = Worker {
        linkers: BTreeMap::from([(Capabilities::default(), plain)]),
        engine,
        components: HashMap::new(),
        folders: Arc::new(Folders(
            folders
                .into_iter()
                .map(|(folder, file)| (folder, Dir::new(file, FsPerms::ReadOnly, OpenMode::READ, true)))
                .collect(),
        )),
        running: HashMap::new(),
        concurrency: init.concurrency.max(1) as usize,
        in_flight: 0,
        pulse,
        out,
    };
    let served = runtime.block_on(serve(socket.as_fd(), receiver, worker, reports, spin));
    // Not waiting: a blocking thread may sit in a slow file system, and the process ends anyway.
    runtime.shutdown_background();
    served
}

struct Loaded {
    component: Component,
    run: ComponentExportIndex,
    entries: BTreeMap<Capabilities, Arc<Entry>>,
}

struct Worker {
    engine: Engine,
    linkers: BTreeMap<Capabilities, Linker<Ctx>>,
    /// What cannot be called is kept too, with the reason: each of its starts ends with it.
    components: HashMap<u32, Result<Loaded, Failure>>,
    folders: Arc<Folders>,
    running: HashMap<(TaskRef, Attempt), Arc<Signals>>,
    concurrency: usize,
    /// In the whole queue, as the newest start tells it.
    in_flight: u64,
    pulse: Pulse,
    out: UnboundedSender<Outgoing>,
}

async fn serve(
    socket: BorrowedFd<'_>,
    mut receiver: Receiver,
    mut worker: Worker,
    mut reports: UnboundedReceiver<Outgoing>,
    mut spin: Spin,
) -> Result<(), StartError> {
    // SAFETY: the descriptor is borrowed for the whole life of this future: it is neither closed nor replaced meanwhile.
    let socket = unsafe { AsyncFd::register(socket) }.map_err(|error| StartError::Runtime(error.into()))?;
    let (mut batch, mut idle_since) = (Vec::new(), Instant::now());
    loop {
        let waited_us = || u64::try_from(idle_since.elapsed().as_micros()).unwrap_or(u64::MAX);
        // No guest waits for this thread then; the grace of a cancel may end late by the spin.
        let is_idle = worker.running.is_empty() && reports.is_empty();
        let spun =
            if is_idle { spin.ask(waited_us, || soon(&mut receiver, *socket.get_ref(), &mut worker)) } else { None };
        let taken = match spun {
            Some(taken) => taken?,
            None => tokio::select! {
                biased;
                _ = reports.recv_many(&mut batch, PACKET_MAX_FDS) => {
                    worker.forget_finished(&batch);
                    send_all(&socket, &mut batch).await?;
                    idle_since = Instant::now();
                    continue;
                }
                guard = socket.readable() => {
                    let mut guard = guard.map_err(StartError::Runtime)?;
                    let taken = take_packet(&mut receiver, *socket.get_ref(), &mut worker)?;
                    if taken == Taken::Nothing {
                        guard.clear_ready();
                    }
                    taken
                }
            },
        };
        match taken {
            Taken::Nothing => {}
            Taken::Packet if is_idle => spin.waited(waited_us(), worker.in_flight),
            Taken::Packet => {}
            Taken::End => return Ok(()),
        }
    }
}

/// What the socket gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Packet,
    Nothing,
    /// The supervisor closed its end.
    End,
}

fn take_packet(receiver: &mut Receiver, socket: BorrowedFd<'_>, worker: &mut Worker) -> Result<Taken, PacketError> {
    match receiver.receive(socket) {
        Ok(Some(packet)) => worker.take(packet).map(|()| Taken::Packet),
        Err(PacketError::Socket(Errno::AGAIN)) => Ok(Taken::Nothing),
        // The supervisor is gone, maybe with unread messages: as good as a closed end.
        Ok(None) | Err(PacketError::Socket(Errno::CONNRESET)) => Ok(Taken::End),
        Err(error) => Err(error),
    }
}

/// As [`take_packet`], where nothing is no answer and gives the processor away.
fn soon(receiver: &mut Receiver, socket: BorrowedFd<'_>, worker: &mut Worker) -> Option<Result<Taken, PacketError>> {
    let taken = take_packet(receiver, socket, worker);
    if matches!(taken, Ok(Taken::Nothing)) {
        std::thread::yield_now();
        return None;
    }
    Some(taken)
}

impl Worker {
    fn take(&mut self, mut packet: Packet<'_>) -> Result<(), PacketError> {
        for message in packet.messages::<ToWorker>()? {
            match message {
                ToWorker::Load { component } => {
                    let native = packet.fd()?;
                    let answer = match self.load(component, &native) {
                        Ok(()) => FromWorker::Loaded { component },
                        Err(Failure { message: reason, .. }) => FromWorker::LoadFailed { component, reason },
                    };
                    self.tell(answer);
                }
                ToWorker::Unload { component } => drop(self.components.remove(&component)),
                ToWorker::Start(start) => {
                    self.in_flight = start.in_flight;
                    let fd = match start.input {
                        tm_core::wire::Body::Fd { .. } => Some(packet.fd()?),
                        tm_core::wire::Body::Inline(_) => None,
                    };
                    self.start(start, fd.as_ref());
                }
                ToWorker::Cancel { task, attempt, grace_ms } => self.cancel(task, attempt, grace_ms),
            }
        }
        Ok(())
    }

    fn tell(&self, message: FromWorker) {
        // The receiver lives as long as the loop that calls this.
        let _ = self.out.send(Outgoing { message, fd: None });
    }

    fn load(&mut self, number: u32, native: &OwnedFd) -> Result<(), Failure> {
        let loaded = self.loaded(native);
        let answer = loaded.as_ref().map(drop).map_err(Failure::clone);
        self.components.insert(number, loaded);
        answer
    }

    fn loaded(&self, native: &OwnedFd) -> Result<Loaded, Failure> {
        // SAFETY: the supervisor made the artefact in a compile process of this same program, keeps it where no tenant
        // can write, and hands it over as a sealed memfd: it cannot change while it is mapped.
        let component = unsafe { Component::deserialize_file(&self.engine, confine::own_path(native)) };
        let component = component.map_err(|error| {
            // Without a descriptor or memory here and now, another attempt loads it again.
            let by_system = error.chain().any(|cause| cause.is::<std::io::Error>() || cause.is::<Errno>());
            let code = if by_system { code::HOST_ERROR } else { code::COMPILE_FAILED };
            verdict::host(code, &format!("the native artefact does not load: {error:#}"))
        })?;
        let missing = "the component does not export tracemind:flow/step@0.1.0 with run";
        let run = run::entry_point(&component).ok_or_else(|| verdict::host(code::COMPILE_FAILED, missing))?;
        Ok(Loaded { component, run, entries: BTreeMap::new() })
    }

    fn start(&mut self, start: Box<Start>, input: Option<&OwnedFd>) {
        let (task, attempt) = (start.task, start.attempt);
        if self.running.len() >= self.concurrency || self.running.contains_key(&(task, attempt)) {
            let reason = format!("this worker runs {} steps already", self.running.len());
            return self.refuse(task, attempt, Outcome::NotStarted { reason });
        }
        let read = match run::read_input(&start.input, input) {
            Ok(read) => read,
            Err(reason) => return self.refuse(task, attempt, Outcome::NotStarted { reason }),
        };
        let entry = match self.entry(start.component, Capabilities::of(&start.grants)) {
            Some(Ok(entry)) => entry,
            Some(Err(failure)) => return self.refuse(task, attempt, Outcome::Failed(failure)),
            None => {
                let reason = format!("component {} is not loaded in this worker", start.component);
                return self.refuse(task, attempt, Outcome::NotStarted { reason });
            }
        };
        let signals = Arc::new(Signals::default());
        self.running.insert((task, attempt), Arc::clone(&signals));
        let place =
            Place { engine: self.engine.clone(), folders: Arc::clone(&self.folders), signals, out: self.out.clone() };
        let running = self.pulse.enter();
        tokio::spawn(async move {
            let (report, fd) = run::attempt(&entry, &place, &start, read.as_deref()).await;
            drop(running);
            let _ = place.out.send(Outgoing { message: FromWorker::Report(Box::new(report)), fd });
        });
    }

    /// The end of an attempt that never became one.
    fn refuse(&self, task: TaskRef, attempt: Attempt, outcome: Outcome) {
        let report = Report { task, attempt, outcome, usage: Usage::default(), log: String::new() };
        self.tell(FromWorker::Report(Box::new(report)));
    }

    /// The component's imports bound to what is granted; an import without a grant is the error, by name.
    fn entry(&mut self, component: u32, grants: Capabilities) -> Option<Result<Arc<Entry>, Failure>> {
        let loaded = match self.components.get_mut(&component)? {
            Ok(loaded) => loaded,
            Err(failure) => return Some(Err(failure.clone())),
        };
        if let Some(entry) = loaded.entries.get(&grants) {
            return Some(Ok(Arc::clone(entry)));
        }
        let words = |error: wasmtime::Error| {
            let message = format!("the step imports what it was not granted, or as another type: {error:#}");
            verdict::host(code::CAPABILITY_DENIED, &message)
        };
        if !self.linkers.contains_key(&grants) {
            match linker(&self.engine, grants) {
                Ok(made) => self.linkers.insert(grants, made),
                Err(error) => return Some(Err(words(error))),
            };
        }
        let bound = self.linkers.get(&grants)?.instantiate_pre(&loaded.component);
        Some(bound.map_err(words).map(|pre| {
            let entry = Arc::new(Entry { pre, run: loaded.run });
            loaded.entries.insert(grants, Arc::clone(&entry));
            entry
        }))
    }

    fn cancel(&self, task: TaskRef, attempt: Attempt, grace_ms: u64) {
        // An attempt that ended meanwhile has its report under way.
        let Some(signals) = self.running.get(&(task, attempt)).cloned() else { return };
        signals.cancel.store(true, Ordering::Relaxed);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(grace_ms)).await;
            signals.kill();
        });
    }

    fn forget_finished(&mut self, batch: &[Outgoing]) {
        for out in batch {
            if let FromWorker::Report(report) = &out.message {
                self.running.remove(&(report.task, report.attempt));
            }
        }
    }
}

/// Sends a batch in as few packets as it takes, and waits while the supervisor does not read.
async fn send_all(socket: &AsyncFd<BorrowedFd<'_>>, batch: &mut Vec<Outgoing>) -> Result<(), StartError> {
    let mut bytes = Vec::new();
    let mut fds = Vec::new();
    for out in batch.drain(..) {
        let message = fitting(out.message)?;
        let full = bytes.len() + message.len() > PACKET_MAX_BYTES || fds.len() == PACKET_MAX_FDS;
        if full && !bytes.is_empty() {
            send_one(socket, &mut bytes, &mut fds).await?;
        }
        bytes.extend_from_slice(&message);
        fds.extend(out.fd);
    }
    if bytes.is_empty() { Ok(()) } else { send_one(socket, &mut bytes, &mut fds).await }
}

async fn send_one(
    socket: &AsyncFd<BorrowedFd<'_>>,
    bytes: &mut Vec<u8>,
    fds: &mut Vec<OwnedFd>,
) -> Result<(), StartError> {
    loop {
        match packet::send(*socket.get_ref(), bytes, fds) {
            Ok(()) => break,
            Err(Errno::AGAIN) => socket.writable().await.map_err(StartError::Runtime)?.clear_ready(),
            Err(errno) => return Err(PacketError::from(errno).into()),
        }
    }
    bytes.clear();
    fds.clear();
    Ok(())
}

/// A message's bytes; a report whose log is too long for one packet loses the log's end, with a marker.
fn fitting(mut message: FromWorker) -> Result<Vec<u8>, PacketError> {
    loop {
        let bytes = codec::write(&message)?;
        let excess = bytes.len().saturating_sub(PACKET_MAX_BYTES);
        let FromWorker::Report(report) = &mut message else { return Ok(bytes) };
        if excess == 0 || report.log.is_empty() {
            return Ok(bytes);
        }
        let kept = report.log.len().saturating_sub(excess + LOG_CUT.len());
        report.log.truncate(report.log.floor_char_boundary(kept));
        if kept > 0 {
            report.log.push_str(LOG_CUT);
        }
    }
}
