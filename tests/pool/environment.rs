//! Which variables reach a step.

use serde_json::json;

use crate::{home::Home, supervisor::Supervisor};

const ALL: &str = r#"{"do":"env_all"}"#;
const CALLER: &[(&str, &str)] = &[("FAIL_RATE", "0.25"), ("SECRET", "caller")];

#[test]
fn a_callers_variable_reaches_the_step_and_no_other() {
    let home = Home::new();
    home.flow("env", "compute", &["grants: { env: [ { name: FAIL_RATE, from: caller } ] }"]);
    let expected = json!([["FAIL_RATE", "0.25"]]);
    let pool = Supervisor::start_with(&home, &[("FAIL_RATE", "1"), ("SECRET", "supervisor")], &[]);
    for flow in ["env.yaml", "env"] {
        let ran = home.tm_with(CALLER, &["enqueue", flow, "--json", "-i", ALL]);
        let run = ran.json()["id"].as_str().unwrap().to_owned();
        assert_eq!(home.result(&run)["output"]["ok"], expected, "{flow}");
    }
    let without = home.enqueue("env", ALL, &[]);
    assert_eq!(home.result(&without)["output"]["ok"], json!([]));
    let ran = home.tm_with(CALLER, &["enqueue", "env", "--wait", "-i", ALL]);
    assert!(ran.stdout.contains(r#"["FAIL_RATE","0.25"]"#), "{ran}");
    pool.stop();
    let ran = home.tm_with(CALLER, &["run", "env.yaml", "-i", ALL]);
    assert_eq!(ran.json()["output"]["ok"], expected, "{ran}");

    // Without a supervisor, by the id alone.
    let ran = home.tm_with(CALLER, &["enqueue", "env", "--json", "-i", ALL]);
    let run = ran.json()["id"].as_str().unwrap().to_owned();
    let pool = Supervisor::start(&home, &[]);
    assert_eq!(home.result(&run)["output"]["ok"], expected);
    pool.stop();
}

#[test]
fn a_variable_of_the_host_needs_the_operators_allowance() {
    let home = Home::new();
    home.flow("env", "compute", &["grants: { env: [ TOKEN ] }"]);
    let variables = [("TOKEN", "of the host"), ("SECRET", "supervisor")];
    let pool = Supervisor::start_with(&home, &variables, &[]);
    home.tm_with(&variables, &["enqueue", "env.yaml", "-i", ALL]).refused(3, &["TOKEN", "default"]);
    assert_eq!(home.tm(&["queue", "ls", "--state", "all", "--json"]).stdout.trim(), "");
    pool.stop();

    home.write("trace_config.toml", "[tenants.default.allow]\nenv = [\"TOKEN\"]\n");
    let pool = Supervisor::start_with(&home, &variables, &[]);
    let ran = home.tm_with(&[("TOKEN", "of the caller")], &["enqueue", "env.yaml", "--json", "-i", ALL]);
    let run = ran.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(home.result(&run)["output"]["ok"], json!([["TOKEN", "of the host"]]));
    pool.stop();
}
