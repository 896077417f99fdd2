//! The simulation: the real turn, log, codec, recovery and files of dead letters on a simulated disk, with simulated
//! workers, clients and clock.
//!
//! Each seed is one history. `scripts/soak` runs it for a person; it says by environment: `TM_SIM_SEEDS=2000` how many
//! seeds (100 without it), `TM_SIM_SEED=42` that one alone, `TM_SIM_MINUTES=30` how long a soak lasts, `TM_SIM_TURNS` the
//! turns of each (1000), `TM_SIM_POINTS=1` that every disk operation is a crash point, `TM_SIM_WITHOUT=power-loss,kill`
//! kinds of fault that do not happen; `TM_SIM_TRACE=1` prints the turns. A failure is shrunk and names its command.

mod clients;
mod content;
mod coverage;
mod damage;
mod disk;
mod fairness;
mod faults;
mod flows;
mod history;
mod judge;
mod ledger;
mod letters;
mod opening;
mod phases;
mod random;
mod rivals;
mod shrink;
mod soak;
mod storage;
mod world;

use std::time::{Duration, Instant};

use faults::Without;
use soak::{Extent, Quiet};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn extent() -> Extent {
    let lasts = number("TM_SIM_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
    let seeds = match (number("TM_SIM_SEED"), lasts) {
        (Some(seed), None) => seed..seed + 1,
        // A soak goes on from there.
        (first, Some(_)) => first.unwrap_or(1)..u64::MAX,
        (None, None) => 1..1 + number("TM_SIM_SEEDS").unwrap_or(100),
    };
    let without = std::env::var("TM_SIM_WITHOUT").unwrap_or_default();
    Extent {
        seeds,
        turns: number("TM_SIM_TURNS").unwrap_or(1000),
        without: Without::parse(&without).unwrap_or_else(|why| panic!("TM_SIM_WITHOUT: {why}")),
        points_every: number("TM_SIM_POINTS"),
        lasts,
    }
}

#[test]
fn every_history_keeps_every_promise() {
    let extent = extent();
    let begun = Instant::now();
    let quiet = Quiet::begin();
    let (coverage, failure) = soak::run(&extent);
    println!("\n{}\n{}\n  {}", coverage.table(), soak::totals(&coverage, begun.elapsed()), coverage.kinds());
    if let Some(failure) = failure {
        let seed = failure.plan.seed;
        eprintln!("\nseed {seed} failed in turn {}: {}\nshrinking it", failure.turn, failure.message);
        let least = shrink::shrink(failure);
        drop(quiet);
        panic!("seed {seed} failed; shrunk: {}\nagain: {}", least.message, shrink::command(&least.plan));
    }
    drop(quiet);
    assert!(extent.lasts.is_some() || coverage.turns >= coverage.seeds * extent.turns);
    if extent.without == Without::default() && coverage.seeds >= 50 && extent.turns >= 1000 {
        assert!(coverage.faults >= 10 * coverage.seeds, "too few faults: {}", coverage.faults);
        let missing = coverage.missing();
        assert!(missing.is_empty(), "never happened, so never tested: {missing:#?}");
    }
}
