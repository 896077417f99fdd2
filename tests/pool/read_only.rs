//! A disk that takes no writes, from the start or from one moment on.

use rustix::process::Signal;
use tm_core::api::{RunState, TaskState};
use tm_supervisor::store::disk::Roots;

use crate::{
    history::History,
    home::{Home, until},
    mounts::{did_not_run, on_a_disk_of_its_own},
    supervisor::Supervisor,
};

const DISK_BYTES: u64 = 48 << 20;
const QUICK: &str = r#"{"do":"nothing"}"#;

#[test]
fn a_read_only_disk_is_named_and_can_be_read() {
    let name = "read_only::a_read_only_disk_is_named_and_can_be_read";
    on_a_disk_of_its_own(name, DISK_BYTES, |disk| {
        if !rustix::process::getuid().is_root() {
            return did_not_run(name, "only root may mount a disk anew");
        }
        let home = Home::new();
        disk.hold(&home);
        home.flow("quick", "compute", &[]);
        let run = home.enqueue("quick.yaml", QUICK, &[]);
        disk.set_read_only(true);
        let words = ["data/queue cannot be written", "hint: make data/queue writable"];
        home.tm(&["enqueue", "quick", "-i", QUICK]).refused(1, &words);
        home.tm(&["workers", "start"]).refused(1, &words);
        for look in [&["stats"][..], &["ls"], &["show", &run], &["verify"], &["repair", "--dry-run"]] {
            let ran = home.tm(&[&["queue"], look].concat());
            assert_eq!(ran.code, Some(0), "{look:?}: {ran}");
        }
        disk.set_read_only(false);
        let mut pool = Supervisor::start(&home, &[]);
        assert_eq!(pool.ended(&run).state, RunState::Succeeded);
        pool.stop();
    });
}

/// An ext4 turns read-only when it finds itself damaged, also under files that are open.
#[test]
fn a_disk_that_turns_read_only_stops_the_supervisor_and_costs_nothing_acknowledged() {
    let name = "read_only::a_disk_that_turns_read_only_stops_the_supervisor_and_costs_nothing_acknowledged";
    on_a_disk_of_its_own(name, DISK_BYTES, |disk| {
        if !disk.can_break() {
            return did_not_run(name, "only an ext4 can be made to turn read-only");
        }
        let home = Home::new();
        disk.hold(&home);
        home.flow("sleep", "hostile", &["limits: { timeout_ms: 600000 }"]);
        let mut pool = Supervisor::start(&home, &[]);
        let long = home.enqueue("sleep.yaml", r#"{"do":"sleep_ms","ms":500000}"#, &[]);
        pool.running(&long);
        let done = home.enqueue("sleep", QUICK, &[]);
        assert_eq!(pool.ended(&done).state, RunState::Succeeded);
        let waiting = home.batch("sleep", &vec![QUICK.to_owned(); 20], &["--delay", "1h"]);
        disk.break_down();
        // Nobody knows what became of this one.
        home.tm(&["enqueue", "sleep", "-i", QUICK]).refused(4, &["the supervisor", "hint: "]);
        assert_eq!(pool.wait().code(), Some(1));
        until("the end of its workers", || disk.mount_again().then_some(()));

        assert_eq!(home.tm(&["queue", "verify"]).code, Some(0));
        let mut pool = Supervisor::start(&home, &[]);
        assert_eq!(pool.running(&long).0, 2);
        assert_eq!(pool.show(&done).state, RunState::Succeeded);
        for run in &waiting {
            assert_eq!(pool.show(run).tasks[0].state, TaskState::Delayed);
        }
        pool.signal(Signal::KILL);
        assert!(!pool.wait().success());
        History::read_after(&Roots::below(&home.path("data")), &History::default());
    });
}
