//! What was made beside the loop goes into the log: each turn takes a share of it.

use tm_core::time::Millis;

use super::Turn;
use crate::store::{disk::Disk, log::LogError};

impl<D: Disk> Turn<D> {
    /// Takes so many inputs of fan-outs in a turn, in place of [`ITEMS_PER_SLICE`](tm_core::queue::decide::ITEMS_PER_SLICE):
    /// with few of them, slices are still seen.
    #[must_use]
    pub const fn with_items_slice(mut self, items: usize) -> Self {
        self.items_slice = items;
        self
    }

    /// Whether something that was made is not in the log yet: its blobs must stay.
    #[must_use]
    pub fn has_made(&self) -> bool {
        !self.arrivals.is_empty()
    }

    /// One turn's share of what was made. True when the next share can be taken at once.
    ///
    /// Without room it waits, and resumes by itself: the success that it follows from is in the log.
    pub(super) fn arrive(&mut self, now: Millis) -> Result<bool, LogError> {
        let mut left = self.items_slice;
        while left > 0
            && let Some(mut arrival) = self.arrivals.pop_front()
        {
            let follows_bytes = self.reserve.end_bytes + self.reserve.slack_bytes;
            let bytes = arrival.bytes(self.items_slice) + follows_bytes;
            if !self.log.ensure(self.reserved_bytes() + bytes)? {
                if !std::mem::replace(&mut self.arrivals_wait, true) {
                    tracing::warn!("no room on the disk for the inputs of the steps that follow: they wait for it");
                }
                self.arrivals.push_front(arrival);
                return Ok(false);
            }
            self.arrivals_wait = false;
            left = left.saturating_sub(arrival.cost(self.items_slice));
            let most = self.items_slice;
            self.decide(now, |state, world| arrival.slice(state, world, most));
            if !arrival.is_through() {
                self.arrivals.push_back(arrival);
            }
        }
        Ok(!self.arrivals.is_empty())
    }
}

#[cfg(test)]
#[path = "made_tests.rs"]
mod tests;
