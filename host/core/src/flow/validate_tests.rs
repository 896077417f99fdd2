//! Faults of flows, one behaviour each.

use super::*;
use crate::flow::{order::topological_order, spec::FlowFile};
use alloc::string::String;
use serde_json::{Value, json};

/// Takes every expression but those with `!!` in them.
struct Lenient;

impl Evaluate for Lenient {
    fn value(&self, _: &str, _: &Value) -> Result<Value, EvaluateFault> {
        Ok(Value::Null)
    }
    fn text(&self, _: &str, _: &Value) -> Result<String, EvaluateFault> {
        Ok(String::new())
    }
    fn check_value(&self, expression: &str) -> Result<(), EvaluateFault> {
        match expression.contains("!!") {
            true => Err(EvaluateFault { message: "does not parse".into() }),
            false => Ok(()),
        }
    }
    fn check_text(&self, template: &str) -> Result<(), EvaluateFault> {
        self.check_value(template)
    }
}

fn flow(steps: Value) -> FlowSpec {
    serde_json::from_value::<FlowFile>(json!({"flow": {"id": "f", "steps": steps}})).unwrap().flow
}

fn faults(steps: Value) -> Vec<(String, String)> {
    validate(&flow(steps), &Lenient).into_iter().map(|fault| (fault.path, fault.message)).collect()
}

fn paths(steps: Value) -> Vec<String> {
    faults(steps).into_iter().map(|fault| fault.0).collect()
}

#[test]
fn a_sound_flow_has_no_faults() {
    assert_eq!(
        faults(json!([
            {"id": "b", "component": "x", "needs": ["a"], "for_each": "steps.a.output", "max_parallel": 2,
             "input": {"p": "{{ item }}", "q": ["{{ steps['a'].output }} of {{ input.n }}", 3, "it's plain"]}},
            {"id": "a", "component": "x", "when": "input.go",
             "grants": {"files": [{"host": "../d", "guest": "/d"}, {"host": "e", "guest": "/e/f", "mode": "write"}],
                        "env": ["HOME", {"name": "RATE", "from": "caller"}]}},
        ])),
        []
    );
}

#[test]
fn a_constant_that_is_no_list_has_no_items() {
    let messages = |for_each: &str| {
        let steps = json!([{"id": "a", "component": "x", "for_each": for_each, "needs": ["nope"]}]);
        faults(steps).into_iter().map(|(path, message)| format!("{path}: {message}")).collect::<Vec<_>>()
    };
    let needs = "steps[0].needs[0]: needs unknown step 'nope'";
    for (constant, what) in [("3", "a number"), (" true", "a boolean"), ("\"x\"", "a string"), ("{}", "an object")] {
        let for_each = format!("steps[0].for_each: for_each gives {what} where a list is needed");
        assert_eq!(messages(constant), [needs, &for_each], "{constant}");
    }
    for list in ["[1, 2]", "input.items", "range(3)"] {
        assert_eq!(messages(list), [needs], "{list}");
    }
}

#[test]
fn all_faults_are_named_at_once_each_with_its_path() {
    let found = paths(json!([
        {"id": "../a", "component": " ", "needs": ["nope"], "max_parallel": 0,
         "limits": {"fuel": 0, "memory_mb": 5000},
         "retries": {"factor": 0.5, "max_attempts": 0, "base_ms": 86_400_001}},
        {"id": "b", "component": "x", "needs": ["b2", "b2"], "when": "!!", "input": {"a": ["{{ !! }}", "x {{ !! }}"]}},
        {"id": "b", "component": "x"},
        {"id": "b2", "component": "x", "grants": {
            "files": [{"host": "a", "guest": "data"}, {"host": "a", "guest": "/a/../b"}, {"host": "a", "guest": "/"},
                      {"host": "a", "guest": "/x"}, {"host": "a", "guest": "/x/y"}, {"host": "", "guest": "/z"}],
            "env": ["1A", "A", "A"]}},
    ]));
    let expected = [
        "steps[0].id",
        "steps[2].id",
        "steps[0].component",
        "steps[0].needs[0]",
        "steps[0].max_parallel",
        "steps[0].max_parallel",
        "steps[0].limits.fuel",
        "steps[0].limits.memory_mb",
        "steps[0].retries.max_attempts",
        "steps[0].retries.base_ms",
        "steps[0].retries.factor",
        "steps[1].needs[1]",
        "steps[1].when",
        "steps[1].input.a[0]",
        "steps[1].input.a[1]",
        "steps[3].grants.files[0].guest",
        "steps[3].grants.files[1].guest",
        "steps[3].grants.files[2].guest",
        "steps[3].grants.files[4].guest",
        "steps[3].grants.files[5].host",
        "steps[3].grants.env[0]",
        "steps[3].grants.env[2]",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_cycle_is_named_with_its_path() {
    let found = faults(json!([
        {"id": "start", "component": "x"},
        {"id": "tail", "component": "x", "needs": ["c"]},
        {"id": "a", "component": "x", "needs": ["start", "c"]},
        {"id": "b", "component": "x", "needs": ["a"]},
        {"id": "c", "component": "x", "needs": ["b"]},
    ]));
    assert_eq!(found, [("steps[4].needs".into(), "cycle of needs: c needs b needs a needs c".into())]);
    let own = faults(json!([{"id": "a", "component": "x", "needs": ["a"]}]));
    assert_eq!(own, [("steps[0].needs".into(), "cycle of needs: a needs a".into())]);
}

#[test]
fn every_cycle_is_named_and_no_more_than_fit() {
    let found = faults(json!([
        {"id": "a", "component": "x", "needs": ["b", "c"]},
        {"id": "b", "component": "x", "needs": ["a"]},
        {"id": "c", "component": "x", "needs": ["a"]},
        {"id": "d", "component": "x", "needs": ["a", "e"]},
        {"id": "e", "component": "x", "needs": ["d"]},
        {"id": "f", "component": "x", "needs": ["f"]},
    ]));
    let cycle = |place: &str, names: &str| (format!("steps[{place}].needs"), format!("cycle of needs: {names}"));
    assert_eq!(
        found,
        [
            cycle("0", "a needs b needs a"),
            cycle("0", "a needs c needs a"),
            cycle("3", "d needs e needs d"),
            cycle("5", "f needs f"),
        ]
    );
    let all: Vec<String> = (0..STEPS_PER_FLOW_MAX).map(|n| format!("s{n}")).collect();
    let steps: Vec<Value> = all.iter().map(|id| json!({"id": id, "component": "x", "needs": all})).collect();
    assert_eq!(paths(Value::Array(steps)).len(), 16, "and in an instant");
}

#[test]
fn an_expression_may_only_name_steps_that_are_needed() {
    let flow = flow(json!([
        {"id": "docs-list", "component": "x"},
        {"id": "other", "component": "x"},
        {"id": "b", "component": "x", "needs": ["docs-list"],
         "input": ["{{ steps.docs-list.output }}", "{{ steps.other.output }}", "a {{ steps.othr.x }}", "{{ steps.b }}"]},
    ]));
    let found: Vec<(String, Option<String>)> =
        validate(&flow, &Lenient).into_iter().map(|fault| (fault.message, fault.hint)).collect();
    assert_eq!(
        found,
        [
            ("'steps.docs-list' reads as a subtraction".into(), Some("write steps[\"docs-list\"]".into())),
            (
                "names step 'other', which is not in its needs".into(),
                Some("add 'other' to the needs of step 'b'".into())
            ),
            ("names unknown step 'othr'".into(), Some("did you mean 'other'?".into())),
            ("names its own step 'b'".into(), None),
        ]
    );
}

#[test]
fn braces_around_a_condition_are_refused_with_the_bare_form() {
    let flow = flow(json!([{"id": "a", "component": "x", "when": "{{ input.go }}"}]));
    assert_eq!(validate(&flow, &Lenient)[0].hint.as_deref(), Some("write it without the braces: input.go"));
}

#[test]
fn too_many_steps_are_refused_without_looking_at_each() {
    let steps: Vec<Value> = (0..=STEPS_PER_FLOW_MAX).map(|_| json!({"id": "", "component": ""})).collect();
    assert_eq!(paths(Value::Array(steps)), ["steps"]);
    assert_eq!(paths(json!([])), ["steps"]);
}

#[test]
fn steps_are_ordered_after_their_needs_and_otherwise_as_written() {
    let flow = flow(json!([
        {"id": "d", "component": "x", "needs": ["b", "c"]},
        {"id": "c", "component": "x", "needs": ["a"]},
        {"id": "b", "component": "x", "needs": ["a", "a"]},
        {"id": "a", "component": "x"},
        {"id": "e", "component": "x"},
    ]));
    assert_eq!(topological_order(&flow), [3, 1, 2, 0, 4]);
}

#[test]
fn a_near_name_is_proposed_and_a_far_one_is_not() {
    assert_eq!(nearest("rendr", ["list", "render"].into_iter()), Some("did you mean 'render'?".into()));
    assert_eq!(nearest("fule", ["fuel", "tune"].into_iter()), Some("did you mean 'fuel'?".into()));
    assert_eq!(nearest("zzz", ["list", "render"].into_iter()), None);
}
