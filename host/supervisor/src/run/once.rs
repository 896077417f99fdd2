//! `tm run`: one run in memory, by one confined worker.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::mpsc,
};

use tm_core::{
    api::{EnqueueRequest, RegisterRequest, Reply, Request, RunEnd},
    queue::effect::Ticket,
};

use super::{Happening, Options, RunError, open::Life, private::Private, session::Session};
use crate::{
    clock::Clock,
    config::Fsync,
    daemon::{ApiCall, Incoming},
    store::disk::{Disk, RealDisk},
};

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Once {
    pub end: RunEnd,
    pub warnings: Vec<String>,
    /// Files that were copied to `--out`.
    pub copied: usize,
}

/// Registers the flow, runs it once and returns how it ended. A stalled run counts as ended. Artefacts are copied to
/// `out`. Nothing stays behind.
///
/// # Errors
/// When the flow or the request is refused, or no worker can be started.
pub fn run_once(
    options: &Options,
    flow: RegisterRequest,
    components: Vec<OwnedFd>,
    request: EnqueueRequest,
    out: Option<&Path>,
) -> Result<Once, RunError> {
    let private = Private::make()?;
    let mut options = Options { roots: private.roots(), ..options.clone() };
    options.settings.queue.fsync = Fsync::Never;
    options.settings.workers.num = 1;
    let disk = RealDisk::create(&options.roots)?;
    let (sender, inbox) = mpsc::channel();
    let mut clock = Clock::new();
    let (mut session, _) = Session::open(&options, disk, "memory", &sender, Life::Supervisor, clock.now())?;
    let mut ask = |session: &mut Session<RealDisk>, number: u64, request: Request, fds: Vec<OwnedFd>| {
        let ticket = Ticket(number);
        session.take(Happening::Edge(Incoming::Call(ApiCall { ticket, connection: 0, request, fds })))?;
        loop {
            let due = session.turn(&mut clock)?;
            if let Some(at) = session.house.replies.iter().position(|(other, _)| *other == ticket) {
                return match session.house.replies.swap_remove(at).1 {
                    Reply::Error(error) => Err(RunError::Refused(Box::new(error))),
                    reply => Ok(reply),
                };
            }
            wait(session, &inbox, due.map(|due| due.since(clock.now())))?;
        }
    };
    let tenant = flow.tenant.clone();
    let warnings = match ask(&mut session, 1, Request::Register(Box::new(flow)), components)? {
        Reply::Registered { warnings, .. } => warnings,
        _ => return Err(RunError::Lonely),
    };
    let run = match ask(&mut session, 2, Request::Enqueue(Box::new(request)), Vec::new())? {
        Reply::Enqueued { run } => run,
        _ => return Err(RunError::Lonely),
    };
    let end = match ask(&mut session, 3, Request::Wait { run }, Vec::new())? {
        Reply::Ended(end) => *end,
        _ => return Err(RunError::Lonely),
    };
    drop(session);
    let results = options.roots.store.join("tenants").join(tenant).join("results").join(run.to_string());
    let copied = match out {
        Some(out) => copy_results(&results, out)?,
        None => 0,
    };
    Ok(Once { end, warnings, copied })
}

fn wait<D: Disk>(
    session: &mut Session<D>,
    inbox: &mpsc::Receiver<Happening>,
    span_ms: Option<u64>,
) -> Result<(), RunError> {
    let first = match span_ms {
        None => inbox.recv().map_err(|_| RunError::Lonely).map(Some)?,
        Some(ms) => inbox.recv_timeout(std::time::Duration::from_millis(ms)).ok(),
    };
    for happening in first.into_iter().chain(inbox.try_iter()) {
        session.take(happening)?;
    }
    Ok(())
}

/// Copies the artefacts of every step as `out/STEP[item]/NAME`. The manifests stay behind.
fn copy_results(results: &Path, out: &Path) -> Result<usize, RunError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RunError::Folder { path, source }
    };
    std::fs::create_dir_all(out).map_err(failed(out))?;
    if !results.is_dir() {
        return Ok(0);
    }
    let mut copied = 0;
    let mut left: Vec<(PathBuf, PathBuf)> = vec![(results.to_owned(), out.to_owned())];
    while let Some((from, to)) = left.pop() {
        for entry in std::fs::read_dir(&from).map_err(failed(&from))? {
            let entry = entry.map_err(failed(&from))?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type().map_err(failed(&source))?;
            if kind.is_dir() {
                std::fs::create_dir_all(&target).map_err(failed(&target))?;
                left.push((source, target));
            } else if kind.is_file() && from != results {
                std::fs::copy(&source, &target).map_err(failed(&target))?;
                copied += 1;
            }
        }
    }
    Ok(copied)
}
