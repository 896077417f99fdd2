//! Every file of a queue cut, emptied, doubled, deleted and swapped: `queue verify` and `repair --dry-run` tell the same,
//! exit 5 when something is damaged, and change nothing; lock and socket are only words.

use std::{
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::home::{Home, Ran};

/// The queue that the golden tests keep: a file of every kind.
fn queue() -> (Home, Vec<PathBuf>) {
    fn visit(from: &Path, to: &Path, files: &mut Vec<PathBuf>) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let (source, target) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
            if source.is_dir() {
                visit(&source, &target, files);
            } else {
                fs::copy(&source, &target).unwrap();
                files.push(target);
            }
        }
        files.sort();
    }
    let home = Home::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/queue-v1-results");
    let mut files = Vec::new();
    visit(&golden, &home.path("data"), &mut files);
    fs::remove_file(home.path("data/known.json")).unwrap();
    files.retain(|file| file.exists());
    (home, files)
}

fn snapshot_of(home: &Home) -> Vec<(String, Vec<u8>)> {
    let files = home.files().into_iter().filter(|path| home.path(path).is_file());
    files.map(|path| (path.clone(), fs::read(home.path(&path)).unwrap())).collect()
}

/// What is found, without what a repair would do in addition.
fn story(ran: &Ran) -> Value {
    let mut report: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran}"));
    let repairs = ["blank", "move-away", "write-letter"];
    report["actions"].as_array_mut().unwrap().retain(|action| !repairs.contains(&action["action"].as_str().unwrap()));
    report
}

/// Verify and a dry run, which agree; whether they found damage.
fn damaged(what: &str, home: &Home) -> bool {
    let before = snapshot_of(home);
    let (verified, dry) =
        (home.tm(&["queue", "verify", "--json"]), home.tm(&["queue", "repair", "--dry-run", "--json"]));
    assert_eq!(story(&verified), story(&dry), "{what}");
    assert_eq!(verified.code, dry.code, "{what}");
    assert!(matches!(verified.code, Some(0 | 5)), "{what}: {verified}");
    assert!(snapshot_of(home) == before, "{what}: a file was changed");
    verified.code == Some(5)
}

#[test]
fn verify_and_a_dry_run_tell_the_same_of_any_file_that_was_changed() {
    let (home, files) = queue();
    assert!(!damaged("the whole queue", &home));
    let mut told = 0;
    for (place, path) in files.iter().enumerate() {
        let bytes = fs::read(path).unwrap();
        let other = &files[(place + 1) % files.len()];
        let others = fs::read(other).unwrap();
        let name = path.strip_prefix(home.path("data")).unwrap().display().to_string();
        // What is only a copy for people, or is built again, is no damage.
        let derived = ["queue.offset", "queue.meta", "idempotency.json", ".idx"].iter().any(|end| name.ends_with(end));
        for how in ["cut", "emptied", "doubled", "deleted", "swapped"] {
            match how {
                "cut" => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
                "emptied" => fs::write(path, b"").unwrap(),
                "doubled" => fs::write(path, [bytes.as_slice(), &bytes].concat()).unwrap(),
                "deleted" => fs::remove_file(path).unwrap(),
                _ => {
                    fs::write(path, &others).unwrap();
                    fs::write(other, &bytes).unwrap();
                }
            }
            let found = damaged(&format!("{how} {name}"), &home);
            if how != "swapped" {
                let archived = name.starts_with("dlq/archive") && how == "deleted";
                // Results that stand there twice cost nothing: only the index is told of.
                let twice = name.starts_with("queue/results-") && how == "doubled";
                assert_eq!(found, !derived && !archived && !twice, "{how} {name}");
            }
            told += usize::from(found);
            fs::write(path, &bytes).unwrap();
            fs::write(other, &others).unwrap();
        }
    }
    assert!(told > files.len(), "{told}");
    assert!(!damaged("the whole queue again", &home));
}

/// What nobody holds is nobody's, whatever the files say.
#[test]
fn the_files_of_lock_and_socket_are_only_words() {
    let (home, _) = queue();
    let words = [
        "",
        "{",
        "{\"role\":\"supervisor\",\"pid\":1,\"start_ticks\":0,\"started\":0,\"host\":\"elsewhere\"}\n",
        "\0\0\0\0",
    ];
    for (round, words) in words.into_iter().enumerate() {
        for folder in ["queue", "dlq", "store", "idempotency"] {
            home.write(&format!("data/{folder}/tm.lock"), words);
        }
        // In turn: nothing, a socket where nobody listens, and a file of its name.
        let socket = home.path("data/queue/tm.sock");
        match round {
            0 => {}
            1 => drop(UnixListener::bind(&socket).unwrap()),
            _ => fs::write(&socket, words).unwrap(),
        }
        assert!(!damaged(words, &home));
        assert_eq!(home.tm(&["queue", "stats"]).code, Some(0), "{words}");
        let ran = home.tm(&["enqueue", "good", "-i", "{}"]);
        assert_eq!(ran.code, Some(0), "{words}: {ran}");
        assert!(fs::read_to_string(home.path("data/queue/tm.lock")).unwrap().contains("\"role\":\"passing\""));
        if round > 0 {
            fs::remove_file(socket).unwrap();
        }
    }
}
