//! One writer per folder (I9): locks of the kernel, released with their process, that name their holder.
//!
//! The lock is on an open file description (`F_OFD_SETLK`), so it cannot be lost by closing another descriptor of the
//! same file. The file `tm.lock` only tells who holds it; it stays when the holder is gone and then means nothing.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};
use tm_core::time::Millis;

use super::disk::Roots;

pub const FILE: &str = "tm.lock";
const POLL: Duration = Duration::from_millis(5);
/// How long the name of a fresh holder is waited for.
const NAME_WAIT: Duration = Duration::from_millis(100);
const HOLDER_MAX_BYTES: u64 = 4096;

/// What a writer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds the folders while it lives; clients use its socket.
    Supervisor,
    /// A command that writes to a queue that nobody owns, for milliseconds: it is waited for.
    Passing,
    /// `tm queue repair`.
    Repair,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Supervisor => "supervisor",
            Self::Passing => "command",
            Self::Repair => "repair",
        })
    }
}

/// Who holds a folder, as it wrote about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub role: Role,
    pub pid: u32,
    /// Start of the process, in clock ticks since boot: with the pid it names one process only.
    pub start_ticks: u64,
    pub started: Millis,
    pub host: String,
}

impl Holder {
    fn holds(self, folder: &Path) -> LockError {
        let Self { role, pid, host, started, .. } = self;
        LockError::Held { folder: folder.to_owned(), role, pid, host, started }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{role} process {pid} on host {host}, running since {started}, already writes to {}", folder.display())]
    Held { folder: PathBuf, role: Role, pid: u32, host: String, started: Millis },
    #[error("another process already writes to {}, and has not said who it is", folder.display())]
    HeldUnnamed { folder: PathBuf },
    #[error("{} cannot be written: {source}", folder.display())]
    ReadOnly { folder: PathBuf, source: io::Error },
    #[error("no room for the lock of {}: {source}", folder.display())]
    Full { folder: PathBuf, source: io::Error },
    #[error("{} does not exist", folder.display())]
    Missing { folder: PathBuf },
    #[error("the lock of {}: {source}", folder.display())]
    Io { folder: PathBuf, source: io::Error },
}

impl LockError {
    fn of(folder: &Path, source: io::Error) -> Self {
        let folder = folder.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { folder },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { folder, source },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { folder, source },
            _ => Self::Io { folder, source },
        }
    }
}

/// A held folder; released when dropped, or by the kernel when the process ends.
#[derive(Debug)]
pub struct Lock {
    /// The lock lives as long as this description.
    _file: File,
}

impl Lock {
    /// Takes the lock of a folder, at once or not at all.
    ///
    /// # Errors
    /// [`LockError::Held`] names the holder; nothing of it is overwritten.
    pub fn acquire(folder: &Path, role: Role) -> Result<Self, LockError> {
        let failed = |source| LockError::of(folder, source);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(folder.join(FILE)).map_err(failed)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => return Err(held(folder)),
            Err(errno) => return Err(failed(errno.into())),
        }
        let mut line = serde_json::to_vec(&myself(role)).unwrap_or_default();
        line.push(b'\n');
        // Longer first, then cut: a reader in between sees the old name or the new one with something after it.
        file.write_all_at(&line, 0).and_then(|()| file.set_len(line.len() as u64)).map_err(failed)?;
        Ok(Self { _file: file })
    }

    /// As [`Lock::acquire`], but waits up to `patience` for a holder that is only passing.
    ///
    /// # Errors
    /// As [`Lock::acquire`]; at once for a supervisor.
    pub fn acquire_within(folder: &Path, role: Role, patience: Duration) -> Result<Self, LockError> {
        let begin = Instant::now();
        loop {
            match Self::acquire(folder, role) {
                Err(LockError::Held { role: Role::Passing, .. } | LockError::HeldUnnamed { .. })
                    if begin.elapsed() < patience =>
                {
                    thread::sleep(POLL);
                }
                done => return done,
            }
        }
    }

    /// Who holds a folder; none when nobody does or it does not exist. Changes nothing (I12).
    ///
    /// # Errors
    /// When the lock file cannot be read.
    pub fn holder(folder: &Path) -> Result<Option<Holder>, LockError> {
        let file = match File::open(folder.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|source| LockError::of(folder, source))?,
        };
        let mut probe = whole_file();
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut probe)).map_err(|errno| LockError::of(folder, errno.into()))?;
        if i32::from(probe.l_type) == nix::libc::F_UNLCK {
            return Ok(None);
        }
        named(folder).map(Some).ok_or_else(|| LockError::HeldUnnamed { folder: folder.to_owned() })
    }
}

/// All the folders that a writer of the queue writes, taken in one order.
#[derive(Debug)]
pub struct Locks {
    _held: Vec<Lock>,
}

impl Locks {
    /// Takes the locks of queue, idempotency, DLQ and store, in this order, each only once if folders are the same.
    ///
    /// # Errors
    /// As [`Lock::acquire_within`]; what was taken before is released.
    pub fn acquire(roots: &Roots, role: Role, patience: Duration) -> Result<Self, LockError> {
        let begin = Instant::now();
        let mut seen = Vec::new();
        let mut held = Vec::new();
        for (_, folder) in roots.named() {
            let same = folder.canonicalize().map_err(|source| LockError::of(folder, source))?;
            if !seen.contains(&same) {
                held.push(Lock::acquire_within(folder, role, patience.saturating_sub(begin.elapsed()))?);
                seen.push(same);
            }
        }
        Ok(Self { _held: held })
    }

    /// Refuses folders of which a supervisor holds one, and changes nothing. Whoever goes on still needs the locks.
    ///
    /// # Errors
    /// [`LockError::Held`].
    pub fn refuse_supervised(roots: &Roots) -> Result<(), LockError> {
        for (_, folder) in roots.named() {
            // What cannot be told here is told by taking the lock.
            if let Ok(Some(holder)) = Lock::holder(folder)
                && holder.role == Role::Supervisor
            {
                return Err(holder.holds(folder));
            }
        }
        Ok(())
    }
}

fn whole_file() -> nix::libc::flock {
    nix::libc::flock {
        l_type: i16::try_from(nix::libc::F_WRLCK).unwrap_or_default(),
        l_whence: i16::try_from(nix::libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn held(folder: &Path) -> LockError {
    match named(folder) {
        Some(holder) => holder.holds(folder),
        None => LockError::HeldUnnamed { folder: folder.to_owned() },
    }
}

/// The holder by the lock file, which a fresh holder is about to write.
fn named(folder: &Path) -> Option<Holder> {
    let begin = Instant::now();
    loop {
        let mut text = String::new();
        let read = File::open(folder.join(FILE)).and_then(|file| file.take(HOLDER_MAX_BYTES).read_to_string(&mut text));
        let holder = read.ok().and_then(|_| serde_json::from_str::<Holder>(text.lines().next()?).ok());
        if let Some(holder) = holder.filter(lives) {
            return Some(holder);
        }
        if begin.elapsed() > NAME_WAIT {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// Whether the file's words are about a process that exists, not about an earlier holder. On another host nobody knows.
fn lives(holder: &Holder) -> bool {
    holder.host != host() || start_ticks(holder.pid) == Some(holder.start_ticks)
}

fn myself(role: Role) -> Holder {
    let pid = std::process::id();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let started = Millis(u64::try_from(now.as_millis()).unwrap_or(0));
    Holder { role, pid, start_ticks: start_ticks(pid).unwrap_or(0), started, host: host() }
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// When a process started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
#[must_use]
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command's name in parentheses, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    // A zombie holds nothing any more.
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_refused_by_name_and_the_first_one_keeps_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::acquire(folder.path(), Role::Supervisor).unwrap();
        let words = std::fs::read(folder.path().join(FILE)).unwrap();
        let begin = Instant::now();
        let error = Lock::acquire_within(folder.path(), Role::Passing, Duration::from_secs(60)).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(30), "a supervisor is not waited for");
        let LockError::Held { role, pid, .. } = &error else { panic!("{error}") };
        assert_eq!((*role, *pid), (Role::Supervisor, std::process::id()));
        assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), words);
        assert_eq!(Lock::holder(folder.path()).unwrap().map(|holder| holder.pid), Some(std::process::id()));
        drop(lock);
        assert_eq!(Lock::holder(folder.path()).unwrap(), None);
        Lock::acquire(folder.path(), Role::Passing).unwrap();
    }

    #[test]
    fn whatever_the_file_says_a_held_lock_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let _lock = Lock::acquire(folder.path(), Role::Supervisor).unwrap();
        let words = std::fs::read(&path).unwrap();
        for changed in [&b""[..], &words[..words.len() / 2], &[words.as_slice(), &words].concat(), b"\0\0"] {
            std::fs::write(&path, changed).unwrap();
            let held = Lock::acquire(folder.path(), Role::Repair);
            assert!(matches!(held, Err(LockError::Held { .. } | LockError::HeldUnnamed { .. })), "{held:?}");
            assert!(!matches!(Lock::holder(folder.path()), Ok(None)));
            assert_eq!(std::fs::read(&path).unwrap(), changed, "its words are not overwritten");
        }
    }

    #[test]
    fn a_passing_writer_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::acquire(folder.path(), Role::Passing).unwrap();
        let error = Lock::acquire_within(folder.path(), Role::Supervisor, Duration::ZERO).unwrap_err();
        assert!(matches!(error, LockError::Held { role: Role::Passing, .. }), "{error}");
        let waiting = thread::scope(|scope| {
            let other = scope.spawn(|| Lock::acquire_within(folder.path(), Role::Supervisor, Duration::from_secs(60)));
            drop(lock);
            other.join().unwrap()
        });
        waiting.unwrap();
    }

    #[test]
    fn closing_another_descriptor_of_the_file_does_not_lose_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let _lock = Lock::acquire(folder.path(), Role::Supervisor).unwrap();
        drop(File::open(folder.path().join(FILE)).unwrap());
        assert!(Lock::acquire(folder.path(), Role::Passing).is_err());
    }

    #[test]
    fn all_folders_of_a_queue_are_taken_or_none() {
        let home = tempfile::tempdir().unwrap();
        let roots = Roots::below(home.path());
        assert!(matches!(Locks::acquire(&roots, Role::Passing, Duration::ZERO), Err(LockError::Missing { .. })));
        for (_, folder) in roots.named() {
            std::fs::create_dir(folder).unwrap();
        }
        let other = Lock::acquire(&roots.store, Role::Supervisor).unwrap();
        let error = Locks::acquire(&roots, Role::Supervisor, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("store"), "{error}");
        assert_eq!(Lock::holder(&roots.queue).unwrap(), None);
        drop(other);
        let _all = Locks::acquire(&roots, Role::Supervisor, Duration::ZERO).unwrap();
        assert!(Locks::acquire(&roots, Role::Supervisor, Duration::ZERO).is_err());
    }

    #[test]
    fn asking_for_the_holder_of_a_missing_folder_creates_nothing() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(Lock::holder(&home.path().join("queue")).unwrap(), None);
        assert!(std::fs::read_dir(home.path()).unwrap().next().is_none());
    }
}
