//! A simulated pool: places are shared by weight, nobody starves, and few processes are exchanged.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Tasks of one length, of a profile of a tenant.
#[derive(Clone, Copy, Debug)]
struct Load {
    tenant: u32,
    weight: u32,
    tasks: usize,
    length_ms: u64,
    /// A new task for each that starts: a backlog that never ends.
    endless: bool,
}

/// Loads of equal tenants with one profile each.
fn equal(count: u32, tasks: usize, length_ms: u64, endless: bool) -> Vec<Load> {
    (0..count).map(|tenant| Load { tenant, weight: 1, tasks, length_ms, endless }).collect()
}

/// An endless backlog of a tenant's profile.
fn endless(tenant: u32, weight: u32, length_ms: u64) -> Load {
    Load { tenant, weight, tasks: 1_000, length_ms, endless: true }
}

/// What the exchange of two processes takes here: one is reaped, one becomes ready.
const EXCHANGE_MS: u64 = 10;
/// Time goes on in steps.
const STEP_MS: u64 = 5;

/// A pool without processes.
struct Sim {
    now: u64,
    num: u32,
    concurrency: u32,
    loads: Vec<Load>,
    /// When each waiting task of a profile became ready.
    waiting: Vec<VecDeque<u64>>,
    workers: BTreeMap<u64, SimWorker>,
    accounts: Accounts,
    next: u64,
    retired: u64,
    started: Vec<u64>,
    longest_wait_ms: Vec<u64>,
    /// By profile: the time for which it held places.
    held_ms: Vec<u64>,
    /// Time for which places were held by nobody, or by those who had nothing to do, while someone had.
    wasted_ms: u64,
}

struct SimWorker {
    view: WorkerView,
    until: u64,
    ends: Vec<u64>,
}

impl Sim {
    fn new(num: u32, loads: &[Load]) -> Self {
        let (count, mut accounts) = (loads.len(), Accounts::default());
        for (no, load) in (0..).zip(loads) {
            accounts.learn(ProfileNo(no), &load.tenant.to_string(), load.weight);
        }
        Self {
            now: T,
            num,
            concurrency: 4,
            loads: loads.to_vec(),
            waiting: loads.iter().map(|load| VecDeque::from(vec![T; load.tasks])).collect(),
            workers: BTreeMap::new(),
            accounts,
            next: 0,
            retired: 0,
            started: vec![0; count],
            longest_wait_ms: vec![0; count],
            held_ms: vec![0; count],
            wasted_ms: 0,
        }
    }

    fn run(&mut self, for_ms: u64) {
        for _ in 0..for_ms / STEP_MS {
            self.step();
        }
    }

    fn step(&mut self) {
        for worker in self.workers.values() {
            self.held_ms[worker.view.profile.unwrap().0 as usize] += STEP_MS;
        }
        let used = self.workers.values().filter(|w| w.view.phase == Phase::Ready && w.view.running > 0).count() as u64;
        if self.waiting.iter().any(|tasks| !tasks.is_empty()) {
            self.wasted_ms += (u64::from(self.num) - used) * STEP_MS;
        }
        self.now += STEP_MS;
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
            worker.count(self.concurrency);
        }
        self.plan();
        self.lease();
    }

    fn views(&self) -> Vec<WorkerView> {
        self.workers.values().map(|worker| worker.view).collect()
    }

    fn plan(&mut self) {
        let wants: Vec<Want> = (0u32..)
            .zip(&self.waiting)
            .filter_map(|(no, tasks)| Some(want(ProfileNo(no), tasks.len() as u64, *tasks.front()?)))
            .collect();
        let (now, shape) = (Millis(self.now), shape(self.num));
        self.accounts.settle(now);
        for action in plan(&wants, &self.views(), &self.accounts, shape, now).actions {
            match action {
                Action::Start { profile, .. } => {
                    self.next += 1;
                    let mut view = worker(self.next, profile, 0, 0);
                    (view.phase, view.free) = (Phase::Starting, self.concurrency);
                    let until = self.now + EXCHANGE_MS / 2;
                    self.workers.insert(self.next, SimWorker { view, until, ends: Vec::new() });
                    self.accounts.served(profile);
                }
                Action::Retire { worker } => {
                    let worker = self.workers.get_mut(&worker.0).unwrap();
                    assert!(worker.ends.is_empty() && worker.view.phase == Phase::Ready, "only an empty worker ends");
                    (worker.view.phase, worker.until) = (Phase::Dying, self.now + EXCHANGE_MS / 2);
                    worker.view.free = 0;
                    self.retired += 1;
                }
                Action::Drain { worker } | Action::Keep { worker } => {
                    self.workers.get_mut(&worker.0).unwrap().view.draining = matches!(action, Action::Drain { .. });
                }
                Action::StartSpare => panic!("no spare process is wanted"),
            }
        }
        assert!(self.workers.len() <= self.num as usize, "never more than -n processes");
        let views = self.views();
        self.accounts.observe(&wants, &views);
    }

    /// Gives ready tasks to workers of their profile.
    fn lease(&mut self) {
        for worker in self.workers.values_mut() {
            if worker.view.phase != Phase::Ready || worker.view.draining {
                continue;
            }
            let no = worker.view.profile.unwrap().0 as usize;
            while worker.ends.len() < self.concurrency as usize
                && let Some(since) = self.waiting[no].pop_front()
            {
                worker.ends.push(self.now + self.loads[no].length_ms);
                self.started[no] += 1;
                self.longest_wait_ms[no] = self.longest_wait_ms[no].max(self.now - since);
                if self.loads[no].endless {
                    // As old as its queue.
                    self.waiting[no].push_back(since);
                }
            }
            worker.count(self.concurrency);
        }
    }

    /// The time for which each tenant held places.
    fn held_by_tenant(&self) -> BTreeMap<u32, u64> {
        let mut held = BTreeMap::new();
        for (load, held_ms) in self.loads.iter().zip(&self.held_ms) {
            *held.entry(load.tenant).or_insert(0) += held_ms;
        }
        held
    }
}

impl SimWorker {
    fn count(&mut self, concurrency: u32) {
        self.view.running = u32::try_from(self.ends.len()).unwrap();
        self.view.free = if self.view.draining { 0 } else { concurrency - self.view.running };
    }
}

#[test]
fn forty_profiles_on_two_workers_are_all_done_and_none_starves() {
    let mut sim = Sim::new(2, &equal(40, 20, 30, false));
    let mut steps = 0;
    while sim.waiting.iter().any(|tasks| !tasks.is_empty()) {
        sim.step();
        steps += 1;
        assert!(steps < 20_000, "all are done");
    }
    // 40 profiles, each at most a tenure, a drain and a start, on two workers.
    let longest = sim.longest_wait_ms.iter().max().unwrap();
    assert!(*longest < 40 / 2 * (TENURE_MS + 30 + 20), "{longest}");
}

#[test]
fn endless_backlogs_with_the_oldest_tasks_do_not_keep_others_out() {
    let mut profiles = equal(5, 1_000, 20, true);
    profiles.extend(equal(10, 1, 20, false).split_off(5));
    let mut sim = Sim::new(1, &profiles);
    sim.run(10_000);
    assert!(sim.started.iter().all(|&started| started > 0), "{:?}", sim.started);
    let endless = &sim.started[..5];
    assert!(endless.iter().max().unwrap() < &(3 * endless.iter().min().unwrap()), "fair shares: {endless:?}");
}

#[test]
fn on_four_workers_weights_of_three_to_one_are_three_workers_to_one_and_stay_so() {
    let mut sim = Sim::new(4, &[endless(0, 3, 20), endless(1, 1, 20)]);
    sim.run(60_000);
    assert_eq!((sim.retired, sim.next), (0, 4));
    assert!(sim.started[0] >= sim.started[1] * 29 / 10 && sim.started[0] <= sim.started[1] * 31 / 10);
}

#[test]
fn one_worker_serves_tenants_in_turns_as_long_as_their_weights() {
    for (weights, round_ms) in [((1, 1), 520), ((3, 1), 350), ((1, 10), 570), ((100, 1), 5_100)] {
        let mut sim = Sim::new(1, &[endless(0, weights.0, 5), endless(1, weights.1, 5)]);
        sim.run(120_000);
        let held = sim.held_by_tenant();
        let (got, wanted) = (held[&0] as f64 / held[&1] as f64, f64::from(weights.0) / f64::from(weights.1));
        assert!((0.9..1.1).contains(&(got / wanted)), "{weights:?}: {held:?}");
        let turn_ms = 2 * 120_000 / sim.retired;
        assert!((round_ms * 8 / 10..round_ms * 12 / 10).contains(&turn_ms), "{weights:?}: a round of {turn_ms} ms");
    }
}

#[test]
fn a_new_tenants_task_starts_within_two_lengths_of_a_backlogs_tasks() {
    for (num, length_ms) in [(1, 400), (2, 400), (2, 5), (4, 3_000)] {
        for weight in [1, 10] {
            let mut sim =
                Sim::new(num, &[endless(0, weight, length_ms), Load { tasks: 0, ..endless(1, 1, length_ms) }]);
            sim.loads[1].endless = false;
            sim.run(20_000);
            sim.waiting[1].push_back(sim.now);
            sim.run(2 * length_ms + TENURE_MS + 100);
            let waited_ms = sim.longest_wait_ms[1];
            assert_eq!(sim.started[1], 1, "on {num} with weight {weight}");
            assert!(
                waited_ms <= TENURE_MS + length_ms + EXCHANGE_MS + STEP_MS,
                "waited {waited_ms} ms for {length_ms}"
            );
        }
    }
}

#[test]
fn a_tenant_that_asks_again_and_again_gets_no_more_than_its_share() {
    let mut sim = Sim::new(1, &[endless(0, 9, 20), Load { tasks: 0, ..endless(1, 1, 20) }]);
    sim.loads[1].endless = false;
    for _ in 0..120_000 / STEP_MS {
        // One task at a time, and nothing for a moment after it.
        if sim.waiting[1].is_empty() && sim.workers.values().all(|w| w.view.profile != Some(P[1]) || w.ends.is_empty())
        {
            sim.waiting[1].push_back(sim.now);
        }
        sim.step();
    }
    let held = sim.held_by_tenant();
    assert!(held[&1] * 7 < held[&0], "{held:?}");
    assert!(sim.started[1] > 50, "and it gets its share: {:?}", sim.started);
}

#[test]
fn places_that_a_tenant_leaves_are_the_others_and_come_back() {
    let mut sim = Sim::new(4, &[endless(0, 3, 20), Load { tasks: 4_000, ..endless(1, 1, 20) }]);
    sim.loads[1].endless = false;
    sim.run(2_000);
    assert_eq!(sim.workers.values().filter(|w| w.view.profile == Some(P[1])).count(), 1);
    sim.waiting[0].clear();
    sim.run(1_000);
    assert_eq!(sim.workers.values().filter(|w| w.view.profile == Some(P[1])).count(), 4);
    sim.waiting[0].extend(vec![sim.now; 100]);
    sim.run(1_000);
    assert_eq!(sim.workers.values().filter(|w| w.view.profile == Some(P[0])).count(), 3);
}

fn loads() -> impl Strategy<Value = Vec<Load>> {
    let profile = (5u64..120, 1usize..3).prop_map(|(length_ms, profiles)| (length_ms, profiles));
    let tenant = (1u32..12, profile);
    prop::collection::vec(tenant, 2..5).prop_map(|tenants| {
        let of = |(tenant, (weight, (length_ms, profiles))): (u32, (u32, (u64, usize)))| {
            vec![endless(tenant, weight, length_ms); profiles]
        };
        (0..).zip(tenants).flat_map(of).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn tenants_hold_places_by_weight_and_few_are_exchanged(num in 1u32..6, loads in loads()) {
        let mut sim = Sim::new(num, &loads);
        sim.run(5_000);
        let (before, retired) = (sim.held_by_tenant(), sim.retired);
        sim.run(60_000);
        let held: BTreeMap<_, _> = sim.held_by_tenant().into_iter().map(|(t, held)| (t, held - before[&t])).collect();
        let weights: BTreeMap<_, _> = loads.iter().map(|load| (load.tenant, load.weight)).collect();
        let (all, weighed) = (held.values().sum::<u64>() as f64, weights.values().sum::<u32>());
        for (tenant, held_ms) in &held {
            let wanted = all * f64::from(weights[tenant]) / f64::from(weighed);
            let off_ms = *held_ms as f64 - wanted;
            prop_assert!(off_ms.abs() < 1_000.0, "tenant {tenant} is {off_ms:.0} ms off {wanted:.0}: {loads:?} on {num}");
        }
        prop_assert!(sim.retired - retired <= u64::from(num) * 60_000 / 100, "{} exchanges of {loads:?}", sim.retired);
        let wasted = sim.wasted_ms as f64 / (65_000.0 * f64::from(num));
        prop_assert!(wasted < 0.12, "{wasted:.3} of the time was wasted: {loads:?} on {num}");
    }

    #[test]
    fn every_profile_with_ready_tasks_gets_a_worker_within_a_bound(
        num in 1u32..5,
        profiles in prop::collection::vec((0usize..30, 5u64..400, any::<bool>(), 0u32..6, 1u32..20), 1..15),
    ) {
        let loads: Vec<_> = profiles
            .iter()
            // All profiles of a tenant say the same weight.
            .map(|&(tasks, length_ms, endless, tenant, weight)| Load { tenant, weight, tasks, length_ms, endless })
            .scan(BTreeMap::new(), |known, load| {
                let weight = *known.entry(load.tenant).or_insert(load.weight);
                Some(Load { weight, ..load })
            })
            .collect();
        let mut sim = Sim::new(num, &loads);
        let longest_task = loads.iter().map(|load| load.length_ms).max().unwrap();
        let turn_ms = TENURE_MS + longest_task + EXCHANGE_MS + 2 * STEP_MS;
        // Nobody waits for longer than all turns of the others, which are as long as their weights say.
        let weights: BTreeMap<_, _> = loads.iter().map(|load| (load.tenant, u64::from(load.weight))).collect();
        let lightest = weights.values().min().unwrap();
        let turns = loads.len() as u64 * (1 + weights.values().sum::<u64>() / lightest);
        let bound_ms = TENURE_MS + turns * turn_ms;
        for _ in 0..bound_ms / STEP_MS {
            sim.step();
            if sim.started.iter().zip(&loads).all(|(&started, load)| started > 0 || load.tasks == 0) {
                break;
            }
        }
        for (no, load) in loads.iter().enumerate() {
            prop_assert!(load.tasks == 0 || sim.started[no] > 0, "profile {} of {:?} starved", no, loads);
        }
    }
}
