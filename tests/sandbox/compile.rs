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
    }
}

#[test]
fn bytes_that_are_no_artefact_do_not_load_and_harm_nothing() {
    let mut worker = Worker::start(&Setup::default());
    let artefact = tm_worker::packet::sealed("native", b"not an artefact").expect("a memfd");
    worker.send(&[tm_core::wire::ToWorker::Load { component: 1 }], &[artefact]);
    assert!(matches!(worker.next().0, tm_core::wire::FromWorker::LoadFailed { .. }));
    worker.load(2, &native("echo"));
}
