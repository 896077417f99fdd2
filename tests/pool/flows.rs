//! Flows through the real engine: order, fan-outs, conditions, artefacts, payloads of every size.

use std::{fs, path::Path};

use crate::{home::Home, supervisor::Supervisor};
use serde_json::{Value, json};
use tm_core::api::RunState;

const GRAPH: &str = r#"
flow:
  id: graph
  steps:
    - id: list
      component: guests/echo.wasm
      input: { items: [3, 1, 2] }
    - id: each
      component: guests/compute.wasm
      needs: [list]
      for_each: steps.list.output["items"]
      max_parallel: 2
      input: { do: progress_flood, count: "{{ item + 10 }}" }
    - id: never
      component: guests/compute.wasm
      needs: [list]
      when: steps.list.output["items"] | length > 3
    - id: join
      component: guests/echo.wasm
      needs: [each, never]
      when: input.join
      input: { got: "{{ steps.each.output }}", first: "{{ steps.each.output[0].ok }}" }
"#;

#[test]
fn a_graph_with_a_fan_out_and_conditions_gives_its_outputs_in_order() {
    let home = Home::new();
    home.write("graph.yaml", GRAPH);
    let pool = Supervisor::start(&home, &["-n", "2"]);
    let run = home.enqueue("graph.yaml", r#"{"join":true}"#, &[]);
    let end = home.result(&run);
    assert_eq!(end["status"], "succeeded", "{end}");
    assert_eq!(end["output"], json!({ "first": 13, "got": [{ "ok": 13 }, { "ok": 11 }, { "ok": 12 }] }));
    let shown = home.show(&run);
    let states: Vec<_> =
        shown["tasks"].as_array().unwrap().iter().map(|task| (&task["step"], &task["state"])).collect();
    assert!(states.contains(&(&json!("join"), &json!("succeeded"))), "{states:?}");
    assert!(!states.contains(&(&json!("never"), &json!("succeeded"))), "{states:?}");
    pool.stop();
    // The same without a queue, and with the other branch.
    let ran = home.tm(&["run", "graph.yaml", "-i", r#"{"join":false}"#]);
    assert_eq!((ran.code, &ran.json()["status"]), (Some(0), &Value::from("succeeded")), "{ran}");
}

#[test]
fn artefacts_are_copied_out_below_the_name_of_their_step() {
    let home = Home::new();
    home.flow("make", "hostile", &[]);
    let input = r#"{"do":"artifact","name":"site/index.html","bytes":200000}"#;
    let ran = home.tm(&["run", "make.yaml", "-i", input, "--out", "out"]);
    assert_eq!((ran.code, &ran.json()["output"]), (Some(0), &json!({ "ok": 200_000 })), "{ran}");
    assert_eq!(fs::read(home.path("out/s/site/index.html")).unwrap(), vec![b'x'; 200_000]);
    assert!(!home.path("data").exists(), "a run in memory left a folder");
}

#[test]
fn large_inputs_and_outputs_travel_as_blobs() {
    let home = Home::new();
    home.flow("echo", "echo", &["limits: { output_kb: 4096 }"]);
    let pool = Supervisor::start(&home, &[]);
    let large = json!({ "text": "x".repeat(1 << 20), "number": 7 });
    home.write("large.json", large.to_string());
    let run = home.enqueue("echo.yaml", "@large.json", &[]);
    let end = home.result(&run);
    assert_eq!(end["status"], "succeeded");
    assert!(end["output"] == large, "the output is not the input");
    let log: u64 = files(&home.path("data/queue")).iter().map(|(_, bytes)| occurrences(bytes)).sum();
    assert_eq!(log, 0, "a large payload stands in the log");
    let blobs: u64 = files(&home.path("data/store")).iter().map(|(_, bytes)| occurrences(bytes)).sum();
    assert!(blobs > 0, "no blob holds the payload");
    pool.stop();
}

#[test]
fn a_large_output_counts_although_its_worker_ends_while_it_is_written() {
    let home = Home::new();
    home.write("trace_config.toml", "[workers]\nisolation = \"task\"\n");
    home.flow("echo", "echo", &["limits: { output_kb: 1024 }"]);
    let mut pool = Supervisor::start(&home, &["-n", "2"]);
    home.write("large.json", json!({ "text": "x".repeat(200 << 10) }).to_string());
    let first = home.enqueue("echo.yaml", "@large.json", &[]);
    let mut runs = pool.enqueue_all("echo", &json!({ "text": "y".repeat(200 << 10) }).to_string(), 30);
    runs.push(first);
    for run in &runs {
        let ended = pool.ended(run);
        assert_eq!((ended.state, ended.tasks[0].attempts.len()), (RunState::Succeeded, 1), "{run}");
    }
    pool.stop();
}

/// How often 100 KiB of the large text stand in a file.
fn occurrences(bytes: &[u8]) -> u64 {
    bytes.split(|&byte| byte != b'x').filter(|run| run.len() > 100 << 10).count() as u64
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            found.push((path.display().to_string(), fs::read(path).unwrap()));
        }
    }
    found
}
