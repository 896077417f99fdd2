//! A queue of a newer program is refused by name wherever it says so, is never half read, and not a byte of it changes.

use tm_core::{
    queue::event::{Event, Frame},
    record::codec,
};
use tm_supervisor::store::{
    disk::MemDisk,
    log::{Log, LogError},
    recover,
    repair::repair,
    verify::verify,
};

use crate::{OPTIONS, committed, disk_with, events, queue_files};

type Files = Vec<(String, Vec<u8>)>;

fn sealed(rest: &str) -> Vec<u8> {
    format!("{{\"c\":\"{:08x}\",{rest}\n", crc32c::crc32c(rest.as_bytes())).into_bytes()
}

/// A record that names format `format`, as this program would write it.
fn created(sequence: u64, format: u32) -> Vec<u8> {
    let mut line = Vec::new();
    let events = vec![Event::Created { secret: [0; 16], format }];
    codec::encode(&Frame { at: events::AT, events }, sequence, &mut line);
    line
}

/// The golden files with another content of one of them.
fn with(name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Files {
    let mut files = committed();
    let file = files.iter_mut().find(|(file, _)| file == name).expect("a golden file");
    file.1 = change(std::mem::take(&mut file.1));
    files
}

/// The end of what is written in a segment: the rest is room.
fn end(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte != b'\n').expect("records") + 2
}

fn in_place_of_line(bytes: &[u8], place: usize, line: &[u8]) -> Vec<u8> {
    let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    [&lines[..place].concat(), line, &lines[place + 1..].concat()].concat()
}

/// Reads, verifies, repairs and opens: each refuses, with the same words; returns the error.
fn refused(what: &str, files: &Files) -> LogError {
    let disk: MemDisk = disk_with(files);
    let error = Log::open(disk.clone(), OPTIONS, &mut |_, _| {}).err().unwrap_or_else(|| panic!("{what}: opened"));
    let same = |other: Option<LogError>| {
        assert_eq!(other.map(|other| other.to_string()), Some(error.to_string()), "{what}");
    };
    same(recover::read(&disk, &mut |_, _| {}).err());
    same(verify(&disk).err());
    same(repair(&disk, true).err());
    same(repair(&disk, false).err());
    assert_eq!(&queue_files(&disk), files, "{what}: nothing is changed");
    error
}

const FIRST: &str = "segment-000001.log";
const SECOND: &str = "segment-000002.log";

#[test]
fn a_newer_format_is_refused_by_name_wherever_it_stands() {
    let newer = |rest: &'static str| sealed(rest);
    let strange = || newer(r#""s":1,"t":5,"e":[{"Created":{"format":2,"key":"new"}}]}"#);
    let room = |mut bytes: Vec<u8>, line: &[u8]| {
        let end = end(&bytes);
        bytes[end..end + line.len()].copy_from_slice(line);
        bytes
    };
    let cases = [
        ("the first record", FIRST, with(FIRST, |bytes| in_place_of_line(&bytes, 0, &created(1, 2)))),
        ("a first record in other words", FIRST, with(FIRST, |bytes| in_place_of_line(&bytes, 0, &strange()))),
        ("a record in the middle", FIRST, with(FIRST, |bytes| in_place_of_line(&bytes, 6, &created(7, 2)))),
        (
            "the beginning of the last segment",
            SECOND,
            with(SECOND, |bytes| in_place_of_line(&bytes, 0, &created(17, 2))),
        ),
        ("the end of the last segment", SECOND, with(SECOND, |bytes| room(bytes, &created(19, 2)))),
        (
            "queue.meta",
            "queue.meta",
            with("queue.meta", |_| newer(r#""format":2,"segments":["anything",{"else":1}]}"#)),
        ),
    ];
    for (what, file, files) in cases {
        let error = refused(what, &files);
        assert!(matches!(error, LogError::Newer { format: 2, known: 1, .. }), "{what}: {error}");
        assert_eq!(error.to_string(), format!("queue/{file} is of format 2, this program knows up to 1"), "{what}");
        let early = !what.contains("middle") && !what.contains("end");
        assert_eq!(recover::refuse_newer_program(&disk_with(&files)).is_err(), early, "{what}: before a lock");
    }
    let huge = with(FIRST, |bytes| {
        in_place_of_line(&bytes, 0, &newer(r#""s":1,"t":5,"e":[{"Created":{"format":4294967298}}]}"#))
    });
    assert!(refused("a large number", &huge).to_string().contains("format 4294967298"));
}

/// A newer program that forgot to raise the number. Leaving its record out would be reading half of what it wrote.
#[test]
fn a_whole_record_with_an_event_that_is_not_known_is_refused_by_file_and_byte() {
    let paused = sealed(r#""s":7,"t":1800000000006,"e":[{"Paused":{"run":"014D2PF2DBSQQG28T5CY4TQKFF"}}]}"#);
    let files = with(FIRST, |bytes| in_place_of_line(&bytes, 6, &paused));
    let offset = files
        .iter()
        .find(|(name, _)| name == FIRST)
        .map(|(_, bytes)| bytes.split_inclusive(|&byte| byte == b'\n').take(6).map(<[u8]>::len).sum::<usize>());
    let error = refused("an unknown event", &files);
    assert_eq!(
        error.to_string(),
        format!(
            "queue/{FIRST} has a record at byte {} that is whole, and that this program cannot read: unknown variant `Paused`",
            offset.expect("the first segment")
        )
    );
    // With one byte changed it is damage like any other: skipped, and named.
    let mut damaged = files;
    let bytes = &mut damaged.iter_mut().find(|(name, _)| name == FIRST).expect("the first segment").1;
    bytes[offset.expect("the first segment") + 40] ^= 1;
    let recovery = recover::read(&disk_with(&damaged), &mut |_, _| {}).expect("damage is no refusal");
    assert_eq!(recovery.damaged.iter().map(|damage| damage.lost).collect::<Vec<_>>(), [Some((7, 7))]);
}

/// What an older program need not know may be added without a new number.
#[test]
fn a_field_that_is_not_known_is_passed_over() {
    let more =
        sealed(r#""s":12,"t":1800000000011,"e":[{"Filed":{"entry":"dlq-1800000000000-a","by":{"host":"b"}}}],"x":1}"#);
    let files = with(FIRST, |bytes| {
        let place = bytes
            .split_inclusive(|&byte| byte == b'\n')
            .position(|line| String::from_utf8_lossy(line).contains(r#""s":12,"#));
        in_place_of_line(&bytes, place.expect("record 12"), &more)
    });
    let mut frames = 0;
    let recovery = recover::read(&disk_with(&files), &mut |_, _| frames += 1).expect("it is read");
    assert_eq!((frames, recovery.damaged.len()), (events::frames().len(), 0));
}
