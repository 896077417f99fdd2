//! Compaction: what is kept of the log is enough to rebuild the state.

use super::*;
use crate::{
    api::Totals,
    json::BlobRef,
    queue::{
        decide::Sweep,
        event::Event,
        results::ResultsMark,
        run::{Run, StepRun},
    },
};

/// Sweeps everything up to the segment before the newest, a new segment before each slice; forgets the old ones.
fn compact(bench: &mut Bench, most: usize, room_bytes: u64) {
    let mut sweep = Sweep::new(bench.state.segment);
    while !sweep.is_through() {
        bench.state.segment += 1;
        let room_bytes = room_bytes.max(sweep.needs_bytes());
        if sweep.is_last() {
            bench.keep_results();
        }
        bench.make(|state, world| sweep.slice(state, world, most, room_bytes));
    }
    bench.log.retain(|(_, segment)| *segment > sweep.cutoff);
}

/// Runs of every kind.
fn lived() -> Bench {
    let each = StepDef { for_each: Some("steps.list.output".into()), max_parallel: 1, ..step("each", &[0]) };
    let mut bench = Bench::new(vec![
        flow("one", vec![step("s", &[])]),
        flow("fan", vec![step("list", &[]), each, step("sum", &[1])]),
    ]);
    for place in 0..12 {
        bench.now = bench.now.plus(3);
        bench.ask(keyed("one", &format!("k{place}")));
        let lease = bench.lease(1, 1)[0];
        match place % 6 {
            0 => bench.succeed(lease, "1"),
            1 => bench.fail(lease, Class::Fatal),
            2 => bench.fail(lease, Class::Retryable),
            3 => bench.gone(1),
            4 => {
                bench.cancel(&lease.task.run.to_string());
            }
            _ => {}
        }
        bench.state.segment += 1;
    }
    bench.enqueue("fan");
    let list = bench.lease(2, 1)[0];
    bench.succeed(list, "[1,2,3]");
    bench
}

#[test]
fn replaying_every_frame_gives_the_same_state() {
    let bench = lived();
    assert_same(&bench.state, &bench.replayed());
}

#[test]
fn what_is_left_after_compaction_gives_the_same_state() {
    for (most, room_bytes) in [(1, u64::MAX), (3, u64::MAX), (64, u64::MAX), (64, 900), (64, 1)] {
        let mut bench = lived();
        let frames = bench.log.len();
        compact(&mut bench, most, room_bytes);
        assert!(bench.log.len() < frames + 40);
        assert_same(&bench.state, &bench.replayed());
        // A second one, and what happens between.
        bench.run_all("[]");
        bench.enqueue("fan");
        compact(&mut bench, most, room_bytes);
        assert_same(&bench.state, &bench.replayed());
    }
}

#[test]
fn a_run_that_ends_after_the_cutoff_is_kept_with_its_key() {
    let mut bench = Bench::new(vec![flow("one", vec![step("s", &[])])]);
    let run = run_of(&bench.ask(keyed("one", "k")));
    let mut sweep = Sweep::new(bench.state.segment);
    bench.state.segment += 1;
    // The flow is copied, and then the run ends one segment later.
    bench.make(|state, world| sweep.slice(state, world, 64, u64::MAX));
    bench.state.segment += 1;
    bench.run_all("7");
    while !sweep.is_through() {
        if sweep.is_last() {
            bench.keep_results();
        }
        bench.make(|state, world| sweep.slice(state, world, 64, u64::MAX));
    }
    bench.log.retain(|(_, segment)| *segment > sweep.cutoff);
    bench.state = bench.replayed();
    bench.state.segment = 4;
    assert!(matches!(bench.ask(keyed("one", "k")), Reply::Duplicate { run: held, .. } if held == run));
}

#[test]
fn a_run_enqueued_after_the_cutoff_and_before_the_copy_of_its_flow_is_kept() {
    for slices_before in 0..2 {
        let mut bench = Bench::new(vec![flow("one", vec![step("s", &[])])]);
        // A first sweep copied the flow and was cut short.
        let mut sweep = Sweep::new(bench.state.segment);
        bench.state.segment += 1;
        bench.enqueue("one");
        for _ in 0..slices_before {
            bench.make(|state, world| sweep.slice(state, world, 64, u64::MAX));
        }
        let mut sweep = Sweep::new(1);
        while !sweep.is_through() {
            bench.make(|state, world| sweep.slice(state, world, 64, u64::MAX));
        }
        bench.log.retain(|(_, segment)| *segment > 1);
        assert_same(&bench.state, &bench.replayed());
    }
}

#[test]
fn copies_of_runs_whose_flow_is_unknown_are_orphans() {
    let mut bench = lived();
    compact(&mut bench, 64, u64::MAX);
    for (frame, _) in &mut bench.log {
        frame.events.retain(|event| !matches!(event, Event::FlowRegistered { .. }));
    }
    let state = bench.replayed();
    assert!(!bench.state.runs.is_empty());
    assert!(state.runs.is_empty() && state.indexes.lanes.is_empty());
}

#[test]
fn a_flow_that_is_said_again_keeps_its_lanes() {
    let mut bench = Bench::new(vec![flow("one", vec![step("s", &[])])]);
    bench.enqueue("one");
    compact(&mut bench, 64, u64::MAX);
    bench.enqueue("one");
    assert_eq!(bench.lease(1, 9).len(), 2);
}

#[test]
fn a_slice_stays_within_its_room() {
    let mut bench = lived();
    let mut sweep = Sweep::new(bench.state.segment);
    bench.state.segment += 1;
    while !sweep.is_through() {
        let room_bytes = sweep.needs_bytes().max(2000);
        let before = bench.log.len();
        bench.make(|state, world| sweep.slice(state, world, 64, room_bytes));
        let mut line = Vec::new();
        if let Some((frame, _)) = bench.log.get(before) {
            crate::record::codec::encode(frame, 1, &mut line);
        }
        assert!(line.len() as u64 <= room_bytes, "{} bytes, {room_bytes} allowed", line.len());
    }
}

#[test]
fn numbers_that_no_results_segment_can_have_are_not_believed() {
    let mut state = State::default();
    let mark = |oldest, segment, bytes| ResultsMark { oldest, segment, bytes, ..ResultsMark::default() };
    let dropped = ResultsMark { dropped: [u64::MAX].into(), ..mark(1, 2, 0) };
    let marks = [mark(u64::MAX, 2, 0), mark(1, u64::MAX, 0), mark(1, 2, u64::MAX), dropped];
    let kept = marks.map(|mark| Event::ResultsKept(Box::new(mark)));
    for event in kept.into_iter().chain([Event::ResultsDropped { segment: u64::MAX }]) {
        state.apply(&event, Millis(1));
    }
    assert_eq!((state.results, state.totals.orphans), (ResultsMark::default(), 5));
}

#[test]
fn numbers_of_a_record_that_cannot_be_overflow_nothing() {
    let mut bench = lived();
    let huge = Payload::Blob(Box::new(BlobRef { digest: Digest::of(b"huge"), size_bytes: u64::MAX }));
    for event in bench.log.iter_mut().flat_map(|(frame, _)| &mut frame.events) {
        if let Event::Succeeded(succeeded) = event {
            succeeded.output = huge.clone();
        }
    }
    let mut state = bench.replayed();
    assert!(state.finished.values().filter(|run| run.output.as_ref() == Some(&huge)).count() > 1);
    let totals = Totals { runs_enqueued: u64::MAX, ..Totals::default() };
    state.apply(&Event::TotalsSnapshot(Box::new(totals)), Millis(1));
    assert_eq!(state.totals.orphans, 1);
    for mut run in state.runs.values().cloned().collect::<Vec<_>>() {
        for step in &mut run.steps {
            match step {
                StepRun::Single(task) => task.failures = u32::MAX,
                StepRun::Fan(fan) => (fan.succeeded, fan.dead, fan.output_bytes) = (u32::MAX, u32::MAX, u64::MAX),
                _ => {}
            }
        }
        let task = TaskRef { run: run.id, step: 0, item: None };
        state.apply(&Event::RunSnapshot(run), Millis(1));
        state.apply(&Event::Lost { task, attempt: 1, counted: true }, Millis(1));
    }
}

#[test]
fn a_run_that_is_read_whole_holds_its_input_once() {
    let bench = lived();
    let mut runs: Vec<_> = bench.state.runs.values().cloned().collect();
    let mut state = bench.replayed();
    let mut shared = 0;
    for run in &mut runs {
        // As it comes from the log: each input is a text of its own.
        let read: Run = serde_json::from_str(&serde_json::to_string(run).unwrap()).unwrap();
        state.apply(&Event::RunSnapshot(Box::new(read)), Millis(1));
        let run = &state.runs[&run.id];
        let StepRun::Single(task) = &run.steps[0] else { continue };
        let (Payload::Inline(own), Payload::Inline(of_task)) = (&run.input, &task.input) else { panic!("{run:?}") };
        assert_eq!(own.get().as_ptr(), of_task.get().as_ptr());
        shared += 1;
    }
    assert!(shared > 0);
}
