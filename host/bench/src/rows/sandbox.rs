//! Rows 8 and 16: what a fresh sandbox costs inside a confined worker, and what the second wall adds.

use crate::{
    Outcome, floor_of,
    report::{Report, Target, median},
    site::Site,
};

pub(super) fn run(site: &Site, report: &mut Report) -> Outcome<()> {
    let (mut whole, mut messages, mut floors) = (vec![], vec![], vec![]);
    let (mut both, mut landlock, mut wall) = (vec![], vec![], vec![]);
    for _ in 0..site.runs() {
        floors.push(floor_of::sandbox(site)?.at("/cpu_us")?);
        let driven = floor_of::drive(site, None, false)?;
        whole.push(driven.at("/worker_cpu_us")?);
        wall.push(driven.at("/median_us")?);
        messages.push(floor_of::drive(site, None, true)?.at("/worker_cpu_us")?);
        both.push(floor_of::drive(site, Some("both"), false)?.at("/worker_cpu_us")?);
        landlock.push(floor_of::drive(site, Some("landlock"), false)?.at("/worker_cpu_us")?);
    }
    // Time on a processor: the driver has the other one.
    let floor = Some(median(floors));
    let (whole, messages) = (median(whole), median(messages));
    let name = "fresh sandbox in a confined worker, processor time";
    report.add(8, name, "us", whole - messages, floor, Target::RatioAtMost(1.3));
    report.add(8, "  with its messages", "us", whole, floor, Target::None);
    report.add(8, "  the messages alone (a start that is refused)", "us", messages, None, Target::None);
    report.add(8, "  one worker, driven without a supervisor: a task each", "us", median(wall), None, Target::None);
    let name = "worker processor time per task, both walls (floor: without seccomp)";
    report.add(16, name, "us", median(both), Some(median(landlock)), Target::RatioAtMost(1.05));
    Ok(())
}
