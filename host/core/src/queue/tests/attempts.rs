//! Attempts, failures, retries, and the poison that takes nobody along.

use super::*;

fn bench() -> Bench {
    Bench::new(vec![flow("one", vec![step("s", &[])])])
}

#[test]
fn a_failing_task_is_tried_max_attempts_times_with_growing_delays() {
    let mut bench = bench();
    let run = bench.enqueue("one");
    for (attempt, delay_ms) in [(1, 200), (2, 400), (3, 800), (4, 1600)] {
        let lease = bench.lease(1, 1)[0];
        assert_eq!(lease.attempt, attempt);
        bench.fail(lease, Class::Retryable);
        assert_eq!(bench.phase(lease.task), Phase::Delayed { ready_at: bench.now.plus(delay_ms) });
        bench.wait(delay_ms - 1);
        assert_eq!(bench.lease(1, 1), []);
        bench.wait(1);
    }
    let lease = bench.lease(1, 1)[0];
    bench.fail(lease, Class::Retryable);
    let letter = bench.state.runs[&run].letters().next().expect("a letter").1.clone();
    assert_eq!((letter.code.as_str(), letter.reason.as_str()), ("RETRIES_EXHAUSTED", "max_attempts"));
    assert_eq!((letter.failures, letter.attempt, letter.last_code.as_deref()), (5, 5, Some("TRAP")));
    assert_eq!(bench.run_state(run), RunState::Stalled);
}

#[test]
fn a_step_may_ask_for_a_longer_delay_and_not_for_a_shorter_one() {
    let mut bench = bench();
    bench.enqueue("one");
    let lease = bench.lease(1, 1)[0];
    bench.end(lease, failed(Class::Retryable, Some(5)));
    assert_eq!(bench.phase(lease.task), Phase::Delayed { ready_at: bench.now.plus(200) });
    bench.wait(200);
    let lease = bench.lease(1, 1)[0];
    bench.end(lease, failed(Class::Retryable, Some(90_000)));
    assert_eq!(bench.phase(lease.task), Phase::Delayed { ready_at: bench.now.plus(90_000) });
}

#[test]
fn fatal_and_invalid_input_are_dead_at_once() {
    for class in [Class::Fatal, Class::InvalidInput] {
        let mut bench = bench();
        bench.enqueue("one");
        let lease = bench.lease(1, 1)[0];
        bench.fail(lease, class);
        assert_eq!(bench.state.totals.tasks_dead, 1);
        let filed = bench.effects.iter().filter(|effect| matches!(effect, Effect::FileEntry { .. })).count();
        assert_eq!(filed, 1);
    }
}

#[test]
fn rate_limits_are_no_failures_and_still_have_an_end() {
    let mut bench = bench();
    bench.enqueue("one");
    let (mut tries, start) = (0, bench.now);
    while bench.state.letters.is_empty() {
        let lease = bench.lease(1, 1)[0];
        bench.end(lease, failed(Class::RateLimited, Some(3_600_000)));
        tries += 1;
        assert!(tries < 100, "it never ends");
        bench.wait(3_600_000);
    }
    let letter = bench.state.runs.values().next().expect("a run").letters().next().expect("a letter").1.clone();
    assert_eq!(letter.reason, "rate_limited_max");
    let lasted_ms = bench.now.since(start);
    let most_ms = bench.policy.rate_limited_max_ms;
    assert!(lasted_ms >= most_ms && lasted_ms <= most_ms + 2 * 3_600_000, "{lasted_ms}");
}

#[test]
fn a_start_that_was_undone_does_not_count() {
    let mut bench = bench();
    bench.enqueue("one");
    for attempt in 1..20 {
        let lease = bench.lease(1, 1)[0];
        assert_eq!(lease.attempt, attempt);
        bench.end(lease, Outcome::NotStarted);
    }
    let lease = bench.lease(1, 1)[0];
    let Lease { worker, task, attempt } = lease;
    bench.put(Input::Aborted { worker, task, attempt });
    let task = bench.state.runs[&task.run].task(task).expect("a task");
    assert_eq!((task.failures, task.attempt), (0, 20));
    assert_eq!(task.attempts.last().map(|last| last.outcome.as_str()), Some("aborted:shutdown"));
}

#[test]
fn a_report_of_another_worker_or_of_another_attempt_is_refused() {
    let mut bench = bench();
    bench.enqueue("one");
    let lease = bench.lease(1, 1)[0];
    let frames = bench.log.len();
    bench.succeed(Lease { worker: WorkerId(2), ..lease }, "1");
    bench.succeed(Lease { attempt: 2, ..lease }, "1");
    bench.succeed(Lease { attempt: 0, ..lease }, "1");
    bench.succeed(Lease { task: TaskRef { step: 9, ..lease.task }, ..lease }, "1");
    bench.put(Input::Progress { from: WorkerId(2), task: lease.task, attempt: 1, percent: 9 });
    assert_eq!((bench.log.len(), bench.state.refused_reports), (frames, 5));
    assert_eq!(bench.phase(lease.task), Phase::Leased { worker: WorkerId(1) });
    bench.succeed(lease, "1");
    bench.succeed(lease, "2");
    assert_eq!((bench.state.totals.tasks_succeeded, bench.state.refused_reports), (1, 6));
}

#[test]
fn one_poison_task_among_63_good_ones_takes_nobody_along() {
    let mut bench = bench();
    let runs: Vec<RunId> = (0..64).map(|_| bench.enqueue("one")).collect();
    let poison = runs[20];
    let mut worker = 0;
    for _ in 0..200 {
        worker += 1;
        let leases = bench.lease(worker, 64);
        if leases.is_empty() {
            break;
        }
        if leases.iter().any(|lease| lease.task.run == poison) {
            bench.gone(worker);
        } else {
            leases.into_iter().for_each(|lease| bench.succeed(lease, "1"));
        }
    }
    let done = runs.iter().filter(|run| bench.run_state(**run) == RunState::Succeeded).count();
    assert_eq!((done, bench.run_state(poison), bench.state.totals.tasks_dead), (63, RunState::Stalled, 1));
    let letter = bench.state.runs[&poison].letters().next().expect("a letter").1.clone();
    assert_eq!((letter.code.as_str(), letter.last_code.as_deref()), ("RETRIES_EXHAUSTED", Some("WORKER_LOST")));
}

#[test]
fn a_suspect_runs_alone_and_waits_for_an_idle_worker() {
    let mut bench = bench();
    bench.enqueue("one");
    bench.enqueue("one");
    assert_eq!(bench.lease(1, 2).len(), 2);
    bench.gone(1);
    let profile = bench.profile("default");
    let busy = Slot { worker: WorkerId(2), profile, free: 5, idle: false };
    assert_eq!(bench.lease_to(vec![busy]), []);
    let idle = Slot { worker: WorkerId(3), profile, free: 5, idle: true };
    assert_eq!(bench.lease_to(vec![idle]).len(), 1, "the second one waits for the first");
}

#[test]
fn losses_in_company_are_no_failures_until_the_third_in_a_row() {
    let mut bench = bench();
    let tasks = [bench.enqueue("one"), bench.enqueue("one")].map(single);
    // Company cannot come together again by itself: two workers' tasks are put into one by the test.
    for worker in 1..=3 {
        for task in tasks {
            let attempt = bench.state.runs[&task.run].task(task).expect("a task").attempt + 1;
            bench.make(|state, world| {
                let event = crate::queue::event::Event::Leased { task, attempt, worker: WorkerId(worker) };
                state.apply(&event, world.now);
                Step { events: vec![event], effects: vec![] }
            });
        }
        bench.gone(worker);
        let task = bench.state.runs[&tasks[0].run].task(tasks[0]).expect("a task");
        assert_eq!(task.failures, u32::from(worker == 3), "after loss {worker}");
    }
}

#[test]
fn the_first_retry_after_a_loss_has_no_delay() {
    let mut bench = bench();
    bench.enqueue("one");
    let lease = bench.lease(1, 1)[0];
    bench.gone(1);
    assert_eq!(bench.phase(lease.task), Phase::Ready { since: bench.now });
}

/// The attempts that `queue show` has of the only task: their numbers, outcomes, and how many were left out.
fn shown(bench: &Bench, run: RunId) -> (Vec<(Attempt, String)>, u32) {
    let detail = crate::queue::view::detail(bench.ended(), run, &NoBlobs, &|_, _| None).expect("a run");
    let task = &detail.tasks[0];
    assert!(task.attempts.iter().all(|row| row.ended_at.is_some() && row.worker == 1));
    (task.attempts.iter().map(|row| (row.attempt, row.outcome.clone())).collect(), task.attempts_left_out)
}

#[test]
fn a_finished_run_still_shows_every_attempt() {
    let mut bench = bench();
    let run = bench.enqueue("one");
    for _ in 0..2 {
        let lease = bench.lease(1, 1)[0];
        bench.fail(lease, Class::Retryable);
        bench.wait(10_000);
    }
    let lease = bench.lease(1, 1)[0];
    bench.succeed(lease, "1");
    assert_eq!(bench.run_state(run), RunState::Succeeded);
    let all = [(1, "retry"), (2, "retry"), (3, "succeeded")].map(|(attempt, outcome)| (attempt, outcome.into()));
    assert_eq!(shown(&bench, run), (all.to_vec(), 0));
    // A copy of it, as compaction writes it, tells the same.
    let copied = serde_json::to_string(&bench.state.finished[&run]).expect("JSON");
    let copy: crate::queue::run::FinishedRun = serde_json::from_str(&copied).expect("a finished run");
    assert_eq!(copy.tasks, bench.state.finished[&run].tasks);
}

#[test]
fn the_history_of_a_task_is_bounded_and_says_what_it_leaves_out() {
    let mut bench = bench();
    let run = bench.enqueue("one");
    for _ in 0..40 {
        let lease = bench.lease(1, 1)[0];
        bench.put(Input::NotStarted { worker: lease.worker, task: lease.task, attempt: lease.attempt });
    }
    let (attempts, left_out) = shown(&bench, run);
    assert_eq!((attempts.len(), attempts[0].0, left_out), (32, 9, 8));
    let lease = bench.lease(1, 1)[0];
    let before = bench.state.results_bytes;
    bench.succeed(lease, "1");
    let (attempts, left_out) = shown(&bench, run);
    assert_eq!((attempts.len(), attempts[31].clone(), left_out), (32, (41, "succeeded".into()), 9));
    assert!(bench.state.results_bytes - before > 32 * 100, "what it costs counts against results_max_mb");
}

#[test]
fn a_stalled_run_says_how_long_its_steps_took_as_it_does_when_it_has_ended() {
    let steps = vec![step("a", &[]), step("b", &[]), step("c", &[0])];
    let mut bench = Bench::new(vec![flow("three", steps)]);
    let run = bench.enqueue("three");
    let leases = bench.lease(1, 2);
    for (lease, outcome) in leases.into_iter().zip([succeeded("1"), failed(Class::Fatal, None)]) {
        let Lease { worker, task, attempt } = lease;
        let usage = Usage { exec_us: 1_600, ..Usage::default() };
        bench.put(Input::Report { from: worker, report: Box::new(Report { task, attempt, outcome, usage }) });
    }
    bench.run_all("2");
    let exec_ms = |bench: &Bench| {
        let end = crate::queue::view::run_end(bench.ended(), run, &NoBlobs).expect("sound").expect("an end");
        (end.status, end.exec_ms)
    };
    assert_eq!(exec_ms(&bench), (RunState::Stalled, 4));
    bench.purge(&run.to_string(), true);
    assert_eq!(exec_ms(&bench), (RunState::Failed, 4));
}

#[test]
fn a_dead_task_says_on_one_line_why() {
    let mut bench = bench();
    let run = bench.enqueue("one");
    let lease = bench.lease(1, 1)[0];
    let (code, message) = ("COMPILE_FAILED".into(), "the component's blob 0102\nis missing".into());
    bench.end(
        lease,
        Outcome::Failed(Failure { by_host: true, class: Class::Fatal, code, message, retry_after_ms: None }),
    );
    let detail = crate::queue::view::detail(bench.ended(), run, &NoBlobs, &|_, _| None).expect("a run");
    let why = detail.tasks[0].waiting_for.clone().expect("why");
    assert_eq!(why, format!("COMPILE_FAILED: {}: the component's blob 0102 is missing", bench.letter()));
}

#[test]
fn a_task_of_one_attempt_takes_no_more_of_the_log_than_that_attempt() {
    let mut bench = bench();
    let run = bench.enqueue("one");
    bench.run_all("1");
    let tasks = serde_json::to_string(&bench.state.finished[&run].tasks).expect("JSON");
    assert!(!tasks.contains("earlier") && tasks.len() < 200, "{tasks}");
}
