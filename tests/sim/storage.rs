//! What a simulated disk holds: what was written apart from what is durable, for contents and for names.
//!
//! A file has its cached content and its durable content with the changes between the two, in order. A sync moves them
//! over; a power loss keeps a prefix of them, the last one possibly torn. A folder's names are the same one level up:
//! what was created, renamed or removed since the folder was synced may be there or not, each name for itself. A copy
//! shares its bytes with the original until one of them writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{content::Content, random::Random};

#[derive(Clone)]
pub(crate) enum Change {
    Write { offset: u64, bytes: Arc<[u8]> },
    Fill { offset: u64, len: u64 },
    Cut(u64),
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

#[derive(Clone, Default)]
pub(crate) struct Stored {
    pub(crate) cache: Content,
    durable: Content,
    changes: Vec<Change>,
    /// Records were written to it since the last sync.
    pub(crate) committed: bool,
    /// Made and not yet synced.
    pub(crate) begun: bool,
}

impl Stored {
    pub(crate) fn is_dirty(&self) -> bool {
        !self.changes.is_empty()
    }
}

#[derive(Clone)]
enum Naming {
    Create(Arc<str>, usize),
    Rename(Arc<str>, Arc<str>, usize),
    Unlink(Arc<str>),
}

impl Naming {
    fn paths(&self) -> impl Iterator<Item = &Arc<str>> {
        let (one, other) = match self {
            Self::Create(path, _) | Self::Unlink(path) => (path, None),
            Self::Rename(from, to, _) => (from, Some(to)),
        };
        std::iter::once(one).chain(other)
    }

    fn is_in(&self, folder: &str) -> bool {
        self.paths().any(|path| folder_of(path) == folder)
    }
}

/// What a power loss took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lost {
    pub(crate) torn: bool,
    pub(crate) bytes: bool,
    /// What was done to a name that was lost.
    pub(crate) name: Option<&'static str>,
}

#[derive(Clone, Default)]
pub(crate) struct Storage {
    files: BTreeMap<usize, Stored>,
    next: usize,
    names: BTreeMap<Arc<str>, usize>,
    durable_names: BTreeMap<Arc<str>, usize>,
    namings: Vec<Naming>,
    pub(crate) used: u64,
}

pub(crate) fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl Storage {
    pub(crate) fn id(&self, path: &str) -> Option<usize> {
        self.names.get(path).copied()
    }

    pub(crate) fn file(&self, id: usize) -> &Stored {
        &self.files[&id]
    }

    pub(crate) fn file_mut(&mut self, id: usize) -> &mut Stored {
        self.files.get_mut(&id).unwrap_or_else(|| panic!("file {id} is open and gone"))
    }

    /// The files in a folder.
    pub(crate) fn list<'s>(&'s self, folder: &'s str) -> impl Iterator<Item = (&'s str, &'s Stored)> {
        let begin: Arc<str> = format!("{folder}/").into();
        let below =
            self.names.range(Arc::clone(&begin)..).map_while(move |(path, id)| Some((path.strip_prefix(&*begin)?, id)));
        below.filter(|(name, _)| !name.contains('/')).map(|(name, id)| (name, &self.files[id]))
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = (&str, usize)> {
        self.names.iter().map(|(path, id)| (&**path, *id))
    }

    /// Whether a commit stands in the cache only.
    pub(crate) fn has_unsynced_commit(&self) -> bool {
        let logs = self.names.range(Arc::<str>::from("queue/segment-")..);
        logs.take_while(|(path, _)| path.starts_with("queue/segment-")).any(|(_, id)| {
            let file = &self.files[id];
            file.committed && file.is_dirty()
        })
    }

    pub(crate) fn create(&mut self, path: &str) -> usize {
        let (id, path) = (self.next, Arc::<str>::from(path));
        self.next += 1;
        self.files.insert(id, Stored { begun: true, ..Stored::default() });
        self.names.insert(Arc::clone(&path), id);
        self.namings.push(Naming::Create(path, id));
        id
    }

    pub(crate) fn unlink(&mut self, path: &str) -> bool {
        let Some((path, id)) = self.names.remove_entry(path) else { return false };
        self.used = self.used.saturating_sub(self.files[&id].cache.len());
        self.namings.push(Naming::Unlink(path));
        true
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) -> bool {
        let Some((from, id)) = self.names.remove_entry(from) else { return false };
        let to = Arc::<str>::from(to);
        if let Some(replaced) = self.names.insert(Arc::clone(&to), id) {
            self.used = self.used.saturating_sub(self.files[&replaced].cache.len());
        }
        self.namings.push(Naming::Rename(from, to, id));
        true
    }

    pub(crate) fn change(&mut self, id: usize, change: Change) {
        let file = self.file_mut(id);
        let before = file.cache.len();
        file.cache.apply(&change);
        let after = file.cache.len();
        file.changes.push(change);
        self.used = (self.used + after).saturating_sub(before);
    }

    /// Makes the first `kept` changes durable. The others stay waiting, or count as clean although they are not
    /// (as after a failed sync).
    pub(crate) fn sync(&mut self, id: usize, kept: usize, forget: bool) {
        let file = self.file_mut(id);
        let changes = std::mem::take(&mut file.changes);
        changes.iter().take(kept).for_each(|change| file.durable.apply(change));
        if kept >= changes.len() {
            (file.committed, file.begun) = (false, false);
        } else if !forget {
            file.changes = changes[kept..].to_vec();
        }
    }

    pub(crate) fn changes(&self, id: usize) -> usize {
        self.files[&id].changes.len()
    }

    pub(crate) fn sync_folder(&mut self, folder: &str) {
        let (mine, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.namings).into_iter().partition(|naming| naming.is_in(folder));
        self.namings = others;
        mine.into_iter().for_each(|naming| self.durable_naming(naming));
    }

    fn durable_naming(&mut self, naming: Naming) {
        match naming {
            Naming::Create(path, id) => drop(self.durable_names.insert(path, id)),
            Naming::Unlink(path) => drop(self.durable_names.remove(&path)),
            Naming::Rename(from, to, id) => {
                self.durable_names.remove(&from);
                self.durable_names.insert(to, id);
            }
        }
    }

    /// The machine stops: what is not durable is gone, but for what the disk had taken by chance.
    pub(crate) fn lose_power(&mut self, random: &mut Random) -> Lost {
        let mut lost = Lost::default();
        let mut gone = BTreeSet::new();
        for naming in std::mem::take(&mut self.namings) {
            // What follows on a lost name cannot have happened.
            if random.chance(50) || naming.paths().any(|path| gone.contains(path)) {
                lost.name = Some(match &naming {
                    Naming::Create(..) => "a file made",
                    Naming::Rename(..) => "a file renamed",
                    Naming::Unlink(..) => "a file removed",
                });
                gone.extend(naming.paths().cloned());
            } else {
                self.durable_naming(naming);
            }
        }
        self.names.clone_from(&self.durable_names);
        self.forget_unnamed();
        for file in self.files.values_mut().filter(|file| file.is_dirty()) {
            let changes = std::mem::take(&mut file.changes);
            let kept = random.place(changes.len() + 1);
            lost.bytes |= kept < changes.len();
            changes[..kept].iter().for_each(|change| file.durable.apply(change));
            match changes.get(kept) {
                Some(Change::Write { offset, bytes }) => {
                    let some = random.place(bytes.len() + 1);
                    lost.torn |= some > 0;
                    file.durable.write(*offset, &bytes[..some]);
                }
                Some(Change::Fill { offset, len }) => {
                    let some = random.below(len + 1);
                    lost.torn |= some > 0;
                    file.durable.fill(*offset, some);
                }
                Some(Change::Cut(_)) | None => {}
            }
        }
        for file in self.files.values_mut() {
            file.cache = file.durable.clone();
            (file.committed, file.begun) = (false, false);
        }
        self.used = self.files.values().map(|file| file.cache.len()).sum();
        lost
    }

    /// Nobody has a file open any more: what has no name is gone.
    pub(crate) fn forget_unnamed(&mut self) {
        let named: BTreeSet<usize> = self.names.values().chain(self.durable_names.values()).copied().collect();
        let naming: BTreeSet<usize> = self
            .namings
            .iter()
            .filter_map(|naming| match naming {
                Naming::Create(_, id) | Naming::Rename(_, _, id) => Some(*id),
                Naming::Unlink(_) => None,
            })
            .collect();
        self.files.retain(|id, _| named.contains(id) || naming.contains(id));
    }

    /// The process stops in the middle of its last write: the rest of it never reached the system.
    pub(crate) fn cut_short(&mut self, id: usize, random: &mut Random) {
        let Some(Change::Write { offset, bytes }) = self.files.get(&id).and_then(|file| file.changes.last()).cloned()
        else {
            return;
        };
        let file = self.file_mut(id);
        file.changes.pop();
        let some = random.place(bytes.len() + 1);
        let changes = file.changes.clone();
        file.cache = file.durable.clone();
        changes.iter().for_each(|change| file.cache.apply(change));
        self.change(id, Change::Write { offset, bytes: bytes[..some].into() });
    }

    /// Changes one bit of a file, on the disk and wherever it is kept.
    pub(crate) fn rot(&mut self, id: usize, offset: u64, bit: u8) {
        let mut byte = [0];
        let file = self.file_mut(id);
        if file.cache.read(offset, &mut byte) == 1 {
            byte[0] ^= 1 << (bit % 8);
            file.cache.write(offset, &byte);
            file.durable.write(offset, &byte);
        }
    }
}
