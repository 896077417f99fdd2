//! The pid file: believed only together with the process's start time and the lock that it holds on the file.
//!
//! Two lines: the pid, and field 22 of `/proc/PID/stat` (start, in clock ticks since boot; proc_pid_stat(5)).

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD, FlockOperation, accessat, flock},
    io::Errno,
};

/// Why a pid file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    #[error("process {pid} already runs and holds {}", path.display())]
    Running { path: PathBuf, pid: u32 },
    #[error("{} cannot hold a pid file: there is no folder {}", path.display(), folder.display())]
    NoFolder { path: PathBuf, folder: PathBuf },
    #[error("{} cannot be a pid file: it is no regular file", path.display())]
    NoFile { path: PathBuf },
    #[error("pid file {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// What a pid file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// There is no file.
    None,
    /// The process of that pid holds the file, and it is the one that wrote it.
    Running { pid: u32, started: u64 },
    /// Its process is gone, the pid belongs to someone else now, or it is no pid file. Nobody may be signalled.
    Stale { pid: Option<u32> },
}

/// Holds the pid file; removes it when dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// The lock lives as long as this.
    file: File,
}

/// Whether a pid file can stand there, before anything else is made.
///
/// # Errors
/// [`PidFileError::NoFolder`], [`PidFileError::NoFile`], and a folder in which nothing can be made.
pub fn check(path: &Path) -> Result<(), PidFileError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(PidFileError::NoFolder { path: path.to_owned(), folder: folder.to_owned() });
    }
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(PidFileError::NoFile { path: path.to_owned() });
    }
    accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|errno| PidFileError::Io { path: path.to_owned(), source: errno.into() })
}

/// Writes this process's pid file, whole or not at all; a stale one is replaced.
///
/// # Errors
/// When a running process holds it, or the file system refuses.
pub fn write(path: &Path) -> Result<PidFile, PidFileError> {
    let fail = |source| PidFileError::Io { path: path.to_owned(), source };
    if let Recorded::Running { pid, .. } = read(path).map_err(fail)? {
        return Err(PidFileError::Running { path: path.to_owned(), pid });
    }
    let pid = std::process::id();
    let started = start_time(pid).ok_or_else(|| fail(io::Error::other("/proc/self/stat is not readable")))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{pid}.new"));
    let fresh = path.with_file_name(name);
    let written = (|| {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        writeln!(file, "{pid}\n{started}")?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        Ok(file)
    })();
    match written {
        Ok(file) => Ok(PidFile { path: path.to_owned(), file }),
        Err(source) => {
            let _may_not_exist = fs::remove_file(&fresh);
            Err(fail(source))
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Only its own file: somebody may have put another one there.
        let same = match (self.file.metadata(), fs::metadata(&self.path)) {
            (Ok(mine), Ok(there)) => (mine.dev(), mine.ino()) == (there.dev(), there.ino()),
            _ => false,
        };
        if same {
            let _gone_already = fs::remove_file(&self.path);
        }
    }
}

/// What a pid file says, and whether it is to be believed.
///
/// # Errors
/// When it exists and cannot be read.
pub fn read(path: &Path) -> io::Result<Recorded> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Recorded::None),
        Err(error) => return Err(error),
    };
    let text = io::read_to_string(&file)?;
    let mut lines = text.lines();
    let pid: Option<u32> = lines.next().and_then(|line| line.trim().parse().ok()).filter(|&pid| pid > 0);
    let started: Option<u64> = lines.next().and_then(|line| line.trim().parse().ok());
    let held = matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
    Ok(match (pid, started) {
        (Some(pid), Some(started)) if held && start_time(pid) == Some(started) => Recorded::Running { pid, started },
        _ => Recorded::Stale { pid },
    })
}

/// When a process started; `None` when there is none, or it is a zombie.
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = stat(pid)?;
    let mut fields = stat.split_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

/// Whether a process stands still by SIGSTOP or by who traces it: it takes no signal but SIGKILL and SIGCONT.
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.trim_start().to_lowercase().starts_with('t'))
}

/// The fields of `/proc/PID/stat` from the third on.
fn stat(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second is the name in parentheses and may hold anything; the third follows the last of them.
    Some(stat.rsplit_once(')')?.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_believed_while_its_writer_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tm.pid");
        assert_eq!(read(&path).unwrap(), Recorded::None);
        let held = write(&path).unwrap();
        let pid = std::process::id();
        assert!(matches!(read(&path).unwrap(), Recorded::Running { pid: found, .. } if found == pid));
        assert!(matches!(write(&path), Err(PidFileError::Running { pid: found, .. }) if found == pid));
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn strangers_and_the_dead_are_stale() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tm.pid");
        let (own, started) = (std::process::id(), start_time(std::process::id()).unwrap());
        for text in
            [format!("{own}\n{started}\n"), "1\n1\n".to_owned(), format!("{own}\n"), "x".to_owned(), String::new()]
        {
            fs::write(&path, &text).unwrap();
            assert!(matches!(read(&path).unwrap(), Recorded::Stale { .. }), "nobody holds it: {text:?}");
        }
        // Held by this process, but it names another start of its pid.
        fs::write(&path, format!("{own}\n{}\n", started + 1)).unwrap();
        let file = File::open(&path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(read(&path).unwrap(), Recorded::Stale { pid: Some(own) });
        drop(file);
        let _replaced = write(&path).unwrap();
        assert!(matches!(read(&path).unwrap(), Recorded::Running { .. }));
    }
}
