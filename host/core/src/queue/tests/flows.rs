//! A run goes through its flow: needs, conditions, fan-outs, its output.

use super::*;
use crate::limits::ITEMS_PER_FAN_OUT_MAX;

fn task(run: RunId, step: u16) -> TaskRef {
    TaskRef { run, step, item: None }
}

fn output(bench: &Bench, run: RunId) -> String {
    match &bench.state.finished[&run].output {
        Some(Payload::Inline(json)) => json.get().into(),
        other => panic!("no output: {other:?}"),
    }
}

fn fan(max_parallel: u32) -> FlowDef {
    let each = StepDef {
        for_each: Some("steps.list.output".into()),
        max_parallel,
        input: Json::parse(r#"{"item":"{{ item }}","at":"{{ index }}"}"#).ok(),
        ..step("each", &[0])
    };
    flow("fan", vec![step("list", &[]), each, step("sum", &[1])])
}

#[test]
fn a_step_starts_when_all_of_its_needs_are_done() {
    let steps = vec![step("a", &[]), step("b", &[0]), step("c", &[0]), step("d", &[1, 2])];
    let mut bench = Bench::new(vec![flow("dag", steps)]);
    let run = bench.enqueue("dag");
    let lease = bench.lease(1, 9)[0];
    bench.succeed(lease, r#""A""#);
    let leases = bench.lease(1, 9);
    assert_eq!(leases.iter().map(|lease| lease.task).collect::<Vec<_>>(), [task(run, 1), task(run, 2)]);
    bench.succeed(leases[1], r#""C""#);
    assert_eq!(bench.lease(1, 9), []);
    bench.succeed(leases[0], r#""B""#);
    let last = bench.lease(1, 9)[0];
    let input = bench.state.runs[&run].task(last.task).expect("a task").input.clone();
    assert_eq!(input, Payload::Inline(Json::parse(r#"{"b":"B","c":"C"}"#).expect("JSON")));
    bench.succeed(last, "[1]");
    assert_eq!(output(&bench, run), "[1]");
}

#[test]
fn a_run_with_several_ends_gives_an_object_of_them() {
    let mut bench = Bench::new(vec![flow("dag", vec![step("a", &[]), step("b", &[0]), step("c", &[0])])]);
    let run = bench.enqueue("dag");
    bench.run_all("3");
    assert_eq!(output(&bench, run), r#"{"b":3,"c":3}"#);
}

#[test]
fn success_and_what_follows_are_one_frame() {
    let mut bench = Bench::new(vec![flow("dag", vec![step("a", &[]), step("b", &[0])])]);
    bench.enqueue("dag");
    let lease = bench.lease(1, 1)[0];
    let frames = bench.log.len();
    bench.succeed(lease, "1");
    assert_eq!((bench.log.len(), bench.log[frames].0.events.len()), (frames + 1, 2));
}

#[test]
fn items_keep_their_order_whatever_order_they_end_in() {
    let mut bench = Bench::new(vec![fan(1000)]);
    let run = bench.enqueue("fan");
    let lease = bench.lease(1, 1)[0];
    bench.succeed(lease, r#"["x","y","z"]"#);
    let leases = bench.lease(1, 9);
    assert_eq!(leases.iter().map(|lease| lease.task.item).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    let input = bench.state.runs[&run].task(leases[1].task).expect("a task").input.clone();
    assert_eq!(input, Payload::Inline(Json::parse(r#"{"at":1,"item":"y"}"#).expect("JSON")));
    for (place, value) in [(2, "2"), (0, "0"), (1, "1")] {
        bench.succeed(leases[place], value);
    }
    let last = bench.lease(1, 9)[0];
    let input = bench.state.runs[&run].task(last.task).expect("a task").input.clone();
    assert_eq!(input, Payload::Inline(Json::parse(r#"{"each":[0,1,2]}"#).expect("JSON")));
}

#[test]
fn no_more_than_max_parallel_items_are_in_flight() {
    let mut bench = Bench::new(vec![fan(2)]);
    let run = bench.enqueue("fan");
    let lease = bench.lease(1, 1)[0];
    bench.succeed(lease, "[1,2,3,4,5]");
    let mut running = bench.lease(1, 9);
    let mut seen = 0;
    while let Some(lease) = running.pop() {
        assert!(running.len() < 2);
        bench.succeed(lease, "0");
        seen += 1;
        if seen < 5 {
            running.extend(bench.lease(1, 9).into_iter().filter(|lease| lease.task.step == 1));
        }
    }
    assert_eq!(seen, 5);
    bench.run_all("9");
    assert_eq!(output(&bench, run), "9");
}

#[test]
fn an_empty_list_is_done_at_once() {
    let mut bench = Bench::new(vec![fan(2)]);
    let run = bench.enqueue("fan");
    bench.run_all("[]");
    assert_eq!(bench.run_state(run), RunState::Succeeded);
}

#[test]
fn what_is_no_list_is_a_template_error() {
    let mut bench = Bench::new(vec![fan(2)]);
    let run = bench.enqueue("fan");
    let lease = bench.lease(1, 1)[0];
    bench.succeed(lease, "7");
    let (at, letter) = bench.state.runs[&run].letters().next().map(|(at, letter)| (at, letter.clone())).expect("one");
    assert_eq!((at, letter.code.as_str(), bench.run_state(run)), (task(run, 1), "TEMPLATE_ERROR", RunState::Stalled));
    // The list may come from a newer state of things one day; here it faults again, as a new entry.
    let entry = bench.letter();
    bench.requeue(&entry, false);
    assert_ne!(bench.letter(), entry);
}

#[test]
fn a_list_has_as_many_items_as_a_fan_out_may_and_no_more() {
    for (count, fits) in [(ITEMS_PER_FAN_OUT_MAX, true), (ITEMS_PER_FAN_OUT_MAX + 1, false)] {
        let mut bench = Bench::new(vec![fan(2)]);
        let run = bench.enqueue("fan");
        let lease = bench.lease(1, 1)[0];
        bench.succeed(lease, &format!("[{}0]", "0,".repeat(count - 1)));
        if fits {
            assert_eq!((bench.run_state(run), bench.lease(1, 9).len()), (RunState::Active, 2));
        } else {
            let (_, letter) = bench.state.runs[&run].letters().next().expect("one");
            assert!(letter.code == "TEMPLATE_ERROR" && letter.message.contains("at most 10000"), "{}", letter.message);
        }
    }
}

#[test]
fn a_false_condition_skips_and_a_step_whose_needs_were_all_skipped_is_skipped_too() {
    let no = StepDef { when: Some("input.go".into()), ..step("no", &[0]) };
    let steps = vec![step("a", &[]), no, step("after", &[1]), step("both", &[0, 1])];
    let mut bench = Bench::new(vec![flow("dag", steps)]);
    let input = Json::parse(r#"{"go":false}"#).expect("JSON");
    let run = run_of(&bench.ask(EnqueueRequest { input, ..request("dag") }));
    let lease = bench.lease(1, 1)[0];
    bench.succeed(lease, "1");
    let leases = bench.lease(1, 9);
    assert_eq!(leases.iter().map(|lease| lease.task.step).collect::<Vec<_>>(), [3]);
    let input = bench.state.runs[&run].task(leases[0].task).expect("a task").input.clone();
    assert_eq!(input, Payload::Inline(Json::parse(r#"{"a":1,"no":null}"#).expect("JSON")));
    bench.succeed(leases[0], "2");
    assert_eq!(output(&bench, run), "2");
}

#[test]
fn a_dead_item_stalls_its_run_when_the_others_are_through() {
    let mut bench = Bench::new(vec![fan(1000)]);
    let run = bench.enqueue("fan");
    let lease = bench.lease(1, 1)[0];
    bench.succeed(lease, "[1,2]");
    let leases = bench.lease(1, 9);
    bench.fail(leases[0], Class::Fatal);
    assert_eq!(bench.run_state(run), RunState::Active);
    bench.succeed(leases[1], "1");
    assert_eq!(bench.run_state(run), RunState::Stalled);
    let entry = bench.letter();
    bench.requeue(&entry, false);
    bench.run_all("5");
    assert_eq!((bench.run_state(run), output(&bench, run).as_str()), (RunState::Succeeded, "5"));
}

#[test]
fn an_output_is_dropped_when_nothing_needs_it_any_more() {
    let mut bench = Bench::new(vec![flow("dag", vec![step("a", &[]), step("b", &[0]), step("c", &[1])])]);
    let run = bench.enqueue("dag");
    for held in [1, 1] {
        let lease = bench.lease(1, 1)[0];
        bench.succeed(lease, r#""large""#);
        let outputs = bench.state.runs[&run]
            .steps
            .iter()
            .filter(|step| matches!(step, crate::queue::run::StepRun::Done(done) if done.output.is_some()));
        assert_eq!(outputs.count(), held);
    }
}

#[test]
fn a_run_pins_the_flow_that_it_was_enqueued_with() {
    let mut bench = Bench::new(vec![flow("dag", vec![step("a", &[])])]);
    let run = bench.enqueue("dag");
    bench.register("default", flow("dag", vec![step("a", &[]), step("b", &[0])]));
    bench.run_all("1");
    assert_eq!(bench.state.finished[&run].tasks.len(), 1);
    let second = bench.enqueue("dag");
    bench.run_all("1");
    assert_eq!(bench.state.finished[&second].tasks.len(), 2);
}
