//! A step as its author writes it, run natively: shape, errors, capabilities.

use std::io::{Read, Write};

use tm_guest::artifacts::ArtifactError;
use tm_guest::log::Level;
use tm_guest::prelude::*;
use tm_guest::testing;

#[payload]
struct In {
    name: String,
    #[serde(default)]
    loud: bool,
}

#[payload]
#[derive(Debug)]
struct Out {
    greeting: String,
    attempt: u32,
}

#[step]
fn greet(ctx: &Context, Json(input): Json<In>) -> Result<Json<Out>, StepError> {
    progress::report(50, Some("half way"));
    log::info(format!("greeting {}", input.name));
    artifacts::write("names/one.txt", &input.name)?;
    if cancel::requested() {
        return Err(StepError::retryable("STOPPED", "the host wants the attempt to end"));
    }
    let greeting = format!("hello, {}{}", input.name, if input.loud { "!" } else { "" });
    Ok(Json(Out { greeting, attempt: ctx.attempt }))
}

#[test]
fn a_step_runs_natively_and_its_effects_are_recorded() {
    let ctx = Context { attempt: 3, ..Context::test() };
    let output = testing::run(greet, &ctx, json!({"name": "x", "loud": true})).unwrap();
    assert_eq!(output, json!({"greeting": "hello, x!", "attempt": 3}));
    assert_eq!(testing::lines(), [(Level::Info, "greeting x".to_owned())]);
    assert_eq!(testing::progress(), [(50, Some("half way".to_owned()))]);
    assert_eq!(testing::artifact("names/one.txt").unwrap(), b"x");
}

#[test]
fn an_input_of_another_shape_is_invalid_input_with_the_reason() {
    let error = testing::run(greet, &Context::test(), json!({"nam": "x"})).unwrap_err();
    assert!(matches!(error, StepError::InvalidInput { .. }));
    assert_eq!(error.code(), "INVALID_INPUT");
    assert!(error.message().contains("missing field `name`"), "{error}");
}

#[test]
fn a_cancelled_step_sees_it() {
    testing::request_cancel();
    let error = testing::run(greet, &Context::test(), json!({"name": "x"})).unwrap_err();
    assert_eq!(error.code(), "STOPPED");
}

#[test]
fn artefacts_are_read_in_pieces_and_listed_by_name() {
    testing::provide("render", "b.html", vec![7_u8; 3 * 1024 * 1024 + 1]);
    testing::provide("render", "a.html", "short");
    let names: Vec<_> = artifacts::entries("render").unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["a.html", "b.html"]);
    assert_eq!(artifacts::read("render", "b.html").unwrap().len(), 3 * 1024 * 1024 + 1);
    let mut text = String::new();
    artifacts::open("render", "a.html").unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "short");
    assert_eq!(artifacts::read("render", "c.html"), Err(ArtifactError::NotFound("c.html".into())));
    assert_eq!(artifacts::entries("other").unwrap_err(), ArtifactError::NotFound("other".into()));
}

#[test]
fn an_artefact_exists_only_when_it_is_finished() {
    let mut dropped = artifacts::create("dropped").unwrap();
    writeln!(dropped, "lost").unwrap();
    drop(dropped);
    let mut kept = artifacts::create("kept").unwrap();
    writeln!(kept, "line").unwrap();
    kept.finish().unwrap();
    assert_eq!(testing::artifact_names(), ["kept"]);
    assert_eq!(artifacts::write("kept", b"again"), Err(ArtifactError::AlreadyExists("kept".into())));
}

#[test]
fn names_that_the_host_refuses_are_refused_in_tests_too() {
    for name in ["", "/etc/passwd", "a//b", "../up", "a/../b", "tab\there", &"x".repeat(256)] {
        assert_eq!(artifacts::write(name, b"x"), Err(ArtifactError::InvalidName(name.to_owned())), "{name:?}");
    }
}
