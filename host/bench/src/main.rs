//! `scripts/bench`: one command that tells how fast the product is, beside its floor, measured in the same run.
//!
//! Each row starts what it measures on a queue of its own, on the local disk with every sync, and ends it again.

mod client;
mod floor_of;
mod percentiles;
mod report;
mod rows;
mod site;
mod supervisor;

use std::{error::Error, fs, path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;

use crate::{report::Report, rows::ROWS, site::Site};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "Measures the product beside its floor", after_help = "Example:\n  scripts/bench 1 3 --quick")]
struct Cli {
    /// Numbers of rows; none: all
    #[arg(value_name = "ROW")]
    rows: Vec<u8>,
    /// Shorter and fewer runs: for a look, not for a record
    #[arg(long)]
    quick: bool,
    /// Writes the figures as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Names the rows
    #[arg(long)]
    list: bool,
    /// Worker processes of the throughput rows
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// Steps interleaved in one worker of the throughput rows
    #[arg(long, default_value_t = 64)]
    concurrency: u32,
    /// Where queues are made: on a disk, not in memory
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    work: PathBuf,
    /// The folder of the components `totals.wasm`, `nap.wasm` and `compute.wasm`
    #[arg(long, value_name = "DIR", default_value = "tests/guests/target/wasm32-wasip2/release")]
    guests: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for row in ROWS {
            println!("{:>3}  {}", row.numbers.iter().map(u8::to_string).collect::<Vec<_>>().join(","), row.what);
        }
        return ExitCode::SUCCESS;
    }
    match measure(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> Outcome<()> {
    if let Some(unknown) = cli.rows.iter().find(|number| !ROWS.iter().any(|row| row.numbers.contains(number))) {
        return Err(format!("there is no row {unknown}; see --list").into());
    }
    let site = Site::new(&cli.work, &cli.guests, cli.quick, cli.workers, cli.concurrency)?;
    let begun = Instant::now();
    let mut report = Report::default();
    report.business.push(Site::business()?);
    let mut failed = 0;
    for row in ROWS {
        if !cli.rows.is_empty() && !row.numbers.iter().any(|number| cli.rows.contains(number)) {
            continue;
        }
        eprintln!("[{:>4.0} s] {}", begun.elapsed().as_secs_f64(), row.what);
        // A row that cannot be measured is named and left out; the others still count.
        if let Err(error) = (row.run)(&site, &mut report) {
            failed += 1;
            eprintln!("         not measured: {error}");
        }
    }
    report.business.push(Site::business()?);
    eprintln!("[{:>4.0} s] done", begun.elapsed().as_secs_f64());
    println!("{report}");
    if let Some(path) = &cli.json {
        fs::write(path, serde_json::to_vec_pretty(&report.json(&site))?)?;
    }
    if failed > 0 { Err(format!("{failed} rows were not measured").into()) } else { Ok(()) }
}
