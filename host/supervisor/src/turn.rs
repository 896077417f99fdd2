//! One turn of the loop: decide, log, sync once, then let the effects out (I1).
//!
//! Generic over the disk below the log and over the [`Shell`] that performs effects, so that the simulation runs exactly
//! this code. A turn that decided nothing writes nothing and syncs nothing.

mod bulk;
mod keep;
mod made;

use std::collections::{BTreeSet, VecDeque};

use tm_core::{
    api::{ApiError, Reply},
    flow::{advance::Blobs, evaluate::Evaluate},
    id::{Digest, FlowNo},
    limits::{END_RESERVE_BYTES, INLINE_MAX_BYTES, INPUTS_PER_TURN_MAX},
    queue::{
        decide::{self, Arrival, Bulk, Runnable, Sweep, World, decide},
        effect::{Effect, Input, Step, Ticket},
        event::Frame,
        lanes::{FairOrder, Slot, Want},
        policy::Policy,
        results::Ended,
        run::FinishedRun,
        state::{Registered, State},
    },
    time::Millis,
};

use crate::store::{
    disk::Disk,
    log::{Log, LogError, LogOptions},
    recover::Recovery,
    results::ResultStore,
};

/// Bytes of the log that are kept free for what must be written whatever the disk says (I7).
///
/// The default holds for every payload that the limits allow. A simulation of small payloads uses small numbers, so that
/// one reservation too few is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// The largest end of one attempt.
    pub end_bytes: u64,
    /// A slice of compaction; a larger thing asks for what it needs.
    pub sweep_bytes: u64,
    /// What decisions about no single task may need.
    pub slack_bytes: u64,
}

impl Default for Reserve {
    fn default() -> Self {
        Self { end_bytes: END_RESERVE_BYTES, sweep_bytes: 1024 * 1024 + 64 * 1024, slack_bytes: 64 * 1024 }
    }
}

/// Finished runs that one turn forgets.
const EXPIRE_SLICE: usize = 512;
/// Runs that ended and are in memory before the oldest of them are written to a results segment: who waits for a run that
/// ended just now should find it here.
const FINISHED_MAX: usize = 1024;
/// How long until a sync beside the loop is asked after.
const SYNC_AGAIN_MS: u64 = 2;
/// Tasks of runs over their time that one turn ends.
const OVER_SLICE: usize = 256;
/// Leases that one turn makes.
const LEASES_PER_TURN_MAX: usize = 1024;
/// What making, requeueing or purging one dead letter writes, payloads apart.
const PER_ENTRY_BYTES: u64 = 1024;
/// How long until a full disk is tried again, when nothing else happens.
const ROOM_AGAIN_MS: u64 = 1000;

/// The world that a turn acts on: workers, sockets, files other than the log.
pub trait Shell {
    /// Room in the workers now.
    fn slots(&mut self) -> Vec<Slot>;

    /// Learns of a registered flow, before any of its steps is asked for.
    fn flow(&mut self, no: FlowNo, flow: &Registered);

    /// Whether the tasks of a step can run now.
    fn runnable(&self, flow: FlowNo, step: u16) -> Runnable;

    /// What ready tasks want of the pool; told when it may have changed.
    fn wanted(&mut self, state: &State, wants: &[Want], now: Millis);

    /// Carries out what was decided; the events that caused it are synced.
    fn perform(&mut self, ended: Ended<'_>, effect: Effect, now: Millis);

    /// A finished run was forgotten: its artefacts may go.
    fn forgotten(&mut self, run: &FinishedRun);

    /// Whether what requeues and purges left to do is being done as fast as it comes. When it is not, the next slices of
    /// bulk actions wait, and the shell calls for a turn as soon as it is again.
    fn keeps_up(&self) -> bool {
        true
    }
}

/// What decisions need that is neither state nor effect.
pub struct Rules {
    pub policy: Policy,
    pub evaluate: Box<dyn Evaluate>,
    pub blobs: Box<dyn Blobs>,
}

/// The queue with its log.
pub struct Turn<D: Disk> {
    pub state: State,
    log: Log<D>,
    results: ResultStore<D>,
    /// For room on the disk.
    results_wait: bool,
    /// The last slice of a sweep waits until they are synced.
    results_sync: bool,
    rules: Rules,
    fair: FairOrder,
    /// Runs that ended and stay in memory, at most.
    finished_max: usize,
    sweep: Option<Sweep>,
    /// For room on the disk.
    sweep_waits: bool,
    /// Requeues and purges of many, each a slice at a time, in turn.
    bulks: VecDeque<Bulk>,
    /// Entries that a turn requeues or purges.
    bulk_slice: usize,
    /// What was made beside the loop and is not whole in the log.
    arrivals: VecDeque<Arrival>,
    /// For room on the disk.
    arrivals_wait: bool,
    /// Inputs of fan-outs that a turn takes.
    items_slice: usize,
    /// For room on the disk: runs over their time.
    over_waits: bool,
    /// Dead letters whose files are synced, for which the log had no room.
    filed: Vec<String>,
    /// What the last sweep copied: the estimate of what is live.
    live_bytes: u64,
    swept_bytes: u64,
    segment_max_bytes: u64,
    reserve: Reserve,
    told_flows: Option<FlowNo>,
    effects: VecDeque<Effect>,
    /// Whether leasing was held back by a full disk, for `queue stats` and the warning.
    pub disk_full: bool,
    /// Nothing new is leased.
    pub draining: bool,
}

impl<D: Disk> Turn<D> {
    /// Opens the queue and replays it. A new queue gets `secret`.
    ///
    /// # Errors
    /// When the log cannot be opened or read ([`LogError`]).
    pub fn open(
        disk: D,
        options: LogOptions,
        rules: Rules,
        secret: [u8; 16],
        now: Millis,
    ) -> Result<(Self, Recovery), LogError> {
        let mut state = State::default();
        let segment_max_bytes = options.segment_max_bytes;
        let (log, recovery) = Log::open(disk.clone(), options, &mut |frame, segment| state.replay(&frame, segment))?;
        let secret = if state.format == 0 { secret } else { state.secret };
        let results = ResultStore::write(disk, secret, &state.results, rules.policy.results_max_bytes)?;
        let mut turn = Self {
            state,
            log,
            results,
            results_wait: false,
            results_sync: false,
            rules,
            fair: FairOrder::default(),
            finished_max: FINISHED_MAX,
            sweep: None,
            sweep_waits: false,
            bulks: VecDeque::new(),
            bulk_slice: decide::SLICE_MAX,
            arrivals: VecDeque::new(),
            arrivals_wait: false,
            items_slice: decide::ITEMS_PER_SLICE,
            over_waits: false,
            filed: Vec::new(),
            live_bytes: 0,
            swept_bytes: 0,
            segment_max_bytes,
            reserve: Reserve::default(),
            told_flows: None,
            effects: VecDeque::new(),
            disk_full: false,
            draining: false,
        };
        if turn.state.format == 0 && turn.log.ensure(turn.reserve.slack_bytes)? {
            turn.decide(now, |state, world| decide::create(state, world, secret));
            turn.log.commit()?;
        }
        Ok((turn, recovery))
    }

    /// Reserves other amounts than those of [`Reserve::default`].
    #[must_use]
    pub fn with_reserve(mut self, reserve: Reserve) -> Self {
        self.reserve = reserve;
        self
    }

    /// Keeps another number of ended runs in memory.
    #[must_use]
    pub fn with_finished_max(mut self, finished_max: usize) -> Self {
        self.finished_max = finished_max;
        self
    }

    /// What a predecessor left undone: leases of workers that died with it, dead letters without a file, inputs that it was
    /// making. Call once, before the first turn.
    pub fn recover(&mut self) -> Vec<Input> {
        self.effects.extend(decide::unfiled(&self.state));
        self.effects.extend(decide::unmade(&mut self.state));
        decide::orphaned_workers(&self.state)
    }

    /// Decides all of `inputs`, hands out work, syncs once, lets the effects out. Takes inputs from the front until the
    /// turn is full; what is left stays for the next one.
    ///
    /// Returns when the next turn is due without an input.
    ///
    /// # Errors
    /// When the log failed. Nothing of this turn got out; the caller must stop for good (never retry an fsync).
    pub fn turn(
        &mut self,
        now: Millis,
        inputs: &mut VecDeque<Input>,
        shell: &mut dyn Shell,
    ) -> Result<Option<Millis>, LogError> {
        let now = now.max(self.state.last_at);
        let sequence_before = self.log.next_sequence();
        for entry in std::mem::take(&mut self.filed) {
            self.take(now, Input::Filed { entry })?;
        }
        for _ in 0..INPUTS_PER_TURN_MAX {
            let Some(input) = inputs.pop_front() else { break };
            self.take(now, input)?;
        }
        let more_made = self.arrive(now)?;
        let more = self.bulk(now, shell.keeps_up())?;
        self.tell_flows(shell);
        for gone in self.state.expire(now, EXPIRE_SLICE) {
            shell.forgotten(&gone);
        }
        self.time_out(now)?;
        self.state.promote(now);
        let wants = self.state.indexes.lanes.wants(&|flow, step| shell.runnable(flow, step) == Runnable::Yes);
        if !self.draining {
            shell.wanted(&self.state, &wants, now);
            self.lease(now, shell)?;
        }
        let swept = self.compact(now)?;
        let forgotten = self.forget_results(now, shell)?;
        if self.log.next_sequence() != sequence_before {
            self.log.commit()?;
        }
        if swept {
            self.drop_swept()?;
        }
        if let Some(segment) = forgotten {
            self.results.drop_segment(segment);
        }
        while let Some(effect) = self.effects.pop_front() {
            shell.perform(Ended { state: &self.state, results: &self.results, now }, effect, now);
        }
        if self.holds_many_results() {
            self.keep_results()?;
        }
        self.results.sync_beside(false)?;
        self.deadline(now, inputs.is_empty() && !more_made && !(more && shell.keeps_up()))
    }

    /// The clean stop of the log.
    ///
    /// # Errors
    /// When the log failed before or fails now.
    pub fn close(mut self) -> Result<(), LogError> {
        self.keep_at_close()?;
        self.results.close()?;
        self.log.close()
    }

    /// Runs, where they may have ended.
    #[must_use]
    pub fn ended(&self, now: Millis) -> Ended<'_> {
        Ended { state: &self.state, results: &self.results, now }
    }

    /// Every blob that something live names (I10).
    #[must_use]
    pub fn live_blobs(&self) -> BTreeSet<Digest> {
        let mut live = self.state.live_blobs();
        self.results.blobs(&mut |digest| {
            live.insert(digest);
        });
        live
    }

    /// Bytes of the log on disk, with reserved room.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.log.size_bytes()
    }

    /// Syncs of the disk so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.log.syncs()
    }

    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.rules.policy
    }

    #[must_use]
    pub fn blobs(&self) -> &dyn Blobs {
        &*self.rules.blobs
    }

    fn deadline(&mut self, now: Millis, idle: bool) -> Result<Option<Millis>, LogError> {
        if !idle || (self.sweep.is_some() && !self.sweep_waits && !self.results_sync) {
            return Ok(Some(now));
        }
        let sync = self.log.sync_due(now)?;
        let again = now.plus(ROOM_AGAIN_MS);
        let waits =
            self.sweep_waits || self.disk_full || self.results_wait || self.arrivals_wait || !self.filed.is_empty();
        let room = waits.then_some(again);
        let more = (self.results.is_forgetting() || self.holds_many_results()) && !self.results_wait;
        let results = if more { Some(now) } else { self.results.next_deadline().filter(|at| *at > now) };
        let beside = self.results_sync.then(|| now.plus(SYNC_AGAIN_MS));
        let due = self.state.next_deadline().map(|due| if self.over_waits { due.max(again) } else { due });
        Ok([due, sync, room, results, beside].into_iter().flatten().min())
    }

    /// One input, when there is room for what it may write.
    fn take(&mut self, now: Millis, input: Input) -> Result<(), LogError> {
        let mut input = match Bulk::of(&self.state, input, self.bulk_slice).map_err(Arrival::of) {
            Ok(bulk) => {
                self.bulks.push_back(bulk);
                return Ok(());
            }
            Err(Ok(arrival)) => {
                self.arrivals.push_back(arrival);
                return Ok(());
            }
            Err(Err(input)) => input,
        };
        if !decide::changes(self.ended(now), &input) {
            // It writes nothing, so it reserves nothing either (I12).
            self.decide(now, |state, world| {
                let step = decide(state, world, input);
                debug_assert!(step.events.is_empty(), "no room was reserved for this: {:?}", step.events);
                step
            });
            return Ok(());
        }
        let reserved = self.reserved_bytes();
        if let Input::Filed { entry } = input {
            // It can wait, and a bulk of them must not eat what is reserved for the ends of attempts.
            if !self.log.ensure(reserved + self.reserve.slack_bytes)? {
                self.filed.push(entry);
                return Ok(());
            }
            input = Input::Filed { entry };
        }
        match self.asked(&input) {
            // The end of an attempt was reserved with its lease (I7); what may be larger is made beside the loop.
            None => drop(self.log.ensure(reserved)?),
            Some((ticket, bytes)) => {
                if !self.log.ensure(reserved + bytes + self.reserve.slack_bytes)? {
                    self.disk_full = true;
                    self.effects.push_back(Effect::Reply { ticket, reply: Reply::Error(no_room()) });
                    return Ok(());
                }
            }
        }
        self.decide(now, |state, world| decide(state, world, input));
        Ok(())
    }

    fn reserved_bytes(&self) -> u64 {
        self.state.indexes.leased * self.reserve.end_bytes + self.reserve.slack_bytes
    }

    /// The ticket of a request and the most that it can write; `None` for what must be taken whatever the disk says.
    fn asked(&self, input: &Input) -> Option<(Ticket, u64)> {
        let slack_bytes = self.reserve.slack_bytes;
        match input {
            Input::Enqueue { ticket, request, input } => {
                let headers = request.headers.as_ref().map_or(0, |json| json.size_bytes());
                // The entry steps may repeat some of it.
                Some((*ticket, 2 * input.size_bytes().min(INLINE_MAX_BYTES) + headers + slack_bytes))
            }
            Input::Register { ticket, def, .. } => Some((*ticket, 4096 * (1 + def.steps.len() as u64))),
            Input::Cancel { ticket, .. } | Input::ForgetKey { ticket, .. } => Some((*ticket, slack_bytes)),
            // Slices reserve what each of them needs.
            Input::Requeue { .. }
            | Input::Purge { .. }
            | Input::Made { .. }
            | Input::Report { .. }
            | Input::Progress { .. }
            | Input::WorkerGone { .. }
            | Input::NotStarted { .. }
            | Input::Aborted { .. }
            | Input::Filed { .. } => None,
        }
    }

    /// Ends what is open of runs over their time, a slice of it, once there is room to say so.
    fn time_out(&mut self, now: Millis) -> Result<(), LogError> {
        let is_due = self.state.run_over(now).is_some();
        let bytes = OVER_SLICE as u64 * PER_ENTRY_BYTES + self.reserve.slack_bytes;
        self.over_waits = is_due && !self.log.ensure(self.reserved_bytes() + bytes)?;
        if is_due && !self.over_waits {
            self.decide(now, |state, world| decide::time_out(state, world, OVER_SLICE));
        }
        Ok(())
    }

    /// Free slots take ready tasks, as many as the disk has room for their ends.
    fn lease(&mut self, now: Millis, shell: &mut dyn Shell) -> Result<(), LogError> {
        if self.state.indexes.lanes.is_empty() {
            self.disk_full = false;
            return Ok(());
        }
        let mut slots = shell.slots();
        let free: u64 = slots.iter().map(|slot| u64::from(slot.free)).sum();
        let mut most = free.min(self.state.indexes.lanes.len()).min(LEASES_PER_TURN_MAX as u64);
        if most == 0 {
            return Ok(());
        }
        let reserved = self.reserved_bytes();
        while !self.log.ensure(reserved + (most + 1) * self.reserve.end_bytes)? {
            most /= 2;
            if most == 0 {
                if !self.disk_full {
                    tracing::warn!("no room on the disk for the end of another task: nothing is leased until there is");
                }
                self.disk_full = true;
                return Ok(());
            }
        }
        self.disk_full = false;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let mut fair = std::mem::take(&mut self.fair);
        let runnable = |flow: FlowNo, step: u16| shell.runnable(flow, step);
        self.decide(now, |state, world| decide::lease(state, world, &mut fair, &mut slots, most, &runnable));
        self.fair = fair;
        Ok(())
    }

    /// Makes one decision and takes its facts into the log's next commit.
    fn decide(&mut self, now: Millis, make: impl FnOnce(&mut State, World<'_>) -> Step) {
        self.state.segment = self.log.segment();
        let world = World {
            policy: &self.rules.policy,
            evaluate: &*self.rules.evaluate,
            blobs: &*self.rules.blobs,
            results: &self.results,
            now,
            sequence: self.log.next_sequence(),
        };
        let Step { events, effects } = make(&mut self.state, world);
        if !events.is_empty() {
            self.log.append(&Frame { at: now, events });
        }
        self.effects.extend(effects);
    }

    fn tell_flows(&mut self, shell: &mut dyn Shell) {
        let from = self.told_flows.map_or(FlowNo(0), |last| FlowNo(last.0 + 1));
        for (no, flow) in self.state.flows.range(from..) {
            shell.flow(*no, flow);
            self.told_flows = Some(*no);
        }
    }
}

fn no_room() -> ApiError {
    let full = decide::no_room();
    ApiError { message: format!("{}; nothing was changed", full.message), ..full }
}
