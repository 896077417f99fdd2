//! Many histories on all cores, for so many seeds or for so long, with progress and a report.

use std::{
    cell::{Cell, RefCell},
    io::Write,
    panic,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    coverage::Coverage,
    faults::Without,
    history::{History, Plan},
};

const PROGRESS_EVERY: Duration = Duration::from_secs(15);
/// In a soak one history in so many takes a crash point at every disk operation.
const DENSE_EVERY_SEEDS: u64 = 8;
const DENSE_TURNS: u64 = 400;
/// The others, at so many disk operations.
const POINTS_EVERY: u64 = 4000;

/// What is to be run, as the environment says.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    pub(crate) seeds: std::ops::Range<u64>,
    pub(crate) turns: u64,
    pub(crate) without: Without,
    /// Every so many-th disk operation is a crash point; chosen by the seed when absent.
    pub(crate) points_every: Option<u64>,
    /// A soak: no seed begins after this long.
    pub(crate) lasts: Option<Duration>,
}

impl Extent {
    fn plan(&self, seed: u64) -> Plan {
        let dense = self.lasts.is_some() && seed.is_multiple_of(DENSE_EVERY_SEEDS);
        let points_every = self.points_every.unwrap_or(if dense { 1 } else { POINTS_EVERY });
        // The longer the log, the fewer copies of it can be opened.
        let turns = if dense { self.turns.min(DENSE_TURNS) } else { self.turns };
        Plan { seed, turns, without: self.without, points_every }
    }
}

/// A history that broke a promise.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) plan: Plan,
    /// Turns that were lived through before.
    pub(crate) turn: u64,
    pub(crate) message: String,
}

thread_local! {
    static TURN: Cell<u64> = const { Cell::new(0) };
    /// Where this thread's panic goes while it runs a history.
    static MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// While it lives, a panic in a history is kept for its report instead of printed.
pub(crate) struct Quiet;

impl Quiet {
    pub(crate) fn begin() -> Self {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let kept = MESSAGE.with_borrow_mut(|message| match message {
                Some(text) => {
                    *text = info.to_string();
                    true
                }
                None => false,
            });
            if !kept {
                before(info);
            }
        }));
        Self
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if !thread::panicking() {
            drop(panic::take_hook());
        }
    }
}

/// Lives through one history.
pub(crate) fn attempt(plan: Plan) -> Result<Coverage, Failure> {
    TURN.set(0);
    MESSAGE.set(Some(String::new()));
    let outcome = panic::catch_unwind(|| History::live(plan, &|turn| TURN.set(turn)));
    let message = MESSAGE.take().unwrap_or_default();
    outcome.map_err(|_| Failure { plan, turn: TURN.get(), message })
}

/// Names a seed before it runs, past whatever captures the output of tests: when the process dies, it was one of the last.
fn name_seed(seed: u64) {
    let end = if seed.is_multiple_of(20) { "\n" } else { "" };
    // Nobody reads it, then.
    let _ = write!(std::io::stderr().lock(), " {seed}{end}");
}

/// Runs the histories until all are through or one fails.
pub(crate) fn run(extent: &Extent) -> (Coverage, Option<Failure>) {
    let begun = Instant::now();
    let (next, stopped, failure) = (AtomicU64::new(extent.seeds.start), AtomicBool::new(false), Mutex::new(None));
    let (results, collected) = mpsc::channel::<Coverage>();
    let live = |results: mpsc::Sender<Coverage>| {
        while !stopped.load(SeqCst) && extent.lasts.is_none_or(|lasts| begun.elapsed() < lasts) {
            let seed = next.fetch_add(1, SeqCst);
            if seed >= extent.seeds.end {
                break;
            }
            name_seed(seed);
            match attempt(extent.plan(seed)) {
                // Nobody collects any more only when everything is over.
                Ok(coverage) => drop(results.send(coverage)),
                Err(failed) => {
                    stopped.store(true, SeqCst);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failed);
                }
            }
        }
    };
    let mut all = Coverage::default();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            let (live, results) = (&live, results.clone());
            scope.spawn(move || live(results));
        }
        drop(results);
        let mut progress_at = begun + PROGRESS_EVERY;
        loop {
            match collected.recv_timeout(progress_at.saturating_duration_since(Instant::now())) {
                Ok(coverage) => all.add(&coverage),
                Err(RecvTimeoutError::Timeout) => {
                    println!("\n{}\n  {}", totals(&all, begun.elapsed()), all.kinds());
                    progress_at += PROGRESS_EVERY;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    (all, failure.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// One line: how much was done.
pub(crate) fn totals(coverage: &Coverage, took: Duration) -> String {
    let Coverage { seeds, turns, faults, crash_points, runs, frames, .. } = coverage;
    format!(
        "{:.1} min: {seeds} seeds, {turns} turns, {faults} faults, {crash_points} crash points, {runs} runs, {frames} records",
        took.as_secs_f64() / 60.0
    )
}
