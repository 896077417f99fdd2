//! Without a queue: commands that read say so, exit 4, and create nothing (I12).

use crate::home::{Home, QUEUE_COMMANDS, snapshot};

#[test]
fn stats_of_a_missing_queue_say_so_and_create_nothing() {
    let home = Home::new();
    snapshot!(home.tm(&["queue", "stats"]), @"
    stderr:
    error: no queue at data/queue
    hint: tm workers start or tm enqueue makes one; --queue-dir names another
    exit: 4
    ");
    snapshot!(home.tm(&["queue", "stats", "--json", "--queue-dir", "elsewhere"]), @"
    stderr:
    error: no queue at elsewhere
    hint: tm workers start or tm enqueue makes one; --queue-dir names another
    exit: 4
    ");
    assert_eq!(home.files(), [""; 0]);
}

#[test]
fn every_command_that_needs_a_queue_says_that_there_is_none() {
    let home = Home::new();
    for command in QUEUE_COMMANDS {
        let ran = home.tm(command);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(4), ""), "{command:?}: {ran}");
        assert!(ran.stderr.starts_with("error: no queue at data/queue\nhint: "), "{command:?}: {ran}");
    }
    assert_eq!(home.files(), [""; 0]);
}

#[test]
fn a_memory_queue_is_only_where_its_supervisor_is() {
    let home = Home::new();
    snapshot!(home.tm(&["queue", "stats", "--queue", "memory"]), @"
    stderr:
    error: no supervisor holds a memory queue at data/queue
    hint: a memory queue lives in its supervisor: tm workers start --queue memory
    exit: 4
    ");
    home.write("flow.yaml", crate::flows::FLOW).write("a.wasm", "");
    snapshot!(home.tm(&["enqueue", "flow.yaml", "--queue", "memory"]), @"
    stderr:
    error: no supervisor holds a memory queue at data/queue
    hint: a memory queue lives in its supervisor: tm workers start --queue memory
    exit: 4
    ");
    assert_eq!(home.files(), ["a.wasm", "flow.yaml"]);
}

#[test]
fn waiting_needs_someone_who_works() {
    let home = Home::new();
    home.write("flow.yaml", crate::flows::FLOW).write("a.wasm", "");
    snapshot!(home.tm(&["enqueue", "flow.yaml", "--wait"]), @"
    stderr:
    error: no supervisor runs the queue at data/queue: waiting would never end
    hint: start one: tm workers start
    exit: 4
    ");
}
