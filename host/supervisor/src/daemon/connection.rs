//! One client's connection: lines in, answers out in the order of the requests, all of it bounded.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::Uid,
};
use tm_core::{
    api::{ApiError, ErrorKind, Reply, Request},
    queue::effect::Ticket,
};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{Notify, mpsc::UnboundedReceiver},
};

use super::{edge::ticket, requests::Requests};

/// Calls of one connection that are not answered yet; beyond it nothing more is read from it.
pub const IN_FLIGHT_MAX: u32 = 1024;
/// A client that takes nothing for this long is dropped.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// Answers that are made into text ahead of a client that is slow to read.
const OUT_AHEAD_BYTES: usize = 1024 * 1024;
/// [`Reply::Stopping`].
const STOPPING_LINE: &[u8] = b"\"Stopping\"\n";
/// The kernel's SCM_MAX_FD.
const FDS_PER_MESSAGE_MAX: usize = 253;

/// One request of one client.
#[derive(Debug)]
pub struct ApiCall {
    /// For [`super::Edge::reply`].
    pub ticket: Ticket,
    pub connection: u32,
    pub request: Request,
    /// Of a [`Request::Register`]: one per component.
    pub fds: Vec<OwnedFd>,
}

/// How far the edge's end is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Taking,
    /// No request is taken any more.
    Closed,
    /// Every request that was taken and can change anything is answered.
    Settled,
}

/// Whether requests are still taken: shared by the loop and all connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<Mutex<Phase>>);

impl Gate {
    /// Runs while requests are taken; after [`Gate::enter`] whatever passed has run.
    fn pass(&self, run: impl FnOnce()) -> bool {
        let phase = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = *phase == Phase::Taking;
        if open {
            run();
        }
        open
    }

    pub(super) fn enter(&self, next: Phase) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }

    pub(super) fn phase(&self) -> Phase {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What reader and writer of a connection share.
struct State {
    /// Answers by call that wait for those before them; several of a call that is answered in parts.
    ready: BTreeMap<u32, VecDeque<Reply>>,
    /// Calls read so far.
    issued: u32,
    /// Calls answered and taken for writing.
    answered: u32,
    /// Nothing more will be read.
    ended: bool,
}

impl State {
    fn answer(&mut self, replies: impl IntoIterator<Item = (u32, Reply)>) {
        for (call, reply) in replies {
            self.ready.entry(call).or_default().push_back(reply);
        }
    }

    /// The next answer in order, when it is there.
    fn next(&mut self) -> Option<Reply> {
        let call = self.answered + 1;
        let waiting = self.ready.get_mut(&call)?;
        let reply = waiting.pop_front()?;
        if waiting.is_empty() {
            self.ready.remove(&call);
        }
        if !reply.is_part() {
            self.answered = call;
        }
        Some(reply)
    }
}

struct Shared {
    state: Mutex<State>,
    /// The writer has something to look at.
    work: Notify,
    /// The reader may have room again.
    room: Notify,
}

impl Shared {
    fn with<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        run(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Serves a connection of `owner` until it ends, fails, or does not read its answers.
pub(super) async fn serve(
    stream: UnixStream,
    owner: Uid,
    connection: u32,
    answers: UnboundedReceiver<Vec<(u32, Reply)>>,
    gate: &Gate,
    forward: impl Fn(ApiCall),
) {
    let state = State { ready: BTreeMap::new(), issued: 0, answered: 0, ended: false };
    let shared = Shared { state: Mutex::new(state), work: Notify::new(), room: Notify::new() };
    let permitted = rustix::net::sockopt::socket_peercred(stream.as_fd()).is_ok_and(|peer| peer.uid == owner);
    let reading = async {
        if permitted {
            read(&stream, connection, &shared, gate, &forward).await;
        } else {
            let hint = Some(format!("run the command as the user with uid {}", owner.as_raw()));
            refuse(&shared, "this queue belongs to another user".to_owned(), hint);
        }
        shared.with(|state| state.ended = true);
        shared.work.notify_one();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        written = write(&stream, &shared, gate, answers) => {
            if let Err(error) = written {
                tracing::debug!(connection, %error, "a client was dropped");
            }
        }
    }
}

fn refuse(shared: &Shared, message: String, hint: Option<String>) {
    let call = shared.with(|state| {
        state.issued += 1;
        state.issued
    });
    let error = ApiError { kind: ErrorKind::Usage, code: None, message, hint, retry_after_ms: None };
    shared.with(|state| state.answer([(call, Reply::Error(error))]));
    shared.work.notify_one();
}

async fn read(stream: &UnixStream, connection: u32, shared: &Shared, gate: &Gate, forward: &impl Fn(ApiCall)) {
    let mut requests = Requests::default();
    loop {
        while let Some(next) = requests.take() {
            // One connection cannot fill the loop's inbox.
            while shared.with(|state| state.issued - state.answered >= IN_FLIGHT_MAX) {
                shared.room.notified().await;
            }
            match next {
                Ok((request, fds)) => {
                    let Some(call) = shared.with(|state| {
                        state.issued = state.issued.checked_add(1)?;
                        Some(state.issued)
                    }) else {
                        return;
                    };
                    let call = ApiCall { ticket: ticket(connection, call), connection, request, fds };
                    if !gate.pass(|| forward(call)) {
                        shared.with(|state| state.issued -= 1);
                        // The writer says so, after the answers to what was taken.
                        return std::future::pending().await;
                    }
                }
                Err(message) => refuse(shared, message, None),
            }
        }
        if let Some(message) = requests.excess() {
            return refuse(shared, message, None);
        }
        match receive(stream, &mut requests).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

async fn receive(stream: &UnixStream, requests: &mut Requests) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE_MAX))];
    loop {
        stream.readable().await?;
        let mut fds: Vec<OwnedFd> = Vec::new();
        let received = stream.try_io(Interest::READABLE, || {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(requests.room())];
            let message = recvmsg(stream.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            for ancillary in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
                    fds.extend(rights);
                }
            }
            Ok(message.bytes)
        });
        match received {
            Ok(count) => {
                requests.received(count, fds);
                return Ok(count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Ends when the client has read all that it will get.
async fn write(
    stream: &UnixStream,
    shared: &Shared,
    gate: &Gate,
    mut answers: UnboundedReceiver<Vec<(u32, Reply)>>,
) -> io::Result<()> {
    let mut out = Vec::new();
    let mut stopping = false;
    loop {
        while let Ok(replies) = answers.try_recv() {
            shared.with(|state| state.answer(replies));
        }
        let finished = shared.with(|state| {
            while out.len() < OUT_AHEAD_BYTES
                && let Some(reply) = state.next()
            {
                serde_json::to_writer(&mut out, &reply)?;
                out.push(b'\n');
            }
            Ok::<bool, serde_json::Error>(stopping || (state.ended && state.answered == state.issued))
        })?;
        shared.room.notify_one();
        if !out.is_empty() {
            write_all(stream, &out).await?;
            out.clear();
            continue;
        }
        if finished {
            // What is unanswered now only waits or registers; no answer stands behind it that would be lost.
            let told = gate.phase() == Phase::Settled && shared.with(|state| !state.ended && state.ready.is_empty());
            return if told { write_all(stream, STOPPING_LINE).await } else { Ok(()) };
        }
        tokio::select! {
            answer = answers.recv() => match answer {
                Some(replies) => shared.with(|state| state.answer(replies)),
                // The edge stops: what stands in order is written, the rest never comes.
                None => stopping = true,
            },
            () = shared.work.notified() => {}
        }
    }
}

async fn write_all(stream: &UnixStream, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        tokio::time::timeout(WRITE_STALL_MAX, stream.writable()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        match stream.try_write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
