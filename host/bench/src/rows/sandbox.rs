//! Rows 8 and 16: what a fresh sandbox costs inside a confined worker, and what the second wall adds.

use crate::{
    Outcome, floor_of,
    report::{Report, Target, median},
    site::Site,
};

pub(super) fn run(site: &Site, report: &mut Report) -> Outcome<()> {
    let (mut own, mut exec, mut floors) = (vec![], vec![], vec![]);
    let (mut both, mut landlock) = (vec![], vec![]);
    for _ in 0..site.runs() {
        floors.push(floor_of::sandbox(site)?.at("/median_us")?);
        let driven = floor_of::drive(site, None)?;
        own.push(driven.at("/median_us")?);
        exec.push(driven.at("/reported_exec_us")?);
        both.push(floor_of::drive(site, Some("both"))?.at("/worker_cpu_us")?);
        landlock.push(floor_of::drive(site, Some("landlock"))?.at("/worker_cpu_us")?);
    }
    let floor = Some(median(floors));
    let name = "fresh sandbox in a confined worker, with its messages";
    report.add(8, name, "us", median(own), floor, Target::RatioAtMost(1.3));
    report.add(
        8,
        "  of that, as the report says it (whole us, without the drop)",
        "us",
        median(exec),
        None,
        Target::None,
    );
    let name = "worker processor time per task, with seccomp and without";
    report.add(16, name, "us", median(both), Some(median(landlock)), Target::RatioAtMost(1.05));
    Ok(())
}
