//! Rows 6 and 7: the command line as a process, and a batch into a queue that nobody serves.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    Outcome, floor_of,
    percentiles::Percentiles,
    report::{Report, Target, median},
    site::{INPUT, Site},
    supervisor::Home,
};

pub(super) fn run(site: &Site, report: &mut Report) -> Outcome<()> {
    single(site, report)?;
    let mut rates = Vec::new();
    for run in 0..site.runs() {
        let home = Home::new(site, &format!("batch-{run}"))?;
        home.flow("totals", &["totals"], "")?;
        // The first enqueue registers the flow.
        spawned(home.command(&["enqueue", "flows/totals.yaml", "-i", INPUT]))?;
        rates.push(200_000.0 / batch(&home, &lines(&home.folder, 200_000)?)?.as_secs_f64());
    }
    report.add(7, "tm enqueue --batch -, no worker running", "/s", median(rates), None, Target::AtLeast(250_000.0));
    Ok(())
}

fn single(site: &Site, report: &mut Report) -> Outcome<()> {
    let home = Home::new(site, "process")?;
    home.flow("totals", &["totals"], "")?;
    let supervisor = home.start(1, 16)?;
    let (mut own, mut floor) = (Percentiles::default(), Percentiles::default());
    for _ in 0..if site.quick { 50 } else { 300 } {
        let mut nothing = Command::new("/bin/true");
        nothing.env_clear();
        floor.add(spawned(nothing)?);
        own.add(spawned(home.command(&["enqueue", "totals", "-i", INPUT]))?);
    }
    supervisor.stop()?;
    let sync_us = floor_of::sync_us(site)?;
    let most_us = 4.0 * floor.at(0.5) + sync_us;
    report.add(6, "tm enqueue as a process, p50", "us", own.at(0.5), Some(most_us), Target::RatioAtMost(1.0));
    report.add(6, "  spawn of /bin/true, p50", "us", floor.at(0.5), None, Target::None);
    report.add(6, "  one sync, p50", "us", sync_us, None, Target::None);
    report.add(6, "tm enqueue as a process, p99", "us", own.at(0.99), Some(floor.at(0.99)), Target::None);
    Ok(())
}

fn spawned(mut command: Command) -> Outcome<Duration> {
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if status.success() { Ok(begun.elapsed()) } else { Err(format!("{command:?} ended with {status}").into()) }
}

/// A file of so many lines for `--batch`.
pub(super) fn lines(folder: &Path, count: usize) -> Outcome<PathBuf> {
    let path = folder.join("lines.jsonl");
    let mut out = BufWriter::new(File::create(&path)?);
    for _ in 0..count {
        writeln!(out, "{{\"input\":{INPUT},\"priority\":0}}")?;
    }
    out.flush()?;
    Ok(path)
}

/// Enqueues the lines through standard input; how long the process took.
pub(super) fn batch(home: &Home, lines: &Path) -> Outcome<Duration> {
    let begun = Instant::now();
    let mut command = home.command(&["enqueue", "totals", "--batch", "-"]);
    let answers = home.folder.join("answers.jsonl");
    let status = command.stdin(File::open(lines)?).stdout(File::create(&answers)?).status()?;
    let took = begun.elapsed();
    fs::remove_file(answers)?;
    if status.success() { Ok(took) } else { Err(format!("the batch ended with {status}").into()) }
}
