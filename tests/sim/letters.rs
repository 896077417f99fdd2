//! The files of dead letters, on the same disk, written by the real code: behind the turns and in order, as the
//! supervisor's lane for files does it. A crash takes what was not written yet.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::ControlFlow,
};

use tm_core::{
    api::DlqEntry,
    queue::{
        decide,
        effect::{Effect, Input},
        state::State,
    },
};
use tm_supervisor::store::{
    disk::Disk,
    dlq::{Dlq, Place},
};

use crate::{disk::SimDisk, random::Random};

/// How many turns until a file that could not be written is tried again.
const AGAIN_TURNS: u64 = 20;

enum Job {
    File(Box<DlqEntry>),
    Archive(Box<DlqEntry>),
}

/// Entries that wait to be archived before bulk actions wait for them.
const ARCHIVES_MAX: usize = 4;

pub(crate) struct Letters {
    dlq: Dlq<SimDisk>,
    jobs: VecDeque<Job>,
    /// The turn in which all that have no file are tried again.
    again_at: Option<u64>,
}

impl Letters {
    pub(crate) fn new(disk: &SimDisk) -> Self {
        Self { dlq: Dlq::reading(disk.clone()), jobs: VecDeque::new(), again_at: None }
    }

    pub(crate) fn restart(&mut self) {
        self.jobs.clear();
        self.again_at = None;
    }

    pub(crate) fn file(&mut self, entry: Box<DlqEntry>) {
        self.jobs.push_back(Job::File(entry));
    }

    pub(crate) fn archive(&mut self, entry: Box<DlqEntry>) {
        self.jobs.push_back(Job::Archive(entry));
    }

    pub(crate) fn keeps_up(&self) -> bool {
        self.jobs.iter().filter(|job| matches!(job, Job::Archive(_))).count() < ARCHIVES_MAX
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.jobs.is_empty() && self.again_at.is_none()
    }

    /// Does some of what waits; what was filed is said in the next turn.
    pub(crate) fn work(&mut self, state: &State, turn: u64, random: &mut Random, inputs: &mut VecDeque<Input>) {
        if self.again_at.is_some_and(|at| at <= turn) {
            self.again_at = None;
            self.jobs.extend(decide::unfiled(state).into_iter().filter_map(|effect| match effect {
                Effect::FileEntry { entry } => Some(Job::File(entry)),
                _ => None,
            }));
        }
        for _ in 0..random.below(4) {
            match self.jobs.pop_front() {
                Some(Job::File(entry)) => match self.dlq.file(&entry) {
                    Ok(()) => inputs.push_back(Input::Filed { entry: entry.entry_id }),
                    Err(_) => self.again_at = Some(turn + AGAIN_TURNS),
                },
                // When it fails, the next start finds it.
                Some(Job::Archive(entry)) => drop(self.dlq.archive(&entry)),
                None => break,
            }
        }
    }
}

/// The ids of the entries that can be read in a folder.
pub(crate) fn ids<D: Disk>(dlq: &Dlq<D>, place: Place) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let listed = dlq.newest_first(place, &mut |entry| {
        ids.insert(entry.entry_id);
        ControlFlow::Continue(())
    });
    assert_eq!(listed.ok(), Some(Vec::new()), "a crash left damaged files of dead letters");
    ids
}
