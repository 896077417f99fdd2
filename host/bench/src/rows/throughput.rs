//! Rows 1 and 2: tasks per second and syncs per task, with many in flight.

use std::time::Duration;

use crate::{
    Outcome,
    client::{self, Until, Work},
    floor_of,
    report::{Report, Target, median},
    site::{INPUT, Site},
    supervisor::{Home, Looks, looks},
};

pub(super) const IN_FLIGHT: usize = 256;
pub(super) const LANES: usize = 2;
pub(super) const WARM_UP: Duration = Duration::from_millis(400);

/// Of this process, so far.
fn processor() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime)).unwrap_or_default()
}

pub(super) fn run(site: &Site, report: &mut Report) -> Outcome<()> {
    let home = Home::new(site, "throughput")?;
    home.flow("totals", &["totals"], "")?;
    let mut supervisor = home.start(site.workers, site.concurrency)?;
    let (mut rates, mut floors, mut syncs, mut floor_syncs) = (vec![], vec![], vec![], vec![]);
    let (mut p50s, mut p99s, mut p999s, mut floor_p50s, mut floor_p99s) = (vec![], vec![], vec![], vec![], vec![]);
    let (mut cpus, mut floor_cpus, mut last) = (vec![], vec![], None);
    for _ in 0..site.runs() {
        let floor = floor_of::end_to_end(site, IN_FLIGHT)?;
        floors.push(floor.at("/tasks_per_second")?);
        floor_syncs.push(floor.at("/syncs_per_task")?);
        floor_cpus.push(floor.at("/cpu_us_per_task")?);
        floor_p50s.push(floor.at("/latency/p50_us")? / 1000.0);
        floor_p99s.push(floor.at("/latency/p99_us")? / 1000.0);

        let (mut before, mut looked) = (None, Looks::default());
        let (mut workers, mut own_before) = (Vec::new(), Duration::ZERO);
        let until = Until::Passed { warm_up: WARM_UP, span: site.span() };
        let mut measured =
            client::load(&home.queue(), &Work::of("totals", INPUT), IN_FLIGHT, LANES, until, &mut || {
                before = Some(supervisor.counters()?);
                looked = looks(supervisor.pid())?;
                own_before = processor();
                workers = supervisor.workers()?.iter().map(|row| looks(row.pid)).collect::<Outcome<_>>()?;
                Ok(())
            })?;
        let own = (processor() - own_before).as_secs_f64() * 1e6;
        let before = before.ok_or("nothing was measured")?;
        let after = supervisor.counters()?;
        let finished = measured.finished as f64;
        rates.push(measured.per_second());
        syncs.push((after.syncs - before.syncs) as f64 / finished);
        p50s.push(measured.latency.at(0.5) / 1000.0);
        p99s.push(measured.latency.at(0.99) / 1000.0);
        p999s.push(measured.latency.at(0.999) / 1000.0);
        let now = looks(supervisor.pid())?;
        let workers_now = supervisor.workers()?.iter().map(|row| looks(row.pid)).collect::<Outcome<Vec<_>>>()?;
        let sum = |all: &[Looks], of: fn(&Looks) -> f64| all.iter().map(of).sum::<f64>();
        let cpu = |looks: &Looks| looks.cpu.as_secs_f64() * 1e6;
        let switches = |looks: &Looks| looks.voluntary_switches as f64;
        let supervisor_us = (cpu(&now) - cpu(&looked)) / finished;
        let workers_us = (sum(&workers_now, cpu) - sum(&workers, cpu)) / finished;
        cpus.push(supervisor_us + workers_us);
        last = Some([
            ("processor time of the supervisor per task", "us", supervisor_us),
            ("processor time of the workers per task", "us", workers_us),
            ("processor time of the load generator per task", "us", own / finished),
            ("supervisor voluntary switches per task", "", (switches(&now) - switches(&looked)) / finished),
            (
                "workers' voluntary switches per task",
                "",
                (sum(&workers_now, switches) - sum(&workers, switches)) / finished,
            ),
            ("tasks per turn of the loop", "", finished / (after.turns - before.turns).max(1) as f64),
        ]);
    }
    supervisor.stop()?;
    let floor = Some(median(floors));
    report.add(1, "durable tasks, 256 in flight", "/s", median(rates), floor, Target::RatioAtLeast(0.45));
    report.add(1, "  result p50", "ms", median(p50s), Some(median(floor_p50s)), Target::None);
    report.add(1, "  result p99", "ms", median(p99s), Some(median(floor_p99s)), Target::None);
    report.add(1, "  result p99.9", "ms", median(p999s), None, Target::None);
    let name = "  processor time of supervisor and workers per task";
    report.add(1, name, "us", median(cpus), Some(median(floor_cpus)), Target::None);
    for (name, unit, value) in last.into_iter().flatten() {
        report.add(1, format!("  {name}"), unit, value, None, Target::None);
    }
    let floor = Some(median(floor_syncs));
    report.add(2, "syncs per task, 256 in flight", "", median(syncs), floor, Target::AtMost(0.05));
    Ok(())
}
