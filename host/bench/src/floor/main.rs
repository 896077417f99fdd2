//! The floor: the same guest and the same promises to the disk with nothing between, in one process.
//!
//! What it leaves out of the product: messages between processes, the walls, JSON on the host, flows, retries, leases.
//! What it keeps: a fresh instance per task with fuel and epochs, a durable enqueue and a durable result, group commit.
//! Prints one JSON object; `scripts/bench` runs it beside the product and compares.

#[path = "../percentiles.rs"]
mod percentiles;

mod drive;
mod end_to_end;
mod guest;
mod log;

use std::{
    error::Error,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use rustix::time::ClockId;
use serde_json::{Value, json};
use tm_worker::confine::Walls;

use crate::{guest::Guest, log::Log, percentiles::Percentiles};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "The least that durable sandboxed tasks can cost on this machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Durable enqueue, fresh instance, durable result
    EndToEnd {
        #[arg(long)]
        component: PathBuf,
        #[arg(long)]
        input: String,
        /// Where the log is written
        #[arg(long)]
        folder: PathBuf,
        #[arg(long, default_value_t = 256)]
        in_flight: usize,
        #[arg(long, default_value_t = 2)]
        executors: usize,
        /// Tasks that an executor takes at once
        #[arg(long, default_value_t = 16)]
        batch: usize,
        #[arg(long, default_value_t = 2000)]
        duration_ms: u64,
    },
    /// Fresh instance, call, drop: one thread, nothing else
    Sandbox {
        #[arg(long)]
        component: PathBuf,
        #[arg(long)]
        input: String,
        #[arg(long, default_value_t = 1000)]
        duration_ms: u64,
    },
    /// One record and its fdatasync
    Sync {
        #[arg(long)]
        folder: PathBuf,
        #[arg(long, default_value_t = 300)]
        record_bytes: usize,
        #[arg(long, default_value_t = 500)]
        duration_ms: u64,
    },
    /// One worker process of the product, driven over its socket pair without a supervisor
    Drive(drive::DriveArgs),
    /// Is a worker, with fewer walls than the product's
    #[command(hide = true)]
    Worker { walls: String },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(Answer::Figures(figures)) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Ok(Answer::Worked(code)) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

enum Answer {
    Figures(Value),
    Worked(ExitCode),
}

fn run(command: Command) -> Outcome<Answer> {
    Ok(Answer::Figures(match command {
        Command::EndToEnd { component, input, folder, in_flight, executors, batch, duration_ms } => {
            let load = end_to_end::Load { input, in_flight, batch, duration: Duration::from_millis(duration_ms) };
            let guests = (0..executors).map(|_| Guest::load(&component)).collect::<Outcome<Vec<_>>>()?;
            end_to_end::run(guests, Log::create(&folder)?, &load)?
        }
        Command::Sandbox { component, input, duration_ms } => {
            sandbox(&Guest::load(&component)?, &input, Duration::from_millis(duration_ms))?
        }
        Command::Sync { folder, record_bytes, duration_ms } => {
            sync(Log::create(&folder)?, record_bytes, Duration::from_millis(duration_ms))?
        }
        Command::Drive(args) => drive::run(&args)?,
        Command::Worker { walls } => {
            let walls = match walls.as_str() {
                "both" => Walls::BOTH,
                "landlock" => Walls { landlock: true, seccomp: false },
                "none" => Walls { landlock: false, seccomp: false },
                other => return Err(format!("walls '{other}' is not one of both, landlock, none").into()),
            };
            return Ok(Answer::Worked(tm_worker::main_worker_with(tm_worker::inherited_socket(), walls)));
        }
    }))
}

/// Slices of the run by their mean, so that the median leaves out what the machine did beside.
fn sandbox(guest: &Guest, input: &str, duration: Duration) -> Outcome<Value> {
    const SLICE: u32 = 200;
    for _ in 0..2 * SLICE {
        guest.call(input)?;
    }
    let mut slices = Percentiles::default();
    let (begun, cpu, mut count) = (Instant::now(), processor(ClockId::ThreadCPUTime), 0_u64);
    while begun.elapsed() < duration {
        let slice = Instant::now();
        for _ in 0..SLICE {
            guest.call(input)?;
        }
        slices.add(slice.elapsed() / SLICE);
        count += u64::from(SLICE);
    }
    let cpu = processor(ClockId::ThreadCPUTime).saturating_sub(cpu);
    Ok(json!({ "median_us": slices.at(0.5), "cpu_us": cpu.as_secs_f64() * 1e6 / count as f64, "count": count }))
}

/// Time on a processor so far: what others do at the same time counts least in it.
pub(crate) fn processor(clock: ClockId) -> Duration {
    Duration::try_from(rustix::time::clock_gettime(clock)).unwrap_or_default()
}

fn sync(mut log: Log, record_bytes: usize, duration: Duration) -> Outcome<Value> {
    let record = vec![b'x'; record_bytes];
    let mut times = Percentiles::default();
    let begun = Instant::now();
    while begun.elapsed() < duration {
        let one = Instant::now();
        log.append(&record);
        log.commit()?;
        times.add(one.elapsed());
    }
    Ok(percentiles(&mut times))
}

pub(crate) fn percentiles(times: &mut Percentiles) -> Value {
    json!({ "p50_us": times.at(0.5), "p99_us": times.at(0.99), "p999_us": times.at(0.999) })
}
