//! Runs that ended, wherever they are: the newest in memory, the others in the shell's results segments.
//!
//! A run that ended stays in [`State::finished`] until the shell has taken it into a results segment. From then on it is
//! found by offset, and costs neither memory nor time at a start. Nothing of it is decided again: a result only answers.

use alloc::{borrow::Cow, collections::BTreeSet, string::String};
use core::{hash::Hasher, ops::ControlFlow};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use crate::{
    id::{FlowNo, RunId},
    queue::{
        run::FinishedRun,
        state::{KeyName, State},
    },
    record::codec::SEGMENTS_END,
    time::Millis,
};

/// Which results segments there are, as the log tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultsMark {
    /// All before this one are gone.
    pub oldest: u64,
    /// Later ones that are gone too.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub dropped: BTreeSet<u64>,
    /// All that ended before stands in the segments up to this one, synced up to `bytes` of it.
    pub segment: u64,
    pub bytes: u64,
}

impl ResultsMark {
    /// Whether a segment was forgotten.
    #[must_use]
    pub fn is_gone(&self, segment: u64) -> bool {
        segment < self.oldest || self.dropped.contains(&segment)
    }

    /// Whether a queue can come to have such segments.
    pub(crate) fn is_possible(&self) -> bool {
        let last = self.dropped.last().copied().unwrap_or(0).max(self.oldest).max(self.segment);
        // Offsets in a segment are four bytes.
        last < SEGMENTS_END && self.bytes <= u32::MAX.into()
    }

    pub(crate) fn drop_segment(&mut self, segment: u64) {
        self.dropped.insert(segment);
        // Numbers begin at 1.
        self.oldest = self.oldest.max(1);
        while self.dropped.remove(&self.oldest) {
            self.oldest += 1;
        }
    }
}

/// A key's hash, for this queue alone: its secret keeps tenants from making keys that collide.
#[must_use]
pub fn key_hash(secret: &[u8; 16], tenant: &str, flow: &str, key: &str) -> u64 {
    let mut hasher = SipHasher24::new_with_key(secret);
    for part in [tenant, flow, key] {
        hasher.write_u64(part.len() as u64);
        hasher.write(part.as_bytes());
    }
    hasher.finish()
}

/// A results segment's answer about a run that it should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedResult {
    /// The file and the byte where its record begins, in words.
    pub place: String,
}

/// A run that ended, with the scope that its record names.
#[derive(Clone, Debug)]
pub struct Shelved {
    pub tenant: String,
    pub flow: String,
    pub run: FinishedRun,
}

/// A run that ended, or what is left of it.
pub type Kept = Result<Shelved, DamagedResult>;

/// Runs that ended and left memory. Looking changes nothing (I12).
pub trait Results {
    /// The newest record of a run; `None` when there is none.
    fn run(&self, run: RunId) -> Option<Kept>;

    /// The runs that succeeded with this key, newest record first, until told to stop.
    fn key(&self, name: &KeyName, each: &mut dyn FnMut(FinishedRun) -> ControlFlow<()>);

    /// Runs from `low` to `high`, the largest id first and each once, until told to stop.
    fn range(&self, low: RunId, high: RunId, each: &mut dyn FnMut(RunId) -> ControlFlow<()>);

    /// Idempotency keys that they hold, those included that expired and were not forgotten yet.
    fn key_count(&self) -> u64;
}

/// No results but those in memory.
pub struct NoResults;

impl Results for NoResults {
    fn run(&self, _: RunId) -> Option<Kept> {
        None
    }

    fn key(&self, _: &KeyName, _: &mut dyn FnMut(FinishedRun) -> ControlFlow<()>) {}

    fn range(&self, _: RunId, _: RunId, _: &mut dyn FnMut(RunId) -> ControlFlow<()>) {}

    fn key_count(&self) -> u64 {
        0
    }
}

/// Of no flow: numbers begin at 1.
const FLOW_UNKNOWN: FlowNo = FlowNo(0);

/// The state together with the results that left it: what looks for a run that may have ended.
#[derive(Clone, Copy)]
pub struct Ended<'a> {
    pub state: &'a State,
    pub results: &'a dyn Results,
    /// What expired before this is not there any more.
    pub now: Millis,
}

impl<'a> Ended<'a> {
    /// The run, when it ended and its result has not expired.
    ///
    /// # Errors
    /// When its record is damaged.
    pub fn run(self, run: RunId) -> Option<Result<Cow<'a, FinishedRun>, DamagedResult>> {
        if let Some(found) = self.state.finished.get(&run) {
            return (found.expires_at > self.now).then_some(Ok(Cow::Borrowed(found)));
        }
        match self.results.run(run)? {
            Ok(Shelved { tenant, flow, run: mut found }) => {
                if found.expires_at <= self.now {
                    return None;
                }
                // The number of a flow whose record is damaged may be another flow's now.
                let registered = self.state.flows.get(&found.flow);
                if registered.is_none_or(|known| *known.tenant != *tenant || known.def.id != flow) {
                    found.flow = FLOW_UNKNOWN;
                }
                if self.state.freed_keys.contains_key(&run) {
                    found.key = None;
                }
                Some(Ok(Cow::Owned(found)))
            }
            Err(damaged) => Some(Err(damaged)),
        }
    }

    /// Whether the run is unfinished or ended.
    #[must_use]
    pub fn knows(self, run: RunId) -> bool {
        self.state.runs.contains_key(&run) || self.run(run).is_some()
    }

    /// The run that holds a key: an unfinished one, or one that succeeded and whose result has not expired.
    #[must_use]
    pub fn holder(self, name: &KeyName) -> Option<RunId> {
        if let Some(&run) = self.state.keys.get(name) {
            let expired = self.state.finished.get(&run).is_some_and(|run| run.expires_at <= self.now);
            return (!expired).then_some(run);
        }
        let mut holder = None;
        self.results.key(name, &mut |found| {
            // What is said of the run elsewhere may be newer: the run goes on, or its key was given free.
            let holds = !self.state.runs.contains_key(&found.id)
                && matches!(self.run(found.id), Some(Ok(run)) if run.key.as_deref() == Some(name.2.as_str()));
            holder = holds.then_some(found.id);
            if holds { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        holder
    }

    /// All runs from `low` to `high`, unfinished and ended, the largest id first, each once, until told to stop.
    pub fn range(self, low: RunId, high: RunId, each: &mut dyn FnMut(RunId) -> ControlFlow<()>) {
        let unfinished = self.state.runs.range(low..=high).map(|(run, _)| *run);
        let ended = self.state.finished.range(low..=high).map(|(run, _)| *run);
        let (mut unfinished, mut ended) = (unfinished.rev().peekable(), ended.rev().peekable());
        let mut before = None;
        let mut give = |run: RunId| {
            if before.replace(run) == Some(run) { ControlFlow::Continue(()) } else { each(run) }
        };
        // The next one in memory that is not below `at`.
        let mut next = move |at: RunId| {
            let (left, right) = (unfinished.peek().copied(), ended.peek().copied());
            let run = left.max(right).filter(|run| *run >= at)?;
            if left == Some(run) { unfinished.next() } else { ended.next() }
        };
        let mut stopped = false;
        self.results.range(low, high, &mut |kept| {
            while let Some(run) = next(kept) {
                if give(run).is_break() {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = give(kept);
            stopped = flow.is_break();
            flow
        });
        while !stopped && let Some(run) = next(low) {
            stopped = give(run).is_break();
        }
    }
}
