//! Rows 3 and 2: one task after the other.

use crate::{
    Outcome,
    client::{self, Until, Work},
    floor_of,
    report::{Report, Target, median},
    site::{INPUT, Site},
    supervisor::Home,
};

use super::throughput::WARM_UP;

pub(super) fn run(site: &Site, report: &mut Report) -> Outcome<()> {
    let home = Home::new(site, "alone")?;
    home.flow("totals", &["totals"], "")?;
    let mut supervisor = home.start(site.workers, site.concurrency)?;
    let (mut own, mut floors) = ([vec![], vec![], vec![]], [vec![], vec![], vec![]]);
    let mut syncs = Vec::new();
    for _ in 0..site.runs() {
        let floor = floor_of::end_to_end(site, 1)?;
        for (place, path) in ["/latency/p50_us", "/latency/p99_us", "/latency/p999_us"].iter().enumerate() {
            floors[place].push(floor.at(path)?);
        }
        let mut before = None;
        let until = Until::Passed { warm_up: WARM_UP, span: site.span() };
        let mut measured = client::load(&home.queue(), &Work::of("totals", INPUT), 1, 1, until, &mut || {
            before = Some(supervisor.counters()?);
            Ok(())
        })?;
        let before = before.ok_or("nothing was measured")?;
        syncs.push((supervisor.counters()?.syncs - before.syncs) as f64 / measured.finished as f64);
        for (place, quantile) in [0.5, 0.99, 0.999].into_iter().enumerate() {
            own[place].push(measured.latency.at(quantile));
        }
    }
    supervisor.stop()?;
    let [p50, p99, p999] = own.map(median);
    let [floor_p50, floor_p99, floor_p999] = floors.map(median);
    // A sync of room ahead comes once in a megabyte.
    report.add(2, "syncs per task, alone", "", median(syncs), Some(2.0), Target::AtMost(2.05));
    report.add(3, "alone: enqueue to durable result, p50", "us", p50, Some(floor_p50), Target::RatioAtMost(2.0));
    report.add(3, "alone: enqueue to durable result, p99", "us", p99, Some(floor_p99), Target::RatioAtMost(3.0));
    report.add(3, "alone: enqueue to durable result, p99.9", "us", p999, Some(floor_p999), Target::None);
    Ok(())
}
