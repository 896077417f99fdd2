//! Going on in a log in which records stand out of their place: what counted goes on counting, and nothing else begins to.

use proptest::{collection::vec, prelude::*};
use tm_core::record::codec;

use super::{
    disk::{Disk, How, MemDisk},
    log_tests::{frame, open, put, small},
    meta::{META, Meta},
    segment,
};

/// What a segment holds, one after the other.
#[derive(Clone, Copy, Debug)]
enum Part {
    Record(u64),
    /// A line that is no record.
    Bad,
    /// A line that lost its end, and the record behind it.
    Behind(u64),
}

use Part::{Bad, Behind, Record};

fn bytes(parts: &[Part]) -> Vec<u8> {
    let line = |sequence| {
        let mut line = Vec::new();
        codec::encode(&frame(sequence), sequence, &mut line);
        line
    };
    let bad = &line(1)[..60];
    let part = |part: &Part| match part {
        Record(sequence) => line(*sequence),
        Bad => [bad, b"\n"].concat(),
        Behind(sequence) => [bad, &line(*sequence)].concat(),
    };
    parts.iter().flat_map(part).collect()
}

fn write(disk: &MemDisk, path: &str, bytes: &[u8]) {
    let file = disk.open(path, How::CreateNew).unwrap();
    disk.write_at(&file, 0, bytes).unwrap();
}

/// A queue of these segments; one behind them is gone, or none is.
fn queue(segments: &[Vec<Part>], missing: bool) -> MemDisk {
    let disk = MemDisk::default();
    for (no, parts) in (1..).zip(segments) {
        write(&disk, &segment::path(no), &bytes(parts));
    }
    if missing {
        let active_segment = segments.len() as u64 + 1;
        write(&disk, META, &Meta { format: 1, oldest_segment: 1, active_segment, room_bytes: 0 }.bytes());
    }
    disk
}

/// What counts before a record more, with that one, and with another one in the segment behind it. Returns the first.
fn goes_on(disk: &MemDisk) -> Vec<u64> {
    let (log, recovery, seen) = open(disk, small());
    drop(log);
    let (mut log, again, mut counts) = open(disk, small());
    assert_eq!((again.next_sequence, &counts), (recovery.next_sequence, &seen), "a second opening finds the same");
    for n in [1001, 1002] {
        if n == 1002 {
            assert!(log.close_segment(200).unwrap());
        }
        put(&mut log, [n]);
        drop(log);
        counts.push(n);
        let (opened, after, now) = open(disk, small());
        assert_eq!(now, counts, "before {:#?}, after {:#?}", recovery.damaged, after.damaged);
        log = opened;
    }
    seen
}

/// Found by fuzzing: 6 had told that 4 is in its place, until a segment began behind it that 6 is too high for.
#[test]
fn what_a_foreign_record_tells_of_the_one_before_it_stays_told_when_a_segment_begins_behind_it() {
    for missing in [false, true] {
        let disk = queue(&[vec![Record(1), Bad, Record(4), Record(6), Record(3), Record(5)]], missing);
        assert_eq!(goes_on(&disk), [1, 4, 5]);
    }
}

#[test]
fn a_segment_that_begins_with_a_foreign_record_is_no_foreign_one_when_another_begins_behind_it() {
    for missing in [false, true] {
        let disk = queue(&[vec![Record(1), Record(2)], vec![Bad, Record(900), Record(4), Record(5)]], missing);
        assert_eq!(goes_on(&disk), [1, 2, 4, 5]);
    }
}

#[test]
fn a_record_behind_a_lost_line_end_is_found_behind_a_gap_and_tells_of_no_other_one() {
    let gap = queue(&[vec![Record(1), Bad, Record(3), Behind(5), Record(6)]], false);
    assert_eq!(goes_on(&gap), [1, 3, 5, 6]);
    let foreign = queue(&[vec![Record(1), Record(2)], vec![Record(900), Behind(3), Record(4)]], false);
    assert_eq!(goes_on(&foreign), [1, 2, 4]);
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        14 => (1..=12u64).prop_map(Record),
        4 => (1..=9u64).prop_map(Behind),
        2 => Just(Bad),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn going_on_behind_any_records_changes_nothing_that_counts(
        segments in vec(vec(part(), 0..7), 1..5),
        missing in any::<bool>(),
    ) {
        goes_on(&queue(&segments, missing));
    }
}
