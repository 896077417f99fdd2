//! What an operator does: cancel, requeue, purge, and find runs by a part of their id.

use super::*;
use crate::queue::view::{Found, find_run};

fn dead(bench: &mut Bench, count: usize) -> Vec<RunId> {
    let runs: Vec<RunId> = (0..count).map(|_| bench.enqueue("one")).collect();
    for lease in bench.lease(1, 1000) {
        bench.fail(lease, Class::Fatal);
    }
    runs
}

fn bench() -> Bench {
    Bench::new(vec![flow("one", vec![step("s", &[])])])
}

#[test]
fn a_cancelled_run_ends_and_its_running_steps_are_told() {
    let mut bench = bench();
    let run = bench.enqueue("one");
    let lease = bench.lease(1, 1)[0];
    assert!(matches!(bench.cancel(&run.to_string()), Reply::Cancelled { run: cancelled } if cancelled == run));
    let told = bench
        .effects
        .iter()
        .any(|effect| matches!(effect, Effect::Cancel { task, attempt: 1, .. } if *task == lease.task));
    assert!(told);
    assert_eq!((bench.run_state(run), bench.state.depth()), (RunState::Cancelled, 0));
    bench.succeed(lease, "1");
    assert_eq!((bench.state.totals.tasks_succeeded, bench.state.refused_reports), (0, 1));
    assert!(message_of(&bench.cancel(&run.to_string())).contains("ended already: cancelled"));
}

#[test]
fn a_requeued_task_starts_with_no_failures_and_goes_on_counting_attempts() {
    let mut bench = bench();
    let run = dead(&mut bench, 1)[0];
    let entry = bench.letter();
    bench.requeue(&entry, false);
    let lease = bench.lease(1, 1)[0];
    assert_eq!(lease.attempt, 2);
    bench.fail(lease, Class::Retryable);
    assert_eq!(bench.state.runs[&run].task(lease.task).map(|task| task.failures), Some(1));
    assert!(bench.effects.iter().any(|effect| matches!(effect, Effect::ArchiveEntry { entry: archived } if archived.entry_id == entry && archived.state == "requeued")));
}

#[test]
fn a_purge_ends_the_run_as_failed() {
    let mut bench = bench();
    let run = dead(&mut bench, 1)[0];
    let entry = bench.letter();
    bench.purge(&entry, false);
    assert_eq!(
        (bench.run_state(run), bench.state.letters.len(), bench.state.totals.dlq_purged),
        (RunState::Failed, 0, 1)
    );
    assert!(message_of(&bench.requeue(&entry, false)).contains("no DLQ entries match"));
}

#[test]
fn a_glob_that_matches_several_needs_all() {
    let mut bench = bench();
    dead(&mut bench, 3);
    assert!(message_of(&bench.requeue("dlq-*", false)).contains("3 entries; nothing was changed"));
    assert_eq!(bench.state.letters.len(), 3);
    bench.requeue("dlq-*", true);
    assert_eq!((bench.state.letters.len(), bench.state.indexes.lanes.len()), (0, 3));
}

#[test]
fn entries_of_one_millisecond_have_names_of_their_own() {
    let mut bench = bench();
    dead(&mut bench, 200);
    assert_eq!(bench.state.letters.len(), 200);
}

#[test]
fn an_entry_is_to_be_filed_until_its_file_is_known() {
    let mut bench = bench();
    dead(&mut bench, 1);
    assert_eq!(decide::unfiled(&bench.state).len(), 1);
    let entry = bench.letter();
    bench.put(Input::Filed { entry });
    assert_eq!(decide::unfiled(&bench.state).len(), 0);
}

#[test]
fn a_unique_prefix_names_a_run_and_a_short_one_names_several() {
    let mut bench = bench();
    let first = bench.enqueue("one");
    bench.wait(5_000_000);
    let second = bench.enqueue("one");
    let (text, other) = (first.to_string(), second.to_string());
    let shared = text.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    assert_eq!(find_run(bench.ended(), &text), Found::Run(first));
    assert_eq!(find_run(bench.ended(), &text[..=shared]), Found::Run(first));
    assert_eq!(find_run(bench.ended(), &text[..=shared].to_lowercase()), Found::Run(first));
    assert_eq!(find_run(bench.ended(), &text[..shared]), Found::Several(2));
    assert_eq!(find_run(bench.ended(), &format!("{other}.s")), Found::Run(second));
    assert_eq!(find_run(bench.ended(), ""), Found::None);
    assert_eq!(find_run(bench.ended(), "7ZZZ"), Found::None);
}

#[test]
fn a_prefix_finds_finished_runs_too_and_counts_a_run_once() {
    let mut bench = bench();
    let run = bench.enqueue("one");
    bench.run_all("1");
    assert_eq!(find_run(bench.ended(), &run.to_string()[..25]), Found::Run(run));
}

#[test]
fn reading_changes_nothing() {
    use crate::queue::{pages, view};
    let mut bench = bench();
    dead(&mut bench, 2);
    bench.enqueue("one");
    let before = image(&bench.state);
    let now = bench.now.plus(99_999);
    assert_eq!(view::stats(&bench.state, now).dlq_pending, 2);
    pages::runs(bench.ended(), &crate::api::ListRequest { state: Some("all".into()), ..Default::default() })
        .expect("rows");
    assert_eq!((decide::unfiled(&bench.state).len(), decide::orphaned_workers(&bench.state).len()), (2, 0));
    assert_eq!(before, image(&bench.state));
}

#[test]
fn an_event_about_something_unknown_is_counted_and_changes_nothing() {
    let mut bench = bench();
    let run = bench.enqueue("one");
    bench.lease(1, 1);
    bench.cancel(&run.to_string());
    let unknown: Vec<_> = bench.log.iter().skip(2).flat_map(|(frame, _)| frame.events.clone()).collect();
    let mut empty = State::default();
    for event in &unknown {
        empty.apply(event, Millis(5));
    }
    assert_eq!(empty.totals.orphans, unknown.len() as u64);
    assert!(empty.runs.is_empty() && empty.finished.is_empty() && empty.indexes.leased == 0);
}
