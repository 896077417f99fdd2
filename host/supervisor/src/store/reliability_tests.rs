//! What the reliability page promises of a damaged queue directory, tried on every byte of one.
//!
//! Bytes of every file are flipped, one at a time, and what is lost and named is looked at: all bytes of the log and of small
//! files, some of results and of a large blob, and all of them with `TM_FLIP_ALL=1` (minutes). The rest of what `verify` says,
//! and that the queue also opens, runs and can be repaired, is tried on a sample of the places, a larger one then.

use std::collections::BTreeMap;

use tm_core::record::codec;

use super::{
    disk::{Disk, How},
    recover::{self, Recovery},
    repair::repair,
    small_queue_tests::{copy, files, goes_on, make},
    verify::{Report, verify},
};

/// One in so many places; in fewer when all are asked for.
fn every(places: usize, when_all: usize) -> usize {
    if std::env::var_os("TM_FLIP_ALL").is_some() { when_all } else { places }
}

/// A segment of the log; the others are of results.
fn is_log(path: &str) -> bool {
    path.starts_with("queue/segment-") && path.ends_with(".log")
}

/// The records of the log by file: where each begins and ends, and its sequence.
fn records(files: &[(String, Vec<u8>)]) -> BTreeMap<String, Vec<(usize, usize, u64)>> {
    let mut records = BTreeMap::new();
    for (path, bytes) in files.iter().filter(|(path, _)| is_log(path)) {
        let mut lines = Vec::new();
        let mut start = 0;
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            if let Ok((sequence, _)) = codec::decode(line.strip_suffix(b"\n").unwrap_or(line)) {
                lines.push((start, start + line.len(), sequence));
            }
            start += line.len();
        }
        records.insert(path.clone(), lines);
    }
    records
}

/// The damage as a person reads it.
fn story(report: &Report) -> (String, Vec<String>, Vec<String>) {
    let blobs = report.damaged_blobs.iter().map(|blob| blob.file.clone()).collect();
    (format!("{:?} {:?}", report.log, report.damaged_results), report.damaged_letters.clone(), blobs)
}

#[test]
fn any_flipped_byte_of_a_queue_directory_costs_at_most_its_record_and_is_named() {
    let disk = make();
    let files = files(&disk);
    let records = records(&files);
    let total: u64 = records.values().map(|lines| lines.len() as u64).sum();
    assert!(total >= 300 && records.len() >= 3, "{total} records in {} segments", records.len());
    let whole = verify(&disk).unwrap();
    assert!(!whole.is_damaged() && whole.actions.is_empty() && whole.log.frames == total, "{whole:#?}");
    let mut tried = 0_usize;
    for (path, bytes) in &files {
        // A large blob is checked as a whole: its bytes are all alike. So are most of an index of results.
        let step = match path {
            _ if bytes.len() > 60_000 && !is_log(path) => every(499, 1),
            _ if path.starts_with("queue/results-") => every(13, 1),
            _ => 1,
        };
        for place in (0..bytes.len()).step_by(step) {
            let file = disk.open(path, How::Write).unwrap();
            let bad = bytes[place] ^ (1 << (place % 8));
            disk.write_at(&file, place as u64, &[bad]).unwrap();
            tried += 1;
            let lines = records.get(path);
            match lines {
                Some(lines) => check_log(path, place, lines, total, &recover::read(&disk, &mut |_, _| {}).unwrap()),
                None => check_other(path, place, total, &verify(&disk).unwrap()),
            }
            if tried.is_multiple_of(every(1013, 101)) {
                let report = verify(&disk).unwrap();
                assert_eq!(report.log, recover::read(&disk, &mut |_, _| {}).unwrap(), "{path} byte {place}");
                assert_eq!(story(&repair(&disk, true).unwrap()), story(&report), "{path} byte {place}");
                let other = copy(&self::files(&disk));
                assert!(goes_on(&other), "{path} byte {place}: the rest runs");
                drop(repair(&other, false).unwrap());
                assert!(verify(&other).unwrap().log.damaged.is_empty(), "{path} byte {place}: repaired");
            }
            disk.write_at(&file, place as u64, &bytes[place..=place]).unwrap();
        }
    }
}

/// No file but a segment costs a record; each that is ever read is named.
fn check_other(path: &str, place: usize, total: u64, report: &Report) {
    let at = || format!("{path} byte {place}: {report:#?}");
    assert_eq!((report.log.frames, report.log.damaged.len(), report.log.cut_bytes), (total, 0, 0), "{}", at());
    let never_read = path.ends_with("queue.offset") || path.ends_with("idempotency.json");
    let rebuilt = report.actions.iter().any(|action| format!("{action:?}").contains(path));
    let result = report.damaged_results.iter().any(|damaged| damaged.file == path);
    let letter = report.damaged_letters.iter().any(|file| file == path);
    let blob = report.damaged_blobs.iter().any(|blob| blob.file == path);
    assert!(never_read || rebuilt || result || letter || blob, "{}", at());
}

fn check_log(path: &str, place: usize, lines: &[(usize, usize, u64)], total: u64, log: &Recovery) {
    let at = || format!("{path} byte {place}: {log:#?}");
    assert!(log.frames + 1 >= total, "{}", at());
    assert!(log.cut_bytes > 0 || !log.damaged.is_empty(), "named: {}", at());
    for damage in log.damaged.iter().filter(|damage| damage.bytes > 0) {
        let range = damage.offset..damage.offset + damage.bytes;
        assert!(damage.file == path && range.contains(&(place as u64)), "{}", at());
    }
    if log.frames < total {
        let held = lines.iter().find(|(start, end, _)| (*start..*end).contains(&place)).map(|line| line.2);
        let lost: Vec<_> = log.damaged.iter().filter_map(|damage| damage.lost).collect();
        // The first record of all may go without a gap before it.
        assert!(lost.iter().all(|lost| Some(lost.0) == held && lost.0 == lost.1), "{}", at());
        assert!(!lost.is_empty() || held == Some(1), "{}", at());
    }
}
