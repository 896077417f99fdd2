//! Ways out of a granted folder, the budgets of folders and artefacts, and what stays after an attempt.

use std::{fs, os::unix::fs::symlink, path::Path};

use tempfile::TempDir;
use tm_core::{
    code,
    limits::Limits,
    wire::{
        ArtifactEntry, FolderRole, Outcome, ReadableStep, Report, Start, StartFiles, StartGrants, ToWorker,
        staging_path,
    },
};

use crate::harness::{Setup, Worker, failure, granted, native, output, place};

const READ_ONLY: u32 = 0;
const WRITABLE: u32 = 1;

/// A worker with a read-only folder at `/docs`, a writable one at `/out`, and its own places.
struct House {
    root: TempDir,
    worker: Worker,
}

impl House {
    fn open() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        for name in ["docs/sub", "out", "staging", "results", "scratch", "outside"] {
            fs::create_dir_all(root.path().join(name)).expect("a folder");
        }
        fs::write(root.path().join("docs/page.md"), "# page").expect("a file");
        fs::write(root.path().join("outside/secret"), "secret").expect("a file");
        let at = |name: &str| root.path().join(name);
        let folders = vec![
            granted(&at("docs"), false),
            granted(&at("out"), true),
            place(FolderRole::Staging, &at("staging")),
            place(FolderRole::Results, &at("results")),
            place(FolderRole::Scratch, &at("scratch")),
        ];
        let mut worker = Worker::start(&Setup { folders, concurrency: 1, memory_max_mb: 32, ..Setup::default() });
        worker.load(1, &native("hostile"));
        Self { root, worker }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    fn start(&mut self, input: &str) -> Start {
        let mut start = self.worker.start_of(1, input);
        let files = |folder, guest: &str, write, max_mb| StartFiles { folder, guest: guest.to_owned(), write, max_mb };
        start.grants = StartGrants {
            files: vec![files(READ_ONLY, "/docs", false, 0), files(WRITABLE, "/out", true, 1)],
            scratch: true,
            artifacts: true,
            clocks: true,
            random: true,
            readable: vec![
                ReadableStep { step_id: "one".into(), items: None },
                ReadableStep { step_id: "many".into(), items: Some(2) },
            ],
            ..StartGrants::default()
        };
        start.limits = Limits { scratch_mb: 1, artifacts_mb: 1, timeout_ms: 10_000, memory_mb: 32, ..Limits::DEFAULT };
        start
    }

    fn run(&mut self, input: &str) -> Report {
        let start = self.start(input);
        let report = self.worker.run(start);
        self.worker.stays_in_bounds();
        report
    }

    /// The step is ended with this code, and the same worker runs the next good task.
    fn ends(&mut self, input: &str, expected: &str) {
        let report = self.run(input);
        assert_eq!(failure(&report).code, expected, "{input}: {}", failure(&report).message);
        assert_eq!(self.answer(r#"{"do":"nothing"}"#), r#"{"ok":null}"#);
    }

    fn answer(&mut self, input: &str) -> String {
        output(&self.run(input))
    }

    fn refused(&mut self, input: &str) {
        let answer = self.answer(input);
        assert!(answer.starts_with(r#"{"err":"#), "{input}: {answer}");
    }
}

#[test]
fn a_granted_file_is_read_and_nothing_around_it_is() {
    let mut house = House::open();
    assert_eq!(house.answer(r#"{"do":"read","path":"/docs/page.md"}"#), r##"{"ok":"# page"}"##);
    assert_eq!(house.answer(r#"{"do":"read","path":"/docs/sub/../page.md"}"#), r##"{"ok":"# page"}"##);
    symlink("../outside/secret", house.path("docs/relative")).expect("a link");
    symlink(house.path("outside/secret"), house.path("docs/absolute")).expect("a link");
    symlink("/proc/self/status", house.path("docs/proc")).expect("a link");
    symlink("../outside", house.path("docs/folder")).expect("a link");
    for path in [
        "/docs/../outside/secret",
        "/docs/sub/../../outside/secret",
        "/etc/passwd",
        "/docs//etc/passwd/../../../../etc/passwd",
        "/proc/self/status",
        "/docs/relative",
        "/docs/absolute",
        "/docs/proc",
        "/docs/folder/secret",
        "/dev/null",
    ] {
        house.refused(&format!(r#"{{"do":"read","path":"{path}"}}"#));
    }
    let outside = house.path("outside/secret").display().to_string();
    house.refused(&format!(r#"{{"do":"read","path":"{outside}"}}"#));
    assert_eq!(house.answer(r#"{"do":"nothing"}"#), r#"{"ok":null}"#);
}

/// Puts a pipe, a socket and, where that is allowed, endless devices into a folder.
fn put_special_files(folder: &Path) -> Vec<&'static str> {
    use rustix::fs::{FileType, Mode, makedev, mkfifoat, mknodat};
    let at = fs::File::open(folder).expect("a folder");
    let mode = Mode::from_raw_mode(0o666);
    mkfifoat(&at, "pipe", mode).expect("a pipe");
    std::os::unix::net::UnixListener::bind(folder.join("socket")).expect("a socket");
    symlink("pipe", folder.join("link")).expect("a link");
    let mut names = vec!["pipe", "socket", "link"];
    for (name, minor) in [("null", 3), ("zero", 5)] {
        if mknodat(&at, name, FileType::CharacterDevice, mode, makedev(1, minor)).is_ok() {
            names.push(name);
        }
    }
    names
}

#[test]
fn pipes_sockets_and_devices_in_a_granted_folder_are_refused_at_once() {
    let mut house = House::open();
    for folder in ["docs", "out"] {
        for name in put_special_files(&house.path(folder)) {
            for wish in ["read", "write", "list", "touch", "sparse", "write_at"] {
                let more = match wish {
                    "write" | "sparse" => r#","bytes":1"#,
                    "write_at" => r#","offset":1"#,
                    _ => "",
                };
                let (answer, took) = crate::harness::timed(|| {
                    house.answer(&format!(r#"{{"do":"{wish}","path":"/{folder}/{name}"{more}}}"#))
                });
                assert!(answer.starts_with(r#"{"err":"#), "{wish} {folder}/{name}: {answer}");
                assert!(took < std::time::Duration::from_secs(2), "{wish} {folder}/{name} took {took:?}");
            }
        }
    }
    assert!(house.answer(r#"{"do":"stat","path":"/out/pipe"}"#).contains(r#""file":false"#));
    assert_eq!(house.answer(r#"{"do":"remove","path":"/out/pipe"}"#), r#"{"ok":null}"#);
    assert_eq!(house.answer(r#"{"do":"write","path":"/out/file","bytes":3}"#), r#"{"ok":3}"#);
    assert_eq!(house.answer(r#"{"do":"touch","path":"/out/file"}"#), r#"{"ok":null}"#);
    assert_eq!(house.answer(r#"{"do":"read","path":"/out/file"}"#), r#"{"ok":"xxx"}"#);
}

#[test]
fn a_pipe_that_is_put_in_a_files_place_again_and_again_holds_nobody_up() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut house = House::open();
    let folder = house.path("out");
    put_special_files(&folder);
    fs::write(folder.join("file"), "text").expect("a file");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let change = |from: &str, to: &str| fs::rename(folder.join(from), folder.join(to)).expect("a rename");
            while !stop.load(Ordering::Relaxed) {
                change("file", "aside");
                change("pipe", "file");
                change("file", "pipe");
                change("aside", "file");
            }
        });
        for _ in 0..300 {
            let start = house.start(r#"{"do":"read","path":"/out/file"}"#);
            let report = house.worker.run(start);
            assert!(matches!(report.outcome, Outcome::Succeeded { .. }), "{report:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_read_only_folder_cannot_be_changed() {
    let mut house = House::open();
    for wish in [
        r#"{"do":"write","path":"/docs/new","bytes":1}"#,
        r#"{"do":"write","path":"/docs/page.md","bytes":1}"#,
        r#"{"do":"mkdir","path":"/docs/folder"}"#,
        r#"{"do":"remove","path":"/docs/page.md"}"#,
        r#"{"do":"rename","from":"/docs/page.md","to":"/docs/other"}"#,
        r#"{"do":"rename","from":"/docs/page.md","to":"/out/other"}"#,
        r#"{"do":"hardlink","path":"/out/page","to":"/docs/page.md"}"#,
    ] {
        house.refused(wish);
    }
    assert_eq!(fs::read_to_string(house.path("docs/page.md")).expect("still there"), "# page");
}

#[test]
fn a_rename_from_one_folder_to_another_below_one_grant_works() {
    let mut house = House::open();
    fs::create_dir_all(house.path("out/a")).expect("a folder");
    fs::create_dir_all(house.path("out/b")).expect("a folder");
    fs::write(house.path("out/a/file"), "text").expect("a file");
    assert_eq!(house.answer(r#"{"do":"rename","from":"/out/a/file","to":"/out/b/file"}"#), r#"{"ok":null}"#);
    assert!(house.path("out/b/file").exists());
    // From one budget to another it is not a rename.
    house.refused(r#"{"do":"rename","from":"/out/b/file","to":"/scratch/file"}"#);
}

#[test]
fn a_step_makes_no_symbolic_links() {
    let mut house = House::open();
    house.refused(r#"{"do":"symlink","path":"/out/link","to":"../docs/page.md"}"#);
    house.refused(r#"{"do":"symlink","path":"/out/link","to":"/etc/passwd"}"#);
    assert!(!house.path("out/link").exists());
}

#[test]
fn a_folder_takes_no_more_than_its_budget_however_it_is_filled() {
    let mut house = House::open();
    let mib = 1 << 20;
    for (wish, fits) in [
        (format!(r#"{{"do":"write","path":"/out/w","bytes":{mib}}}"#), true),
        (format!(r#"{{"do":"write","path":"/out/w","bytes":{}}}"#, mib + 1), false),
        (format!(r#"{{"do":"sparse","path":"/out/s","bytes":{mib}}}"#), true),
        (format!(r#"{{"do":"sparse","path":"/out/s2","bytes":{}}}"#, mib + 1), false),
        (format!(r#"{{"do":"write_at","path":"/out/a","offset":{}}}"#, mib - 1), true),
        (format!(r#"{{"do":"write_at","path":"/out/a2","offset":{mib}}}"#), false),
        (r#"{"do":"write_at","path":"/out/a3","offset":1099511627776}"#.to_owned(), false),
        (r#"{"do":"many_files","path":"/out","count":200}"#.to_owned(), true),
        (r#"{"do":"many_files","path":"/scratch","count":300}"#.to_owned(), false),
        (format!(r#"{{"do":"scratch","bytes":{mib}}}"#), true),
        (format!(r#"{{"do":"scratch","bytes":{}}}"#, mib + 1), false),
    ] {
        if fits {
            let answer = house.answer(&wish);
            assert!(answer.starts_with(r#"{"ok":"#), "{wish}: {answer}");
        } else {
            house.ends(&wish, code::SCRATCH_EXCEEDED);
        }
    }
    for entry in fs::read_dir(house.path("out")).expect("a folder").flatten() {
        assert!(entry.metadata().expect("a file").len() <= mib, "{entry:?}");
    }
    assert_eq!(house.answer(r#"{"do":"nothing"}"#), r#"{"ok":null}"#);
}

#[test]
fn scratch_is_private_made_when_needed_and_removed_after_success_only() {
    let mut house = House::open();
    let names = |house: &House| fs::read_dir(house.path("scratch")).expect("a folder").count();
    house.run(r#"{"do":"nothing"}"#);
    assert_eq!(names(&house), 0);
    assert_eq!(house.answer(r#"{"do":"scratch","bytes":10}"#), r#"{"ok":10}"#);
    assert_eq!(names(&house), 0, "removed after success");
    let start = house.start(r#"{"do":"scratch","bytes":10000000}"#);
    let kept = staging_path(&start.task_name(), start.attempt);
    house.worker.run(start);
    assert!(house.path("scratch").join(kept).join("file").exists(), "kept after a failure");
    let mut start = house.start(r#"{"do":"scratch","bytes":10}"#);
    start.grants.keep_scratch = true;
    let kept = staging_path(&start.task_name(), start.attempt);
    house.worker.run(start);
    assert!(house.path("scratch").join(kept).join("file").exists(), "kept after a success, because it shall be");
}

#[test]
fn files_are_read_through_the_blocking_thread_that_streams_use() {
    let mut house = House::open();
    fs::write(house.path("docs/large"), "x".repeat(1 << 20)).expect("a file");
    let answer = house.run(r#"{"do":"read","path":"/docs/large"}"#);
    // The answer is larger than a packet takes inline, and comes by descriptor.
    assert!(matches!(answer.outcome, Outcome::Failed(ref f) if f.code == code::OUTPUT_TOO_LARGE), "{answer:?}");
    fs::write(house.path("docs/middle"), "x".repeat(100_000)).expect("a file");
    let answer = house.run(r#"{"do":"read","path":"/docs/middle"}"#);
    let Outcome::Succeeded { output: tm_core::wire::Body::Fd { size_bytes }, .. } = answer.outcome else {
        panic!("{answer:?}")
    };
    assert_eq!(size_bytes, 100_000 + r#"{"ok":""}"#.len() as u64);
}

#[test]
fn an_artefact_stands_in_staging_once_it_is_finished() {
    let mut house = House::open();
    let start = house.start(r#"{"do":"artifact","name":"site/a.html","bytes":1000}"#);
    let staging = house.path("staging").join(staging_path(&start.task_name(), start.attempt));
    let report = house.worker.run(start);
    let Outcome::Succeeded { artifacts, .. } = &report.outcome else { panic!("{report:?}") };
    assert_eq!(artifacts, &[ArtifactEntry { name: "site/a.html".to_owned(), size_bytes: 1000 }]);
    assert_eq!(fs::metadata(staging.join("site/a.html")).expect("the artefact").len(), 1000);
    assert_eq!(names_in(&staging), ["site"], "nothing partial stays");
}

#[test]
fn an_artefact_that_is_not_finished_does_not_exist() {
    let mut house = House::open();
    let start = house.start(r#"{"do":"artifact","name":"a","bytes":1000,"finish":false}"#);
    let staging = house.path("staging").join(staging_path(&start.task_name(), start.attempt));
    let report = house.worker.run(start);
    assert!(matches!(&report.outcome, Outcome::Succeeded { artifacts, .. } if artifacts.is_empty()), "{report:?}");
    assert!(names_in(&staging).is_empty());
}

#[test]
fn artefacts_have_limits_of_their_own() {
    let mut house = House::open();
    house.ends(r#"{"do":"artifact","name":"a","bytes":0}"#, code::ARTIFACT_EMPTY);
    assert!(house.answer(r#"{"do":"artifact","name":"a","bytes":1048576}"#).starts_with(r#"{"ok":"#));
    house.ends(r#"{"do":"artifact","name":"a","bytes":1048577}"#, code::ARTIFACTS_EXCEEDED);
    for attempt in fs::read_dir(house.path("staging")).expect("a folder").flatten() {
        for name in names_in(&attempt.path()) {
            let stands = fs::metadata(attempt.path().join(name)).expect("a file");
            assert!(stands.is_dir() || stands.len() <= 1 << 20, "{}", stands.len());
        }
    }
    for name in ["../a", "/a", "a/../../b", "", ".tm-manifest.json"] {
        house.refused(&format!(r#"{{"do":"artifact","name":"{name}","bytes":1}}"#));
    }
}

#[test]
fn artefacts_of_needed_steps_are_read_and_no_others() {
    let mut house = House::open();
    let run = tm_core::id::RunId(7).to_string();
    let write = |path: &str, text: &str| {
        let path = house.path("results").join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    };
    write(&format!("{run}/one/index/a"), "12345");
    write(&format!("{run}/one/.tm-manifest.json"), "{}");
    write(&format!("{run}/many[0]/x"), "1");
    write(&format!("{run}/many[1]/y"), "22");
    write(&format!("{run}/other/z"), "secret");
    assert_eq!(house.answer(r#"{"do":"read_artifact","step":"one","name":"index/a"}"#), r#"{"ok":5}"#);
    assert_eq!(house.answer(r#"{"do":"read_artifact","step":"many","name":"y"}"#), r#"{"ok":2}"#);
    assert_eq!(house.answer(r#"{"do":"list_artifacts","step":"one"}"#), r#"{"ok":[["index/a",5]]}"#);
    assert_eq!(house.answer(r#"{"do":"list_artifacts","step":"many"}"#), r#"{"ok":[["x",1],["y",2]]}"#);
    house.refused(r#"{"do":"read_artifact","step":"other","name":"z"}"#);
    house.refused(r#"{"do":"list_artifacts","step":"other"}"#);
    house.refused(r#"{"do":"read_artifact","step":"one","name":"../other/z"}"#);
}

#[test]
fn many_handles_are_refused_before_they_hurt_the_process() {
    let mut house = House::open();
    let report = house.run(r#"{"do":"keep_open","path":"/docs/page.md","count":100000}"#);
    assert!(!matches!(report.outcome, Outcome::NotStarted { .. }), "{report:?}");
    let report = house.run(r#"{"do":"many_artifacts","count":100000}"#);
    assert!(!matches!(report.outcome, Outcome::NotStarted { .. }), "{report:?}");
    assert_eq!(house.answer(r#"{"do":"read","path":"/docs/page.md"}"#), r##"{"ok":"# page"}"##);
}

#[test]
fn the_granted_clock_and_randomness_work_behind_the_walls() {
    let mut house = House::open();
    for wish in ["clock", "random"] {
        let answer = house.answer(&format!(r#"{{"do":"{wish}"}}"#));
        assert!(answer.starts_with(r#"{"ok":"#), "{wish}: {answer}");
    }
}

#[test]
fn a_grant_of_a_folder_that_the_worker_does_not_have_starts_nothing() {
    let mut house = House::open();
    let mut start = house.start(r#"{"do":"nothing"}"#);
    start.grants.files[0].write = true;
    assert!(matches!(house.worker.run(start).outcome, Outcome::NotStarted { .. }));
    let mut start = house.start(r#"{"do":"nothing"}"#);
    start.grants.files[0].folder = 2;
    assert!(matches!(house.worker.run(start).outcome, Outcome::NotStarted { .. }));
}

#[test]
fn an_input_by_descriptor_reaches_the_step() {
    let mut house = House::open();
    house.worker.load(2, &native("echo"));
    let text = format!(r#""{}""#, "x".repeat(200_000));
    let mut start = house.worker.start_of(2, "null");
    start.input = tm_core::wire::Body::Fd { size_bytes: text.len() as u64 };
    let attempt = start.attempt;
    let body = tm_worker::packet::sealed("input", text.as_bytes()).expect("a memfd");
    house.worker.send(&[ToWorker::Start(Box::new(start))], &[body]);
    let report = house.worker.report_of(attempt);
    assert!(
        matches!(report.outcome, Outcome::Succeeded { output: tm_core::wire::Body::Fd { size_bytes: 200_002 }, .. }),
        "{report:?}"
    );
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
