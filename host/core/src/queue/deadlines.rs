//! Which runs are over their time: the active runs of flows with `run_timeout_ms`.
//!
//! A run's time begins with its enqueue, or later when the enqueue said so (`--delay`, `--at`), and anew when a task of it is
//! requeued. All that stands in its record and the span stands in the flow that it pins, so replay finds the same deadlines
//! without a clock (I2). Like a backoff, it is a span: when the wall is set forward, every run keeps at least what was left
//! of its time. What begins at a point in time waits for the wall, so its deadline is by the wall too.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::{
    id::{FlowNo, RunId},
    queue::run::Run,
    time::Millis,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deadlines {
    /// Of runs whose time began with their enqueue. It stands in their ids, so that an id is all that is kept of each.
    flows: BTreeMap<FlowNo, Timed>,
    /// Of those that were requeued, or active when the queue's time leapt.
    dated: Dated,
    /// Of runs whose time begins later, by the wall.
    later: Dated,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Timed {
    timeout_ms: u64,
    /// In the order of their deadlines.
    runs: BTreeSet<RunId>,
}

impl Deadlines {
    pub(crate) fn insert(&mut self, run: &Run, timeout_ms: u64) {
        self.remove(run);
        match (run.begun_again(), run.begins_later()) {
            (Some(begun), _) => self.dated.insert(run.id, begun.plus(timeout_ms)),
            (None, Some(begins)) => self.later.insert(run.id, begins.plus(timeout_ms)),
            (None, None) => {
                let timed = self.flows.entry(run.flow);
                timed.or_insert(Timed { timeout_ms, runs: BTreeSet::new() }).runs.insert(run.id);
            }
        }
    }

    pub(crate) fn remove(&mut self, run: &Run) {
        self.later.remove(run.id);
        self.dated.remove(run.id);
        if let Some(timed) = self.flows.get_mut(&run.flow) {
            timed.runs.remove(&run.id);
            if timed.runs.is_empty() {
                self.flows.remove(&run.flow);
            }
        }
    }

    /// The queue's time leapt by a span that did not pass.
    pub(crate) fn leap(&mut self, leapt_ms: u64) {
        for Timed { timeout_ms, runs } in core::mem::take(&mut self.flows).into_values() {
            runs.into_iter().for_each(|run| self.dated.insert(run, run.minted_at().plus(timeout_ms)));
        }
        self.dated.shift(leapt_ms);
        self.later.shift(leapt_ms);
    }

    /// When the time of an active run is up, by the queue's time, which is `ahead_ms` ahead of the wall.
    pub(crate) fn of(&self, run: &Run, ahead_ms: u64) -> Option<Millis> {
        let later = self.later.by_run.get(&run.id).map(|at| at.plus(ahead_ms));
        later.or_else(|| self.dated.by_run.get(&run.id).copied()).or_else(|| {
            let timed = self.flows.get(&run.flow).filter(|timed| timed.runs.contains(&run.id))?;
            Some(run.id.minted_at().plus(timed.timeout_ms))
        })
    }

    /// The run whose time is up first, with when that is by the queue's time, which is `ahead_ms` ahead of the wall.
    #[must_use]
    pub fn first(&self, ahead_ms: u64) -> Option<(Millis, RunId)> {
        let firsts = self.flows.values().filter_map(|timed| {
            let run = *timed.runs.first()?;
            Some((run.minted_at().plus(timed.timeout_ms), run))
        });
        let later = self.later.order.first().map(|(at, run)| (at.plus(ahead_ms), *run));
        firsts.chain(later).chain(self.dated.order.first().copied()).min()
    }

    /// Forgets the deadline of a run, whatever became of the run.
    pub(crate) fn forget(&mut self, run: RunId) {
        self.later.remove(run);
        self.dated.remove(run);
        self.flows.retain(|_, timed| {
            timed.runs.remove(&run);
            !timed.runs.is_empty()
        });
    }

    /// All runs that have one.
    pub(crate) fn runs(&self) -> BTreeSet<RunId> {
        let by_flow = self.flows.values().flat_map(|timed| timed.runs.iter().copied());
        by_flow.chain(self.later.by_run.keys().chain(self.dated.by_run.keys()).copied()).collect()
    }
}

/// Runs with a deadline of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Dated {
    order: BTreeSet<(Millis, RunId)>,
    by_run: BTreeMap<RunId, Millis>,
}

impl Dated {
    fn insert(&mut self, run: RunId, at: Millis) {
        self.remove(run);
        self.order.insert((at, run));
        self.by_run.insert(run, at);
    }

    fn remove(&mut self, run: RunId) {
        if let Some(at) = self.by_run.remove(&run) {
            self.order.remove(&(at, run));
        }
    }

    fn shift(&mut self, span_ms: u64) {
        self.by_run.values_mut().for_each(|at| *at = at.plus(span_ms));
        self.order = self.by_run.iter().map(|(run, at)| (*at, *run)).collect();
    }
}
