//! What recovery does with bytes that are not what was written.

use tm_core::{
    queue::event::{Event, Frame},
    record::codec,
    time::Millis,
};

use super::{
    disk::{Disk, How, Later, MemDisk, perform, read_whole},
    log::{Log, LogError, LogOptions},
    log_tests::{frame, open, put, small},
    recover::{self, Why},
};

fn write(disk: &MemDisk, path: &str, bytes: &[u8]) {
    let file = disk.open(path, How::Replace).unwrap();
    disk.write_at(&file, 0, bytes).unwrap();
}

fn segment(disk: &MemDisk, no: u64) -> Vec<u8> {
    read_whole(disk, &super::segment::path(no), 1 << 30).unwrap()
}

fn line(sequence: u64, n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    codec::encode(&frame(n), sequence, &mut out);
    out
}

/// A queue of one segment with these bytes.
fn queue(parts: &[&[u8]]) -> MemDisk {
    let disk = MemDisk::default();
    write(&disk, "queue/segment-000001.log", &parts.concat());
    disk
}

fn whole(disk: &MemDisk) -> Vec<(String, Vec<u8>)> {
    let files = disk.list("queue").unwrap();
    files
        .into_iter()
        .filter_map(|e| Some((e.name.clone(), read_whole(disk, &format!("queue/{}", e.name), 1 << 30).ok()?)))
        .collect()
}

#[test]
fn any_flipped_byte_of_a_small_queue_costs_at_most_its_record_and_reading_changes_nothing() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..24);
    log.close().unwrap();
    let files = whole(&disk);
    assert!(files.len() >= 6, "two closed segments at least");
    for (name, bytes) in &files {
        for place in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[place] ^= 0x10;
            let damaged = MemDisk::default();
            for (other, bytes) in &files {
                write(&damaged, &format!("queue/{other}"), if other == name { &bad } else { bytes });
            }
            let before = whole(&damaged);
            let mut read = Vec::new();
            let report = recover::read(&damaged, &mut |frame, _| read.push(super::log_tests::number(&frame))).unwrap();
            assert_eq!(whole(&damaged), before, "reading changes nothing (I12)");
            let lost: Vec<_> = (0..24).filter(|n| !read.contains(n)).collect();
            assert!(lost.len() <= 1 && read.is_sorted(), "{name} byte {place}: lost {lost:?}");
            if name.ends_with(".log") {
                let named = report.cut_bytes > 0 || !report.damaged.is_empty();
                assert!(named, "{name} byte {place} is named");
                for damage in report.damaged.iter().filter(|damage| damage.bytes > 0) {
                    assert!(damage.file.ends_with(name.as_str()));
                    let range = damage.offset..damage.offset + damage.bytes;
                    assert!(range.contains(&(place as u64)), "{name} byte {place}: {damage:?}");
                }
            }
            let (mut log, recovery, seen) = open(&damaged, small());
            assert_eq!((seen, &recovery), (read, &report), "recovery does what reading says");
            put(&mut log, 100..103);
            drop(log);
            let (.., seen) = open(&damaged, small());
            assert_eq!(seen[seen.len() - 3..], [100, 101, 102], "{name} byte {place}: it goes on");
        }
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_length() {
    let (good, next) = ([line(1, 0), line(2, 1)].concat(), line(3, 2));
    for bytes in 1..next.len() - 1 {
        for padding in [0, 100] {
            let disk = queue(&[&good, &next[..bytes], &vec![b'\n'; padding]]);
            let (mut log, recovery, seen) = open(&disk, small());
            assert_eq!((seen, recovery.cut_bytes > 0, recovery.damaged.len()), (vec![0, 1], true, 0), "{bytes}");
            put(&mut log, 7..8);
            drop(log);
            let (_, recovery, seen) = open(&disk, small());
            assert_eq!((seen, recovery.cut_bytes, recovery.damaged.len()), (vec![0, 1, 7], 0, 0), "{bytes}");
        }
    }
}

#[test]
fn a_whole_record_without_its_newline_is_kept() {
    let (first, second) = (line(1, 0), line(2, 1));
    let disk = queue(&[&first, &second[..second.len() - 1]]);
    let (mut log, recovery, seen) = open(&disk, small());
    assert_eq!((seen, recovery.cut_bytes, recovery.damaged.len()), (vec![0, 1], 0, 0));
    put(&mut log, 2..3);
    drop(log);
    assert_eq!(open(&disk, small()).2, [0, 1, 2]);
}

#[test]
fn a_bad_tail_that_a_clean_stop_had_seen_whole_is_damage_not_a_torn_tail() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..3);
    log.close().unwrap();
    let mut bytes = segment(&disk, 1);
    let last = bytes.windows(5).rposition(|w| w == b"dlq-2").unwrap();
    bytes[last] ^= 1;
    write(&disk, "queue/segment-000001.log", &bytes);
    let (mut log, recovery, seen) = open(&disk, small());
    assert_eq!((seen, recovery.cut_bytes), (vec![0, 1], 0));
    assert_eq!(recovery.damaged[0].lost, Some((3, 3)));
    let aside = disk.list("queue/damaged").unwrap();
    assert_eq!((aside.len(), aside[0].size_bytes), (1, recovery.damaged[0].bytes));
    put(&mut log, 5..6);
    drop(log);
    assert_eq!(open(&disk, small()).2, [0, 1, 5]);
}

#[test]
fn records_missing_at_the_end_after_a_clean_stop_are_named() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..3);
    log.close().unwrap();
    write(&disk, "queue/segment-000001.log", &[line(1, 0), line(2, 1)].concat());
    let (_, recovery, seen) = open(&disk, small());
    assert_eq!(
        (seen, &recovery.damaged[0].why, recovery.damaged[0].lost),
        (vec![0, 1], &Why::MissingEnd, Some((3, 3)))
    );
}

#[test]
fn a_gap_a_doubled_and_a_foreign_record_are_named_and_cost_no_others() {
    let gap = queue(&[&line(1, 0), &line(4, 3), &line(5, 4)]);
    let (_, recovery, seen) = open(&gap, small());
    assert_eq!((seen, &recovery.damaged[0].why, recovery.damaged[0].lost), (vec![0, 3, 4], &Why::Gap, Some((2, 3))));

    let doubled = queue(&[&line(1, 0), &line(2, 1), &line(1, 0), &line(3, 2)]);
    let (_, recovery, seen) = open(&doubled, small());
    assert_eq!(seen, [0, 1, 2]);
    assert_eq!(
        recovery.damaged.iter().map(|d| &d.why).collect::<Vec<_>>(),
        [&Why::Doubled { sequence: 1, expected: 3 }]
    );

    let foreign = queue(&[&line(1, 0), &line(900, 77), &line(2, 1), &line(3, 2)]);
    let (log, recovery, seen) = open(&foreign, small());
    assert_eq!((seen, log.next_sequence()), (vec![0, 1, 2], 4));
    assert_eq!(
        recovery.damaged.iter().map(|d| &d.why).collect::<Vec<_>>(),
        [&Why::Foreign { sequence: 900, expected: 2 }]
    );
}

#[test]
fn a_segment_of_another_log_is_left_out_whole() {
    let disk = MemDisk::default();
    write(&disk, "queue/segment-000001.log", &[line(1, 0), line(2, 1)].concat());
    write(&disk, "queue/segment-000002.log", &[line(5000, 70), line(5001, 71)].concat());
    write(&disk, "queue/segment-000003.log", &[line(3, 2), line(4, 3)].concat());
    let (mut log, recovery, seen) = open(&disk, small());
    assert_eq!(seen, [0, 1, 2, 3]);
    assert_eq!(recovery.damaged.iter().map(|d| &d.why).collect::<Vec<_>>(), [&Why::ForeignSegment { first: 5000 }]);
    put(&mut log, 4..5);
    assert_eq!(log.segment(), 3);

    write(&disk, "queue/segment-000004.log", &[line(1, 70)].concat());
    let (log, _, seen) = open(&disk, small());
    assert_eq!((seen, log.segment()), (vec![0, 1, 2, 3, 4], 5), "a foreign newest segment is not written to");
}

#[test]
fn a_missing_first_segment_is_named() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..50);
    log.close().unwrap();
    perform(&disk, Later::Unlink { path: super::segment::path(1) });
    assert_eq!(open(&disk, small()).1.damaged[0].why, Why::MissingStart);
}

#[test]
fn a_queue_without_any_segment_is_not_taken_for_a_new_one() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, LogOptions::default());
    put(&mut log, 0..5);
    log.close().unwrap();
    perform(&disk, Later::Unlink { path: super::segment::path(1) });
    let report = recover::read(&disk, &mut |_, _| {}).unwrap();
    assert_eq!(report.damaged.iter().map(|d| &d.why).collect::<Vec<_>>(), [&Why::MissingAll]);
    super::repair::repair(&disk, false).unwrap();
    assert_eq!(recover::read(&disk, &mut |_, _| {}).unwrap().damaged, []);
}

#[test]
fn segments_that_are_missing_at_the_end_are_named_until_a_repair() {
    for gone in [1, 2] {
        let disk = MemDisk::default();
        let (mut log, ..) = open(&disk, small());
        put(&mut log, 0..50);
        let active = log.segment();
        // An unclean stop.
        drop(log);
        for no in active + 1 - gone..=active {
            perform(&disk, Later::Unlink { path: super::segment::path(no) });
        }
        let first = active + 1 - gone;
        let report = recover::read(&disk, &mut |_, _| {}).unwrap();
        let named: Vec<_> = report.damaged.iter().map(|damage| (damage.file.as_str(), damage.why.clone())).collect();
        let file = super::segment::path(first);
        assert_eq!(named, [(file.as_str(), Why::Missing { first, last: active })]);
        // Its number is not given a second time, so that the gap goes on telling.
        let (mut log, recovery, seen) = open(&disk, small());
        assert_eq!((log.segment(), &recovery), (active + 1, &report));
        put(&mut log, 100..120);
        log.close().unwrap();
        let (_, recovery, now) = open(&disk, small());
        assert_eq!(now, seen.into_iter().chain(100..120).collect::<Vec<_>>());
        assert_eq!(
            recovery.damaged.iter().map(|d| &d.why).collect::<Vec<_>>(),
            [&Why::Missing { first, last: active }]
        );
        super::repair::repair(&disk, false).unwrap();
        assert_eq!(open(&disk, small()).1.damaged, []);
    }
}

#[test]
fn a_missing_middle_segment_is_named_with_what_is_lost() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..50);
    log.close().unwrap();
    perform(&disk, Later::Unlink { path: super::segment::path(2) });
    let damaged = recover::read(&disk, &mut |_, _| {}).unwrap().damaged;
    assert_eq!((damaged.len(), damaged[0].file.as_str()), (1, "queue/segment-000002.log"));
    assert!(damaged[0].lost.is_some_and(|(first, last)| 1 < first && first < last), "{damaged:#?}");
    super::repair::repair(&disk, false).unwrap();
    assert_eq!(open(&disk, small()).1.damaged, []);
}

#[test]
fn an_emptied_newest_segment_is_named_after_an_unclean_stop_too() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, LogOptions::default());
    put(&mut log, 0..5);
    drop(log);
    write(&disk, &super::segment::path(1), b"");
    let damaged = recover::read(&disk, &mut |_, _| {}).unwrap().damaged;
    assert!(matches!(damaged[..], [recover::Damage { why: Why::Short { file_bytes: 0, .. }, .. }]), "{damaged:#?}");
}

#[test]
fn a_newest_segment_that_was_barely_begun_is_not_missed_when_it_is_gone() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..30);
    let last = log.segment();
    drop(log);
    // The rotation's name of the new segment was durable, and its file has less room than the one before it.
    let mut bytes = segment(&disk, last - 1);
    bytes.resize(bytes.len() + 4096, b'\n');
    write(&disk, &super::segment::path(last - 1), &bytes);
    write(&disk, &super::segment::path(last), b"\n");
    drop(open(&disk, small()));
    assert!(recover::read(&disk, &mut |_, _| {}).unwrap().damaged.is_empty());
}

#[test]
fn a_segment_that_was_barely_begun_stays_where_a_later_one_is_missing() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..50);
    let last = log.segment();
    drop(log);
    let mut bytes = segment(&disk, last - 2);
    bytes.resize(bytes.len() + 4096, b'\n');
    write(&disk, &super::segment::path(last - 2), &bytes);
    write(&disk, &super::segment::path(last - 1), b"\n");
    perform(&disk, Later::Unlink { path: super::segment::index_path(last - 1) });
    perform(&disk, Later::Unlink { path: super::segment::path(last) });
    let report = super::repair::repair(&disk, false).unwrap();
    let missing = Why::Missing { first: last, last };
    assert_eq!(report.log.damaged.iter().map(|damage| &damage.why).collect::<Vec<_>>(), [&missing]);
    assert!(disk.open(&super::segment::path(last - 1), How::Read).is_ok());
    assert_eq!(recover::read(&disk, &mut |_, _| {}).unwrap().damaged, []);
}

#[test]
fn text_in_a_payload_that_looks_like_a_record_is_never_taken_for_one() {
    // The enclosing line is torn exactly where the tenant's text ends.
    let mut out = Vec::new();
    codec::encode(&frame(900), 900, &mut out);
    let head = br#"{"c":"00000000","s":2,"t":5,"e":[{"Enqueued":{"input":{"json":"#;
    let disk = queue(&[&line(1, 0), head, &out, b"\n\n\n"]);
    let (_, recovery, seen) = open(&disk, small());
    assert_eq!(seen, [0]);
    assert!(recovery.cut_bytes > 0);
}

#[test]
fn a_line_longer_than_any_record_is_damage_and_the_next_record_is_found() {
    let long = vec![b'x'; super::segment::LINE_MAX_BYTES + 3_000_000];
    let disk = queue(&[&line(1, 0), &long, &line(2, 1), &line(3, 2)]);
    let mut seen = Vec::new();
    let report = recover::read(&disk, &mut |frame, _| seen.push(super::log_tests::number(&frame))).unwrap();
    assert_eq!((seen, report.damaged.len(), report.damaged[0].bytes), (vec![0, 1, 2], 1, long.len() as u64));
    assert_eq!(report.damaged[0].why, Why::TooLong);
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let mut out = Vec::new();
    codec::encode(&Frame { at: Millis(1), events: vec![Event::Created { secret: [0; 16], format: 2 }] }, 1, &mut out);
    let disk = queue(&[&out]);
    let error = Log::open(disk.clone(), LogOptions::default(), &mut |_, _| {}).err().expect("refused");
    assert!(matches!(error, LogError::Newer { format: 2, known: 1, .. }));
    assert_eq!(error.to_string(), "queue/segment-000001.log is of format 2, this program knows up to 1");
}

#[test]
fn an_index_that_disagrees_is_built_again() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..30);
    log.close().unwrap();
    let path = super::segment::index_path(1);
    let good = read_whole(&disk, &path, 1 << 20).unwrap();
    for bad in
        [&b"{}\n"[..], &good[..good.len() - 3], &read_whole(&disk, &super::segment::index_path(2), 1 << 20).unwrap()]
    {
        write(&disk, &path, bad);
        drop(open(&disk, small()));
        assert_eq!(read_whole(&disk, &path, 1 << 20).unwrap(), good);
    }
}

#[test]
fn a_record_that_is_out_of_its_place_at_the_end_is_not_written_over() {
    for (what, strange) in [("doubled", line(1, 0)), ("foreign", line(900, 77))] {
        // A foreign one is told by what comes behind it.
        let behind = if what == "foreign" { line(3, 2) } else { Vec::new() };
        let bytes = [line(1, 0), line(2, 1), strange, behind].concat();
        let disk = queue(&[&bytes, b"\n\n\n"]);
        let (mut log, before, mut seen) = open(&disk, small());
        assert_eq!(before.damaged.len(), 1, "{what}: {before:#?}");
        put(&mut log, 5..6);
        drop(log);
        assert_eq!(segment(&disk, 1)[..bytes.len()], bytes, "{what}");
        let (_, after, now) = open(&disk, small());
        seen.push(5);
        assert_eq!((now, after.damaged), (seen, before.damaged), "{what}");
    }
}

#[test]
fn of_two_segments_that_begin_alike_the_older_one_counts() {
    let disk = MemDisk::default();
    write(&disk, "queue/segment-000001.log", &[line(1, 0), line(2, 1)].concat());
    write(&disk, "queue/segment-000002.log", &line(1, 70));
    let (_, recovery, seen) = open(&disk, small());
    assert_eq!(seen, [0, 1]);
    assert_eq!(recovery.damaged.iter().map(|d| &d.why).collect::<Vec<_>>(), [&Why::ForeignSegment { first: 1 }]);
}

#[test]
fn a_number_that_no_segment_can_have_is_not_believed() {
    let disk = queue(&[&line(1, 0)]);
    write(&disk, "queue/segment-18446744073709551615.log", &line(2, 1));
    let meta = br#""format":1,"oldest_segment":1,"active_segment":18446744073709551615,"room_bytes":0}"#;
    let sum = crc32c::crc32c(meta);
    write(&disk, "queue/queue.meta", &[format!("{{\"c\":\"{sum:08x}\",").as_bytes(), meta, b"\n"].concat());
    let (mut log, recovery, seen) = open(&disk, small());
    assert_eq!((log.segment(), seen, recovery.damaged), (1, vec![0], vec![]));
    put(&mut log, 1..30);
    assert!(log.segment() > 1);
}
