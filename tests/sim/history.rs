//! One seed: a queue lives through faults and restarts, is drained, and must then add up.

use std::collections::VecDeque;

use tm_core::{
    api::RunState,
    queue::{check::check, effect::Input, policy::Policy, state::State},
    time::Millis,
};
use tm_supervisor::{
    store::{
        dlq::{Dlq, Place},
        log::LogOptions,
    },
    turn::{Reserve, Rules, Turn},
};

use crate::{
    clients::Clients,
    coverage::Coverage,
    disk::SimDisk,
    faults::{Fault, Without},
    flows::{Expressions, NoBlobs},
    judge::{Around, judge_letters},
    ledger::Ledger,
    letters,
    opening::image,
    phases::{Break, Phase},
    random::Random,
    rivals::Rivals,
    world::World,
};

pub(crate) const SECRET: [u8; 16] = [3; 16];
/// The ends of this simulation's small steps fit into these, and hardly more does.
pub(crate) const RESERVE: Reserve = Reserve { end_bytes: 1200, sweep_bytes: 4 * 1024, slack_bytes: 512 };
/// Runs that ended and stay in memory: few, so that results are kept often.
pub(crate) const FINISHED_MAX: usize = 6;
/// Few dead letters are many.
pub(crate) const BULK_SLICE: usize = 3;
/// And few items a long list.
pub(crate) const ITEMS_SLICE: usize = 2;
const DRAIN_TURNS_MAX: u64 = 20_000;
const SEGMENTS_KIB: [u64; 6] = [8, 32, 64, 64, 96, 96];
/// The rules of the state are checked in every so many-th turn.
const CHECKED_TURNS: u64 = 4;

/// What makes a history what it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) turns: u64,
    pub(crate) without: Without,
    /// Every so many-th disk operation is a crash point; 0 for none.
    pub(crate) points_every: u64,
}

pub(crate) struct History {
    pub(crate) random: Random,
    pub(crate) disk: SimDisk,
    pub(crate) turn: Option<Turn<SimDisk>>,
    pub(crate) world: World,
    pub(crate) clients: Clients,
    pub(crate) ledger: Ledger,
    pub(crate) inputs: VecDeque<Input>,
    pub(crate) now: Millis,
    /// The latest time that a turn was told, before the clock went back.
    pub(crate) latest: Millis,
    /// How far `now` is ahead of the wall, in a history whose wall is set while the supervisor runs; none in the others.
    pub(crate) ahead_ms: Option<u64>,
    pub(crate) rivals: Rivals,
    pub(crate) without: Without,
    result_ttl_ms: u64,
    segment_max_bytes: u64,
    hard_depth: u64,
    small: bool,
    busy: u64,
    full_until: Option<u64>,
    /// What the state was when the process stopped between two turns.
    pub(crate) before: Option<String>,
    /// Crash points are many, so states are compared rarely.
    compares_every: u64,
    trace: bool,
}

impl History {
    /// Lives through the turns of the plan, then drains and adds up. `progress` is told the turn.
    pub(crate) fn live(plan: Plan, progress: &dyn Fn(u64)) -> Coverage {
        let mut random = Random::new(plan.seed);
        // A small queue is opened quickly, and so very often.
        let small = plan.points_every == 1;
        let points_every = if plan.without.has(Fault::CrashPoint) { 0 } else { plan.points_every };
        let disk = SimDisk::new(Random::new(random.next()), points_every);
        let mut history = Self {
            world: World::new(Random::new(random.next()), disk.clone(), plan.without),
            turn: None,
            clients: Clients::default(),
            ledger: Ledger::default(),
            inputs: VecDeque::new(),
            now: Millis(1_700_000_000_000),
            latest: Millis(0),
            ahead_ms: (random.chance(20) && !plan.without.has(Fault::ClockJump)).then_some(0),
            rivals: Rivals::default(),
            without: plan.without,
            result_ttl_ms: match random.below(2) {
                _ if small => 300,
                0 => 5_000,
                _ => 3_600_000,
            },
            segment_max_bytes: *random.pick(if small { &[8, 16] } else { &SEGMENTS_KIB }).unwrap_or(&96) * 1024,
            hard_depth: if small { 20 } else { 60 },
            small,
            busy: 10 + random.below(40),
            full_until: None,
            before: None,
            compares_every: if small { 16 } else { 0 },
            trace: std::env::var_os("TM_SIM_TRACE").is_some(),
            random,
            disk,
        };
        history.ledger.leapt_ms = history.ahead_ms;
        history.start();
        history.clients.register_all(small, &mut history.inputs);
        for turn in 0..plan.turns {
            progress(turn);
            history.step();
        }
        progress(plan.turns);
        history.drain();
        history.add_up();
        history.world.coverage.turns = history.world.turn;
        history.world.coverage.seeds = 1;
        history.world.coverage.runs = history.clients.acknowledged.len() as u64;
        history.world.coverage
    }

    pub(crate) fn log_options(&self) -> LogOptions {
        LogOptions { segment_max_bytes: self.segment_max_bytes, ..LogOptions::default() }
    }

    pub(crate) fn rules(&self) -> Rules {
        let weights = crate::flows::TENANTS.into_iter().map(str::to_owned).zip([1, 2, 4]).collect();
        let policy =
            Policy { result_ttl_ms: self.result_ttl_ms, hard_depth: self.hard_depth, weights, ..Policy::default() };
        Rules { policy, evaluate: Box::new(Expressions), blobs: Box::new(NoBlobs) }
    }

    fn step(&mut self) {
        self.plan_faults();
        self.clock();
        self.world.arrivals(self.now, &mut self.inputs);
        self.clients.read_late(self.world.turn, &self.ledger, &mut self.world.coverage);
        if let Some(turn) = &self.turn {
            self.world.write_letters(&turn.state, &mut self.inputs);
            if self.disk.inner().broken.is_some() {
                return self.restart();
            }
        }
        // On a full disk clients press on and steps take long: that is when what was reserved is needed.
        self.world.slow = self.full_until.is_some();
        for _ in 0..if self.world.slow { 4 } else { 1 } {
            if self.random.chance(self.busy) {
                self.clients.enqueue(&mut self.random, self.now, &mut self.inputs);
            }
        }
        self.clients.ask_again(&mut self.inputs);
        if self.happens(8, Fault::Operator) {
            self.clients.operate(&mut self.random, &self.ledger, &mut self.inputs);
        }
        // Registered flows are kept for good.
        if self.random.chance(if self.small { 10 } else { 100 }) && self.happens(1, Fault::Redeploy) {
            self.clients.redeploy(&mut self.random, &mut self.inputs);
        }
        if self.happens(2, Fault::WorkerDeath) {
            self.world.kill_worker(&mut self.inputs);
        }
        if self.happens(2, Fault::FalseReport) {
            let leases = self.ledger.leased();
            self.world.forge(&leases, &mut self.inputs);
        }
        if self.random.chance(1) {
            self.rare_faults();
        }
        self.take_turn();
    }

    /// In `percent` of 100 cases, when the kind is not switched off.
    fn happens(&mut self, percent: u64, fault: Fault) -> bool {
        self.random.chance(percent) && !self.without.has(fault)
    }

    fn rare_faults(&mut self) {
        if self.happens(6, Fault::BitRot) {
            self.rot();
        }
        if self.happens(5, Fault::SecondSupervisor) {
            self.rivals.refuse(&mut self.world.coverage);
        }
        if self.happens(60, Fault::SlowSync) {
            let (after, takes_ms) = (self.random.below(4), 100 + self.random.below(1500));
            self.disk.inner().slow_sync = Some((after, takes_ms));
        }
    }

    /// What came in while the turn waited for the disk.
    fn pile_up(&mut self) {
        let slept_ms = std::mem::take(&mut self.disk.inner().slept_ms);
        if slept_ms == 0 {
            return;
        }
        self.now = self.now.plus(slept_ms);
        for _ in 0..slept_ms / 100 {
            self.clients.enqueue(&mut self.random, self.now, &mut self.inputs);
        }
    }

    fn clock(&mut self) {
        match self.random.below(1000) {
            0..4 if self.without.has(Fault::ClockJump) => {}
            0..2 => {
                let by_ms = self.random.below(20_000);
                self.wall_forward(by_ms);
            }
            2..4 => {
                let by_ms = self.random.below(500);
                self.wall_back(by_ms);
            }
            _ => self.now = self.now.plus(1 + self.random.below(12)),
        }
    }

    fn wall_forward(&mut self, by_ms: u64) {
        let Some(ahead_ms) = self.ahead_ms else {
            self.world.coverage.fault("clock jump", "forward");
            self.now = self.now.plus(by_ms);
            return;
        };
        let leapt_ms = by_ms.saturating_sub(ahead_ms);
        self.now = self.now.plus(leapt_ms);
        self.wall_moved(leapt_ms, ahead_ms.saturating_sub(by_ms), "the wall is set forward");
    }

    fn wall_back(&mut self, by_ms: u64) {
        let Some(ahead_ms) = self.ahead_ms else {
            // The clock itself never goes back (the supervisor's clock sees to that), but the one before a restart may
            // have been ahead: the turn never goes below the newest frame.
            self.world.coverage.fault("clock jump", "back");
            self.now = Millis(self.now.0.saturating_sub(by_ms));
            return;
        };
        self.wall_moved(0, ahead_ms + by_ms, "the wall is set back");
    }

    /// As the supervisor's clock tells its turn. What follows is in memory only, so that such a history is not compared
    /// with what replay makes of it.
    fn wall_moved(&mut self, leapt_ms: u64, ahead_ms: u64, how: &'static str) {
        self.ahead_ms = Some(ahead_ms);
        if let Some(turn) = &mut self.turn {
            self.world.coverage.fault("clock jump", how);
            turn.state.clock_moved(leapt_ms, ahead_ms);
            self.ledger.leapt(leapt_ms);
        }
    }

    /// The clock of a new process begins with the wall's time, or that of the newest frame.
    pub(crate) fn clock_starts(&mut self, turn: &mut Turn<SimDisk>) {
        if let Some(ahead_ms) = &mut self.ahead_ms {
            let wall = Millis(self.now.0.saturating_sub(*ahead_ms));
            self.now = wall.max(turn.state.last_at);
            *ahead_ms = self.now.since(wall);
            turn.state.clock_moved(0, *ahead_ms);
            self.ledger.clock_starts();
        }
    }

    /// The state, to be compared with what replay makes of the log.
    fn remember(&self, state: &State) -> Option<String> {
        self.ahead_ms.is_none().then(|| image(state, self.latest))
    }

    fn plan_faults(&mut self) {
        let turn = self.world.turn;
        if self.full_until.is_some_and(|until| until <= turn) {
            self.full_until = None;
            self.disk.inner().quota = u64::MAX;
        }
        if self.full_until.is_none() && self.random.chance(1) && self.happens(40, Fault::FullDisk) {
            self.world.coverage.fault("full disk", "before a turn");
            self.full_until = Some(turn + 5 + self.random.below(60));
            let room = self.random.below(9000);
            self.disk.inner().set_room(room);
        }
        if self.disk.inner().has_plan() || self.world.stop_after.is_some() || !self.random.chance(2) {
            return;
        }
        let (what, fault) =
            if self.random.chance(60) { (Break::PowerLoss, Fault::PowerLoss) } else { (Break::Kill, Fault::Kill) };
        let choice = self.random.below(12);
        if self.without.has(if choice == 3 { Fault::FailedSync } else { fault }) {
            return;
        }
        match choice {
            0 => self.stop(what, "before decide"),
            1 => self.world.stop_after = Some((0, what)),
            2 => self.world.stop_after = Some((1 + self.random.below(2), what)),
            3 => {
                let phase = *self
                    .random
                    .pick(&[Phase::CommitSync, Phase::ReserveSync, Phase::Begin, Phase::Results])
                    .unwrap_or(&Phase::Begin);
                self.disk.inner().plan(Break::FailedSync, phase, 0);
            }
            _ => {
                let phase = *self.random.pick(&Phase::RUNNING).unwrap_or(&Phase::Commit);
                let after = self.random.below(5);
                self.disk.inner().plan(what, phase, after);
            }
        }
    }

    fn stop(&mut self, what: Break, phase: &'static str) {
        self.world.coverage.fault(what.name(), phase);
        if phase == "before decide" && self.turn.is_some() {
            self.before = self.turn.as_ref().and_then(|turn| self.remember(&turn.state));
        }
        self.disk.inner().stop(what);
        self.restart();
    }

    fn restart(&mut self) {
        if self.trace {
            eprintln!("restart after {:?}", self.disk.inner().broken);
        }
        self.turn = None;
        self.inputs.clear();
        self.note_faults();
        let points = self.disk.inner().crash_points();
        let written = self.disk.inner().take_written();
        self.judge_crash_points(points, &Around { written: &written, before: None, after: None });
        self.ledger.written(&written);
        self.disk.inner().restart();
        self.note_faults();
        let leases = self.ledger.leased();
        self.world.restart(&leases);
        self.clients.restart(&mut self.world.coverage);
        self.start();
    }

    fn take_turn(&mut self) {
        let Some(turn) = &mut self.turn else { return };
        let compares =
            self.ahead_ms.is_none() && self.compares_every > 0 && self.world.turn.is_multiple_of(self.compares_every);
        let before = compares.then(|| turn.state.clone());
        for input in &self.inputs {
            if matches!(input, Input::Made { run, .. } if !turn.state.runs.contains_key(run)) {
                self.world.coverage.see("made beside the loop", "comes for a run that was cancelled");
            }
        }
        let ends_before = turn.state.totals.tasks_succeeded + turn.state.totals.tasks_dead;
        if self.trace {
            let (number, leased) = (self.world.turn, turn.state.indexes.leased);
            eprintln!(
                "turn {number} at {}: {leased} leased, {} free, {:?}",
                self.now.0,
                self.disk.inner().free(),
                self.inputs
            );
        }
        self.latest = self.latest.max(self.now).max(turn.state.last_at);
        let done = turn.turn(self.now, &mut self.inputs, &mut self.world);
        self.now = self.now.max(turn.state.last_at);
        let broken = self.disk.inner().broken;
        if self.trace {
            eprintln!("{}", String::from_utf8_lossy(&self.disk.inner().written));
        }
        if let Err(error) = &done {
            assert!(broken.is_some(), "the loop stopped on its own: {error} (I7)");
        }
        if self.world.stopped {
            let (after, what) = self.world.stop_after.unwrap_or((0, Break::Kill));
            let phase = if after == 0 { "after sync, before effects" } else { "between effects" };
            return self.stop(what, phase);
        }
        if broken.is_some() {
            return self.restart();
        }
        if self.world.turn.is_multiple_of(CHECKED_TURNS) {
            let wrong = check(&turn.state);
            assert!(wrong.is_empty(), "turn {}: {wrong:#?}", self.world.turn);
        }
        if self.full_until.is_some() {
            let ends = turn.state.totals.tasks_succeeded + turn.state.totals.tasks_dead;
            if ends > ends_before {
                self.world.coverage.see("full disk means", "an attempt ends all the same");
            }
            if turn.disk_full && !turn.state.indexes.lanes.is_empty() {
                self.world.coverage.see("full disk means", "nothing is leased");
            }
        }
        if !turn.disk_full {
            let task = self.world.neglected(&turn.state);
            assert!(task.is_none(), "turn {}: {task:?} waits although a worker has room for it", self.world.turn);
        }
        let points = self.disk.inner().crash_points();
        let (written, next) = (self.disk.inner().take_written(), self.ledger.next_sequence);
        if !points.is_empty() {
            let after = before.is_some().then(|| turn.state.clone());
            let around = Around { written: &written, before: before.as_ref(), after: after.as_ref() };
            self.judge_crash_points(points, &around);
        }
        self.ledger.written(&written);
        let next = self.ledger.written_to().max(next);
        self.ledger.settle(next.max(1), &mut self.world.coverage);
        for (ticket, reply) in std::mem::take(&mut self.world.replies) {
            let (at, world) = ((self.world.turn, self.without), &mut self.world);
            if !world.kind && self.clients.is_slow(&mut self.random, (ticket, &reply), at, &mut world.coverage) {
                continue;
            }
            self.clients.answered(ticket, reply, &self.ledger, self.now, &mut self.world.coverage);
        }
        for start in std::mem::take(&mut self.world.starts) {
            let task = start.task;
            let lease = self.ledger.lease(task);
            assert_eq!(
                lease,
                Some((start.worker, start.attempt)),
                "{task:?} started, its lease is not in the log (I4)"
            );
            assert_eq!(start.component, self.ledger.pinned(task), "{task:?} runs another component than it was given");
        }
        for run in std::mem::take(&mut self.world.ended) {
            let state = self.ledger.runs.get(&run).map(|run| run.state);
            assert!(state.is_some(), "run {run} is said to have ended and is not in the log (I1)");
        }
        self.note_faults();
        self.pile_up();
    }

    /// No more faults: everything that can go on does.
    fn drain(&mut self) {
        self.disk.inner().forget_plan();
        self.world.stop_after = None;
        (self.world.kind, self.world.slow) = (true, false);
        self.full_until = None;
        self.disk.inner().quota = u64::MAX;
        for _ in 0..DRAIN_TURNS_MAX {
            self.now = self.now.plus(20);
            self.world.arrivals(self.now, &mut self.inputs);
            self.clients.ask_again(&mut self.inputs);
            if let Some(turn) = &self.turn {
                self.world.write_letters(&turn.state, &mut self.inputs);
            }
            self.take_turn();
            let Some(turn) = &self.turn else { return };
            if self.inputs.is_empty()
                && turn.state.depth() == 0
                && !turn.has_bulk()
                && !turn.has_made()
                && self.world.is_quiet()
            {
                return;
            }
        }
        panic!("the queue does not drain: depth {}", self.turn.as_ref().map_or(0, |turn| turn.state.depth()));
    }

    /// Every acknowledged run ended exactly once, or is stalled with its dead letters listed and filed.
    fn add_up(&mut self) {
        let Some(turn) = &self.turn else { return };
        let state = &turn.state;
        let files = letters::ids(&Dlq::reading(self.disk.clone()), Place::Pending);
        for run in self.clients.acknowledged.keys() {
            match self.ledger.runs[run].state {
                RunState::Active => panic!("run {run} neither ended nor stalled"),
                RunState::Stalled => {
                    let letters: Vec<_> = state.runs[run].letters().collect();
                    assert!(!letters.is_empty(), "run {run} is stalled without a dead letter");
                    for (_, letter) in letters {
                        assert!(state.letters.contains_key(&letter.entry), "entry {} is not listed", letter.entry);
                        assert!(letter.filed && files.contains(&letter.entry), "entry {} has no file", letter.entry);
                    }
                }
                RunState::Succeeded | RunState::Failed | RunState::Cancelled => {
                    assert!(!state.runs.contains_key(run), "run {run} ended and is among the unfinished");
                }
            }
        }
        let count = |wanted: RunState| self.ledger.runs.values().filter(|run| run.state == wanted).count() as u64;
        let totals = &state.totals;
        assert_eq!(totals.runs_enqueued, self.ledger.runs.len() as u64);
        assert_eq!(totals.runs_succeeded, count(RunState::Succeeded));
        assert_eq!(totals.runs_failed, count(RunState::Failed));
        assert_eq!(totals.runs_cancelled, count(RunState::Cancelled));
        assert_eq!(totals.idempotency_hits, self.ledger.deduplicated);
        assert_eq!((totals.dlq_requeued, totals.dlq_purged), (self.ledger.requeued, self.ledger.purged));
        let letters: std::collections::BTreeSet<String> = state.letters.keys().cloned().collect();
        assert_eq!(letters, self.ledger.letters, "the dead letters in the state and in the log differ");
        let unfinished = count(RunState::Stalled);
        assert_eq!(state.runs.len() as u64, unfinished);
        // Cut off between two turns once more: nothing is lost when nothing happens.
        self.before = self.remember(state);
        self.disk.inner().stop(Break::PowerLoss);
        self.restart();
        let Some(turn) = &self.turn else { return };
        judge_letters(&Dlq::reading(self.disk.clone()), turn.ended(self.now), "at the end");
    }
}
