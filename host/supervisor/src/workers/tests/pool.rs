//! The plan, decision by decision; [`places`] lives through many.

mod places;

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
        free: 16 - running,
        spent: false,
        draining: false,
        idle_since: Millis(T - idle_ms),
        ready_since: Millis(T - 10_000),
    }
}

fn shape(num: u32) -> Shape {
    Shape { num, warm_pool: 0, may_start: true }
}

/// Accounts of three profiles, each of a tenant with its weight.
fn accounts(weights: [u32; 3]) -> Accounts {
    let mut accounts = Accounts::default();
    for (profile, weight) in P.into_iter().zip(weights) {
        accounts.learn(profile, &format!("t{}", profile.0), weight);
    }
    accounts
}

fn decide(wants: &[Want], workers: &[WorkerView], num: u32) -> Plan {
    decide_with(wants, workers, num, &accounts([1; 3]))
}

fn decide_with(wants: &[Want], workers: &[WorkerView], num: u32, accounts: &Accounts) -> Plan {
    plan(wants, workers, accounts, shape(num), Millis(T))
}

fn start(profile: ProfileNo) -> Action {
    Action::Start { profile, spare: None }
}

fn retire(no: u64) -> Action {
    Action::Retire { worker: WorkerId(no) }
}

#[test]
fn a_free_place_goes_to_the_profile_that_was_served_least_recently() {
    let wants = [want(P[0], 9, T - 5_000), want(P[1], 1, T - 10)];
    assert_eq!(decide(&wants, &[], 1).actions, [start(P[0])]);
    let mut accounts = accounts([1; 3]);
    accounts.served(P[0]);
    assert_eq!(decide_with(&wants, &[], 1, &accounts).actions, [start(P[1])]);
}

#[test]
fn free_places_go_by_weight_and_what_a_tenant_was_kept_from() {
    let wants = [want(P[0], 99, T), want(P[1], 99, T)];
    let by_weight = [start(P[0]), start(P[1]), start(P[1]), start(P[1])];
    assert_eq!(decide_with(&wants, &[], 4, &accounts([1, 3, 1])).actions, by_weight);
    let owing = accounts([1, 1, 1]).owing(P[0], -300.0).owing(P[1], 300.0);
    assert_eq!(decide_with(&wants, &[], 2, &owing).actions, [start(P[1]), start(P[1])]);
}

#[test]
fn a_tenants_profiles_share_what_is_their_tenants() {
    let mut accounts = Accounts::default();
    for (profile, tenant) in P.into_iter().zip(["a", "b", "b"]) {
        accounts.learn(profile, tenant, 1);
    }
    let wants = P.map(|profile| want(profile, 99, T));
    let starts = decide_with(&wants, &[], 4, &accounts).actions;
    assert_eq!(starts, [start(P[0]), start(P[1]), start(P[2]), start(P[0])]);
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
    assert_eq!(plan.actions, [retire(2)]);
}

#[test]
fn a_worker_whose_profile_has_work_is_taken_only_for_one_that_waited() {
    let workers = [worker(1, P[0], 0, 500)];
    // Its share is half a place: a wait of 125 ms is 62.5 ms of a place.
    let waited = |owed_ms: f64| {
        let accounts = accounts([1; 3]).owing(P[0], -owed_ms).owing(P[2], owed_ms);
        decide_with(&[want(P[0], 5, T - 9_000), want(P[2], 1, T - 9_000)], &workers, 1, &accounts)
    };
    let early = waited(62.0);
    assert_eq!((early.actions, early.again_at), (vec![], Some(Millis(T + 1))));
    assert_eq!(waited(62.5).actions, [retire(1)]);
}

#[test]
fn for_one_that_waited_the_worker_that_is_empty_soonest_is_drained_and_then_replaced() {
    let wants = [want(P[0], 50, T - 9_000), want(P[1], 9, T - 9_000), want(P[2], 1, T - 300)];
    let mut workers = [worker(1, P[0], 9, 0), worker(2, P[0], 3, 0), worker(3, P[1], 1, 0)];
    // Profile 0 has two workers, so it gives one.
    let accounts = accounts([1; 3]).owing(P[0], -300.0).owing(P[2], 300.0);
    let decide = |workers: &[WorkerView]| decide_with(&wants, workers, 3, &accounts).actions;
    assert_eq!(decide(&workers), [Action::Drain { worker: WorkerId(2) }]);
    (workers[1].draining, workers[1].free) = (true, 0);
    assert_eq!(decide(&workers), []);
    workers[1].running = 0;
    assert_eq!(decide(&workers), [retire(2)]);
    workers[1].phase = Phase::Dying;
    assert_eq!(decide(&workers), [], "its place counts until it is reaped");
    assert_eq!(decide(&[workers[0], workers[2]]), [start(P[2])]);
}

#[test]
fn a_profile_within_its_share_gives_nothing_however_much_it_owes() {
    let wants = [want(P[0], 50, T - 9_000), want(P[1], 50, T - 9_000)];
    let workers = [worker(1, P[0], 9, 0), worker(2, P[1], 9, 0)];
    let accounts = accounts([1; 3]).owing(P[0], -9_000.0).owing(P[1], 9_000.0);
    assert_eq!(decide_with(&wants, &workers, 2, &accounts), Plan::default());
}

#[test]
fn a_heavier_tenant_takes_places_until_it_has_its_share() {
    let wants = [want(P[0], 50, T - 9_000), want(P[1], 50, T - 9_000)];
    let mut workers = [0, 1, 1, 1].map(|profile| worker(0, P[profile], 9, 0));
    for (no, worker) in (1..).zip(&mut workers) {
        worker.worker = WorkerId(no);
    }
    let accounts = accounts([3, 1, 1]).owing(P[0], 900.0).owing(P[1], -900.0);
    let drains = [2, 3].map(|no| Action::Drain { worker: WorkerId(no) });
    assert_eq!(decide_with(&wants, &workers, 4, &accounts).actions, drains);
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
    new.ready_since = Millis(T - 10);
    let wants = [want(P[0], 5, T - 9_000), want(P[1], 5, T - 9_000)];
    for (weights, tenure_ms) in [([1, 1, 1], 250), ([2, 1, 1], 250), ([1, 2, 1], 125), ([1, 100, 1], 50)] {
        let accounts = accounts(weights).owing(P[0], -900.0).owing(P[1], 900.0);
        let plan = decide_with(&wants, &[new], 1, &accounts);
        assert_eq!((plan.actions, plan.again_at), (vec![], Some(Millis(T + tenure_ms - 10))), "{weights:?}");
    }
}

#[test]
fn a_second_worker_takes_only_a_place_that_was_idle_for_a_while() {
    let wants = [want(P[0], 5, T)];
    let short = decide(&wants, &[worker(1, P[0], 1, 0), worker(2, P[1], 0, 100)], 2);
    assert_eq!((short.actions, short.again_at), (vec![], Some(Millis(T + 150))));
    let long = decide(&wants, &[worker(1, P[0], 1, 0), worker(2, P[1], 0, 250)], 2);
    assert_eq!(long.actions, [retire(2)]);
}

#[test]
fn a_spent_worker_is_retired_once_it_is_empty() {
    let mut spent = worker(1, P[0], 1, 0);
    (spent.spent, spent.free) = (true, 0);
    assert_eq!(decide(&[want(P[0], 1, T - 900)], &[spent], 1).actions, [], "its place is waited for");
    spent.running = 0;
    assert_eq!(decide(&[], &[spent], 1).actions, [retire(1)]);
}

#[test]
fn spare_processes_are_used_first_and_made_good() {
    let mut spare = worker(4, P[0], 0, 0);
    (spare.phase, spare.profile) = (Phase::Spare, None);
    let shape = Shape { num: 1, warm_pool: 1, may_start: true };
    let plan = plan(&[want(P[1], 1, T)], &[spare], &accounts([1; 3]), shape, Millis(T));
    assert_eq!(plan.actions, [Action::Start { profile: P[1], spare: Some(WorkerId(4)) }, Action::StartSpare]);
}

#[test]
fn while_starts_have_to_wait_nothing_starts_and_no_place_is_taken() {
    let shape = Shape { num: 1, warm_pool: 2, may_start: false };
    let accounts = accounts([1; 3]).owing(P[0], 900.0).owing(P[1], -900.0);
    let wants = [want(P[0], 1, T - 900), want(P[1], 9, T - 900)];
    assert_eq!(plan(&wants, &[], &accounts, shape, Millis(T)).actions, []);
    assert_eq!(plan(&wants, &[worker(1, P[1], 0, 0)], &accounts, shape, Millis(T)).actions, []);
}
