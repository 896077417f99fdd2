//! One hostile guest per limit: the code, that it fired within its limit and a tenth (time: and 20 ms), that the worker's
//! memory stayed within the bound that it printed, that the same process goes on with good tasks, and that a guest just
//! below the limit succeeds. Folders and artefacts: see `escapes`.

use std::time::Duration;

use tm_core::{
    code::{self, Class},
    limits::Limits,
    wire::{Failure, Outcome, Report, Required, StartGrants},
};

use crate::harness::{Setup, Worker, failure, native, output, timed};

const SUBJECT: u32 = 1;
const GOOD: u32 = 2;
/// Fuel stands in the way of nothing but the fuel test.
const PLENTY: u64 = 1_000_000_000_000;

/// What the guests here may have at most: small, so that the worker's bound is too.
const MEMORY_MB: u32 = 32;
/// Runs of which one must end in time: the machine has other work too, the limit has none.
const TIMED_RUNS: u32 = 3;

/// A worker with the guest loaded beside a good one.
fn worker(guest: &str) -> Worker {
    worker_for(guest, MEMORY_MB)
}

fn worker_for(guest: &str, memory_max_mb: u32) -> Worker {
    let required = Required { memories: 4, tables: 4, ..Required::default() };
    let mut worker = Worker::start(&Setup { required, memory_max_mb, concurrency: 2, ..Setup::default() });
    worker.load(SUBJECT, &native(guest));
    worker.load(GOOD, &native("echo"));
    worker
}

fn limits() -> Limits {
    Limits { fuel: PLENTY, timeout_ms: 20_000, memory_mb: MEMORY_MB, ..Limits::DEFAULT }
}

fn run_with(worker: &mut Worker, limits: &Limits, input: &str) -> Report {
    let mut start = worker.start_of(SUBJECT, input);
    start.limits = limits.clone();
    worker.run(start)
}

/// The guest is ended with this code; afterwards the same process runs a good task, and stayed within its bound.
fn ends(worker: &mut Worker, limits: &Limits, input: &str, expected: &str) -> Failure {
    ends_granted(worker, limits, &StartGrants::default(), input, expected)
}

fn ends_granted(worker: &mut Worker, limits: &Limits, grants: &StartGrants, input: &str, expected: &str) -> Failure {
    for run in 1.. {
        let mut start = worker.start_of(SUBJECT, input);
        (start.limits, start.grants) = (limits.clone(), grants.clone());
        let report = worker.run(start);
        let failed = failure(&report).clone();
        assert_eq!(failed.code, expected, "{}", failed.message);
        assert!(failed.by_host);
        assert_eq!(Some(failed.class), code::class_of(expected));
        assert!(report.usage.fuel <= limits.fuel + limits.fuel / 10);
        assert!(report.usage.peak_memory_bytes <= u64::from(limits.memory_mb) << 20, "{:?}", report.usage);
        goes_on(worker);
        let (took_us, limit_us) = (report.usage.exec_us, limits.timeout_ms * 1000);
        if expected != code::TIMEOUT || took_us <= limit_us + limit_us / 10 + 20_000 {
            assert!(expected != code::TIMEOUT || took_us >= limit_us, "ended after {took_us} µs of {limit_us}");
            return failed;
        }
        assert!(run < TIMED_RUNS, "took {took_us} µs, the limit is {limit_us}");
    }
    unreachable!("the loop returns or fails");
}

fn goes_on(worker: &mut Worker) {
    let good = worker.start_of(GOOD, r#"{"still":"here"}"#);
    let report = worker.run(good);
    assert_eq!(output(&report), r#"{"still":"here"}"#);
    worker.stays_in_bounds();
}

fn succeeds(worker: &mut Worker, limits: &Limits, input: &str) -> Report {
    let report = run_with(worker, limits, input);
    assert!(matches!(report.outcome, Outcome::Succeeded { .. }), "{:?}", report.outcome);
    report
}

#[test]
fn an_endless_loop_ends_at_its_timeout_wherever_it_is() {
    // In `run`, in the start function, and in the functions that the host calls for strings.
    for guest in ["spin", "start-spin", "realloc-spin", "post-return-spin"] {
        let mut worker = worker(guest);
        ends(&mut worker, &Limits { timeout_ms: 200, ..limits() }, "{}", code::TIMEOUT);
    }
}

#[test]
fn a_guest_that_sleeps_in_the_host_ends_at_its_timeout_and_one_that_wakes_before_it_succeeds() {
    let mut worker = worker("hostile");
    let limits = Limits { timeout_ms: 400, ..limits() };
    let long = r#"{"do":"sleep_ms","ms":60000}"#;
    ends_granted(&mut worker, &limits, &all_capabilities(), long, code::TIMEOUT);
    let mut start = worker.start_of(SUBJECT, r#"{"do":"sleep_ms","ms":300}"#);
    (start.limits, start.grants) = (limits, all_capabilities());
    assert_eq!(output(&worker.run(start)), r#"{"ok":300}"#);
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
    // 1 GiB of memory, all that is given, and ten million table entries; what is declared fits where it is allowed.
    for (guest, enough_mb) in [("memory-declared", Some(1040)), ("start-grow", None), ("table-declared", Some(90))] {
        let mut worker = worker_for(guest, enough_mb.unwrap_or(MEMORY_MB));
        ends(&mut worker, &Limits { memory_mb: 1, ..limits() }, "{}", code::MEMORY_EXCEEDED);
        if let Some(memory_mb) = enough_mb {
            succeeds(&mut worker, &Limits { memory_mb, ..limits() }, "{}");
        }
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
    // Lines of 100 bytes, those of the log with "info: " before them: 81 and 77 of them just fit into 8 KiB.
    for (kind, fitting) in [("log_flood", 7700), ("stdout_flood", 8100), ("stderr_flood", 8100)] {
        let report = succeeds(&mut worker, &limits, &format!(r#"{{"do":"{kind}","bytes":10000000}}"#));
        assert!(report.log.ends_with("[log cut at 8 KiB]\n"), "{kind}");
        assert!(report.log.len() < 9 * 1024, "{kind}: {}", report.log.len());
        let report = succeeds(&mut worker, &limits, &format!(r#"{{"do":"{kind}","bytes":{fitting}}}"#));
        assert!(!report.log.contains("[log cut") && report.log.len() > 8000, "{kind}: {}", report.log.len());
    }
    goes_on(&mut worker);
}

#[test]
fn a_log_longer_than_a_packet_loses_its_end_and_says_so() {
    use tm_core::limits::PACKET_MAX_BYTES;
    let mut worker = worker("compute");
    let limits = Limits { log_kb: 1024, ..limits() };
    // A report's other parts take the rest of the packet; a line break takes two bytes there.
    for (bytes, whole) in [(150_000, true), (PACKET_MAX_BYTES, false), (10_000_000, false)] {
        let report = succeeds(&mut worker, &limits, &format!(r#"{{"do":"stdout_flood","bytes":{bytes}}}"#));
        assert_eq!(report.log.ends_with("\n[log cut to fit its packet]\n"), !whole, "{bytes}");
        assert_eq!(report.log.matches("[log cut").count(), usize::from(!whole), "{bytes}");
        assert!(report.log.len() > 120_000 && report.log.len() < PACKET_MAX_BYTES, "{}", report.log.len());
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
    let report = run_with(&mut worker, &Limits { memory_mb: 128, ..limits() }, "{}");
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
