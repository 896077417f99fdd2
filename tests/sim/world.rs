//! What the turn acts on: simulated workers, clients' replies, the files of dead letters. Workers run, fail in every
//! way, die, and report late, twice, or what is not theirs.

use std::collections::{BTreeMap, VecDeque};

use tm_core::{
    api::Reply,
    code::{self, Class},
    id::{Attempt, Digest, FlowNo, RunId, TaskRef, WorkerId},
    json::{Json, Payload},
    queue::{
        decide::{Runnable, purged_entries},
        effect::{Effect, Input, Outcome, Report, Ticket},
        lanes::{ProfileNo, Slot, Want},
        results::Ended,
        run::FinishedRun,
        state::{Registered, State},
    },
    time::Millis,
    wire::{Failure, Usage},
};
use tm_supervisor::turn::Shell;

use crate::{
    coverage::Coverage,
    disk::SimDisk,
    faults::{Fault, Without},
    flows::{Expressions, NoBlobs},
    ledger::MARK,
    letters::Letters,
    phases::Break,
    random::Random,
};

const WORKERS_MAX: usize = 4;
const SLOTS: u32 = 3;
const NEGLECTED_TURNS: u64 = 25;

struct Worker {
    profile: ProfileNo,
    running: BTreeMap<TaskRef, (Attempt, Millis)>,
}

/// A step that a worker was told to run.
pub(crate) struct Start {
    pub(crate) task: TaskRef,
    pub(crate) worker: WorkerId,
    pub(crate) attempt: Attempt,
    /// Of the step, as the state says.
    pub(crate) component: Option<Digest>,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) coverage: Coverage,
    pub(crate) disk: SimDisk,
    workers: BTreeMap<WorkerId, Worker>,
    next_worker: u64,
    /// Starts per task, over all restarts: they strictly increase (I3, I4).
    started: BTreeMap<TaskRef, Attempt>,
    /// Inputs for later turns, by the turn.
    later: VecDeque<(u64, Input)>,
    pub(crate) turn: u64,
    pub(crate) replies: Vec<(Ticket, Reply)>,
    pub(crate) ended: Vec<RunId>,
    /// What was started in this turn.
    pub(crate) starts: Vec<Start>,
    pub(crate) letters: Letters,
    without: Without,
    waiting: Option<(TaskRef, u64)>,
    /// Everything succeeds from now on.
    pub(crate) kind: bool,
    pub(crate) slow: bool,
    /// The process stops before this many effects are out.
    pub(crate) stop_after: Option<(u64, Break)>,
    pub(crate) stopped: bool,
    let_out: u64,
}

impl World {
    pub(crate) fn new(random: Random, disk: SimDisk, without: Without) -> Self {
        Self {
            random,
            coverage: Coverage::default(),
            letters: Letters::new(&disk),
            without,
            waiting: None,
            disk,
            workers: BTreeMap::new(),
            next_worker: 1,
            started: BTreeMap::new(),
            later: VecDeque::new(),
            turn: 0,
            replies: Vec::new(),
            ended: Vec::new(),
            starts: Vec::new(),
            kind: false,
            slow: false,
            stop_after: None,
            stopped: false,
            let_out: 0,
        }
    }

    /// The workers die with their supervisor; what they had sent may still arrive at the next one.
    pub(crate) fn restart(&mut self, state_leases: &[(TaskRef, WorkerId, Attempt)]) {
        self.workers.clear();
        self.later.clear();
        self.replies.clear();
        self.ended.clear();
        self.starts.clear();
        self.letters.restart();
        (self.stop_after, self.stopped, self.let_out) = (None, false, 0);
        // Numbers are unique while a supervisor lives, and no longer.
        if self.random.chance(50) {
            self.next_worker = 1;
        }
        self.next_worker += 1000 * self.random.below(2);
        if let Some(&(task, worker, attempt)) = self.random.pick(state_leases)
            && self.lies(50)
        {
            self.coverage.fault("late report", "its supervisor is another one");
            self.send_in(1 + self.random.clone().below(3), lie(worker, task, attempt));
        }
    }

    /// Whether something false is reported, in `percent` of 100 cases.
    fn lies(&mut self, percent: u64) -> bool {
        self.random.chance(percent) && !self.kind && !self.without.has(Fault::FalseReport)
    }

    /// Nothing runs and nothing is on its way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.letters.is_quiet()
            && self.later.is_empty()
            && self.workers.values().all(|worker| worker.running.is_empty())
    }

    fn send_in(&mut self, turns: u64, input: Input) {
        self.later.push_back((self.turn + turns, input));
    }

    /// What arrives from the workers in this turn.
    pub(crate) fn arrivals(&mut self, now: Millis, inputs: &mut VecDeque<Input>) {
        self.turn += 1;
        self.let_out = 0;
        let turn = self.turn;
        let (due, rest) = std::mem::take(&mut self.later).into_iter().partition(|(at, _)| *at <= turn);
        self.later = rest;
        let due: VecDeque<(u64, Input)> = due;
        inputs.extend(due.into_iter().map(|(_, input)| input));
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in ids {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            let done: Vec<(TaskRef, Attempt)> = worker
                .running
                .iter()
                .filter(|(_, (_, until))| *until <= now)
                .map(|(task, (attempt, _))| (*task, *attempt))
                .collect();
            worker.running.retain(|task, _| done.iter().all(|(ended, _)| ended != task));
            for (task, attempt) in done {
                let input = report(id, task, attempt, outcome(&mut self.random, self.kind, task, attempt));
                if self.lies(3) {
                    let (turns, place) = match self.random.below(2) {
                        0 => (0, "in the same turn"),
                        more => (more + self.random.below(4), "in a later turn"),
                    };
                    self.coverage.fault("duplicate report", place);
                    if turns == 0 {
                        inputs.push_back(input.clone());
                        inputs.push_back(lie(id, task, attempt));
                        continue;
                    }
                    self.later.push_back((turn + turns, lie(id, task, attempt)));
                }
                if !self.kind && self.random.chance(2) {
                    inputs.push_back(Input::Progress { from: id, task, attempt, percent: 50 });
                }
                inputs.push_back(input);
            }
        }
    }

    /// Writes files of dead letters, behind the turns.
    pub(crate) fn write_letters(&mut self, state: &State, inputs: &mut VecDeque<Input>) {
        self.letters.work(state, self.turn, &mut self.random, inputs);
    }

    /// One worker process dies, and what it had sent arrives late.
    pub(crate) fn kill_worker(&mut self, inputs: &mut VecDeque<Input>) {
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        let Some(&id) = self.random.pick(&ids) else { return };
        let Some(worker) = self.workers.remove(&id) else { return };
        let place = match worker.running.len() {
            0 => "idle",
            1 => "one step runs",
            _ => "several steps run",
        };
        self.coverage.fault("worker death", place);
        inputs.push_back(Input::WorkerGone { worker: id });
        for (task, (attempt, _)) in worker.running {
            if self.lies(50) {
                self.coverage.fault("late report", "its worker is gone");
                let turns = self.random.below(5);
                self.send_in(turns, lie(id, task, attempt));
            }
        }
    }

    /// A worker claims what is not its own.
    pub(crate) fn forge(&mut self, leases: &[(TaskRef, WorkerId, Attempt)], inputs: &mut VecDeque<Input>) {
        let lease = self.random.pick(leases).copied();
        let other = WorkerId(self.next_worker + 7);
        let liar = self.workers.keys().copied().find(|id| lease.is_none_or(|(_, worker, _)| *id != worker));
        let (place, input) = match (self.random.below(4), lease) {
            (0, Some((task, _, attempt))) => ("another worker's task", lie(liar.unwrap_or(other), task, attempt)),
            (1, Some((task, worker, attempt))) if attempt > 1 => ("a stale attempt", lie(worker, task, attempt - 1)),
            (2, Some((task, worker, attempt))) => ("an attempt to come", lie(worker, task, attempt + 1)),
            _ => (
                "an unknown run",
                lie(other, TaskRef { run: RunId(self.random.next().into()), step: 0, item: None }, 1),
            ),
        };
        self.coverage.fault("forged report", place);
        inputs.push_back(input);
    }

    /// A ready task that waits for turns although a worker has room for it: no tenant waits behind another's backlog.
    pub(crate) fn neglected(&mut self, state: &State) -> Option<TaskRef> {
        let idle = self.idle(state);
        let turns = match (self.waiting, idle) {
            (Some((before, turns)), Some(task)) if before == task => turns + 1,
            _ => 1,
        };
        self.waiting = idle.map(|task| (task, turns));
        // What makes room may come after the leases of a turn, and runs that are overdue take room and give it back.
        idle.filter(|_| turns > NEGLECTED_TURNS)
    }

    fn idle(&self, state: &State) -> Option<TaskRef> {
        let suspects: Vec<ProfileNo> =
            state.indexes.lanes.busy().filter(|lane| !lane.solo.is_empty()).map(|lane| lane.profile).collect();
        let has_room = |profile: ProfileNo| {
            self.workers.values().any(|worker| worker.profile == profile && worker.running.len() < SLOTS as usize)
        };
        // A worker may be left to run empty, or run one suspect alone.
        let lanes = state.indexes.lanes.busy().filter(|lane| !suspects.contains(&lane.profile));
        lanes.filter(|lane| has_room(lane.profile)).find_map(|lane| lane.ready.first()).map(|rank| rank.task())
    }

    fn started(&mut self, state: &State, worker: WorkerId, task: TaskRef, attempt: Attempt, now: Millis) {
        let component = state.step_of(task).map(|(_, step)| step.component);
        self.starts.push(Start { task, worker, attempt, component });
        let before = self.started.insert(task, attempt).unwrap_or(0);
        assert!(attempt > before, "task {task:?} starts with attempt {attempt} after {before} (I3)");
        let running = self.workers.iter().find(|(_, other)| other.running.contains_key(&task)).map(|(id, _)| *id);
        assert_eq!(running, None, "task {task:?} runs on two workers at once (I3)");
        let Some(found) = self.workers.get_mut(&worker) else {
            panic!("a step is handed to {worker:?}, which is gone")
        };
        assert!(found.running.len() < SLOTS as usize, "worker {worker:?} is given more than it has room for");
        let takes_ms = match (self.random.chance(5), self.slow) {
            (true, _) => 400,
            (false, true) => 100 + self.random.below(150),
            (false, false) => self.random.below(60),
        };
        found.running.insert(task, (attempt, now.plus(takes_ms)));
    }
}

impl Shell for World {
    fn slots(&mut self) -> Vec<Slot> {
        self.workers
            .iter()
            .map(|(&worker, found)| Slot {
                worker,
                profile: found.profile,
                free: SLOTS - u32::try_from(found.running.len()).unwrap_or(SLOTS),
                idle: found.running.is_empty(),
            })
            .collect()
    }

    fn flow(&mut self, _: FlowNo, _: &Registered) {}

    fn runnable(&self, _: FlowNo, _: u16) -> Runnable {
        Runnable::Yes
    }

    fn wanted(&mut self, _: &State, wants: &[Want], _: Millis) {
        for want in wants {
            if self.workers.values().any(|worker| worker.profile == want.profile) && !self.random.chance(10) {
                continue;
            }
            if self.workers.len() >= WORKERS_MAX {
                let idle = self.workers.iter().find(|(_, worker)| worker.running.is_empty()).map(|(id, _)| *id);
                let Some(idle) = idle else { continue };
                self.workers.remove(&idle);
            }
            let id = WorkerId(self.next_worker);
            self.next_worker += 1;
            self.workers.insert(id, Worker { profile: want.profile, running: BTreeMap::new() });
        }
    }

    fn perform(&mut self, ended: Ended<'_>, effect: Effect, now: Millis) {
        if self.stop_after.is_some_and(|(after, _)| after == self.let_out) {
            self.stopped = true;
        }
        if self.stopped || self.disk.inner().broken.is_some() {
            return;
        }
        self.let_out += 1;
        let mut disk = self.disk.inner();
        assert!(!disk.storage.has_unsynced_commit(), "an effect leaves before its events are synced (I1): {effect:?}");
        disk.promise();
        drop(disk);
        match effect {
            Effect::Reply { ticket, reply } => self.replies.push((ticket, reply)),
            Effect::Start { worker, task, attempt } => self.started(ended.state, worker, task, attempt, now),
            Effect::Cancel { worker, task, attempt } => {
                if let Some(found) = self.workers.get_mut(&worker)
                    && found.running.remove(&task).is_some()
                    && self.lies(50)
                {
                    // A cancelled run is over; one whose time was up is stalled.
                    let is_stalled = ended.state.runs.contains_key(&task.run);
                    let why = if is_stalled { "its run was over its time" } else { "its run was cancelled" };
                    self.coverage.fault("late report", why);
                    let turns = self.random.below(3);
                    self.send_in(turns, lie(worker, task, attempt));
                }
            }
            Effect::FileEntry { entry } => self.letters.file(entry),
            Effect::Make(making) => {
                let made = making.make(&Expressions, &NoBlobs);
                let turns = 1 + self.random.below(4);
                self.send_in(turns, Input::Made { run: making.run, step: making.step, made });
            }
            Effect::ArchiveEntry { entry } => self.letters.archive(entry),
            Effect::ArchiveRun { run, flow, at } => {
                purged_entries(&run, &flow, at).for_each(|entry| self.letters.archive(Box::new(entry)));
            }
            Effect::RunEnded { run } => self.ended.push(run),
        }
    }

    fn keeps_up(&self) -> bool {
        self.letters.keeps_up()
    }

    fn forgotten(&mut self, _: &FinishedRun) {}
}

fn report(from: WorkerId, task: TaskRef, attempt: Attempt, outcome: Outcome) -> Input {
    let usage = Usage { fuel: 5, peak_memory_bytes: 65536, exec_us: 900 };
    Input::Report { from, report: Box::new(Report { task, attempt, outcome, usage }) }
}

/// A report that must be refused.
fn lie(from: WorkerId, task: TaskRef, attempt: Attempt) -> Input {
    let output = Payload::Inline(Json::of(MARK));
    let outcome = if attempt.is_multiple_of(2) {
        Outcome::Succeeded { output, artifacts: Vec::new() }
    } else {
        failure(Class::Fatal, code::TRAP, MARK)
    };
    report(from, task, attempt, outcome)
}

fn failure(class: Class, code: &str, message: &str) -> Outcome {
    let retry_after_ms = (class == Class::RateLimited).then_some(30);
    Outcome::Failed(Failure { by_host: true, class, code: code.into(), message: message.into(), retry_after_ms })
}

fn outcome(random: &mut Random, kind: bool, task: TaskRef, attempt: Attempt) -> Outcome {
    match random.below(if kind { 70 } else { 100 }) {
        0..75 => {
            let items: Vec<u64> = (0..random.below(6)).collect();
            let output = serde_json::json!({ "items": items, "step": task.step, "attempt": attempt });
            Outcome::Succeeded { output: Payload::Inline(Json::of(&output)), artifacts: Vec::new() }
        }
        75..88 => failure(Class::Retryable, code::TRAP, "it trapped"),
        88..92 => failure(Class::RateLimited, code::RATE_LIMITED, "slower"),
        92..95 => failure(Class::InvalidInput, code::INVALID_INPUT, "not like this"),
        95..97 => failure(Class::Fatal, code::FUEL_EXHAUSTED, "no fuel"),
        _ => Outcome::NotStarted,
    }
}
