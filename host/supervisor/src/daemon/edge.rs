//! The edge's thread: accepts connections, hands calls and signals to the loop, and answers back by ticket.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::unix,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use rustix::{
    net::{Shutdown, SocketFlags, accept_with, shutdown},
    process::Uid,
};
use tm_core::{api::Reply, queue::effect::Ticket};
use tokio::{
    net::{UnixListener, UnixStream},
    runtime::{Builder, Runtime},
    sync::{mpsc::UnboundedSender, oneshot},
    task::JoinSet,
};

use super::{
    connection::{self, ApiCall, Gate, Phase},
    signals::{Signal, Signals},
};

/// Connections at once; more wait in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 1024;
/// After [`Edge::stop`]: for answers that are on their way.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// What comes in from the edge.
#[derive(Debug)]
pub enum Incoming {
    Call(ApiCall),
    /// A connection ended; its calls will not be read any more.
    Closed {
        connection: u32,
    },
    Signal(Signal),
}

#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    #[error("cannot start the thread for clients: {0}")]
    Start(#[from] io::Error),
}

/// Answers on their way to a connection.
pub(super) type Answers = UnboundedSender<Vec<(u32, Reply)>>;

/// Connections by number, shared between the loop and the edge's thread.
#[derive(Clone, Debug, Default)]
struct Connections(Arc<Mutex<Option<HashMap<u32, Answers>>>>);

impl Connections {
    /// Does nothing once the edge stops.
    fn with<T>(&self, run: impl FnOnce(&mut HashMap<u32, Answers>) -> T) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(run)
    }
}

/// The running edge.
#[derive(Debug)]
pub struct Edge {
    connections: Connections,
    gate: Gate,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The ticket of a connection's call. Connections count from 1, so tickets below 2^32 are free for the shell's own use.
pub(super) fn ticket(connection: u32, call: u32) -> Ticket {
    Ticket(u64::from(connection) << 32 | u64::from(call))
}

/// The connection that a ticket belongs to, 0 for none.
#[must_use]
pub fn connection_of(ticket: Ticket) -> u32 {
    u32::try_from(ticket.0 >> 32).unwrap_or(0)
}

impl Edge {
    /// Starts accepting; `inbox` must not block. With `signals`, SIGTERM and SIGINT come in too from now on.
    ///
    /// # Errors
    /// When the thread, its runtime or the signal handlers cannot be made.
    pub fn start(
        listener: unix::net::UnixListener,
        signals: bool,
        inbox: impl Fn(Incoming) + Send + Sync + 'static,
    ) -> Result<Self, EdgeError> {
        Self::start_for(rustix::process::geteuid(), listener, signals, inbox)
    }

    /// As [`Edge::start`], for clients of another user than this process's.
    pub(super) fn start_for(
        owner: Uid,
        listener: unix::net::UnixListener,
        signals: bool,
        inbox: impl Fn(Incoming) + Send + Sync + 'static,
    ) -> Result<Self, EdgeError> {
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let listener = UnixListener::from_std(listener)?;
        let signals = if signals { Some(Signals::new()?) } else { None };
        drop(inside);
        let connections = Connections(Arc::new(Mutex::new(Some(HashMap::new()))));
        let (stop, stopped) = oneshot::channel();
        let gate = Gate::default();
        let door = Door { owner, connections: connections.clone(), gate: gate.clone(), inbox: Arc::new(inbox) };
        let run = move || serve(&runtime, &listener, signals, stopped, &door);
        let thread = std::thread::Builder::new().name("tm-edge".into()).spawn(run)?;
        Ok(Self { connections, gate, stop: Some(stop), thread: Some(thread) })
    }

    /// From now on no request is taken; what was taken is in the inbox, to be answered before [`Edge::stop`].
    pub fn close(&self) {
        self.gate.enter(Phase::Closed);
    }

    /// Answers calls, in this order on each connection, and wakes each once. Tickets whose connection is gone are dropped.
    pub fn answer(&self, replies: impl IntoIterator<Item = (Ticket, Reply)>) {
        let mut by_connection: BTreeMap<u32, Vec<(u32, Reply)>> = BTreeMap::new();
        for (ticket, reply) in replies {
            #[expect(clippy::cast_possible_truncation, reason = "the low half is the call's number")]
            let call = ticket.0 as u32;
            by_connection.entry(connection_of(ticket)).or_default().push((call, reply));
        }
        self.connections.with(|connections| {
            for (connection, replies) in by_connection {
                if let Some(answers) = connections.get(&connection) {
                    let _closed_meanwhile = answers.send(replies);
                }
            }
        });
    }

    /// Stops accepting and closes all connections once what was answered is written (at most two seconds).
    ///
    /// After [`Edge::close`] clients are told that what is not answered was not taken: whatever changes anything must
    /// have been answered.
    pub fn stop(mut self) {
        if self.gate.phase() == Phase::Closed {
            self.gate.enter(Phase::Settled);
        }
        self.end();
    }

    fn end(&mut self) {
        // Without their senders the connections write what they have and end.
        self.connections.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stop) = self.stop.take() {
            let _ended_already = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _its_panic_was_printed = thread.join();
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.end();
    }
}

/// What every connection is made with.
struct Door<F> {
    owner: Uid,
    connections: Connections,
    gate: Gate,
    inbox: Arc<F>,
}

impl<F: Fn(Incoming) + Send + Sync + 'static> Door<F> {
    fn admit(&self, tasks: &mut JoinSet<()>, stream: UnixStream, connection: u32) {
        let (answers, receiver) = tokio::sync::mpsc::unbounded_channel();
        self.connections.with(|connections| connections.insert(connection, answers));
        let (owner, connections, gate, inbox) =
            (self.owner, self.connections.clone(), self.gate.clone(), Arc::clone(&self.inbox));
        tasks.spawn(async move {
            let forward = |call| inbox(Incoming::Call(call));
            connection::serve(stream, owner, connection, receiver, &gate, forward).await;
            connections.with(|connections| connections.remove(&connection));
            inbox(Incoming::Closed { connection });
        });
    }
}

fn serve<F: Fn(Incoming) + Send + Sync + 'static>(
    runtime: &Runtime,
    listener: &UnixListener,
    mut signals: Option<Signals>,
    mut stopped: oneshot::Receiver<()>,
    door: &Door<F>,
) {
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let mut number = 0u32;
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                signal = async { match &mut signals { Some(signals) => signals.next().await, None => std::future::pending().await } } => {
                    (door.inbox)(Incoming::Signal(signal));
                }
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                accepted = listener.accept(), if tasks.len() < CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => {
                        number = number.checked_add(1).unwrap_or(1);
                        door.admit(&mut tasks, stream, number);
                    }
                    // Out of descriptors, most likely: wait until some are free again.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a client");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        let flush = async move {
            // Nobody connects after this; who waits in the backlog is let in to be told.
            let shut = door.gate.phase() == Phase::Settled && shutdown(listener, Shutdown::Read).is_ok();
            while shut && let Ok(stream) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                let Ok(stream) = UnixStream::from_std(stream.into()) else { break };
                number = number.checked_add(1).unwrap_or(1);
                door.admit(&mut tasks, stream, number);
            }
            while tasks.join_next().await.is_some() {}
        };
        let _cut_off = tokio::time::timeout(FLUSH_MAX, flush).await;
    });
}
