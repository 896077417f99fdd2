//! Refusals that name what is wrong, where, and what to do; nothing is created by them.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
};

use crate::home::{Home, snapshot};

/// A flow of a file with three faults.
const FAULTY: &str =
    "flow:\n  id: faulty\n  steps:\n    - id: a\n      component: nowhere.wasm\n      needs: [b]\n      retires: {}\n";

#[test]
fn a_queue_that_is_a_file_is_no_folder() {
    let home = Home::new();
    home.write("queue", "").write("flow.yaml", FAULTY);
    let commands =
        ["queue stats", "queue ls", "queue verify", "queue repair", "queue repair --dry-run", "enqueue hello"];
    for command in commands.into_iter().chain(["workers start"]) {
        let command: Vec<_> = command.split(' ').collect();
        let ran = home.tm(&[&command[..], &["--queue-dir", "queue"]].concat());
        assert!(ran.stderr.contains("queue is not a folder") && ran.stderr.contains("hint: "), "{command:?}: {ran}");
    }
    assert_eq!(home.files(), ["flow.yaml", "queue"]);
}

#[test]
fn a_pid_file_without_a_folder_is_refused_before_anything_is_made() {
    let home = Home::new();
    snapshot!(home.tm(&["workers", "start", "--pid-file", "nodir/tm.pid"]), @"
    stderr:
    error: nodir/tm.pid cannot hold a pid file: there is no folder nodir
    hint: make the folder, or name another file: --pid-file FILE
    exit: 2
    ");
    assert!(home.files().is_empty());
}

#[test]
fn a_start_that_is_refused_leaves_nothing_behind() {
    let home = Home::new();
    std::fs::create_dir(home.path("folder")).unwrap();
    for (flags, code, words) in [
        (["--runtime", "nodir"], 3, "no folder of flows at nodir"),
        (["--worker-user", "no-such-user"], 3, "no-such-user"),
        (["--pid-file", "folder"], 2, "folder cannot be a pid file: it is no regular file"),
        (["--pid-file", "/dev/null"], 2, "/dev/null cannot be a pid file: it is no regular file"),
    ] {
        let ran = home.tm(&[&["workers", "start"][..], &flags].concat());
        assert!(ran.code == Some(code) && ran.stderr.contains(words), "{flags:?}: {ran}");
        assert_eq!(home.files(), ["folder"], "{flags:?}");
    }
}

#[test]
fn a_flow_file_that_cannot_be_read_is_exit_3_for_every_command() {
    let home = Home::new();
    std::fs::create_dir(home.path("folder.yaml")).unwrap();
    for pipe in ["pipe.yaml", "pipe.wasm"] {
        rustix::fs::mkfifoat(rustix::fs::CWD, home.path(pipe), rustix::fs::Mode::RWXU).unwrap();
    }
    home.write("piped.yaml", "flow:\n  id: piped\n  steps:\n    - id: a\n      component: pipe.wasm\n");
    for (flow, why) in [
        ("nowhere.yaml", "no flow file nowhere.yaml"),
        ("folder.yaml", "folder.yaml is a folder; a flow is a file"),
        ("pipe.yaml", "cannot read pipe.yaml: not a regular file"),
        ("piped.yaml", "pipe.wasm: not a regular file"),
    ] {
        for command in ["check", "enqueue", "run"] {
            let ran = home.tm(&[command, flow]);
            assert!(ran.code == Some(3) && ran.stderr.contains(why), "{command} {flow}: {ran}");
        }
    }
    snapshot!(home.tm(&["enqueue", "hello", "-i", "@pipe.yaml"]), @"
    stderr:
    error: cannot read the input file pipe.yaml: not a regular file
    exit: 2
    ");
    snapshot!(home.tm(&["enqueue", "hello", "-i", "@-"]), @"
    stderr:
    error: --input from standard input is not JSON: EOF while parsing a value at line 1 column 0
    exit: 2
    ");
    assert!(!home.path("data").exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    if !rustix::process::getuid().is_root() {
        return println!("skipped: only root can become another user");
    }
    let home = Home::new();
    chown(home.path(""), Some(65534), Some(65534)).unwrap();
    fs::create_dir(home.path("closed")).unwrap();
    fs::set_permissions(home.path("closed"), Permissions::from_mode(0o755)).unwrap();
    let arguments = ["workers", "start", "--queue-dir", "closed/queue", "--store-dir", "closed/store"];
    let output = home.command(&arguments).uid(65534).gid(65534).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).replace(home.path("").to_str().unwrap(), "");
    insta::assert_snapshot!(text, @"
    error: closed/queue cannot be written: Permission denied
    hint: make it writable for this user, or name another folder
    ");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_key_that_is_too_long_is_not_repeated() {
    let home = Home::new();
    let key = "k".repeat(300);
    snapshot!(home.tm(&["enqueue", "hello", "--idempotency-key", &key]), @"
    stderr:
    error: --idempotency-key has 300 bytes, 1 to 256 are allowed
    exit: 2
    ");
}

#[test]
fn every_fault_of_a_flow_is_an_error_as_tm_check_prints_it() {
    let home = Home::new();
    home.write("faulty.yaml", FAULTY);
    let checked = home.tm(&["check", "faulty.yaml"]);
    assert_eq!(checked.stderr.matches("error: faulty.yaml:").count(), 3, "{checked}");
    for command in ["enqueue", "run"] {
        let ran = home.tm(&[command, "faulty.yaml"]);
        assert_eq!((ran.code, &ran.stderr), (Some(3), &checked.stderr), "{command}");
    }
    assert_eq!(home.files(), ["faulty.yaml"]);
}
