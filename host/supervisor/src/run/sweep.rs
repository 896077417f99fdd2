//! What nothing needs any more: blobs that no run names, scratch folders of attempts that failed long ago.
//!
//! The names that live are gathered between turns, the removal happens beside the loop. What is put meanwhile is pinned.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tm_core::{time::Millis, wire::staging_path};

use super::house::House;
use crate::{config::Scratch, store::disk::Disk, turn::Turn};

const EVERY_MS: u64 = 600_000;

/// When the next sweep is due, and whether one runs.
#[derive(Debug)]
pub(super) struct Sweeper {
    scratch: Scratch,
    due_at: Millis,
    seen: (u64, u64),
    running: Arc<AtomicBool>,
}

impl Sweeper {
    pub(super) fn new(scratch: Scratch, now: Millis) -> Self {
        Self { scratch, due_at: now, seen: (0, u64::MAX), running: Arc::default() }
    }

    /// Whether blobs may lose their pins: not while a sweep decides about them.
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Starts a sweep when one is due and something happened since the last. Returns when to ask again.
    pub(super) fn turn<D: Disk>(&mut self, now: Millis, turn: &Turn<D>, house: &House<D>) -> Option<Millis> {
        let state = &turn.state;
        // A command that passes sweeps nothing.
        house.pool.as_ref()?;
        let seen = (house.blobs.puts(), state.totals.tasks_started);
        if seen == self.seen {
            return None;
        }
        if now < self.due_at || self.is_running() {
            return Some(self.due_at.max(now.plus(1000)));
        }
        let blobs_changed = seen.0 != self.seen.0;
        (self.seen, self.due_at) = (seen, now.plus(EVERY_MS));
        let live = blobs_changed.then(|| turn.live_blobs());
        let held: BTreeSet<String> = state
            .indexes
            .leases
            .values()
            .flatten()
            .filter_map(|task| {
                Some(staging_path(&state.task_name(*task), state.runs.get(&task.run)?.task(*task)?.attempt))
            })
            .collect();
        let (blobs, running) = (house.blobs.clone(), Arc::clone(&self.running));
        let (tenants, scratch) = (house.store.join("tenants"), self.scratch.clone());
        running.store(true, Ordering::Release);
        house.files.give(move || {
            if let Some(live) = live {
                match blobs.store().sweep(&|digest| live.contains(digest), true) {
                    Ok(swept) if swept.files > 0 => {
                        tracing::info!(files = swept.files, bytes = swept.bytes, "swept blobs")
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "blobs cannot be swept"),
                }
            }
            if let Err(error) = sweep_scratch(&tenants, &scratch, &held) {
                tracing::warn!(%error, "scratch folders cannot be swept");
            }
            running.store(false, Ordering::Release);
        });
        None
    }
}

/// Removes what attempts that failed left: the older ones by age, then the oldest until the rest fits.
fn sweep_scratch(tenants: &Path, scratch: &Scratch, held: &BTreeSet<String>) -> io::Result<()> {
    let mut left: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
    for tenant in existing(tenants)? {
        for attempt in existing(&tenant?.path().join("scratch"))? {
            let attempt = attempt?;
            let is_held = attempt.file_name().to_str().is_none_or(|name| held.contains(name));
            if is_held || !attempt.file_type()?.is_dir() {
                continue;
            }
            left.push((attempt.metadata()?.modified()?, attempt.path(), size_bytes(&attempt.path())?));
        }
    }
    left.sort();
    let max_age = Duration::from_millis(scratch.max_age_ms);
    let mut bytes: u64 = left.iter().map(|(_, _, bytes)| bytes).sum();
    for (modified, path, size) in left {
        let is_old = modified.elapsed().is_ok_and(|age| age > max_age);
        if !is_old && bytes <= scratch.max_bytes {
            break;
        }
        fs::remove_dir_all(&path)?;
        bytes -= size;
        tracing::info!(folder = %path.display(), bytes = size, "swept the scratch folder of a failed attempt");
    }
    Ok(())
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
        let held = BTreeSet::from(["HELD.s.1".to_owned()]);
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let bounds = |max_age_ms, max_bytes| Scratch { keep_on_success: false, max_age_ms, max_bytes };
        sweep_scratch(home.path(), &bounds(u64::MAX, 2000), &held).unwrap();
        assert_eq!(names(), ["B.s.1", "C.s.1", "HELD.s.1"]);
        sweep_scratch(home.path(), &bounds(350_000, 2000), &held).unwrap();
        assert_eq!(names(), ["C.s.1", "HELD.s.1"]);
    }
}
