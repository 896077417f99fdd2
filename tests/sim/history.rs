//! One seed: a queue lives through faults and restarts, is drained, and must then add up.

use std::collections::VecDeque;

use tm_core::{
    api::RunState,
    queue::{check::check, effect::Input, policy::Policy, state::State},
    time::Millis,
};
use tm_supervisor::{
    store::log::LogOptions,
    turn::{Reserve, Rules, Turn},
};

use crate::{
    clients::Clients,
    coverage::Coverage,
    disk::{Break, Phase, SimDisk},
    flows::{Expressions, NoBlobs},
    ledger::Ledger,
    random::Random,
    world::World,
};

const SECRET: [u8; 16] = [3; 16];
/// The ends of this simulation's small steps fit into these, and hardly more does.
const RESERVE: Reserve = Reserve { end_bytes: 1200, large_end_bytes: 16 * 1024, slack_bytes: 512 };
const DRAIN_TURNS_MAX: u64 = 20_000;

pub(crate) struct History {
    random: Random,
    disk: SimDisk,
    turn: Option<Turn<SimDisk>>,
    world: World,
    clients: Clients,
    ledger: Ledger,
    inputs: VecDeque<Input>,
    now: Millis,
    result_ttl_ms: u64,
    segment_max_bytes: u64,
    busy: u64,
    full_until: Option<u64>,
    /// What the state was when the process stopped between two turns.
    before: Option<String>,
    trace: bool,
}

impl History {
    /// Lives through `turns` turns, then drains and adds up.
    pub(crate) fn live(seed: u64, turns: u64) -> Coverage {
        let mut random = Random::new(seed);
        let disk = SimDisk::new(Random::new(random.next()));
        let mut history = Self {
            world: World::new(Random::new(random.next()), disk.clone()),
            turn: None,
            clients: Clients::default(),
            ledger: Ledger::default(),
            inputs: VecDeque::new(),
            now: Millis(1_700_000_000_000),
            result_ttl_ms: if random.chance(50) { 5_000 } else { 3_600_000 },
            segment_max_bytes: *random.pick(&[8, 32, 64, 64, 96, 96]).unwrap_or(&96) * 1024,
            busy: 10 + random.below(40),
            full_until: None,
            before: None,
            trace: std::env::var_os("TM_SIM_TRACE").is_some(),
            random,
            disk,
        };
        history.start();
        history.clients.register_all(&mut history.inputs);
        for _ in 0..turns {
            history.step();
        }
        history.drain();
        history.add_up();
        history.world.coverage.turns = history.world.turn;
        history.world.coverage.runs = history.clients.acknowledged.len() as u64;
        history.world.coverage
    }

    fn rules(&self) -> Rules {
        let policy = Policy { result_ttl_ms: self.result_ttl_ms, hard_depth: 60, ..Policy::default() };
        Rules { policy, evaluate: Box::new(Expressions), blobs: Box::new(NoBlobs) }
    }

    /// Opens the queue, until it opens: recovery can be interrupted too.
    fn start(&mut self) {
        loop {
            let options = LogOptions { segment_max_bytes: self.segment_max_bytes, ..LogOptions::default() };
            if self.random.chance(20) && self.world.turn > 0 {
                let what =
                    *self.random.pick(&[Break::PowerLoss, Break::Kill, Break::FailedSync]).unwrap_or(&Break::Kill);
                let after = self.random.below(4);
                self.disk.inner().plan(what, Phase::Recovery, after);
            }
            let opened = Turn::open(self.disk.clone(), options, self.rules(), SECRET, self.now);
            let broken = self.disk.inner().broken;
            self.disk.inner().forget_plan();
            match opened {
                Ok((turn, recovery)) if broken.is_none() => {
                    assert!(recovery.damaged.is_empty(), "a crash left damage behind (I11): {:?}", recovery.damaged);
                    let mut turn = turn.with_reserve(RESERVE);
                    let written = std::mem::take(&mut self.disk.inner().written);
                    self.ledger.written(&written);
                    self.ledger.settle(recovery.next_sequence.max(self.ledger_after(&turn)), &mut self.world.coverage);
                    self.disk.inner().recovering = false;
                    self.compare(&turn);
                    self.inputs = turn.recover().into();
                    self.turn = Some(turn);
                    return;
                }
                Ok(_) => {}
                Err(error) => assert!(broken.is_some(), "the queue does not open: {error}"),
            }
            self.note_faults();
            self.disk.inner().restart();
        }
    }

    /// A new queue writes its first frame while it opens.
    fn ledger_after(&self, turn: &Turn<SimDisk>) -> u64 {
        if turn.state.flows.is_empty() { 2 } else { 1 }
    }

    /// What was acknowledged is there; after a stop between two turns everything is.
    fn compare(&mut self, turn: &Turn<SimDisk>) {
        let broken = check(&turn.state);
        assert!(broken.is_empty(), "after recovery: {broken:#?}");
        if let Some(before) = self.before.take() {
            let after = image(&turn.state, self.now);
            for (before, after) in before.lines().zip(after.lines()) {
                assert_eq!(before, after, "replay gives another state than the one that was");
            }
            assert_eq!(before.len(), after.len(), "replay gives another state than the one that was");
            self.world.coverage.see("recovery", "state is the same as before");
        }
        for run in self.clients.acknowledged.keys() {
            let known = &self.ledger.runs.get(run);
            let Some(known) = known else { panic!("run {run} was acknowledged and is not in the log (I6)") };
            let there = turn.state.runs.contains_key(run) || turn.state.finished.contains_key(run);
            assert!(there || known.expires_at.is_some_and(|at| at <= self.now), "acknowledged run {run} is lost (I6)");
        }
    }

    fn note_faults(&mut self) {
        let seen = std::mem::take(&mut self.disk.inner().seen);
        for (what, phase) in seen {
            match what {
                "full disk" | "compaction" => self.world.coverage.see(what, phase.name()),
                _ => self.world.coverage.fault(what, phase.name()),
            }
        }
    }

    fn step(&mut self) {
        self.plan_faults();
        self.clock();
        self.world.arrivals(self.now, &mut self.inputs);
        // On a full disk clients press on and steps take long: that is when what was reserved is needed.
        self.world.slow = self.full_until.is_some();
        for _ in 0..if self.world.slow { 4 } else { 1 } {
            if self.random.chance(self.busy) {
                self.clients.enqueue(&mut self.random, self.now, &mut self.inputs);
            }
        }
        if self.random.chance(8) {
            self.clients.operate(&mut self.random, &self.ledger, &mut self.inputs);
        }
        if self.random.chance(2) {
            self.world.kill_worker(&mut self.inputs);
        }
        if self.random.chance(2) {
            let leases = self.ledger.leased();
            self.world.forge(&leases, &mut self.inputs);
        }
        self.take_turn();
    }

    fn clock(&mut self) {
        // The clock itself never goes back (the supervisor's clock sees to that), but the one before a restart may
        // have been ahead: the turn never goes below the newest frame.
        match self.random.below(1000) {
            0..2 => {
                self.world.coverage.fault("clock jump", "forward");
                self.now = self.now.plus(self.random.below(20_000));
            }
            2..4 => {
                self.world.coverage.fault("clock jump", "back");
                self.now = Millis(self.now.0.saturating_sub(self.random.below(500)));
            }
            _ => self.now = self.now.plus(1 + self.random.below(12)),
        }
    }

    fn plan_faults(&mut self) {
        let turn = self.world.turn;
        if self.full_until.is_some_and(|until| until <= turn) {
            self.full_until = None;
            self.disk.inner().quota = u64::MAX;
        }
        if self.full_until.is_none() && self.random.chance(1) && self.random.chance(40) {
            self.world.coverage.fault("full disk", "before a turn");
            self.full_until = Some(turn + 5 + self.random.below(60));
            let room = self.random.below(9000);
            self.disk.inner().set_room(room);
        }
        if self.disk.inner().has_plan() || self.world.stop_after.is_some() || !self.random.chance(2) {
            return;
        }
        match self.random.below(12) {
            0 => self.stop("before decide"),
            1 => self.world.stop_after = Some(0),
            2 => self.world.stop_after = Some(1 + self.random.below(2)),
            3 => {
                let phase =
                    *self.random.pick(&[Phase::CommitSync, Phase::ReserveSync, Phase::Begin]).unwrap_or(&Phase::Begin);
                self.disk.inner().plan(Break::FailedSync, phase, 0);
            }
            _ => {
                let phase = *self.random.pick(&Phase::ALL[..8]).unwrap_or(&Phase::Commit);
                let what = if self.random.chance(60) { Break::PowerLoss } else { Break::Kill };
                let after = self.random.below(3);
                self.disk.inner().plan(what, phase, after);
            }
        }
    }

    fn stop(&mut self, phase: &'static str) {
        let what = if self.random.chance(60) { Break::PowerLoss } else { Break::Kill };
        self.world.coverage.fault(what.name(), phase);
        if phase == "before decide" && self.turn.is_some() {
            self.before = self.turn.as_ref().map(|turn| image(&turn.state, self.now));
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
        let written = std::mem::take(&mut self.disk.inner().written);
        self.ledger.written(&written);
        self.disk.inner().restart();
        self.note_faults();
        let leases = self.ledger.leased();
        self.world.restart(&leases);
        self.clients.restart();
        self.start();
    }

    fn take_turn(&mut self) {
        let Some(turn) = &mut self.turn else { return };
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
            let phase = if self.world.stop_after == Some(0) { "after sync, before effects" } else { "between effects" };
            return self.stop(phase);
        }
        if broken.is_some() {
            return self.restart();
        }
        let wrong = check(&turn.state);
        assert!(wrong.is_empty(), "turn {}: {wrong:#?}", self.world.turn);
        if self.full_until.is_some() {
            let ends = turn.state.totals.tasks_succeeded + turn.state.totals.tasks_dead;
            if ends > ends_before {
                self.world.coverage.see("full disk means", "an attempt ends all the same");
            }
            if turn.disk_full && !turn.state.indexes.lanes.is_empty() {
                self.world.coverage.see("full disk means", "nothing is leased");
            }
        }
        let (written, next) = (std::mem::take(&mut self.disk.inner().written), self.ledger.next_sequence);
        self.ledger.written(&written);
        let next = self.ledger.written_to().max(next);
        self.ledger.settle(next.max(1), &mut self.world.coverage);
        for (ticket, reply) in std::mem::take(&mut self.world.replies) {
            self.clients.answered(ticket, reply, &self.ledger, self.now, &mut self.world.coverage);
        }
        for (task, worker, attempt) in std::mem::take(&mut self.world.starts) {
            let lease = self.ledger.lease(task);
            assert_eq!(lease, Some((worker, attempt)), "{task:?} started and its lease is not in the log (I4)");
        }
        for run in std::mem::take(&mut self.world.ended) {
            let state = self.ledger.runs.get(&run).map(|run| run.state);
            assert!(state.is_some(), "run {run} is said to have ended and is not in the log (I1)");
        }
        self.note_faults();
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
            self.take_turn();
            let Some(turn) = &self.turn else { return };
            if self.inputs.is_empty() && turn.state.depth() == 0 && self.world.is_quiet() {
                return;
            }
        }
        panic!("the queue does not drain: depth {}", self.turn.as_ref().map_or(0, |turn| turn.state.depth()));
    }

    /// Every acknowledged run ended exactly once, or is stalled with its dead letters listed and filed.
    fn add_up(&mut self) {
        let Some(turn) = &self.turn else { return };
        let state = &turn.state;
        for run in self.clients.acknowledged.keys() {
            match self.ledger.runs[run].state {
                RunState::Active => panic!("run {run} neither ended nor stalled"),
                RunState::Stalled => {
                    let letters: Vec<_> = state.runs[run].letters().collect();
                    assert!(!letters.is_empty(), "run {run} is stalled without a dead letter");
                    for (_, letter) in letters {
                        assert!(state.letters.contains_key(&letter.entry), "entry {} is not listed", letter.entry);
                        assert!(
                            letter.filed && self.world.files.contains(&letter.entry),
                            "entry {} has no file",
                            letter.entry
                        );
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
        let letters: std::collections::BTreeSet<String> = state.letters.keys().cloned().collect();
        assert_eq!(letters, self.ledger.letters, "the dead letters in the state and in the log differ");
        let unfinished = count(RunState::Stalled);
        assert_eq!(state.runs.len() as u64, unfinished);
        // Cut off between two turns once more: nothing is lost when nothing happens.
        self.before = Some(image(state, self.now));
        self.disk.inner().stop(Break::PowerLoss);
        self.restart();
    }
}

/// All that must survive a restart, as text. What is only in memory is left out, what time alone changes is done.
fn image(state: &State, now: Millis) -> String {
    let mut state = state.clone();
    state.promote(now);
    state.expire(now, usize::MAX);
    (state.segment, state.refused_reports, state.totals.orphans) = (0, 0, 0);
    state.progress.clear();
    state.last_at = Millis(0);
    // Lanes are numbered in the order in which flows were seen, and that is not stored.
    let lanes = std::mem::take(&mut state.indexes.lanes);
    let mut ready: Vec<_> = lanes.busy().map(|lane| (lane.flow, lane.step, &lane.ready, &lane.solo)).collect();
    ready.sort();
    format!("{state:?} {ready:?}").replace("}, ", "},\n")
}
