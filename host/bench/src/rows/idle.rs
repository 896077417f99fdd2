//! Rows 14 and 17: what a pool costs when there is nothing to do.

use std::{fs, thread, time::Duration};

use crate::{
    Outcome,
    client::{self, Until, Work},
    report::{Report, Target},
    site::{INPUT, Site},
    supervisor::{Home, Looks},
};

/// After the last change, for what is written in the background.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) fn run(site: &Site, report: &mut Report) -> Outcome<()> {
    let home = Home::new(site, "idle")?;
    home.flow("totals", &["totals"], "")?;
    let mut supervisor = home.start(2, 16)?;
    let megabytes = |looks: &Looks| looks.resident_bytes as f64 / 1e6;
    let fresh = supervisor.all_looks()?;
    report.add(17, "supervisor idle, resident", "MB", megabytes(&fresh[0]), None, Target::AtMost(15.0));
    let largest = fresh[1..].iter().map(megabytes).fold(0.0, f64::max);
    report.add(17, "worker idle, resident", "MB", largest, None, Target::AtMost(40.0));
    let binary = fs::metadata(&site.tm)?.len() as f64 / 1e6;
    report.add(17, "binary", "MB", binary, None, Target::AtMost(40.0));

    client::load(&home.queue(), &Work::of("totals", INPUT), 16, 1, Until::Count(1000), &mut || Ok(()))?;
    let delayed = Work { delay_ms: Some(3_600_000), ..Work::of("totals", INPUT) };
    client::enqueue(&home.queue(), &delayed, 1000)?;
    thread::sleep(SETTLE);
    let before = supervisor.all_looks()?;
    let span = Duration::from_secs(if site.quick { 6 } else { 20 });
    thread::sleep(span);
    let after = supervisor.all_looks()?;
    supervisor.stop()?;
    let sum = |all: &[Looks], of: fn(&Looks) -> u64| all.iter().map(of).sum::<u64>();
    let written = sum(&after, |looks| looks.written_bytes) - sum(&before, |looks| looks.written_bytes);
    let switches = sum(&after, |looks| looks.voluntary_switches) - sum(&before, |looks| looks.voluntary_switches);
    let name = "idle pool with 1,000 delayed tasks: bytes written";
    report.add(14, name, "B", written as f64, None, Target::AtMost(0.0));
    let rate = switches as f64 / span.as_secs_f64();
    report.add(14, "idle pool: voluntary switches, all processes", "/s", rate, None, Target::AtMost(20.0));
    Ok(())
}
