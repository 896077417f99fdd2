//! `tm queue verify`: what opening, recovery and repair would do, told and not done (I12).

use std::{collections::BTreeSet, ops::ControlFlow};

use serde::{Serialize, Serializer};
use tm_core::{
    api::DlqEntry,
    queue::{
        check,
        decide::{entry_of, letter_of},
        state::State,
    },
};

use super::{
    blobs::{BlobError, BlobStore, path as blob_path},
    disk::{Disk, DiskError},
    dlq::{Dlq, DlqError, Place},
    log::LogError,
    meta::{META, Meta, Opened, opened},
    recover::{self, Found, Recovery},
    results::{self, DamagedResults, ResultStore, Tail},
    segment::{self, Index},
};

/// The state of a queue's files.
#[derive(Debug, Serialize)]
pub struct Report {
    pub log: Recovery,
    /// What the next opening, a lookup that comes upon a damaged index, or this repair does to files.
    pub actions: Vec<Action>,
    /// Results that cannot be read.
    pub damaged_results: Vec<DamagedResults>,
    /// Dead letters' files that cannot be read.
    pub damaged_letters: Vec<String>,
    /// Files of pending dead letters that are gone.
    pub missing_letters: Vec<String>,
    /// Blobs that something live names and that cannot be read. Nothing can mend them.
    pub damaged_blobs: Vec<DamagedBlob>,
    /// Rules of the state that do not hold, in words.
    pub broken: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct DamagedBlob {
    pub file: String,
    #[serde(serialize_with = "in_words")]
    pub why: BlobError,
}

fn in_words<S: Serializer>(why: &BlobError, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(why)
}

impl Report {
    /// Whether anything was lost or is unreadable. A torn tail is neither: it was never acknowledged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        let letters = self.damaged_letters.is_empty() && self.missing_letters.is_empty();
        let files = letters && self.damaged_results.is_empty() && self.damaged_blobs.is_empty();
        !(files && self.log.damaged.is_empty() && self.broken.is_empty())
    }

    /// Whether there is damage that a repair does not mend.
    #[must_use]
    pub fn stays_damaged(&self) -> bool {
        let mended = |file: &String| {
            self.actions.iter().any(|action| matches!(action, Action::WriteLetter { file: written } if written == file))
        };
        let letters = self.damaged_letters.iter().chain(&self.missing_letters).all(mended);
        !(letters && self.damaged_blobs.is_empty() && self.broken.is_empty())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum Action {
    /// A tail that was never finished is removed.
    Cut { file: String, offset: u64, bytes: u64 },
    /// Damaged bytes are copied to the folder `damaged`.
    KeepAside { file: String, offset: u64, bytes: u64 },
    /// A derived file does not agree with the segments, or is missing.
    RebuildIndex { file: String },
    /// Repair only: damaged bytes make way for newlines, and what is lost is not named again.
    Blank { file: String, offset: u64, bytes: u64 },
    /// Repair only: a file of another log is moved to the folder `damaged`.
    MoveAway { file: String },
    /// Repair only: the file of a pending dead letter is written again from what the log says.
    WriteLetter { file: String },
}

impl Action {
    /// What it is done to.
    #[must_use]
    pub fn file(&self) -> &str {
        match self {
            Self::Cut { file, .. }
            | Self::KeepAside { file, .. }
            | Self::RebuildIndex { file }
            | Self::Blank { file, .. }
            | Self::MoveAway { file }
            | Self::WriteLetter { file } => file,
        }
    }
}

/// Reads the log, the dead letters and the blobs that something live names, and changes nothing.
///
/// # Errors
/// When the queue folder cannot be read, or it is of a newer program.
pub fn verify<D: Disk>(disk: &D) -> Result<Report, LogError> {
    look(disk).map(|(report, _)| report)
}

/// As [`verify`], with the pending dead letters whose files are to be written again.
pub(super) fn look<D: Disk>(disk: &D) -> Result<(Report, Vec<DlqEntry>), LogError> {
    let meta = Meta::load(disk)?;
    let mut state = State::default();
    let (log, found) = recover::replay(disk, &mut |frame, segment| state.replay(&frame, segment))?;
    let opened = opened(meta.as_ref(), &found);
    let mut actions = opening(disk, &log, &found, &opened);
    if !meta.is_some_and(|meta| meta.names_the_same(&opened.meta)) {
        actions.push(Action::RebuildIndex { file: disk.shown(META) });
    }
    let results = ResultStore::read(disk.clone(), state.secret, &state.results)?;
    results.check_indexes();
    let damaged_results = results::damaged(disk, &state.secret, &state.results)?;
    for damaged in damaged_results.iter().filter(|damaged| damaged.bytes > 0) {
        let (file, offset, bytes) = (damaged.file.clone(), damaged.offset, damaged.bytes);
        actions.push(Action::KeepAside { file, offset, bytes });
    }
    let mut rebuilt: BTreeSet<u64> = results.rebuilt().collect();
    for Tail { segment, offset, bytes } in results::unfinished(disk, &state.secret, &state.results)? {
        actions.push(Action::Cut { file: disk.shown(&results::path(segment)), offset, bytes });
        rebuilt.insert(segment);
    }
    actions.extend(rebuilt.iter().map(|&no| Action::RebuildIndex { file: disk.shown(&results::index_path(no)) }));
    let (missing_letters, unwritten) = unwritten_letters(disk, &state);
    let report = Report {
        actions,
        damaged_results,
        damaged_letters: damaged_letters(disk)?,
        missing_letters,
        damaged_blobs: damaged_blobs(disk, &state, &results),
        broken: check::check(&state),
        log,
    };
    Ok((report, unwritten))
}

/// What opening does to files.
fn opening<D: Disk>(disk: &D, log: &Recovery, found: &[Found], opened: &Opened) -> Vec<Action> {
    let aside = log.damaged.iter().filter(|damage| damage.bytes > 0).map(|damage| {
        let file = damage.file.clone();
        Action::KeepAside { file, offset: damage.offset, bytes: damage.bytes }
    });
    let cut = found.iter().filter_map(|found| {
        let (offset, bytes) = found.torn?;
        Some(Action::Cut { file: disk.shown(&segment::path(found.no)), offset, bytes })
    });
    let closed = &found[..found.len() - usize::from(opened.resumes)];
    let closed = closed.iter().filter(|found| !found.index_agrees).map(|found| found.no);
    // That of the active segment is written at a clean stop and may be behind.
    let active = Some(opened.meta.active_segment).filter(|&no| Index::is_damaged(disk, no));
    let rebuilt = closed.chain(active).map(|no| Action::RebuildIndex { file: disk.shown(&segment::index_path(no)) });
    aside.chain(cut).chain(rebuilt).collect()
}

fn damaged_blobs<D: Disk>(disk: &D, state: &State, results: &ResultStore<D>) -> Vec<DamagedBlob> {
    let mut live = state.live_blobs();
    results.blobs(&mut |digest| {
        live.insert(digest);
    });
    let blobs = BlobStore::reading(disk.clone());
    let read = |digest| {
        let why = blobs.get(&digest).err()?;
        Some(DamagedBlob { file: disk.shown(&blob_path(&digest)), why })
    };
    live.into_iter().filter_map(read).collect()
}

fn damaged_letters<D: Disk>(disk: &D) -> Result<Vec<String>, DiskError> {
    let dlq = Dlq::reading(disk.clone());
    let mut damaged = Vec::new();
    for place in [Place::Pending, Place::Requeued, Place::Purged] {
        damaged.extend(dlq.newest_first(place, &mut |_| ControlFlow::Continue(()))?);
    }
    Ok(damaged)
}

/// The pending letters whose files were written once and cannot be read now, and the names of those that are gone.
fn unwritten_letters<D: Disk>(disk: &D, state: &State) -> (Vec<String>, Vec<DlqEntry>) {
    let dlq = Dlq::reading(disk.clone());
    let (mut missing, mut unwritten) = (Vec::new(), Vec::new());
    for (id, task) in &state.letters {
        let filed = letter_of(state, *task).is_some_and(|letter| letter.filed);
        let (true, Err(error)) = (filed, dlq.read(Place::Pending, id)) else { continue };
        if matches!(error, DlqError::Disk(DiskError::NotFound { .. })) {
            missing.push(dlq.shown(Place::Pending, id));
        }
        unwritten.extend(entry_of(state, *task, "pending", None));
    }
    (missing, unwritten)
}
