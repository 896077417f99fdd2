//! Every kind of file, cut, emptied, doubled, deleted and swapped with its neighbours: what docs/reliability.md says of each.

use std::collections::{BTreeMap, BTreeSet};

use tm_core::{
    id::{Digest, RunId, TaskRef},
    json::{Json, Payload},
    record::codec,
};

use super::{
    artifacts::{Artifacts, Publication},
    disk::{self, Disk, How, MemDisk},
    dlq::Dlq,
    native::Native,
    recover::Why,
    repair::repair,
    results, segment,
    small_queue_tests::{copy, files, goes_on, make, open, put},
    verify::{Action, Report, verify},
};

type Files = Vec<(String, Vec<u8>)>;

const CHANGES: [&str; 5] = ["cut", "emptied", "doubled", "deleted", "swapped"];

/// The files with the one at `place` changed; swapped, with the one at `other`.
fn changed(whole: &Files, how: &str, place: usize, other: usize) -> Files {
    let mut files = whole.clone();
    let bytes = &whole[place].1;
    match how {
        "cut" => files[place].1.truncate(bytes.len() / 2),
        "emptied" => files[place].1.clear(),
        "doubled" => files[place].1.extend_from_slice(bytes),
        "deleted" => drop(files.remove(place)),
        _ => (files[place].1, files[other].1) = (whole[other].1.clone(), bytes.clone()),
    }
    files
}

/// What a file is to those that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Segment,
    /// Of a closed segment.
    Index,
    ActiveIndex,
    Meta,
    Results,
    ResultsIndex,
    /// For people and tools.
    NeverRead,
    Blob,
    Letter,
    Archived,
}

/// A segment of the log.
fn is_log(path: &str) -> bool {
    path.starts_with("queue/segment-") && path.ends_with(".log")
}

fn kind(path: &str, active: &str) -> Kind {
    match path {
        "queue/queue.meta" => Kind::Meta,
        "queue/queue.offset" | "idempotency/idempotency.json" => Kind::NeverRead,
        _ if path.starts_with("store/blobs/") => Kind::Blob,
        _ if path.starts_with("dlq/pending/") => Kind::Letter,
        _ if path.starts_with("dlq/archive/") => Kind::Archived,
        _ if path.starts_with("queue/results-") && path.ends_with(".log") => Kind::Results,
        _ if path.starts_with("queue/results-") => Kind::ResultsIndex,
        _ if path.ends_with(".log") => Kind::Segment,
        _ if path.ends_with(".idx") && path == active.replace(".log", ".idx") => Kind::ActiveIndex,
        _ if path.ends_with(".idx") => Kind::Index,
        _ => panic!("{path} is of no known kind: say what it is, here and in docs/reliability.md"),
    }
}

/// Whether a report names a file.
fn names(report: &Report, path: &str) -> bool {
    let acted = report.actions.iter().any(|action| action.file() == path);
    let damaged = report.log.damaged.iter().any(|damage| damage.file == path);
    let results = report.damaged_results.iter().any(|damaged| damaged.file == path);
    let letter = report.damaged_letters.iter().chain(&report.missing_letters).any(|file| file == path);
    acted || damaged || results || letter || report.damaged_blobs.iter().any(|blob| blob.file == path)
}

/// All that is found, and all that the next opening does: what verify, a dry run and opening have to agree on.
fn story(report: &Report) -> String {
    let Report { log, actions, damaged_results, damaged_letters, missing_letters, damaged_blobs, broken } = report;
    let repairs = |action: &&Action| {
        matches!(action, Action::Blank { .. } | Action::MoveAway { .. } | Action::WriteLetter { .. })
    };
    let actions: Vec<_> = actions.iter().filter(|action| !repairs(action)).collect();
    let beside = format!("{damaged_results:#?} {damaged_letters:?} {missing_letters:?} {damaged_blobs:?} {broken:?}");
    format!("{log:#?} {actions:#?} {beside}")
}

/// Opens a copy as a supervisor does, and holds what that changed against what was told.
fn opens_as_told(what: &str, files: &Files, report: &Report) {
    let disk = copy(files);
    let turn = open(&disk);
    drop(Dlq::open(disk.clone()).unwrap());
    turn.close().unwrap();
    let segments = segment::list(&disk).unwrap();
    let newest = segment::path(segments.last().unwrap().0);
    let results = results::path(results::list(&disk).unwrap().last().map_or(0, |&(no, _)| no));
    let after: BTreeMap<_, _> = super::small_queue_tests::files(&disk).into_iter().collect();
    let before: BTreeMap<_, _> = files.iter().cloned().collect();
    let changed: BTreeSet<&String> = before
        .keys()
        .chain(after.keys())
        .filter(|path| {
            let same = match (before.get(*path), after.get(*path)) {
                (Some(before), Some(after)) if path.ends_with(".log") => trimmed(before) == trimmed(after),
                (before, after) => before == after,
            };
            // A clean stop writes these, and new segments where the newest ones are missing.
            let indexes = [&newest, &results].map(|path| path.replace(".log", ".idx"));
            let stops = ["queue/queue.offset", "queue/queue.meta", &newest, &results, &indexes[0], &indexes[1]];
            !same && !stops.contains(&path.as_str())
        })
        .collect();
    for path in changed {
        let aside = path.starts_with("queue/damaged/");
        let told = report.actions.iter().any(|action| match action {
            Action::KeepAside { .. } => aside,
            Action::Cut { file, .. } | Action::RebuildIndex { file } => file == path,
            _ => false,
        });
        assert!(told, "{what}: opening changed {path}, which nobody had told");
    }
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().rposition(|&byte| byte != b'\n').map_or(0, |last| last + 1)]
}

/// Verify, a dry run and opening tell one story; the rest runs; what a repair can mend is mended.
fn check(what: &str, files: &Files) -> Report {
    let disk = copy(files);
    let report = verify(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let dry = repair(&disk, true).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(story(&dry), story(&report), "{what}");
    assert_eq!(dry.is_damaged(), report.is_damaged(), "{what}");
    assert_eq!(&super::small_queue_tests::files(&disk), files, "{what}: reading changes nothing (I12)");
    opens_as_told(what, files, &report);
    let disk = copy(files);
    assert!(goes_on(&disk), "{what}: the rest runs");
    drop(repair(&disk, false).unwrap_or_else(|error| panic!("{what}: {error}")));
    let again = verify(&disk).unwrap();
    assert!(
        again.log.damaged.is_empty() && again.damaged_results.is_empty() && again.actions.is_empty(),
        "{what}: after a repair {again:#?}"
    );
    let pending = |file: &&String| file.starts_with("dlq/pending/");
    let letters: Vec<_> = again.damaged_letters.iter().chain(&again.missing_letters).filter(pending).collect();
    // A letter whose run the log has lost cannot be written again.
    assert!(letters.is_empty() || !report.log.damaged.is_empty(), "{what}: after a repair {letters:?}");
    report
}

#[test]
fn every_kind_of_file_cut_emptied_doubled_deleted_and_swapped_is_told_and_the_rest_runs() {
    let whole = files(&make());
    let records = |path: &str| {
        let found = whole.iter().find(|(other, _)| other == path).filter(|(path, _)| is_log(path));
        found.map_or(0, |(_, bytes)| {
            bytes.split(|&byte| byte == b'\n').filter(|line| codec::decode(line).is_ok()).count()
        })
    };
    let total: usize = whole.iter().map(|(path, _)| records(path)).sum();
    let logs: Vec<&String> = whole.iter().map(|(path, _)| path).filter(|path| is_log(path)).collect();
    let (first, active) = (logs[0], logs[logs.len() - 1]);
    let kind = |path: &str| kind(path, active);
    let kinds: BTreeSet<Kind> = whole.iter().map(|(path, _)| kind(path)).collect();
    assert_eq!(kinds.len(), 10, "a file of every kind: {kinds:?}");
    for (place, (path, _)) in whole.iter().enumerate() {
        let next = (place + 1) % whole.len();
        let alike = (place + 1..whole.len()).find(|&other| kind(&whole[other].0) == kind(path));
        for (how, other) in CHANGES.iter().map(|how| (*how, next)).chain(alike.map(|alike| ("swapped", alike))) {
            let what = format!("{how} {path}, next {}", whole[other].0);
            let files = changed(&whole, how, place, other);
            let report = check(&what, &files);
            let both = [Some(path), Some(&whole[other].0).filter(|_| how == "swapped")];
            let own: usize = both.iter().flatten().map(|path| records(path)).sum();
            let frames = usize::try_from(report.log.frames).unwrap();
            assert!(frames + own >= total, "{what}: {frames} of {total}, {own} of them its own");
            for path in both.into_iter().flatten() {
                let told = match (kind(path), how) {
                    // The one after it says so.
                    (Kind::Segment, "deleted") if path == first => report.log.damaged[0].why == Why::MissingStart,
                    // What is there is whole, and its index does not agree.
                    (Kind::Results, "doubled" | "swapped") => {
                        names(&report, path) || names(&report, &path.replace(".log", ".idx"))
                    }
                    (Kind::NeverRead, _) | (Kind::ActiveIndex | Kind::Archived, "deleted") => !names(&report, path),
                    _ => names(&report, path),
                };
                assert!(told, "{what}: {path}: {report:#?}");
            }
        }
    }
}

/// Records that a segment lost at its end, wherever it was cut.
#[test]
fn a_segment_cut_between_two_records_is_named_with_what_is_lost() {
    let whole = files(&make());
    let total: u64 = verify(&copy(&whole)).unwrap().log.frames;
    for (place, (path, bytes)) in whole.iter().enumerate().filter(|(_, (path, _))| is_log(path)) {
        let ends: Vec<usize> =
            bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        let mut start = 0;
        let sequences: Vec<(usize, u64)> = ends
            .into_iter()
            .filter_map(|end| {
                let line = &bytes[std::mem::replace(&mut start, end)..end - 1];
                Some((end, codec::decode(line).ok()?.0))
            })
            .collect();
        for (at, (end, sequence)) in sequences.iter().enumerate() {
            let mut files = whole.clone();
            files[place].1.truncate(*end);
            let report = verify(&copy(&files)).unwrap();
            let rest = (sequences.len() - at - 1) as u64;
            assert_eq!(report.log.frames, total - rest, "{path} cut after record {sequence}");
            let named = report.log.damaged.iter().any(|damage| damage.lost.is_some_and(|lost| lost.0 == sequence + 1));
            assert_eq!(named, rest > 0, "{path} cut after record {sequence}: {:#?}", report.log.damaged);
        }
    }
}

/// Damage that repair has accepted, and the copies of damaged bytes.
#[test]
fn what_a_repair_wrote_down_is_believed_only_when_it_is_whole_and_never_hides_anything_else() {
    let disk = make();
    let (path, bytes) = files(&disk).into_iter().find(|(path, _)| is_log(path)).unwrap();
    let file = disk.open(&path, How::Write).unwrap();
    let at = bytes.len() as u64 / 2;
    disk.write_at(&file, at, &[bytes[bytes.len() / 2] ^ 1]).unwrap();
    let lost = repair(&disk, false).unwrap().log.damaged[0].lost.unwrap();
    let whole = files(&disk);
    assert!(!verify(&disk).unwrap().is_damaged());
    let kept: Vec<usize> = (0..whole.len()).filter(|&place| whole[place].0.starts_with("queue/damaged/")).collect();
    assert_eq!(kept.len(), 2, "the bytes, and what was lost");
    for &place in &kept {
        let accepted = whole[place].0.ends_with("accepted.json");
        let told = |what: &str, files: &Files| {
            let report = verify(&copy(files)).unwrap();
            let named: Vec<_> = report.log.damaged.iter().filter_map(|damage| damage.lost).collect();
            assert_eq!(named, if accepted { vec![lost] } else { vec![] }, "{what} {}: {report:#?}", whole[place].0);
        };
        for how in CHANGES {
            told(how, &changed(&whole, how, place, (place + 1) % whole.len()));
        }
        for byte in 0..whole[place].1.len() {
            let mut files = whole.clone();
            files[place].1[byte] ^= 1 << (byte % 8);
            told("flipped", &files);
        }
    }
}

#[test]
fn a_changed_native_artefact_is_compiled_again_and_never_loaded() {
    let disk = MemDisk::default();
    let native = Native::new(disk.clone()).unwrap();
    let components = [Digest::of(b"one"), Digest::of(b"two")];
    native.put("default", "00ff", &components[0], b"the code of one").unwrap();
    native.put("default", "00ff", &components[1], b"the code of two").unwrap();
    let whole = files(&disk);
    assert_eq!(whole.len(), 2);
    for how in CHANGES {
        for place in 0..2 {
            let disk = copy(&changed(&whole, how, place, 1 - place));
            let native = Native::new(disk.clone()).unwrap();
            let loaded = components.map(|component| native.load("default", "00ff", &component).unwrap());
            let both = usize::from(how == "swapped") + 1;
            assert_eq!(loaded.iter().filter(|loaded| loaded.is_none()).count(), both, "{how}: {loaded:?}");
            assert_eq!(files(&disk).len(), 2 - both, "{how}: what is damaged is removed");
        }
    }
}

#[test]
fn a_step_whose_manifest_or_artefacts_are_changed_in_length_runs_again() {
    let disk = MemDisk::default();
    let artifacts = Artifacts::new(disk.clone()).unwrap();
    let task = |item| TaskRef { run: RunId(7), step: 0, item: Some(item) };
    let output = Payload::Inline(Json::null());
    for item in [0, 1] {
        let staging = format!("{}/t{item}.1", artifacts.tenant("default").unwrap().tmp);
        disk::create_folders(&disk, &staging).unwrap();
        put(&disk, &format!("{staging}/page"), "a page\n".repeat(1 + item as usize).as_bytes());
        let publication = Publication {
            tenant: "default",
            staging: &format!("t{item}.1"),
            task: task(item),
            step_id: "render",
            component: Digest::of(b"c"),
            input: Digest::of(&[u8::try_from(item).unwrap()]),
            output: &output,
            max_bytes: 1000,
        };
        artifacts.publish(&publication).unwrap();
    }
    let whole = files(&disk);
    assert_eq!(whole.len(), 4, "two manifests, two artefacts: {whole:?}");
    for how in CHANGES {
        for (place, (path, _)) in whole.iter().enumerate() {
            // The one of the same kind.
            let is_manifest = |path: &str| path.ends_with(".json");
            let alike = |other: &usize| *other != place && is_manifest(&whole[*other].0) == is_manifest(path);
            let other = (0..4).find(alike).unwrap();
            let artifacts = Artifacts::new(copy(&changed(&whole, how, place, other))).unwrap();
            let found = [0, 1].map(|item| {
                let input = Digest::of(&[u8::try_from(item).unwrap()]);
                artifacts.lookup("default", task(item), "render", Digest::of(b"c"), input).is_some()
            });
            let again = found.iter().filter(|found| !**found).count();
            assert_eq!(again, usize::from(how == "swapped") + 1, "{how} {path}: {found:?}");
        }
    }
}
