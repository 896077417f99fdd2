//! Rows 9 to 12: a queue with a million runs in it.

use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{Advice, fadvise};

use crate::{
    Outcome,
    client::{self, Until, Work},
    report::{Report, Target, median},
    site::{INPUT, Site},
    supervisor::{Home, Supervisor, looks},
};

use super::{
    process::{batch, lines},
    throughput::{IN_FLIGHT, LANES, WARM_UP},
};

pub(super) fn run(site: &Site, report: &mut Report) -> Outcome<()> {
    let count = if site.quick { 100_000 } else { 1_000_000 };
    let home = Home::new(site, "cold")?;
    home.flow("totals", &["totals"], "")?;
    // The load comes on top of the million, which is all that the default takes.
    home.configure("[queue]\nhard_depth = 2000000\n")?;
    // A thousand first: what the million is held against.
    let mut supervisor = home.start(site.workers, site.concurrency)?;
    let empty = looks(supervisor.pid())?.resident_bytes;
    let few = lines(&home.folder, 1000)?;
    batch(&home, &few)?;
    let (floor_rate, _) = drain(site, &home, &mut supervisor)?;
    supervisor.stop()?;

    let many = lines(&home.folder, count)?;
    let took = batch(&home, &many)?;
    let name = format!("tm enqueue --batch -, {count} lines into a queue without workers");
    report.add(7, name, "/s", count as f64 / took.as_secs_f64(), None, Target::None);
    fs::remove_file(many)?;
    pending(&home, report, count, empty)?;

    let mut supervisor = home.start(site.workers, site.concurrency)?;
    let (rate, longest_ms) = drain(site, &home, &mut supervisor)?;
    report.add(
        11,
        format!("tasks at {count} pending (floor: at 1,000)"),
        "/s",
        rate,
        Some(floor_rate),
        Target::RatioAtLeast(0.85),
    );
    report.add(
        12,
        format!("longest turn of the loop under that load, {count} pending"),
        "ms",
        longest_ms,
        None,
        Target::AtMost(5.0),
    );

    while supervisor.stats()?.pending > 0 {
        thread::sleep(Duration::from_millis(100));
    }
    finished(&home, report, supervisor, count)
}

/// Tasks of all kinds per second under a load that goes before what is pending, and the longest turn in milliseconds.
fn drain(site: &Site, home: &Home, supervisor: &mut Supervisor) -> Outcome<(f64, f64)> {
    let work = Work { priority: Some(9), ..Work::of("totals", INPUT) };
    let mut rates = Vec::new();
    let mut longest_us = 0;
    for _ in 0..site.runs() {
        let mut before = (0, Instant::now());
        let until = Until::Passed { warm_up: WARM_UP, span: site.span() };
        client::load(&home.queue(), &work, IN_FLIGHT, LANES, until, &mut || {
            supervisor.counters()?;
            before = (supervisor.stats()?.totals.tasks_succeeded, Instant::now());
            Ok(())
        })?;
        let done = supervisor.stats()?.totals.tasks_succeeded - before.0;
        rates.push(done as f64 / before.1.elapsed().as_secs_f64());
        longest_us = longest_us.max(supervisor.counters()?.longest_turn_us);
    }
    Ok((median(rates), longest_us as f64 / 1000.0))
}

/// Row 9: starts with everything pending, killed as soon as it is ready.
fn pending(home: &Home, report: &mut Report, count: usize, empty: u64) -> Outcome<()> {
    for (name, warm) in [("cold", false), ("warm", true)] {
        prepare(&home.queue(), warm)?;
        let read = reading(&home.queue())?;
        prepare(&home.queue(), warm)?;
        let supervisor = home.start(1, 1)?;
        let more = looks(supervisor.pid())?.resident_bytes.saturating_sub(empty);
        let took = supervisor.ready_after;
        supervisor.stop()?;
        let name = format!("start with {count} pending, page cache {name} (floor: reading the bytes)");
        report.add(9, name, "ms", millis(took), Some(millis(read)), Target::RatioAtMost(3.0));
        if warm {
            let each = more as f64 / count as f64;
            let most = 350.0 + INPUT.len() as f64;
            report.add(9, "memory per pending task", "B", each, None, Target::AtMost(most));
        }
    }
    Ok(())
}

/// Row 10: starts with everything finished and a thousand pending.
fn finished(home: &Home, report: &mut Report, mut supervisor: Supervisor, count: usize) -> Outcome<()> {
    let delayed = Work { delay_ms: Some(3_600_000), ..Work::of("totals", INPUT) };
    client::enqueue(&home.queue(), &delayed, 1000)?;
    let kept = supervisor.stats()?.totals.runs_succeeded;
    supervisor.stop()?;
    for (name, warm) in [("cold", false), ("warm", true)] {
        prepare(&home.queue(), warm)?;
        let read = reading(&home.queue())?;
        prepare(&home.queue(), warm)?;
        let supervisor = home.start(1, 1)?;
        let took = supervisor.ready_after;
        supervisor.stop()?;
        let name = format!("start with {kept} finished and 1,000 pending, page cache {name} (floor: reading)");
        let target = if warm { Target::AtMost(50.0) } else { Target::None };
        report.add(10, name, "ms", millis(took), Some(millis(read)), target);
    }
    if kept < count as u64 { Err(format!("only {kept} of {count} runs had finished").into()) } else { Ok(()) }
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

fn files(folder: &Path) -> Outcome<Vec<File>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.is_file() {
            files.push(File::open(path)?);
        }
    }
    Ok(files)
}

/// Brings the queue's files into the page cache, or out of it.
fn prepare(queue: &Path, warm: bool) -> Outcome<()> {
    if warm {
        reading(queue)?;
        return Ok(());
    }
    for file in files(queue)? {
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// How long reading every byte of the queue takes.
fn reading(queue: &Path) -> Outcome<Duration> {
    let begun = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    for mut file in files(queue)? {
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(begun.elapsed())
}
