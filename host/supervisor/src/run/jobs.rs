//! Work that must not hold up the loop: each kind on one thread of its own, in the order in which it was given.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
};

/// One thread that takes jobs in order.
pub(super) struct Lane {
    jobs: Option<Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<JoinHandle<()>>,
    /// Jobs that are not begun are left undone from now on.
    over: Arc<AtomicBool>,
    leaves: bool,
}

impl Lane {
    /// # Errors
    /// When the process may have no more threads.
    pub(super) fn start(name: &str) -> Result<Self, std::io::Error> {
        let (jobs, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let run = move || inbox.into_iter().take_while(|_| !is_over.load(Ordering::Acquire)).for_each(|job| job());
        let thread = thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), over, leaves: false })
    }

    /// At its end it does no more than the job that was begun: the next start gives the others again.
    pub(super) fn leaving(mut self) -> Self {
        self.leaves = true;
        self
    }

    pub(super) fn give(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(jobs) = &self.jobs
            && jobs.send(Box::new(job)).is_err()
        {
            tracing::error!("a background thread is gone");
        }
    }
}

/// Waits for what was given, or for what was begun of it.
impl Drop for Lane {
    fn drop(&mut self) {
        self.over.store(self.leaves, Ordering::Release);
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a background thread panicked");
        }
    }
}
