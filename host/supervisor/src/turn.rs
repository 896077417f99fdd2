//! One turn of the loop: decide, log, sync once, then let the effects out (I1).
//!
//! Generic over the disk below the log and over the [`Shell`] that performs effects, so that the simulation runs exactly
//! this code. A turn that decided nothing writes nothing and syncs nothing.

use std::collections::VecDeque;

use tm_core::{
    api::{ApiError, ErrorKind, Reply},
    code::{self, Class},
    flow::{advance::Blobs, evaluate::Evaluate},
    id::{FlowNo, TaskRef},
    limits::{END_RESERVE_BYTES, INPUT_MAX_BYTES, INPUTS_PER_TURN_MAX},
    queue::{
        decide::{self, Runnable, Sweep, World, decide},
        effect::{Effect, Input, Outcome, Step, Ticket},
        event::Frame,
        lanes::{FairOrder, Slot, Want},
        policy::Policy,
        run::FinishedRun,
        state::{Registered, State},
    },
    time::Millis,
    wire::Failure,
};

use crate::store::{
    disk::Disk,
    log::{Log, LogError, LogOptions},
    recover::Recovery,
};

/// Bytes of the log that are kept free for what must be written whatever the disk says (I7).
///
/// The default holds for every payload that the limits allow. A simulation of small payloads uses small numbers, so that
/// one reservation too few is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// The largest end of one attempt.
    pub end_bytes: u64,
    /// The largest end that starts a fan-out: its inputs.
    pub large_end_bytes: u64,
    /// What decisions about no single task may need.
    pub slack_bytes: u64,
}

impl Default for Reserve {
    fn default() -> Self {
        Self {
            end_bytes: END_RESERVE_BYTES,
            large_end_bytes: INPUT_MAX_BYTES + 2 * 1024 * 1024,
            slack_bytes: 64 * 1024,
        }
    }
}

/// Live things that one slice of compaction copies.
const SWEEP_SLICE: usize = 64;
/// Finished runs that one turn forgets.
const EXPIRE_SLICE: usize = 512;
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
    fn perform(&mut self, state: &State, effect: Effect, now: Millis);

    /// A finished run was forgotten: its artefacts may go.
    fn forgotten(&mut self, run: &FinishedRun);
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
    rules: Rules,
    fair: FairOrder,
    sweep: Option<Sweep>,
    /// For room on the disk.
    sweep_waits: bool,
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
        let (log, recovery) = Log::open(disk, options, &mut |frame, segment| state.replay(&frame, segment))?;
        let mut turn = Self {
            state,
            log,
            rules,
            fair: FairOrder::default(),
            sweep: None,
            sweep_waits: false,
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

    /// What a predecessor left undone: leases of workers that died with it, dead letters without a file. Call once,
    /// before the first turn.
    pub fn recover(&mut self) -> Vec<Input> {
        self.effects.extend(decide::unfiled(&self.state));
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
        if self.log.next_sequence() != sequence_before {
            self.log.commit()?;
        }
        if swept {
            self.drop_swept()?;
        }
        while let Some(effect) = self.effects.pop_front() {
            shell.perform(&self.state, effect, now);
        }
        self.deadline(now, inputs.is_empty())
    }

    /// The clean stop of the log.
    ///
    /// # Errors
    /// When the log failed before or fails now.
    pub fn close(self) -> Result<(), LogError> {
        self.log.close()
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
        if !idle || (self.sweep.is_some() && !self.sweep_waits) {
            return Ok(Some(now));
        }
        let sync = self.log.sync_due(now)?;
        let again = now.plus(ROOM_AGAIN_MS);
        let room = (self.sweep_waits || self.disk_full || !self.filed.is_empty()).then_some(again);
        let due = self.state.next_deadline().map(|due| if self.over_waits { due.max(again) } else { due });
        Ok([due, sync, room].into_iter().flatten().min())
    }

    /// One input, when there is room for what it may write.
    fn take(&mut self, now: Millis, mut input: Input) -> Result<(), LogError> {
        if !decide::changes(&self.state, &input) {
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
            // The end of an attempt was reserved with its lease (I7); only a fan-out's start can be larger than that.
            None => {
                let large = self.has_large_end(&input);
                let room = self.log.ensure(reserved + if large { self.reserve.large_end_bytes } else { 0 })?;
                if large && !room {
                    input = without_room(input);
                }
            }
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
        let Reserve { large_end_bytes, slack_bytes, .. } = self.reserve;
        match input {
            Input::Enqueue { ticket, request, input } => {
                let headers = request.headers.as_ref().map_or(0, |json| json.size_bytes());
                // The entry steps repeat the input, as it is or rendered.
                Some((*ticket, 3 * input.size_bytes().min(tm_core::limits::INLINE_MAX_BYTES) + headers + slack_bytes))
            }
            Input::Register { ticket, def, .. } => Some((*ticket, 4096 * (1 + def.steps.len() as u64))),
            Input::Cancel { ticket, .. } | Input::ForgetKey { ticket, .. } => Some((*ticket, slack_bytes)),
            // Each entry that it may name moves its run on, or ends it.
            Input::Requeue { ticket, .. } | Input::Purge { ticket, .. } => {
                Some((*ticket, large_end_bytes + PER_ENTRY_BYTES * self.state.letters.len() as u64))
            }
            Input::Report { .. }
            | Input::Progress { .. }
            | Input::WorkerGone { .. }
            | Input::NotStarted { .. }
            | Input::Aborted { .. }
            | Input::Filed { .. } => None,
        }
    }

    /// Whether the success of this task starts a fan-out.
    fn has_large_end(&self, input: &Input) -> bool {
        let Input::Report { report, .. } = input else { return false };
        let task: TaskRef = report.task;
        matches!(report.outcome, Outcome::Succeeded { .. })
            && self.state.step_of(task).is_some_and(|(flow, _)| {
                flow.def.steps.iter().any(|step| step.for_each.is_some() && step.needs.contains(&task.step))
            })
    }

    /// Ends what is open of runs over their time, a slice of it, once there is room to say so.
    fn time_out(&mut self, now: Millis) -> Result<(), LogError> {
        let is_due = self.state.indexes.deadlines.due(now).is_some();
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

    /// Goes on with a sweep, or starts one when closed segments outweigh what is live. True when one is through.
    fn compact(&mut self, now: Millis) -> Result<bool, LogError> {
        if self.sweep.is_none() {
            let closed_bytes: u64 = self.log.closed().iter().map(|segment| segment.bytes).sum();
            let due = closed_bytes >= 2 * self.segment_max_bytes.max(self.live_bytes);
            let Some(newest) = self.log.closed().last().filter(|_| due) else { return Ok(false) };
            self.sweep = Some(Sweep::new(newest.no));
            self.swept_bytes = 0;
        }
        let Some(mut sweep) = self.sweep.take() else { return Ok(false) };
        // Without room the sweep waits.
        let room_bytes = sweep.needs_bytes().max(self.reserve.large_end_bytes);
        if !self.log.ensure(self.reserved_bytes() + room_bytes)? {
            self.sweep = Some(sweep);
            self.sweep_waits = true;
            return Ok(false);
        }
        self.sweep_waits = false;
        let before = self.log.pending_bytes();
        self.decide(now, |state, world| sweep.slice(state, world, SWEEP_SLICE, room_bytes));
        self.swept_bytes += self.log.pending_bytes().saturating_sub(before);
        let through = sweep.is_through();
        self.sweep = Some(sweep);
        Ok(through)
    }

    /// Segments that a finished and synced sweep made unneeded go.
    fn drop_swept(&mut self) -> Result<(), LogError> {
        let Some(sweep) = self.sweep.take() else { return Ok(()) };
        self.live_bytes = self.swept_bytes;
        while self.log.closed().first().is_some_and(|oldest| oldest.no <= sweep.cutoff) {
            self.log.drop_oldest()?;
        }
        Ok(())
    }

    /// Makes one decision and takes its facts into the log's next commit.
    fn decide(&mut self, now: Millis, make: impl FnOnce(&mut State, World<'_>) -> Step) {
        self.state.segment = self.log.segment();
        let world = World {
            policy: &self.rules.policy,
            evaluate: &*self.rules.evaluate,
            blobs: &*self.rules.blobs,
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

/// A success that starts a fan-out for which the disk has no room becomes a failure that is tried again.
fn without_room(input: Input) -> Input {
    match input {
        Input::Report { from, mut report } => {
            report.outcome = Outcome::Failed(Failure {
                by_host: true,
                class: Class::Retryable,
                code: code::DISK_FULL.into(),
                message: "the queue's disk has no room for the tasks that follow".into(),
                retry_after_ms: None,
            });
            Input::Report { from, report }
        }
        other => other,
    }
}

fn no_room() -> ApiError {
    ApiError {
        kind: ErrorKind::Busy,
        code: Some(code::QUEUE_FULL.into()),
        message: "the queue's disk has no room; nothing was changed".into(),
        hint: Some("free space on the disk of the queue directory, then try again".into()),
        retry_after_ms: Some(5000),
    }
}
