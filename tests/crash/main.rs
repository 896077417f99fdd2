//! Crashes of the real program: a random one of supervisor, worker and client is killed, and nothing that was
//! acknowledged is lost, done twice or left behind.
//!
//! `TM_CRASH_SEED` repeats a history (as far as the machine's timing allows), `TM_CRASH_ROUNDS` sets its length.
//! `scripts/kill-rounds` sets both.

mod client;
#[path = "../history.rs"]
mod history;
mod house;
mod log;
mod random;
mod round;
mod trial;

use crate::{
    random::Random,
    round::{Evidence, Moment, Round, Victim},
    trial::Trial,
};

/// Crashes that one queue lives through before a fresh one takes its place.
const ROUNDS_PER_QUEUE: u32 = 5;
/// What the whole test must have proven, when it has the rounds for it.
const ROUNDS: u32 = 20;
const PROVEN_MIN: u32 = 5;

/// The moments and victims of all rounds, in an order that the seed decides: kinds take turns, so none is left out.
fn deck(rounds: u32, random: &mut Random) -> Vec<(Moment, Victim)> {
    let at_any_time = [Victim::Client, Victim::Worker, Victim::Client, Victim::Supervisor];
    let mut deck: Vec<_> = (0..rounds as usize)
        .map(|place| match place % 6 {
            0 | 5 => (Moment::InCommit, Victim::Supervisor),
            1 => (Moment::LeasesLive, Victim::Supervisor),
            2 => (Moment::AtAcknowledgement, Victim::Supervisor),
            3 => (Moment::LeasesLive, Victim::Worker),
            _ => (Moment::AnyTime, at_any_time[place / 6 % 4]),
        })
        .collect();
    for place in (1..deck.len()).rev() {
        deck.swap(place, random.place(place + 1));
    }
    deck
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a whole number: {text}")))
}

#[test]
fn every_acknowledged_run_ends_once_whoever_is_killed_and_whenever() {
    let seed = number("TM_CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 ^ house::unix_ms());
    let rounds = number("TM_CRASH_ROUNDS").map_or(ROUNDS, |rounds| u32::try_from(rounds).expect("a count of rounds"));
    // Into the terminal at once, whatever the test harness captures: a hung test tells its seed too.
    house::say(&format!("crash: TM_CRASH_SEED={seed} TM_CRASH_ROUNDS={rounds}"));
    house::inherit_orphans();
    let mut random = Random::new(seed);
    let mut sum = Evidence::default();
    let mut trial = Trial::new();
    for (no, (moment, victim)) in (1..).zip(deck(rounds, &mut random)) {
        if no > 1 && (no - 1) % ROUNDS_PER_QUEUE == 0 {
            trial = Trial::new();
        }
        let evidence = Round { no, moment, victim }.run(&mut trial, &mut random);
        house::say(&format!("crash: round {no:2}, {victim:?} {moment:?}: {evidence}"));
        sum.add(&evidence);
    }
    house::say(&format!("crash: in all {sum}"));
    if rounds >= ROUNDS {
        assert!(sum.commit_rounds >= PROVEN_MIN, "only {} rounds were killed inside a commit", sum.commit_rounds);
        assert!(sum.lease_rounds >= PROVEN_MIN, "only {} rounds were killed with leases live", sum.lease_rounds);
        assert!(sum.supervisors > 0 && sum.workers > 0 && sum.clients > 0, "somebody was never killed: {sum}");
    }
}

#[test]
#[ignore = "the body of a client process, started by the crash test"]
fn client_process() {
    if let Ok(plan) = std::env::var(client::PLAN) {
        client::run(&serde_json::from_str(&plan).expect("a plan"));
    }
}
