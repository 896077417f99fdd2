//! What stays on the disk: compaction of the log, and runs that ended in segments of their own.

use tm_core::{
    id::RunId,
    queue::decide::{self, Sweep},
    time::Millis,
};

use super::{Shell, Turn};
use crate::store::{disk::Disk, log::LogError, results::ResultLine};

/// Live things that one slice of compaction copies.
const SWEEP_SLICE: usize = 64;
/// In so many slices all runs that ended and are in memory are written.
const KEPT_SLICES: usize = 4;
/// Of runs that ended and are in memory.
const FINISHED_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Runs of an expired results segment that one turn forgets.
const FORGET_SLICE: usize = 256;
/// A log that is larger at a clean stop, and more than so many times what is live, is compacted first.
const CLOSE_BYTES: u64 = 4 * 1024 * 1024;
const CLOSE_FACTOR: u64 = 4;
/// What an unfinished run has in the log, for that comparison.
const RUN_BYTES: u64 = 1024;

impl<D: Disk> Turn<D> {
    /// What a clean stop does so that the next start has little to read.
    pub(super) fn keep_at_close(&mut self) -> Result<(), LogError> {
        let now = self.state.last_at;
        let live_bytes = (self.state.runs.len() + self.state.flows.len()) as u64 * RUN_BYTES;
        if self.log.written_bytes() > CLOSE_BYTES.max(CLOSE_FACTOR * live_bytes) {
            self.compact_whole(now)?;
        } else if self.results.mark() != (self.state.results.segment, self.state.results.bytes) {
            // So that the next start does not write them again.
            self.keep_all_results(now)?;
        }
        Ok(())
    }

    /// Goes on with a sweep, or starts one when closed segments outweigh what is live. True when one is through.
    pub(super) fn compact(&mut self, now: Millis) -> Result<bool, LogError> {
        if self.sweep.is_none() {
            let closed_bytes: u64 = self.log.closed().iter().map(|segment| segment.bytes).sum();
            let due = closed_bytes >= 2 * self.segment_max_bytes.max(self.live_bytes);
            let Some(newest) = self.log.closed().last().filter(|_| due) else { return Ok(false) };
            self.sweep = Some(Sweep::new(newest.no));
            self.swept_bytes = 0;
        }
        if self.sweep.as_ref().is_some_and(Sweep::is_last) && !self.results_are_synced()? {
            return Ok(false);
        }
        let Some(mut sweep) = self.sweep.take() else { return Ok(false) };
        // Without room the sweep waits.
        let room_bytes = sweep.needs_bytes().max(self.reserve.sweep_bytes);
        if !self.log.ensure(self.reserved_bytes() + room_bytes)? {
            self.sweep = Some(sweep);
            self.sweep_waits = true;
            return Ok(false);
        }
        self.sweep_waits = false;
        let before = self.log.pending_bytes();
        if sweep.is_last() && !self.keep_all_results(now)? {
            self.sweep = Some(sweep);
            self.sweep_waits = true;
            return Ok(false);
        }
        self.decide(now, |state, world| sweep.slice(state, world, SWEEP_SLICE, room_bytes));
        self.swept_bytes += self.log.pending_bytes().saturating_sub(before);
        let through = sweep.is_through();
        self.sweep = Some(sweep);
        Ok(through)
    }

    /// Segments that a finished and synced sweep made unneeded go.
    pub(super) fn drop_swept(&mut self) -> Result<(), LogError> {
        let Some(sweep) = self.sweep.take() else { return Ok(()) };
        self.live_bytes = self.swept_bytes;
        while self.log.closed().first().is_some_and(|oldest| oldest.no <= sweep.cutoff) {
            self.log.drop_oldest()?;
        }
        Ok(())
    }

    /// Whether so few results are left unsynced that the loop may wait for them: the last slice of a sweep may come.
    pub(super) fn results_are_synced(&mut self) -> Result<bool, LogError> {
        if self.holds_many_results() {
            return Ok(false);
        }
        let begin = !std::mem::replace(&mut self.results_sync, true);
        if self.results.sync_beside(begin)? {
            return Ok(false);
        }
        self.results_sync = false;
        Ok(true)
    }

    pub(super) fn holds_many_results(&self) -> bool {
        self.state.finished.len() >= self.finished_max || self.state.results_bytes >= FINISHED_MAX_BYTES
    }

    /// Writes the oldest runs that ended to a results segment and takes them out of memory, a slice of them. False: no room.
    pub(super) fn keep_results(&mut self) -> Result<bool, LogError> {
        let (flows, slice) = (&self.state.flows, self.finished_max.div_ceil(KEPT_SLICES));
        let kept: Vec<RunId> = self.state.finished.keys().take(slice).copied().collect();
        let ended = self.state.finished.values().take(slice).filter_map(|run| {
            let flow = flows.get(&run.flow)?;
            Some(ResultLine { tenant: &flow.tenant, flow: &flow.def.id, run })
        });
        match self.results.append(ended) {
            Ok(()) => {
                for run in kept {
                    self.state.forget_finished(run);
                }
                self.results_wait = false;
            }
            Err(error) if error.is_full() => {
                if !std::mem::replace(&mut self.results_wait, true) {
                    tracing::warn!(%error, "results stay in memory until there is room");
                }
            }
            Err(error) => return Err(error),
        }
        Ok(!self.results_wait)
    }

    /// Writes all runs that ended to results segments, syncs them, and notes it in the log, so that it need not tell of them.
    /// False: there is no room, and nothing is noted.
    pub(super) fn keep_all_results(&mut self, now: Millis) -> Result<bool, LogError> {
        while !self.state.finished.is_empty() {
            if !self.keep_results()? {
                return Ok(false);
            }
        }
        self.results.sync()?;
        let (segment, bytes) = self.results.mark();
        self.decide(now, |state, world| decide::results_kept(state, world, segment, bytes));
        Ok(true)
    }

    /// Goes on with forgetting results that expired. Returns a segment that may go once that is synced.
    pub(super) fn forget_results(&mut self, now: Millis, shell: &mut dyn Shell) -> Result<Option<u64>, LogError> {
        if !self.log.ensure(self.reserved_bytes() + self.reserve.slack_bytes)? {
            return Ok(None);
        }
        let forgotten = self.results.forget(now, FORGET_SLICE, &mut |run| shell.forgotten(run));
        let segment = match forgotten {
            Err(error) if error.is_full() => {
                self.results_wait = true;
                return Ok(None);
            }
            forgotten => forgotten?,
        };
        if let Some(segment) = segment {
            self.decide(now, |state, world| decide::results_dropped(state, world, segment));
        }
        Ok(segment)
    }

    /// Compacts all of the log at once.
    pub(super) fn compact_whole(&mut self, now: Millis) -> Result<(), LogError> {
        let room_bytes = self.reserved_bytes() + self.reserve.sweep_bytes;
        if !self.log.close_segment(room_bytes)? {
            return Ok(());
        }
        let Some(newest) = self.log.closed().last() else { return Ok(()) };
        let mut sweep = Sweep::new(newest.no);
        while !sweep.is_through() {
            let room_bytes = sweep.needs_bytes().max(self.reserve.sweep_bytes);
            if !self.log.ensure(self.reserved_bytes() + room_bytes)? {
                return Ok(());
            }
            if sweep.is_last() && !self.keep_all_results(now)? {
                return Ok(());
            }
            self.decide(now, |state, world| sweep.slice(state, world, SWEEP_SLICE, room_bytes));
        }
        self.log.commit()?;
        self.sweep = Some(sweep);
        self.drop_swept()
    }
}
