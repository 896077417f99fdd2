//! A disk that breaks when told: what it holds is `storage`, here are its verbs, the faults that strike them, and the
//! crash points that are taken of it. After a failed sync the changes count as clean: later syncs never write them (as
//! Linux does).

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tm_supervisor::store::disk::{Disk, DiskError, Entry, How, Kind};

use crate::{
    phases::{Break, Phase},
    random::Random,
    storage::{Change, Lost, Storage, folder_of},
};

const FULL: i32 = 28;
const BROKEN: i32 = 5;
const SPARE: &str = "queue/segment.spare";

/// The disk as it would be found if everything stopped right after one of its operations.
pub(crate) struct CrashPoint {
    pub(crate) storage: Storage,
    pub(crate) what: Break,
    pub(crate) phase: Phase,
    /// Of [`Inner::written`]: effects of these bytes were let out before.
    pub(crate) promised_bytes: usize,
    /// Number of the operation, from the beginning of the history.
    pub(crate) operation: u64,
}

/// Which operations are crash points.
struct Points {
    /// Every so many-th; 0 for none.
    every: u64,
    operations: u64,
    random: Random,
    taken: Vec<CrashPoint>,
}

pub(crate) struct Inner {
    pub(crate) storage: Storage,
    random: Random,
    plan: Option<(Break, Phase, u64)>,
    /// How many syncs from now one is slow, and how long it takes.
    pub(crate) slow_sync: Option<(u64, u64)>,
    /// How long syncs took since the last look.
    pub(crate) slept_ms: u64,
    /// What broke, until the restart.
    pub(crate) broken: Option<(Break, Phase)>,
    /// A read failed since the last look; the disk goes on.
    pub(crate) read_failed: bool,
    pub(crate) recovering: bool,
    pub(crate) quota: u64,
    /// Commits since the last look, whole lines or torn.
    pub(crate) written: Vec<u8>,
    pub(crate) promised_bytes: usize,
    pub(crate) seen: Vec<(&'static str, &'static str)>,
    points: Points,
}

#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<Inner>>);

pub(crate) struct SimFile {
    id: usize,
    path: String,
}

fn error(path: &str, errno: i32) -> DiskError {
    DiskError::of(path, io::Error::from_raw_os_error(errno))
}

impl SimDisk {
    pub(crate) fn new(mut random: Random, points_every: u64) -> Self {
        let points =
            Points { every: points_every, operations: 0, random: Random::new(random.next()), taken: Vec::new() };
        Self::of(Storage::default(), random, points)
    }

    /// A healthy disk that holds this.
    pub(crate) fn holding(storage: Storage) -> Self {
        let points = Points { every: 0, operations: 0, random: Random::new(0), taken: Vec::new() };
        Self::of(storage, Random::new(0), points)
    }

    fn of(storage: Storage, random: Random, points: Points) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            storage,
            random,
            plan: None,
            slow_sync: None,
            slept_ms: 0,
            broken: None,
            read_failed: false,
            recovering: false,
            quota: u64::MAX,
            written: Vec::new(),
            promised_bytes: 0,
            seen: Vec::new(),
            points,
        })))
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The `after`-th operation of the phase breaks.
    pub(crate) fn plan(&mut self, what: Break, phase: Phase, after: u64) {
        self.plan = Some((what, phase, after));
    }

    pub(crate) fn has_plan(&self) -> bool {
        self.plan.is_some()
    }

    pub(crate) fn forget_plan(&mut self) {
        self.plan = None;
    }

    pub(crate) fn set_room(&mut self, bytes: u64) {
        self.quota = self.storage.used + bytes;
    }

    pub(crate) fn free(&self) -> u64 {
        self.quota.saturating_sub(self.storage.used)
    }

    /// Breaks outside of an operation.
    pub(crate) fn stop(&mut self, what: Break) {
        self.broken = Some((what, Phase::Commit));
    }

    /// What was written so far has effects outside from now on: it must never be lost (I1, I6).
    pub(crate) fn promise(&mut self) {
        self.promised_bytes = self.written.len();
    }

    pub(crate) fn crash_points(&mut self) -> Vec<CrashPoint> {
        std::mem::take(&mut self.points.taken)
    }

    /// Bytes of commits since the last look, for the ledger.
    pub(crate) fn take_written(&mut self) -> Vec<u8> {
        self.promised_bytes = 0;
        std::mem::take(&mut self.written)
    }

    /// What is there when the process comes up again.
    pub(crate) fn restart(&mut self) {
        self.plan = None;
        (self.slow_sync, self.slept_ms) = (None, 0);
        self.written.clear();
        self.promised_bytes = 0;
        let Some((what, phase)) = self.broken.take() else { return };
        let loses = match what {
            Break::PowerLoss => true,
            Break::Kill | Break::FailedRead => false,
            Break::FailedSync => self.random.chance(50),
        };
        if loses {
            // What comes back was never given to anybody else.
            let room = self.free();
            let lost = self.storage.lose_power(&mut self.random);
            self.quota = self.storage.used.saturating_add(room);
            self.note(lost, phase);
        }
        self.storage.forget_unnamed();
        self.recovering = true;
    }

    fn note(&mut self, lost: Lost, phase: Phase) {
        if lost.torn {
            self.seen.push(("torn write", phase.name()));
        }
        if lost.bytes {
            self.seen.push(("unsynced bytes lost", phase.name()));
        }
        if let Some(name) = lost.name {
            self.seen.push(("directory entry lost", name));
        }
    }

    fn phase_of(&self, path: &str, otherwise: Phase) -> Phase {
        if self.recovering {
            Phase::Recovery
        } else if path.starts_with("queue/results-") && path.ends_with(".log") {
            if otherwise == Phase::Remove { otherwise } else { Phase::Results }
        } else if path == SPARE {
            Phase::Ahead
        } else if path.ends_with(".log") {
            otherwise
        } else if path.starts_with("dlq/pending") && otherwise != Phase::Remove {
            Phase::Letter
        } else if path.starts_with("dlq/") {
            Phase::Archive
        } else {
            Phase::Derive
        }
    }

    /// True when the operation is the one that breaks.
    fn breaks(&mut self, path: &str, phase: Phase, is_sync: bool) -> Result<bool, DiskError> {
        if self.broken.is_some_and(|(what, _)| what != Break::FailedSync) {
            return Err(error(path, BROKEN));
        }
        let Some((what, planned, after)) = &mut self.plan else { return Ok(false) };
        if *planned != phase || *what == Break::FailedRead || (*what == Break::FailedSync && !is_sync) {
            return Ok(false);
        }
        if *after > 0 {
            *after -= 1;
            return Ok(false);
        }
        self.broken = Some((*what, phase));
        self.seen.push((what.name(), phase.name()));
        self.plan = None;
        Ok(true)
    }

    /// Takes a crash point after an operation, if it is one; `id` is the file that was written.
    fn operated(&mut self, phase: Phase, id: Option<usize>) {
        let points = &mut self.points;
        points.operations += 1;
        if points.every == 0 || !points.operations.is_multiple_of(points.every) || self.broken.is_some() {
            return;
        }
        let mut storage = self.storage.clone();
        let what = if points.random.chance(75) {
            storage.lose_power(&mut points.random);
            Break::PowerLoss
        } else {
            if let Some(id) = id.filter(|_| points.random.chance(50)) {
                storage.cut_short(id, &mut points.random);
            }
            storage.forget_unnamed();
            Break::Kill
        };
        let (promised_bytes, operation) = (self.promised_bytes, points.operations);
        points.taken.push(CrashPoint { storage, what, phase, promised_bytes, operation });
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn open(&self, path: &str, how: How) -> Result<SimFile, DiskError> {
        let mut inner = self.inner();
        let phase = inner.phase_of(path, Phase::Begin);
        let makes = matches!(how, How::CreateNew | How::Replace);
        // It may stop before or after the name is made.
        if makes && inner.breaks(path, phase, false)? && inner.random.chance(50) {
            return Err(error(path, BROKEN));
        }
        let id = match (inner.storage.id(path), how) {
            (Some(_), How::CreateNew) => return Err(DiskError::Exists { path: path.into() }),
            (Some(id), How::Replace) => {
                inner.storage.change(id, Change::Cut(0));
                id
            }
            (Some(id), How::Read | How::Write) => id,
            (None, How::Read | How::Write) => return Err(DiskError::NotFound { path: path.into() }),
            (None, How::CreateNew | How::Replace) => inner.storage.create(path),
        };
        if makes {
            inner.operated(phase, None);
        }
        Ok(SimFile { id, path: path.into() })
    }

    fn read_at(&self, file: &SimFile, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        let mut inner = self.inner();
        if let Some((Break::FailedRead, Phase::Recovery, after)) = &mut inner.plan {
            if *after == 0 {
                inner.plan = None;
                inner.read_failed = true;
                let what = if file.path.starts_with("queue/segment-") && file.path.ends_with(".log") {
                    "of a segment"
                } else {
                    "of another file"
                };
                inner.seen.push((Break::FailedRead.name(), what));
                return Err(error(&file.path, BROKEN));
            }
            *after -= 1;
        }
        Ok(inner.storage.file(file.id).cache.read(offset, into))
    }

    fn write_at(&self, file: &SimFile, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut inner = self.inner();
        // A commit begins with a record; room is newlines from the first to the last.
        let fill = bytes.first() == Some(&b'\n') && bytes.iter().fold(true, |all, &byte| all & (byte == b'\n'));
        let kind = match (fill, inner.storage.file(file.id).begun) {
            (true, true) => Phase::Begin,
            (true, false) => Phase::Reserve,
            (false, _) => Phase::Commit,
        };
        let phase = inner.phase_of(&file.path, kind);
        let breaks = inner.breaks(&file.path, phase, false)?;
        let grows = (offset + bytes.len() as u64).saturating_sub(inner.storage.file(file.id).cache.len());
        let room = inner.free();
        let full = grows > room;
        let mut some = bytes.len();
        if full {
            some -= usize::try_from(grows - room).unwrap_or(some);
            inner.seen.push(("full disk", phase.name()));
        } else if breaks {
            some = inner.random.place(some + 1);
        }
        if phase == Phase::Commit {
            // All of it: how much of it is there after a crash is for the recovery to say.
            inner.written.extend_from_slice(bytes);
            inner.storage.file_mut(file.id).committed = true;
        }
        let change = if fill {
            Change::Fill { offset, len: some as u64 }
        } else {
            Change::Write { offset, bytes: bytes[..some].into() }
        };
        inner.storage.change(file.id, change);
        inner.operated(phase, Some(file.id));
        match (breaks, full) {
            (true, _) => Err(error(&file.path, BROKEN)),
            (false, true) => Err(error(&file.path, FULL)),
            (false, false) => Ok(()),
        }
    }

    fn sync(&self, file: &SimFile) -> Result<(), DiskError> {
        let mut inner = self.inner();
        let stored = inner.storage.file(file.id);
        let kind = match (stored.begun, stored.committed) {
            (true, false) => Phase::Begin,
            (_, true) => Phase::CommitSync,
            (false, false) => Phase::ReserveSync,
        };
        let phase = inner.phase_of(&file.path, kind);
        let breaks = inner.breaks(&file.path, phase, true)?;
        match &mut inner.slow_sync {
            Some((0, ms)) => {
                inner.slept_ms += *ms;
                inner.slow_sync = None;
                inner.seen.push(("slow sync", phase.name()));
            }
            Some((after, _)) => *after -= 1,
            None => {}
        }
        let changes = inner.storage.changes(file.id);
        if !breaks {
            inner.storage.sync(file.id, changes, false);
            inner.operated(phase, None);
            return Ok(());
        }
        let kept = inner.random.place(changes + 1);
        // After a failed sync the rest counts as clean; when the machine or the process stops, it is still waiting.
        let failed = inner.broken.is_some_and(|(what, _)| what == Break::FailedSync);
        inner.storage.sync(file.id, kept, failed);
        Err(error(&file.path, BROKEN))
    }

    fn size(&self, file: &SimFile) -> Result<u64, DiskError> {
        Ok(self.inner().storage.file(file.id).cache.len())
    }

    fn truncate(&self, file: &SimFile, bytes: u64) -> Result<(), DiskError> {
        let mut inner = self.inner();
        let phase = inner.phase_of(&file.path, Phase::GiveBack);
        if inner.breaks(&file.path, phase, false)? {
            return Err(error(&file.path, BROKEN));
        }
        inner.storage.change(file.id, Change::Cut(bytes));
        inner.operated(phase, None);
        Ok(())
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, DiskError> {
        let inner = self.inner();
        let entry = |(name, stored): (&str, &crate::storage::Stored)| Entry {
            name: name.into(),
            kind: Kind::File,
            size_bytes: stored.cache.len(),
            modified_ms: 0,
        };
        Ok(inner.storage.list(folder).map(entry).collect())
    }

    /// Folders are there: only files can be lost.
    fn create_folder(&self, _: &str) -> Result<(), DiskError> {
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut inner = self.inner();
        let phase = inner.phase_of(to, Phase::Begin);
        let breaks = inner.breaks(to, phase, false)?;
        if breaks && inner.random.chance(30) {
            return Err(error(to, BROKEN));
        }
        if !inner.storage.rename(from, to) {
            return Err(DiskError::NotFound { path: from.into() });
        }
        if from == SPARE {
            inner.seen.push(("a segment made ahead", "is taken"));
        }
        inner.operated(phase, None);
        // It may stop before or after the names are durable.
        if breaks && inner.random.chance(50) {
            return Err(error(to, BROKEN));
        }
        inner.storage.sync_folder(folder_of(to));
        inner.storage.sync_folder(folder_of(from));
        inner.operated(phase, None);
        if breaks { Err(error(to, BROKEN)) } else { Ok(()) }
    }

    fn unlink(&self, path: &str) -> Result<(), DiskError> {
        let mut inner = self.inner();
        let phase = inner.phase_of(path, Phase::Remove);
        let breaks = inner.breaks(path, phase, false)?;
        if breaks && inner.random.chance(50) {
            return Err(error(path, BROKEN));
        }
        if !inner.storage.unlink(path) {
            return Err(DiskError::NotFound { path: path.into() });
        }
        if path == SPARE && !inner.recovering {
            inner.seen.push(("a segment made ahead", "is given back"));
        }
        if path.ends_with(".log") {
            let results = path.starts_with("queue/results-");
            inner.seen.push(("compaction", if results { "removing results" } else { Phase::Remove.name() }));
        }
        inner.operated(phase, None);
        if breaks { Err(error(path, BROKEN)) } else { Ok(()) }
    }

    fn remove_folder(&self, _: &str) -> Result<(), DiskError> {
        Ok(())
    }

    fn sync_folder(&self, folder: &str) -> Result<(), DiskError> {
        let mut inner = self.inner();
        let phase = match (inner.recovering, folder.starts_with("dlq/")) {
            (true, _) => Phase::Recovery,
            (false, true) => Phase::Archive,
            (false, false) => Phase::Begin,
        };
        if inner.breaks(folder, phase, true)? {
            return Err(error(folder, BROKEN));
        }
        inner.storage.sync_folder(folder);
        inner.operated(phase, None);
        Ok(())
    }

    fn descriptor(&self, path: &str) -> Result<OwnedFd, DiskError> {
        Err(error(path, BROKEN))
    }
}
