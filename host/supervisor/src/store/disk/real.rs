//! The disk of the machine: descriptors of the four folders, and everything opened below them without following links.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{Beside, Disk, DiskError, Entry, How, Kind, Later, Work, perform};

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o700);

/// Where the four folders are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    pub queue: PathBuf,
    pub idempotency: PathBuf,
    pub dlq: PathBuf,
    pub store: PathBuf,
}

impl Roots {
    /// The four as `data/queue`, `data/idempotency`, `data/dlq`, `data/store` below one folder.
    #[must_use]
    pub fn below(data: &Path) -> Self {
        Self {
            queue: data.join("queue"),
            idempotency: data.join("idempotency"),
            dlq: data.join("dlq"),
            store: data.join("store"),
        }
    }

    /// By their names in [`super::ROOTS`], in that order.
    #[must_use]
    pub fn named(&self) -> [(&'static str, &Path); 4] {
        [("queue", &self.queue), ("idempotency", &self.idempotency), ("dlq", &self.dlq), ("store", &self.store)]
    }

    /// Whether a queue is kept here, or what is left of one: a folder with a lock and a socket alone is a memory queue's, or
    /// nobody's yet, and what else stands in a folder is not ours.
    #[must_use]
    pub fn hold_a_queue(&self) -> bool {
        let is_ours = |name: &OsStr| {
            let name = name.to_string_lossy();
            name == "damaged" || ["queue.", "segment-", "results-"].iter().any(|begin| name.starts_with(begin))
        };
        match fs::read_dir(&self.queue) {
            Ok(mut entries) => entries.any(|entry| entry.is_ok_and(|entry| is_ours(&entry.file_name()))),
            // Whoever opens it says why it cannot be read.
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

#[derive(Clone)]
pub struct RealDisk {
    shared: Arc<Shared>,
}

struct Shared {
    roots: BTreeMap<&'static str, Root>,
    background: Mutex<Option<mpsc::Sender<Job>>>,
    syncs: AtomicU64,
}

struct Root {
    path: PathBuf,
    /// None: the folder does not exist (read-only mode).
    fd: Option<OwnedFd>,
}

enum Job {
    Work(Later),
    Beside(Work<RealDisk>, mpsc::Sender<Result<(), DiskError>>),
    Settled(mpsc::Sender<()>),
}

/// An open file with the path that its errors name.
pub struct RealFile {
    fd: OwnedFd,
    path: String,
}

impl AsFd for RealFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl RealDisk {
    /// Opens the four folders for a writer and makes those that are missing, 0700.
    ///
    /// # Errors
    /// When a folder can neither be opened nor made.
    pub fn create(roots: &Roots) -> Result<Self, DiskError> {
        for (_, path) in roots.named() {
            let named = |source| DiskError::of(&path.display().to_string(), source);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(named)?;
        }
        Self::existing(roots)
    }

    /// Opens the folders that exist and makes none: reading a missing one says [`DiskError::NotFound`] (I12).
    ///
    /// # Errors
    /// When a folder exists and cannot be opened.
    pub fn existing(roots: &Roots) -> Result<Self, DiskError> {
        let mut opened = BTreeMap::new();
        for (name, path) in roots.named() {
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
            let fd = match rustix::fs::open(path, flags, Mode::empty()) {
                Ok(fd) => Some(fd),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(DiskError::of(&path.display().to_string(), errno.into())),
            };
            opened.insert(name, Root { path: path.to_owned(), fd });
        }
        Ok(Self { shared: Arc::new(Shared { roots: opened, background: Mutex::new(None), syncs: AtomicU64::new(0) }) })
    }

    fn count_sync(&self) {
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
    }

    /// A descriptor of a folder, for a worker's profile.
    ///
    /// # Errors
    /// [`DiskError::NotFound`] and what the system says.
    pub fn folder(&self, folder: &str) -> Result<OwnedFd, DiskError> {
        self.open_raw(folder, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }

    /// Hands a folder to the user that the workers run as; what is made below it later belongs to that user too.
    ///
    /// # Errors
    /// What the system says; only root may do it.
    pub fn give(&self, folder: &str, uid: u32, gid: u32) -> Result<(), DiskError> {
        let fd = self.folder(folder)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::fchown(&fd, Some(uid), Some(gid)).map_err(|errno| self.error(folder, errno))
    }

    fn error(&self, path: &str, errno: Errno) -> DiskError {
        DiskError::of(&self.shown(path), errno.into())
    }

    /// The root's descriptor and what of the path is below it.
    fn root<'a>(&self, path: &'a str) -> Result<(BorrowedFd<'_>, &'a str), DiskError> {
        let (root, below) = path.split_once('/').unwrap_or((path, "."));
        let fd = self.shared.roots.get(root).and_then(|root| root.fd.as_ref());
        fd.map(|fd| (fd.as_fd(), below)).ok_or_else(|| DiskError::NotFound { path: self.shown(path) })
    }

    fn open_raw(&self, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, DiskError> {
        let (root, below) = self.root(path)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // NONBLOCK: opening a pipe that somebody put there must not hang.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        loop {
            match rustix::fs::openat2(root, below, flags, mode, resolve) {
                // A rename or mount elsewhere raced with the walk (openat2(2)).
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened.map_err(|errno| self.error(path, errno)),
            }
        }
    }

    /// The descriptor of the folder that holds a name, and the name.
    fn parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str), DiskError> {
        let Some((folder, name)) = path.rsplit_once('/') else {
            return Err(self.error(path, Errno::INVAL));
        };
        if name.is_empty() || name == "." || name == ".." {
            return Err(self.error(path, Errno::INVAL));
        }
        Ok((self.folder(folder)?, name))
    }

    fn background(&self) -> Option<mpsc::Sender<Job>> {
        let mut sender = self.shared.background.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.is_none() {
            let (jobs, inbox) = mpsc::channel();
            // The thread's own handle has no background, so that it ends with the last real one.
            let roots = self.shared.roots.iter().map(|(name, root)| {
                let fd = root.fd.as_ref().map(OwnedFd::try_clone).transpose()?;
                Ok((*name, Root { path: root.path.clone(), fd }))
            });
            let roots = roots.collect::<io::Result<_>>().ok()?;
            let disk =
                Self { shared: Arc::new(Shared { roots, background: Mutex::new(None), syncs: AtomicU64::new(0) }) };
            let spawned = thread::Builder::new().name("tm-disk".into()).spawn(move || {
                for job in inbox {
                    match job {
                        Job::Work(work) => perform(&disk, work),
                        // Nobody waits any more: fine.
                        Job::Beside(work, done) => drop(done.send(work(&disk))),
                        Job::Settled(done) => drop(done.send(())),
                    }
                }
            });
            spawned.ok()?;
            *sender = Some(jobs);
        }
        sender.clone()
    }
}

/// The length of a name that the system refuses is no bound of ours: errors name the whole path.
fn file_error(file: &RealFile, errno: Errno) -> DiskError {
    DiskError::of(&file.path, errno.into())
}

impl Disk for RealDisk {
    type File = RealFile;

    fn open(&self, path: &str, how: How) -> Result<RealFile, DiskError> {
        let (flags, mode) = match how {
            How::Read => (OFlags::RDONLY, Mode::empty()),
            How::Write => (OFlags::RDWR, Mode::empty()),
            How::CreateNew => (OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, FILE_MODE),
            How::Replace => (OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC, FILE_MODE),
        };
        let fd = self.open_raw(path, flags, mode)?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| self.error(path, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(DiskError::Io { path: self.shown(path), source });
        }
        Ok(RealFile { fd, path: self.shown(path) })
    }

    fn read_at(&self, file: &RealFile, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        let mut got = 0;
        while got < into.len() {
            match rustix::io::pread(&file.fd, &mut into[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(file_error(file, errno)),
            }
        }
        Ok(got)
    }

    fn write_at(&self, file: &RealFile, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(&file.fd, &bytes[done..], offset + done as u64) {
                Ok(0) => return Err(file_error(file, Errno::NOSPC)),
                Ok(more) => done += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(file_error(file, errno)),
            }
        }
        Ok(())
    }

    fn sync(&self, file: &RealFile) -> Result<(), DiskError> {
        self.count_sync();
        rustix::fs::fdatasync(&file.fd).map_err(|errno| file_error(file, errno))
    }

    fn size(&self, file: &RealFile) -> Result<u64, DiskError> {
        let stat = rustix::fs::fstat(&file.fd).map_err(|errno| file_error(file, errno))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    fn truncate(&self, file: &RealFile, bytes: u64) -> Result<(), DiskError> {
        rustix::fs::ftruncate(&file.fd, bytes).map_err(|errno| file_error(file, errno))
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, DiskError> {
        let fd = self.folder(folder)?;
        let failed = |errno| self.error(folder, errno);
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else {
                // Nothing of ours has such a name; it cannot be spoken about, and is left alone.
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            let stat = match rustix::fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat.map_err(failed)?,
            };
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => Kind::File,
                FileType::Directory => Kind::Folder,
                _ => Kind::Other,
            };
            let size_bytes = if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
            let modified_ms = u64::try_from(stat.st_mtime).unwrap_or(0) * 1000;
            entries.push(Entry { name: name.to_owned(), kind, size_bytes, modified_ms });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create_folder(&self, folder: &str) -> Result<(), DiskError> {
        if !folder.contains('/') {
            return self.folder(folder).map(drop);
        }
        let (parent, name) = self.parent(folder)?;
        let failed = |errno| self.error(folder, errno);
        match rustix::fs::mkdirat(&parent, name, FOLDER_MODE) {
            Err(Errno::EXIST) => return self.folder(folder).map(drop),
            made => made.map_err(failed)?,
        }
        let above = rustix::fs::fstat(&parent).map_err(failed)?;
        if above.st_uid != rustix::process::geteuid().as_raw() {
            self.give(folder, above.st_uid, above.st_gid)?;
        }
        self.count_sync();
        rustix::fs::fsync(&parent).map_err(failed)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let ((from_folder, from_name), (to_folder, to_name)) = (self.parent(from)?, self.parent(to)?);
        rustix::fs::renameat(&from_folder, from_name, &to_folder, to_name).map_err(|errno| self.error(from, errno))?;
        self.count_sync();
        rustix::fs::fsync(&to_folder).map_err(|errno| self.error(to, errno))?;
        if from.strip_suffix(from_name) == to.strip_suffix(to_name) {
            return Ok(());
        }
        self.count_sync();
        rustix::fs::fsync(&from_folder).map_err(|errno| self.error(from, errno))
    }

    fn unlink(&self, path: &str) -> Result<(), DiskError> {
        let (folder, name) = self.parent(path)?;
        rustix::fs::unlinkat(&folder, name, AtFlags::empty()).map_err(|errno| self.error(path, errno))
    }

    fn remove_folder(&self, folder: &str) -> Result<(), DiskError> {
        let (parent, name) = self.parent(folder)?;
        rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).map_err(|errno| self.error(folder, errno))
    }

    fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    fn sync_folder(&self, folder: &str) -> Result<(), DiskError> {
        self.count_sync();
        rustix::fs::fsync(&self.folder(folder)?).map_err(|errno| self.error(folder, errno))
    }

    fn descriptor(&self, path: &str) -> Result<OwnedFd, DiskError> {
        self.open(path, How::Read).map(|file| file.fd)
    }

    fn later(&self, work: Later) {
        match self.background() {
            Some(jobs) => {
                if let Err(mpsc::SendError(Job::Work(work))) = jobs.send(Job::Work(work)) {
                    perform(self, work);
                }
            }
            None => perform(self, work),
        }
    }

    fn beside(&self, work: Work<Self>) -> Beside {
        let (done, beside) = Beside::begin();
        let Some(jobs) = self.background() else { return Beside::done(work(self)) };
        match jobs.send(Job::Beside(work, done)) {
            Err(mpsc::SendError(Job::Beside(work, _))) => Beside::done(work(self)),
            _ => beside,
        }
    }

    fn settle(&self) {
        let jobs = self.shared.background.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (done, settled) = mpsc::channel();
        if let Some(jobs) = jobs
            && jobs.send(Job::Settled(done)).is_ok()
        {
            // An error means that the thread is gone, and its work with it.
            let _ = settled.recv();
        }
    }

    fn shown(&self, path: &str) -> String {
        let (root, below) = path.split_once('/').unwrap_or((path, ""));
        match self.shared.roots.get(root) {
            Some(root) if below.is_empty() => root.path.display().to_string(),
            Some(root) => root.path.join(below).display().to_string(),
            None => path.to_owned(),
        }
    }
}
