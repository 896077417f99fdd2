//! SIGTERM and SIGINT: the first drains, the second stops at once.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Lease nothing new; let running steps end within the grace.
    Drain,
    /// Stop now.
    Stop,
}

/// The process's signals, from the moment that this exists.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Stream,
    interrupt: Stream,
    seen: u32,
}

impl Signals {
    /// Must be called inside a tokio runtime.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())?, seen: 0 })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        self.seen += 1;
        if self.seen == 1 { Signal::Drain } else { Signal::Stop }
    }
}
