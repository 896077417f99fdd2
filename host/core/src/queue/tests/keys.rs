//! Idempotency keys: scope, holding, freeing.

use super::*;
use crate::limits::READY_AT_MAX;

fn bench() -> Bench {
    Bench::new(vec![flow("one", vec![step("s", &[])]), flow("two", vec![step("s", &[])])])
}

#[test]
fn the_same_key_in_its_scope_gives_the_same_run() {
    let mut bench = bench();
    let run = run_of(&bench.ask(keyed("one", "k")));
    let again = bench.ask(keyed("one", "k"));
    assert!(matches!(again, Reply::Duplicate { run: held, state: RunState::Active, result: None } if held == run));
    bench.run_all("7");
    let Reply::Duplicate { run: held, state, result } = bench.ask(keyed("one", "k")) else { panic!("a duplicate") };
    assert_eq!((held, state, result.as_ref().map(Json::get)), (run, RunState::Succeeded, Some("7")));
    assert_eq!(bench.state.totals.idempotency_hits, 2);
}

#[test]
fn another_flow_or_tenant_has_the_key_for_itself() {
    let mut bench = bench();
    bench.register("other", flow("one", vec![step("s", &[])]));
    let first = run_of(&bench.ask(keyed("one", "k")));
    let second = run_of(&bench.ask(keyed("two", "k")));
    let third = run_of(&bench.ask(EnqueueRequest { tenant: "other".into(), ..keyed("one", "k") }));
    assert!(first != second && second != third && first != third);
}

#[test]
fn the_same_key_with_another_input_is_refused_and_names_the_run() {
    let mut bench = bench();
    let run = run_of(&bench.ask(keyed("one", "k")));
    let other = EnqueueRequest { input: Json::parse(r#"{"a":1}"#).expect("JSON"), ..keyed("one", "k") };
    let message = message_of(&bench.ask(other));
    assert!(message.contains(&run.to_string()), "{message}");
    assert_eq!(bench.state.runs.len(), 1);
}

#[test]
fn a_key_in_the_headers_is_a_key() {
    let mut bench = bench();
    let headers = Json::parse(r#"{"idempotency_key":"k"}"#).ok();
    let run = run_of(&bench.ask(EnqueueRequest { headers, ..request("one") }));
    assert!(matches!(bench.ask(keyed("one", "k")), Reply::Duplicate { run: held, .. } if held == run));
}

#[test]
fn a_key_is_free_again_when_its_run_stalls_fails_or_is_cancelled() {
    let mut bench = bench();
    let stalled = run_of(&bench.ask(keyed("one", "k")));
    let lease = bench.lease(1, 1)[0];
    bench.fail(lease, Class::Fatal);
    assert_eq!(bench.run_state(stalled), RunState::Stalled);
    let second = run_of(&bench.ask(keyed("one", "k")));
    bench.cancel(&second.to_string());
    let third = run_of(&bench.ask(keyed("one", "k")));
    assert!(stalled != second && second != third);
}

#[test]
fn a_key_is_free_again_when_the_result_expires() {
    let mut bench = bench();
    let first = run_of(&bench.ask(keyed("one", "k")));
    bench.run_all("1");
    bench.now = bench.now.plus(bench.policy.result_ttl_ms);
    let second = run_of(&bench.ask(keyed("one", "k")));
    assert_ne!(first, second);
}

#[test]
fn a_forgotten_key_is_free_and_its_run_goes_on() {
    let mut bench = bench();
    let first = run_of(&bench.ask(keyed("one", "k")));
    assert!(matches!(bench.forget_key("one", "k"), Reply::Forgotten { existed: true }));
    assert!(matches!(bench.forget_key("one", "k"), Reply::Forgotten { existed: false }));
    let second = run_of(&bench.ask(keyed("one", "k")));
    bench.run_all("1");
    assert_eq!((bench.run_state(first), bench.run_state(second)), (RunState::Succeeded, RunState::Succeeded));
}

#[test]
fn a_key_with_another_input_is_refused_with_the_command_that_frees_it() {
    let mut bench = bench();
    let other = |key: &str| EnqueueRequest { input: Json::parse("{\"other\": 1}").expect("JSON"), ..keyed("one", key) };
    for (key, shown) in [("order-1", "one order-1"), ("it's 1", "one 'it'\\''s 1'"), ("-x", "-- one '-x'")] {
        bench.ask(keyed("one", key));
        let hint = hint_of(&bench.ask(other(key)));
        assert_eq!(hint, format!("use another key, or free it: tm queue forget-key {shown}"));
    }
}

#[test]
fn no_run_starts_after_the_last_time_there_is() {
    let mut bench = bench();
    let last = READY_AT_MAX.0 - bench.now.0;
    assert!(
        message_of(&bench.ask(EnqueueRequest { delay_ms: Some(last + 1), ..request("one") })).contains("9999-12-30")
    );
    let at = Some(Millis(READY_AT_MAX.0 + 1));
    assert!(message_of(&bench.ask(EnqueueRequest { at, ..request("one") })).contains("9999-12-30"));
    assert!(matches!(bench.ask(EnqueueRequest { delay_ms: Some(last), ..request("one") }), Reply::Enqueued { .. }));
}

#[test]
fn a_requeue_takes_the_key_again_and_skips_when_another_run_holds_it() {
    let mut bench = bench();
    let first = run_of(&bench.ask(keyed("one", "k")));
    let lease = bench.lease(1, 1)[0];
    bench.fail(lease, Class::Fatal);
    let second = run_of(&bench.ask(keyed("one", "k")));
    let entry = bench.letter();
    let Reply::DlqDone(outcomes) = bench.requeue(&entry, false) else { panic!("done") };
    assert_eq!((outcomes[0].outcome.as_str(), bench.state.letters.len()), ("skipped", 1));
    assert_eq!(outcomes[0].why, Some(format!("key held by {second}")));
    bench.cancel(&second.to_string());
    let Reply::DlqDone(outcomes) = bench.requeue(&entry, false) else { panic!("done") };
    assert_eq!(outcomes[0].outcome, "requeued");
    assert!(matches!(bench.ask(keyed("one", "k")), Reply::Duplicate { run, .. } if run == first));
}

#[test]
fn no_more_keys_than_allowed_are_held() {
    let mut bench = bench();
    bench.policy.keys_max = 1;
    bench.ask(keyed("one", "a"));
    let refused = bench.ask(keyed("one", "b"));
    assert!(message_of(&refused).contains("keys_max"));
    assert!(hint_of(&refused).contains("tm queue forget-key one KEY"));
    assert!(matches!(bench.ask(keyed("one", "a")), Reply::Duplicate { .. }));
    assert!(matches!(bench.ask(request("one")), Reply::Enqueued { .. }));
}

#[test]
fn a_result_that_left_memory_answers_its_key_until_it_expires_or_the_key_is_forgotten() {
    let mut bench = bench();
    let run = run_of(&bench.ask(keyed("one", "k")));
    bench.run_all("7");
    bench.keep_results();
    assert!(bench.state.finished.is_empty() && bench.state.keys.is_empty());
    bench.policy.keys_max = 1;
    assert!(message_of(&bench.ask(keyed("one", "other"))).contains("keys_max"), "it counts against keys_max");
    bench.policy.keys_max = 9;
    let answer = bench.ask(keyed("one", "k"));
    assert!(matches!(&answer, Reply::Duplicate { run: held, result: Some(_), .. } if *held == run), "{answer:?}");
    bench.put(Input::ForgetKey { ticket: Ticket(0), tenant: "default".into(), flow: "one".into(), key: "k".into() });
    let next = run_of(&bench.ask(keyed("one", "k")));
    assert_ne!(next, run);
    assert_same(&bench.state, &bench.replayed());
    bench.run_all("8");
    bench.keep_results();
    bench.wait(bench.policy.result_ttl_ms + 1);
    assert!(matches!(bench.ask(keyed("one", "k")), Reply::Enqueued { .. }));
}

#[test]
fn a_run_that_goes_on_again_counts_more_than_an_older_result_of_it() {
    let mut bench = bench();
    let run = run_of(&bench.ask(keyed("one", "k")));
    // A result that was kept, of an end that a power loss took from the log.
    let (state, log) = (bench.state.clone(), bench.log.clone());
    bench.run_all("7");
    bench.keep_results();
    (bench.state, bench.log) = (state, log);
    assert!(matches!(bench.ask(keyed("one", "k")), Reply::Duplicate { run: held, result: None, .. } if held == run));
    bench.cancel(&run.to_string());
    let next = run_of(&bench.ask(keyed("one", "k")));
    assert_ne!(next, run, "it was cancelled, so its key is free");
}

#[test]
fn a_key_outlives_the_eviction_of_its_result() {
    let mut bench = bench();
    let run = run_of(&bench.ask(keyed("one", "k")));
    bench.run_all(r#""a result of some length""#);
    bench.keep_results();
    bench.shelf.0.get_mut(&run).expect("kept").1.output = None;
    let answer = bench.ask(keyed("one", "k"));
    assert!(matches!(answer, Reply::Duplicate { run: held, result: None, .. } if held == run), "{answer:?}");
}

#[test]
fn a_caller_who_does_not_know_what_a_flow_asks_is_told_and_nothing_is_enqueued() {
    let asking = FlowDef { caller_env: vec!["RATE".into()], ..flow("asking", vec![step("s", &[])]) };
    let mut bench = Bench::new(vec![asking, flow("one", vec![step("s", &[])])]);
    let asks = |request| EnqueueRequest { asks_env: true, ..request };
    let Reply::FlowEnv(names) = bench.ask(asks(keyed("asking", "k"))) else { panic!() };
    assert_eq!(names, ["RATE"]);
    assert!(bench.state.runs.is_empty());
    let env = |name: &str| (String::from(name), String::from("1"));
    let run = run_of(&bench.ask(EnqueueRequest { env: vec![env("RATE"), env("SECRET")], ..keyed("asking", "k") }));
    assert_eq!(bench.state.runs[&run].extra.as_ref().unwrap().env, [env("RATE")]);
    // Who holds the key needs no variables, and neither does a flow that asks for none.
    assert!(matches!(bench.ask(asks(keyed("asking", "k"))), Reply::Duplicate { .. }));
    assert!(matches!(bench.ask(asks(request("one"))), Reply::Enqueued { .. }));
}
