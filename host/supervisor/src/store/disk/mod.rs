//! The seam to files: the few verbs that the store needs, so that memory or a simulation can stand in for the disk.
//!
//! Paths are relative, `/` between names, and begin with one of [`ROOTS`]; each root is a folder of its own in the
//! configuration. Nothing here follows a symbolic link.

pub mod mem;
pub mod real;

use std::{io, os::fd::OwnedFd, sync::mpsc};

pub use mem::MemDisk;
pub use real::{RealDisk, RealFile, Roots};

/// The log, the dead letters' and the keys' derived files, and the rest.
pub const ROOTS: [&str; 4] = ["queue", "idempotency", "dlq", "store"];
/// Newlines that one write takes.
const BLANK_BYTES: u64 = 1024 * 1024;
/// Folders below one another that [`remove_tree`] goes down at most.
pub const DEPTH_MAX: usize = 64;

/// What a failed verb means to its caller.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// May be tried again once there is room.
    #[error("no room for {path}: {source}")]
    Full { path: String, source: io::Error },
    #[error("{path} cannot be written: {source}")]
    ReadOnly { path: String, source: io::Error },
    #[error("{path} does not exist")]
    NotFound { path: String },
    #[error("{path} exists already")]
    Exists { path: String },
    /// Larger than the reader's bound.
    #[error("{path} is larger than {max_bytes} bytes")]
    TooLarge { path: String, max_bytes: u64 },
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
}

impl DiskError {
    /// Sorts an error of the system by what can be done about it.
    #[must_use]
    pub fn of(path: &str, source: io::Error) -> Self {
        use rustix::io::Errno;
        let path = path.to_owned();
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Self::Full { path, source },
            Some(Errno::ROFS | Errno::ACCESS | Errno::PERM) => Self::ReadOnly { path, source },
            Some(Errno::NOENT) => Self::NotFound { path },
            Some(Errno::EXIST) => Self::Exists { path },
            _ => Self::Io { path, source },
        }
    }

    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }

    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A file that must not exist yet.
    CreateNew,
    /// A new or emptied file.
    Replace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    /// Symbolic links, sockets, devices: never opened.
    Other,
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub kind: Kind,
    /// 0 for what is not a file.
    pub size_bytes: u64,
    /// 0 when unknown. Only for sweeping by age.
    pub modified_ms: u64,
}

/// Work that nobody waits for, done in the order in which it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Later {
    /// Removes a file; one that is gone already is fine.
    Unlink { path: String },
    /// Writes a derived file as [`replace`] does. When that fails, the old file goes too: none is better than a wrong one.
    Derive { path: String, bytes: Vec<u8> },
    /// Cuts off the end of a file that nobody writes to any more, durably. One that is gone already is fine.
    Cut { path: String, bytes: u64 },
}

/// A handle to the folders; clones are the same disk.
pub trait Disk: Clone + Send + Sync + 'static {
    /// An open file; closed when dropped. Stays readable when its name is gone.
    type File: Send;

    /// # Errors
    /// [`DiskError::NotFound`], [`DiskError::Exists`], and what the system says.
    fn open(&self, path: &str, how: How) -> Result<Self::File, DiskError>;
    /// Reads up to `into.len()` bytes; fewer only at the end of the file.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, file: &Self::File, offset: u64, into: &mut [u8]) -> Result<usize, DiskError>;
    /// Writes all of `bytes`. After an error some of them may be written.
    ///
    /// # Errors
    /// [`DiskError::Full`] among others.
    fn write_at(&self, file: &Self::File, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;
    /// Makes content and length durable. After an error nothing is known of what was written: never try again.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self, file: &Self::File) -> Result<(), DiskError>;
    /// # Errors
    /// What the system says.
    fn size(&self, file: &Self::File) -> Result<u64, DiskError>;
    /// Cuts (or extends with zeroes) to `bytes`.
    ///
    /// # Errors
    /// What the system says.
    fn truncate(&self, file: &Self::File, bytes: u64) -> Result<(), DiskError>;
    /// Names in a folder, sorted.
    ///
    /// # Errors
    /// [`DiskError::NotFound`] and what the system says.
    fn list(&self, folder: &str) -> Result<Vec<Entry>, DiskError>;
    /// Makes a folder whose parent exists, durably; an existing folder is fine.
    ///
    /// # Errors
    /// What the system says.
    fn create_folder(&self, folder: &str) -> Result<(), DiskError>;
    /// Moves a file or folder, replacing a file (or an empty folder), and makes both names durable.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError>;
    /// # Errors
    /// [`DiskError::NotFound`] and what the system says.
    fn unlink(&self, path: &str) -> Result<(), DiskError>;
    /// Removes an empty folder.
    ///
    /// # Errors
    /// [`DiskError::NotFound`] and what the system says.
    fn remove_folder(&self, folder: &str) -> Result<(), DiskError>;
    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_folder(&self, folder: &str) -> Result<(), DiskError>;
    /// A read-only descriptor of the content, to hand to another process.
    ///
    /// # Errors
    /// [`DiskError::NotFound`] and what the system says.
    fn descriptor(&self, path: &str) -> Result<OwnedFd, DiskError>;
    /// Takes work off the caller's hands; failures are logged.
    fn later(&self, work: Later) {
        perform(self, work);
    }
    /// Does work beside the caller, who asks how it ended. In the order in which it was given, [`Disk::later`]'s included.
    fn beside(&self, work: Work<Self>) -> Beside {
        Beside::done(work(self))
    }
    /// Waits until all that was given to [`Disk::later`] and [`Disk::beside`] is done.
    fn settle(&self) {}
    /// Syncs of files and folders so far; 0 where they are not counted.
    fn syncs(&self) -> u64 {
        0
    }
    /// The path as people know it.
    fn shown(&self, path: &str) -> String {
        path.to_owned()
    }
}

/// What [`Disk::beside`] does.
pub type Work<D> = Box<dyn FnOnce(&D) -> Result<(), DiskError> + Send>;

/// Work on the disk that somebody else does.
pub struct Beside(mpsc::Receiver<Result<(), DiskError>>);

impl Beside {
    /// With the way to tell how it ended.
    #[must_use]
    pub fn begin() -> (mpsc::Sender<Result<(), DiskError>>, Self) {
        let (done, ended) = mpsc::channel();
        (done, Self(ended))
    }

    /// One that has ended already.
    #[must_use]
    pub fn done(synced: Result<(), DiskError>) -> Self {
        let (done, beside) = Self::begin();
        // The other end is in hand.
        let _ = done.send(synced);
        beside
    }

    /// How it ended; `None` while it goes on.
    #[must_use]
    pub fn poll(&self) -> Option<Result<(), DiskError>> {
        match self.0.try_recv() {
            Ok(synced) => Some(synced),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Err(unanswered())),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What the system said.
    pub fn wait(self) -> Result<(), DiskError> {
        self.0.recv().unwrap_or_else(|_| Err(unanswered()))
    }
}

/// Its thread is gone: nothing is known of the files.
fn unanswered() -> DiskError {
    DiskError::Io { path: "queue".into(), source: io::Error::other("work was begun and nobody knows how it ended") }
}

/// Writes `bytes` newlines at `at`.
///
/// # Errors
/// Those of [`Disk::write_at`].
pub fn blank<D: Disk>(disk: &D, file: &D::File, mut at: u64, bytes: u64) -> Result<(), DiskError> {
    let newlines = vec![b'\n'; usize::try_from(bytes.min(BLANK_BYTES)).unwrap_or(0)];
    let target = at.saturating_add(bytes);
    while at < target {
        let bytes = usize::try_from(target - at).map_or(newlines.len(), |rest| rest.min(newlines.len()));
        disk.write_at(file, at, &newlines[..bytes])?;
        at += bytes as u64;
    }
    Ok(())
}

/// Makes files durable. One that is gone is fine.
///
/// # Errors
/// Of the first file that cannot be synced.
pub fn sync_all<D: Disk>(disk: &D, paths: &[String]) -> Result<(), DiskError> {
    paths.iter().try_for_each(|path| match disk.open(path, How::Write) {
        Err(error) if error.is_not_found() => Ok(()),
        file => disk.sync(&file?),
    })
}

/// Does what [`Disk::later`] promises, at once.
pub fn perform<D: Disk>(disk: &D, work: Later) {
    match work {
        Later::Unlink { path } => {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let done = disk.unlink(&path).and_then(|()| disk.sync_folder(folder));
            if let Err(error) = done
                && !error.is_not_found()
            {
                tracing::warn!(%error, "a file that is no longer needed stays");
            }
        }
        Later::Derive { path, bytes } => {
            if let Err(error) = replace(disk, &path, &bytes) {
                tracing::warn!(%error, "a derived file could not be written");
                // Its failure says no more than the warning above.
                let _ = disk.unlink(&path);
            }
        }
        Later::Cut { path, bytes } => {
            let cut = disk.open(&path, How::Write).and_then(|file| {
                disk.truncate(&file, bytes)?;
                disk.sync(&file)
            });
            if let Err(error) = cut
                && !error.is_not_found()
            {
                tracing::warn!(%error, "room that a file does not need could not be given back");
            }
        }
    }
}

/// Writes a whole file so that its name always holds the old content or the new one, and makes it durable.
///
/// # Errors
/// Those of the verbs. The old file stays.
pub fn replace<D: Disk>(disk: &D, path: &str, bytes: &[u8]) -> Result<(), DiskError> {
    let part = format!("{path}.tmp");
    let written = disk.open(&part, How::Replace).and_then(|file| {
        disk.write_at(&file, 0, bytes)?;
        disk.sync(&file)
    });
    if let Err(error) = written.and_then(|()| disk.rename(&part, path)) {
        // The error that matters is the first one.
        let _ = disk.unlink(&part);
        return Err(error);
    }
    Ok(())
}

/// Reads a whole file of at most `max_bytes`.
///
/// # Errors
/// [`DiskError::TooLarge`] and those of the verbs.
pub fn read_whole<D: Disk>(disk: &D, path: &str, max_bytes: u64) -> Result<Vec<u8>, DiskError> {
    let file = disk.open(path, How::Read)?;
    let size = disk.size(&file)?;
    if size > max_bytes {
        return Err(DiskError::TooLarge { path: disk.shown(path), max_bytes });
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    let got = disk.read_at(&file, 0, &mut bytes)?;
    bytes.truncate(got);
    Ok(bytes)
}

/// Makes a folder and those above it, below its root.
///
/// # Errors
/// Those of [`Disk::create_folder`].
pub fn create_folders<D: Disk>(disk: &D, folder: &str) -> Result<(), DiskError> {
    match disk.create_folder(folder) {
        Err(DiskError::NotFound { path }) => {
            let Some((above, _)) = folder.rsplit_once('/') else { return Err(DiskError::NotFound { path }) };
            create_folders(disk, above)?;
            disk.create_folder(folder)
        }
        done => done,
    }
}

/// Removes a folder with all in it, without following links. One that is gone already is fine.
///
/// # Errors
/// Those of the verbs; some of it may be removed then.
pub fn remove_tree<D: Disk>(disk: &D, folder: &str) -> Result<(), DiskError> {
    remove_below(disk, folder, 0)
}

fn remove_below<D: Disk>(disk: &D, folder: &str, depth: usize) -> Result<(), DiskError> {
    let entries = match disk.list(folder) {
        Err(error) if error.is_not_found() => return Ok(()),
        listed => listed?,
    };
    if depth > DEPTH_MAX {
        let source = io::Error::new(io::ErrorKind::InvalidInput, format!("more than {DEPTH_MAX} folders deep"));
        return Err(DiskError::Io { path: disk.shown(folder), source });
    }
    for entry in entries {
        let path = format!("{folder}/{}", entry.name);
        match entry.kind {
            Kind::Folder => remove_below(disk, &path, depth + 1)?,
            Kind::File | Kind::Other => disk.unlink(&path)?,
        }
    }
    disk.remove_folder(folder)
}
