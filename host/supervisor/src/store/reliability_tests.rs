//! What the reliability page promises of a damaged queue directory, tried on every byte of one.
//!
//! Every byte of every file is flipped and the log read again; the rest of what `verify` says, and that the queue also
//! opens, runs and can be repaired, is tried on a sample of the places, and on all of them with `TM_FLIP_ALL=1`.

use std::collections::BTreeMap;

use tm_core::record::codec;

use super::{
    disk::{Disk, How, MemDisk},
    recover::{self, Recovery},
    repair::repair,
    small_queue_tests::{copy, files, goes_on, make, put},
    verify::{Report, verify},
};

/// One in so many places, or all of them when that is asked for.
fn every(places: usize) -> usize {
    if std::env::var_os("TM_FLIP_ALL").is_some() { 1 } else { places }
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
            _ if bytes.len() > 60_000 && !is_log(path) => every(499),
            _ if path.starts_with("queue/results-") => every(13),
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
            if tried.is_multiple_of(every(1013)) {
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

/// What a file of this kind is called, without its number.
fn kind(path: &str) -> String {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let folder = path.strip_suffix(name).unwrap_or_default();
    let folder = if folder.starts_with("store/blobs") { "store/blobs/" } else { folder };
    match name.rsplit_once('.') {
        Some((_, ending)) if name.starts_with("segment-") || name.starts_with("dlq-") => format!("{folder}*.{ending}"),
        None => format!("{folder}*"),
        _ => path.to_owned(),
    }
}

/// Reading, repairing and running after a change of whole files. Records that are lost are named.
fn check_change(what: &str, disk: &MemDisk, total: u64) -> Report {
    let before = files(disk);
    let report = verify(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let dry = repair(disk, true).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(story(&dry), story(&report), "{what}");
    assert_eq!(files(disk), before, "{what}: reading changes nothing (I12)");
    if report.log.frames < total {
        assert!(report.is_damaged() || report.log.cut_bytes > 0, "{what}: {} of {total}", report.log.frames);
    }
    let other = copy(&before);
    assert!(goes_on(&other), "{what}: the rest runs");
    drop(repair(&other, false).unwrap_or_else(|error| panic!("{what}: {error}")));
    let again = verify(&other).unwrap().log.damaged;
    assert!(again.is_empty(), "{what}: after a repair {again:#?}");
    report
}

#[test]
fn cut_emptied_doubled_deleted_and_swapped_files_are_named_and_the_rest_runs() {
    let disk = make();
    let whole = files(&disk);
    let records = records(&whole);
    let total: u64 = records.values().map(|lines| lines.len() as u64).sum();
    let with = |path: &str, bytes: Option<&[u8]>| {
        let files = copy(&whole);
        match bytes {
            Some(bytes) => put(&files, path, bytes),
            None => files.unlink(path).unwrap(),
        }
        files
    };
    let mut kinds: BTreeMap<String, Vec<&(String, Vec<u8>)>> = BTreeMap::new();
    whole.iter().for_each(|file| kinds.entry(kind(&file.0)).or_default().push(file));
    for (path, bytes) in &whole {
        let doubled = [bytes.as_slice(), bytes].concat();
        let damaged = [
            ("cut", with(path, Some(&bytes[..bytes.len() / 2]))),
            ("emptied", with(path, Some(b""))),
            ("doubled", with(path, Some(&doubled))),
            ("deleted", with(path, None)),
        ];
        for (how, disk) in &damaged {
            let report = check_change(&format!("{how} {path}"), disk, total);
            if path.starts_with("store/blobs/") {
                assert!(report.damaged_blobs.iter().any(|blob| blob.file == *path), "{how} {path}: {report:#?}");
            }
            if records.contains_key(path) && *how != "doubled" {
                let named = report.log.damaged.iter().any(|damage| damage.file == *path);
                // A first segment that is missing is named by the one after it.
                let first = records.keys().next() == Some(path);
                assert!(named || first && report.is_damaged(), "{how} {path}: {report:#?}");
            }
        }
    }
    for (path, lines) in &records {
        let bytes = &whole.iter().find(|(other, _)| other == path).unwrap().1;
        for (place, (_, end, sequence)) in lines.iter().enumerate() {
            let disk = with(path, Some(&bytes[..*end]));
            let report = verify(&disk).unwrap();
            let rest = lines.len() - place - 1;
            assert_eq!(report.log.frames, total - rest as u64, "{path} cut after record {sequence}");
            let named = report.log.damaged.iter().any(|damage| damage.lost.is_some_and(|lost| lost.0 == sequence + 1));
            assert_eq!(named, rest > 0, "{path} cut after record {sequence}: {:#?}", report.log.damaged);
        }
    }
    for (kind, files) in kinds {
        let [.., one, other] = files.as_slice() else { continue };
        let disk = with(&one.0, Some(&other.1));
        put(&disk, &other.0, &one.1);
        let report = check_change(&format!("two of {kind} swapped"), &disk, total);
        let told = report.is_damaged() || !report.actions.is_empty();
        assert!(told, "two of {kind} swapped: {report:#?}");
    }
}
