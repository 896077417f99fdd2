//! Dead letters by hand: looking, refusals and dry runs leave every file as it is, and say what the deed says.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::SystemTime,
};

use crate::{
    home::{Home, Ran, ran, until},
    supervisor::Supervisor,
};

const FAIL: &str = r#"{"do":"fail","class":"fatal","bytes":4}"#;
const LETTERS: usize = 4;

/// A queue with dead letters of four runs. The key of the first one is held by a fifth run.
fn lettered(home: &Home) -> Vec<String> {
    home.flow("fail", "compute", &[]);
    let keyed = |more: &[&str]| home.enqueue("fail.yaml", FAIL, &[&["--idempotency-key", "k"], more].concat());
    let mut pool = Supervisor::start(home, &[]);
    let mut runs = vec![keyed(&[])];
    runs.extend((1..LETTERS).map(|_| home.enqueue("fail", FAIL, &[])));
    // Their files too: the next start would write those that the log does not name.
    let log = home.path("data/queue/segment-000001.log");
    let filed = || fs::read_to_string(&log).unwrap().matches("{\"Filed\":").count();
    until("dead letters", || (filed() == LETTERS).then_some(()));
    assert_eq!(pool.stats().dlq_pending, LETTERS as u64);
    keyed(&["--delay", "1d"]);
    pool.stop();
    runs
}

/// Everything below a folder with its content and its time of change.
fn image(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut image = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let about = path.symlink_metadata().unwrap();
        let content = if about.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if about.is_dir() {
            image.extend(self::image(&path));
        }
        image.insert(path, (content, about.modified().unwrap()));
    }
    image
}

/// Runs a command that must change nothing.
fn unchanged(home: &Home, command: &[&str]) -> Ran {
    let before = image(&home.path("data"));
    let ran = home.tm(command);
    let after = image(&home.path("data"));
    let touched: Vec<_> =
        before.keys().chain(after.keys()).filter(|&path| before.get(path) != after.get(path)).collect();
    assert!(touched.is_empty(), "{command:?} touched {touched:?}: {ran}");
    ran
}

/// All that changes nothing; then the deeds, in the words of their dry runs.
fn looks_before_deeds(home: &Home, runs: &[String]) {
    // Refusals and changes that change nothing: a dry run prints the same words.
    for (command, code) in [
        (["dlq", "requeue", "nothing"], 1),
        (["dlq", "purge", "nothing"], 1),
        (["dlq", "requeue", &runs[0]], 1),
        (["queue", "cancel", "0ZZZ"], 1),
        (["queue", "forget-key", "fail"], 1),
    ] {
        let more: &[&str] = match command[1] {
            "purge" => &["--yes"],
            "forget-key" => &["nobody's"],
            _ => &[],
        };
        let command = [&command[..], more].concat();
        let refused = unchanged(home, &command);
        assert_eq!(refused.code, Some(code), "{command:?}: {refused}");
        if command[0] == "dlq" {
            let dry = unchanged(home, &[&command[..], &["--dry-run"]].concat());
            assert_eq!(dry.to_string(), refused.to_string(), "{command:?}");
        }
    }
    for verb in ["requeue", "purge"] {
        let several = unchanged(home, &["dlq", verb, "dlq-*", "--yes"]);
        several.refused(2, &["matches 4 entries; nothing was changed", "--all"]);
    }

    // A purge that is not confirmed: what would be purged, a question, and the error on a line of its own.
    let before = image(&home.path("data"));
    let asked = answered(home, &["dlq", "purge", "dlq-*", "--all"], "no\n");
    assert_eq!(image(&home.path("data")), before, "{asked}");
    let question = "purging ends the run of these entries as failed. Type purge to go on: \nerror: not confirmed";
    asked.refused(1, &[&runs[0], &runs[3], question, "hint: "]);

    // What dry runs say is what is done then. The first entry is skipped, as its key is taken, and so is still there.
    let deeds = [(["dlq", "requeue", "dlq-*"], "requeued"), (["dlq", "purge", &runs[0]], "purged")]
        .map(|(command, done)| ([&command[..], &["--all", "--yes"]].concat(), done));
    let dry = deeds.each_ref().map(|(command, _)| unchanged(home, &[&command[..], &["--dry-run"]].concat()));
    for ((command, past), dry) in deeds.iter().zip(dry) {
        let done = home.tm(command);
        assert_eq!((dry.code, done.code), (Some(0), Some(0)), "{command:?}: {dry}\n{done}");
        assert!(done.stdout.starts_with(past) || done.stdout.contains(&format!("\n{past} ")), "{done}");
        assert_eq!(dry.stdout.replace(&format!("would {}", command[1]), past), done.stdout, "{command:?}");
    }
}

/// Runs a command that asks, with an answer.
fn answered(home: &Home, command: &[&str], answer: &str) -> Ran {
    let mut command = home.command(command);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
    ran(child.wait_with_output().unwrap())
}

#[test]
fn without_a_supervisor_only_deeds_write() {
    let home = Home::new();
    let runs = lettered(&home);
    looks_before_deeds(&home, &runs);
}

#[test]
fn with_a_supervisor_only_deeds_write() {
    let home = Home::new();
    let runs = lettered(&home);
    // The list of keys is written soon after the start, and then not again for half a minute.
    let keys = home.path("data/idempotency/idempotency.json");
    fs::remove_file(&keys).unwrap();
    let pool = Supervisor::start(&home, &[]);
    until("the list of keys", || keys.exists().then_some(()));
    looks_before_deeds(&home, &runs);
    pool.stop();
}

#[test]
fn a_confirmed_purge_purges_what_it_has_shown() {
    let home = Home::new();
    let runs = lettered(&home);
    let purged = answered(&home, &["dlq", "purge", &runs[1]], "purge\n");
    assert_eq!(purged.code, Some(0), "{purged}");
    assert!(purged.stdout.starts_with("purged dlq-") && purged.stdout.lines().count() == 1, "{purged}");
    assert!(purged.stderr.contains("the run of this entry as failed"), "{purged}");
    assert_eq!(home.tm(&["queue", "result", &runs[1]]).json()["status"], "failed");
}
