//! Results are found by run, by key and in order, across segments, restarts and damage; they go by time and by size.

use tm_core::{
    api::RunState,
    id::FlowNo,
    json::{Json, Payload},
    queue::{
        results::{Results, key_hash},
        state::KeyName,
    },
};

use std::{collections::BTreeSet, ops::ControlFlow, sync::atomic::Ordering::SeqCst};

use super::{
    super::{
        disk::{MemDisk, read_whole},
        faults::FaultDisk,
    },
    *,
};

const SECRET: [u8; 16] = [9; 16];

fn run(no: u128, key: Option<&str>, expires_at: u64) -> FinishedRun {
    FinishedRun {
        id: RunId(no),
        flow: FlowNo(1),
        state: RunState::Succeeded,
        priority: 5,
        enqueued_at: Millis(1),
        ended_at: Millis(2),
        expires_at: Millis(expires_at),
        output: Some(Payload::Inline(Json::of(&format!("{no}{}", "x".repeat(200))))),
        key: key.map(Into::into),
        input_digest: None,
        exec_ms: 1,
        letter: None,
        tasks: Vec::new(),
    }
}

fn line(run: &FinishedRun) -> ResultLine<'_> {
    ResultLine { tenant: "default", flow: "f", run }
}

fn name(key: &str) -> KeyName {
    ("default".into(), "f".into(), key.into())
}

fn open(disk: &MemDisk, mark: &ResultsMark, max_bytes: u64) -> ResultStore<MemDisk> {
    ResultStore::write(disk.clone(), SECRET, mark, max_bytes).unwrap()
}

fn by_key(store: &ResultStore<MemDisk>, key: &str) -> Vec<u128> {
    let mut found = Vec::new();
    store.key(&name(key), &mut |run| {
        found.push(run.id.0);
        ControlFlow::Continue(())
    });
    found
}

fn all(store: &ResultStore<MemDisk>) -> Vec<u128> {
    let mut found = Vec::new();
    store.range(RunId(0), RunId(u128::MAX), &mut |run| {
        found.push(run.0);
        ControlFlow::Continue(())
    });
    found
}

/// 1,000 runs over several segments, every third with a key; ids go up and down, as runs end.
fn filled(disk: &MemDisk, max_bytes: u64) -> (ResultStore<MemDisk>, Vec<FinishedRun>) {
    let mut store = open(disk, &ResultsMark::default(), max_bytes);
    let key = |no: u128| no.is_multiple_of(3).then(|| format!("key-{no}"));
    let runs: Vec<_> = (0..1000u128).map(|no| no ^ 5).map(|no| run(no, key(no).as_deref(), 1000)).collect();
    for some in runs.chunks(7) {
        store.append(some.iter().map(line)).unwrap();
    }
    (store, runs)
}

fn check(store: &ResultStore<MemDisk>, runs: &[FinishedRun]) {
    for run in runs {
        let found = store.run(run.id).unwrap().unwrap();
        assert_eq!((found.run.output, found.flow.as_str()), (run.output.clone(), "f"));
        if let Some(key) = &run.key {
            assert_eq!(by_key(store, key), [run.id.0]);
        }
    }
    assert!(store.run(RunId(5000)).is_none() && by_key(store, "none").is_empty());
    assert_eq!(all(store), (0..1000).rev().collect::<Vec<_>>());
    assert_eq!(store.key_count(), 334);
    let mut some = Vec::new();
    store.range(RunId(400), RunId(700), &mut |run| {
        some.push(run.0);
        if some.len() < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert_eq!(some, [700, 699, 698]);
}

#[test]
fn results_are_found_by_run_by_key_and_in_order_before_and_after_a_restart() {
    let disk = MemDisk::default();
    let (store, runs) = filled(&disk, 256 * 1024);
    assert!(store.closed.len() > 5 && store.open.is_some());
    check(&store, &runs);
    let mark = store.mark();
    store.close().unwrap();
    let mark = ResultsMark { segment: mark.0, bytes: mark.1, ..ResultsMark::default() };
    let store = ResultStore::read(disk.clone(), SECRET, &mark).unwrap();
    assert_eq!(store.rebuilt().count(), 0, "every index is believed");
    check(&store, &runs);
    assert!(damaged(&disk, &SECRET, &mark).unwrap().is_empty());
    // Another secret hashes keys differently: its indexes are made again.
    let other = ResultStore::read(disk, [1; 16], &mark).unwrap();
    assert_eq!(other.rebuilt().count(), store.closed.len());
    check(&other, &runs);
}

#[test]
fn without_indexes_and_with_any_byte_of_one_changed_all_is_found() {
    let disk = MemDisk::default();
    let (store, runs) = filled(&disk, 256 * 1024);
    let mark = ResultsMark { segment: store.mark().0, bytes: store.mark().1, ..ResultsMark::default() };
    store.close().unwrap();
    let path = index_path(2);
    let bytes = super::super::disk::read_whole(&disk, &path, 1 << 20).unwrap();
    for place in (0..bytes.len()).step_by(977) {
        let file = disk.open(&path, How::Write).unwrap();
        disk.write_at(&file, place as u64, &[bytes[place] ^ 0x10]).unwrap();
        check(&ResultStore::read(disk.clone(), SECRET, &mark).unwrap(), &runs);
        disk.write_at(&file, place as u64, &bytes[place..=place]).unwrap();
    }
    for (no, _) in list(&disk).unwrap() {
        disk.unlink(&index_path(no)).unwrap();
    }
    check(&ResultStore::read(disk.clone(), SECRET, &mark).unwrap(), &runs);
    // A start writes them.
    let store = open(&disk, &mark, 1 << 20);
    assert!(disk.open(&index_path(2), How::Read).is_ok());
    check(&store, &runs);
}

#[test]
fn a_changed_byte_costs_one_result_and_is_named() {
    let disk = MemDisk::default();
    let (store, runs) = filled(&disk, 256 * 1024);
    let mark = ResultsMark { segment: store.mark().0, bytes: store.mark().1, ..ResultsMark::default() };
    store.close().unwrap();
    let bytes = super::super::disk::read_whole(&disk, &path(2), 1 << 20).unwrap();
    for place in (0..bytes.len()).step_by(499) {
        let file = disk.open(&path(2), How::Write).unwrap();
        disk.write_at(&file, place as u64, &[bytes[place] ^ 1]).unwrap();
        for with_index in [true, false] {
            if !with_index {
                disk.rename(&index_path(2), "queue/aside").unwrap();
            }
            let store = ResultStore::read(disk.clone(), SECRET, &mark).unwrap();
            let lost = runs.iter().filter(|run| !matches!(store.run(run.id), Some(Ok(_)))).count();
            assert_eq!(lost, 1, "byte {place}");
            if !with_index {
                disk.rename("queue/aside", &index_path(2)).unwrap();
            }
        }
        let named = damaged(&disk, &SECRET, &mark).unwrap();
        let holds = |found: &DamagedResults| (found.offset..=found.offset + found.bytes).contains(&(place as u64));
        assert!(named.len() == 1 && named[0].file == path(2) && holds(&named[0]), "byte {place}: {named:?}");
        disk.write_at(&file, place as u64, &bytes[place..=place]).unwrap();
    }
    disk.unlink(&path(3)).unwrap();
    let named = damaged(&disk, &SECRET, &mark).unwrap();
    assert!(named.len() == 1 && named[0].file == path(3) && named[0].missing_bytes > 0, "{named:?}");
}

#[test]
fn what_a_power_loss_left_unfinished_is_cut_and_never_becomes_damage() {
    let disk = MemDisk::default();
    let (store, runs) = filled(&disk, 256 * 1024);
    let newest = store.mark().0;
    store.close().unwrap();
    let whole = |no: u64| read_whole(&disk, &path(no), 1 << 20).unwrap();
    // What the log tells of: all of the newest segment, some of it, and none of the two newest ones.
    let half = whole(newest - 1).iter().rposition(|&byte| byte == b'\n').unwrap() as u64;
    for (segment, bytes) in [(newest, whole(newest).len() as u64), (newest - 1, half + 1), (newest - 2, 0)] {
        let mark = ResultsMark { segment, bytes, ..ResultsMark::default() };
        let disk = copied(&disk);
        for no in segment..=newest {
            let torn = [whole(no).as_slice(), b"{\"c\":\"0123"].concat();
            put(&disk, &path(no), &torn);
        }
        assert!(damaged(&disk, &SECRET, &mark).unwrap().is_empty());
        let mut store = open(&disk, &mark, 256 * 1024);
        check(&store, &runs);
        // Until the log tells of the next segment.
        for no in 2000.. {
            store.append([run(no, None, 1000)].iter().map(line)).unwrap();
            if store.mark().0 > newest {
                break;
            }
        }
        let mark = kept(&store);
        store.close().unwrap();
        assert_eq!(damaged(&disk, &SECRET, &mark).unwrap(), [], "told of up to byte {bytes} of {segment}");
        let store = ResultStore::read(disk, SECRET, &mark).unwrap();
        assert!(store.rebuilt().next().is_none() && store.run(RunId(2000)).unwrap().is_ok());
    }
}

#[test]
fn a_segment_goes_when_all_of_it_has_expired() {
    let disk = MemDisk::default();
    let mut store = open(&disk, &ResultsMark::default(), 1 << 20);
    store.segment_max_bytes = 16 * 1024;
    let runs: Vec<_> = (0..300u128).map(|no| run(no, Some("k"), 1000 + no as u64)).collect();
    for run in &runs {
        store.append([line(run)].into_iter()).unwrap();
    }
    let segments = store.closed.len();
    assert_eq!(store.next_deadline(), Some(store.closed[0].index.borrow().header.expires_last));
    let mut gone = Vec::new();
    assert_eq!(store.forget(Millis(1000), 10, &mut |run| gone.push(run.id.0)).unwrap(), None);
    assert!(gone.is_empty() && !store.is_forgetting());
    let at = store.next_deadline().unwrap();
    let mut dropped = None;
    while dropped.is_none() {
        dropped = store.forget(at, 10, &mut |run| gone.push(run.id.0)).unwrap();
    }
    store.drop_segment(dropped.unwrap());
    assert_eq!((dropped, store.closed.len()), (Some(1), segments - 1));
    assert_eq!(gone, (0..gone.len() as u128).collect::<Vec<_>>());
    assert!(store.run(RunId(0)).is_none() && store.run(RunId(299)).unwrap().is_ok());
    assert!(disk.open(&path(1), How::Read).is_err() && disk.open(&index_path(1), How::Read).is_err());
}

#[test]
fn too_many_results_go_oldest_first_and_their_keys_stay() {
    let disk = MemDisk::default();
    let mut store = open(&disk, &ResultsMark::default(), 64 * 1024);
    let runs: Vec<_> = (0..600u128).map(|no| run(no, Some(&format!("key-{no}")), 5000)).collect();
    let mut gone = BTreeSet::new();
    for run in &runs {
        store.append([line(run)].into_iter()).unwrap();
        for _ in 0..1000 {
            let Some(no) = store
                .forget(Millis(1), 64, &mut |run| {
                    gone.insert(run.id);
                })
                .unwrap()
            else {
                if store.is_forgetting() { continue } else { break }
            };
            store.drop_segment(no);
        }
    }
    assert!(gone.len() > 100 && store.full_bytes() <= 64 * 1024, "{} gone, {} bytes", gone.len(), store.full_bytes());
    assert_eq!(gone, runs[..gone.len()].iter().map(|run| run.id).collect::<BTreeSet<_>>(), "the oldest");
    for run in &runs {
        assert_eq!(by_key(&store, run.key.as_deref().unwrap()), [run.id.0]);
        let kept = store.run(run.id).unwrap().unwrap();
        assert_eq!(kept.run.output.is_some(), !gone.contains(&run.id), "{}", run.id.0);
    }
    // Those without results are few bytes, and do not go round for ever.
    assert_eq!(store.forget(Millis(1), 64, &mut |_| {}).unwrap(), None);
    assert!(!store.is_forgetting());
}

#[test]
fn on_a_full_disk_nothing_is_half_kept() {
    let memory = MemDisk::default();
    let disk = FaultDisk::new(memory.clone());
    let mut store = ResultStore::write(disk.clone(), SECRET, &ResultsMark::default(), 1 << 20).unwrap();
    store.append([line(&run(1, None, 9))].into_iter()).unwrap();
    let kept = store.mark();
    disk.quota.store(100, SeqCst);
    let error = store.append([line(&run(2, None, 9))].into_iter()).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(store.mark(), kept);
    assert!(store.run(RunId(2)).is_none());
    disk.quota.store(1 << 20, SeqCst);
    store.append([line(&run(3, None, 9))].into_iter()).unwrap();
    let mark = ResultsMark { segment: store.mark().0, bytes: store.mark().1, ..ResultsMark::default() };
    store.close().unwrap();
    assert!(damaged(&memory, &SECRET, &mark).unwrap().is_empty());
    assert_eq!(all(&ResultStore::read(memory, SECRET, &mark).unwrap()), [3, 1]);
}

#[test]
fn a_failed_sync_is_told_and_not_tried_again() {
    let disk = FaultDisk::new(MemDisk::default());
    let mut store = ResultStore::write(disk.clone(), SECRET, &ResultsMark::default(), 1 << 20).unwrap();
    store.append([line(&run(1, None, 9))].into_iter()).unwrap();
    disk.fail_sync.store(true, SeqCst);
    assert!(store.sync_beside(true).is_err() || store.sync_beside(true).is_err());
}

#[test]
fn keys_of_other_scopes_are_other_keys() {
    let of = |tenant, flow, key| key_hash(&SECRET, tenant, flow, key);
    assert_ne!(of("a", "bc", "d"), of("ab", "c", "d"));
    let disk = MemDisk::default();
    let mut store = open(&disk, &ResultsMark::default(), 1 << 20);
    store.append([line(&run(1, Some("k"), 9))].into_iter()).unwrap();
    let mut found = 0;
    store.key(&("other".into(), "f".into(), "k".into()), &mut |_| {
        found += 1;
        ControlFlow::Continue(())
    });
    assert_eq!((found, by_key(&store, "k").len()), (0, 1));
}

fn kept(store: &ResultStore<MemDisk>) -> ResultsMark {
    ResultsMark { segment: store.mark().0, bytes: store.mark().1, ..ResultsMark::default() }
}

fn copied(disk: &MemDisk) -> MemDisk {
    let copy = MemDisk::default();
    for entry in disk.list("queue").unwrap() {
        let path = format!("queue/{}", entry.name);
        let bytes = read_whole(disk, &path, 1 << 20).unwrap();
        disk.write_at(&copy.open(&path, How::CreateNew).unwrap(), 0, &bytes).unwrap();
    }
    copy
}

fn put(disk: &MemDisk, path: &str, bytes: &[u8]) {
    disk.write_at(&disk.open(path, How::Replace).unwrap(), 0, bytes).unwrap();
}

fn sealed(rest: &str) -> Vec<u8> {
    format!("{{\"c\":\"{:08x}\",{rest}\n", crc32c::crc32c(rest.as_bytes())).into_bytes()
}

#[test]
fn results_of_a_newer_program_are_refused_by_name_and_stay_as_they_are() {
    let disk = MemDisk::default();
    let (store, _) = filled(&disk, 256 * 1024);
    let mark = kept(&store);
    store.close().unwrap();
    let segment = read_whole(&disk, &path(2), 1 << 20).unwrap();
    let strange = sealed(r#""tenant":"default","flow":"f","run":{"id":7,"cost":"much"}}"#);
    let second = segment.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    let index = sealed(r#""format":2,"pages":"none"}"#);
    for (file, offset, bytes) in [
        (path(2), Some(0), [strange.as_slice(), &segment].concat()),
        (path(2), Some(second), [&segment[..second], &strange, &segment[second..]].concat()),
        (index_path(2), None, index),
    ] {
        let disk = copied(&disk);
        put(&disk, &file, &bytes);
        let before = copied(&disk);
        let refused = |error: LogError| match (offset, error) {
            (Some(at), LogError::Unknown { file: named, offset, .. }) => (named, offset) == (file.clone(), at as u64),
            (None, LogError::Newer { file: named, format: 2, known: 1 }) => named == file,
            (_, error) => panic!("{file}: {error}"),
        };
        // Of a segment that is gone, as the log says, no more is read than its beginning.
        let gone = ResultsMark { oldest: mark.segment, ..mark.clone() };
        for mark in [Some(&mark), Some(&gone).filter(|_| offset != Some(second))].into_iter().flatten() {
            let opened = ResultStore::write(disk.clone(), SECRET, mark, 1 << 20).map(drop);
            assert!(opened.err().is_some_and(&refused), "{file} {offset:?}");
        }
        assert!(offset.is_none() || damaged(&disk, &SECRET, &mark).err().is_some_and(&refused));
        let files = |disk: &MemDisk| -> Vec<_> {
            let entries = disk.list("queue").unwrap().into_iter();
            entries.map(|entry| read_whole(disk, &format!("queue/{}", entry.name), 1 << 20).unwrap()).collect()
        };
        assert_eq!(files(&disk), files(&before));
    }
}

/// One that stands behind others, in a segment whose index is believed, is met when the segment has expired.
#[test]
fn a_segment_with_a_record_of_a_newer_program_is_never_forgotten() {
    let disk = MemDisk::default();
    let (store, runs) = filled(&disk, 256 * 1024);
    let mark = kept(&store);
    store.close().unwrap();
    let segment = read_whole(&disk, &path(1), 1 << 20).unwrap();
    let start = segment.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    let length = segment[start..].iter().position(|&byte| byte == b'\n').unwrap() + 1;
    let rest = r#""tenant":"default","flow":"f","run":{"state":"paused","note":""#;
    let strange = sealed(&format!("{rest}{}\"}}}}", "x".repeat(length - 16 - rest.len() - 4)));
    assert_eq!(strange.len(), length);
    disk.write_at(&disk.open(&path(1), How::Write).unwrap(), start as u64, &strange).unwrap();
    let mut store = open(&disk, &mark, 256 * 1024);
    assert!(matches!(store.run(runs[1].id), Some(Err(_))) && store.run(runs[2].id).unwrap().is_ok());
    let error = store.forget(Millis(2000), 1000, &mut |_| {}).unwrap_err();
    assert!(matches!(error, LogError::Unknown { offset, .. } if offset == start as u64), "{error}");
    assert!(disk.open(&path(1), How::Read).is_ok());
}

#[test]
fn doubled_and_swapped_segments_cost_nothing() {
    let disk = MemDisk::default();
    let (store, runs) = filled(&disk, 256 * 1024);
    let mark = kept(&store);
    store.close().unwrap();
    let bytes = |no| read_whole(&disk, &path(no), 1 << 20).unwrap();
    let (doubled, swapped) = (copied(&disk), copied(&disk));
    put(&doubled, &path(2), &bytes(2).repeat(2));
    put(&swapped, &path(2), &bytes(3));
    put(&swapped, &path(3), &bytes(2));
    for changed in [doubled, swapped] {
        let store = ResultStore::read(changed, SECRET, &mark).unwrap();
        assert!(runs.iter().all(|run| store.run(run.id).unwrap().is_ok()));
        assert_eq!(all(&store), (0..1000).rev().collect::<Vec<_>>());
    }
}

/// Nothing else tells of them: the log has only the newest segment's length.
#[test]
fn records_that_a_segment_lost_at_its_end_are_named_and_go_on_being_named_until_a_repair() {
    let disk = MemDisk::default();
    let (store, _) = filled(&disk, 256 * 1024);
    let mark = kept(&store);
    store.close().unwrap();
    for no in [2, mark.segment] {
        let disk = copied(&disk);
        let whole = read_whole(&disk, &path(no), 1 << 20).unwrap();
        let cut = whole[..whole.len() / 2].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        put(&disk, &path(no), &whole[..cut]);
        let named = damaged(&disk, &SECRET, &mark).unwrap();
        let missing_bytes = (whole.len() - cut) as u64;
        assert_eq!(
            named.iter().map(|found| (found.file.clone(), found.missing_bytes)).collect::<Vec<_>>(),
            [(path(no), missing_bytes)]
        );
        let mut store = open(&disk, &mark, 256 * 1024);
        assert_eq!(store.mark(), (mark.segment, mark.bytes));
        store.append([run(2000, None, 1000)].iter().map(line)).unwrap();
        let mark = kept(&store);
        store.close().unwrap();
        assert_eq!(damaged(&disk, &SECRET, &mark).unwrap(), named, "what is lost is not forgotten");
    }
}

#[test]
fn any_changed_byte_of_an_index_is_found_when_all_of_it_is_read() {
    let disk = MemDisk::default();
    let (store, _) = filled(&disk, 256 * 1024);
    let mark = kept(&store);
    store.close().unwrap();
    let whole = read_whole(&disk, &index_path(2), 1 << 20).unwrap();
    for place in (0..whole.len()).step_by(97) {
        let mut bad = whole.clone();
        bad[place] ^= 1 << (place % 8);
        put(&disk, &index_path(2), &bad);
        let store = ResultStore::read(disk.clone(), SECRET, &mark).unwrap();
        store.check_indexes();
        assert_eq!(store.rebuilt().collect::<Vec<_>>(), [2], "byte {place}");
    }
}

#[test]
fn a_record_in_which_what_the_log_tells_of_ends_is_not_cut() {
    let disk = MemDisk::default();
    let (store, runs) = filled(&disk, 256 * 1024);
    let (segment, bytes) = store.mark();
    store.close().unwrap();
    for bytes in [bytes - 1, bytes - 9] {
        let mark = ResultsMark { segment, bytes, ..ResultsMark::default() };
        assert!(unfinished(&disk, &SECRET, &mark).unwrap().is_empty());
        check(&open(&disk, &mark, 256 * 1024), &runs);
    }
}

#[test]
fn an_index_that_was_durable_before_its_segment_is_no_witness() {
    let disk = MemDisk::default();
    let (store, _) = filled(&disk, 256 * 1024);
    let newest = store.mark().0;
    store.close().unwrap();
    let mark = ResultsMark { segment: newest - 1, bytes: 1, ..ResultsMark::default() };
    let whole = read_whole(&disk, &path(newest), 1 << 20).unwrap();
    put(&disk, &path(newest), &whole[..whole.len() - 9]);
    let mut store = open(&disk, &mark, 256 * 1024);
    // Nothing more is written to it.
    store.close_open();
    let mark = ResultsMark { segment: newest + 1, bytes: 0, ..ResultsMark::default() };
    let missing = damaged(&disk, &SECRET, &mark).unwrap().into_iter().filter(|damaged| damaged.missing_bytes > 0);
    assert_eq!(missing.map(|damaged| damaged.file).collect::<Vec<_>>(), Vec::<String>::new());
}

/// Their indexes agree by length, and each record is whole.
#[test]
fn runs_of_two_swapped_segments_of_one_length_are_answered_as_damaged() {
    let disk = MemDisk::default();
    let mut store = open(&disk, &ResultsMark::default(), 1 << 20);
    store.segment_max_bytes = 1;
    for no in [10, 11] {
        store.append([run(no, None, 9)].iter().map(line)).unwrap();
    }
    let mark = kept(&store);
    store.close().unwrap();
    let [one, other] = [1, 2].map(|no| read_whole(&disk, &path(no), 1 << 20).unwrap());
    assert!(one.len() == other.len() && one != other);
    put(&disk, &path(1), &other);
    put(&disk, &path(2), &one);
    let store = ResultStore::read(disk.clone(), SECRET, &mark).unwrap();
    assert!([10, 11].iter().all(|no| matches!(store.run(RunId(*no)), Some(Err(_)))));
    assert_eq!(damaged(&disk, &SECRET, &mark).unwrap(), []);
}
