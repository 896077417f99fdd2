//! Compaction: copying what is live forward, in slices, so that old segments can go.
//!
//! A sweep starts with the newest closed segment as its `cutoff`. It writes anew every live thing whose newest whole
//! record stands at or before the cutoff; when it is through and synced, no segment up to the cutoff is needed.
//! A run needs its flow to be replayed, so flows go first, and every run is copied whose record may stand before the
//! newest record of its flow, also when an earlier sweep that a crash cut short has written that.

use alloc::{boxed::Box, vec::Vec};

use crate::{
    id::{FlowNo, RunId},
    json::Json,
    queue::{
        decide::{Desk, World},
        effect::Step,
        event::Event,
        results::ResultsMark,
        state::State,
    },
};

/// One slice ends at this, so that its frame stays far below the longest line.
const SLICE_BYTES: u64 = 1024 * 1024;
/// What a frame adds around its events, at most.
const FRAME_BYTES: u64 = 128;

/// How far a sweep has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// Segments up to this one are not needed when the sweep is through.
    pub cutoff: u64,
    needs_bytes: u64,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Flows(FlowNo),
    Runs(RunId),
    FreedKeys(RunId),
    Totals,
    Through,
}

impl Sweep {
    #[must_use]
    pub const fn new(cutoff: u64) -> Self {
        Self { cutoff, needs_bytes: 0, at: At::Flows(FlowNo(0)) }
    }

    #[must_use]
    pub const fn is_through(&self) -> bool {
        matches!(self.at, At::Through)
    }

    /// Whether all is copied but the totals: the results of runs that ended must be in results segments before the last
    /// slice.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(self.at, At::Totals)
    }

    /// The room that the next slice needs at least; 0 when any will do.
    #[must_use]
    pub const fn needs_bytes(&self) -> u64 {
        self.needs_bytes
    }

    /// Copies at most `most` live things forward, looking at no more than 16 times as many. Writes no more than
    /// `room_bytes`: when the next thing alone is larger, nothing is copied and [`Sweep::needs_bytes`] tells.
    pub fn slice(&mut self, state: &mut State, world: World<'_>, most: usize, room_bytes: u64) -> Step {
        let cutoff = self.cutoff;
        let mut desk = Desk::new(state, world);
        self.needs_bytes = 0;
        let flows = &desk.state.flows;
        let is_needed = |flow, home| home <= cutoff || flows.get(&flow).is_some_and(|flow| flow.home >= home);
        let mut slice = Slice { most, room_bytes, bytes: 0, events: Vec::new(), needs_bytes: 0 };
        match self.at {
            At::Flows(from) => {
                // The secret and the format come first, as in a new queue.
                if from == FlowNo(0) {
                    let (secret, format) = (desk.state.secret, desk.state.format);
                    slice.take(Event::Created { secret, format });
                }
                let registered = flows.range(from..).take(if slice.needs_bytes == 0 { 16 * most } else { 0 });
                let next = slice.fill(registered, |no, flow| {
                    (flow.home <= cutoff).then(|| Event::FlowRegistered {
                        no: *no,
                        tenant: (*flow.tenant).into(),
                        def: Box::new((*flow.def).clone()),
                    })
                });
                let more = next.filter(|next| desk.state.flows.range(next..).next().is_some());
                if slice.needs_bytes == 0 || more.is_some() {
                    self.at = more.map_or(At::Runs(RunId(0)), At::Flows);
                }
            }
            At::Runs(from) => {
                let runs = desk.state.runs.range(from..).take(16 * most);
                let next =
                    slice.fill(runs, |_, run| is_needed(run.flow, run.home).then(|| Event::RunSnapshot(run.clone())));
                let more = next.filter(|next| desk.state.runs.range(next..).next().is_some());
                self.at = more.map_or(At::FreedKeys(RunId(0)), At::Runs);
            }
            At::FreedKeys(from) => {
                let freed = desk.state.freed_keys.range(from..).take(16 * most);
                let next = slice.fill(freed, |run, until| Some(Event::KeyFreed { run: *run, until: *until }));
                let more = next.filter(|next| desk.state.freed_keys.range(next..).next().is_some());
                self.at = more.map_or(At::Totals, At::FreedKeys);
            }
            At::Totals => {
                if slice.take(Event::TotalsSnapshot(Box::new(desk.state.totals.clone()))) {
                    self.at = At::Through;
                }
            }
            At::Through => {}
        }
        self.needs_bytes = slice.needs_bytes;
        slice.events.into_iter().for_each(|event| desk.fact(event));
        desk.done()
    }
}

/// The fact that all runs which ended so far stand in results segments, synced up to `bytes` of `segment`.
pub fn results_kept(state: &mut State, world: World<'_>, segment: u64, bytes: u64) -> Step {
    let mut desk = Desk::new(state, world);
    let mark = ResultsMark { segment, bytes, ..desk.state.results.clone() };
    desk.fact(Event::ResultsKept(Box::new(mark)));
    desk.done()
}

/// The fact that a results segment is forgotten.
pub fn results_dropped(state: &mut State, world: World<'_>, segment: u64) -> Step {
    let mut desk = Desk::new(state, world);
    desk.fact(Event::ResultsDropped { segment });
    desk.done()
}

/// The events of one slice, measured as they are taken.
struct Slice {
    most: usize,
    room_bytes: u64,
    bytes: u64,
    events: Vec<Event>,
    needs_bytes: u64,
}

impl Slice {
    fn take(&mut self, event: Event) -> bool {
        let bytes = Json::of(&event).size_bytes() + FRAME_BYTES;
        if self.bytes + bytes > self.room_bytes {
            // Alone it may need more room than there is.
            self.needs_bytes = if self.events.is_empty() { bytes } else { 0 };
            return false;
        }
        self.bytes += bytes;
        self.events.push(event);
        true
    }

    /// Takes events while there is room; returns the key to go on from, none when all were seen.
    fn fill<'s, K: Copy + Next + 's, V: 's>(
        &mut self,
        things: impl Iterator<Item = (&'s K, &'s V)>,
        event: impl Fn(&K, &V) -> Option<Event>,
    ) -> Option<K> {
        let mut next = None;
        for (key, thing) in things {
            if let Some(event) = event(key, thing)
                && !self.take(event)
            {
                return Some(*key);
            }
            next = Some(key.next());
            if self.events.len() >= self.most || self.bytes > SLICE_BYTES {
                break;
            }
        }
        next
    }
}

/// The key after this one.
trait Next {
    fn next(&self) -> Self;
}

impl Next for FlowNo {
    fn next(&self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Next for RunId {
    fn next(&self) -> Self {
        Self(self.0.saturating_add(1))
    }
}
