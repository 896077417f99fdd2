//! A running supervisor: started, asked through its socket, signalled, and never left behind.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tm_core::{
    api::{EnqueueRequest, ListRequest, Reply, Request, RunDetail, RunState, Stats, TaskState, WorkerRow},
    json::Json,
};
use tm_supervisor::daemon::Client;

use crate::home::{Home, until};

/// Sends a signal to a process that a test started or that a supervisor named as its worker.
pub(crate) fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Whether a process exists, reaped ones not.
pub(crate) fn exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Spawns a supervisor and waits for its first line.
pub(crate) fn started(command: &mut Command) -> (Child, String) {
    let mut child = command.spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    (child, ready)
}

/// A supervisor that is ready; killed if a test leaves it behind.
pub(crate) struct Supervisor<'a> {
    home: &'a Home,
    child: Child,
    client: Client,
}

impl<'a> Supervisor<'a> {
    pub(crate) fn start(home: &'a Home, arguments: &[&str]) -> Self {
        Self::start_with(home, &[], arguments)
    }

    pub(crate) fn start_with(home: &'a Home, variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        Self::start_by(home, arguments, |command| started(command.envs(variables.iter().copied())))
    }

    /// Starts it by a function that spawns the command.
    pub(crate) fn start_by(
        home: &'a Home,
        arguments: &[&str],
        spawn: impl FnOnce(&mut Command) -> (Child, String),
    ) -> Self {
        let mut command = home.command(&[&["workers", "start"], arguments].concat());
        let log = File::options().create(true).append(true).open(home.path("supervisor.log")).unwrap();
        let (child, ready) = spawn(command.env("TM_LOG", "info").stdout(Stdio::piped()).stderr(log));
        let client = Client::connect(&home.path("data/queue"));
        assert!(ready.starts_with("worker supervisor running"), "{ready}{}", log_of(home));
        Self { home, child, client: client.unwrap() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Reply {
        self.client.call(request).unwrap()
    }

    pub(crate) fn workers(&mut self) -> Vec<WorkerRow> {
        match self.ask(&Request::Workers) {
            Reply::Workers(rows) => rows,
            other => panic!("not the workers: {other:?}"),
        }
    }

    pub(crate) fn stats(&mut self) -> Stats {
        match self.ask(&Request::Stats) {
            Reply::Stats(stats) => stats,
            other => panic!("not the counts: {other:?}"),
        }
    }

    /// The runs of each of these tenants that succeeded, while the queue keeps them.
    pub(crate) fn succeeded<const N: usize>(&mut self, tenants: [&str; N]) -> [usize; N] {
        let mut list = ListRequest { state: Some("succeeded".to_owned()), ..ListRequest::default() };
        let mut found = [0; N];
        loop {
            let Reply::Runs { rows, below } = self.ask(&Request::List(list.clone())) else { panic!("not the runs") };
            for (found, tenant) in found.iter_mut().zip(tenants) {
                *found += rows.iter().filter(|row| row.tenant == tenant).count();
            }
            if below.is_none() {
                return found;
            }
            list.below = below;
        }
    }

    pub(crate) fn show(&mut self, run: &str) -> RunDetail {
        match self.ask(&Request::Show { id: run.to_owned() }) {
            Reply::Run(run) => *run,
            other => panic!("not a run: {other:?}"),
        }
    }

    /// Enqueues the same run `count` times at once and returns their ids.
    pub(crate) fn enqueue_all(&mut self, flow: &str, input: &str, count: usize) -> Vec<String> {
        let request = EnqueueRequest::of("default", flow, Json::parse(input).unwrap());
        let requests = vec![Request::Enqueue(Box::new(request)); count];
        let mut runs = Vec::new();
        let answered = |_, reply| match reply {
            Reply::Enqueued { run } => runs.push(run.to_string()),
            other => panic!("not enqueued: {other:?}"),
        };
        self.client.pipeline(requests, answered).unwrap();
        runs
    }

    /// Waits until the first task of a run is running and returns its attempt and the worker that runs it.
    pub(crate) fn running(&mut self, run: &str) -> (u32, WorkerRow) {
        until("a running step", || {
            let worker = self.worker_of(run)?;
            let attempt = self.show(run).tasks[0].attempts.last()?.attempt;
            Some((attempt, worker))
        })
    }

    /// The worker that runs the first task of a run now.
    pub(crate) fn worker_of(&mut self, run: &str) -> Option<WorkerRow> {
        let detail = self.show(run);
        let task = &detail.tasks[0];
        let worker = task.attempts.last().filter(|_| task.state == TaskState::Leased)?.worker;
        self.workers().into_iter().find(|row| row.worker == worker)
    }

    /// Waits until a run is no longer active.
    pub(crate) fn ended(&mut self, run: &str) -> RunDetail {
        until("the end of a run", || Some(self.show(run)).filter(|run| run.state != RunState::Active))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// Waits until the log of the supervisor says something.
    pub(crate) fn says(&self, what: &str) {
        until(what, || log_of(self.home).contains(what).then_some(()));
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> ExitStatus {
        until("the supervisor's end", || self.child.try_wait().unwrap())
    }

    /// Drains it.
    pub(crate) fn stop(self) {
        self.signal(Signal::TERM);
        assert!(self.wait().success());
    }
}

impl Drop for Supervisor<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_of(home: &Home) -> String {
    fs::read_to_string(home.path("supervisor.log")).unwrap_or_default()
}
