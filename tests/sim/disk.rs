//! A disk that keeps what was written apart from what is durable, and breaks when told.
//!
//! A file has its cached content and its durable content with the changes between the two, in order. A sync moves them
//! over; a power loss keeps a prefix of them, the last one possibly torn. Names are the same one level up: a new name is
//! durable after its folder is synced; a rename is durable at once. After a failed sync the changes count as clean:
//! later syncs never write them (as Linux does).

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tm_supervisor::store::disk::{Disk, DiskError, Entry, How, Kind};

use crate::{content::Content, random::Random};

const FULL: i32 = 28;
const BROKEN: i32 = 5;

/// What the disk is being asked to do, as the coverage table names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Reserve,
    ReserveSync,
    Commit,
    CommitSync,
    Begin,
    GiveBack,
    Derive,
    Remove,
    Recovery,
}

impl Phase {
    pub(crate) const ALL: [Self; 9] = [
        Self::Reserve,
        Self::ReserveSync,
        Self::Commit,
        Self::CommitSync,
        Self::Begin,
        Self::GiveBack,
        Self::Derive,
        Self::Remove,
        Self::Recovery,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserving room",
            Self::ReserveSync => "syncing reserved room",
            Self::Commit => "writing a commit",
            Self::CommitSync => "syncing a commit",
            Self::Begin => "beginning a segment",
            Self::GiveBack => "giving back room",
            Self::Derive => "writing a derived file",
            Self::Remove => "removing a segment",
            Self::Recovery => "during recovery",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// The machine stops: what is not durable is gone, but for a prefix.
    PowerLoss,
    /// The process stops: what was written stays.
    Kill,
    /// The next sync of the phase fails; the process stops by itself.
    FailedSync,
}

impl Break {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::PowerLoss => "power loss",
            Self::Kill => "process killed",
            Self::FailedSync => "failed sync",
        }
    }
}

#[derive(Clone)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Fill { offset: u64, len: u64 },
    Cut(u64),
}

#[derive(Default)]
struct Stored {
    cache: Content,
    durable: Content,
    changes: Vec<Change>,
    committed: bool,
    begun: bool,
}

enum Naming {
    Create(String, usize),
    Unlink(String),
}

pub(crate) struct Inner {
    files: Vec<Stored>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    namings: Vec<Naming>,
    folders: std::collections::BTreeSet<String>,
    random: Random,
    plan: Option<(Break, Phase, u64)>,
    /// What broke, until the restart.
    pub(crate) broken: Option<(Break, Phase)>,
    pub(crate) recovering: bool,
    used: u64,
    pub(crate) quota: u64,
    /// Commits since the last look, whole lines or torn.
    pub(crate) written: Vec<u8>,
    pub(crate) seen: Vec<(&'static str, Phase)>,
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
    pub(crate) fn new(random: Random) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            namings: Vec::new(),
            folders: std::iter::once(String::from("queue")).collect(),
            random,
            plan: None,
            broken: None,
            recovering: false,
            used: 0,
            quota: u64::MAX,
            written: Vec::new(),
            seen: Vec::new(),
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
        self.quota = self.used + bytes;
    }

    pub(crate) fn free(&self) -> u64 {
        self.quota.saturating_sub(self.used)
    }

    /// Whether a commit stands in the cache only.
    pub(crate) fn has_unsynced_commit(&self) -> bool {
        self.names.values().any(|&id| {
            let file = &self.files[id];
            file.committed && !file.changes.is_empty()
        })
    }

    /// Breaks outside of an operation.
    pub(crate) fn stop(&mut self, what: Break) {
        self.broken = Some((what, Phase::Commit));
    }

    /// What is there when the process comes up again.
    pub(crate) fn restart(&mut self) {
        self.plan = None;
        self.written.clear();
        let Some((what, phase)) = self.broken.take() else { return };
        let lost = match what {
            Break::PowerLoss => true,
            Break::Kill => false,
            Break::FailedSync => self.random.chance(50),
        };
        if lost {
            self.lose_power(phase);
        }
        self.recovering = true;
    }

    fn lose_power(&mut self, phase: Phase) {
        let kept = self.random.place(self.namings.len() + 1);
        if kept < self.namings.len() {
            self.seen.push(("directory entry lost", phase));
        }
        for naming in std::mem::take(&mut self.namings).into_iter().take(kept) {
            self.durable_naming(naming);
        }
        self.names = self.durable_names.clone();
        let mut torn = false;
        let mut lost = false;
        for file in &mut self.files {
            let kept = self.random.place(file.changes.len() + 1);
            lost |= kept < file.changes.len();
            for (place, change) in std::mem::take(&mut file.changes).into_iter().enumerate() {
                if place < kept {
                    file.durable.apply(&change);
                } else if place == kept {
                    match &change {
                        Change::Write { offset, bytes } => {
                            let some = self.random.place(bytes.len() + 1);
                            torn |= some > 0;
                            file.durable.write(*offset, &bytes[..some]);
                        }
                        Change::Fill { offset, len } => {
                            let some = self.random.below(len + 1);
                            torn |= some > 0;
                            file.durable.fill(*offset, some);
                        }
                        Change::Cut(_) => {}
                    }
                } else {
                    break;
                }
            }
            file.cache = file.durable.clone();
            file.committed = false;
        }
        if torn {
            self.seen.push(("torn write", phase));
        }
        if lost {
            self.seen.push(("unsynced bytes lost", phase));
        }
        // What comes back was never given to anybody else.
        let room = self.quota.saturating_sub(self.used);
        self.used = self.names.values().map(|&id| self.files[id].cache.len()).sum();
        self.quota = self.used.saturating_add(room);
    }

    fn durable_naming(&mut self, naming: Naming) {
        match naming {
            Naming::Create(path, id) => {
                self.durable_names.insert(path, id);
            }
            Naming::Unlink(path) => {
                self.durable_names.remove(&path);
            }
        }
    }

    fn phase_of(&self, path: &str, otherwise: Phase) -> Phase {
        if self.recovering {
            Phase::Recovery
        } else if path.ends_with(".log") {
            otherwise
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
        if *planned != phase || (*what == Break::FailedSync && !is_sync) {
            return Ok(false);
        }
        if *after > 0 {
            *after -= 1;
            return Ok(false);
        }
        self.broken = Some((*what, phase));
        self.seen.push((what.name(), phase));
        self.plan = None;
        Ok(true)
    }

    fn change(&mut self, id: usize, change: Change) {
        let file = &mut self.files[id];
        let before = file.cache.len();
        file.cache.apply(&change);
        let after = file.cache.len();
        file.changes.push(change);
        self.used = (self.used + after).saturating_sub(before);
    }

    fn rename_durably(&mut self, folder: &str) {
        let (mine, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.namings).into_iter().partition(|naming| {
            let (Naming::Create(path, _) | Naming::Unlink(path)) = naming;
            path.rsplit_once('/').is_some_and(|(of, _)| of == folder)
        });
        self.namings = others;
        for naming in mine {
            self.durable_naming(naming);
        }
    }
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, bytes } => self.write(*offset, bytes),
            Change::Fill { offset, len } => self.fill(*offset, *len),
            Change::Cut(bytes) => self.cut(*bytes),
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn open(&self, path: &str, how: How) -> Result<SimFile, DiskError> {
        let mut inner = self.inner();
        if matches!(how, How::CreateNew | How::Replace) {
            let phase = inner.phase_of(path, Phase::Begin);
            let breaks = inner.breaks(path, phase, false)?;
            // It may stop before or after the name is made.
            if breaks && inner.random.chance(50) {
                return Err(error(path, BROKEN));
            }
        }
        let id = match (inner.names.get(path).copied(), how) {
            (Some(_), How::CreateNew) => return Err(DiskError::Exists { path: path.into() }),
            (Some(id), How::Replace) => {
                inner.change(id, Change::Cut(0));
                id
            }
            (Some(id), How::Read | How::Write) => id,
            (None, How::Read | How::Write) => return Err(DiskError::NotFound { path: path.into() }),
            (None, How::CreateNew | How::Replace) => {
                let id = inner.files.len();
                inner.files.push(Stored { begun: true, ..Stored::default() });
                inner.names.insert(path.into(), id);
                inner.namings.push(Naming::Create(path.into(), id));
                id
            }
        };
        Ok(SimFile { id, path: path.into() })
    }

    fn read_at(&self, file: &SimFile, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        Ok(self.inner().files[file.id].cache.read(offset, into))
    }

    fn write_at(&self, file: &SimFile, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut inner = self.inner();
        // A commit begins with a record; room is newlines from the first to the last.
        let fill = bytes.first() == Some(&b'\n') && bytes.iter().fold(true, |all, &byte| all & (byte == b'\n'));
        let kind = match (fill, inner.files[file.id].begun) {
            (true, true) => Phase::Begin,
            (true, false) => Phase::Reserve,
            (false, _) => Phase::Commit,
        };
        let phase = inner.phase_of(&file.path, kind);
        let breaks = inner.breaks(&file.path, phase, false)?;
        let grows = (offset + bytes.len() as u64).saturating_sub(inner.files[file.id].cache.len());
        let room = inner.quota.saturating_sub(inner.used);
        let full = grows > room;
        let mut some = bytes.len();
        if full {
            some -= usize::try_from(grows - room).unwrap_or(some);
            inner.seen.push(("full disk", phase));
        } else if breaks {
            some = inner.random.place(some + 1);
        }
        if phase == Phase::Commit {
            // All of it: how much of it is there after a crash is for the recovery to say.
            inner.written.extend_from_slice(bytes);
            inner.files[file.id].committed = true;
        }
        let change = if fill {
            Change::Fill { offset, len: some as u64 }
        } else {
            Change::Write { offset, bytes: bytes[..some].to_vec() }
        };
        inner.change(file.id, change);
        match (breaks, full) {
            (true, _) => Err(error(&file.path, BROKEN)),
            (false, true) => Err(error(&file.path, FULL)),
            (false, false) => Ok(()),
        }
    }

    fn sync(&self, file: &SimFile) -> Result<(), DiskError> {
        let mut inner = self.inner();
        let stored = &inner.files[file.id];
        let kind = match (stored.begun, stored.committed) {
            (true, false) => Phase::Begin,
            (_, true) => Phase::CommitSync,
            (false, false) => Phase::ReserveSync,
        };
        let phase = inner.phase_of(&file.path, kind);
        let breaks = inner.breaks(&file.path, phase, true)?;
        let changes = std::mem::take(&mut inner.files[file.id].changes);
        let mut kept = changes.len();
        if breaks {
            kept = inner.random.place(kept + 1);
        }
        let failed = inner.broken.is_some_and(|(what, _)| what == Break::FailedSync);
        let stored = &mut inner.files[file.id];
        changes[..kept].iter().for_each(|change| stored.durable.apply(change));
        if !breaks {
            stored.committed = false;
            stored.begun = false;
            return Ok(());
        }
        // After a failed sync the rest counts as clean; when the machine or the process stops, it is still waiting.
        if !failed {
            stored.changes = changes[kept..].to_vec();
        }
        Err(error(&file.path, BROKEN))
    }

    fn size(&self, file: &SimFile) -> Result<u64, DiskError> {
        Ok(self.inner().files[file.id].cache.len())
    }

    fn truncate(&self, file: &SimFile, bytes: u64) -> Result<(), DiskError> {
        let mut inner = self.inner();
        let phase = inner.phase_of(&file.path, Phase::GiveBack);
        if inner.breaks(&file.path, phase, false)? {
            return Err(error(&file.path, BROKEN));
        }
        inner.change(file.id, Change::Cut(bytes));
        Ok(())
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, DiskError> {
        let inner = self.inner();
        let prefix = format!("{folder}/");
        let below = inner.names.iter().filter_map(|(path, id)| Some((path.strip_prefix(&prefix)?, id)));
        Ok(below
            .filter(|(name, _)| !name.contains('/'))
            .map(|(name, &id)| Entry {
                name: name.into(),
                kind: Kind::File,
                size_bytes: inner.files[id].cache.len(),
                modified_ms: 0,
            })
            .collect())
    }

    fn create_folder(&self, folder: &str) -> Result<(), DiskError> {
        self.inner().folders.insert(folder.into());
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut inner = self.inner();
        let phase = inner.phase_of(to, Phase::Begin);
        let breaks = inner.breaks(to, phase, false)?;
        if breaks && inner.random.chance(50) {
            return Err(error(to, BROKEN));
        }
        let id = inner.names.remove(from).ok_or_else(|| DiskError::NotFound { path: from.into() })?;
        inner.names.insert(to.into(), id);
        inner.namings.push(Naming::Unlink(from.into()));
        inner.namings.push(Naming::Create(to.into(), id));
        inner.rename_durably(to.rsplit_once('/').map_or("", |(folder, _)| folder));
        if breaks { Err(error(to, BROKEN)) } else { Ok(()) }
    }

    fn unlink(&self, path: &str) -> Result<(), DiskError> {
        let mut inner = self.inner();
        let phase = inner.phase_of(path, Phase::Remove);
        let breaks = inner.breaks(path, phase, false)?;
        if breaks && inner.random.chance(50) {
            return Err(error(path, BROKEN));
        }
        let id = inner.names.remove(path).ok_or_else(|| DiskError::NotFound { path: path.into() })?;
        if path.ends_with(".log") {
            inner.seen.push(("compaction", Phase::Remove));
        }
        inner.used = inner.used.saturating_sub(inner.files[id].cache.len());
        inner.namings.push(Naming::Unlink(path.into()));
        if breaks { Err(error(path, BROKEN)) } else { Ok(()) }
    }

    fn remove_folder(&self, folder: &str) -> Result<(), DiskError> {
        self.inner().folders.remove(folder);
        Ok(())
    }

    fn sync_folder(&self, folder: &str) -> Result<(), DiskError> {
        let mut inner = self.inner();
        let phase = if inner.recovering { Phase::Recovery } else { Phase::Begin };
        if inner.breaks(folder, phase, true)? {
            return Err(error(folder, BROKEN));
        }
        inner.rename_durably(folder);
        Ok(())
    }

    fn descriptor(&self, path: &str) -> Result<OwnedFd, DiskError> {
        Err(error(path, BROKEN))
    }
}
