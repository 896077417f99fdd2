//! A queue that nobody serves: commands open its files themselves, under its lock.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::OwnedFd,
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use tm_core::{
    api::{ApiError, Reply, Request},
    flow::advance::Blobs,
    id::Digest,
    json::Json,
    queue::{
        decide::{Bulk, Runnable, SLICE_MAX, World, decide},
        effect::{Effect, Input, Ticket},
        results::Ended,
        state::State,
    },
    time::Millis,
};

use super::{
    Happening, Options, RunError,
    answers::{Asked, answer},
    open::Life,
    payloads::StoredBlobs,
    private::Private,
    session::Session,
};
use crate::{
    clock::{Clock, Moved},
    config::Fsync,
    daemon::{ApiCall, Incoming},
    evaluate::MiniJinja,
    store::{
        blobs::BlobStore,
        disk::{RealDisk, Roots},
        lock::{Locks, Role},
        recover::{self, Damage, Recovery},
        results::ResultStore,
    },
};

/// How long another command, or a supervisor that is just starting, is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// Requests that wait before they are decided together, with one sync.
const TOGETHER_MAX: usize = 256;

/// An opened queue without workers. Dropping it without [`Local::close`] loses nothing that was answered.
pub struct Local {
    session: Session<RealDisk>,
    inbox: Receiver<Happening>,
    clock: Clock,
    next: u64,
    /// Tickets whose answers are due, in the order of the requests.
    due: VecDeque<Ticket>,
    answers: BTreeMap<Ticket, VecDeque<Reply>>,
    waiting: usize,
    damaged: Vec<Damage>,
    _locks: Locks,
}

impl Local {
    /// Opens the queue for writing, and makes its folders when they are missing.
    ///
    /// # Errors
    /// When another process writes to it for longer than 10 s, or it cannot be opened.
    pub fn open(options: &Options) -> Result<Self, RunError> {
        refuse_newer_program(&options.roots)?;
        let disk = RealDisk::create(&options.roots)?;
        let locks = Locks::acquire(&options.roots, Role::Passing, LOCK_PATIENCE)?;
        let (sender, inbox) = mpsc::channel();
        let mut clock = Clock::new();
        let (session, recovery) = Session::open(options, disk, "file", &sender, Life::Passing, clock.now())?;
        let clock = Clock::not_before(session.turn.state.last_at);
        let (due, answers) = (VecDeque::new(), BTreeMap::new());
        Ok(Self { session, inbox, clock, next: 0, due, answers, waiting: 0, damaged: recovery.damaged, _locks: locks })
    }

    /// What was skipped when the queue was opened.
    #[must_use]
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// Makes a request and waits for its answer.
    ///
    /// # Errors
    /// When the log failed.
    pub fn call(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Reply, RunError> {
        self.send(request, fds)?;
        self.receive()?.whole(|| self.receive())
    }

    /// Makes a request; its answer comes with [`Local::receive`], in order.
    ///
    /// # Errors
    /// When the log failed.
    pub fn send(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<(), RunError> {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.due.push_back(ticket);
        self.session.take(Happening::Edge(Incoming::Call(ApiCall { ticket, connection: 0, request, fds })))?;
        self.waiting += 1;
        if self.waiting >= TOGETHER_MAX { self.turn() } else { Ok(()) }
    }

    /// The answer to the oldest request that was not answered yet, or the next part of it ([`Reply::is_part`]).
    ///
    /// # Errors
    /// When the log failed, or nothing was asked.
    pub fn receive(&mut self) -> Result<Reply, RunError> {
        let ticket = *self.due.front().ok_or(RunError::Lonely)?;
        loop {
            if let Some(replies) = self.answers.get_mut(&ticket)
                && let Some(reply) = replies.pop_front()
            {
                if !reply.is_part() {
                    self.due.pop_front();
                    self.answers.remove(&ticket);
                }
                return Ok(reply);
            }
            if self.waiting == 0 && !self.session.goes_on() {
                // A registration is resolved, and files are archived, by threads of their own.
                let happening = self.inbox.recv().map_err(|_| RunError::Lonely)?;
                self.session.take(happening)?;
            }
            self.turn()?;
        }
    }

    /// The clean end.
    ///
    /// # Errors
    /// When the log failed.
    pub fn close(mut self) -> Result<(), RunError> {
        self.turn()?;
        let Session { turn, house, registrar, movers, .. } = self.session;
        drop((house, registrar, movers));
        Ok(turn.close()?)
    }

    fn turn(&mut self) -> Result<(), RunError> {
        while let Ok(happening) = self.inbox.try_recv() {
            self.session.take(happening)?;
        }
        loop {
            self.session.turn(&mut self.clock)?;
            if self.session.reports.is_empty() && self.session.requests.is_empty() {
                break;
            }
        }
        self.waiting = 0;
        for (ticket, reply) in self.session.house.replies.drain(..) {
            self.answers.entry(ticket).or_default().push_back(reply);
        }
        Ok(())
    }
}

/// A queue that nobody serves, as it was when it was opened, for requests that only read. Creates and changes nothing (I12).
pub struct Reader {
    state: State,
    results: ResultStore<RealDisk>,
    blobs: StoredBlobs<RealDisk>,
    now: Millis,
}

impl Reader {
    /// Reads the queue. Tells `damaged` of every record that was skipped.
    ///
    /// # Errors
    /// [`RunError::NoQueue`] when there is none, and when it cannot be read.
    pub fn open(options: &Options, damaged: &mut dyn FnMut(&Damage)) -> Result<Self, RunError> {
        let (disk, state, results, now, recovery) = replayed(options)?;
        recovery.damaged.iter().for_each(damaged);
        Ok(Self { state, results, blobs: StoredBlobs::new(BlobStore::reading(disk)), now })
    }

    /// # Errors
    /// When the request is not one that only reads.
    pub fn answer(&self, request: &Request) -> Result<Reply, RunError> {
        let asked = Asked {
            ended: Ended { state: &self.state, results: &self.results, now: self.now },
            blobs: &self.blobs,
            runnable: &|_, _| Runnable::Compiling,
            workers: &Vec::new,
            backend: "file",
            served: false,
            disk_full: false,
            paused: None,
        };
        answer(&asked, request).ok_or(RunError::Lonely)
    }
}

/// What a queue that nobody serves answers to a request that would change nothing: a dry run, a refusal. `None` when it
/// would change something: then it is to be made by [`Local`]. Creates and changes nothing (I12).
///
/// # Errors
/// As [`Reader::open`].
pub fn preview(
    options: &Options,
    request: &Request,
    damaged: &mut dyn FnMut(&Damage),
) -> Result<Option<Reply>, RunError> {
    let ticket = Ticket(0);
    let input = match request.clone() {
        Request::Cancel { id } => Input::Cancel { ticket, id },
        Request::ForgetKey { tenant, flow, key } => Input::ForgetKey { ticket, tenant, flow, key },
        Request::DlqRequeue(action) => Input::Requeue { ticket, action },
        Request::DlqPurge(action) => Input::Purge { ticket, action },
        _ => return Ok(None),
    };
    let (disk, mut state, results, now, recovery) = replayed(options)?;
    let (policy, evaluate) = (options.settings.policy(), MiniJinja::new());
    let blobs = Unwritten(StoredBlobs::new(BlobStore::reading(disk)));
    let sequence = recovery.next_sequence;
    let world = World { policy: &policy, evaluate: &evaluate, blobs: &blobs, results: &results, now, sequence };
    let step = match Bulk::of(&state, input, SLICE_MAX) {
        Err(input) => decide(&mut state, world, input),
        Ok(mut bulk) => loop {
            bulk.look(&state);
            if bulk.changes(Ended { state: &state, results: &results, now }) > 0 {
                return Ok(None);
            }
            let step = bulk.slice(&mut state, world);
            if bulk.is_through() {
                break step;
            }
        },
    };
    if !step.events.is_empty() {
        return Ok(None);
    }
    recovery.damaged.iter().for_each(damaged);
    Ok(step.effects.into_iter().find_map(|effect| match effect {
        Effect::Reply { reply, .. } => Some(reply),
        _ => None,
    }))
}

/// The refusal of requests that would be the first ones of a queue; none when all are taken. They are made to a queue in
/// memory, so that what is refused makes no folder. `components` belong to the first request.
///
/// # Errors
/// When they cannot be made.
pub fn rehearse(
    options: &Options,
    requests: Vec<Request>,
    mut components: Vec<OwnedFd>,
) -> Result<Option<ApiError>, RunError> {
    let private = Private::make()?;
    let mut options = Options { roots: private.roots(), ..options.clone() };
    options.settings.queue.fsync = Fsync::Never;
    let mut local = Local::open(&options)?;
    for request in requests {
        if let Reply::Error(error) = local.call(request, std::mem::take(&mut components))? {
            return Ok(Some(error));
        }
    }
    Ok(None)
}

/// Before a folder is made or a lock names this process.
pub(super) fn refuse_newer_program(roots: &Roots) -> Result<(), RunError> {
    if roots.hold_a_queue() {
        recover::refuse_newer_program(&RealDisk::existing(roots)?)?;
    }
    Ok(())
}

/// What the log says, the results that left it, and the queue's time now.
fn replayed(options: &Options) -> Result<(RealDisk, State, ResultStore<RealDisk>, Millis, Recovery), RunError> {
    if !options.roots.hold_a_queue() {
        return Err(RunError::NoQueue { path: options.roots.queue.clone() });
    }
    let disk = RealDisk::existing(&options.roots)?;
    let mut state = State::default();
    let recovery = recover::read(&disk, &mut |frame, segment| state.replay(&frame, segment))?;
    let results = ResultStore::read(disk.clone(), state.secret, &state.results)?;
    let mut clock = Clock::not_before(state.last_at);
    let now = clock.now();
    if let Some(Moved { leapt_ms, ahead_ms }) = clock.moved() {
        state.clock_moved(leapt_ms, ahead_ms);
    }
    Ok((disk, state, results, now, recovery))
}

/// Blobs that can be read; what is put stays in memory.
struct Unwritten(StoredBlobs<RealDisk>);

impl Blobs for Unwritten {
    fn read(&self, digest: &Digest) -> Option<Json> {
        self.0.read(digest)
    }

    fn put(&self, _: &Json) -> Option<Digest> {
        None
    }
}
