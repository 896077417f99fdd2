//! What the log promises while it is written.

use std::sync::atomic::Ordering::SeqCst;

use tm_core::{
    queue::event::{Event, Frame},
    time::Millis,
};

use super::{
    disk::{Disk, DiskError, Kind, MemDisk, RealDisk, Roots},
    faults::FaultDisk,
    log::{Fsync, Log, LogError, LogOptions},
    recover::{self, Recovery},
};

pub(super) fn frame(n: u64) -> Frame {
    Frame { at: Millis(1000 + n), events: vec![Event::Filed { entry: format!("dlq-{n}-{}", "x".repeat(40)) }] }
}

/// The number that [`frame`] was made with.
pub(super) fn number(frame: &Frame) -> u64 {
    frame.at.0 - 1000
}

pub(super) fn small() -> LogOptions {
    LogOptions { segment_max_bytes: 1000, fsync: Fsync::Always }
}

/// Opens and returns the numbers of the replayed frames.
pub(super) fn open<D: Disk>(disk: &D, options: LogOptions) -> (Log<D>, Recovery, Vec<u64>) {
    let mut seen = Vec::new();
    let (log, recovery) =
        Log::open(disk.clone(), options, &mut |frame, _| seen.push(number(&frame))).expect("the log opens");
    (log, recovery, seen)
}

pub(super) fn put<D: Disk>(log: &mut Log<D>, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        assert!(log.ensure(200).expect("room"));
        log.append(&frame(n));
        log.commit().expect("commit");
    }
}

#[test]
fn what_is_committed_is_replayed_in_order_over_segments() {
    let disk = MemDisk::default();
    let (mut log, recovery, seen) = open(&disk, small());
    assert_eq!((recovery.frames, seen.len(), log.next_sequence()), (0, 0, 1));
    put(&mut log, 0..50);
    assert!(log.closed().len() > 2, "{:?}", log.closed());
    let segment = log.segment();
    drop(log);
    let (log, recovery, seen) = open(&disk, small());
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
    assert_eq!((recovery.frames, recovery.cut_bytes, recovery.damaged.len()), (50, 0, 0));
    assert_eq!((recovery.last_at, log.next_sequence(), log.segment()), (Millis(1049), 51, segment));
}

#[test]
fn a_commit_of_many_frames_is_one_sync_and_one_without_frames_is_none() {
    let disk = FaultDisk::new(MemDisk::default());
    let (mut log, ..) = open(&disk, LogOptions::default());
    assert!(log.ensure(100_000).unwrap());
    let before = disk.syncs.load(SeqCst);
    for n in 0..256 {
        log.append(&frame(n));
    }
    log.commit().unwrap();
    log.commit().unwrap();
    assert_eq!(disk.syncs.load(SeqCst), before + 1);
}

#[test]
fn a_failed_sync_poisons_the_log_for_good() {
    let disk = FaultDisk::new(MemDisk::default());
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..3);
    disk.fail_sync.store(true, SeqCst);
    log.append(&frame(3));
    assert!(matches!(log.commit(), Err(LogError::Disk(DiskError::Io { .. }))));
    disk.fail_sync.store(false, SeqCst);
    let syncs = disk.syncs.load(SeqCst);
    assert!(matches!(log.commit(), Err(LogError::Poisoned { .. })));
    assert!(matches!(log.ensure(1), Err(LogError::Poisoned { .. })));
    assert!(matches!(log.drop_oldest(), Err(LogError::Poisoned { .. })));
    assert!(matches!(log.close(), Err(LogError::Poisoned { .. })));
    assert_eq!(disk.syncs.load(SeqCst), syncs, "a failed sync is never tried again");
}

#[test]
fn on_a_full_disk_what_was_reserved_can_still_be_committed() {
    let disk = FaultDisk::new(MemDisk::default());
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..3);
    assert!(log.ensure(5_000).unwrap());
    let size = log.size_bytes();
    disk.quota.store(100, SeqCst);
    assert!(!log.ensure(20_000).unwrap(), "no room");
    assert_eq!((disk.quota.load(SeqCst), log.size_bytes()), (100, size), "nothing is kept of a refused reservation");
    for n in 3..40 {
        log.append(&frame(n));
    }
    log.commit().unwrap();
    disk.quota.store(u64::MAX, SeqCst);
    assert!(log.ensure(20_000).unwrap(), "it resumes by itself");
    drop(log);
    assert_eq!(open(&disk, small()).2, (0..40).collect::<Vec<_>>());
}

#[test]
fn a_full_segment_goes_on_while_there_is_no_room_for_the_next_one() {
    let disk = FaultDisk::new(MemDisk::default());
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..9);
    assert!(log.ensure(4_000).unwrap());
    disk.quota.store(10, SeqCst);
    let segment = log.segment();
    put(&mut log, 9..30);
    assert_eq!(log.segment(), segment);
    disk.quota.store(u64::MAX, SeqCst);
    put(&mut log, 30..31);
    assert_eq!(log.segment(), segment + 1);
    drop(log);
    assert_eq!(open(&disk, small()).2, (0..31).collect::<Vec<_>>());
}

#[test]
fn the_next_segment_is_made_ahead_and_its_room_comes_back_when_it_is_needed() {
    let disk = FaultDisk::new(MemDisk::default());
    let has_spare = || disk.list("queue").unwrap().iter().any(|entry| entry.name == "segment.spare");
    let options = LogOptions { segment_max_bytes: 10_000, ..small() };
    let (mut log, ..) = open(&disk, options);
    let mut next = 0;
    let mut put_until = |log: &mut Log<_>, done: &dyn Fn(&Log<FaultDisk>) -> bool| {
        while !done(log) {
            put(log, next..next + 1);
            next += 1;
        }
    };
    put_until(&mut log, &|_| has_spare());
    assert!(log.written_bytes() >= 5_000, "not before half of the active one is written");
    put_until(&mut log, &|log| log.segment() == 2);
    let changes = disk.changes.load(SeqCst);
    assert!(log.ensure(9_000).unwrap());
    assert_eq!(disk.changes.load(SeqCst), changes, "its room is there already");
    put_until(&mut log, &|_| has_spare());
    disk.quota.store(3_000, SeqCst);
    assert!(log.ensure(14_000).unwrap(), "with what the next one gives back");
    assert!(!has_spare());
    disk.quota.store(u64::MAX, SeqCst);
    put_until(&mut log, &|log| log.segment() == 3);
    put_until(&mut log, &|_| has_spare());
    drop(log);
    assert!(has_spare(), "nobody closed it");
    let (log, recovery, seen) = open(&disk, options);
    assert_eq!((recovery.damaged, seen.len() as u64), (vec![], next));
    assert!(!has_spare());
    log.close().unwrap();
}

#[test]
fn a_dropped_segment_is_gone_and_the_rest_is_no_damage() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..50);
    let oldest = log.closed()[0];
    log.drop_oldest().unwrap();
    assert!(disk.list("queue").unwrap().iter().all(|entry| !entry.name.contains(&format!("{:06}", oldest.no))));
    let left = log.closed().len();
    log.close().unwrap();
    let (log, recovery, seen) = open(&disk, small());
    assert_eq!((recovery.damaged, log.closed().len()), (vec![], left));
    assert!(seen[0] > 0 && seen.is_sorted() && seen.last() == Some(&49));
}

#[test]
fn a_clean_stop_needs_no_rewriting_and_leaves_files_for_people() {
    let disk = FaultDisk::new(MemDisk::default());
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..3);
    log.close().unwrap();
    let names: Vec<_> = disk.list("queue").unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["queue.meta", "queue.offset", "segment-000001.idx", "segment-000001.log"]);
    let changes = disk.changes.load(SeqCst);
    drop(open(&disk, small()));
    assert_eq!(disk.changes.load(SeqCst), changes);
}

#[test]
fn with_an_interval_a_sync_waits_until_it_is_due() {
    let disk = FaultDisk::new(MemDisk::default());
    let (mut log, ..) = open(&disk, LogOptions { fsync: Fsync::Interval(5000), ..LogOptions::default() });
    log.append(&frame(0));
    log.commit().unwrap();
    log.append(&frame(1));
    log.commit().unwrap();
    // The first time of a new log is 0, so that its first commit is overdue.
    let syncs = disk.syncs.load(SeqCst);
    assert_eq!(log.sync_due(Millis(1001)).unwrap(), Some(Millis(5000)));
    assert_eq!(disk.syncs.load(SeqCst), syncs);
    assert_eq!(log.sync_due(Millis(5000)).unwrap(), None);
    assert_eq!(disk.syncs.load(SeqCst), syncs + 1);
}

#[test]
fn a_frame_that_no_reader_would_accept_is_never_written() {
    let disk = MemDisk::default();
    let (mut log, ..) = open(&disk, LogOptions::default());
    let entry = "x".repeat(super::segment::LINE_MAX_BYTES);
    log.append(&Frame { at: Millis(1), events: vec![Event::Filed { entry }] });
    assert!(matches!(log.commit(), Err(LogError::TooLong { .. })));
    drop(log);
    assert_eq!(open(&disk, LogOptions::default()).1.frames, 0);
}

#[test]
fn reading_a_missing_queue_says_so_and_creates_nothing() {
    let home = tempfile::tempdir().unwrap();
    let roots = Roots::below(&home.path().join("data"));
    let disk = RealDisk::existing(&roots).unwrap();
    let error = recover::read(&disk, &mut |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), format!("{} does not exist", home.path().join("data/queue").display()));
    assert!(std::fs::read_dir(home.path()).unwrap().next().is_none());
}

#[test]
fn on_a_real_disk_it_is_the_same_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let roots = Roots::below(home.path());
    let disk = RealDisk::create(&roots).unwrap();
    let (mut log, ..) = open(&disk, small());
    put(&mut log, 0..50);
    log.drop_oldest().unwrap();
    log.close().unwrap();
    for entry in disk.list("queue").unwrap() {
        assert_eq!(entry.kind, Kind::File);
        let mode = std::fs::metadata(roots.queue.join(&entry.name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", entry.name);
    }
    assert_eq!(std::fs::metadata(&roots.queue).unwrap().permissions().mode() & 0o777, 0o700);
    let (_, recovery, seen) = open(&disk, small());
    assert_eq!((recovery.damaged, seen.last()), (vec![], Some(&49)));
}
