//! Work that must not hold up the loop: each kind on one thread of its own, in the order in which it was given.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// One thread that takes jobs in order.
pub(super) struct Lane {
    jobs: Option<Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<JoinHandle<()>>,
    /// Jobs that are not begun are left undone from now on.
    over: Arc<AtomicBool>,
    /// Closed when the thread is through.
    ended: Receiver<()>,
    /// At its end it waits so long for what is not begun; none: for all of it.
    patience: Option<Duration>,
}

impl Lane {
    /// # Errors
    /// When the process may have no more threads.
    pub(super) fn start(name: &str) -> Result<Self, std::io::Error> {
        let (jobs, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let (through, ended) = mpsc::channel();
        let run = move || {
            inbox.into_iter().take_while(|_| !is_over.load(Ordering::Acquire)).for_each(|job| job());
            drop(through);
        };
        let thread = thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), over, ended, patience: None })
    }

    /// At its end it begins nothing after `patience`: the next start gives what is left again.
    pub(super) fn leaving(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
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
        self.jobs = None;
        if let Some(patience) = self.patience {
            // Through, or out of patience: both end the wait.
            let _ = self.ended.recv_timeout(patience);
            self.over.store(true, Ordering::Release);
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a background thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn out_of_patience_a_lane_ends_with_the_job_in_hand() {
        let lane = Lane::start("test").unwrap().leaving(Duration::ZERO);
        let (done, over) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&lane.over));
        for _ in 0..20 {
            let (done, over) = (Arc::clone(&done), Arc::clone(&over));
            lane.give(move || {
                while !over.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                done.fetch_add(1, Ordering::AcqRel);
            });
        }
        drop(lane);
        assert!(done.load(Ordering::Acquire) <= 1, "what was not begun is left");
    }

    #[test]
    fn with_patience_a_lane_does_all_and_waits_no_longer() {
        for patience in [None, Some(Duration::from_secs(600))] {
            let mut lane = Lane::start("test").unwrap();
            lane.patience = patience;
            let done = Arc::new(AtomicUsize::new(0));
            for _ in 0..20 {
                let done = Arc::clone(&done);
                lane.give(move || {
                    done.fetch_add(1, Ordering::AcqRel);
                });
            }
            drop(lane);
            assert_eq!(done.load(Ordering::Acquire), 20);
        }
    }
}
