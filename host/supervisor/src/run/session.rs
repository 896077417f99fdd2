//! The queue with all that surrounds it, one happening at a time: what the loop of a supervisor and the short life of a
//! command without one have in common.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::OwnedFd,
    time::Duration,
};

use tm_core::{
    api::{ApiError, Counters, ErrorKind, Reply, Request},
    code,
    id::WorkerId,
    json::{Json, Payload},
    limits::{INPUT_MAX_BYTES, INPUTS_PER_TURN_MAX},
    queue::{
        decide::unfiled,
        effect::{Input, Ticket},
    },
    time::Millis,
    wire::FromWorker,
};

use super::{
    Happening, RunError,
    answers::{Asked, answer},
    house::House,
    jobs::Lane,
    register::Registrar,
    sweep::Sweeper,
};
use crate::{
    clock::{Clock, Moved},
    daemon::{ApiCall, Incoming, RoundRobin, Signal, edge::connection_of},
    store::disk::Disk,
    turn::{Shell, Turn},
    workers::PoolEvent,
};

/// Until a dead letter's file is tried again.
const FILE_AGAIN_MS: u64 = 5_000;

pub(super) struct Session<D: Disk> {
    pub(super) turn: Turn<D>,
    pub(super) house: House<D>,
    pub(super) registrar: Registrar<D>,
    /// Writes large outputs and moves artefacts to their place, before their step's success is logged.
    pub(super) movers: Lane,
    /// Ends of attempts that these threads have in hand, by worker.
    pub(super) ending: BTreeMap<WorkerId, usize>,
    pub(super) backend: &'static str,
    pub(super) sweeper: Sweeper,
    /// A dead letter's file could not be written since the last turn; when that is tried again.
    pub(super) unfiled: bool,
    pub(super) file_at: Option<Millis>,
    /// What a signal asked for last.
    pub(super) signal: Option<Signal>,
    /// Ends of attempts, taken before requests.
    pub(super) reports: VecDeque<Input>,
    pub(super) requests: RoundRobin<Input>,
    pub(super) reads: Vec<(Ticket, Request)>,
    pub(super) turns: u64,
    /// Since it was asked for last.
    pub(super) longest_turn: Duration,
}

impl<D: Disk> Session<D> {
    /// Takes one happening in; what it asks for is done by the next turn.
    ///
    /// # Errors
    /// When no worker can be started at all.
    pub(super) fn take(&mut self, happening: Happening) -> Result<(), RunError> {
        match happening {
            Happening::Edge(Incoming::Call(call)) => self.call(call),
            Happening::Edge(Incoming::Closed { connection }) => {
                // What it asked for is still done: it may have read that its request was taken.
                self.house.forget_waiters(connection);
            }
            Happening::Edge(Incoming::Signal(signal)) => self.signal = Some(signal),
            Happening::Unfiled => self.unfiled = true,
            // The turn that follows asks the house.
            Happening::CaughtUp => {}
            Happening::Input(input) => self.reports.push_back(input),
            Happening::Made { run, step, made } => {
                self.house.making -= 1;
                self.reports.push_back(Input::Made { run, step, made });
            }
            Happening::Registered { ticket, outcome } => match outcome {
                Ok(input) => self.requests.push(connection_of(ticket), *input),
                Err(error) => self.house.replies.push((ticket, Reply::Error(*error))),
            },
            Happening::Compiled { key, outcome } => self.house.compiled(&key, outcome),
            Happening::LeftArtifacts(runs) => self.sweeper.asked(runs),
            Happening::Ended { from, report } => self.ended(from, report),
            Happening::Pool(event) => self.pool_event(event)?,
        }
        Ok(())
    }

    /// One turn, and the answers to what only reads. Returns when the next one is due without a happening.
    ///
    /// # Errors
    /// When the log failed: the caller must stop.
    pub(super) fn turn(&mut self, clock: &mut Clock) -> Result<Option<Millis>, RunError> {
        let now = clock.now();
        if let Some(Moved { leapt_ms, ahead_ms }) = clock.moved() {
            self.turn.state.clock_moved(leapt_ms, ahead_ms);
        }
        self.turns += 1;
        self.house.catalogue.refresh();
        let held = self.house.try_held(now);
        self.reports.append(&mut self.house.inputs);
        let mut inputs = VecDeque::new();
        while inputs.len() < INPUTS_PER_TURN_MAX
            && let Some(input) = self.reports.pop_front().or_else(|| self.requests.pop())
        {
            match self.refused(&input) {
                None => inputs.push_back(input),
                Some(refused) => self.house.replies.push(refused),
            }
        }
        let deadline = self.turn.turn(now, &mut inputs, &mut self.house)?;
        for (ticket, request) in std::mem::take(&mut self.reads) {
            self.read(ticket, &request, now);
        }
        if let Some(pool) = &mut self.house.pool {
            pool.flush();
        }
        let more = !self.is_settled();
        let unnamed = self.house.making > 0 || !self.ending.is_empty() || self.turn.has_made();
        if !more && !unnamed && !self.sweeper.is_running() {
            self.house.blobs.unpin();
        }
        self.file_again(now);
        let asks = self.sweeper.ask(self.turn.ended(now), &self.house);
        let swept = self.sweeper.turn(now, &self.turn, &self.house);
        let paused = self.house.pause.until();
        let due = [deadline, self.house.again_at.take(), swept, self.file_at, held, paused, asks.then_some(now)];
        let due = due.into_iter().flatten().min();
        Ok(if more { Some(now) } else { due })
    }

    /// Whether everything that was taken in is decided.
    pub(super) fn is_settled(&self) -> bool {
        self.reports.is_empty() && self.requests.is_empty() && self.house.inputs.is_empty()
    }

    /// Whether another turn gets further without a happening.
    pub(super) fn goes_on(&self) -> bool {
        !self.is_settled() || (self.turn.has_bulk() && self.house.keeps_up())
    }

    /// Dead letters whose files could not be written are filed again once in a while, until the disk takes them.
    fn file_again(&mut self, now: Millis) {
        if std::mem::take(&mut self.unfiled) && self.file_at.is_none() {
            self.file_at = Some(now.plus(FILE_AGAIN_MS));
        }
        if self.file_at.is_some_and(|at| at <= now) {
            self.file_at = None;
            for effect in unfiled(&self.turn.state) {
                self.house.perform(self.turn.ended(now), effect, now);
            }
        }
    }

    /// An enqueue of a flow that was registered under another ceiling: as registering it now would be refused.
    fn refused(&self, input: &Input) -> Option<(Ticket, Reply)> {
        let Input::Enqueue { ticket, request, .. } = input else { return None };
        let no = self.turn.state.latest_flow(&request.tenant, &request.flow)?;
        let message = self.house.catalogue.excesses(no, self.turn.state.flows.get(&no)?)?;
        let hint =
            format!("flow '{}' was registered when the configuration allowed it; nothing was enqueued", request.flow);
        let (kind, code) = (ErrorKind::Invalid, Some(code::CAPABILITY_DENIED.to_owned()));
        Some((*ticket, Reply::Error(ApiError { kind, code, message, hint: Some(hint), retry_after_ms: None })))
    }

    fn call(&mut self, call: ApiCall) {
        let ApiCall { ticket, request, fds, .. } = call;
        let connection = connection_of(ticket);
        match request {
            Request::Enqueue(mut request) => {
                let json = std::mem::replace(&mut request.input, Json::null());
                // Too large is refused by the decision; it must not become a blob first.
                let input = if json.size_bytes() > INPUT_MAX_BYTES {
                    Payload::Inline(json)
                } else {
                    self.house.blobs.payload(json)
                };
                self.requests.push(connection, Input::Enqueue { ticket, request, input });
            }
            Request::Register(request) => {
                self.house.catalogue.refresh();
                self.registrar.give(ticket, *request, fds, self.house.catalogue.ceilings());
            }
            Request::Cancel { id } => self.requests.push(connection, Input::Cancel { ticket, id }),
            Request::ForgetKey { tenant, flow, key } => {
                self.requests.push(connection, Input::ForgetKey { ticket, tenant, flow, key });
            }
            Request::DlqRequeue(action) => self.requests.push(connection, Input::Requeue { ticket, action }),
            Request::DlqPurge(action) => self.requests.push(connection, Input::Purge { ticket, action }),
            read => self.reads.push((ticket, read)),
        }
    }

    fn read(&mut self, ticket: Ticket, request: &Request, now: Millis) {
        if let Request::Wait { run } = request {
            return self.house.wait(self.turn.ended(now), ticket, *run);
        }
        if let Request::Counters = request {
            let longest = std::mem::take(&mut self.longest_turn);
            let longest_turn_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
            let (syncs, worker_pauses_total) = (self.turn.syncs(), self.house.pause.pauses_total);
            let counters = Counters { turns: self.turns, syncs, longest_turn_us, worker_pauses_total };
            return self.house.replies.push((ticket, Reply::Counters(counters)));
        }
        let asked = Asked {
            ended: self.turn.ended(now),
            blobs: &self.house.blobs,
            runnable: &|flow, step| self.house.runnable(flow, step),
            workers: &|| self.house.workers(),
            backend: self.backend,
            served: self.house.pool.is_some(),
            disk_full: self.turn.disk_full,
            paused: self.house.pause.why(),
        };
        if let Some(reply) = answer(&asked, request) {
            self.house.replies.push((ticket, reply));
        }
    }

    fn pool_event(&mut self, event: PoolEvent) -> Result<(), RunError> {
        match event {
            PoolEvent::Ready { .. } => {}
            PoolEvent::CannotStart { reason } => return Err(RunError::NoWorker { reason }),
            PoolEvent::Gone { worker, why } => {
                if let Some(tasks) = self.turn.state.indexes.leases.get(&worker) {
                    for task in tasks {
                        let found = self.turn.state.runs.get(&task.run).and_then(|run| run.task(*task));
                        let attempt = found.map_or(0, |found| found.attempt);
                        self.house.tell_scratch(&self.turn.state, *task, attempt);
                    }
                    tracing::warn!(worker = worker.0, %why, "a worker is gone and left tasks");
                } else {
                    tracing::info!(worker = worker.0, %why, "a worker is gone");
                }
                self.gone(worker);
            }
            PoolEvent::ProfileBroken { reason, .. } => {
                tracing::error!(%reason, "the workers of a profile cannot be started; trying again in 30 s");
            }
            PoolEvent::Message { worker, message, fds } => self.message(worker, message, fds),
        }
        Ok(())
    }

    fn message(&mut self, from: WorkerId, message: FromWorker, fds: Vec<OwnedFd>) {
        match message {
            FromWorker::Report(report) => self.report(from, *report, fds),
            FromWorker::Progress { task, attempt, percent, .. } => {
                self.reports.push_back(Input::Progress { from, task, attempt, percent });
            }
            FromWorker::LoadFailed { component, reason } => {
                tracing::error!(worker = from.0, component, %reason, "a worker cannot load a native artefact");
            }
            _ => {}
        }
    }
}
