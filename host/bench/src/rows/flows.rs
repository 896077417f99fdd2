//! Rows 4, 5, 13 and 15: runs of several steps, steps that sleep, and what a second worker adds.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Outcome,
    client::{self, Until, Work},
    floor_of,
    report::{Report, Target, median},
    site::{INPUT, Site},
    supervisor::{Home, Supervisor, children, looks},
};

use super::throughput::{LANES, WARM_UP};

const STEPS: usize = 10;
/// Between two looks at the memory of processes.
const LOOK: Duration = Duration::from_millis(20);
/// What a step costs beside its sync.
const STEP_US: f64 = 45.0;

pub(super) fn chain(site: &Site, report: &mut Report) -> Outcome<()> {
    let home = Home::new(site, "chain")?;
    home.flow("chain", &["totals"; STEPS], "")?;
    let supervisor = home.start(site.workers, site.concurrency)?;
    let (mut p50s, mut p99s, mut syncs, mut rates, mut floors) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..site.runs() {
        syncs.push(floor_of::sync_us(site)?);
        let until = Until::Passed { warm_up: WARM_UP, span: site.span() };
        let load = |in_flight, lanes| {
            client::load(&home.queue(), &Work::of("chain", INPUT), in_flight, lanes, until, &mut || Ok(()))
        };
        let mut alone = load(1, 1)?;
        p50s.push(alone.latency.at(0.5));
        p99s.push(alone.latency.at(0.99));
        floors.push(floor_of::end_to_end(site, super::throughput::IN_FLIGHT)?.at("/tasks_per_second")?);
        rates.push(load(super::throughput::IN_FLIGHT, LANES)?.per_second() * STEPS as f64);
    }
    supervisor.stop()?;
    let bound = 11.0 * median(syncs) + STEPS as f64 * STEP_US;
    report.add(
        4,
        "flow of 10 steps alone, p50 (floor: 11 syncs + 450 us)",
        "us",
        median(p50s),
        Some(bound),
        Target::RatioAtMost(1.0),
    );
    report.add(4, "flow of 10 steps alone, p99", "us", median(p99s), None, Target::None);
    let floor = Some(median(floors));
    report.add(4, "steps of flows of 10, 256 in flight", "/s", median(rates), floor, Target::RatioAtLeast(0.4));
    Ok(())
}

/// Does something; what that gave, and the largest sums of resident memory meanwhile, in MB: of the supervisor, and of its
/// workers.
pub(super) fn watched<T>(supervisor: u32, work: impl FnOnce() -> T) -> (T, f64, f64) {
    let (one, others, ends) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                let bytes = |pid: u32| looks(pid).map_or(0, |looks| looks.resident_bytes);
                one.fetch_max(bytes(supervisor), Ordering::Relaxed);
                others.fetch_max(children(supervisor).into_iter().map(bytes).sum(), Ordering::Relaxed);
                thread::sleep(LOOK);
            }
        });
        let done = work();
        ends.store(true, Ordering::Relaxed);
        done
    });
    let megabytes = |bytes: AtomicU64| bytes.into_inner() as f64 / 1e6;
    (done, megabytes(one), megabytes(others))
}

/// Runs `count` runs at once to their ends; how long it took, and the most memory of supervisor and workers.
fn at_once(home: &Home, supervisor: &Supervisor, work: &Work<'_>, count: usize) -> Outcome<(Duration, f64, f64)> {
    // A connection takes so many requests ahead of their answers.
    let lanes = count.div_ceil(1000);
    let begun = Instant::now();
    let (done, one, others) = watched(supervisor.pid(), || {
        client::load(&home.queue(), work, count, lanes, Until::Count(count as u64), &mut || Ok(()))
    });
    done.map(|_| (begun.elapsed(), one, others))
}

const MANY: usize = 10_000;
/// What 10,000 steps could take if each used all that it may: the bound by default lets fewer run at once.
const ASLEEP: &str = "[workers]\nmemory_max = \"400GiB\"\n";

pub(super) fn many(site: &Site, report: &mut Report) -> Outcome<()> {
    let home = Home::new(site, "many")?;
    home.flow("many", &["totals", "totals", "nap", "totals", "totals"], "")?;
    home.configure(ASLEEP)?;
    let supervisor = home.start(4, 2500)?;
    // Once before, so that what is needed once is not counted.
    let nap = r#"{"order":"a","items":[],"sleep_ms":2000}"#;
    client::load(&home.queue(), &Work::of("many", nap), 100, 1, Until::Count(100), &mut || Ok(()))?;
    let before = looks(supervisor.pid())?.resident_bytes as f64 / 1e6;
    let (took, peak, _) = at_once(&home, &supervisor, &Work::of("many", nap), MANY)?;
    supervisor.stop()?;
    let name = "10,000 runs of 5 steps at once, one of them asleep for 2 s: all finished after";
    report.add(5, name, "s", took.as_secs_f64(), Some(2.0), Target::None);
    report.add(5, "supervisor memory more than before, at most", "MB", peak - before, None, Target::AtMost(50.0));
    Ok(())
}

/// Whether so many steps are let into the pool at once: the figure of row 13 means nothing when they sleep in turn.
fn admitted(site: &Site) -> Outcome<()> {
    let home = Home::new(site, "admitted")?;
    home.flow("asleep", &["nap"], "")?;
    home.configure(ASLEEP)?;
    let mut supervisor = home.start(4, 2500)?;
    client::enqueue(&home.queue(), &Work::of("asleep", r#"{"sleep_ms":60000}"#), MANY)?;
    let (begun, mut inflight) = (Instant::now(), 0);
    while inflight < MANY as u64 && begun.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(100));
        inflight = supervisor.stats()?.inflight;
    }
    if inflight < MANY as u64 {
        let why = "workers.memory_max counts what each may take";
        return Err(format!("only {inflight} of {MANY} sleeping steps are let in at once ({why})").into());
    }
    Ok(())
}

pub(super) fn asleep(site: &Site, report: &mut Report) -> Outcome<()> {
    admitted(site)?;
    let home = Home::new(site, "asleep")?;
    home.flow("asleep", &["nap"], "")?;
    home.configure(ASLEEP)?;
    let supervisor = home.start(4, 2500)?;
    let nap = if site.quick { r#"{"sleep_ms":5000}"# } else { r#"{"sleep_ms":20000}"# };
    let (took, own, workers) = at_once(&home, &supervisor, &Work::of("asleep", nap), MANY)?;
    supervisor.stop()?;
    let name = "10,000 std steps asleep in one pool of 4 processes: all finished after";
    let floor = if site.quick { 5.0 } else { 20.0 };
    report.add(13, name, "s", took.as_secs_f64(), Some(floor), Target::None);
    report.add(13, "their memory, all processes, at most", "MB", own + workers, None, Target::AtMost(1073.7));
    Ok(())
}

/// Some 20 ms of computing.
const COMPUTING: &str = r#"{"order":"a","items":[],"rounds":6000000}"#;

pub(super) fn scaling(site: &Site, report: &mut Report) -> Outcome<()> {
    let mut rates = [vec![], vec![]];
    for _ in 0..site.runs().min(2) {
        for (place, workers) in [1, 2].into_iter().enumerate() {
            let home = Home::new(site, &format!("scaling-{workers}"))?;
            home.flow("scaling", &["totals"], "")?;
            let supervisor = home.start(workers, 8)?;
            let until = Until::Passed { warm_up: WARM_UP, span: 2 * site.span() };
            let measured = client::load(&home.queue(), &Work::of("scaling", COMPUTING), 32, 1, until, &mut || Ok(()))?;
            rates[place].push(measured.per_second());
            supervisor.stop()?;
        }
    }
    let [one, two] = rates.map(median);
    report.add(
        15,
        "steps of 20 ms of computing, 2 workers (floor: 1 worker)",
        "/s",
        two,
        Some(one),
        Target::RatioAtLeast(1.9),
    );
    Ok(())
}
