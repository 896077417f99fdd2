//! Runs that ended, wherever they are: the newest in memory, the others in the shell's results segments.
//!
//! A run that ended stays in [`State::finished`] until the shell has taken it into a results segment. From then on it is
//! found by offset, and costs neither memory nor time at a start. Nothing of it is decided again: a result only answers.

use alloc::{borrow::Cow, string::String};
use core::ops::ControlFlow;

use crate::{
    id::RunId,
    queue::{
        run::FinishedRun,
        state::{KeyName, State},
    },
    time::Millis,
};

/// A results segment's answer about a run that it should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedResult {
    /// The file and the byte where its record begins, in words.
    pub place: String,
}

/// A run that ended, or what is left of it.
pub type Kept = Result<FinishedRun, DamagedResult>;

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
            Ok(mut found) => {
                if found.expires_at <= self.now || !self.state.flows.contains_key(&found.flow) {
                    return None;
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
