//! Work that must not hold up the loop: each kind on one thread of its own, in the order in which it was given.

use std::{
    sync::mpsc::{self, Sender},
    thread::{self, JoinHandle},
};

/// One thread that takes jobs in order.
pub(super) struct Lane {
    jobs: Option<Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<JoinHandle<()>>,
}

impl Lane {
    /// # Errors
    /// When the process may have no more threads.
    pub(super) fn start(name: &str) -> Result<Self, std::io::Error> {
        let (jobs, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let thread = thread::Builder::new().name(name.into()).spawn(move || inbox.into_iter().for_each(|job| job()))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(super) fn give(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(jobs) = &self.jobs
            && jobs.send(Box::new(job)).is_err()
        {
            tracing::error!("a background thread is gone");
        }
    }
}

/// Waits for what was given.
impl Drop for Lane {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a background thread panicked");
        }
    }
}
