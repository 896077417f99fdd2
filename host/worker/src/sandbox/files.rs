//! `wasi:filesystem` with counters: what an attempt may add to each folder is bounded by size, sparse or not.
//!
//! Every function that can make a file longer or make a name passes here first: `write`, the two output streams,
//! `set-size`, `open-at`, `create-directory-at`. Streams write at once on the guest's thread, so the size that is
//! compared is always the file's true one and nothing is under way beside it. What is cut or removed is given back,
//! unless a handle or another name still holds it. Renames and links never cross from one folder's budget to another's.

mod host;
mod open;

use std::{
    collections::HashMap,
    fs::File as OsFile,
    os::unix::fs::{FileExt, MetadataExt},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use tm_core::wire::{FolderRole, Start, staging_path};
use wasmtime_wasi::{
    FsPerms, OpenMode, async_trait,
    filesystem::Dir,
    p2::{FsError, OutputStream, Pollable, StreamError, StreamResult},
};

pub use self::host::CountedFiles;
use super::ctx::Tripped;
use crate::serve::Folders;

/// Where a step finds its private folder.
pub const SCRATCH_PATH: &str = "/scratch";
/// One permit of an output stream.
const PERMIT_BYTES: usize = 64 * 1024;
/// Remembered files from which those that are closed are forgotten.
const OPENED_KEPT: usize = 64;
/// Names (files and folders) that an attempt may make for each MiB of its limit: one per 4 KiB block.
const NAMES_PER_MB: u64 = 256;

/// A grant does not fit this worker.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("folder {folder} of the grant is none of this worker's granted folders")]
    NoSuchFolder { folder: u32 },
    #[error("folder {folder} is read only in this worker's profile")]
    ReadOnly { folder: u32 },
}

/// What one attempt may still add to one folder.
#[derive(Debug)]
struct Budget {
    limit_bytes: u64,
    used_bytes: AtomicU64,
    limit_names: u64,
    used_names: AtomicU64,
    tripped: Tripped,
}

impl Budget {
    fn new(limit_mb: u32, tripped: Tripped) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes: u64::from(limit_mb) << 20,
            used_bytes: AtomicU64::new(0),
            limit_names: u64::from(limit_mb) * NAMES_PER_MB,
            used_names: AtomicU64::new(0),
            tripped,
        })
    }

    /// Takes what a file grows by when its size becomes at least `end`.
    fn grow(&self, file: &OsFile, end: u64) -> Result<(), Refused> {
        let size = file.metadata().map_err(Refused::Io)?.len();
        let after = self.used_bytes.load(Ordering::Relaxed).saturating_add(end.saturating_sub(size));
        if after > self.limit_bytes {
            return Err(Refused::Limit(self.tripped));
        }
        self.used_bytes.store(after, Ordering::Relaxed);
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.used_bytes.store(self.used_bytes.load(Ordering::Relaxed).saturating_sub(bytes), Ordering::Relaxed);
    }

    fn name_made(&self) -> Result<(), Refused> {
        let after = self.used_names.load(Ordering::Relaxed) + 1;
        if after > self.limit_names {
            return Err(Refused::Limit(self.tripped));
        }
        self.used_names.store(after, Ordering::Relaxed);
        Ok(())
    }

    fn name_removed(&self) {
        self.used_names.store(self.used_names.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
    }
}

enum Refused {
    Limit(Tripped),
    Io(std::io::Error),
}

impl From<Refused> for FsError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Limit(tripped) => FsError::trap(tripped),
            Refused::Io(error) => error.into(),
        }
    }
}

impl From<Refused> for StreamError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Limit(tripped) => StreamError::Trap(tripped.into()),
            Refused::Io(error) => StreamError::LastOperationFailed(error.into()),
        }
    }
}

/// What a name leads to.
#[derive(Clone, Copy)]
struct Found {
    /// Device and inode.
    id: (u64, u64),
    /// The bytes that go with the name: the size, when there is no other name and no open handle.
    freed_bytes: u64,
}

struct Preopen {
    dir: Dir,
    guest: String,
    budget: Arc<Budget>,
}

/// The folders of one attempt.
pub struct Files {
    preopens: Vec<Preopen>,
    /// Made when the guest first asks for its folders: most steps never do.
    scratch: Option<ScratchPlan>,
    scratch_made: Option<String>,
    keep_scratch: bool,
    folders: Arc<Folders>,
    /// The budget of each descriptor that the guest holds, by its resource.
    owners: HashMap<u32, Arc<Budget>>,
    /// Files that some handle of this attempt may still hold open.
    opened: Vec<(Weak<OsFile>, (u64, u64))>,
}

struct ScratchPlan {
    path: String,
    limit_mb: u32,
}

impl Files {
    /// # Errors
    /// When a grant names a folder that this worker does not have, or more rights than the folder has.
    pub fn new(start: &Start, folders: &Arc<Folders>) -> Result<Self, FilesError> {
        let mut preopens = Vec::new();
        for grant in &start.grants.files {
            let wanted = FilesError::NoSuchFolder { folder: grant.folder };
            let (folder, dir) = folders.get(grant.folder).ok_or(wanted)?;
            if folder.role != FolderRole::Granted {
                return Err(FilesError::NoSuchFolder { folder: grant.folder });
            }
            if grant.write && !folder.write {
                return Err(FilesError::ReadOnly { folder: grant.folder });
            }
            preopens.push(Preopen {
                dir: with_rights(dir, grant.write),
                guest: grant.guest.clone(),
                budget: Budget::new(grant.max_mb, Tripped::Folder { limit_mb: grant.max_mb }),
            });
        }
        let scratch = start.grants.scratch.then(|| ScratchPlan {
            path: staging_path(&start.task_name(), start.attempt),
            limit_mb: start.limits.scratch_mb,
        });
        Ok(Self {
            preopens,
            scratch,
            scratch_made: None,
            keep_scratch: start.grants.keep_scratch,
            folders: Arc::clone(folders),
            owners: HashMap::new(),
            opened: Vec::new(),
        })
    }

    fn make_scratch(&mut self) -> std::io::Result<()> {
        let (Some(plan), Some(base)) = (self.scratch.take(), self.folders.scratch()) else { return Ok(()) };
        let mode = Mode::from_raw_mode(0o700);
        match rustix::fs::mkdirat(base, &plan.path, mode) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(base, &plan.path, flags, Mode::empty())?;
        self.preopens.push(Preopen {
            dir: Dir::new(dir.into(), FsPerms::ReadWrite, OpenMode::READ | OpenMode::WRITE, true),
            guest: SCRATCH_PATH.to_owned(),
            budget: Budget::new(plan.limit_mb, Tripped::Scratch { limit_mb: plan.limit_mb }),
        });
        self.scratch_made = Some(plan.path);
        Ok(())
    }

    /// Removes the scratch folder of an attempt that succeeded, unless it is to stay; one that failed leaves it for its
    /// reader.
    pub fn remove_scratch(&mut self) {
        if self.keep_scratch {
            return;
        }
        if let (Some(path), Some(base)) = (self.scratch_made.take(), self.folders.scratch()) {
            // What stays is swept by the supervisor.
            let _ = std::fs::remove_dir_all(format!("{}/{path}", crate::confine::own_path(base)));
        }
    }

    fn remember(&mut self, file: &Arc<OsFile>) {
        if self.opened.len() >= OPENED_KEPT {
            self.opened.retain(|(file, _)| file.strong_count() > 0);
        }
        if let Ok(meta) = file.metadata() {
            self.opened.push((Arc::downgrade(file), (meta.dev(), meta.ino())));
        }
    }

    fn is_open(&self, id: (u64, u64)) -> bool {
        self.opened.iter().any(|(file, known)| *known == id && file.strong_count() > 0)
    }
}

fn with_rights(dir: &Dir, write: bool) -> Dir {
    let mut dir = dir.clone();
    (dir.perms, dir.open_mode) = if write {
        (FsPerms::ReadWrite, OpenMode::READ | OpenMode::WRITE)
    } else {
        (FsPerms::ReadOnly, OpenMode::READ)
    };
    dir
}

/// An output stream of a file; `at` is none when it appends.
struct CountedStream {
    file: Arc<OsFile>,
    at: Option<u64>,
    budget: Arc<Budget>,
}

#[async_trait]
impl Pollable for CountedStream {
    async fn ready(&mut self) {}
}

#[async_trait]
impl OutputStream for CountedStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let io = |error: std::io::Error| StreamError::LastOperationFailed(error.into());
        let at = match self.at {
            Some(at) => at,
            None => self.file.metadata().map_err(io)?.len(),
        };
        let end = at.saturating_add(bytes.len() as u64);
        self.budget.grow(&self.file, end)?;
        self.file.write_all_at(&bytes, at).map_err(io)?;
        if self.at.is_some() {
            self.at = Some(end);
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT_BYTES)
    }
}
