//! Queues of format 1 as they were left, every kind of file, with a run that waits: `tests/golden/queue-v1`, from before
//! there were results segments, and `tests/golden/queue-v1-results`.
//!
//! Each is opened, gone on in, closed and opened again. A later format adds a folder of its own and keeps these;
//! `GOLDEN_WRITE=1 cargo test -p tm-supervisor the_queues_of_format_1` writes the newest one again, with `known.json`: what
//! the program that wrote it knew of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tm_core::id::RunId;

use super::{
    disk::MemDisk,
    small_queue_tests::{copy, files, goes_on, leave_waiting, make, open},
    verify::verify,
};
use crate::turn::Turn;

const KNOWN: &str = "known.json";

const NEWEST: &str = "queue-v1-results";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// All files below a folder, by their path in it.
fn read(folder: &Path, below: &str, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{below}{}", entry.file_name().into_string().unwrap());
        if entry.path().is_dir() {
            read(&entry.path(), &format!("{path}/"), found);
        } else {
            found.push((path, fs::read(entry.path()).unwrap()));
        }
    }
    found.sort();
}

fn write() {
    let disk = make();
    leave_waiting(&disk);
    for (path, bytes) in files(&disk) {
        let path = folder(NEWEST).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let text = serde_json::to_string_pretty(&known(&open(&disk))).unwrap();
    fs::write(folder(NEWEST).join(KNOWN), text + "\n").unwrap();
}

/// What a person could ask for.
fn known(turn: &Turn<MemDisk>) -> Value {
    let (state, ended) = (&turn.state, turn.ended(turn.state.last_at));
    let unfinished: BTreeMap<_, _> = state.runs.values().map(|run| (run.id.to_string(), json!(run.state))).collect();
    let mut finished = BTreeMap::new();
    let mut names: BTreeSet<_> = state.keys.keys().cloned().collect();
    ended.range(RunId(0), RunId(u128::MAX), &mut |run| {
        if let Some(found) = ended.run(run) {
            let run = found.unwrap_or_else(|damaged| panic!("{}", damaged.place));
            finished.insert(run.id.to_string(), json!([run.state, run.output]));
            names.extend(run.key.clone().map(|key| ("default".into(), "good".into(), key)));
        }
        ControlFlow::Continue(())
    });
    let keys: BTreeMap<_, _> =
        names.into_iter().filter_map(|name| Some((name.2.clone(), ended.holder(&name)?.to_string()))).collect();
    let letters: Vec<_> = state.letters.keys().collect();
    let flows: Vec<_> = state.flows.values().map(|flow| (&flow.def.id, flow.def.digest)).collect();
    json!({
        "flows": flows,
        "unfinished": unfinished,
        "finished": finished,
        "keys": keys,
        "letters": letters,
        "totals": state.totals,
    })
}

#[test]
fn the_queues_of_format_1_open_go_on_and_open_again_with_nothing_lost() {
    if std::env::var_os("GOLDEN_WRITE").is_some() {
        write();
    }
    for name in ["queue-v1", NEWEST] {
        check(name);
    }
}

fn check(name: &str) {
    let mut golden = Vec::new();
    read(&folder(name), "", &mut golden);
    let place = golden.iter().position(|(path, _)| path == KNOWN).expect("known.json is part of the repository");
    let before: Value = serde_json::from_slice(&golden.remove(place).1).unwrap();
    let is_results = |path: &str| path.starts_with("queue/results-") && path.ends_with(".log");
    assert_eq!(golden.iter().filter(|(path, _)| is_results(path)).count() > 2, name == NEWEST);
    let disk = copy(&golden);
    let report = verify(&disk).unwrap();
    assert!(!report.is_damaged() && report.actions.is_empty(), "{name}: {report:#?}");

    let turn = open(&disk);
    assert_eq!(known(&turn), before, "{name}");
    assert_eq!(
        (before["totals"]["orphans"].as_u64(), before["unfinished"].as_object().unwrap().len() > 1),
        (Some(0), true)
    );
    turn.close().unwrap();
    assert_eq!(files(&disk), golden, "{name}: opening and closing changes nothing");

    assert!(goes_on(&disk));
    let turn = open(&disk);
    let after = known(&turn);
    let waited = before["keys"]["waits"].as_str().unwrap();
    assert_eq!(before["unfinished"][waited], "active");
    assert_eq!(after["finished"][waited][0], "succeeded", "{name}: the run that waited has gone on");
    let same = |of: &str, but: &str| {
        for (each, value) in before[of].as_object().unwrap().iter().filter(|(each, _)| *each != but) {
            assert_eq!(&after[of][each], value, "{name}: {of} {each}");
        }
    };
    same("finished", "");
    same("unfinished", waited);
    same("keys", "");
    assert_eq!((&after["flows"], &after["letters"]), (&before["flows"], &before["letters"]));
    assert_eq!(after["totals"]["orphans"], 0);
    let ended = |known: &Value| known["totals"]["runs_succeeded"].as_u64().unwrap();
    assert_eq!(ended(&after), ended(&before) + 2, "{name}: the one that waited, and a new one");
    drop(turn);
    let report = verify(&disk).unwrap();
    assert!(!report.is_damaged() && report.actions.is_empty(), "{name}: {report:#?}");
}
