//! The two threads that run no guest: one ticks the epoch while guests run, one tells the supervisor that it is alive.

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use tm_core::wire::{FromWorker, codec};
use wasmtime::EngineWeak;

use crate::packet;

/// One epoch.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a guest after which the ticking thread sleeps until it is woken: a wake costs more than a short task.
const IDLE_TICKS: u32 = 64;

/// What the threads share with the one that runs guests: two numbers, no lock.
#[derive(Default)]
struct Shared {
    running: AtomicU32,
    parked: AtomicBool,
}

/// Counts running attempts and wakes the ticking thread for the first.
#[derive(Clone)]
pub(crate) struct Pulse {
    shared: Arc<Shared>,
    ticker: Thread,
}

impl Pulse {
    /// Starts the ticking thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start(engine: EngineWeak) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        let ticker = thread::Builder::new().name("epoch".to_owned()).spawn(move || tick(&seen, &engine))?;
        Ok(Self { shared, ticker: ticker.thread().clone() })
    }

    /// One more attempt runs until the guard is dropped.
    #[must_use]
    pub(crate) fn enter(&self) -> Running {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.parked.load(Ordering::SeqCst) {
            self.ticker.unpark();
        }
        Running(Arc::clone(&self.shared))
    }

    /// Starts the heartbeat: one message each `period`, dropped when the supervisor does not read.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn beat(&self, socket: OwnedFd, resident: Option<Resident>, period: Duration) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
            loop {
                thread::sleep(period);
                let beat = FromWorker::Heartbeat {
                    running: shared.running.load(Ordering::Relaxed),
                    memory_bytes: resident.as_ref().map_or(0, Resident::bytes),
                };
                if let Ok(bytes) = codec::write(&beat) {
                    // A full socket means that the supervisor is slow: it measures silence where it receives.
                    let _ = packet::send(socket.as_fd(), &bytes, &[]);
                }
            }
        })?;
        Ok(())
    }
}

/// One attempt is running.
pub(crate) struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tick(shared: &Shared, engine: &EngineWeak) {
    let mut idle = 0;
    loop {
        if shared.running.load(Ordering::SeqCst) == 0 {
            idle += 1;
        } else {
            idle = 0;
            let Some(engine) = engine.upgrade() else { return };
            engine.increment_epoch();
        }
        if idle < IDLE_TICKS {
            thread::sleep(TICK);
            continue;
        }
        shared.parked.store(true, Ordering::SeqCst);
        // Read again after the flag is seen: an attempt that entered before it would wake nobody.
        if shared.running.load(Ordering::SeqCst) == 0 {
            thread::park();
        }
        shared.parked.store(false, Ordering::SeqCst);
        idle = 0;
    }
}

/// The process's resident set. Made before the walls: opening the file and asking for the page size both read /proc.
pub(crate) struct Resident {
    statm: File,
    page_bytes: u64,
}

impl Resident {
    pub(crate) fn open() -> Option<Self> {
        let page_bytes = rustix::param::page_size() as u64;
        File::open("/proc/self/statm").ok().map(|statm| Self { statm, page_bytes })
    }

    /// The second number of statm, in pages.
    fn bytes(&self) -> u64 {
        let mut text = [0; 128];
        let Ok(length) = self.statm.read_at(&mut text, 0) else { return 0 };
        let pages = str::from_utf8(&text[..length]).ok().and_then(|t| t.split(' ').nth(1)).and_then(|n| n.parse().ok());
        pages.unwrap_or(0u64) * self.page_bytes
    }
}
