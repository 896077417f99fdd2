//! Dead letters as files: `pending/ID.json`, `archive/requeued/ID.json`, `archive/purged/ID.json`.
//!
//! Each holds one [`DlqEntry`] with a checksum before it. From the moment that the log says `Filed` the file is the
//! truth. A damaged file is skipped with a warning that names it (I11).

use std::ops::ControlFlow;

use tm_core::{
    api::{DlqEntry, RunState},
    id::is_name,
    queue::results::Ended,
    time::Millis,
};

use super::{
    disk::{self, Disk, DiskError, Kind, read_whole},
    kept::{Bounds, Kept, surplus},
    sealed::{seal, unseal},
};

const ENTRY_MAX_BYTES: u64 = 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Pending,
    Requeued,
    Purged,
}

impl Place {
    const fn folder(self) -> &'static str {
        match self {
            Self::Pending => "dlq/pending",
            Self::Requeued => "dlq/archive/requeued",
            Self::Purged => "dlq/archive/purged",
        }
    }

    /// Of [`DlqEntry::state`].
    #[must_use]
    pub fn of(state: &str) -> Option<Self> {
        match state {
            "pending" => Some(Self::Pending),
            "requeued" => Some(Self::Requeued),
            "purged" => Some(Self::Purged),
            _ => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DlqError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("'{id}' cannot be the id of a dead letter")]
    BadId { id: String },
    #[error("dead letter {id} has the unknown state '{state}'")]
    BadState { id: String, state: String },
    #[error("{file} is damaged: its checksum does not match")]
    Damaged { file: String },
}

#[derive(Clone)]
pub struct Dlq<D: Disk> {
    disk: D,
}

impl<D: Disk> Dlq<D> {
    /// For reading only: makes no folder (I12).
    #[must_use]
    pub const fn reading(disk: D) -> Self {
        Self { disk }
    }

    /// Makes the folders, and finishes archive moves that a crash cut in half.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(disk: D) -> Result<Self, DiskError> {
        for place in [Place::Pending, Place::Requeued, Place::Purged] {
            disk::create_folders(&disk, place.folder())?;
        }
        let dlq = Self { disk };
        for id in dlq.ids(Place::Pending)? {
            let archived = |place| dlq.read(place, &id).is_ok();
            if archived(Place::Requeued) || archived(Place::Purged) {
                dlq.forget(Place::Pending, &id)?;
            }
        }
        Ok(dlq)
    }

    /// Writes `pending/ID.json`; durable when this returns. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`DiskError::Full`] among others.
    pub fn file(&self, entry: &DlqEntry) -> Result<(), DlqError> {
        self.write(Place::Pending, entry)
    }

    /// Moves an entry to the archive that its state names, as it is given. Doing it again changes nothing; an entry
    /// that never was pending is archived all the same.
    ///
    /// # Errors
    /// [`DlqError::BadState`] for a pending one, and those of the disk.
    pub fn archive(&self, entry: &DlqEntry) -> Result<(), DlqError> {
        let place = Place::of(&entry.state)
            .filter(|place| *place != Place::Pending)
            .ok_or_else(|| DlqError::BadState { id: entry.entry_id.clone(), state: entry.state.clone() })?;
        self.write(place, entry)?;
        Ok(self.forget(Place::Pending, &entry.entry_id)?)
    }

    /// Archives files of entries that were requeued or purged: a crash or a full disk came between the event and the
    /// move. The file of a run that the state does not know stays, because nothing says what became of it.
    ///
    /// # Errors
    /// Those of the disk; what is left is found again the next time.
    pub fn catch_up(&self, ended: Ended<'_>) -> Result<(), DlqError> {
        let state = ended.state;
        for id in self.ids(Place::Pending)?.iter().filter(|id| !state.letters.contains_key(*id)) {
            // Damaged ones are named when they are listed.
            let Ok(entry) = self.read(Place::Pending, id) else { continue };
            let consumed = match ended.run(entry.run_id) {
                Some(Ok(run)) if run.state != RunState::Succeeded => "purged",
                Some(Err(_)) => continue,
                None if !state.runs.contains_key(&entry.run_id) => continue,
                Some(Ok(_)) | None => "requeued",
            };
            self.archive(&DlqEntry { state: consumed.into(), consumed_at: Some(ended.now), ..entry })?;
        }
        Ok(())
    }

    /// Removes the files of requeued and purged entries that are over their bounds; returns how many stay.
    ///
    /// # Errors
    /// Those of the disk; what is left is found again the next time.
    pub fn sweep_archive(&self, bounds: Bounds, now: Millis) -> Result<usize, DiskError> {
        let mut archived = Vec::new();
        for place in [Place::Requeued, Place::Purged] {
            for entry in self.disk.list(place.folder())?.into_iter().filter(|entry| entry.kind == Kind::File) {
                let what = format!("{}/{}", place.folder(), entry.name);
                archived.push(Kept { modified: Millis(entry.modified_ms), bytes: entry.size_bytes, what });
            }
        }
        let (goes, stays) = surplus(archived, bounds, now);
        goes.iter().try_for_each(|kept| self.disk.unlink(&kept.what))?;
        if !goes.is_empty() {
            let bytes: u64 = goes.iter().map(|kept| kept.bytes).sum();
            tracing::info!(files = goes.len(), bytes, "swept archived dead letters");
        }
        Ok(stays.len())
    }

    /// # Errors
    /// [`DlqError::Damaged`] names the file; [`DiskError::NotFound`] when there is none.
    pub fn read(&self, place: Place, id: &str) -> Result<DlqEntry, DlqError> {
        let path = path(place, id)?;
        let bytes = read_whole(&self.disk, &path, ENTRY_MAX_BYTES)?;
        let entry = unseal::<DlqEntry>(&bytes).filter(|entry| entry.entry_id == id);
        entry.ok_or_else(|| DlqError::Damaged { file: self.disk.shown(&path) })
    }

    /// Hands out entries, newest first, until told to stop. Damaged files are skipped with a warning; returns their
    /// names.
    ///
    /// # Errors
    /// When the folder cannot be read; a missing one is empty.
    pub fn newest_first(
        &self,
        place: Place,
        each: &mut dyn FnMut(DlqEntry) -> ControlFlow<()>,
    ) -> Result<Vec<String>, DiskError> {
        let mut damaged = Vec::new();
        for id in self.ids(place)? {
            match self.read(place, &id) {
                Ok(entry) => {
                    if each(entry).is_break() {
                        break;
                    }
                }
                // Archived or purged meanwhile.
                Err(DlqError::Disk(error)) if error.is_not_found() => {}
                Err(error) => {
                    tracing::warn!(%error, "a dead letter is skipped");
                    damaged.push(self.shown(place, &id));
                }
            }
        }
        Ok(damaged)
    }

    /// The file of an entry, for people.
    pub(super) fn shown(&self, place: Place, id: &str) -> String {
        self.disk.shown(&format!("{}/{id}.json", place.folder()))
    }

    /// Newest first: ids hold the time of death, and earlier ones are shorter or smaller.
    fn ids(&self, place: Place) -> Result<Vec<String>, DiskError> {
        let entries = match self.disk.list(place.folder()) {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            listed => listed?,
        };
        let mut ids: Vec<String> = entries
            .into_iter()
            .filter(|entry| entry.kind == Kind::File)
            .filter_map(|entry| entry.name.strip_suffix(".json").map(str::to_owned))
            .filter(|id| is_name(id))
            .collect();
        ids.sort_by_cached_key(|id| std::cmp::Reverse((died_at(id), id.clone())));
        Ok(ids)
    }

    fn write(&self, place: Place, entry: &DlqEntry) -> Result<(), DlqError> {
        Ok(disk::replace(&self.disk, &path(place, &entry.entry_id)?, &seal(entry))?)
    }

    fn forget(&self, place: Place, id: &str) -> Result<(), DiskError> {
        match self.disk.unlink(&format!("{}/{id}.json", place.folder())) {
            Err(error) if error.is_not_found() => Ok(()),
            done => done.and_then(|()| self.disk.sync_folder(place.folder())),
        }
    }
}

fn path(place: Place, id: &str) -> Result<String, DlqError> {
    if is_name(id) { Ok(format!("{}/{id}.json", place.folder())) } else { Err(DlqError::BadId { id: id.to_owned() }) }
}

/// The milliseconds in `dlq-<unix ms>-<suffix>`, 0 when it has none.
fn died_at(id: &str) -> u64 {
    id.split('-').nth(1).and_then(|ms| ms.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use tm_core::{api::TaskError, id::RunId, time::Millis};

    use super::{
        super::disk::{How, MemDisk},
        *,
    };

    fn entry(id: &str) -> DlqEntry {
        DlqEntry {
            entry_id: id.into(),
            run_id: RunId(1),
            task_id: "t".into(),
            flow_id: "f".into(),
            tenant: "default".into(),
            attempt: 1,
            failures: 1,
            timestamp: Millis(5),
            state: "pending".into(),
            consumed_at: None,
            error: TaskError {
                code: "TRAP".into(),
                message: "m".into(),
                retryable: true,
                reason: "max_attempts".into(),
                last_code: None,
            },
        }
    }

    fn ids<D: Disk>(dlq: &Dlq<D>, place: Place) -> Vec<String> {
        let mut ids = Vec::new();
        dlq.newest_first(place, &mut |entry| {
            ids.push(entry.entry_id);
            ControlFlow::Continue(())
        })
        .unwrap();
        ids
    }

    #[test]
    fn entries_are_listed_newest_first_and_a_damaged_one_is_skipped_by_name() {
        let disk = MemDisk::default();
        let dlq = Dlq::open(disk.clone()).unwrap();
        for id in ["dlq-999-a", "dlq-1000-a", "dlq-1000-b"] {
            dlq.file(&entry(id)).unwrap();
        }
        assert_eq!(ids(&dlq, Place::Pending), ["dlq-1000-b", "dlq-1000-a", "dlq-999-a"]);
        let file = disk.open("dlq/pending/dlq-1000-a.json", How::Write).unwrap();
        disk.write_at(&file, 40, b"#").unwrap();
        let damaged = dlq.newest_first(Place::Pending, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(damaged, ["dlq/pending/dlq-1000-a.json"]);
        assert_eq!(ids(&dlq, Place::Pending).len(), 2);
    }

    #[test]
    fn an_archive_move_may_be_repeated_and_is_finished_after_a_crash() {
        let disk = MemDisk::default();
        let dlq = Dlq::open(disk.clone()).unwrap();
        let pending = entry("dlq-1-a");
        dlq.file(&pending).unwrap();
        let consumed = DlqEntry { state: "requeued".into(), consumed_at: Some(Millis(9)), ..pending.clone() };
        dlq.archive(&consumed).unwrap();
        dlq.archive(&consumed).unwrap();
        assert_eq!((ids(&dlq, Place::Pending).len(), dlq.read(Place::Requeued, "dlq-1-a").unwrap()), (0, consumed));
        dlq.file(&pending).unwrap();
        assert!(ids(&Dlq::open(disk).unwrap(), Place::Pending).is_empty());
    }

    #[test]
    fn a_sweep_of_the_archive_leaves_what_is_pending() {
        let dlq = Dlq::open(MemDisk::default()).unwrap();
        for (id, state) in [("dlq-1-a", "requeued"), ("dlq-1-b", "purged"), ("dlq-1-c", "pending")] {
            dlq.file(&entry(id)).unwrap();
            let consumed = DlqEntry { state: state.into(), consumed_at: Some(Millis(9)), ..entry(id) };
            assert_eq!(dlq.archive(&consumed).is_ok(), state != "pending");
        }
        // This disk's files were all changed at 0.
        let sweep = |max_age_ms, max_bytes| dlq.sweep_archive(Bounds { max_age_ms, max_bytes }, Millis(1000)).unwrap();
        assert_eq!(sweep(1000, 1_000_000), 2);
        assert_eq!(sweep(1000, 600), 1, "the size of one of them");
        assert_eq!(sweep(999, 1_000_000), 0);
        assert_eq!(ids(&dlq, Place::Pending), ["dlq-1-c"]);
        assert!(ids(&dlq, Place::Requeued).is_empty() && ids(&dlq, Place::Purged).is_empty());
    }

    #[test]
    fn an_id_that_could_leave_the_folder_is_refused() {
        let dlq = Dlq::open(MemDisk::default()).unwrap();
        assert!(matches!(dlq.file(&entry("../x")), Err(DlqError::BadId { .. })));
        assert!(matches!(dlq.read(Place::Pending, "a/b"), Err(DlqError::BadId { .. })));
    }

    #[test]
    fn the_file_has_the_entry_for_people() {
        let disk = MemDisk::default();
        Dlq::open(disk.clone()).unwrap().file(&entry("dlq-1-a")).unwrap();
        let text = String::from_utf8(read_whole(&disk, "dlq/pending/dlq-1-a.json", 4096).unwrap()).unwrap();
        assert!(text.starts_with(r#"{"c":""#) && text.contains(r#""entry_id":"dlq-1-a""#), "{text}");
    }
}
