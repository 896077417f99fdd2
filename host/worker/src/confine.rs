//! The walls: what the process gives up, in an order that was verified as root and as nobody.
//!
//! [`early`] runs on the main thread before any other thread exists. The engine and the runtime are built after it and
//! before [`walls`]: the pool opens /proc/self/pagemap and the runtime makes a socket pair, which later fail.

mod filter;

use std::{fs::File, io::Write, os::fd::AsRawFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use rustix::{
    io::Errno,
    process::{DumpableBehavior, Resource, Rlimit, Signal},
};
use tm_core::wire::{CompileInit, Folder};

pub use filter::Role;

/// Descriptors that a worker may hold: folders, components, files of interleaved guests.
const NOFILE_MAX: u64 = 4096;
/// The largest file that a worker may write; the finer limits are counted per attempt.
const FSIZE_MAX_BYTES: u64 = 64 << 30;

/// Which walls stand. Both, except in tests that look at one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walls {
    pub landlock: bool,
    pub seccomp: bool,
}

impl Walls {
    pub const BOTH: Self = Self { landlock: true, seccomp: true };
}

/// What stands after [`walls`].
#[derive(Clone, Debug, Default)]
pub struct Standing {
    pub landlock_abi: Option<u32>,
    pub seccomp: bool,
    /// In words; empty when both stand.
    pub missing: Vec<String>,
}

/// The process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("{call}: {source}")]
    Call { call: &'static str, source: Errno },
    #[error("the supervisor died before its worker was ready")]
    Orphan,
    #[error("landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    #[error("landlock is not enforced by this kernel: enable it (lsm=landlock) or pass --allow-weaker-confinement")]
    NoLandlock,
    #[error("seccomp filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

fn call(call: &'static str) -> impl FnOnce(Errno) -> ConfineError {
    move |source| ConfineError::Call { call, source }
}

/// The first steps: dies with its supervisor, holds only `socket`, dumps nothing, is the first that memory shortage takes.
///
/// # Errors
/// When the supervisor is gone already, or a call fails.
pub fn early(socket: i32) -> Result<(), ConfineError> {
    // A parent that died earlier still is noticed too: its end of the socket is closed then.
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(call("prctl(PR_SET_PDEATHSIG)"))?;
    if rustix::process::getppid() != parent {
        return Err(ConfineError::Orphan);
    }
    close_all_but(socket)?;
    // Absent in some containers, and no wall: a failure is no reason to refuse.
    if let Ok(mut file) = File::options().write(true).open("/proc/self/oom_score_adj") {
        let _ = file.write_all(b"900");
    }
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, NOFILE_MAX)?;
    limit(Resource::Fsize, FSIZE_MAX_BYTES)
}

fn close_all_but(socket: i32) -> Result<(), ConfineError> {
    let kept = u32::try_from(socket).map_err(|_| ConfineError::Call { call: "close_range", source: Errno::BADF })?;
    for (first, last) in [(3, kept.saturating_sub(1)), (kept + 1, u32::MAX)] {
        if first > last {
            continue;
        }
        // SAFETY: runs first in the process: no Rust object owns a descriptor in the range.
        let answer = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if answer != 0 {
            let source = std::io::Error::last_os_error().raw_os_error().map_or(Errno::INVAL, Errno::from_raw_os_error);
            return Err(ConfineError::Call { call: "close_range", source });
        }
    }
    Ok(())
}

fn limit(resource: Resource, most: u64) -> Result<(), ConfineError> {
    let ceiling = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let most = Some(most.min(ceiling));
    rustix::process::setrlimit(resource, Rlimit { current: most, maximum: most }).map_err(call("setrlimit"))
}

/// RLIMIT_AS and RLIMIT_CPU of a compile process, a second above what its own watch allows: SIGXCPU ends it where the
/// watch does not, and SIGKILL a second later. Never on a worker with
/// a pool, which reserves address space by the hundred GiB.
///
/// # Errors
/// When a limit cannot be set.
pub fn limit_compile(init: &CompileInit) -> Result<(), ConfineError> {
    limit(Resource::As, init.memory_max_mb.saturating_mul(1 << 20))?;
    let ceiling = rustix::process::getrlimit(Resource::Cpu).maximum.unwrap_or(u64::MAX);
    let least = |seconds: u64| Some(init.cpu_seconds_max.saturating_add(seconds).min(ceiling));
    let (current, maximum) = (least(1), least(2));
    rustix::process::setrlimit(Resource::Cpu, Rlimit { current, maximum }).map_err(call("setrlimit"))
}

/// Puts up the walls for this thread and all that it will start. `folders` are the only places of the file system
/// that stay reachable. With `allow_weaker`, what the kernel lacks is named in [`Standing::missing`] instead.
///
/// # Errors
/// When a wall cannot be put up and must be.
pub fn walls(
    role: Role,
    which: Walls,
    folders: &[(Folder, File)],
    allow_weaker: bool,
) -> Result<Standing, ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(call("prctl(PR_SET_NO_NEW_PRIVS)"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(call("prctl(PR_SET_DUMPABLE)"))?;
    let mut standing = Standing::default();
    if which.landlock {
        match raise_landlock(folders) {
            Ok(Some(abi)) => standing.landlock_abi = Some(abi),
            Ok(None) if !allow_weaker => return Err(ConfineError::NoLandlock),
            Ok(None) => standing.missing.push("landlock: not enforced by this kernel".to_owned()),
            Err(error) if !allow_weaker => return Err(error.into()),
            Err(error) => standing.missing.push(format!("landlock: {error}")),
        }
    }
    if which.seccomp {
        match raise_seccomp(role) {
            Ok(()) => standing.seccomp = true,
            Err(error) if !allow_weaker => return Err(error),
            Err(error) => standing.missing.push(format!("seccomp: {error}")),
        }
    }
    Ok(standing)
}

/// All rights, ports and scopes that the kernel knows; the folders get back what files need. Refer: without it a rename
/// from one folder to another is an I/O error.
fn raise_landlock(folders: &[(Folder, File)]) -> Result<Option<u32>, landlock::RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V9))?
        .handle_access(AccessNet::from_all(ABI::V9))?
        .scope(Scope::from_all(ABI::V9))?
        .create()?;
    for (folder, file) in folders {
        let rights = if folder.write { write } else { read };
        rules = rules.add_rule(PathBeneath::new(file, rights))?;
    }
    let status = rules.restrict_self()?;
    // Symbolic links are not among the rights: one that leads outside would wait there for another reader.
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => None,
        (_, LandlockStatus::Available { effective_abi, .. }) => Some(effective_abi as u32),
        _ => None,
    })
}

fn raise_seccomp(role: Role) -> Result<(), ConfineError> {
    for program in filter::programs(role)? {
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}

/// The path under which the process reopens its own descriptor: it works before and after landlock, though /proc is in
/// no rule, because the link leads straight to the open file.
#[must_use]
pub fn own_path(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
