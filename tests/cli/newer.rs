//! A queue of a newer program: every command says which file, which format, which it knows and what to do, and changes nothing.

use std::{collections::BTreeMap, fs, path::Path};

use tm_core::{
    id::Digest,
    queue::event::{Event, Frame},
    record::codec,
    time::Millis,
};

use crate::home::{Home, QUEUE_COMMANDS, snapshot};

fn line(sequence: u64, event: Event) -> Vec<u8> {
    let mut line = Vec::new();
    codec::encode(&Frame { at: Millis(1_800_000_000_000), events: vec![event] }, sequence, &mut line);
    line
}

fn sealed(rest: &str) -> Vec<u8> {
    format!("{{\"c\":\"{:08x}\",{rest}\n", crc32c::crc32c(rest.as_bytes())).into_bytes()
}

fn created(sequence: u64, format: u32) -> Vec<u8> {
    line(sequence, Event::Created { secret: [7; 16], format })
}

fn filed(sequence: u64) -> Vec<u8> {
    line(sequence, Event::Filed { entry: format!("dlq-{sequence}-a") })
}

/// A queue of two segments in a home, with the folders that belong to it.
fn queue_of(first: &[Vec<u8>], second: &[Vec<u8>]) -> Home {
    let home = Home::new();
    home.write("data/queue/segment-000001.log", first.concat());
    home.write("data/queue/segment-000002.log", second.concat());
    // A letter that was archived and not removed yet: opening a queue finishes that.
    for place in ["pending", "archive/requeued", "archive/purged"] {
        home.write(&format!("data/dlq/{place}/dlq-1-a.json"), "{}\n");
    }
    home.write(&format!("data/store/blobs/00/{}", Digest([0; 32])), "a blob that nothing names");
    home.write("flow.yaml", crate::flows::FLOW).write("a.wasm", "");
    home
}

/// Every file with its content and its time of change.
fn snapshot_of(home: &Home) -> BTreeMap<String, (Vec<u8>, std::time::SystemTime)> {
    let is_file = |path: &String| Path::is_file(&home.path(path));
    let read = |path: String| {
        let file = home.path(&path);
        (path, (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().modified().unwrap()))
    };
    home.files().into_iter().filter(is_file).map(read).collect()
}

const MORE: &[&[&str]] = &[&["queue", "stats"], &["enqueue", "flow.yaml"], &["workers", "start"]];

fn commands() -> impl Iterator<Item = &'static &'static [&'static str]> {
    QUEUE_COMMANDS.iter().chain(MORE)
}

#[test]
fn every_command_refuses_a_queue_of_a_newer_format_and_changes_nothing() {
    let results = |name: &str, rest: &str| {
        let home = queue_of(&[created(1, 1), filed(2)], &[filed(3)]);
        home.write(&format!("data/queue/{name}"), sealed(rest));
        home
    };
    let newer = |file: &str| format!("{file} is of format 2, this program knows up to 1");
    let cases = [
        (newer("segment-000001.log"), queue_of(&[created(1, 2)], &[])),
        (newer("segment-000002.log"), queue_of(&[created(1, 1), filed(2)], &[created(3, 2), filed(4)])),
        (
            "results-000001.log has a record at byte 0 that is whole, and that this program cannot read: missing field `id`"
                .to_owned(),
            results("results-000001.log", r#""tenant":"default","flow":"hello","run":{"number":7}}"#),
        ),
        (newer("results-000002.idx"), {
            let home = results("results-000002.idx", r#""format":2,"pages":"none"}"#);
            home.write("data/queue/results-000002.log", "");
            home
        }),
    ];
    for (said, home) in cases {
        let before = snapshot_of(&home);
        for command in commands() {
            let ran = home.tm(command);
            let expected = format!(
                "error: data/queue/{said}\n\
                 hint: use the tm that wrote it, or a newer one; nothing was changed\n"
            );
            assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(3), "", &*expected), "{command:?}");
            assert!(snapshot_of(&home) == before, "{command:?} changed a file: {:?}", home.files());
        }
    }
}

/// Only reading the whole log finds it: the lock is taken by then, and names its last holder.
#[test]
fn a_newer_record_in_the_middle_of_a_segment_is_refused_too() {
    let home = queue_of(&[created(1, 1), filed(2), created(3, 2), filed(4)], &[filed(5)]);
    let before = snapshot_of(&home);
    for command in commands() {
        let ran = home.tm(command);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""), "{command:?}: {ran}");
        assert!(ran.stderr.contains("segment-000001.log is of format 2"), "{command:?}: {ran}");
        let mut after = snapshot_of(&home);
        after.retain(|path, _| !path.ends_with("tm.lock"));
        assert!(after == before, "{command:?} changed a file: {:?}", home.files());
    }
}

#[test]
fn a_whole_record_that_is_not_known_is_refused_by_file_and_byte() {
    let rest = r#""s":2,"t":1800000000000,"e":[{"Paused":{}}]}"#;
    let home = queue_of(&[created(1, 1), sealed(rest)], &[]);
    snapshot!(home.tm(&["queue", "stats"]), @"
    stderr:
    error: data/queue/segment-000001.log has a record at byte 115 that is whole, and that this program cannot read: unknown variant `Paused`
    hint: use the tm that wrote it, or a newer one; nothing was changed
    exit: 3
    ");
    let stats = home.tm(&["queue", "stats"]);
    for command in commands() {
        assert_eq!(home.tm(command), stats, "{command:?}");
    }
}
