//! The edge's thread: accepts connections, hands calls and signals to the loop, and answers back by ticket.

use std::{
    collections::HashMap,
    io,
    os::unix::net::UnixListener,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use tm_core::{api::Reply, queue::effect::Ticket};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc::UnboundedSender, oneshot},
    task::JoinSet,
};

use super::{
    connection::{self, ApiCall},
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
pub(super) type Answers = UnboundedSender<(u32, Reply)>;

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
        listener: UnixListener,
        signals: bool,
        inbox: impl Fn(Incoming) + Send + Sync + 'static,
    ) -> Result<Self, EdgeError> {
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let signals = if signals { Some(Signals::new()?) } else { None };
        drop(inside);
        let connections = Connections(Arc::new(Mutex::new(Some(HashMap::new()))));
        let (stop, stopped) = oneshot::channel();
        let (shared, inbox) = (connections.clone(), Arc::new(inbox));
        let run = move || serve(&runtime, listener, signals, stopped, &shared, &inbox);
        let thread = std::thread::Builder::new().name("tm-edge".into()).spawn(run)?;
        Ok(Self { connections, stop: Some(stop), thread: Some(thread) })
    }

    /// Answers a call. A ticket whose connection is gone is dropped.
    pub fn reply(&self, ticket: Ticket, reply: Reply) {
        #[expect(clippy::cast_possible_truncation, reason = "the low half is the call's number")]
        let call = ticket.0 as u32;
        self.connections.with(|connections| {
            if let Some(answers) = connections.get(&connection_of(ticket)) {
                let _closed_meanwhile = answers.send((call, reply));
            }
        });
    }

    /// Stops accepting and closes all connections once what was answered is written (at most two seconds).
    pub fn stop(mut self) {
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

fn serve<F: Fn(Incoming) + Send + Sync + 'static>(
    runtime: &Runtime,
    listener: tokio::net::UnixListener,
    mut signals: Option<Signals>,
    mut stopped: oneshot::Receiver<()>,
    shared: &Connections,
    inbox: &Arc<F>,
) {
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let mut number = 0u32;
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                signal = async { match &mut signals { Some(signals) => signals.next().await, None => std::future::pending().await } } => {
                    inbox(Incoming::Signal(signal));
                }
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                accepted = listener.accept(), if tasks.len() < CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => {
                        number = number.checked_add(1).unwrap_or(1);
                        let connection = number;
                        let (answers, receiver) = tokio::sync::mpsc::unbounded_channel();
                        shared.with(|connections| connections.insert(connection, answers));
                        let (shared, inbox) = (shared.clone(), Arc::clone(inbox));
                        tasks.spawn(async move {
                            let forward = |call| inbox(Incoming::Call(call));
                            connection::serve(stream, connection, receiver, forward).await;
                            shared.with(|connections| connections.remove(&connection));
                            inbox(Incoming::Closed { connection });
                        });
                    }
                    // Out of descriptors, most likely: wait until some are free again.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a client");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        drop(listener);
        let flush = async { while tasks.join_next().await.is_some() {} };
        let _cut_off = tokio::time::timeout(FLUSH_MAX, flush).await;
    });
}
