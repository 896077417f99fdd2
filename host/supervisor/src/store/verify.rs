//! `tm queue verify`: what opening, recovery and repair would do, told and not done (I12).

use std::ops::ControlFlow;

use serde::Serialize;
use tm_core::queue::event::Frame;

use super::{
    disk::{Disk, DiskError},
    dlq::{Dlq, Place},
    log::LogError,
    recover::{self, Found, Recovery},
    segment,
};

/// The state of a queue's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub log: Recovery,
    /// What the next opening, or this repair, does to files.
    pub actions: Vec<Action>,
    /// Dead letters' files that cannot be read.
    pub damaged_letters: Vec<String>,
}

impl Report {
    /// Whether anything was lost or is unreadable. A torn tail is neither: it was never acknowledged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        !self.log.damaged.is_empty() || !self.damaged_letters.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum Action {
    /// A tail that was never finished is removed.
    Cut { file: String, offset: u64, bytes: u64 },
    /// Damaged bytes are copied to the folder `damaged`.
    KeepAside { file: String, offset: u64, bytes: u64 },
    /// The index does not agree with its segment, or is missing.
    RebuildIndex { file: String },
    /// Repair only: damaged bytes make way for newlines, and what is lost is not named again.
    Blank { file: String, offset: u64, bytes: u64 },
    /// Repair only: a file of another log is moved to the folder `damaged`.
    MoveAway { file: String },
}

/// Reads the log and the dead letters, and changes nothing.
///
/// # Errors
/// When the queue folder cannot be read, or its format is a newer one.
pub fn verify<D: Disk>(disk: &D, each: &mut dyn FnMut(Frame, u64)) -> Result<Report, LogError> {
    let (log, found) = recover::replay(disk, each)?;
    let actions = opening(disk, &log, &found);
    Ok(Report { actions, damaged_letters: damaged_letters(disk)?, log })
}

/// What opening does to files.
pub(super) fn opening<D: Disk>(disk: &D, log: &Recovery, found: &[Found]) -> Vec<Action> {
    let aside = log.damaged.iter().filter(|damage| damage.bytes > 0).map(|damage| {
        let file = damage.file.clone();
        Action::KeepAside { file, offset: damage.offset, bytes: damage.bytes }
    });
    let cut = found.iter().filter_map(|found| {
        let (offset, bytes) = found.torn?;
        Some(Action::Cut { file: disk.shown(&segment::path(found.no)), offset, bytes })
    });
    let closed = &found[..found.len().saturating_sub(1)];
    let rebuilt = closed
        .iter()
        .filter(|found| !found.index_agrees)
        .map(|found| Action::RebuildIndex { file: disk.shown(&segment::index_path(found.no)) });
    aside.chain(cut).chain(rebuilt).collect()
}

pub(super) fn damaged_letters<D: Disk>(disk: &D) -> Result<Vec<String>, DiskError> {
    let dlq = Dlq::reading(disk.clone());
    let mut damaged = Vec::new();
    for place in [Place::Pending, Place::Requeued, Place::Purged] {
        damaged.extend(dlq.newest_first(place, &mut |_| ControlFlow::Continue(()))?);
    }
    Ok(damaged)
}
