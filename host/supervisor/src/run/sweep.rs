//! What nothing needs any more: blobs that no run names, and what is kept for a while and over its bounds.
//!
//! The names that live are gathered between turns, the removal happens beside the loop. What is put meanwhile is pinned.
//! Artefacts are asked about the other way round: the runs that have some are listed beside the loop, which then says those
//! that it does not know, in slices. A run that is not known never comes back, so what it left is nobody's (I10).

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::UNIX_EPOCH,
};

use tm_core::{
    id::RunId,
    queue::{results::Ended, state::State},
    time::Millis,
    wire::staging_path,
};

use super::{Happening, house::House};
use crate::{
    config::{Bounds, Retention, Settings},
    store::{
        disk::Disk,
        kept::{Kept, surplus},
    },
    turn::Turn,
};

const EVERY_MS: u64 = 600_000;
/// Runs that one turn looks for: their results may have to be read from the disk.
const ASK_SLICE: usize = 32;

/// When the next sweep is due, and whether one runs.
#[derive(Debug)]
pub(super) struct Sweeper {
    scratch: Bounds,
    retention: Retention,
    due_at: Millis,
    seen: (u64, u64),
    running: Arc<AtomicBool>,
    /// Something is kept that only time makes due.
    kept: Arc<AtomicBool>,
    /// Records of the log are damaged: a run that nobody knows may be one of theirs, and its artefacts stay.
    is_damaged: bool,
    asking: Option<Asking>,
}

/// Which of the runs that left artefacts nobody knows: so far, and those to be asked for.
#[derive(Debug)]
struct Asking {
    left: Vec<Left>,
    unknown: Vec<Left>,
}

/// A run that left artefacts, by its tenant.
pub(crate) type Left = (String, RunId);

impl Sweeper {
    pub(super) fn new(settings: &Settings, now: Millis, is_damaged: bool) -> Self {
        Self {
            scratch: settings.scratch.kept,
            retention: settings.retention.clone(),
            due_at: now,
            seen: (0, u64::MAX),
            running: Arc::default(),
            kept: Arc::default(),
            is_damaged,
            asking: None,
        }
    }

    /// Whether blobs may lose their pins: not while a sweep decides about them.
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Starts a sweep when one is due and something happened since the last, or is kept. Returns when to ask again.
    pub(super) fn turn<D: Disk>(&mut self, now: Millis, turn: &Turn<D>, house: &House<D>) -> Option<Millis> {
        let state = &turn.state;
        // A command that passes sweeps nothing.
        house.pool.as_ref()?;
        let seen = (house.blobs.puts(), state.totals.tasks_started);
        if seen == self.seen && !self.kept.load(Ordering::Acquire) {
            return None;
        }
        if now < self.due_at || self.is_running() {
            return Some(self.due_at.max(now.plus(1000)));
        }
        let blobs_changed = seen.0 != self.seen.0;
        (self.seen, self.due_at) = (seen, now.plus(EVERY_MS));
        let live = blobs_changed.then(|| turn.live_blobs());
        let held = held(state);
        // Files have the wall's time.
        let wall = state.wall(now);
        let (blobs, letters, artifacts) = (house.blobs.clone(), house.letters.clone(), house.artifacts.clone());
        let (tenants, scratch) = (house.store.join("tenants"), self.scratch);
        let (archive, running, kept) = (self.retention.dlq_archive, Arc::clone(&self.running), Arc::clone(&self.kept));
        let (is_damaged, happenings) = (self.is_damaged, house.happenings.clone());
        running.store(true, Ordering::Release);
        house.files.give(move || {
            if let Some(live) = live {
                match blobs.store().sweep(&|digest| live.contains(digest), true) {
                    Ok(swept) if swept.files > 0 => {
                        tracing::info!(files = swept.files, bytes = swept.bytes, "swept blobs");
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "blobs cannot be swept"),
                }
            }
            let mut left = 0;
            match sweep_scratch(&tenants, scratch, &held, wall) {
                Ok(stays) => left += stays,
                Err(error) => tracing::warn!(%error, "scratch folders cannot be swept"),
            }
            match letters.sweep_archive(archive, wall) {
                Ok(stays) => left += stays,
                Err(error) => tracing::warn!(%error, "archived dead letters cannot be swept"),
            }
            kept.store(left > 0, Ordering::Release);
            let runs = artifacts.runs().inspect_err(|error| tracing::warn!(%error, "artefacts cannot be listed"));
            let runs = runs.ok().filter(|_| !is_damaged).unwrap_or_default();
            if runs.is_empty() || happenings.send(Happening::LeftArtifacts(runs)).is_err() {
                running.store(false, Ordering::Release);
            }
        });
        None
    }

    /// Runs that left artefacts were listed.
    pub(super) fn asked(&mut self, runs: Vec<Left>) {
        self.asking = Some(Asking { left: runs, unknown: Vec::new() });
    }

    /// Looks for some of them, and sweeps what the unknown ones left once all were looked for. True while some are left.
    pub(super) fn ask<D: Disk>(&mut self, ended: Ended<'_>, house: &House<D>) -> bool {
        let Some(asking) = &mut self.asking else { return false };
        let slice = asking.left.split_off(asking.left.len().saturating_sub(ASK_SLICE));
        asking.unknown.extend(slice.into_iter().filter(|(_, run)| !ended.knows(*run)));
        if !asking.left.is_empty() {
            return true;
        }
        let (unknown, wall) = (std::mem::take(&mut asking.unknown), ended.state.wall(ended.now));
        self.asking = None;
        let (artifacts, bounds) = (house.artifacts.clone(), self.retention.artifacts);
        let (running, kept) = (Arc::clone(&self.running), Arc::clone(&self.kept));
        house.files.give(move || {
            match artifacts.sweep(unknown, bounds, wall) {
                Ok(0) => {}
                Ok(_) => kept.store(true, Ordering::Release),
                Err(error) => tracing::warn!(%error, "artefacts of forgotten runs cannot be swept"),
            }
            running.store(false, Ordering::Release);
        });
        false
    }
}

/// The scratch folders of attempts that run.
fn held(state: &State) -> BTreeSet<String> {
    let leased = state.indexes.leases.values().flatten();
    leased
        .filter_map(|task| Some(staging_path(&state.task_name(*task), state.runs.get(&task.run)?.task(*task)?.attempt)))
        .collect()
}

/// The folder of one attempt, and what it holds, when it is there.
pub(super) fn scratch_left(folder: &Path) -> Option<u64> {
    folder.is_dir().then(|| size_bytes(folder).ok()).flatten()
}

/// Removes what attempts left and is over its bounds; returns how many folders stay.
fn sweep_scratch(tenants: &Path, bounds: Bounds, held: &BTreeSet<String>, now: Millis) -> io::Result<usize> {
    let mut left: Vec<Kept<PathBuf>> = Vec::new();
    for tenant in existing(tenants)? {
        for attempt in existing(&tenant?.path().join("scratch"))? {
            let attempt = attempt?;
            let is_held = attempt.file_name().to_str().is_none_or(|name| held.contains(name));
            if is_held || !attempt.file_type()?.is_dir() {
                continue;
            }
            let modified = attempt.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let modified = Millis(u64::try_from(modified.as_millis()).unwrap_or(u64::MAX));
            left.push(Kept { modified, bytes: size_bytes(&attempt.path())?, what: attempt.path() });
        }
    }
    let (goes, stays) = surplus(left, bounds, now);
    for Kept { bytes, what, .. } in goes {
        fs::remove_dir_all(&what)?;
        tracing::info!(folder = %what.display(), bytes, "swept the scratch folder of an attempt");
    }
    Ok(stays.len())
}

fn existing(folder: &Path) -> io::Result<Vec<io::Result<fs::DirEntry>>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Of all files below a folder; links are not followed.
fn size_bytes(folder: &Path) -> io::Result<u64> {
    let (mut bytes, mut left) = (0, vec![folder.to_owned()]);
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            } else {
                bytes += entry.metadata()?.len();
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn the_oldest_scratch_goes_until_the_rest_fits_and_what_runs_stays() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("default/scratch");
        for (name, age_s) in [("A.s.1", 500), ("B.s.1", 400), ("C.s.1", 300), ("HELD.s.1", 9000)] {
            let path = folder.join(name);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("file"), [7; 1000]).unwrap();
            let modified = SystemTime::now() - Duration::from_secs(age_s);
            fs::File::open(&path).unwrap().set_modified(modified).unwrap();
        }
        assert_eq!(scratch_left(&folder.join("A.s.1")), Some(1000));
        assert_eq!(scratch_left(&folder.join("Z.s.1")), None);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = Millis(u64::try_from(now.as_millis()).unwrap());
        let held = BTreeSet::from(["HELD.s.1".to_owned()]);
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let sweep =
            |max_age_ms, max_bytes| sweep_scratch(home.path(), Bounds { max_age_ms, max_bytes }, &held, now).unwrap();
        assert_eq!(sweep(u64::MAX, 2000), 2);
        assert_eq!(names(), ["B.s.1", "C.s.1", "HELD.s.1"]);
        assert_eq!(sweep(350_000, 2000), 1);
        assert_eq!(names(), ["C.s.1", "HELD.s.1"]);
    }
}
