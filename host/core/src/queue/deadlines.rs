//! Which runs are over their time: the active runs of flows with `run_timeout_ms`.
//!
//! A run's time begins with its enqueue, or later when the enqueue said so (`--delay`, `--at`). Both stand in its record and
//! the span stands in the flow that it pins, so replay finds the same deadlines without a clock (I2).

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
    /// Of runs whose time began later.
    later: BTreeSet<(Millis, RunId)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Timed {
    timeout_ms: u64,
    /// In the order of their deadlines.
    runs: BTreeSet<RunId>,
}

impl Deadlines {
    pub(crate) fn insert(&mut self, run: &Run, timeout_ms: u64) {
        match run.begins_later() {
            Some(begins) => drop(self.later.insert((begins.plus(timeout_ms), run.id))),
            None => {
                let timed = self.flows.entry(run.flow);
                timed.or_insert(Timed { timeout_ms, runs: BTreeSet::new() }).runs.insert(run.id);
            }
        }
    }

    pub(crate) fn remove(&mut self, run: &Run, timeout_ms: u64) {
        match run.begins_later() {
            Some(begins) => drop(self.later.remove(&(begins.plus(timeout_ms), run.id))),
            None => {
                if let Some(timed) = self.flows.get_mut(&run.flow) {
                    timed.runs.remove(&run.id);
                    if timed.runs.is_empty() {
                        self.flows.remove(&run.flow);
                    }
                }
            }
        }
    }

    /// Forgets the deadline of a run that is still the first that is due.
    pub(crate) fn forget_due(&mut self, run: RunId, now: Millis) {
        if self.due(now) == Some(run) {
            self.later.retain(|(_, other)| *other != run);
            self.flows.retain(|_, timed| {
                timed.runs.remove(&run);
                !timed.runs.is_empty()
            });
        }
    }

    /// The run whose time is up first, with when that is.
    #[must_use]
    pub fn first(&self) -> Option<(Millis, RunId)> {
        let firsts = self.flows.values().filter_map(|timed| {
            let run = *timed.runs.first()?;
            Some((run.minted_at().plus(timed.timeout_ms), run))
        });
        firsts.chain(self.later.first().copied()).min()
    }

    /// The run whose time is up first, when it is up at `now`.
    #[must_use]
    pub fn due(&self, now: Millis) -> Option<RunId> {
        self.first().filter(|(at, _)| *at <= now).map(|(_, run)| run)
    }
}
