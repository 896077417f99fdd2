//! Requeues and purges of many dead letters: each turn takes a share of them.

use tm_core::{queue::decide, time::Millis};

use super::{PER_ENTRY_BYTES, Shell, Turn};
use crate::store::{disk::Disk, log::LogError};

impl<D: Disk> Turn<D> {
    /// Acts on so many dead letters in a turn, in place of [`decide::SLICE_MAX`]: with few of them, slices are still seen.
    #[must_use]
    pub const fn with_bulk_slice(mut self, entries: usize) -> Self {
        self.bulk_slice = entries;
        self
    }

    /// Whether a bulk action is under way.
    #[must_use]
    pub fn has_bulk(&self) -> bool {
        !self.bulks.is_empty()
    }

    /// Ends the bulk actions that are under way, each between two slices: what was done stays done, and their callers are
    /// told how far that was.
    pub fn break_off(&mut self, shell: &mut dyn Shell, now: Millis) {
        for bulk in std::mem::take(&mut self.bulks) {
            shell.perform(self.ended(now), bulk.broken_off(decide::stopping()), now);
        }
    }

    /// One turn's share of the bulk actions. True when more is left of them.
    pub(super) fn bulk(&mut self, now: Millis, keeps_up: bool) -> Result<bool, LogError> {
        let mut left = self.bulk_slice;
        while keeps_up
            && left > 0
            && let Some(mut bulk) = self.bulks.pop_front()
        {
            bulk.look(&self.state);
            let changes = bulk.changes(self.ended(now));
            // What is written must have room; what only looks or skips writes nothing, and needs none (I12).
            let bytes = self.reserve.end_bytes + PER_ENTRY_BYTES * changes as u64 + self.reserve.slack_bytes;
            if changes > 0 && !self.log.ensure(self.reserved_bytes() + bytes)? {
                self.disk_full = true;
                self.effects.push_back(bulk.broken_off(decide::no_room()));
                continue;
            }
            self.decide(now, |state, world| {
                let step = bulk.slice(state, world);
                debug_assert!(changes > 0 || step.events.is_empty(), "no room was reserved: {:?}", step.events);
                step
            });
            left = left.saturating_sub(bulk.cost());
            if !bulk.is_through() {
                self.effects.extend(bulk.told());
                self.bulks.push_back(bulk);
            }
        }
        Ok(!self.bulks.is_empty())
    }
}

#[cfg(test)]
#[path = "bulk_tests.rs"]
mod tests;
