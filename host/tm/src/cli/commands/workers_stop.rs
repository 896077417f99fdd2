//! `tm workers stop`: a signal to the recorded supervisor, never to a stranger, and how it ended.

use std::{
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tm_supervisor::daemon::pid_file::{self, Recorded};

use crate::cli::{
    args::{Signal as Wanted, StopArgs},
    exit::{End, Failure, Outcome, reason},
};

/// Between two looks at whether the supervisor stands still.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// How long one that stands still is waited for.
const STOPPED_PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(args: &StopArgs) -> Outcome {
    let (pid, process) = supervisor(&args.pid_file)?;
    let (signal, name) = match args.signal {
        Wanted::Term => (Signal::TERM, "SIGTERM"),
        Wanted::Int => (Signal::INT, "SIGINT"),
    };
    let sent = Instant::now();
    match pidfd_send_signal(&process, signal) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Err(stale(&args.pid_file, Some(pid))),
        Err(error) => return Err(Failure::failed(format!("cannot signal process {pid}: {}", reason(&error.into())))),
    }
    let mut out = io::stdout().lock();
    writeln!(out, "sent {name} to worker supervisor (pid {pid})")?;
    out.flush()?;
    if args.no_wait {
        return Ok(End::Done);
    }
    let ended = wait(pid, &process);
    if !ended.map_err(|error| Failure::failed(format!("cannot wait for {pid}: {}", reason(&error.into()))))? {
        let seconds = STOPPED_PATIENCE.as_secs();
        let message = format!("the supervisor (pid {pid}) has stood still (SIGSTOP) for {seconds} s");
        return Err(Failure::busy(message).hint(format!("it obeys {name} as soon as it goes on: kill -CONT {pid}")));
    }
    let seconds = sent.elapsed().as_secs_f64();
    // A supervisor that ends in order takes its pid file along.
    let left = pid_file::read(&args.pid_file).map_err(|error| Failure::io("read", &args.pid_file, &error))?;
    if left == (Recorded::Stale { pid: Some(pid) }) {
        let message = format!("worker supervisor (pid {pid}) ended in {seconds:.1} s without a clean stop");
        return Err(Failure::failed(message).hint("nothing is lost: the next start queues again what ran"));
    }
    writeln!(out, "worker supervisor (pid {pid}) drained and ended in {seconds:.1} s")?;
    Ok(End::Done)
}

/// The recorded supervisor, held by a descriptor: from then on its number cannot be given to another behind our back.
fn supervisor(path: &Path) -> Result<(u32, OwnedFd), Failure> {
    let (pid, started) = match pid_file::read(path) {
        Ok(Recorded::Running { pid, started }) => (pid, started),
        Ok(Recorded::Stale { pid }) => return Err(stale(path, pid)),
        Ok(Recorded::None) => {
            return Err(Failure::busy(format!("no worker supervisor is recorded in {}", path.display()))
                .hint("name the file that 'tm workers start' wrote: --pid-file FILE"));
        }
        Err(error) => return Err(Failure::io("read", path, &error)),
    };
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| stale(path, Some(pid)))?;
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Err(stale(path, Some(pid))),
        Err(error) => return Err(Failure::failed(format!("cannot watch process {pid}: {}", reason(&error.into())))),
    };
    if pid_file::start_time(pid) != Some(started) {
        return Err(stale(path, Some(pid)));
    }
    Ok((pid, process))
}

fn stale(path: &Path, pid: Option<u32>) -> Failure {
    let what = match pid {
        None => format!("{} does not hold a process id", path.display()),
        Some(pid) => format!("{} is stale: process {pid} is not the supervisor that wrote it", path.display()),
    };
    Failure::busy(what).hint("nothing was signalled; the next start replaces the file")
}

/// Until the process has ended. The supervisor bounds its drain itself; a second `stop` makes it end at once. False: it
/// stands still and will not.
fn wait(pid: u32, process: &OwnedFd) -> Result<bool, Errno> {
    let mut still_since = None;
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&LOOK_AGAIN)) {
            Ok(0) if !pid_file::is_stopped(pid) => still_since = None,
            Ok(0) => {
                let since = *still_since.get_or_insert_with(|| {
                    eprintln!("waiting for the supervisor (pid {pid}), which stands still (SIGSTOP)");
                    Instant::now()
                });
                if since.elapsed() >= STOPPED_PATIENCE {
                    return Ok(false);
                }
            }
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
