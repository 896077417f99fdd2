//! Verify tells what recovery does, and repair makes it true for good.

use std::ops::ControlFlow;

use tm_core::{api::DlqEntry, record::codec};

use super::{
    disk::{Disk, How, MemDisk, read_whole},
    dlq::{Dlq, Place},
    log_tests::{frame, open, put, small},
    repair::repair,
    segment,
    small_queue_tests::{make as make_queue, put as put_file},
    verify::{Action, verify},
};

fn damaged_queue() -> MemDisk {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..24);
    log.close().unwrap();
    let file = disk.open(&segment::path(1), How::Write).unwrap();
    disk.write_at(&file, 150, b"#").unwrap();
    let active = segment::path(3);
    let end = read_whole(&disk, &active, 1 << 20).unwrap().iter().rposition(|&byte| byte != b'\n').unwrap() as u64;
    let file = disk.open(&active, How::Write).unwrap();
    disk.write_at(&file, end + 2, b"{\"c\":\"torn").unwrap();
    disk
}

fn names(actions: &[Action]) -> Vec<&'static str> {
    let mut names: Vec<_> = actions
        .iter()
        .map(|action| match action {
            Action::Cut { .. } => "cut",
            Action::KeepAside { .. } => "keep-aside",
            Action::RebuildIndex { .. } => "rebuild-index",
            Action::Blank { .. } => "blank",
            Action::MoveAway { .. } => "move-away",
            Action::WriteLetter { .. } => "write-letter",
        })
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn verify_and_a_dry_run_tell_the_story_of_recovery_and_change_nothing() {
    let disk = damaged_queue();
    let before = disk.list("queue").unwrap();
    let told = verify(&disk).unwrap();
    assert_eq!(names(&told.actions), ["cut", "keep-aside", "rebuild-index"]);
    assert!(told.is_damaged() && told.log.cut_bytes == 11);
    let dry = repair(&disk, true).unwrap();
    assert_eq!(names(&dry.actions), ["blank", "cut", "keep-aside", "rebuild-index"]);
    assert_eq!(disk.list("queue").unwrap(), before);
    let (_, recovery, _) = open(&disk, small());
    assert_eq!((&recovery, &dry.log), (&told.log, &told.log));
}

#[test]
fn after_a_repair_nothing_is_named_any_more_and_no_good_record_is_lost() {
    let disk = damaged_queue();
    let told = repair(&disk, false).unwrap();
    assert_eq!(told.log.damaged[0].lost, Some((2, 2)));
    let again = verify(&disk).unwrap();
    assert_eq!((again.actions.as_slice(), again.is_damaged(), again.log.frames), (&[][..], false, told.log.frames));
    let aside: Vec<_> = disk.list("queue/damaged").unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(aside.len(), 2, "the bytes and what was lost: {aside:?}");
    let (mut log, _, seen) = open(&disk, small());
    assert_eq!(seen.len(), 23);
    put(&mut log, 24..25);
}

#[test]
fn a_segment_of_another_log_is_moved_away() {
    let (disk, other) = (MemDisk::default(), MemDisk::default());
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..24);
    log.close().unwrap();
    let (mut log, ..) = open(&other, small());
    put(&mut log, 0..5);
    log.close().unwrap();
    let file = disk.open(&segment::path(4), How::CreateNew).unwrap();
    disk.write_at(&file, 0, &read_whole(&other, &segment::path(1), 1 << 20).unwrap()).unwrap();
    assert_eq!(repair(&disk, false).unwrap().log.frames, 24);
    let again = verify(&disk).unwrap();
    assert_eq!((again.is_damaged(), again.log.frames), (false, 24));
}

/// A queue of so many segments, stopped without a clean stop.
fn segments(count: u64) -> MemDisk {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, small());
    for n in 0.. {
        if log.segment() == count {
            break;
        }
        put(&mut log, n..n + 1);
    }
    disk
}

/// Makes these segments those of another log.
fn foreign(disk: &MemDisk, numbers: &[u64]) {
    let mut bytes = Vec::new();
    (5000..5003).for_each(|sequence| codec::encode(&frame(sequence), sequence, &mut bytes));
    for &no in numbers {
        let file = disk.open(&segment::path(no), How::Replace).unwrap();
        disk.write_at(&file, 0, &bytes).unwrap();
    }
}

#[test]
fn what_a_repair_has_accepted_is_not_named_again() {
    for numbers in [&[1][..], &[2, 3], &[1, 2], &[4], &[2, 4]] {
        let disk = segments(6);
        foreign(&disk, numbers);
        let before = verify(&disk).unwrap();
        assert!(before.is_damaged(), "{numbers:?}");
        repair(&disk, false).unwrap();
        let after = verify(&disk).unwrap();
        assert_eq!((after.log.damaged, after.actions), (vec![], vec![]), "{numbers:?}");
        assert_eq!(after.log.frames, before.log.frames, "{numbers:?}");
    }
}

#[test]
fn an_index_is_told_of_that_opening_makes_again_because_the_newest_segment_is_gone() {
    let disk = segments(3);
    for path in [segment::path(3), segment::index_path(2)] {
        disk.unlink(&path).unwrap();
    }
    let told = verify(&disk).unwrap().actions;
    let file = segment::index_path(2);
    assert!(told.contains(&Action::RebuildIndex { file: file.clone() }), "{told:#?}");
    drop(open(&disk, small()));
    assert!(disk.open(&file, How::Read).is_ok());
}

/// The file of a pending letter is a copy of what the log says: a repair writes it again.
#[test]
fn a_lost_or_damaged_file_of_a_pending_letter_is_named_and_written_again_by_a_repair() {
    let disk = make_queue();
    let mut entries: Vec<DlqEntry> = Vec::new();
    let read = |disk: &MemDisk, entries: &mut Vec<DlqEntry>| {
        Dlq::reading(disk.clone())
            .newest_first(Place::Pending, &mut |entry| {
                entries.push(entry);
                ControlFlow::Continue(())
            })
            .unwrap()
    };
    read(&disk, &mut entries);
    let path = |at: usize| format!("dlq/pending/{}.json", entries[at].entry_id);
    disk.unlink(&path(0)).unwrap();
    put_file(&disk, &path(1), b"{}");
    let report = verify(&disk).unwrap();
    assert_eq!(
        (report.missing_letters.as_slice(), report.damaged_letters.as_slice()),
        (&[path(0)][..], &[path(1)][..])
    );
    let report = repair(&disk, false).unwrap();
    assert!(!report.stays_damaged());
    let mut again = Vec::new();
    assert_eq!(read(&disk, &mut again), [""; 0]);
    assert_eq!(again, entries);
    assert!(!verify(&disk).unwrap().is_damaged());
}
