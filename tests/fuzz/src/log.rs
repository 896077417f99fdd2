//! The reader of the log and of results: the files of a queue folder, from whatever is in them to what recovery, `verify` and
//! `repair` make of it.
//!
//! An input is the files one after the other, each behind a line `==> NAME <==`, as `tail -n +1 *` prints them; the newline
//! before such a line belongs to it.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use tm_core::{
    id::RunId,
    queue::{
        check,
        event::{Event, Frame},
        policy::Policy,
        state::State,
    },
    record::codec,
    time::Millis,
};
use tm_supervisor::{
    evaluate::MiniJinja,
    store::{
        blobs::BlobStore,
        disk::{self, Disk, How, Kind, MemDisk},
        log::{Fsync, Log, LogError, LogOptions},
        recover::{self, Recovery},
        repair::repair,
        verify::{Action, Report, verify},
    },
    turn::{Rules, Turn},
};

use crate::{Target, Verdict, measure::within, sealing};

pub const TARGET: Target = Target { name: "log", run, words: WORDS, mend: Some(sealing::mend), len_max: 64 * 1024 };

const WORDS: &[&str] = &[
    "\n==> segment-000001.log <==\n",
    "\n==> segment-000002.log <==\n",
    "\n==> segment-000003.log <==\n",
    "\n==> segment-000001.idx <==\n",
    "\n==> segment-000002.idx <==\n",
    "\n==> results-000001.log <==\n",
    "\n==> results-000002.log <==\n",
    "\n==> results-000001.idx <==\n",
    "\n==> queue.meta <==\n",
    "\n==> accepted.json <==\n",
    "{\"c\":\"00000000\",",
    "\"format\":2",
    "\"s\":",
    "\"e\":[",
    "{\"Future\":{}}",
    "{\"ResultsKept\":{\"oldest\":0,\"segment\":1,\"bytes\":900}}",
    "{\"ResultsDropped\":{\"segment\":1}}",
    ",\"tenant\":\"default\",\"flow\":\"f\",\"run\":{",
    "\n",
];
/// Room is written in steps of a quarter of this.
const OPTIONS: LogOptions = LogOptions { segment_max_bytes: 16 * 1024, fsync: Fsync::Always };
/// Reading takes pieces of 1 MiB, whatever the file's length.
const READ_BYTES: usize = 3 * 1024 * 1024;
/// A record in memory against its text: a fan-out's items are the worst known.
const READ_BYTES_PER_BYTE: usize = 64;
const TIME_MAX: Duration = Duration::from_secs(5);
/// Of results that a record tells of and that are gone: a repair makes their files as long as they were.
const MISSING_MAX_BYTES: u64 = 16 * 1024 * 1024;
const MISSING_MAX_FILES: usize = 64;

type Files = BTreeMap<String, Vec<u8>>;

/// What was replayed: each frame as it is written, under number 0.
type Lines = Vec<String>;

fn run(bytes: &[u8]) -> Verdict {
    let files = parse(bytes);
    let disk = disk_of(&files);
    let mut frames = Vec::new();
    let read = within("reading", READ_BYTES + READ_BYTES_PER_BYTE * bytes.len(), TIME_MAX, || {
        recover::read(&disk, &mut |frame, _| frames.push(frame))
    });
    let recovery = match read {
        Ok(recovery) => recovery,
        Err(refused) => {
            refused_whole(&disk, &files, &refused);
            return Verdict::Refused;
        }
    };
    let lines: Lines = frames.iter().map(line).collect();
    assert_eq!(recovery.frames, lines.len() as u64);
    frames.iter().for_each(survives_its_line);
    folds(&frames);
    let report = match verify(&disk) {
        Ok(report) => report,
        Err(refused) => {
            results_refused(&disk, &files, &refused);
            return Verdict::Refused;
        }
    };
    let dry = repair(&disk, true).expect("what can be read can be looked at for repair");
    assert_eq!((&report.log, &dry.log), (&recovery, &recovery), "reading, verify and repair tell one story");
    assert_eq!(told_beside_the_log(&report), told_beside_the_log(&dry));
    assert_eq!(files_of(&disk), files, "reading changes nothing (I12)");
    opens_as_told(&files, &lines, &report);
    let missing: u64 = report.damaged_results.iter().map(|damaged| damaged.missing_bytes).sum();
    if missing <= MISSING_MAX_BYTES && report.damaged_results.len() <= MISSING_MAX_FILES {
        is_mended(&files, &lines);
    }
    if recovery.damaged.is_empty() && !frames.is_empty() { Verdict::Taken } else { Verdict::Refused }
}

/// Results of a newer program: the log can be read, and nothing that would change a file begins.
fn results_refused(disk: &MemDisk, files: &Files, refused: &LogError) {
    let named = match refused {
        LogError::Newer { file, .. } | LogError::Unknown { file, .. } => file,
        error => panic!("{error}"),
    };
    assert!(named.starts_with("queue/results-"), "{refused}");
    let same = |error: Option<LogError>| assert_eq!(error.map(|error| error.to_string()), Some(refused.to_string()));
    same(repair(disk, true).err());
    same(repair(disk, false).err());
    assert_eq!(&files_of(disk), files, "what is refused is left as it is");
}

/// A refusal is the same from every side, and changes nothing.
fn refused_whole(disk: &MemDisk, files: &Files, refused: &LogError) {
    assert!(!matches!(refused, LogError::Disk(_)), "a disk in memory does not fail: {refused}");
    let same = |error: Option<LogError>| assert_eq!(error.map(|error| error.to_string()), Some(refused.to_string()));
    same(verify(disk).err());
    same(repair(disk, true).err());
    same(repair(disk, false).err());
    same(Log::open(disk.clone(), OPTIONS, &mut |_, _| {}).err());
    assert_eq!(&files_of(disk), files, "what is refused is left as it is");
}

fn survives_its_line(frame: &Frame) {
    let mut text = Vec::new();
    codec::encode(frame, 7, &mut text);
    assert_eq!(text.iter().position(|&byte| byte == b'\n'), Some(text.len() - 1), "a record is one line");
    let (sequence, again) = codec::decode(&text[..text.len() - 1]).expect("what was written can be read");
    assert_eq!((sequence, line(&again)), (7, line(frame)));
}

/// The state takes any frames (I2), and so does what looks at it.
fn folds(frames: &[Frame]) {
    let mut state = State::default();
    for frame in frames {
        state.replay(frame, 1);
    }
    let _broken_by_damage = check::check(&state);
    state.promote(Millis(u64::MAX));
    while !state.expire(Millis(u64::MAX), 64).is_empty() {}
}

fn told_beside_the_log(report: &Report) -> (Vec<String>, String, &Vec<String>) {
    let told = |action: &&Action| {
        !matches!(action, Action::Blank { .. } | Action::MoveAway { .. } | Action::WriteLetter { .. })
    };
    (
        report.actions.iter().filter(told).map(|action| format!("{action:?}")).collect(),
        format!("{:?}", report.damaged_results),
        &report.broken,
    )
}

/// Opening for writing finds what verify told, does to files what it told, and goes on.
fn opens_as_told(files: &Files, lines: &Lines, report: &Report) {
    let disk = disk_of(files);
    let (log, recovery, seen) = open(&disk);
    assert_eq!((&recovery, &seen), (&report.log, lines), "opening does what verify says");
    let after = files_of(&disk);
    for (path, bytes) in files {
        let acted = |action: &Action| match action {
            Action::Cut { file, .. } | Action::RebuildIndex { file } => file == path,
            _ => false,
        };
        let same = if path.starts_with("queue/results-") {
            // The log alone was opened.
            after.get(path) == Some(bytes)
        } else if path.ends_with(".log") {
            // Room before the end of a file means nothing.
            after.get(path).is_none_or(|after| trimmed(after) == trimmed(bytes))
        } else {
            // Never read, and written together with queue.meta.
            path.ends_with("queue.offset") || after.get(path) == Some(bytes)
        };
        assert!(same || report.actions.iter().any(acted), "{path} was changed and nobody had said so");
    }
    drop(log);
    // Without a newest segment that had only been begun, damage at the end of the one before it is its tail.
    let begun = files.keys().any(|path| path.ends_with(".log") && !after.contains_key(path));
    goes_on(&disk, lines, &recovery, begun);
    let disk = disk_of(files);
    let rules = Rules {
        policy: Policy::default(),
        evaluate: Box::new(MiniJinja::new()),
        blobs: Box::new(BlobStore::new(disk.clone()).expect("a disk in memory")),
    };
    let after = disk.clone();
    let (mut turn, recovery) =
        Turn::open(disk, OPTIONS, rules, [1; 16], Millis(1)).expect("what can be read can be opened");
    assert_eq!(recovery, report.log);
    drop(turn.recover());
    let ended = turn.ended(Millis(1));
    ended.range(RunId(0), RunId(u128::MAX), &mut |run| {
        if let Some(Ok(found)) = ended.run(run) {
            assert_eq!(found.id, run);
        }
        ControlFlow::Continue(())
    });
    let mark = turn.state.results.clone();
    turn.close().expect("a clean stop");
    let after = files_of(&after);
    for (path, bytes) in files.iter().filter(|(path, _)| is_results(path)) {
        let no = path.trim_start_matches("queue/results-").trim_end_matches(".log").parse().unwrap_or(u64::MAX);
        let cut = report.actions.iter().find_map(|action| match action {
            Action::Cut { file, offset, .. } if file == path => usize::try_from(*offset).ok(),
            _ => None,
        });
        let told = bytes.get(..cut.unwrap_or(bytes.len())).expect("a cut is inside its file");
        let stays = after.get(path).is_some_and(|after| after.starts_with(told));
        assert!(stays || mark.is_gone(no), "{path}: no result goes, and nothing is written over one");
    }
}

fn is_results(path: &str) -> bool {
    path.starts_with("queue/results-") && path.ends_with(".log")
}

/// A record more is there after the next opening, with all that were there before.
fn goes_on(disk: &MemDisk, lines: &Lines, before: &Recovery, cuts: bool) {
    let (mut log, recovery, seen) = open(disk);
    assert_eq!(&seen, lines, "a second opening finds the same");
    assert!(recovery.cut_bytes == 0 || cuts, "a second opening finds a whole tail");
    assert_eq!((log.next_sequence(), recovery.next_sequence), (before.next_sequence, before.next_sequence));
    let more = Frame { at: before.last_at, events: vec![Event::Filed { entry: "dlq-1-more".into() }] };
    assert!(log.ensure(1024).expect("a disk in memory"), "room");
    log.append(&more);
    log.commit().expect("a disk in memory");
    log.close().expect("a disk in memory");
    let (_, recovery, seen) = open(disk);
    let (last, rest) = seen.split_last().expect("at least one record");
    assert_eq!((last, recovery.cut_bytes), (&line(&more), 0));
    assert!(
        rest == lines,
        "going on changes nothing: {lines:#?} {rest:#?} {:#?} {:#?}",
        before.damaged,
        recovery.damaged
    );
}

/// A repair costs nothing that was there, and after it nothing is named.
fn is_mended(files: &Files, lines: &Lines) {
    let disk = disk_of(files);
    repair(&disk, false).expect("what can be read can be repaired");
    let report = verify(&disk).expect("what was repaired can be verified");
    assert_eq!(report.log.damaged, [], "after a repair");
    assert_eq!(report.damaged_results, [], "after a repair");
    assert_eq!((report.log.cut_bytes, report.actions.as_slice()), (0, &[][..]), "after a repair");
    goes_on(&disk, lines, &report.log, false);
}

fn open(disk: &MemDisk) -> (Log<MemDisk>, Recovery, Lines) {
    let mut seen = Vec::new();
    let (log, recovery) = Log::open(disk.clone(), OPTIONS, &mut |frame, _| seen.push(line(&frame)))
        .expect("what can be read can be opened");
    (log, recovery, seen)
}

fn line(frame: &Frame) -> String {
    let mut text = Vec::new();
    codec::encode(frame, 0, &mut text);
    String::from_utf8(text).expect("JSON")
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&byte| byte != b'\n').map_or(0, |last| last + 1);
    &bytes[..end]
}

/// The files of an input; what stands before the first name is nowhere.
fn parse(input: &[u8]) -> Files {
    let mut files = Files::new();
    let mut path = None;
    for part in input.split_inclusive(|&byte| byte == b'\n') {
        if let Some(next) = name(part) {
            if let Some(bytes) = path.as_ref().and_then(|path| files.get_mut(path)) {
                bytes.pop();
            }
            files.insert(next.clone(), Vec::new());
            path = Some(next);
        } else if let Some(bytes) = path.as_ref().and_then(|path| files.get_mut(path)) {
            bytes.extend_from_slice(part);
        }
    }
    files
}

fn name(line: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(line).ok()?.strip_suffix('\n')?.strip_prefix("==> ")?.strip_suffix(" <==")?;
    match name {
        "accepted.json" => Some("queue/damaged/accepted.json".to_owned()),
        "queue.meta" | "queue.offset" => Some(format!("queue/{name}")),
        _ if (name.starts_with("segment-") || name.starts_with("results-")) && !name.contains('/') => {
            Some(format!("queue/{name}"))
        }
        _ => None,
    }
}

/// The input of which a folder's files are made.
#[must_use]
pub fn input_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let parts = files.iter().map(|(name, bytes)| [format!("==> {name} <==\n").as_bytes(), bytes].concat());
    parts.collect::<Vec<_>>().join(&b'\n')
}

fn disk_of(files: &Files) -> MemDisk {
    let disk = MemDisk::default();
    for (path, bytes) in files {
        if let Some((folder, _)) = path.rsplit_once('/') {
            disk::create_folders(&disk, folder).expect("a disk in memory");
        }
        let file = disk.open(path, How::CreateNew).expect("a name only once");
        disk.write_at(&file, 0, bytes).expect("a disk in memory");
    }
    disk
}

fn files_of(disk: &MemDisk) -> Files {
    let mut files = Files::new();
    for folder in ["queue", "queue/damaged"] {
        for entry in disk.list(folder).unwrap_or_default().into_iter().filter(|entry| entry.kind == Kind::File) {
            let path = format!("{folder}/{}", entry.name);
            let bytes = disk::read_whole(disk, &path, u64::MAX).expect("a file");
            files.insert(path, bytes);
        }
    }
    files
}
