//! What expressions can, and what they cannot do to the loop.

use super::*;
use serde_json::json;

fn scope() -> Value {
    json!({
        "input": {"n": 3, "name": "ada", "go": false, "big": u64::MAX, "low": i64::MIN, "f": 1.0, "none": null,
                  "list": [3, 1, 2, 1], "people": [{"n": "b", "age": 2}, {"n": "a", "age": 1}]},
        "steps": {"docs-list": {"output": {"pages": ["x", "y"]}}, "a": {"output": 7}},
        "item": {"id": 9},
    })
}

fn value(expression: &str) -> Value {
    MiniJinja::new().value(expression, &scope()).unwrap()
}

fn fails(expression: &str) -> String {
    match MiniJinja::new().value(expression, &scope()) {
        Ok(value) => panic!("{expression} gave {value}"),
        Err(fault) => fault.message,
    }
}

#[test]
fn json_types_are_kept_exactly() {
    for (expression, expected) in [
        ("input.big", json!(u64::MAX)),
        ("input.low", json!(i64::MIN)),
        ("input.f", json!(1.0)),
        ("input.none", json!(null)),
        (
            "[input.big, input.low, input.f, input.none, input.go, input.name]",
            json!([u64::MAX, i64::MIN, 1.0, null, false, "ada"]),
        ),
        ("{'a': input.list, 'b': {}}", json!({"a": [3, 1, 2, 1], "b": {}})),
        ("input.n + 1", json!(4)),
        ("input.n / 2", json!(1.5)),
        ("input.n + 0.0", json!(3.0)),
        ("input.list[1:3]", json!([1, 2])),
        ("(1, 2)", json!([1, 2])),
        ("range(3)", json!([0, 1, 2])),
        ("2 ** 10", json!(1024)),
        ("none", json!(null)),
    ] {
        let found = value(expression);
        assert_eq!(found.to_string(), expected.to_string(), "{expression}");
    }
}

#[test]
fn names_with_dashes_are_reached_by_brackets() {
    assert_eq!(value(r#"steps["docs-list"].output.pages"#), json!(["x", "y"]));
    assert_eq!(value(r#"steps['docs-list'].output.pages | length"#), json!(2));
    assert_eq!(value("input.list[0]"), json!(3));
}

#[test]
fn filters_do_their_work() {
    for (expression, expected) in [
        ("input.people | map(attribute='n') | join(', ')", json!("b, a")),
        ("input.people | sort(attribute='age') | first", json!({"n": "a", "age": 1})),
        ("input.people | selectattr('age', 'gt', 1) | list", json!([{"n": "b", "age": 2}])),
        ("input.list | sort(reverse=true)", json!([3, 2, 1, 1])),
        ("input.list | unique", json!([3, 1, 2])),
        ("input.list | sum", json!(7)),
        ("input.n | times(1.5)", json!(4.5)),
        ("input.n | times(input.n)", json!(9)),
        ("input.nothing | default('x')", json!("x")),
        ("input.name | upper | replace('A', 'aa')", json!("aaDaa")),
        ("'a-b' | split('-')", json!(["a", "b"])),
        ("input.list | tojson", json!("[3,1,2,1]")),
        ("input.people[0] | keys", json!(["age", "n"])),
        ("input.nothing is defined", json!(false)),
        ("'y' if input.n > 2 and 1 in input.list else 'n'", json!("y")),
    ] {
        assert_eq!(value(expression), expected, "{expression}");
    }
}

#[test]
fn an_undefined_name_is_told() {
    for (expression, name) in [
        ("input.nope", "input.nope"),
        ("input.nope + 1", "input.nope"),
        ("nope", "nope"),
        ("[input.n, nope.x]", "nope.x"),
        ("input.a | default(1) + input.nope", "input.nope"),
        ("steps['docs-list'].output.no | length", "steps[\"docs-list\"].output.no"),
    ] {
        assert!(fails(expression).ends_with(&format!("'{name}' is not there")), "{}", fails(expression));
    }
}

#[test]
fn errors_hold_no_values() {
    let secret = json!({"input": {"s": "hunter2", "n": 424_242, "l": ["hunter2"]}});
    for expression in [
        "input.s + input.n",
        "input.n // 0",
        "input.n % 0",
        "input.n ** 99999",
        "input.s | int",
        "input.s | sum",
        "input.l | map(attribute='x')",
        "input.s | abs",
        "input.s[input.s]",
        "input.s | round",
        "input.l | replace('a', 'b')",
        "input.n.x.y",
        "input.s()",
        "input.s.lower()",
    ] {
        let Err(fault) = MiniJinja::new().value(expression, &secret) else { panic!("{expression} gave a value") };
        assert!(!fault.message.contains("hunter2") && !fault.message.contains("424242"), "{}", fault.message);
    }
}

#[test]
fn what_does_not_parse_or_does_not_exist_is_refused() {
    for bad in ["", "1 +", "input.", "a b", "{% if x %}", "input.n |", "'open", "input.n * 2", "[1] * 3"] {
        assert!(MiniJinja::new().check_value(bad).is_err(), "{bad}");
    }
    assert!(fails("input.n | pprint").contains("filter pprint is unknown"));
    assert!(fails("input.n is sameas(3)").contains("test sameas is unknown"));
    assert!(fails("namespace()").contains("namespace"));
    assert!(MiniJinja::new().check_value("input.n ** 2").is_ok());
    assert!(MiniJinja::new().check_value("'a * b'").is_ok());
}

#[test]
fn a_template_renders_strings_as_they_are_and_the_rest_as_json() {
    let text = |template| MiniJinja::new().text(template, &scope()).map_err(|fault| fault.message);
    assert_eq!(
        text("<{{ input.name }}> {{input.list}} {{ input.none }} it's {#"),
        Ok("<ada> [3,1,2,1] null it's {#".into())
    );
    assert!(text("{{ input.name").unwrap_err().contains("without its '}}'"));
    assert!(text("{% for x in y %}").unwrap_err().contains("statements"));
    assert!(MiniJinja::new().check_text("a {{ 1 + }}").is_err());
}

/// Peak memory of this process as the kernel saw it: VmHWM, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// In a process of its own, because other tests of this binary take and give back memory meanwhile.
#[test]
fn runaway_expressions_are_refused_without_taking_memory() {
    const ALONE: &str = "TM_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "evaluate::tests::runaway_expressions_are_refused_without_taking_memory";
        let program = std::env::current_exe().unwrap();
        let run = std::process::Command::new(program).args(["--exact", name]).env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&run.stderr));
        return;
    }
    let scope = json!({"input": {
        "s": "x".repeat(200_000), "n": 1_000_000_000, "l": (0..20_000).collect::<Vec<u32>>(),
        "huge": "y".repeat(4_000_000),
    }});
    let chain = |part: &str, join: &str| vec![part; EXPRESSION_MAX_BYTES / (part.len() + join.len())].join(join);
    let before = peak_kib();
    for expression in [
        "'x' * 10**9".to_owned(),
        "input.s * input.n".to_owned(),
        "[input.s] * input.n".to_owned(),
        "range(10**9)".to_owned(),
        "range(-9223372036854775807, 9223372036854775807)".to_owned(),
        "input.s | replace('x', input.s)".to_owned(),
        "input.s | replace('', input.s)".to_owned(),
        "input.l | join(input.s)".to_owned(),
        "input.s | split('x')".to_owned(),
        "input.huge | upper".to_owned(),
        "input.l | map(attribute='x', default=input.s)".to_owned(),
        "input.l | sort(attribute='a,a,a,a')".to_owned(),
        "input.l | select('in', input.l)".to_owned(),
        "input.l ~ ''".to_owned(),
        "input.s".to_owned() + " ~ ''",
        chain("input.s", "~"),
        chain("input.s", "+"),
        format!("[{}] ~ ''", chain("input.s", ",")),
        format!("[{}] | string", chain("input.l", ",")),
        "2 ** 1000".to_owned(),
        "10 ** 400.0".to_owned(),
        "'%9999999999d' | format(1)".to_owned(),
        "input.s | indent(1000000000)".to_owned(),
        "input.l | batch(1000000000, 'x')".to_owned(),
        "input.l | slice(1000000000)".to_owned(),
        "input.s | center(1000000000)".to_owned(),
    ] {
        assert!(MiniJinja::new().value(&expression, &scope).is_err(), "{:.80}", expression);
    }
    // Far under what any one of them asks for. The kernel's figure is approximate and may even shrink by a few pages.
    let grown = peak_kib().saturating_sub(before);
    assert!(grown < 100 * 1024, "grew by {grown} KiB");
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let jinja = MiniJinja::new();
    for (open, close) in
        [("(", ")"), ("[", "]"), ("not ", ""), ("-", ""), ("", ".a"), ("", "[0]"), ("", "|int"), ("", "~1")]
    {
        let count = (EXPRESSION_MAX_BYTES - 8) / (open.len() + close.len());
        for count in [count, 100] {
            let expression = format!("{}input{}", open.repeat(count), close.repeat(count));
            let _outcome_is_free = jinja.check_value(&expression);
            let _outcome_is_free = jinja.value(&expression, &scope());
        }
    }
}

#[test]
fn too_many_steps_are_refused() {
    let scope = json!({"n": 1});
    let long = |count| vec!["n"; count].join("-");
    assert_eq!(MiniJinja::new().value(&long(2000), &scope).unwrap(), json!(-1998));
    // The text's bound alone keeps expressions below it.
    let compiled = ENVIRONMENT.compile_expression_owned(long(6000)).unwrap();
    let error = compiled.eval(minijinja::value::Value::from_pairs([("n", 1)])).unwrap_err();
    assert_eq!(failure("x", &error, &scope).message, "expression `x`: it takes more than 10000 steps");
}

#[test]
fn a_plain_path_is_looked_up_whole_whatever_its_size() {
    let scope = json!({"steps": {"a": {"output": "z".repeat(3_000_000)}}});
    let jinja = MiniJinja::new();
    assert_eq!(jinja.value("steps.a.output", &scope).unwrap(), scope["steps"]["a"]["output"]);
    assert!(jinja.value("steps.a.output | length", &scope).is_err());
    assert!(jinja.text("= {{ steps.a.output }}", &scope).is_err());
}

#[test]
fn only_what_is_named_is_taken_from_the_scope() {
    let scope = json!({"steps": {"a": {"output": "z".repeat(3_000_000), "n": 1}, "b": [1, 2]}});
    assert_eq!(MiniJinja::new().value("steps.a.n + steps.b[1] + (steps.b[0:1] | first)", &scope).unwrap(), json!(4));
}

#[test]
fn the_cache_stays_bounded() {
    let jinja = MiniJinja::new();
    for n in 0..3 * CACHE_MAX_COUNT {
        jinja.check_value(&format!("{n} + 1")).unwrap();
    }
    assert!(jinja.cache.lock().unwrap().len() <= CACHE_MAX_COUNT);
}
