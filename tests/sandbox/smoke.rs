//! The way of one task: Init, Ready, Load, Start, Report.

use tm_core::wire::{FromWorker, Outcome, Start, ToWorker};

use crate::harness::{Setup, Worker, native, output, timed};

#[test]
fn a_worker_confines_itself_loads_and_runs_a_task() {
    let (mut worker, took) = timed(|| Worker::start(&Setup::default()));
    eprintln!("spawn to Ready: {took:?}; {:?}", worker.confinement);
    assert!(worker.confinement.landlock_abi.is_some() && worker.confinement.seccomp);
    worker.load(1, &native("echo"));
    let start = worker.start_of(1, r#"{"a":[1,2.50]}"#);
    let report = worker.run(start);
    assert_eq!(output(&report), r#"{"a":[1,2.50]}"#);
    assert!(report.usage.fuel > 0 && report.usage.peak_memory_bytes >= 65536, "{:?}", report.usage);
}

/// Prints what a start and a warm task cost; no assertion, machines differ. `cargo test -p tm-worker -- --ignored`
#[test]
#[ignore = "a measurement"]
fn measure() {
    let mut starts: Vec<_> = (0..50).map(|_| timed(|| Worker::start(&Setup::default())).1).collect();
    starts.sort_unstable();
    eprintln!("spawn to Ready: median {:?}, least {:?}, most {:?}", starts[25], starts[0], starts[49]);
    for (guest, input) in [("echo", "null"), ("compute", r#"{"do":"nothing"}"#), ("compute", r#"{"do":"hog","mb":8}"#)]
    {
        for window in [1, 8, 64] {
            let mut worker = Worker::start(&Setup { concurrency: 64, ..Setup::default() });
            worker.load(1, &native(guest));
            let mut starts: Vec<_> = (0..11_000).map(|_| worker.start_of(1, input)).collect();
            let warm: Vec<_> = starts.drain(..1000).collect();
            pipeline(&mut worker, warm, window);
            let ((), took) = timed(|| pipeline(&mut worker, starts, window));
            eprintln!("{guest} {input}, {window} in flight: {:?} per task", took / 10_000);
        }
    }
}

/// Keeps `window` tasks in flight, refilled by half windows.
fn pipeline(worker: &mut Worker, starts: Vec<Start>, window: usize) {
    let mut starts = starts.into_iter().map(|start| ToWorker::Start(Box::new(start)));
    let mut in_flight = 0;
    loop {
        if in_flight <= window / 2 {
            let batch: Vec<_> = starts.by_ref().take(window - in_flight).collect();
            in_flight += batch.len();
            if !batch.is_empty() {
                worker.send(&batch, &[]);
            }
        }
        if in_flight == 0 {
            return;
        }
        if let FromWorker::Report(report) = worker.next().0 {
            assert!(matches!(report.outcome, Outcome::Succeeded { .. }), "{:?}", report.outcome);
            in_flight -= 1;
        }
    }
}
