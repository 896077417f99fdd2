//! Row 18: good tasks of one tenant, alone and beside a backlog of a thousand of another one that do everything wrong.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Outcome,
    client::{self, Until, Work},
    report::{Report, Target, median},
    site::{INPUT, Site},
    supervisor::{Home, Supervisor},
};

use super::{
    flows::watched,
    throughput::{IN_FLIGHT, LANES},
};

/// Hostile tasks that wait or run at any time; what ends is replaced.
const HOSTILE: u64 = 1_000;
/// Between two looks at how many there are.
const LOOK: Duration = Duration::from_millis(20);
/// The first second beside the hostile tasks is not counted: workers are still given from one tenant to the other.
const WARM_UP: Duration = Duration::from_secs(1);
const TENANTS: &str = "[tenants.\"default\"]\n[tenants.\"hostile\"]\n";
const FLOW: &str = "flow:
  id: hostile
  steps:
    - id: s
      component: ../compute.wasm
      limits: { memory_mb: 16, timeout_ms: 400, stack_kb: 256, output_kb: 256, log_kb: 16 }
      retries: { max_attempts: 1 }
";
/// In turn: what the tests of the sandbox show to end at its limit.
const DEEDS: &[&str] = &[
    r#"{"do":"spin","mb":12}"#,
    r#"{"do":"wait_for_cancel"}"#,
    r#"{"do":"hog"}"#,
    r#"{"do":"grow_small_pieces"}"#,
    r#"{"do":"output","bytes":250000}"#,
    r#"{"do":"output","bytes":1000000}"#,
    r#"{"do":"log_flood","bytes":1000000}"#,
    r#"{"do":"stdout_flood","bytes":1000000}"#,
    r#"{"do":"stderr_flood","bytes":1000000,"then_panic":true}"#,
    r#"{"do":"progress_flood","count":100000}"#,
    r#"{"do":"recurse"}"#,
    r#"{"do":"abort"}"#,
    r#"{"do":"fail","class":"fatal","bytes":4000}"#,
];

pub(super) fn run(site: &Site, report: &mut Report) -> Outcome<()> {
    let (mut rates, mut floors, mut p99s, mut floor_p99s) = (vec![], vec![], vec![], vec![]);
    let (mut memory, mut bounds) = (vec![], vec![]);
    for no in 0..site.runs() {
        let home = Home::new(site, &format!("hostile-{no}"))?;
        home.flow("totals", &["totals"], "")?;
        home.configure(TENANTS)?;
        fs::write(home.folder.join("hostile.yaml"), FLOW)?;
        // Known before the start, so that the start tells the bound of a worker for each tenant.
        let later = ["enqueue", "hostile.yaml", "--tenant", "hostile", "--delay", "1d", "-i", r#"{"do":"nothing"}"#];
        if !home.command(&later).output()?.status.success() {
            return Err("the hostile flow is refused".into());
        }
        let mut supervisor = home.start(site.workers, site.concurrency)?;
        let until = Until::Passed { warm_up: WARM_UP, span: site.span() };
        let good = || client::load(&home.queue(), &Work::of("totals", INPUT), IN_FLIGHT, LANES, until, &mut || Ok(()));
        let mut alone = good()?;
        floors.push(alone.per_second());
        floor_p99s.push(alone.latency.at(0.99) / 1000.0);

        let (pid, over) = (supervisor.pid(), AtomicBool::new(false));
        enqueue_hostile(&home, HOSTILE)?;
        under_way(&mut supervisor)?;
        let (beside, _, workers) = thread::scope(|scope| {
            let feeder = scope.spawn(|| feed(&home, &mut supervisor, &over));
            let (beside, own, workers) = watched(pid, good);
            over.store(true, Ordering::Relaxed);
            feeder.join().map_err(|_| "the feeder of hostile tasks panicked")??;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((beside, own, workers))
        })?;
        let mut beside = beside?;
        rates.push(beside.per_second());
        p99s.push(beside.latency.at(0.99) / 1000.0);
        memory.push(workers);
        bounds.push(printed_mb(&home)?);
    }
    let floor = Some(median(floors));
    let name = "tasks beside a backlog of 1,000 hostile ones of another tenant (floor: alone)";
    report.add(18, name, "/s", median(rates), floor, Target::RatioAtLeast(0.45));
    report.add(
        18,
        "  result p99 (floor: alone)",
        "ms",
        median(p99s),
        Some(median(floor_p99s)),
        Target::RatioAtMost(3.0),
    );
    let most = memory.into_iter().fold(0.0, f64::max);
    let name = "  resident memory of all workers (floor: the bound that the start printed)";
    report.add(18, name, "MB", most, Some(median(bounds)), Target::RatioAtMost(1.0));
    Ok(())
}

fn enqueue_hostile(home: &Home, count: u64) -> Outcome<()> {
    let mut deeds = DEEDS.iter().cycle().zip(0..count);
    deeds.try_for_each(|(deed, _)| {
        let work = Work { tenant: "hostile", ..Work::of("hostile", deed) };
        client::enqueue(&home.queue(), &work, 1)
    })
}

/// Keeps the backlog of hostile tasks as long as it was until `over`.
fn feed(home: &Home, supervisor: &mut Supervisor, over: &AtomicBool) -> Outcome<()> {
    while !over.load(Ordering::Relaxed) {
        // The good ones count, too, and are at most so many.
        let missing = (HOSTILE + IN_FLIGHT as u64).saturating_sub(supervisor.stats()?.depth);
        if missing > 0 {
            enqueue_hostile(home, missing)?;
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Waits until hostile tasks have begun to end.
fn under_way(supervisor: &mut Supervisor) -> Outcome<()> {
    let begun = Instant::now();
    while supervisor.stats()?.totals.tasks_dead == 0 {
        if begun.elapsed() > Duration::from_secs(30) {
            return Err("no hostile task ends".into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The memory that the workers may take together, as the start said.
fn printed_mb(home: &Home) -> Outcome<f64> {
    let said = fs::read_to_string(home.folder.join("supervisor.log"))?;
    let number = said.split_once(" with at most ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    Ok(number.ok_or("the start printed no bound of memory")? * 1.048_576)
}
