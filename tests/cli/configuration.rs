//! A configuration that cannot be: exit 3, with file, line and key.

use crate::home::{Home, Ran, snapshot};

fn start(config: &str) -> Ran {
    let home = Home::new();
    home.write("trace_config.toml", config);
    let ran = home.tm(&["workers", "start"]);
    assert_eq!(home.files(), ["trace_config.toml"]);
    ran
}

#[test]
fn an_unknown_key_is_named() {
    snapshot!(start("[queue]\nlease_msx = 5\n"), @"
    stderr:
    error: trace_config.toml:2:1: unknown key 'lease_msx' (did you mean 'lease_ms'?)
    exit: 3
    ");
}

#[test]
fn a_wrong_type_is_named() {
    snapshot!(start("[queue]\nlease_ms = \"soon\"\n"), @r#"
    stderr:
    error: trace_config.toml:2:12: queue.lease_ms: invalid type: string "soon", expected a whole number from 0
    exit: 3
    "#);
}

#[test]
fn a_value_that_is_no_word_of_the_key_is_named_with_its_key() {
    snapshot!(start("[queue]\nbackend = 3\n"), @"
    stderr:
    error: trace_config.toml:2:11: queue.backend: expected a string
    exit: 3
    ");
}

#[test]
fn a_heartbeat_of_0_is_told_as_that() {
    snapshot!(Home::new().tm(&["workers", "start", "--heartbeat", "0"]), @"
    stderr:
    error: heartbeat is 0 ms: it must be above 0
    exit: 3
    ");
}

#[test]
fn what_is_no_toml_is_named() {
    snapshot!(start("[queue\n"), @"
    stderr:
    error: trace_config.toml:1:7: unclosed table, expected `]`
    exit: 3
    ");
}

#[test]
fn a_configuration_that_is_named_must_exist() {
    snapshot!(Home::new().tm(&["workers", "start", "--config", "other.toml"]), @"
    stderr:
    error: no configuration at other.toml
    exit: 3
    ");
}

#[test]
fn heartbeat_timeout_and_lease_are_ordered() {
    let home = Home::new();
    snapshot!(home.tm(&["workers", "start", "--heartbeat", "20", "--lease-ms", "10000"]), @"
    stderr:
    error: heartbeat (20000 ms) < heartbeat_timeout (15000 ms) <= lease_ms (10000 ms) does not hold
    exit: 3
    ");
    assert_eq!(home.files(), [""; 0]);
}

#[test]
fn a_runtime_that_names_code_gets_an_explanation() {
    snapshot!(Home::new().tm(&["workers", "start", "--runtime", "tm.app.wiring_flows:_runtime"]), @"
    stderr:
    error: --runtime 'tm.app.wiring_flows:_runtime' names code; a runtime is a folder of flows
    hint: flows are files and their steps WebAssembly: no module is imported; pass --runtime flows
    exit: 2
    ");
}

#[test]
fn a_memory_queue_has_one_worker() {
    snapshot!(Home::new().tm(&["workers", "start", "--queue", "memory", "-n", "2"]), @"
    stderr:
    error: a memory queue has one worker, not 2
    hint: use -n 1, or --queue file
    exit: 2
    ");
}

#[test]
fn workers_that_can_never_start_are_refused() {
    snapshot!(start("[workers]\nmemory_max = \"1 KiB\"\n"), @"
    stderr:
    error: workers.memory_max (1 KiB) leaves 0 MiB for each worker with workers.num = 1; the smallest worker needs 19 MiB
    hint: raise workers.memory_max, start fewer workers, or lower memory_mb of the steps
    exit: 3
    ");
    snapshot!(start("[workers]\nnum = 100\nmemory_max = \"1800 MiB\"\n"), @"
    stderr:
    error: workers.memory_max (1800 MiB) leaves 18 MiB for each worker with workers.num = 100; the smallest worker needs 19 MiB
    hint: raise workers.memory_max, start fewer workers, or lower memory_mb of the steps
    exit: 3
    ");
}
