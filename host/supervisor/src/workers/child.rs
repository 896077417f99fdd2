//! Worker processes: started from one thread, stripped of everything they do not need, killed and reaped by descriptor.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use nix::libc;
use rustix::{
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
    io::Errno,
    process::{
        Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, getppid, pidfd_open,
        pidfd_send_signal, set_parent_process_death_signal, setrlimit, setsid, waitid,
    },
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{
    link::{Link, LinkError},
    profile::WorkerUser,
};

/// Where a worker finds its socket.
pub const SOCKET_FD: RawFd = 3;
/// What is kept of a worker's standard error, in bytes; writes beyond fail in the worker.
const STDERR_MAX_BYTES: u64 = 64 * 1024;
/// Descriptors of one worker.
const NOFILE_MAX: u64 = 4096;
/// The largest file of a worker, in bytes: above every ceiling of scratch and artefacts.
const FILE_MAX_BYTES: u64 = 4096 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("cannot start a worker process ({program}): {source}", program = program.display())]
    Spawn { program: PathBuf, source: std::io::Error },
    #[error("cannot prepare a worker process: {0}")]
    Prepare(Errno),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the thread that starts workers is gone")]
    NoSpawner,
    #[error("cannot start the thread that starts workers: {0}")]
    Thread(std::io::Error),
}

/// What a worker process executes.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    pub args: Vec<OsString>,
    /// The whole environment of the worker; empty outside tests.
    pub env: Vec<(OsString, OsString)>,
    /// The user that workers become; none when the supervisor is not root.
    pub user: Option<WorkerUser>,
}

impl Program {
    /// This binary in its worker role. By `/proc/self/exe`, which works even when its folder is closed to the user.
    #[must_use]
    pub fn this_binary(user: Option<WorkerUser>) -> Self {
        Self { path: "/proc/self/exe".into(), args: vec!["__worker".into()], env: Vec::new(), user }
    }
}

/// Bounds of a single-use process. A pooling worker has none of them: its pool reserves address space by the hundred GiB.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub cpu_seconds_max: u64,
    pub memory_max_bytes: u64,
}

/// The one thread from which all workers are started. A worker's parent-death signal fires when this thread ends, so
/// it lives until the last handle is dropped.
#[derive(Debug)]
pub struct Spawner {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<thread::JoinHandle<()>>,
}

type Done = dyn FnOnce(Result<(Child, Link), ChildError>) + Send;

struct Order {
    bounds: Option<Bounds>,
    done: Box<Done>,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the process may have no more threads.
    pub fn start(program: Program) -> Result<Self, ChildError> {
        let (orders, inbox) = mpsc::channel::<Order>();
        // Holds the worker's socket number, so that no descriptor of a start in progress can get it.
        let holder = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .and_then(|(end, _)| rustix::io::fcntl_dupfd_cloexec(end, SOCKET_FD))
            .map_err(ChildError::Prepare)?;
        let thread = thread::Builder::new()
            .name("tm-spawner".into())
            .spawn(move || {
                for order in inbox {
                    (order.done)(spawn(&program, order.bounds));
                }
                drop(holder);
            })
            .map_err(ChildError::Thread)?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Orders a process; `done` runs on the spawner's thread and must be quick.
    ///
    /// # Errors
    /// When that thread is gone; `done` never runs then.
    pub fn order(
        &self,
        bounds: Option<Bounds>,
        done: impl FnOnce(Result<(Child, Link), ChildError>) + Send + 'static,
    ) -> Result<(), ChildError> {
        let orders = self.orders.as_ref().ok_or(ChildError::NoSpawner)?;
        orders.send(Order { bounds, done: Box::new(done) }).map_err(|_| ChildError::NoSpawner)
    }

    /// Starts a process and waits until it executes (about a millisecond).
    ///
    /// # Errors
    /// When the process could not be made or its program could not be executed.
    pub fn spawn(&self, bounds: Option<Bounds>) -> Result<(Child, Link), ChildError> {
        let (answer, child) = mpsc::channel();
        self.order(bounds, move |made| {
            // Whoever no longer waits gets no process: it dies with the unsent value.
            let _ = answer.send(made);
        })?;
        child.recv().map_err(|_| ChildError::NoSpawner)?
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.orders = None;
        // The last handle may be dropped by an order on the thread itself.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exit {
    #[error("exited with {0}")]
    Code(i32),
    #[error("was killed by {name} (signal {0})", name = signal_name(*.0))]
    Signal(i32),
}

/// One running process, not yet reaped. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    stderr: OwnedFd,
    exit: Option<Exit>,
}

impl Child {
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable once the process is dead.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends SIGKILL; nothing happens when the process is dead already.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Reaps the process if it is dead; `None` while it lives.
    pub fn try_reap(&mut self) -> Option<Exit> {
        self.reap_with(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Kills and reaps the process; waits for the kernel to take it down.
    pub fn end(&mut self) -> Exit {
        self.kill();
        self.reap_with(WaitIdOptions::EXITED).unwrap_or(Exit::Code(-1))
    }

    fn reap_with(&mut self, options: WaitIdOptions) -> Option<Exit> {
        while self.exit.is_none() {
            self.exit = match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(Some(status)) => Some(exit_of(&status)),
                Ok(None) => return None,
                Err(Errno::INTR) => continue,
                // Nobody else reaps; were it so, the process would be gone all the same.
                Err(_) => Some(Exit::Code(-1)),
            };
        }
        self.exit
    }

    /// The last words of the process on its standard error, on one line, at most 500 characters.
    #[must_use]
    pub fn last_words(&self) -> String {
        let bytes = super::sealed::read(&self.stderr, STDERR_MAX_BYTES).unwrap_or_default();
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let text = String::from_utf8_lossy(&bytes[..end]);
        let line =
            text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
        let skipped = line.chars().count().saturating_sub(500);
        // Control characters of a hostile process must not reach a terminal.
        line.chars().skip(skipped).map(|c| if c.is_control() { '?' } else { c }).collect()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_none() {
            self.end();
        }
    }
}

fn exit_of(status: &WaitIdStatus) -> Exit {
    match status.terminating_signal() {
        Some(signal) => Exit::Signal(signal),
        None => Exit::Code(status.exit_status().unwrap_or(-1)),
    }
}

fn signal_name(signal: i32) -> &'static str {
    nix::sys::signal::Signal::try_from(signal).map_or("a signal", nix::sys::signal::Signal::as_str)
}

fn spawn(program: &Program, bounds: Option<Bounds>) -> Result<(Child, Link), ChildError> {
    let (link, theirs) = Link::pair()?;
    let stderr = stderr_file().map_err(ChildError::Prepare)?;
    let child_stderr = rustix::io::fcntl_dupfd_cloexec(&stderr, 0).map_err(ChildError::Prepare)?;
    let mut command = Command::new(&program.path);
    command.args(&program.args).env_clear().envs(program.env.iter().map(|(name, value)| (name, value)));
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(child_stderr));
    let (parent, user, socket) = (getpid(), program.user.clone(), theirs.as_raw_fd());
    // SAFETY: between fork and exec only system calls are made; nothing allocates, locks or panics.
    unsafe {
        command.pre_exec(move || become_worker(parent, user.as_ref(), socket, bounds).map_err(Into::into));
    }
    let spawned = command.spawn().map_err(|source| ChildError::Spawn { program: program.path.clone(), source })?;
    // The process is not reaped before `Child` does it, so its number cannot have been given to another.
    let pid = Pid::from_child(&spawned);
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok((Child { pid, pidfd, stderr, exit: None }, link)),
        Err(errno) => {
            let mut spawned = spawned;
            let _ = spawned.kill();
            let _ = spawned.wait();
            Err(ChildError::Prepare(errno))
        }
    }
}

/// A file of fixed size in memory: a worker can fill it and cannot make it grow.
fn stderr_file() -> Result<OwnedFd, Errno> {
    let fd = memfd_create("stderr", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, STDERR_MAX_BYTES)?;
    fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(fd)
}

/// Runs in the child between fork and exec.
fn become_worker(parent: Pid, user: Option<&WorkerUser>, socket: RawFd, bounds: Option<Bounds>) -> Result<(), Errno> {
    // An own session: ctrl-c at the terminal reaches the supervisor, which drains, and not the workers.
    setsid()?;
    let limit = |resource, max| setrlimit(resource, Rlimit { current: Some(max), maximum: Some(max) });
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, NOFILE_MAX.min(rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)))?;
    limit(Resource::Fsize, FILE_MAX_BYTES)?;
    if let Some(bounds) = bounds {
        limit(Resource::As, bounds.memory_max_bytes)?;
        // SIGXCPU at the limit, SIGKILL a second later.
        let maximum = Some(bounds.cpu_seconds_max.saturating_add(1));
        setrlimit(Resource::Cpu, Rlimit { current: Some(bounds.cpu_seconds_max), maximum })?;
    }
    if let Some(user) = user {
        set_thread_groups(&[])?;
        set_thread_res_gid(user.gid, user.gid, user.gid)?;
        set_thread_res_uid(user.uid, user.uid, user.uid)?;
    }
    // After the change of user, which clears it; kept over exec. A parent that died before this line is noticed by
    // the second.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(parent) {
        return Err(Errno::SRCH);
    }
    // SAFETY: `socket` is open in the parent during the whole start, so it is open here; dup2 onto a number that the
    // spawner holds or that is the socket itself touches nothing else.
    unsafe {
        if socket == SOCKET_FD {
            // dup2 onto itself would leave close-on-exec set.
            if libc::fcntl(socket, libc::F_SETFD, 0) < 0 {
                return Err(Errno::BADF);
            }
        } else if libc::dup2(socket, SOCKET_FD) < 0 {
            return Err(Errno::BADF);
        }
        // Everything else is closed by exec, also what the supervisor itself inherited.
        let first = (SOCKET_FD + 1).unsigned_abs();
        if libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) < 0 {
            return Err(Errno::NOSYS);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests/child.rs"]
mod tests;
