//! Files of every released format still open, and today's writer writes the newest of them byte for byte.
//!
//! `log-v1/` is a queue folder with every kind of event. When the comparison fails, the format has changed: give it a
//! new number, keep the old folder, and add a new one with `GOLDEN_WRITE=1 cargo test -p tm-supervisor --test golden`.

mod events;
mod newer;

use std::{fs, ops::ControlFlow, path::PathBuf};

use tm_core::{
    id::RunId,
    queue::{
        results::{Results, ResultsMark},
        run::FinishedRun,
    },
    record::codec,
};
use tm_supervisor::store::{
    disk::{Disk, How, MemDisk},
    log::{Fsync, Log, LogOptions},
    recover,
    results::{ResultLine, ResultStore},
};

const OPTIONS: LogOptions = LogOptions { segment_max_bytes: 6 * 1024, fsync: Fsync::Always };

/// That of [`events::frames`].
const SECRET: [u8; 16] = [7; 16];

fn folder() -> PathBuf {
    // The test is a target of host/supervisor.
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/log-v1")
}

fn committed() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder())
        .expect("tests/golden/log-v1 is part of the repository")
        .map(|entry| {
            let entry = entry.expect("a folder of plain files");
            (entry.file_name().into_string().expect("a plain name"), fs::read(entry.path()).expect("a readable file"))
        })
        .collect();
    files.sort();
    files
}

fn disk_with(files: &[(String, Vec<u8>)]) -> MemDisk {
    let disk = MemDisk::default();
    for (name, bytes) in files {
        let file = disk.open(&format!("queue/{name}"), How::CreateNew).expect("a new file");
        disk.write_at(&file, 0, bytes).expect("room");
    }
    disk
}

fn queue_files(disk: &MemDisk) -> Vec<(String, Vec<u8>)> {
    let entries = disk.list("queue").expect("the queue folder");
    let read = |name: &str| tm_supervisor::store::disk::read_whole(disk, &format!("queue/{name}"), 1 << 20);
    entries.into_iter().map(|entry| (entry.name.clone(), read(&entry.name).expect("a file"))).collect()
}

/// What today's writer makes of the events.
fn written() -> Vec<(String, Vec<u8>)> {
    let disk = MemDisk::default();
    let (mut log, _) = Log::open(disk.clone(), OPTIONS, &mut |_, _| {}).expect("a new log");
    for frame in events::frames() {
        assert!(log.ensure(2048).expect("room"));
        log.append(&frame);
        log.commit().expect("committed");
    }
    log.close().expect("a clean stop");
    let mut results = ResultStore::write(disk.clone(), SECRET, &ResultsMark::default(), 1 << 20).expect("no results");
    let (failed, succeeded) = (events::finished(true), events::finished(false));
    let later = FinishedRun { id: RunId(failed.id.0 + 1), ..succeeded };
    let line = |run| ResultLine { tenant: "default", flow: "hello", run };
    results.append([&failed, &later].into_iter().map(line)).expect("room");
    results.close().expect("a clean stop");
    queue_files(&disk)
}

#[test]
fn todays_writer_writes_format_1_byte_for_byte() {
    if std::env::var_os("GOLDEN_WRITE").is_some() {
        fs::create_dir_all(folder()).expect("the folder");
        for (name, bytes) in written() {
            fs::write(folder().join(name), bytes).expect("written");
        }
    }
    let (committed, written) = (committed(), written());
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&written), names(&committed));
    for ((name, now), (_, then)) in written.iter().zip(&committed) {
        assert_eq!(String::from_utf8_lossy(now), String::from_utf8_lossy(then), "{name}: the format has changed");
    }
}

#[test]
fn format_1_opens_whole_and_every_record_is_encoded_as_it_stands() {
    let files = committed();
    let disk = disk_with(&files);
    let mut lines = Vec::new();
    let recovery = recover::read(&disk, &mut |frame, _| {
        let sequence = lines.len() as u64 + 1;
        let mut line = Vec::new();
        codec::encode(&frame, sequence, &mut line);
        lines.push(line);
    })
    .expect("format 1 opens");
    assert_eq!((recovery.cut_bytes, recovery.damaged.as_slice()), (0, &[][..]));
    assert!(recovery.segments > 1, "a rotation is part of the format");
    let is_segment = |name: &str| name.starts_with("segment-") && name.ends_with(".log");
    let stand = files.iter().filter(|(name, _)| is_segment(name)).flat_map(|(_, bytes)| {
        bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| *line != b"\n").map(<[u8]>::to_vec)
    });
    assert_eq!(lines, stand.collect::<Vec<_>>());
    // The indexes agree too: opening for writing finds nothing to do.
    let (log, _) = Log::open(disk.clone(), OPTIONS, &mut |_, _| {}).expect("format 1 opens for writing");
    drop(log);
    assert_eq!(queue_files(&disk), files);
}

#[test]
fn results_of_format_1_are_found_by_run_and_by_key() {
    let files = committed();
    let disk = disk_with(&files);
    let results = ResultStore::read(disk.clone(), SECRET, &ResultsMark::default()).expect("results open");
    let failed = events::finished(true);
    let found = results.run(failed.id).expect("known").expect("whole");
    assert_eq!((found.tenant.as_str(), found.flow.as_str()), ("default", "hello"));
    assert_eq!(format!("{:?}", found.run), format!("{failed:?}"));
    let mut held = Vec::new();
    results.key(&("default".into(), "hello".into(), "order-1".into()), &mut |run| {
        held.push(run.id);
        ControlFlow::Continue(())
    });
    assert_eq!(held, [failed.id]);
    let mut all = Vec::new();
    results.range(RunId(0), RunId(u128::MAX), &mut |run| {
        all.push(run);
        ControlFlow::Continue(())
    });
    assert_eq!(all, [RunId(failed.id.0 + 1), failed.id]);
    assert_eq!(queue_files(&disk), files, "looking changes nothing (I12), and the index was believed");
}

#[test]
fn every_kind_of_event_is_in_the_golden_files() {
    let mut kinds = std::collections::BTreeSet::new();
    recover::read(&disk_with(&committed()), &mut |frame, _| kinds.extend(frame.events.iter().map(events::kind)))
        .expect("format 1 opens");
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), (0..events::KINDS).collect::<Vec<_>>());
}
