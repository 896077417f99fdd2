//! One hostile guest per limit: the code, that it fired in time and within the memory bound, that the same process goes
//! on with good tasks, and that a guest just below the limit succeeds.

use std::time::Duration;

use tm_core::{
    code::{self, Class},
    limits::Limits,
    wire::{Failure, Outcome, Report, Required, StartGrants},
};

use crate::harness::{BASE_BYTES, Setup, Worker, failure, native, output, timed};

const SUBJECT: u32 = 1;
const GOOD: u32 = 2;
/// Fuel stands in the way of nothing but the fuel test.
const PLENTY: u64 = 1_000_000_000_000;

/// A worker with the guest loaded beside a good one.
fn worker(guest: &str) -> Worker {
    let required = Required { memories: 4, tables: 4, ..Required::default() };
    let mut worker = Worker::start(&Setup { required, ..Setup::default() });
    worker.load(SUBJECT, &native(guest));
    worker.load(GOOD, &native("echo"));
    worker
}

fn limits() -> Limits {
    Limits { fuel: PLENTY, timeout_ms: 20_000, ..Limits::DEFAULT }
}

fn run_with(worker: &mut Worker, limits: &Limits, input: &str) -> Report {
    let mut start = worker.start_of(SUBJECT, input);
    start.limits = limits.clone();
    if input.contains("/scratch") {
        start.grants = StartGrants { scratch: true, ..StartGrants::default() };
    }
    worker.run(start)
}

/// The guest is ended with this code; afterwards the same process runs a good task, and stayed within its bound.
fn ends(worker: &mut Worker, limits: &Limits, input: &str, expected: &str) -> Failure {
    let report = run_with(worker, limits, input);
    let failed = failure(&report).clone();
    assert_eq!(failed.code, expected, "{}", failed.message);
    assert!(failed.by_host);
    assert_eq!(Some(failed.class), code::class_of(expected));
    goes_on(worker);
    failed
}

fn goes_on(worker: &mut Worker) {
    assert!(worker.child.try_wait().expect("a child").is_none(), "the worker died");
    let good = worker.start_of(GOOD, r#"{"still":"here"}"#);
    let report = worker.run(good);
    assert_eq!(output(&report), r#"{"still":"here"}"#);
    let (peak, bound) = (worker.peak_resident_bytes(), worker.confinement.memory_bound_bytes + BASE_BYTES);
    assert!(peak <= bound, "resident {peak}, bound {bound}");
}

fn succeeds(worker: &mut Worker, limits: &Limits, input: &str) -> Report {
    let report = run_with(worker, limits, input);
    assert!(matches!(report.outcome, Outcome::Succeeded { .. }), "{:?}", report.outcome);
    report
}

/// 10 % and 20 ms over the limit, no more; and not before it.
fn in_time(took: Duration, limit_ms: u64) {
    let (least, most) = (Duration::from_millis(limit_ms), Duration::from_millis(limit_ms + limit_ms / 10 + 20));
    assert!(took >= least && took <= most, "took {took:?}, limit {limit_ms} ms");
}

#[test]
fn an_endless_loop_ends_at_its_timeout() {
    let mut worker = worker("spin");
    let limits = Limits { timeout_ms: 200, ..limits() };
    let (_, took) = timed(|| {
        let report = run_with(&mut worker, &limits, "{}");
        assert_eq!(failure(&report).code, code::TIMEOUT);
    });
    in_time(took, 200);
    goes_on(&mut worker);
}

#[test]
fn an_endless_loop_in_the_start_function_ends_at_its_timeout() {
    let mut worker = worker("start-spin");
    let limits = Limits { timeout_ms: 200, ..limits() };
    let (_, took) = timed(|| {
        let report = run_with(&mut worker, &limits, "{}");
        assert_eq!(failure(&report).code, code::TIMEOUT);
    });
    in_time(took, 200);
    goes_on(&mut worker);
}

#[test]
fn endless_loops_in_the_functions_that_the_host_calls_for_strings_end_at_their_timeout() {
    for guest in ["realloc-spin", "post-return-spin"] {
        let mut worker = worker(guest);
        ends(&mut worker, &Limits { timeout_ms: 100, ..limits() }, "{}", code::TIMEOUT);
    }
}

#[test]
fn a_guest_that_sleeps_in_the_host_ends_at_its_timeout_too() {
    let mut worker = worker("hostile");
    let limits = Limits { timeout_ms: 200, ..limits() };
    for (input, ok) in [(r#"{"do":"sleep_ms","ms":60000}"#, false), (r#"{"do":"sleep_ms","ms":100}"#, true)] {
        let mut start = worker.start_of(SUBJECT, input);
        start.limits = limits.clone();
        start.grants = all_capabilities();
        let (report, took) = timed(|| worker.run(start));
        if ok {
            assert_eq!(output(&report), r#"{"ok":100}"#);
        } else {
            assert_eq!(failure(&report).code, code::TIMEOUT);
            in_time(took, 200);
        }
    }
    goes_on(&mut worker);
}

fn all_capabilities() -> StartGrants {
    StartGrants { scratch: true, artifacts: true, clocks: true, random: true, ..StartGrants::default() }
}

#[test]
fn fuel_is_exact_and_a_guest_just_below_it_succeeds() {
    let mut worker = worker("compute");
    let free = succeeds(&mut worker, &limits(), r#"{"do":"fuel","fuel":100000}"#).usage.fuel;
    let exact = Limits { fuel: free + 1, ..limits() };
    assert_eq!(succeeds(&mut worker, &exact, r#"{"do":"fuel","fuel":100000}"#).usage.fuel, free);
    let short = Limits { fuel: free - 1000, ..limits() };
    ends(&mut worker, &short, r#"{"do":"fuel","fuel":100000}"#, code::FUEL_EXHAUSTED);
    let report = run_with(&mut worker, &short, r#"{"do":"fuel","fuel":100000}"#);
    assert!(report.usage.fuel <= short.fuel, "{} of {}", report.usage.fuel, short.fuel);
}

#[test]
fn memory_grown_in_small_pieces_over_four_memories_counts_as_one_sum() {
    let mut worker = worker("memories");
    let limits = Limits { memory_mb: 16, ..limits() };
    // 16 MiB are 256 pages; one is the memory's initial one, and the input's bytes count too.
    succeeds(&mut worker, &limits, "250");
    ends(&mut worker, &limits, "256", code::MEMORY_EXCEEDED);
    ends(&mut worker, &limits, "{}", code::MEMORY_EXCEEDED);
}

#[test]
fn a_hog_is_refused_and_named_as_memory_not_as_a_panic() {
    let mut worker = worker("compute");
    let limits = Limits { memory_mb: 32, ..limits() };
    succeeds(&mut worker, &limits, r#"{"do":"hog","mb":20}"#);
    let failed = ends(&mut worker, &limits, r#"{"do":"hog"}"#, code::MEMORY_EXCEEDED);
    assert!(failed.message.contains("memory_mb = 32"), "{}", failed.message);
}

#[test]
fn a_guest_that_lives_with_a_refused_growth_goes_on() {
    let mut worker = worker("compute");
    let limits = Limits { memory_mb: 16, ..limits() };
    let report = succeeds(&mut worker, &limits, r#"{"do":"grow_small_pieces"}"#);
    assert!(output(&report).contains("refused after"), "{}", output(&report));
    assert!(report.usage.peak_memory_bytes <= 16 << 20);
}

#[test]
fn memory_declared_or_grown_before_the_first_call_counts() {
    for guest in ["memory-declared", "start-grow", "table-declared"] {
        let mut worker = Worker::start(&Setup { memory_max_mb: 1024, ..Setup::default() });
        worker.load(SUBJECT, &native(guest));
        worker.load(GOOD, &native("echo"));
        ends(&mut worker, &Limits { memory_mb: 1, ..limits() }, "{}", code::MEMORY_EXCEEDED);
    }
}

#[test]
fn huge_tables_count_as_memory() {
    let mut worker = worker("tables");
    let limits = Limits { memory_mb: 8, ..limits() };
    // 8 MiB are 1,048,576 entries of 8 bytes; the guest's memory takes one page of them.
    succeeds(&mut worker, &limits, "1000000");
    ends(&mut worker, &limits, "1048576", code::MEMORY_EXCEEDED);
    ends(&mut worker, &limits, "{}", code::MEMORY_EXCEEDED);
}

#[test]
fn recursion_ends_as_a_stack_overflow() {
    let mut worker = worker("recursion");
    succeeds(&mut worker, &limits(), "10000");
    ends(&mut worker, &limits(), "{}", code::STACK_OVERFLOW);
}

#[test]
fn recursion_on_the_guests_own_stack_is_told_as_a_stack_overflow() {
    let mut worker = worker("compute");
    succeeds(&mut worker, &limits(), r#"{"do":"recurse","depth":500}"#);
    ends(&mut worker, &limits(), r#"{"do":"recurse"}"#, code::STACK_OVERFLOW);
}

#[test]
fn an_output_over_its_limit_is_refused_and_one_of_exactly_the_limit_passes() {
    let mut worker = worker("compute");
    let limits = Limits { output_kb: 16, ..limits() };
    succeeds(&mut worker, &limits, r#"{"do":"output","bytes":16384}"#);
    ends(&mut worker, &limits, r#"{"do":"output","bytes":16385}"#, code::OUTPUT_TOO_LARGE);
    ends(&mut worker, &limits, r#"{"do":"output","bytes":3000000}"#, code::OUTPUT_TOO_LARGE);
}

#[test]
fn an_output_that_is_not_json_or_not_text_is_invalid() {
    for guest in ["not-json", "not-utf8"] {
        let mut worker = worker(guest);
        ends(&mut worker, &limits(), "{}", code::OUTPUT_INVALID);
    }
}

#[test]
fn floods_of_every_kind_are_cut_with_a_marker_and_are_no_error() {
    let mut worker = worker("compute");
    let limits = Limits { log_kb: 8, ..limits() };
    for kind in ["log_flood", "stdout_flood", "stderr_flood"] {
        let report = succeeds(&mut worker, &limits, &format!(r#"{{"do":"{kind}","bytes":10000000}}"#));
        assert!(report.log.ends_with("[log cut at 8 KiB]\n"), "{kind}");
        assert!(report.log.len() < 9 * 1024, "{kind}: {}", report.log.len());
        let report = succeeds(&mut worker, &limits, &format!(r#"{{"do":"{kind}","bytes":4000}}"#));
        assert!(!report.log.contains("[log cut"), "{kind}");
    }
    goes_on(&mut worker);
}

#[test]
fn progress_is_told_only_when_it_grew() {
    let mut worker = worker("compute");
    let report = succeeds(&mut worker, &limits(), r#"{"do":"progress_flood","count":100000}"#);
    assert_eq!(output(&report), r#"{"ok":100000}"#);
}

#[test]
fn a_panic_is_told_with_its_text_its_export_and_its_frames() {
    let mut worker = worker("compute");
    let failed = ends(&mut worker, &limits(), r#"{"do":"panic","text":"no such luck"}"#, code::TRAP);
    assert!(failed.message.starts_with("run: "), "{}", failed.message);
    assert!(failed.message.contains("no such luck"), "{}", failed.message);
    assert!(failed.message.contains("core::panicking::panic_fmt"), "{}", failed.message);
    let flood = r#"{"do":"stderr_flood","bytes":1000000,"then_panic":true}"#;
    let failed = ends(&mut worker, &limits(), flood, code::TRAP);
    assert!(failed.message.contains("after the flood"), "{}", failed.message);
}

#[test]
fn every_other_end_without_an_answer_is_a_trap() {
    for guest in ["unreachable", "out-of-bounds", "bad-pointer"] {
        let mut worker = worker(guest);
        ends(&mut worker, &limits(), "{}", code::TRAP);
    }
    let mut worker = worker("compute");
    ends(&mut worker, &limits(), r#"{"do":"abort"}"#, code::TRAP);
    let failed = ends(&mut worker, &limits(), r#"{"do":"exit","code":3}"#, code::TRAP);
    assert!(failed.message.contains("exit"), "{}", failed.message);
}

#[test]
fn a_steps_own_error_keeps_its_class_and_is_bounded() {
    let mut worker = worker("compute");
    let classes = [
        ("retryable", Class::Retryable),
        ("rate-limited", Class::RateLimited),
        ("invalid-input", Class::InvalidInput),
        ("fatal", Class::Fatal),
    ];
    for (name, class) in classes {
        let input = format!(r#"{{"do":"fail","class":"{name}","bytes":100000}}"#);
        let report = run_with(&mut worker, &limits(), &input);
        let failed = failure(&report);
        let word = if class == Class::RateLimited { "RATE_LIMITED" } else { "HOSTILE" };
        assert_eq!((failed.by_host, failed.class, failed.code.as_str()), (false, class, word));
        assert!(failed.message.len() <= 4096 && failed.message.ends_with('…'), "{}", failed.message.len());
        assert_eq!(failed.retry_after_ms, (class == Class::RateLimited).then_some(100));
    }
    goes_on(&mut worker);
}

#[test]
fn a_step_without_grants_sees_an_empty_world() {
    let mut worker = worker("compute");
    for (wish, seen) in [("env_all", "[]"), ("argv", "[]"), ("stdin", "\"\"")] {
        let report = succeeds(&mut worker, &limits(), &format!(r#"{{"do":"{wish}"}}"#));
        assert_eq!(output(&report), format!(r#"{{"ok":{seen}}}"#));
    }
    let first = output(&succeeds(&mut worker, &limits(), r#"{"do":"hashmap"}"#));
    let second = output(&succeeds(&mut worker, &limits(), r#"{"do":"hashmap"}"#));
    assert_eq!(first, second, "hash maps repeat from attempt to attempt");
}

#[test]
fn an_import_without_its_grant_is_denied_by_name() {
    let mut worker = worker("hostile");
    let failed = ends(&mut worker, &limits(), r#"{"do":"nothing"}"#, code::CAPABILITY_DENIED);
    assert!(failed.message.contains("wasi:") || failed.message.contains("tracemind:"), "{}", failed.message);
    let mut start = worker.start_of(SUBJECT, r#"{"do":"env","name":"GREETING"}"#);
    start.grants = StartGrants { env: vec![("GREETING".into(), "hello".into())], ..all_capabilities() };
    let report = worker.run(start);
    assert_eq!(output(&report), r#"{"ok":"hello"}"#);
}

#[test]
fn an_import_that_no_grant_gives_is_denied() {
    for guest in ["wants-sockets", "unknown-import"] {
        let mut worker = worker(guest);
        let failed = ends(&mut worker, &limits(), "{}", code::CAPABILITY_DENIED);
        assert!(failed.message.contains(':'), "{}", failed.message);
    }
}

#[test]
fn sixty_four_instances_in_one_component_do_not_break_the_pool() {
    let mut worker = worker("instances");
    let report = run_with(&mut worker, &limits(), "{}");
    assert!(!matches!(report.outcome, Outcome::NotStarted { .. }), "{:?}", report.outcome);
    goes_on(&mut worker);
}

#[test]
fn a_cancelled_guest_may_end_in_its_grace_and_is_ended_after_it() {
    use tm_core::wire::ToWorker;
    let mut worker = worker("compute");
    for (wish, grace_ms, cancelled) in [("wait_for_cancel", 5000, false), ("spin", 100, true)] {
        let mut start = worker.start_of(SUBJECT, &format!(r#"{{"do":"{wish}"}}"#));
        start.limits = limits();
        let (task, attempt) = (start.task, start.attempt);
        worker.send(&[ToWorker::Start(Box::new(start)), ToWorker::Cancel { task, attempt, grace_ms }], &[]);
        let report = worker.report_of(attempt);
        if cancelled {
            assert_eq!(failure(&report).code, code::CANCELLED);
        } else {
            assert_eq!(output(&report), r#"{"ok":null}"#);
        }
    }
    goes_on(&mut worker);
}

#[test]
fn steps_are_interleaved_and_a_spinning_one_does_not_hold_up_the_others() {
    use tm_core::wire::ToWorker;
    let mut worker = worker("spin");
    let mut spin = worker.start_of(SUBJECT, "{}");
    spin.limits = Limits { timeout_ms: 1000, ..limits() };
    worker.send(&[ToWorker::Start(Box::new(spin))], &[]);
    let ((), took) = timed(|| (0..20).for_each(|_| goes_on(&mut worker)));
    assert!(took < Duration::from_millis(800), "20 good tasks beside a spinning one took {took:?}");
}

#[test]
fn a_start_over_the_concurrency_is_handed_back() {
    use tm_core::wire::ToWorker;
    let mut worker = Worker::start(&Setup { concurrency: 1, ..Setup::default() });
    worker.load(SUBJECT, &native("spin"));
    let mut first = worker.start_of(SUBJECT, "{}");
    first.limits = Limits { timeout_ms: 300, ..limits() };
    let second = worker.start_of(SUBJECT, "{}");
    let (one, two) = (first.attempt, second.attempt);
    worker.send(&[ToWorker::Start(Box::new(first)), ToWorker::Start(Box::new(second))], &[]);
    assert!(matches!(worker.report_of(two).outcome, Outcome::NotStarted { .. }));
    assert_eq!(failure(&worker.report_of(one)).code, code::TIMEOUT);
}
