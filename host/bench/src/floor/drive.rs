//! One worker process of the product, driven over its socket pair: what a fresh sandbox costs inside the walls.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use clap::Args;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde_json::{Value, json};
use tm_core::{
    id::{RunId, TaskRef},
    json::Json,
    limits::Limits,
    wire::{
        Body, ExecuteInit, FromWorker, Init, Outcome as Ended, Required, Start, StartContext, StartGrants, ToWorker,
    },
};
use tm_worker::{
    packet::{self, Receiver},
    sandbox::engine,
};

use crate::{Outcome, percentiles::Percentiles};

#[derive(Args)]
pub(crate) struct DriveArgs {
    #[arg(long)]
    component: PathBuf,
    #[arg(long)]
    input: String,
    /// The product, or with `--walls` this program
    #[arg(long)]
    program: PathBuf,
    /// Start `PROGRAM worker WALLS` instead of the product's worker
    #[arg(long)]
    walls: Option<String>,
    /// Starts a component that is not there: the messages without the sandbox
    #[arg(long)]
    refused: bool,
    /// Attempts that are started ahead of their reports
    #[arg(long, default_value_t = 64)]
    concurrency: u32,
    #[arg(long, default_value_t = 1000)]
    duration_ms: u64,
}

/// Reports per slice of the figures.
const SLICE: u64 = 2_000;
const WARM_UP: u64 = 4_000;
const MEMORY_MAX_MB: u32 = 16;

struct Worker {
    child: Child,
    socket: OwnedFd,
    receiver: Receiver,
}

impl Worker {
    fn start(args: &DriveArgs) -> Outcome<Self> {
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // The shell puts the socket where a worker expects it.
        let mut command = Command::new("sh");
        command.args(["-c", r#"exec 3<&0 </dev/null; exec "$@""#, "worker"]).arg(&args.program);
        match &args.walls {
            Some(walls) => command.args(["worker", walls]),
            None => command.arg(tm_worker::ROLE),
        };
        command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::from(theirs)).stdout(Stdio::null());
        Ok(Self { child: command.spawn()?, socket, receiver: Receiver::new() })
    }

    fn send(&self, messages: &[ToWorker], fds: &[OwnedFd]) -> Outcome<()> {
        Ok(packet::send_messages(self.socket.as_fd(), messages, fds)?)
    }

    fn receive(&mut self) -> Outcome<Vec<FromWorker>> {
        let packet = self.receiver.receive(self.socket.as_fd())?.ok_or("the worker ended")?;
        Ok(packet.messages()?)
    }

    /// Nanoseconds on a processor, of all its threads.
    fn cpu(&self) -> Outcome<Duration> {
        let mut nanos = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            nanos += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).ok_or("schedstat has no number")?;
        }
        Ok(Duration::from_nanos(nanos))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn run(args: &DriveArgs) -> Outcome<Value> {
    let native = engine::compiler()?.precompile_component(&fs::read(&args.component)?)?;
    let mut worker = Worker::start(args)?;
    let init = Init::Execute(ExecuteInit {
        folders: Vec::new(),
        concurrency: args.concurrency,
        heartbeat_ms: 5_000,
        memory_max_mb: MEMORY_MAX_MB,
        stack_max_kb: 1024,
        required: Required::default(),
        allow_weaker: false,
    });
    packet::send_messages(worker.socket.as_fd(), &[init], &[])?;
    worker.send(&[ToWorker::Load { component: 0 }], &[packet::sealed("native", &native)?])?;
    let mut loaded = false;
    while !loaded {
        for message in worker.receive()? {
            match message {
                FromWorker::Loaded { .. } => loaded = true,
                FromWorker::Ready(_) | FromWorker::Heartbeat { .. } => {}
                other => return Err(format!("the worker cannot run the component: {other:?}").into()),
            }
        }
    }

    let input = Json::parse(&args.input)?;
    let task = TaskRef { run: RunId(7), step: 0, item: None };
    let mut attempt = 0;
    let mut start = || {
        attempt += 1;
        ToWorker::Start(Box::new(Start {
            task,
            attempt,
            component: u32::from(args.refused),
            context: StartContext {
                flow_id: "bench".to_owned(),
                step_id: "totals".to_owned(),
                max_attempts: 5,
                deadline_ms: 0,
                trace_parent: None,
            },
            input: Body::Inline(input.clone()),
            limits: Limits { memory_mb: MEMORY_MAX_MB, ..Limits::DEFAULT },
            grants: StartGrants::default(),
            in_flight: args.concurrency.into(),
        }))
    };
    let duration = Duration::from_millis(args.duration_ms);
    let mut starts: Vec<ToWorker> = (0..args.concurrency).map(|_| start()).collect();
    let (mut reports, mut exec_us) = (0_u64, 0_u64);
    let (mut begun, mut cpu_before) = (Instant::now(), Duration::ZERO);
    let (mut slice, mut in_slice, mut slices) = (Instant::now(), 0, Percentiles::default());
    let mut warm = false;
    loop {
        // Batches of half a packet at most.
        for some in starts.chunks(64) {
            worker.send(some, &[])?;
        }
        starts.clear();
        for message in worker.receive()? {
            let FromWorker::Report(report) = message else { continue };
            let expected = match report.outcome {
                Ended::Succeeded { .. } => !args.refused,
                Ended::NotStarted { .. } => args.refused,
                Ended::Failed(_) => false,
            };
            if !expected {
                return Err(format!("an attempt failed: {:?}", report.outcome).into());
            }
            reports += 1;
            in_slice += 1;
            exec_us += report.usage.exec_us;
            starts.push(start());
        }
        if !warm && reports >= WARM_UP {
            (warm, reports, exec_us, in_slice) = (true, 0, 0, 0);
            (begun, slice, cpu_before) = (Instant::now(), Instant::now(), worker.cpu()?);
        }
        if warm && in_slice >= SLICE {
            slices.add(slice.elapsed() / u32::try_from(in_slice)?);
            (slice, in_slice) = (Instant::now(), 0);
        }
        if warm && begun.elapsed() >= duration {
            break;
        }
    }
    let cpu = worker.cpu()?.saturating_sub(cpu_before);
    Ok(json!({
        "median_us": slices.at(0.5),
        "worker_cpu_us": cpu.as_secs_f64() * 1e6 / reports as f64,
        "reported_exec_us": exec_us as f64 / reports as f64,
        "count": reports,
    }))
}
