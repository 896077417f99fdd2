//! The single-use process: what it finds in a component, what it refuses, and its limits.

use tm_core::code;

use crate::harness::{Setup, Worker, compile_with, component, native};

#[test]
fn an_inspection_names_imports_exports_and_what_the_pool_must_hold() {
    let compiled = compile_with(&component("hostile"), |init| init.compile = false);
    let found = compiled.inspection.expect("an inspection");
    assert!(compiled.native.is_none());
    assert!(found.imports.iter().any(|name| name.starts_with("wasi:filesystem/types@0.2")), "{:?}", found.imports);
    assert!(found.imports.contains(&"tracemind:flow/artifacts@0.1.0".to_owned()), "{:?}", found.imports);
    assert!(found.exports.contains(&"tracemind:flow/step@0.1.0".to_owned()), "{:?}", found.exports);
    assert!(found.required.memories >= 1 && found.required.core_instances >= 1, "{:?}", found.required);
    let memories = compile_with(&component("memories"), |init| init.compile = false);
    assert_eq!(memories.inspection.expect("an inspection").required.memories, 4);
}

#[test]
fn what_is_no_component_is_refused_in_plain_words() {
    let good = component("echo");
    let core = wat::parse_str("(module)").expect("a module");
    for (bytes, words) in [
        (b"#!/bin/sh".to_vec(), "not WebAssembly"),
        (Vec::new(), "not WebAssembly"),
        (core, "core module"),
        (good[..good.len() / 2].to_vec(), "damaged or cut off"),
    ] {
        let compiled = compile_with(&bytes, |_| {});
        let (code, message) = compiled.failed.expect("a failure");
        assert_eq!(code, code::COMPILE_FAILED);
        assert!(message.contains(words), "{message}");
        assert!(compiled.inspection.is_none() && compiled.native.is_none());
    }
}

/// The text of the good component with something of its contract changed everywhere.
fn changed(from: &str, to: &str) -> Vec<u8> {
    let text = include_str!("../guests/wat/echo.wat");
    assert!(text.contains(from), "{from}");
    wat::parse_str(text.replace(from, to)).expect("a component's text")
}

#[test]
fn a_run_of_another_type_is_refused_with_what_is_there_and_what_was_expected() {
    let unlike = [
        (component("wrong-type"), "expected `…record { run-id: string, ", "found `…u32) -> u32`"),
        (changed(r#"(field "attempt" u32)"#, r#"(field "attempt" s32)"#), "expected `…u32, max-", "found `…s32, max-"),
        (changed(r#"(case "fatal" $"#, r#"(case "deadly" $"#), "expected `…fatal(record", "found `…deadly(record"),
        (
            changed(r#""retry-after-ms" (option u64)"#, r#""retry-after" (option u64)"#),
            "`…retry-after-ms: ",
            "`…retry-after: ",
        ),
    ];
    for (bytes, expected, found) in unlike {
        let compiled = compile_with(&bytes, |init| init.compile = false);
        let (code, message) = compiled.failed.expect("a failure");
        assert_eq!(code, code::COMPILE_FAILED);
        assert!(compiled.inspection.is_none());
        let words = "exports tracemind:flow/step@0.1.0, but its run has another type";
        assert!([words, expected, found].iter().all(|part| message.contains(part)), "{message}");
    }
    let empty = r#"(component (instance $step) (export "tracemind:flow/step@0.1.0" (instance $step)))"#;
    let compiled = compile_with(&wat::parse_str(empty).expect("a component"), |_| {});
    let (code, message) = compiled.failed.expect("a failure");
    assert_eq!(code, code::COMPILE_FAILED);
    assert!(message.contains("without its function run"), "{message}");
}

/// What an inspection says of a component's imports.
fn import_faults(text: &str) -> Vec<String> {
    let compiled = compile_with(&wat::parse_str(text).expect("a component's text"), |init| init.compile = false);
    compiled.inspection.unwrap_or_else(|| panic!("{:?}", compiled.failed)).import_faults
}

/// A component that imports an interface of these functions.
fn importing(interface: &str, functions: &str) -> String {
    format!(r#"(component (import "{interface}" (instance {functions})))"#)
}

#[test]
fn every_import_of_another_type_is_named_with_what_is_there() {
    let level = r#"(type $l (enum "trace" "debug" "info" "warn" "error")) (export "level" (type $level (eq $l)))"#;
    let emit = |types: &str| {
        format!(r#"{types} (export "emit" (func {}))"#, r#"(param "level" $level) (param "message" string)"#)
    };
    assert_eq!(import_faults(&importing("tracemind:flow/log@0.1.0", &emit(level))), [""; 0], "as it is");
    let (fewer, report) = (level.replace(r#" "error""#, ""), r#"(export "report" (func (param "percent" u8)))"#);
    let text = format!(
        r#"(component
            (import "tracemind:flow/log@0.1.0" (instance {}))
            (import "tracemind:flow/progress@0.1.3" (instance {report}))
            (import "acme:weather/forecast@1.0.0" (instance (export "today" (func (result string)))))
            (import "wasi:cli/exit@0.2.0" (instance (export "exit" (func (param "status" bool)))))
            (import "wasi:clocks/wall-clock@0.2.3" (instance (export "today" (func (result u64))))))"#,
        emit(&fewer)
    );
    let other = |import: &str, function: &str| format!("imports {import}, but its {function} has another type: ");
    assert_eq!(
        import_faults(&text),
        [
            "imports wasi:clocks/wall-clock@0.2.3 with today, which this host's does not have".to_owned(),
            other("tracemind:flow/log@0.1.0", "emit")
                + "type mismatch with parameters: expected enum of 5 names, found 4 names; \
                   the component's is `func(enum { trace, debug, info, warn }, string)`",
            other("tracemind:flow/progress@0.1.3", "report")
                + "type mismatch with parameters: expected 2-tuple, found 1-tuple; the component's is `func(u8)`",
            other("wasi:cli/exit@0.2.0", "exit")
                + "type mismatch with parameters: expected `result` found `bool`; the component's is `func(bool)`",
        ]
    );
}

#[test]
fn resources_that_interfaces_share_are_the_same_ones() {
    // As any program that writes to its standard output imports them.
    let streams = |write: &str| {
        format!(
            r#"(component
            (import "wasi:io/error@0.2.0" (instance $error (export "error" (type (sub resource)))))
            (alias export $error "error" (type $error))
            (import "wasi:io/streams@0.2.1" (instance $streams
                (export "output-stream" (type $out (sub resource)))
                (alias outer 1 $error (type $e)) (export "error" (type $error (eq $e)))
                (type $s (variant (case "last-operation-failed" (own $error)) (case "closed")))
                (export "stream-error" (type $stream-error (eq $s)))
                (export "[method]output-stream.check-write"
                    (func (param "self" (borrow $out)) (result (result u64 (error $stream-error)))))
                {write}))
            (alias export $streams "output-stream" (type $out))
            (import "wasi:cli/stdout@0.2.2" (instance
                (alias outer 1 $out (type $o)) (export "output-stream" (type $out (eq $o)))
                (export "get-stdout" (func (result (own $out)))))))"#
        )
    };
    assert_eq!(import_faults(&streams("")), [""; 0]);
    let flush = r#"(export "[method]output-stream.flush" (func (param "self" (borrow $out)) (result u64)))"#;
    assert_eq!(
        import_faults(&streams(flush)),
        ["imports wasi:io/streams@0.2.1, but its [method]output-stream.flush has another type: type mismatch with \
             results: expected `result` found `u64`; the component's is `func(a handle) -> u64`"]
    );
    // A resource that this host does not have.
    let found = import_faults(&importing("wasi:io/streams@0.2.0", r#"(export "fountain" (type (sub resource)))"#));
    let [fault] = &found[..] else { panic!("{found:?}") };
    assert!(fault.starts_with("imports what this host has otherwise: "), "{fault}");
    assert!(fault.contains("wasi:io/streams@0.2.0") && fault.contains("fountain"), "{fault}");
}

#[test]
fn imports_after_code_are_looked_at_when_that_is_compiled() {
    let text = r#"(component
        (core module (func (export "f") (result i32) (i32.const 1)))
        (import "tracemind:flow/cancel@0.1.0" (instance (export "requested" (func (result u8))))))"#;
    assert_eq!(import_faults(text), [""; 0], "an inspection compiles no code");
    let compiled = compile_with(&wat::parse_str(text).expect("a component's text"), |_| {});
    let (code, message) = compiled.failed.expect("a failure");
    assert_eq!(code, code::COMPILE_FAILED);
    assert!(message.starts_with("it imports tracemind:flow/cancel@0.1.0, but its requested has another"), "{message}");
    assert!(compiled.inspection.is_none() && compiled.native.is_none());
}

#[test]
fn a_component_that_imports_thousands_of_functions_is_answered_in_an_instant() {
    let functions: String = (0..20_000).map(|n| format!(r#"(export "f{n}" (func))"#)).collect();
    let wrong = format!(r#"{functions} (export "requested" (func))"#);
    let text = importing("tracemind:flow/cancel@0.1.0", &wrong);
    let (found, took) = crate::harness::timed(|| import_faults(&text));
    assert_eq!(found.len(), tm_worker::sandbox::imports::FAULTS_MAX);
    assert!(took < std::time::Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_component_of_a_later_patch_version_of_the_contract_runs() {
    let compiled = compile_with(&changed("step@0.1.0", "step@0.1.7"), |_| {});
    let mut worker = Worker::start(&Setup::default());
    worker.load(1, &compiled.native.expect("an artefact"));
    let start = worker.start_of(1, "[1]");
    let report = worker.run(start);
    assert_eq!(crate::harness::output(&report), "[1]");
}

#[test]
fn a_type_that_doubles_on_every_level_is_refused_in_an_instant() {
    use std::fmt::Write;
    let mut types = String::from("(type $t0 (tuple u32 u32))\n");
    for level in 1..60 {
        let below = level - 1;
        writeln!(types, "(type $t{level} (result $t{below} (error $t{below})))").expect("text");
    }
    let text = format!(
        r#"(component {types}
            (import "run" (func $run (param "a" $t20)))
            (instance $step (export "run" (func $run)))
            (export "tracemind:flow/step@0.1.0" (instance $step)))"#
    );
    let (compiled, took) = crate::harness::timed(|| compile_with(&wat::parse_str(text).expect("text"), |_| {}));
    assert_eq!(compiled.failed.expect("a failure").0, code::COMPILE_FAILED);
    assert!(took < std::time::Duration::from_secs(5), "{took:?}");
}

/// An artefact from before the inspection looked at types: it loads, and its first attempt is its last.
#[test]
fn a_type_that_only_shows_when_it_is_called_is_not_tried_again() {
    let engine = tm_worker::sandbox::engine::compiler().expect("an engine");
    let artefact = engine.precompile_component(&component("wrong-type")).expect("an artefact");
    let mut worker = Worker::start(&Setup::default());
    worker.load(1, &artefact);
    let start = worker.start_of(1, "{}");
    let report = worker.run(start);
    let failed = crate::harness::failure(&report);
    assert_eq!((failed.code.as_str(), failed.class), (code::COMPILE_FAILED, code::Class::Fatal), "{}", failed.message);
    assert!(failed.message.contains("run has another type"), "{}", failed.message);
}

#[test]
fn a_compile_over_its_processor_time_says_so() {
    let compiled = compile_with(&component("hostile"), |init| init.cpu_seconds_max = 0);
    let (code, message) = compiled.failed.expect("a failure");
    assert_eq!(code, code::COMPILE_LIMIT, "{message}");
    assert!(compiled.native.is_none());
}

#[test]
fn an_artefact_over_its_size_is_a_limit() {
    let compiled = compile_with(&component("echo"), |init| init.native_max_bytes = 100);
    assert_eq!(compiled.failed.expect("a failure").0, code::COMPILE_LIMIT);
}

#[test]
fn a_compile_without_memory_ends_without_an_artefact() {
    let compiled = compile_with(&component("hostile"), |init| init.memory_max_mb = 64);
    assert!(compiled.native.is_none());
}

#[test]
fn a_component_without_the_export_does_not_load() {
    for guest in ["no-export", "other-version"] {
        let mut worker = Worker::start(&Setup::default());
        let artefact = tm_worker::packet::sealed("native", &native(guest)).expect("a memfd");
        worker.send(&[tm_core::wire::ToWorker::Load { component: 1 }], &[artefact]);
        let answer = worker.next().0;
        let tm_core::wire::FromWorker::LoadFailed { reason, .. } = answer else { panic!("{guest}: {answer:?}") };
        assert!(reason.contains("tracemind:flow/step@0.1.0"), "{reason}");
        let start = worker.start_of(1, "{}");
        let failed = crate::harness::failure(&worker.run(start)).clone();
        assert_eq!((failed.code.as_str(), failed.class), (code::COMPILE_FAILED, code::Class::Fatal), "not tried again");
    }
}

#[test]
fn an_artefact_that_the_system_does_not_open_is_tried_again() {
    let mut worker = Worker::start(&Setup::default());
    // A descriptor that cannot be opened by its path, as when no other is left.
    let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
    worker.send(&[tm_core::wire::ToWorker::Load { component: 1 }], &[socket.into()]);
    assert!(matches!(worker.next().0, tm_core::wire::FromWorker::LoadFailed { .. }));
    let start = worker.start_of(1, "{}");
    let failed = crate::harness::failure(&worker.run(start)).clone();
    assert_eq!((failed.code.as_str(), failed.class), (code::HOST_ERROR, code::Class::Retryable), "{}", failed.message);
    worker.load(1, &native("echo"));
    let start = worker.start_of(1, "[1]");
    assert_eq!(crate::harness::output(&worker.run(start)), "[1]");
}

#[test]
fn bytes_that_are_no_artefact_do_not_load_and_harm_nothing() {
    let mut worker = Worker::start(&Setup::default());
    let artefact = tm_worker::packet::sealed("native", b"not an artefact").expect("a memfd");
    worker.send(&[tm_core::wire::ToWorker::Load { component: 1 }], &[artefact]);
    assert!(matches!(worker.next().0, tm_core::wire::FromWorker::LoadFailed { .. }));
    worker.load(2, &native("echo"));
}
