//! Commands whose supervisor stops, starts or dies meanwhile.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
};

use rustix::process::Signal;

use crate::{
    home::{Home, until},
    supervisor::Supervisor,
};

const QUICK: &str = r#"{"do":"nothing"}"#;
const BATCH_LINES: usize = 100;

/// Ends the clients when the test ends, also when it fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn enqueues_succeed_exactly_once_while_supervisors_come_and_go() {
    let home = Home::new();
    home.flow("quick", "compute", &[]);
    home.write("many.jsonl", "{\"input\":{\"do\":\"nothing\"}}\n".repeat(BATCH_LINES));
    home.enqueue("quick.yaml", QUICK, &[]);
    let (over, runs) = (AtomicBool::new(false), AtomicUsize::new(1));
    let again = |arguments: &[&str], count: usize| {
        while !over.load(SeqCst) {
            let ran = home.tm(&[&["enqueue", "quick"], arguments].concat());
            assert_eq!(ran.code, Some(0), "{ran}");
            assert_eq!(ran.stdout.lines().count(), count);
            runs.fetch_add(count, SeqCst);
        }
    };
    thread::scope(|scope| {
        let _over = Over(&over);
        for _ in 0..2 {
            scope.spawn(|| again(&["-i", QUICK], 1));
            scope.spawn(|| again(&["--batch", "many.jsonl"], BATCH_LINES));
        }
        for _ in 0..5 {
            let pool = Supervisor::start(&home, &[]);
            for _ in 0..2 {
                let before = runs.load(SeqCst);
                until("more runs", || (runs.load(SeqCst) > before + BATCH_LINES).then_some(()));
            }
            pool.stop();
            let before = runs.load(SeqCst);
            until("more runs without a supervisor", || (runs.load(SeqCst) > before).then_some(()));
        }
    });
    let totals = &home.tm(&["queue", "stats", "--json"]).json()["totals"];
    assert_eq!(totals["runs_enqueued"], runs.load(SeqCst), "{totals}");
    assert_eq!((&totals["tasks_dead"], &totals["orphans"]), (&0.into(), &0.into()), "{totals}");
}

#[test]
fn whoever_waits_for_a_run_is_told_that_it_stays_queued() {
    let home = Home::new();
    home.flow("sleep", "hostile", &["limits: { timeout_ms: 600000 }"]);
    let mut pool = Supervisor::start(&home, &["--drain-grace", "0"]);
    let run = home.enqueue("sleep.yaml", r#"{"do":"sleep_ms","ms":500000}"#, &[]);
    pool.running(&run);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| home.tm(&["enqueue", "sleep", "-i", QUICK, "--delay", "1h", "--wait"]));
        until("the second run", || (pool.stats().depth == 2).then_some(()));
        pool.signal(Signal::TERM);
        assert!(pool.wait().success());
        let ran = waiting.join().unwrap();
        ran.refused(4, &["no supervisor runs the queue", "is queued", "tm queue result"]);
    });
}
