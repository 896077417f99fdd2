//! Supervisors that want the same queue: the real locks, on real folders (I9).

use std::{sync::Barrier, thread, time::Duration};

use tempfile::TempDir;
use tm_supervisor::store::{
    disk::Roots,
    lock::{LockError, Locks, Role},
};

use crate::coverage::Coverage;

/// A home that is made when it is first needed, and the locks of the supervisor that runs.
#[derive(Default)]
pub(crate) struct Rivals {
    home: Option<(TempDir, Roots)>,
    held: Option<Locks>,
}

impl Rivals {
    fn roots(&mut self) -> Roots {
        let (_, roots) = self.home.get_or_insert_with(|| {
            let home = TempDir::new().unwrap_or_else(|error| panic!("no folder for the locks: {error}"));
            let roots = Roots::below(home.path());
            for (_, folder) in roots.named() {
                std::fs::create_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            }
            (home, roots)
        });
        roots.clone()
    }

    /// The supervisor is gone and two start at once: one goes on, the other is told.
    pub(crate) fn race(&mut self, coverage: &mut Coverage) {
        let roots = self.roots();
        self.held = None;
        let barrier = Barrier::new(2);
        let start = || {
            barrier.wait();
            Locks::acquire(&roots, Role::Supervisor, Duration::ZERO)
        };
        let outcomes = thread::scope(|scope| {
            let other = scope.spawn(start);
            let mine = start();
            [Some(mine), other.join().ok()]
        });
        let mut winners = 0;
        for outcome in outcomes {
            match outcome {
                Some(Ok(locks)) => {
                    winners += 1;
                    self.held = Some(locks);
                }
                Some(Err(error)) => refused(&error),
                None => panic!("a start did not end"),
            }
        }
        assert_eq!(winners, 1, "{winners} of two supervisors go on (I9)");
        coverage.fault("second supervisor", "both start at once");
    }

    /// While one runs, another one is refused, also when it comes again.
    pub(crate) fn refuse(&mut self, coverage: &mut Coverage) {
        let roots = self.roots();
        if self.held.is_none() {
            self.held = Locks::acquire(&roots, Role::Supervisor, Duration::ZERO).ok();
        }
        for role in [Role::Supervisor, Role::Passing] {
            match Locks::acquire(&roots, role, Duration::ZERO) {
                Ok(_) => panic!("a second process may write (I9)"),
                Err(error) => refused(&error),
            }
        }
        coverage.fault("second supervisor", "while one runs");
    }
}

fn refused(error: &LockError) {
    match error {
        LockError::Held { role: Role::Supervisor, pid, .. } => assert_eq!(*pid, std::process::id()),
        // It came between the lock and the name.
        LockError::HeldUnnamed { .. } => {}
        other => panic!("a second supervisor is refused for another reason: {other}"),
    }
}
