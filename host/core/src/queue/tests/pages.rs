//! Lists are given a page at a time, each of bounded work.

use alloc::sync::Arc;

use super::*;
use crate::{
    api::{DlqFilter, ListRequest},
    queue::pages,
};

fn bench() -> Bench {
    Bench::new(vec![flow("one", vec![step("s", &[])])])
}

/// The runs of all pages, and how many pages there were.
fn listed(bench: &Bench, state: &str, limit: u64) -> (Vec<RunId>, usize) {
    let mut request = ListRequest { state: Some(state.into()), limit, ..ListRequest::default() };
    let (mut runs, mut count) = (Vec::new(), 0);
    loop {
        let (rows, below) = pages::runs(bench.ended(), &request).expect("a page");
        runs.extend(rows.iter().map(|row| row.run_id));
        request.limit = request.limit.saturating_sub(rows.len() as u64);
        request.below = below;
        count += 1;
        if request.below.is_none() {
            return (runs, count);
        }
    }
}

#[test]
fn pages_give_every_run_once_and_the_newest_first() {
    let mut bench = bench();
    let mut runs: Vec<RunId> = (0..5000).map(|_| bench.enqueue("one")).collect();
    runs.reverse();
    assert_eq!(listed(&bench, "unfinished", 0), (runs.clone(), 3));
    assert_eq!(listed(&bench, "all", 0), (runs.clone(), 3));
    assert_eq!(listed(&bench, "all", 20), (runs[..20].to_vec(), 1));
    assert_eq!(listed(&bench, "all", 2048), (runs[..2048].to_vec(), 1));
    assert_eq!(listed(&bench, "all", 2049), (runs[..2049].to_vec(), 2));
}

#[test]
fn a_page_reads_a_bounded_number_of_results_whatever_it_finds() {
    let mut bench = bench();
    let run = bench.enqueue("one");
    bench.run_all("1");
    let kept = bench.state.finished.remove(&run).expect("a run that ended");
    for no in 0..1000 {
        let id = RunId(run.0 - no);
        bench
            .shelf
            .0
            .insert(id, ((Arc::from("default"), "one".into(), String::new()), FinishedRun { id, ..kept.clone() }));
    }
    let (runs, pages) = listed(&bench, "all", 0);
    assert!(runs.iter().copied().eq((0..1000).map(|no| RunId(run.0 - no))));
    assert_eq!(pages, 4);
    assert_eq!(listed(&bench, "failed", 20), (Vec::new(), 4));
}

#[test]
fn pages_of_dead_letters_give_each_once() {
    let mut bench = bench();
    for _ in 0..1200 {
        bench.enqueue("one");
    }
    for lease in bench.lease(1, 1200) {
        bench.fail(lease, Class::Fatal);
    }
    let mut wanted: Vec<_> = bench.state.letters.keys().cloned().collect();
    wanted.reverse();
    let (mut filter, mut found) = (DlqFilter::default(), Vec::new());
    loop {
        let (entries, below) = pages::letters(&bench.state, &filter);
        assert!(entries.len() <= 512);
        found.extend(entries.into_iter().map(|entry| entry.entry_id));
        let Some(below) = below else { break };
        filter.below = Some(below);
    }
    assert_eq!(found, wanted);
    let five = DlqFilter { limit: 5, ..DlqFilter::default() };
    assert_eq!(pages::letters(&bench.state, &five).0.len(), 5);
}
