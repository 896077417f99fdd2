//! The accounts: shares by weight, and what time makes of them.

use tm_core::id::WorkerId;

use super::{super::pool::Phase, *};

const T: u64 = 100_000;

fn accounts(profiles: &[(&str, u32)]) -> Accounts {
    let mut accounts = Accounts::default();
    for (no, (tenant, weight)) in (0..).zip(profiles) {
        accounts.learn(ProfileNo(no), tenant, *weight);
    }
    accounts
}

fn wants(ready: &[u64]) -> Vec<Want> {
    let want = |(no, &ready)| Want { profile: ProfileNo(no), ready, since: Millis(T) };
    (0..).zip(ready).map(want).collect()
}

/// A worker of each of these profiles, with as many running steps as fit.
fn full(profiles: &[u32]) -> Vec<WorkerView> {
    let worker = |(no, &profile): (u64, &u32)| WorkerView {
        worker: WorkerId(no),
        phase: Phase::Ready,
        profile: Some(ProfileNo(profile)),
        running: 4,
        free: 0,
        spent: false,
        draining: false,
        idle_since: Millis(0),
        ready_since: Millis(0),
    };
    (0..).zip(profiles).map(worker).collect()
}

fn shares(accounts: &Accounts, ready: &[u64], workers: &[WorkerView], places: u32) -> Vec<f64> {
    accounts.shares(&wants(ready), workers, places).into_values().collect()
}

#[test]
fn tenants_share_by_weight_and_the_profiles_of_one_equally() {
    let accounts = accounts(&[("a", 3), ("b", 1), ("b", 1)]);
    assert_eq!(shares(&accounts, &[9, 9, 9], &[], 4), [3.0, 0.5, 0.5]);
    assert_eq!(shares(&accounts, &[9, 9, 9], &full(&[0, 1]), 4), [3.0, 0.5, 0.5], "who has workers has no other share");
}

#[test]
fn what_one_cannot_use_is_the_others() {
    let accounts = accounts(&[("a", 3), ("b", 1), ("b", 1)]);
    assert_eq!(shares(&accounts, &[1, 9, 9], &[], 4), [1.0, 1.5, 1.5]);
    assert_eq!(shares(&accounts, &[9, 1, 9], &[], 12), [9.0, 1.0, 2.0]);
    assert_eq!(shares(&accounts, &[1, 0, 1], &[], 4), [1.0, 0.0, 1.0], "places may be left");
}

#[test]
fn tasks_that_fit_into_a_profiles_workers_are_no_claim_to_a_further_one() {
    let accounts = accounts(&[("a", 1), ("b", 1)]);
    let mut workers = full(&[0, 1, 1, 1]);
    (workers[0].running, workers[0].free) = (10, 6);
    assert_eq!(shares(&accounts, &[6, 9], &workers, 4), [1.0, 3.0]);
    assert_eq!(shares(&accounts, &[7, 9], &workers, 4), [2.0, 2.0]);
    workers[0].running = 0;
    assert_eq!(shares(&accounts, &[0, 9], &workers, 4), [0.0, 4.0], "an idle worker is none either");
}

#[test]
fn who_holds_less_than_its_share_is_owed_the_time_and_who_holds_more_owes_it() {
    let mut accounts = accounts(&[("a", 3), ("b", 1)]);
    accounts.settle(Millis(T));
    accounts.observe(&wants(&[9, 9]), &full(&[0, 1]));
    accounts.settle(Millis(T + 100));
    accounts.settle(Millis(T + 100));
    // Of two places 1.5 and 0.5 are theirs.
    assert_eq!([0, 1].map(|no| accounts.owed_ms(ProfileNo(no))), [50.0, -50.0]);
    accounts.observe(&wants(&[9, 9]), &full(&[0, 0]));
    accounts.settle(Millis(T + 300));
    assert_eq!([0, 1].map(|no| accounts.owed_ms(ProfileNo(no))), [-50.0, 50.0]);
}

#[test]
fn a_credit_ends_with_the_work_and_a_debt_is_paid_while_others_are_served() {
    let mut accounts = accounts(&[("a", 1), ("b", 1)]);
    accounts.settle(Millis(T));
    accounts.observe(&wants(&[9, 9]), &full(&[0]));
    accounts.settle(Millis(T + 1_000));
    assert_eq!([0, 1].map(|no| accounts.owed_ms(ProfileNo(no))), [-500.0, 500.0]);

    let mut idle_creditor = accounts.clone();
    idle_creditor.observe(&wants(&[9]), &full(&[0]));
    idle_creditor.settle(Millis(T + 1_001));
    assert_eq!([0, 1].map(|no| idle_creditor.owed_ms(ProfileNo(no))), [0.0, 0.0], "nobody is left to be paid");

    // The debtor has nothing to do for a while, in which half of the place could be its own.
    accounts.observe(&wants(&[0, 9]), &full(&[1]));
    accounts.settle(Millis(T + 1_600));
    assert_eq!([0, 1].map(|no| accounts.owed_ms(ProfileNo(no))), [-200.0, 200.0]);
    accounts.settle(Millis(T + 2_200));
    accounts.settle(Millis(T + 2_201));
    assert_eq!([0, 1].map(|no| accounts.owed_ms(ProfileNo(no))), [0.0, 0.0]);
}

#[test]
fn nobody_owes_more_than_its_share_of_a_minute() {
    let mut accounts = accounts(&[("a", 1), ("b", 3)]);
    accounts.settle(Millis(T));
    accounts.observe(&wants(&[9, 9]), &full(&[0]));
    accounts.settle(Millis(T + 3_600_000));
    assert_eq!([0, 1].map(|no| accounts.owed_ms(ProfileNo(no))), [-15_000.0, 45_000.0]);
}

#[test]
fn time_in_which_nobody_is_served_is_nobodys() {
    let mut accounts = accounts(&[("a", 1), ("b", 3)]);
    accounts.settle(Millis(T));
    accounts.observe(&wants(&[9, 9]), &[]);
    accounts.settle(Millis(T + 1_000));
    assert_eq!(accounts.owed_ms(ProfileNo(1)), 0.0);
}
