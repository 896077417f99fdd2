//! The table of `native.txt`: what raw system calls answer in the guest's place, without walls, behind each alone, and
//! behind both; and what each descriptor is that a guest would find.
//!
//! The column of both walls and the descriptors must be as written. A wall alone may answer otherwise on another kernel or
//! for another user, but what it refuses in the table, and nothing else would, it must not let through. Written anew with
//! GOLDEN_WRITE=1, as a user that is not root: root's workers become nobody, who has less to lose.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{BufRead, BufReader},
    os::{
        fd::AsRawFd,
        unix::{
            fs::PermissionsExt,
            net::UnixListener,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use rustix::io::Errno;
use tempfile::TempDir;
use tm_core::wire::ToWorker;

use crate::harness::{Setup, Worker, attach, granted, native};

const COLUMNS: [&str; 4] = ["none", "landlock", "seccomp", "both"];
/// Who a worker of root is.
const NOBODY: u32 = 65534;
const OK: &str = "ok";
const ABI: &str = "landlock ABI: ";
/// How long all calls of one worker may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What calls answered, in the order in which they were made, and what descriptors lead to.
#[derive(Default)]
struct Seen {
    answers: Vec<(String, String)>,
    descriptors: Vec<String>,
    /// 0 without landlock.
    landlock_abi: u32,
}

fn world() -> (TempDir, UnixListener) {
    let root = tempfile::tempdir().expect("a folder");
    for name in ["queue", "granted"] {
        fs::create_dir(root.path().join(name)).expect("a folder");
    }
    fs::write(root.path().join("queue/segment-000001.log"), "secret").expect("a file");
    fs::write(root.path().join("granted/file"), "mine").expect("a file");
    let socket = UnixListener::bind(root.path().join("queue/tm.sock")).expect("a socket");
    // Nothing but the walls stands between the worker and these.
    for name in ["", "queue", "granted", "queue/segment-000001.log", "granted/file", "queue/tm.sock"] {
        fs::set_permissions(root.path().join(name), Permissions::from_mode(0o777)).expect("permissions");
    }
    (root, socket)
}

/// Makes all calls behind these walls: in one worker, and in a new one after each that does not come back.
fn make(walls: &str) -> Seen {
    let (root, _socket) = world();
    let mut seen = Seen::default();
    while !probe(walls, root.path(), &mut seen) {}
    seen
}

/// One worker; false when there is more to do.
fn probe(walls: &str, root: &Path, seen: &mut Seen) -> bool {
    let program = File::open(env!("CARGO_BIN_EXE_tm-worker-test")).expect("the worker program");
    // By descriptor: nobody may not be allowed to the folder. Not by 3, where the socket will be.
    let program = rustix::io::fcntl_dupfd_cloexec(&program, 10).expect("a descriptor");
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.args(["__worker", walls, &seen.answers.len().to_string()]).arg(root);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    if rustix::process::getuid().is_root() {
        command.gid(NOBODY).uid(NOBODY);
    }
    let (child, socket) = attach(command);
    let setup = Setup { folders: vec![granted(&root.join("granted"), true)], ..Setup::default() };
    let mut worker = Worker::attached(child, socket, &setup);
    seen.landlock_abi = worker.confinement.landlock_abi.unwrap_or(0);
    worker.load(1, &native("spin"));
    let mut start = worker.start_of(1, "{}");
    start.limits.timeout_ms = 60_000;
    start.limits.fuel = u64::MAX / 2;
    worker.send(&[ToWorker::Start(Box::new(start))], &[]);
    wait_until_it_computes(worker.child.id());
    let pid = i32::try_from(worker.child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).expect("a signal");
    let (ended, waits) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if waits.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            // A call that never comes back. The process is not reaped yet: the pid is its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let more = take_lines(&mut worker, seen);
    drop(ended);
    !more
}

/// Reads what a worker says; true when it ended before it was through.
fn take_lines(worker: &mut Worker, seen: &mut Seen) -> bool {
    let lines = BufReader::new(worker.child.stdout.take().expect("a pipe")).lines();
    for line in lines.map_while(Result::ok) {
        match line.split_at_checked(2) {
            Some(("> ", name)) => seen.answers.push((name.to_owned(), String::new())),
            Some(("< ", number)) => {
                let number: i32 = number.parse().expect("a number");
                seen.answers.last_mut().expect("a name").1 = error_name(number);
            }
            Some(("= ", descriptor)) => seen.descriptors.push(descriptor.to_owned()),
            _ => return false,
        }
    }
    let status = worker.child.wait().expect("it ended");
    let last = &mut seen.answers.last_mut().expect("a call that ended it").1;
    if last.is_empty() {
        *last = format!("signal {}", status.signal().unwrap_or(0));
    }
    true
}

/// Until the process has spent some ticks more: its guest runs.
fn wait_until_it_computes(pid: u32) {
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        let fields = stat.rsplit_once(')').expect("a name").1;
        fields.split(' ').nth(12).and_then(|ticks| ticks.parse::<u64>().ok()).expect("a number")
    };
    let (before, deadline) = (ticks(), Instant::now() + Duration::from_secs(20));
    while ticks() < before + 3 {
        assert!(Instant::now() < deadline, "the guest does not run");
        std::thread::yield_now();
    }
}

fn error_name(number: i32) -> String {
    if number == 0 {
        return OK.to_owned();
    }
    let name = match Errno::from_raw_os_error(number) {
        Errno::PERM => "EPERM",
        Errno::NOENT => "ENOENT",
        Errno::SRCH => "ESRCH",
        Errno::NXIO => "ENXIO",
        Errno::BADF => "EBADF",
        Errno::ACCESS => "EACCES",
        Errno::FAULT => "EFAULT",
        Errno::EXIST => "EEXIST",
        Errno::XDEV => "EXDEV",
        Errno::INVAL => "EINVAL",
        Errno::NOTTY => "ENOTTY",
        Errno::IO => "EIO",
        Errno::NOSYS => "ENOSYS",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::AFNOSUPPORT => "EAFNOSUPPORT",
        Errno::PROTONOSUPPORT => "EPROTONOSUPPORT",
        Errno::SOCKTNOSUPPORT => "ESOCKTNOSUPPORT",
        Errno::CONNREFUSED => "ECONNREFUSED",
        Errno::NODEV => "ENODEV",
        _ => return format!("errno {number}"),
    };
    name.to_owned()
}

/// What a link of /proc/self/fd leads to, without the numbers that change, and what it is to the worker.
fn describe(link: &str, root: &Path) -> String {
    let granted = root.join("granted").display().to_string();
    let bare = link.split([':', '[']).next().unwrap_or(link);
    let what = match link {
        "/dev/null" => "/dev/null: standard input, and standard error of this test",
        link if link == granted => "the granted folder",
        link if link.ends_with("/pagemap") => "its own /proc/PID/pagemap: which pages the pool must clear",
        link if link.ends_with("/statm") => "its own /proc/PID/statm: the resident set that heartbeats tell",
        link if link.starts_with("/memfd:native") => "a sealed memory file: the native code of a component",
        link if link.contains("[eventpoll]") => "epoll: the event loop",
        link if link.contains("[eventfd]") => "eventfd: wakes the event loop",
        _ if bare == "pipe" => "a pipe: standard output of this test",
        _ if bare == "socket" => "a socket: to the supervisor, or a copy of it, or the loop's own pair for signals",
        _ => return format!("UNKNOWN: {link}"),
    };
    what.to_owned()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/sandbox/native.txt")
}

const HEAD: &str = "\
# What raw system calls answer to native code in the guest's place, in a worker that runs one. Written by the test
# sandbox::table; docs/security.md says why a row is open behind one wall. The last column counts: nothing but what a worker
# needs may be ok there.
#
# call | without walls | landlock alone | seccomp alone | both walls
";

#[test]
fn native_code_in_the_guests_place_gets_no_further_than_the_table_says() {
    let columns: Vec<Seen> = COLUMNS.iter().map(|walls| make(walls)).collect();
    let names: Vec<&String> = columns[0].answers.iter().map(|(name, _)| name).collect();
    for column in &columns {
        assert_eq!(column.answers.iter().map(|(name, _)| name).collect::<Vec<_>>(), names);
    }
    let mut found = BTreeMap::new();
    let mut text = HEAD.to_owned();
    for (row, name) in names.iter().enumerate() {
        let cells: Vec<&str> = columns.iter().map(|column| column.answers[row].1.as_str()).collect();
        text.push_str(&format!("{name} | {}\n", cells.join(" | ")));
        found.insert(name.as_str(), cells);
    }
    let (root, _socket) = world();
    let mut descriptors = Seen::default();
    while !probe("both", root.path(), &mut descriptors) {}
    let mut kinds = BTreeMap::new();
    for descriptor in &descriptors.descriptors {
        let (_, link) = descriptor.split_once(' ').expect("a number and a link");
        *kinds.entry(describe(link, root.path())).or_insert(0) += 1;
    }
    text.push_str("#\n# open descriptors behind both walls: count | what each is\n");
    for (kind, count) in &kinds {
        text.push_str(&format!("{count} | {kind}\n"));
    }
    let abi = columns[1].landlock_abi;
    text.push_str(&format!("#\n# an older kernel's landlock may let through what it refuses here\n{ABI}{abi}\n"));
    if std::env::var_os("GOLDEN_WRITE").is_some() {
        fs::write(golden(), &text).expect("the table");
    }

    let written = fs::read_to_string(golden()).expect("the table");
    let abi_written = written.lines().find_map(|line| line.strip_prefix(ABI)?.parse().ok());
    let as_new = abi >= abi_written.unwrap_or(0);
    let mut faults = Vec::new();
    let mut rows = 0;
    for line in written.lines().filter(|line| !line.starts_with('#')) {
        let cells: Vec<&str> = line.split(" | ").collect();
        let [name, none, landlock, seccomp, both] = cells[..] else {
            continue;
        };
        // Some calls exist on one architecture alone.
        let Some(now) = found.get(name) else { continue };
        rows += 1;
        if now[3] != both {
            faults.push(format!("{name}: both walls answer {}, the table says {both}", now[3]));
        }
        for (place, expected) in [(1, landlock), (2, seccomp)] {
            if now[place] == OK && expected != OK && expected != none && (place != 1 || as_new) {
                faults.push(format!("{name}: ok behind {} alone, the table says {expected}", COLUMNS[place]));
            }
        }
    }
    assert_eq!(
        rows,
        names.len(),
        "a call is not in the table: write it anew with GOLDEN_WRITE=1, and look at the change"
    );
    let tail = |text: &str| {
        let (_, tail) = text.split_once("# open descriptors")?;
        tail.split_once("#\n").map(|(descriptors, _)| descriptors.to_owned())
    };
    if tail(&written) != tail(&text) {
        faults.push(format!("descriptors are {kinds:#?}"));
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// What may be ok behind both walls: what a worker needs for its own work, and what gives nothing.
#[test]
fn what_is_open_behind_both_walls_is_explained() {
    let security = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/security.md");
    let security = fs::read_to_string(security).expect("the page");
    let written = fs::read_to_string(golden()).expect("the table");
    for line in written.lines().filter(|line| !line.starts_with('#')) {
        let [name, none, landlock, seccomp, both] = line.split(" | ").collect::<Vec<_>>()[..] else { continue };
        let one_alone = none == OK && (landlock == OK) != (seccomp == OK);
        if both == OK || one_alone {
            assert!(security.contains(&format!("`{name}`")), "docs/security.md does not explain `{name}`");
        }
    }
}
