//! Inspecting and compiling components: each in a fresh process that has no grant and ends afterwards (I8).
//!
//! The calls wait for the process, so they are for threads beside the loop. Every process is bounded in address space,
//! CPU time and wall time; what goes over is COMPILE_LIMIT, whatever way the process dies.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};
use tm_core::{
    code::{COMPILE_FAILED, COMPILE_LIMIT},
    limits::NATIVE_MAX_BYTES,
    wire::{CompileInit, FromWorker, Init, Inspection},
};

use super::{
    child::{Bounds, Child, ChildError, Exit, Spawner},
    link::{Inbox, Link, LinkError, Outbox, PushError, Received},
    receive::{one_line, weaker_than_allowed},
};

/// Faults of one component's imports that are told.
const IMPORT_FAULTS_MAX: usize = 32;

#[derive(Clone, Copy, Debug)]
pub struct CompileSettings {
    /// Compilations at once. Inspections are counted apart, so that none waits behind a compilation.
    pub compiles_max: u32,
    pub inspections_max: u32,
    pub cpu_seconds_max: u64,
    pub memory_max_mb: u64,
    pub inspect_timeout: Duration,
    pub compile_timeout: Duration,
    pub allow_weaker: bool,
}

impl Default for CompileSettings {
    /// Room for the largest known case, the CPython interpreter: 12 s and 378 MiB.
    fn default() -> Self {
        Self {
            compiles_max: 1,
            inspections_max: 4,
            cpu_seconds_max: 120,
            memory_max_mb: 4096,
            inspect_timeout: Duration::from_secs(10),
            compile_timeout: Duration::from_secs(180),
            allow_weaker: false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The component is at fault; `code` is COMPILE_FAILED or COMPILE_LIMIT.
    #[error("{message}")]
    Refused { code: &'static str, message: String },
    /// The host is at fault: a later try may succeed.
    #[error("the compiling process failed: {reason}")]
    Process { reason: String },
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("the compiling process cannot be told what to do: {0}")]
    Push(#[from] PushError),
    #[error("cannot wait for the compiling process: {0}")]
    Wait(Errno),
    #[error("the supervisor is stopping")]
    Stopping,
}

/// A compiled component.
#[derive(Debug)]
pub struct Native {
    pub inspection: Inspection,
    /// A sealed memory file of `size_bytes`, at most [`NATIVE_MAX_BYTES`].
    pub artefact: OwnedFd,
    pub size_bytes: u64,
    /// Hex of the compatibility hash; a file and folder name, checked to be 1 to 128 hex digits.
    pub compatibility: String,
}

/// Starts single-use processes, a bounded number at once.
#[derive(Debug)]
pub struct Compiler {
    spawner: Arc<Spawner>,
    settings: CompileSettings,
    compiles: Permits,
    inspections: Permits,
    stopping: AtomicBool,
    /// Readable once the compiler is stopping, for all that wait.
    stop: OwnedFd,
}

impl Compiler {
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(spawner: Arc<Spawner>, settings: CompileSettings) -> Result<Self, CompileError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(CompileError::Wait)?;
        let (compiles, inspections) = (Permits::new(settings.compiles_max), Permits::new(settings.inspections_max));
        Ok(Self { spawner, settings, compiles, inspections, stopping: AtomicBool::new(false), stop })
    }

    /// Finds out what a component is: imports, exports, needs. Takes milliseconds; waits while too many others run.
    ///
    /// # Errors
    /// [`CompileError::Refused`] when it is no component or took too much; else the host's fault.
    pub fn inspect(&self, component: BorrowedFd<'_>) -> Result<Inspection, CompileError> {
        let _permit = self.inspections.take(&self.stopping)?;
        match self.run(component, false)? {
            Found::Inspected(inspection) => Ok(inspection),
            Found::Compiled(native) => Ok(native.inspection),
        }
    }

    /// Compiles a component to a native artefact; the caller stores it.
    ///
    /// # Errors
    /// As [`Compiler::inspect`].
    pub fn compile(&self, component: BorrowedFd<'_>) -> Result<Native, CompileError> {
        let _permit = self.compiles.take(&self.stopping)?;
        match self.run(component, true)? {
            Found::Compiled(native) => Ok(*native),
            Found::Inspected(_) => Err(process("it ended after the inspection")),
        }
    }

    /// Ends all that run and refuses what comes; those who wait get [`CompileError::Stopping`].
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        self.compiles.wake();
        self.inspections.wake();
    }

    fn run(&self, component: BorrowedFd<'_>, compile: bool) -> Result<Found, CompileError> {
        let settings = &self.settings;
        let memory_max_bytes = settings.memory_max_mb.saturating_mul(1 << 20);
        let bounds = Bounds { cpu_seconds_max: settings.cpu_seconds_max, memory_max_bytes };
        let timeout = if compile { settings.compile_timeout } else { settings.inspect_timeout };
        let component = rustix::io::fcntl_dupfd_cloexec(component, 0).map_err(CompileError::Wait)?;
        let (child, link) = self.spawner.spawn(Some(bounds))?;
        let mut outbox = Outbox::default();
        let init = CompileInit {
            allow_weaker: settings.allow_weaker,
            cpu_seconds_max: settings.cpu_seconds_max,
            memory_max_mb: settings.memory_max_mb,
            compile,
            native_max_bytes: NATIVE_MAX_BYTES,
        };
        outbox.push_init(&Init::Compile(init), vec![component])?;
        // A process that is dead already shows itself below.
        let _ = outbox.send(&link);
        let until = Instant::now() + timeout;
        let mut job = Job { compiler: self, child, link, inbox: Inbox::default(), compile, inspection: None };
        // The process is killed and reaped when the job is dropped, whatever came out.
        job.wait(until, timeout)
    }
}

enum Found {
    Inspected(Inspection),
    Compiled(Box<Native>),
}

struct Job<'a> {
    compiler: &'a Compiler,
    child: Child,
    link: Link,
    inbox: Inbox,
    compile: bool,
    inspection: Option<Inspection>,
}

impl Job<'_> {
    fn wait(&mut self, until: Instant, timeout: Duration) -> Result<Found, CompileError> {
        let mut open = true;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let verb = if self.compile { "compiling" } else { "inspecting" };
                let message = format!("{verb} the component took longer than {} s", timeout.as_secs_f32());
                return Err(CompileError::Refused { code: COMPILE_LIMIT, message });
            }
            let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            let timeout = Timespec { tv_sec: seconds, tv_nsec: i64::from(left.subsec_nanos()) };
            let pidfd = self.child.pidfd();
            let mut waits = vec![PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&self.compiler.stop, PollFlags::IN)];
            if open {
                waits.push(PollFd::new(&self.link, PollFlags::IN));
            }
            match poll(&mut waits, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(CompileError::Wait(errno)),
            }
            let dead = !waits[0].revents().is_empty();
            if !waits[1].revents().is_empty() {
                return Err(CompileError::Stopping);
            }
            // A dead process may have said all before: its words are taken first.
            while open {
                match self.link.receive(&mut self.inbox) {
                    Ok(None) => break,
                    Ok(Some(messages)) => {
                        for received in messages {
                            if let Some(found) = self.message(received)? {
                                return Ok(found);
                            }
                        }
                    }
                    // It is about to die, and its end says why.
                    Err(LinkError::Closed) => open = false,
                    Err(error) => return Err(process(error)),
                }
            }
            if dead && let Some(exit) = self.child.try_reap() {
                return Err(self.died(exit));
            }
        }
    }

    fn message(&mut self, received: Received) -> Result<Option<Found>, CompileError> {
        let Received { message, fds } = received;
        match message {
            FromWorker::Ready(confinement) => {
                weaker_than_allowed(&confinement, self.compiler.settings.allow_weaker).map_err(process)?;
                Ok(None)
            }
            FromWorker::Inspected(mut inspection) if self.inspection.is_none() => {
                inspection.import_faults.truncate(IMPORT_FAULTS_MAX);
                inspection.import_faults.iter_mut().for_each(|fault| *fault = one_line(fault));
                if self.compile {
                    self.inspection = Some(*inspection);
                    return Ok(None);
                }
                Ok(Some(Found::Inspected(*inspection)))
            }
            FromWorker::Compiled { size_bytes, compatibility } if self.compile => {
                let named = (1..=128).contains(&compatibility.len())
                    && compatibility.bytes().all(|byte| byte.is_ascii_hexdigit());
                match (self.inspection.take(), fds.into_iter().next()) {
                    (Some(inspection), Some(artefact)) if named && size_bytes <= NATIVE_MAX_BYTES => {
                        Ok(Some(Found::Compiled(Box::new(Native { inspection, artefact, size_bytes, compatibility }))))
                    }
                    _ => Err(process("it sent an artefact that is not one")),
                }
            }
            FromWorker::CompileFailed { code, message } => {
                let code = if code == COMPILE_LIMIT { COMPILE_LIMIT } else { COMPILE_FAILED };
                Err(CompileError::Refused { code, message: one_line(&message) })
            }
            FromWorker::Unable { reason } => Err(process(one_line(&reason))),
            FromWorker::Heartbeat { .. } => Ok(None),
            _ => Err(process("it sent a message of another role")),
        }
    }

    /// What the death of the process says of the component.
    fn died(&self, exit: Exit) -> CompileError {
        let settings = &self.compiler.settings;
        let words = self.child.last_words();
        let limit = |message: String| CompileError::Refused { code: COMPILE_LIMIT, message };
        match exit {
            Exit::Signal(signal) if signal == nix::libc::SIGXCPU || signal == nix::libc::SIGKILL => limit(format!(
                "the component took more than {} s of CPU time, or the host's memory",
                settings.cpu_seconds_max
            )),
            // A failed allocation aborts; under RLIMIT_AS that is the limit.
            Exit::Signal(signal) if signal == nix::libc::SIGABRT && words.contains("memory allocation of") => {
                limit(format!("the component needs more than {} MiB of memory to compile", settings.memory_max_mb))
            }
            Exit::Signal(signal) if signal == nix::libc::SIGSEGV || signal == nix::libc::SIGABRT => {
                CompileError::Refused { code: COMPILE_FAILED, message: format!("the compiler {exit}: {words}") }
            }
            exit => process(if words.is_empty() { exit.to_string() } else { format!("{exit}: {words}") }),
        }
    }
}

fn process(reason: impl ToString) -> CompileError {
    CompileError::Process { reason: reason.to_string() }
}

/// How many may do something at once.
#[derive(Debug)]
struct Permits {
    free: Mutex<u32>,
    freed: Condvar,
}

struct Permit<'a>(&'a Permits);

impl Permits {
    fn new(count: u32) -> Self {
        Self { free: Mutex::new(count.max(1)), freed: Condvar::new() }
    }

    fn take(&self, stopping: &AtomicBool) -> Result<Permit<'_>, CompileError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self
            .freed
            .wait_while(free, |free| *free == 0 && !stopping.load(Ordering::SeqCst))
            .unwrap_or_else(PoisonError::into_inner);
        if stopping.load(Ordering::SeqCst) {
            return Err(CompileError::Stopping);
        }
        *free -= 1;
        Ok(Permit(self))
    }

    /// Lets all that wait look again; the lock makes sure that nobody is between looking and waiting.
    fn wake(&self) {
        drop(self.free.lock().unwrap_or_else(PoisonError::into_inner));
        self.freed.notify_all();
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
#[path = "tests/compile.rs"]
mod tests;
