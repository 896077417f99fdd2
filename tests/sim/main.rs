//! The simulation: the real turn, log, codec and recovery on a simulated disk, with simulated workers, clients and clock.
//!
//! Each seed is one history. `TM_SIM_SEEDS=2000` says how many (100 without it), `TM_SIM_SEED=42` runs that one alone,
//! `TM_SIM_TURNS` sets the turns of each (1000), `TM_SIM_TRACE=1` prints them. A failure prints its seed first.

mod clients;
mod content;
mod coverage;
mod disk;
mod flows;
mod history;
mod ledger;
mod random;
mod world;

use std::{
    cell::Cell,
    panic,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use coverage::Coverage;
use history::History;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs the seeds on all cores; stops at the first that fails.
fn run(seeds: std::ops::Range<u64>, turns: u64) -> Coverage {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if let Some(seed) = SEED.get() {
            eprintln!(
                "seed {seed} failed; again: TM_SIM_SEED={seed} TM_SIM_TURNS={turns} cargo test -p tm-supervisor --test sim"
            );
        }
        before(info);
    }));
    let (next, failed, all) = (AtomicU64::new(seeds.start), AtomicBool::new(false), Mutex::new(Coverage::default()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                let mut mine = Coverage::default();
                loop {
                    let seed = next.fetch_add(1, SeqCst);
                    if seed >= seeds.end || failed.load(SeqCst) {
                        break;
                    }
                    SEED.set(Some(seed));
                    match panic::catch_unwind(|| History::live(seed, turns)) {
                        Ok(coverage) => mine.add(&coverage),
                        Err(_) => failed.store(true, SeqCst),
                    }
                    SEED.set(None);
                }
                all.lock().unwrap_or_else(PoisonError::into_inner).add(&mine);
            });
        }
    });
    drop(panic::take_hook());
    assert!(!failed.load(SeqCst), "a seed failed, see above");
    all.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn every_history_keeps_every_promise() {
    let turns = number("TM_SIM_TURNS").unwrap_or(1000);
    let one = number("TM_SIM_SEED");
    let seeds = one.map_or_else(|| 1..1 + number("TM_SIM_SEEDS").unwrap_or(100), |seed| seed..seed + 1);
    let count = seeds.end - seeds.start;
    let begun = std::time::Instant::now();
    let coverage = run(seeds, turns);
    println!("{}", coverage.table());
    println!(
        "{count} seeds, {} turns, {} faults, {} runs, {} frames in {:.1} s",
        coverage.turns,
        coverage.faults,
        coverage.runs,
        coverage.frames,
        begun.elapsed().as_secs_f64()
    );
    assert!(coverage.turns >= count * turns);
    if one.is_none() && count >= 50 && turns >= 1000 {
        assert!(coverage.faults >= 10 * count, "too few faults: {}", coverage.faults);
        let missing = coverage.missing();
        assert!(missing.is_empty(), "never happened, so never tested: {missing:#?}");
    }
}
