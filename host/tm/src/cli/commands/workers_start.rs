//! `tm workers start`: the supervisor in the foreground.

use std::{
    io::{self, Write as _},
    path::Path,
};

use tm_supervisor::{
    config::{Backend, Fsync, Queue},
    run::{Ended, Options, Ready, supervise},
};

use crate::cli::{
    args::{self, StartArgs},
    exit::{End, Failure, Outcome},
    render, settings,
};

/// The default of `--runtime`; only a folder that is named must exist.
const RUNTIME: &str = "flows";

pub(crate) fn run(args: StartArgs) -> Outcome {
    let options = options(args)?;
    let ended = supervise(&options, &mut |ready| {
        // A closed standard output is no reason to stop a supervisor.
        let _ = announce(&options, ready);
    })?;
    match ended {
        Ended::Drained => tracing::info!("drained"),
        Ended::Stopped { aborted } => {
            eprintln!("warning: stopped {}, queued again", render::count(aborted, "running step"));
        }
    }
    Ok(End::Done)
}

fn options(args: StartArgs) -> Result<Options, Failure> {
    let runtime = args.runtime;
    if runtime.to_string_lossy().contains(':') {
        return Err(Failure::usage(format!(
            "--runtime '{}' names code; a runtime is a folder of flows",
            runtime.display()
        ))
        .hint("flows are files and their steps WebAssembly: no module is imported; pass --runtime flows"));
    }
    args.folders.check()?;
    let mut settings = settings::load(args.folders.config.as_deref())?;
    if let Some(backend) = args.backend.queue {
        settings.queue.backend = match backend {
            args::Backend::File => Backend::File,
            args::Backend::Memory => Backend::Memory,
        };
    }
    let set = |place: &mut u64, flag: Option<u64>| *place = flag.unwrap_or(*place);
    set(&mut settings.queue.lease_ms, args.lease_ms);
    set(&mut settings.result_ttl_ms, args.result_ttl);
    set(&mut settings.workers.heartbeat_ms, args.heartbeat);
    set(&mut settings.workers.heartbeat_timeout_ms, args.heartbeat_timeout);
    set(&mut settings.workers.drain_grace_ms, args.drain_grace);
    settings.workers.num = args.num.unwrap_or(settings.workers.num);
    settings.workers.concurrency = args.concurrency.unwrap_or(settings.workers.concurrency);
    settings.check()?;
    if settings.queue.backend == Backend::Memory && settings.workers.num != 1 {
        return Err(Failure::usage(format!("a memory queue has one worker, not {}", settings.workers.num))
            .hint("use -n 1, or --queue file"));
    }
    Ok(Options {
        settings,
        config: settings::path(args.folders.config.as_deref()),
        roots: args.folders.roots(),
        runtime_named: runtime != Path::new(RUNTIME),
        runtime,
        pid_file: args.pid_file,
        worker_user: args.worker_user,
        allow_weaker: args.allow_weaker_confinement,
    })
}

/// Numbers for the operator go to standard error; the last line, on standard output, says that it is ready.
fn announce(options: &Options, ready: &Ready) -> io::Result<()> {
    let mut err = io::stderr().lock();
    for reason in &ready.not_loaded {
        writeln!(err, "warning: not loaded: {reason}")?;
    }
    for missing in &ready.missing {
        writeln!(err, "warning: weaker confinement: {missing}")?;
    }
    if ready.damaged_records > 0 {
        let records = render::count(ready.damaged_records, "damaged record");
        writeln!(err, "warning: skipped {records}; see: tm queue verify")?;
    }
    if options.settings.queue.backend == Backend::Memory {
        writeln!(err, "warning: a memory queue is lost with this process")?;
    }
    if let Some(lost) = lost_by_power(&options.settings.queue) {
        writeln!(err, "warning: {lost}")?;
    }
    writeln!(
        err,
        "flows: {}, workers: {} with at most {} MiB of memory together, and never more than {} MiB (workers.memory_max); {} KiB of disk reserved per running step; {} recovered",
        ready.flows,
        ready.workers,
        ready.memory_bound_bytes.div_ceil(1 << 20),
        ready.memory_max_bytes >> 20,
        ready.end_reserve_bytes.div_ceil(1 << 10),
        render::count(ready.recovered_runs, "run")
    )?;
    let mut out = io::stdout().lock();
    writeln!(out, "worker supervisor running (pid {}); ctrl-c or 'tm workers stop' to drain", ready.pid)?;
    out.flush()
}

/// What a power failure may take of this queue, when it may take anything.
fn lost_by_power(queue: &Queue) -> Option<&'static str> {
    match (queue.backend, queue.fsync) {
        (Backend::Memory, _) | (_, Fsync::Always) => None,
        (Backend::File, Fsync::Interval) => Some(
            "queue.fsync is \"interval\": a power failure may take what was acknowledged in the last second, and finished steps run again",
        ),
        (Backend::File, Fsync::Never) => Some(
            "queue.fsync is \"never\": a power failure may take work that was acknowledged, and finished steps run again",
        ),
    }
}
