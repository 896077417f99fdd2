//! Finding an ended run by its id, by its key, or in order.

use std::ops::ControlFlow;

use tm_core::{
    id::{Digest, RunId},
    queue::{
        results::{DamagedResult, Kept, Results, Shelved, key_hash},
        run::FinishedRun,
        state::KeyName,
    },
};

use super::{
    super::disk::{Disk, How},
    Closed, ResultStore,
    index::{BadIndex, Pages},
    index_path, path, rebuilt,
    record::{Record, line_at},
};

impl<D: Disk> ResultStore<D> {
    /// Asks an index; one that is damaged is made again first. `None` when that cannot be.
    fn ask<T>(&self, closed: &Closed, ask: impl Fn(&mut Pages<'_, D>) -> Result<T, BadIndex>) -> Option<T> {
        let asked = |closed: &Closed| {
            let index = closed.index.borrow();
            ask(&mut Pages::open(&index, &self.disk, &index_path(closed.no))?)
        };
        if let Ok(answer) = asked(closed) {
            return Some(answer);
        }
        tracing::warn!(file = %self.disk.shown(&index_path(closed.no)), "an index of results is damaged and made again");
        match rebuilt(&self.disk, closed.no, closed.bytes, &self.secret) {
            Ok(index) => {
                *closed.index.borrow_mut() = index;
                asked(closed).ok()
            }
            Err(error) => {
                tracing::warn!(%error, "a results segment cannot be read");
                None
            }
        }
    }

    /// Reads all indexes; a damaged one is made again, as when a lookup comes upon the damage.
    pub(in super::super) fn check_indexes(&self) {
        for closed in &self.closed {
            self.ask(closed, |pages| pages.check());
        }
    }

    /// Where the newest record of a run stands: segment and offset.
    fn place_of(&self, run: RunId) -> Option<(u64, u32)> {
        if let Some((at, no, offset)) = self.hint.get()
            && at == run
        {
            return Some((no, offset));
        }
        if let Some(open) = &self.open
            && let Some(offset) = open.entries.runs.get(&run)
        {
            return Some((open.no, *offset));
        }
        self.closed.iter().rev().find_map(|closed| {
            let within = {
                let index = closed.index.borrow();
                index.header.first <= run && run <= index.header.last
            };
            let offset = within.then(|| self.ask(closed, |pages| pages.offset_of(run)))??;
            Some((closed.no, offset?))
        })
    }

    fn record(&self, no: u64, offset: u32) -> Option<Record> {
        let file = self.disk.open(&path(no), How::Read).ok()?;
        Record::parse(&line_at(&self.disk, &file, offset.into()).ok()?).ok()
    }

    fn damaged(&self, no: u64, offset: u32) -> DamagedResult {
        DamagedResult { place: format!("{} at byte {offset}", self.disk.shown(&path(no))) }
    }

    /// The digests of blobs that results name (I10).
    pub fn blobs(&self, each: &mut dyn FnMut(Digest)) {
        if let Some(open) = &self.open {
            open.entries.blobs.iter().copied().for_each(&mut *each);
        }
        for closed in &self.closed {
            self.ask(closed, |pages| pages.blobs()).into_iter().flatten().for_each(&mut *each);
        }
    }
}

impl<D: Disk> Results for ResultStore<D> {
    fn run(&self, run: RunId) -> Option<Kept> {
        let (no, offset) = self.place_of(run)?;
        let record = self.record(no, offset).filter(|record| record.run.id == run);
        let shelved = record.map(|Record { tenant, flow, run }| Shelved { tenant, flow, run });
        Some(shelved.ok_or_else(|| self.damaged(no, offset)))
    }

    fn key(&self, name: &KeyName, each: &mut dyn FnMut(FinishedRun) -> ControlFlow<()>) {
        let hash = key_hash(&self.secret, &name.0, &name.1, &name.2);
        let mut give = |no: u64, offset: u32| match self.record(no, offset) {
            Some(record) if record.has_key(name) => each(record.run),
            Some(_) => ControlFlow::Continue(()),
            None => {
                tracing::warn!(place = %self.damaged(no, offset).place, "the record of a key is damaged");
                ControlFlow::Continue(())
            }
        };
        if let Some(open) = &self.open {
            let offsets = open.entries.keys.range((hash, 0)..=(hash, u32::MAX)).rev();
            if offsets.map(|(_, offset)| *offset).try_for_each(|offset| give(open.no, offset)).is_break() {
                return;
            }
        }
        for closed in self.closed.iter().rev() {
            if !closed.index.borrow().may_hold(hash) {
                continue;
            }
            let offsets = self.ask(closed, |pages| pages.offsets_of_key(hash)).unwrap_or_default();
            if offsets.into_iter().try_for_each(|offset| give(closed.no, offset)).is_break() {
                return;
            }
        }
    }

    fn range(&self, low: RunId, high: RunId, each: &mut dyn FnMut(RunId) -> ControlFlow<()>) {
        let mut open = self
            .open
            .iter()
            .flat_map(|open| open.entries.runs.range(low..=high).rev().map(|(run, offset)| (*run, open.no, *offset)));
        // Of each segment: the place below which its next run stands, and that run.
        let mut closed: Vec<_> = self
            .closed
            .iter()
            .rev()
            .filter_map(|closed| Some((closed, self.ask(closed, |pages| pages.runs_up_to(high))?)))
            .map(|(closed, place)| Walk { closed, place, next: None })
            .collect();
        let mut next_open = open.next();
        let mut before = None;
        loop {
            for walk in &mut closed {
                walk.advance(self, low);
            }
            // The newest record of a run comes first: the open segment, then the younger ones.
            let next = closed.iter().filter_map(|walk| walk.next).fold(next_open, |best, next| match best {
                Some(best) if best.0 >= next.0 => Some(best),
                _ => Some(next),
            });
            let Some((run, no, offset)) = next else { break };
            if before.replace(run) != Some(run) {
                self.hint.set(Some((run, no, offset)));
                if each(run).is_break() {
                    break;
                }
            }
            if next_open.is_some_and(|(open, ..)| open == run) {
                next_open = open.next();
            }
            for walk in &mut closed {
                walk.next = walk.next.filter(|(next, ..)| *next != run);
            }
        }
        self.hint.set(None);
    }

    fn key_count(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |open| open.entries.keys.len() as u64);
        open + self.closed.iter().map(|closed| closed.index.borrow().header.keys).sum::<u64>()
    }
}

struct Walk<'s> {
    closed: &'s Closed,
    place: u64,
    next: Option<(RunId, u64, u32)>,
}

impl Walk<'_> {
    fn advance<D: Disk>(&mut self, store: &ResultStore<D>, low: RunId) {
        while self.next.is_none()
            && let Some(place) = self.place.checked_sub(1)
        {
            let Some((run, offset)) = store.ask(self.closed, |pages| pages.run(place)) else {
                self.place = 0;
                return;
            };
            self.place = if run < low { 0 } else { place };
            if run >= low {
                self.next = Some((run, self.closed.no, offset));
            }
        }
    }
}
