//! The plan: single decisions, and a simulated pool in which nobody starves.

use proptest::prelude::*;

use super::*;

const P: [ProfileNo; 3] = [ProfileNo(0), ProfileNo(1), ProfileNo(2)];
const T: u64 = 100_000;

fn want(profile: ProfileNo, ready: u64, since: u64) -> Want {
    Want { profile, ready, since: Millis(since) }
}

/// A worker that has been ready for long and is idle since `T - idle_ms`.
fn worker(no: u64, profile: ProfileNo, running: u32, idle_ms: u64) -> WorkerView {
    WorkerView {
        worker: WorkerId(no),
        phase: Phase::Ready,
        profile: Some(profile),
        running,
        spent: false,
        draining: false,
        idle_since: Millis(T - idle_ms),
        ready_since: Millis(T - 10_000),
    }
}

fn shape(num: u32) -> Shape {
    Shape { num, warm_pool: 0, may_start: true }
}

fn decide(wants: &[Want], workers: &[WorkerView], num: u32) -> Plan {
    plan(wants, workers, &BTreeMap::new(), shape(num), Millis(T))
}

fn start(profile: ProfileNo) -> Action {
    Action::Start { profile, spare: None }
}

#[test]
fn a_free_place_goes_to_the_profile_that_was_served_least_recently() {
    let wants = [want(P[0], 9, T - 5_000), want(P[1], 1, T - 10)];
    assert_eq!(decide(&wants, &[], 1).actions, [start(P[0])]);
    let served = BTreeMap::from([(P[0], 7)]);
    assert_eq!(plan(&wants, &[], &served, shape(1), Millis(T)).actions, [start(P[1])]);
}

#[test]
fn further_places_follow_the_demand_and_then_the_hints() {
    let wants = [want(P[0], 2, T), want(P[1], 0, T)];
    assert_eq!(decide(&wants, &[], 3).actions, [start(P[0]), start(P[0]), start(P[1])]);
}

#[test]
fn without_a_free_place_the_longest_idle_worker_that_nobody_needs_is_replaced() {
    let workers = [worker(1, P[0], 0, 10), worker(2, P[1], 0, 500), worker(3, P[0], 1, 900)];
    let plan = decide(&[want(P[2], 1, T)], &workers, 3);
    assert_eq!(plan.actions, [Action::Retire { worker: WorkerId(2) }]);
}

#[test]
fn a_worker_whose_profile_has_work_is_taken_only_for_an_overdue_one() {
    let workers = [worker(1, P[0], 0, 500)];
    let waiting = |since| [want(P[0], 5, T - 9_000), want(P[2], 1, since)];
    let early = decide(&waiting(T - 250), &workers, 1);
    assert_eq!((early.actions, early.again_at), (vec![], Some(Millis(T + 1))));
    assert_eq!(decide(&waiting(T - 251), &workers, 1).actions, [Action::Retire { worker: WorkerId(1) }]);
}

#[test]
fn for_an_overdue_profile_the_worker_that_is_empty_soonest_is_drained_and_then_replaced() {
    let wants = [want(P[0], 50, T - 9_000), want(P[1], 9, T - 9_000), want(P[2], 1, T - 300)];
    let mut workers = [worker(1, P[0], 9, 0), worker(2, P[0], 3, 0), worker(3, P[1], 1, 0)];
    // Profile 0 has two workers, so it gives one.
    assert_eq!(decide(&wants, &workers, 3).actions, [Action::Drain { worker: WorkerId(2) }]);
    workers[1].draining = true;
    assert_eq!(decide(&wants, &workers, 3).actions, []);
    workers[1].running = 0;
    assert_eq!(decide(&wants, &workers, 3).actions, [Action::Retire { worker: WorkerId(2) }]);
    workers[1].phase = Phase::Dying;
    assert_eq!(decide(&wants, &workers, 3).actions, [], "its place counts until it is reaped");
    assert_eq!(decide(&wants, &[workers[0], workers[2]], 3).actions, [start(P[2])]);
}

#[test]
fn a_draining_worker_goes_on_when_nobody_waits_any_more() {
    let mut draining = worker(1, P[0], 2, 0);
    draining.draining = true;
    let wants = [want(P[0], 5, T), want(P[1], 0, T)];
    assert_eq!(decide(&wants, &[draining, worker(2, P[0], 1, 0)], 2).actions, [Action::Keep { worker: WorkerId(1) }]);
}

#[test]
fn a_profile_keeps_a_new_worker_long_enough_to_get_something_done() {
    let mut new = worker(1, P[0], 0, 0);
    new.ready_since = Millis(T - 100);
    let wants = [want(P[0], 5, T - 9_000), want(P[1], 5, T - 9_000)];
    let plan = decide(&wants, &[new], 1);
    assert_eq!((plan.actions, plan.again_at), (vec![], Some(Millis(T + 150))));
}

#[test]
fn a_second_worker_takes_only_a_place_that_was_idle_for_a_while() {
    let wants = [want(P[0], 5, T)];
    let short = decide(&wants, &[worker(1, P[0], 1, 0), worker(2, P[1], 0, 100)], 2);
    assert_eq!((short.actions, short.again_at), (vec![], Some(Millis(T + 150))));
    let long = decide(&wants, &[worker(1, P[0], 1, 0), worker(2, P[1], 0, 250)], 2);
    assert_eq!(long.actions, [Action::Retire { worker: WorkerId(2) }]);
}

#[test]
fn a_spent_worker_is_retired_once_it_is_empty() {
    let mut spent = worker(1, P[0], 1, 0);
    spent.spent = true;
    assert_eq!(decide(&[want(P[0], 1, T - 900)], &[spent], 1).actions, [], "its place is waited for");
    spent.running = 0;
    assert_eq!(decide(&[], &[spent], 1).actions, [Action::Retire { worker: WorkerId(1) }]);
}

#[test]
fn spare_processes_are_used_first_and_made_good() {
    let mut spare = worker(4, P[0], 0, 0);
    (spare.phase, spare.profile) = (Phase::Spare, None);
    let shape = Shape { num: 1, warm_pool: 1, may_start: true };
    let plan = plan(&[want(P[1], 1, T)], &[spare], &BTreeMap::new(), shape, Millis(T));
    assert_eq!(plan.actions, [Action::Start { profile: P[1], spare: Some(WorkerId(4)) }, Action::StartSpare]);
}

#[test]
fn nothing_starts_while_starts_have_to_wait() {
    let shape = Shape { num: 2, warm_pool: 2, may_start: false };
    assert_eq!(plan(&[want(P[0], 1, T - 900)], &[], &BTreeMap::new(), shape, Millis(T)).actions, []);
}

/// A pool without processes: each profile has tasks of a given length, and time goes on in steps of 5 ms.
struct Sim {
    now: u64,
    num: u32,
    concurrency: usize,
    /// When each waiting task of a profile became ready.
    waiting: Vec<Vec<u64>>,
    /// The length of the profile's tasks; a profile with `endless` gets a new one for each that starts.
    length_ms: Vec<u64>,
    endless: Vec<bool>,
    workers: BTreeMap<u64, SimWorker>,
    served: BTreeMap<ProfileNo, u64>,
    next: u64,
    started: Vec<u64>,
    longest_wait_ms: Vec<u64>,
}

struct SimWorker {
    view: WorkerView,
    until: u64,
    ends: Vec<u64>,
}

impl Sim {
    fn new(num: u32, profiles: &[(u64, u64, bool)]) -> Self {
        let count = profiles.len();
        Self {
            now: T,
            num,
            concurrency: 4,
            waiting: profiles.iter().map(|&(tasks, ..)| vec![T; usize::try_from(tasks).unwrap()]).collect(),
            length_ms: profiles.iter().map(|profile| profile.1).collect(),
            endless: profiles.iter().map(|profile| profile.2).collect(),
            workers: BTreeMap::new(),
            served: BTreeMap::new(),
            next: 0,
            started: vec![0; count],
            longest_wait_ms: vec![0; count],
        }
    }

    fn step(&mut self) {
        self.now += 5;
        let now = self.now;
        self.workers.retain(|_, worker| worker.view.phase != Phase::Dying || now < worker.until);
        for worker in self.workers.values_mut() {
            if worker.view.phase == Phase::Starting && now >= worker.until {
                (worker.view.phase, worker.view.ready_since) = (Phase::Ready, Millis(now));
                worker.view.idle_since = Millis(now);
            }
            let before = worker.ends.len();
            worker.ends.retain(|&end| now < end);
            if before > 0 && worker.ends.is_empty() {
                worker.view.idle_since = Millis(now);
            }
            worker.view.running = u32::try_from(worker.ends.len()).unwrap();
        }
        self.plan();
        self.lease();
    }

    fn plan(&mut self) {
        let wants: Vec<Want> = (0u32..)
            .zip(&self.waiting)
            .filter_map(|(no, tasks)| Some(want(ProfileNo(no), tasks.len() as u64, *tasks.first()?)))
            .collect();
        let views: Vec<_> = self.workers.values().map(|worker| worker.view).collect();
        for action in plan(&wants, &views, &self.served, shape(self.num), Millis(self.now)).actions {
            match action {
                Action::Start { profile, .. } => {
                    self.next += 1;
                    let mut view = worker(self.next, profile, 0, 0);
                    view.phase = Phase::Starting;
                    self.workers.insert(self.next, SimWorker { view, until: self.now + 5, ends: Vec::new() });
                    self.served.insert(profile, self.next);
                }
                Action::Retire { worker } => {
                    let worker = self.workers.get_mut(&worker.0).unwrap();
                    assert!(worker.ends.is_empty() && worker.view.phase == Phase::Ready, "only an empty worker ends");
                    (worker.view.phase, worker.until) = (Phase::Dying, self.now + 5);
                }
                Action::Drain { worker } | Action::Keep { worker } => {
                    self.workers.get_mut(&worker.0).unwrap().view.draining = matches!(action, Action::Drain { .. });
                }
                Action::StartSpare => panic!("no spare process is wanted"),
            }
        }
        assert!(self.workers.len() <= self.num as usize, "never more than -n processes");
    }

    /// Gives ready tasks to workers of their profile.
    fn lease(&mut self) {
        for worker in self.workers.values_mut() {
            if worker.view.phase != Phase::Ready || worker.view.draining {
                continue;
            }
            let no = worker.view.profile.unwrap().0 as usize;
            while worker.ends.len() < self.concurrency && !self.waiting[no].is_empty() {
                let since = self.waiting[no].remove(0);
                worker.ends.push(self.now + self.length_ms[no]);
                self.started[no] += 1;
                self.longest_wait_ms[no] = self.longest_wait_ms[no].max(self.now - since);
                if self.endless[no] {
                    // As old as its queue: a backlog that never ends.
                    self.waiting[no].push(since);
                }
            }
            worker.view.running = u32::try_from(worker.ends.len()).unwrap();
        }
    }
}

#[test]
fn forty_profiles_on_two_workers_are_all_done_and_none_starves() {
    let mut sim = Sim::new(2, &[(20, 30, false); 40]);
    let mut steps = 0;
    while sim.waiting.iter().any(|tasks| !tasks.is_empty()) {
        sim.step();
        steps += 1;
        assert!(steps < 20_000, "all are done");
    }
    // 40 profiles, each at most a tenure, a drain and a start, on two workers.
    let longest = sim.longest_wait_ms.iter().max().unwrap();
    assert!(*longest < 40 / 2 * (TENURE_MS + 30 + 20) + OVERDUE_MS, "{longest}");
}

#[test]
fn endless_backlogs_with_the_oldest_tasks_do_not_keep_others_out() {
    let mut profiles = vec![(1_000, 20, true); 5];
    profiles.extend([(1, 20, false); 5]);
    let mut sim = Sim::new(1, &profiles);
    for _ in 0..2_000 {
        sim.step();
    }
    assert!(sim.started.iter().all(|&started| started > 0), "{:?}", sim.started);
    let endless = &sim.started[..5];
    assert!(endless.iter().max().unwrap() < &(3 * endless.iter().min().unwrap()), "fair shares: {endless:?}");
}

proptest! {
    #[test]
    fn every_profile_with_ready_tasks_gets_a_worker_within_a_bound(
        num in 1u32..5,
        profiles in prop::collection::vec((0u64..30, 5u64..400, any::<bool>()), 1..15),
    ) {
        let mut sim = Sim::new(num, &profiles);
        let longest_task = profiles.iter().map(|profile| profile.1).max().unwrap();
        // Everybody's turn once, each with its tenure, the drain of the longest task, and the exchange of processes.
        let bound_ms = OVERDUE_MS + (profiles.len() as u64 + 1) * (TENURE_MS + longest_task + 30);
        for _ in 0..bound_ms / 5 {
            sim.step();
        }
        for (no, profile) in profiles.iter().enumerate() {
            prop_assert!(profile.0 == 0 || sim.started[no] > 0, "profile {} of {:?} starved", no, profiles);
        }
    }
}
