//! Opening the queue after a fault, until it opens, and what must be there then.

use tm_core::{queue::state::State, time::Millis};
use tm_supervisor::{store::dlq::Dlq, turn::Turn};

use crate::{
    disk::SimDisk,
    faults::Fault,
    history::{BULK_SLICE, FINISHED_MAX, History, ITEMS_SLICE, RESERVE, SECRET},
    judge::{Around, judge_letters},
    phases::{Break, Phase},
};

impl History {
    /// Opens the queue, until it opens: recovery can be interrupted too.
    pub(crate) fn start(&mut self) {
        loop {
            self.plan_recovery_fault();
            if self.random.chance(5) && !self.without.has(Fault::SecondSupervisor) {
                self.rivals.race(&mut self.world.coverage);
            }
            let opened = Dlq::open(self.disk.clone()).map_err(|error| error.to_string()).and_then(|dlq| {
                let opened = Turn::open(self.disk.clone(), self.log_options(), self.rules(), SECRET, self.now);
                opened.map(|(turn, recovery)| (dlq, turn, recovery)).map_err(|error| error.to_string())
            });
            let (broken, failed) = {
                let mut disk = self.disk.inner();
                disk.forget_plan();
                (disk.broken, std::mem::take(&mut disk.read_failed))
            };
            match opened {
                Ok((dlq, turn, recovery)) if broken.is_none() => {
                    assert!(recovery.damaged.is_empty(), "a crash left damage behind (I11): {:?}", recovery.damaged);
                    let mut turn = turn
                        .with_reserve(RESERVE)
                        .with_finished_max(FINISHED_MAX)
                        .with_bulk_slice(BULK_SLICE)
                        .with_items_slice(ITEMS_SLICE);
                    let points = self.disk.inner().crash_points();
                    let written = self.disk.inner().take_written();
                    self.judge_crash_points(points, &Around { written: &written, before: None, after: None });
                    self.ledger.written(&written);
                    self.ledger.settle(recovery.next_sequence.max(ledger_after(&turn)), &mut self.world.coverage);
                    // A full disk is no reason not to start.
                    if dlq.catch_up(turn.ended(self.now)).is_ok() {
                        judge_letters(&dlq, turn.ended(self.now), "after recovery");
                    }
                    self.disk.inner().recovering = false;
                    if self.disk.inner().broken.is_none() {
                        self.compare(&turn);
                        self.clock_starts(&mut turn);
                        self.inputs = turn.recover().into();
                        self.turn = Some(turn);
                        return;
                    }
                }
                Ok(_) => {}
                Err(error) => assert!(broken.is_some() || failed, "the queue does not open: {error}"),
            }
            self.note_faults();
            let points = self.disk.inner().crash_points();
            let written = self.disk.inner().written.clone();
            self.judge_crash_points(points, &Around { written: &written, before: None, after: None });
            self.disk.inner().restart();
        }
    }

    fn plan_recovery_fault(&mut self) {
        if !self.random.chance(20) || self.world.turn == 0 {
            return;
        }
        let faults = [
            (Break::PowerLoss, Fault::PowerLoss, 4),
            (Break::Kill, Fault::Kill, 4),
            (Break::FailedSync, Fault::FailedSync, 4),
            (Break::FailedRead, Fault::ReadError, 30),
        ];
        let Some(&(what, fault, within)) = self.random.pick(&faults) else { return };
        let after = self.random.below(within);
        if !self.without.has(fault) {
            self.disk.inner().plan(what, Phase::Recovery, after);
        }
    }

    /// What was acknowledged is there; after a stop between two turns everything is.
    fn compare(&mut self, turn: &Turn<SimDisk>) {
        if let Some(before) = self.before.take() {
            assert_same(&before, &image(&turn.state, self.latest), "after recovery");
            self.world.coverage.see("recovery", "state is the same as before");
        }
        self.judge_state(turn.ended(self.now), "after recovery", None);
    }

    pub(crate) fn note_faults(&mut self) {
        let seen = std::mem::take(&mut self.disk.inner().seen);
        for (what, phase) in seen {
            match what {
                "full disk" | "compaction" => self.world.coverage.see(what, phase),
                _ => self.world.coverage.fault(what, phase),
            }
        }
    }
}

/// A new queue writes its first frame while it opens.
fn ledger_after(turn: &Turn<SimDisk>) -> u64 {
    if turn.state.flows.is_empty() { 2 } else { 1 }
}

pub(crate) fn assert_same(before: &str, after: &str, place: &str) {
    for (before, after) in before.lines().zip(after.lines()) {
        assert_eq!(before, after, "{place}: replay gives another state than the one that was");
    }
    assert_eq!(before.len(), after.len(), "{place}: replay gives another state than the one that was");
}

/// All that must survive a restart, as text. What is only in memory is left out, what time alone changes is done. Runs that
/// ended are judged by themselves: replay has in memory what a results segment has already.
pub(crate) fn image(state: &State, now: Millis) -> String {
    let mut state = state.clone();
    state.promote(now);
    state.expire(now, usize::MAX);
    let ended: Vec<_> = state.finished.keys().copied().collect();
    for run in ended {
        state.forget_finished(run);
    }
    (state.segment, state.refused_reports, state.totals.orphans, state.newest_run) = (0, 0, 0, None);
    state.progress.clear();
    state.asked.clear();
    state.last_at = Millis(0);
    // Lanes are numbered in the order in which flows were seen, and that is not stored.
    let lanes = std::mem::take(&mut state.indexes.lanes);
    let mut ready: Vec<_> = lanes.busy().map(|lane| (lane.flow, lane.step, &lane.ready, &lane.solo)).collect();
    ready.sort();
    format!("{state:?} {ready:?}").replace("}, ", "},\n")
}
