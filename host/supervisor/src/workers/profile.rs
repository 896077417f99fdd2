//! A worker's profile: the folders it is handed, opened by the supervisor, and who may read them.

use std::{
    fmt,
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fd::OwnedFd,
    fs::{Access, AtFlags, Mode as Bits, OFlags, accessat, fchmod, fchown, fstat, open},
    io::Errno,
    process::{Gid, Uid, dumpable_behavior, geteuid, set_dumpable_behavior},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use tm_core::{
    flow::spec::Mode,
    queue::lanes::Profile,
    wire::{ExecuteInit, Folder, FolderRole, Required},
};

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("cannot open folder {path}: {source}", path = path.display())]
    Open { path: PathBuf, source: Errno },
    #[error("cannot make folder {path}: {source}", path = path.display())]
    Make { path: PathBuf, source: std::io::Error },
    #[error("cannot hand folder {path} to the workers' user {user}: {source}", path = path.display())]
    HandOver { path: PathBuf, user: String, source: Errno },
    #[error(
        "the workers' user {user} cannot {verb} folder {path}: {}",
        fix(path, user, *.write),
        verb = if *.write { "write to" } else { "read" },
        path = path.display()
    )]
    Unreadable { path: PathBuf, user: String, write: bool },
    #[error("cannot check what the workers' user {user} may read: {source}")]
    Check { user: String, source: std::io::Error },
    #[error(
        "a worker with one step may need {step_mb} MiB of memory, its share is {share_mb} MiB: lower memory_mb, raise memory_max or start fewer workers"
    )]
    TooMuchMemory { step_mb: u64, share_mb: u64 },
    #[error("a profile of {count} folders is too large: at most {FOLDERS_MAX}")]
    TooManyFolders { count: usize },
    #[error("there is no user {0} on this host: name an existing one with --worker-user")]
    NoSuchUser(String),
    #[error("cannot look up user {name}: {source}")]
    LookUp { name: String, source: Errno },
    #[error("workers cannot become root: name another user with --worker-user")]
    RootUser,
    #[error("--worker-user {0} needs root: start as root, or leave it out")]
    NotRoot(String),
}

/// What the host keeps for one step beside its memory and stack, in MiB: buffers, a stack for host calls, and what
/// stays resident of two warm slots. More than the worker counts, whose own figure is checked once it is ready.
const HOST_PER_STEP_MB: u64 = 16;

/// Granted folders of one profile: all descriptors travel in one packet.
pub const FOLDERS_MAX: usize = tm_core::limits::PACKET_MAX_FDS - 4;

fn fix(path: &Path, user: &str, write: bool) -> String {
    let right = if write { "rwX" } else { "rX" };
    format!("allow it with 'setfacl -R -m u:{user}:{right} {}', or start with another --worker-user", path.display())
}

/// The user that workers become when the supervisor is root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerUser {
    pub name: String,
    pub uid: Uid,
    pub gid: Gid,
}

impl WorkerUser {
    /// The user for workers: `wanted`, or `nobody` as root; none when the supervisor is not root and none is wanted.
    ///
    /// # Errors
    /// When the user does not exist or is root, or when one is wanted without being root.
    pub fn resolve(wanted: Option<&str>) -> Result<Option<Self>, ProfileError> {
        match (geteuid().is_root(), wanted) {
            (true, wanted) => Self::named(wanted.unwrap_or("nobody")).map(Some),
            (false, None) => Ok(None),
            (false, Some(name)) => {
                let user = Self::named(name)?;
                if user.uid == geteuid() { Ok(None) } else { Err(ProfileError::NotRoot(user.name)) }
            }
        }
    }

    fn named(name: &str) -> Result<Self, ProfileError> {
        let found = match name.parse::<u32>() {
            Ok(uid) => nix::unistd::User::from_uid(uid.into()),
            Err(_) => nix::unistd::User::from_name(name),
        };
        let user = found
            .map_err(|errno| ProfileError::LookUp {
                name: name.into(),
                source: Errno::from_raw_os_error(errno as i32),
            })?
            .ok_or_else(|| ProfileError::NoSuchUser(name.into()))?;
        if user.uid.is_root() {
            return Err(ProfileError::RootUser);
        }
        Ok(Self { name: user.name, uid: Uid::from_raw(user.uid.as_raw()), gid: Gid::from_raw(user.gid.as_raw()) })
    }
}

impl fmt::Display for WorkerUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What a worker of a profile is started with.
#[derive(Clone, Debug)]
pub struct ProfileSpec {
    pub profile: Profile,
    /// The tenant's folders; made when missing.
    pub staging: PathBuf,
    pub results: PathBuf,
    pub scratch: PathBuf,
    /// The largest limits and needs of the profile's steps: the pool is sized by them.
    pub memory_max_mb: u32,
    pub stack_max_kb: u32,
    pub required: Required,
}

/// What all workers of a pool have in common.
#[derive(Clone, Copy, Debug)]
pub struct Sizing {
    pub concurrency: u32,
    pub heartbeat_ms: u64,
    pub allow_weaker: bool,
    /// One worker's part of `memory_max`, in MiB; none: not bounded.
    pub share_mb: Option<u64>,
}

impl Sizing {
    /// Steps that one worker of the profile may interleave so that its pool stays within its share.
    ///
    /// # Errors
    /// When not even one step fits.
    pub fn concurrency_for(&self, memory_max_mb: u32, stack_max_kb: u32) -> Result<u32, ProfileError> {
        let Some(share_mb) = self.share_mb else { return Ok(self.concurrency.max(1)) };
        // A worker holds one memory more than it has steps: a result on its way out.
        let fitting = share_mb.saturating_sub(u64::from(memory_max_mb)) / step_mb(memory_max_mb, stack_max_kb);
        match u32::try_from(fitting).unwrap_or(u32::MAX).min(self.concurrency.max(1)) {
            0 => Err(ProfileError::TooMuchMemory { step_mb: worker_mb(memory_max_mb, stack_max_kb), share_mb }),
            fitting => Ok(fitting),
        }
    }
}

fn step_mb(memory_max_mb: u32, stack_max_kb: u32) -> u64 {
    u64::from(memory_max_mb) + u64::from(stack_max_kb.div_ceil(1024)) + HOST_PER_STEP_MB
}

/// What a worker with one step may need, in MiB.
#[must_use]
pub fn worker_mb(memory_max_mb: u32, stack_max_kb: u32) -> u64 {
    u64::from(memory_max_mb) + step_mb(memory_max_mb, stack_max_kb)
}

/// One worker's part of `memory_max`, in MiB.
#[must_use]
pub fn share_mb(memory_max_bytes: u64, num: u32) -> u64 {
    (memory_max_bytes >> 20) / u64::from(num.max(1))
}

/// Opens a profile's folders for one worker. Order of folders and descriptors: the granted ones in the order of
/// [`Profile::folders`] (so their place there is their number in `StartGrants`), then staging, results, scratch.
///
/// # Errors
/// When a folder is missing, cannot be handed over, or is closed to the workers' user.
pub fn open_profile(
    spec: &ProfileSpec,
    sizing: &Sizing,
    user: Option<&WorkerUser>,
) -> Result<(ExecuteInit, Vec<OwnedFd>), ProfileError> {
    let concurrency = sizing.concurrency_for(spec.memory_max_mb, spec.stack_max_kb)?;
    if spec.profile.folders.len() > FOLDERS_MAX {
        return Err(ProfileError::TooManyFolders { count: spec.profile.folders.len() });
    }
    let (mut folders, mut fds) = (Vec::new(), Vec::new());
    for (path, mode) in &spec.profile.folders {
        let (path, write) = (Path::new(path), *mode == Mode::Write);
        fds.push(open_granted(path, write, user)?);
        folders.push(Folder { role: FolderRole::Granted, write });
    }
    for (role, path) in [
        (FolderRole::Staging, &spec.staging),
        (FolderRole::Results, &spec.results),
        (FolderRole::Scratch, &spec.scratch),
    ] {
        let write = role != FolderRole::Results;
        fds.push(open_own(path, write, user)?);
        folders.push(Folder { role, write });
    }
    let init = ExecuteInit {
        folders,
        concurrency,
        heartbeat_ms: sizing.heartbeat_ms,
        memory_max_mb: spec.memory_max_mb,
        stack_max_kb: spec.stack_max_kb,
        required: spec.required,
        allow_weaker: sizing.allow_weaker,
    };
    Ok((init, fds))
}

/// Opens a granted folder and checks that the workers' user may use it; at load, and again at every start of a worker.
///
/// # Errors
/// When it is no folder, or closed to that user; the error names the fix.
pub fn open_granted(path: &Path, write: bool, user: Option<&WorkerUser>) -> Result<OwnedFd, ProfileError> {
    let fd = open_folder(path)?;
    let wanted = Access::READ_OK | Access::EXEC_OK | if write { Access::WRITE_OK } else { Access::empty() };
    let allowed = match user {
        None => accessat(&fd, ".", wanted, AtFlags::empty()),
        Some(user) => as_user(user, || accessat(&fd, ".", wanted, AtFlags::empty()))
            .map_err(|source| ProfileError::Check { user: user.name.clone(), source })?,
    };
    match allowed {
        Ok(()) => Ok(fd),
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
            let user = user.map_or_else(|| format!("{}", geteuid().as_raw()), |user| user.name.clone());
            Err(ProfileError::Unreadable { path: path.into(), user, write })
        }
        Err(source) => Err(ProfileError::Open { path: path.into(), source }),
    }
}

/// Makes one of the tenant's folders if needed, opens it, and hands it to the workers' user: as its own when it is to
/// be written, else readable by its group. Folders above it stay closed: workers come in by the descriptor.
fn open_own(path: &Path, write: bool, user: Option<&WorkerUser>) -> Result<OwnedFd, ProfileError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| ProfileError::Make { path: path.into(), source })?;
    let fd = open_folder(path)?;
    if let Some(user) = user {
        let fail = |source| ProfileError::HandOver { path: path.into(), user: user.name.clone(), source };
        let found = fstat(&fd).map_err(fail)?;
        let owner = if write { user.uid } else { Uid::from_raw(found.st_uid) };
        let bits = Bits::from_raw_mode(if write { 0o700 } else { 0o750 });
        if (found.st_uid, found.st_gid) != (owner.as_raw(), user.gid.as_raw()) {
            fchown(&fd, Some(owner), Some(user.gid)).map_err(fail)?;
        }
        if Bits::from_raw_mode(found.st_mode & 0o7777) != bits {
            fchmod(&fd, bits).map_err(fail)?;
        }
    }
    Ok(fd)
}

/// Lets the workers' user read a folder that the supervisor made below one of the tenant's own.
///
/// # Errors
/// When the folder is missing or cannot be handed over.
pub fn share(path: &Path, user: Option<&WorkerUser>) -> Result<(), ProfileError> {
    let Some(user) = user else { return Ok(()) };
    let fail = |source| ProfileError::HandOver { path: path.into(), user: user.name.clone(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = open(path, flags, Bits::empty()).map_err(fail)?;
    fchown(&fd, None, Some(user.gid)).map_err(fail)?;
    fchmod(&fd, Bits::from_raw_mode(0o750)).map_err(fail)
}

fn open_folder(path: &Path) -> Result<OwnedFd, ProfileError> {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Bits::empty())
        .map_err(|source| ProfileError::Open { path: path.into(), source })
}

/// Runs `check` on a thread that has the user's rights, so that the kernel answers with lists of access and all.
fn as_user<T: Send>(user: &WorkerUser, check: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    // A change of user makes the whole process non-dumpable; that is put back.
    let dumpable = dumpable_behavior();
    let checked = thread::scope(|scope| {
        let checker = thread::Builder::new().name("tm-as-user".into()).spawn_scoped(scope, || {
            set_thread_groups(&[])?;
            set_thread_res_gid(user.gid, user.gid, user.gid)?;
            set_thread_res_uid(user.uid, user.uid, user.uid)?;
            Ok(check())
        })?;
        checker.join().unwrap_or_else(|_| Err(Errno::FAULT.into()))
    });
    if let Ok(before) = dumpable {
        let _ = set_dumpable_behavior(before);
    }
    checked
}

#[cfg(test)]
#[path = "tests/profile.rs"]
mod tests;
