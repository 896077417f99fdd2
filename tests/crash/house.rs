//! The processes: the supervisor in its folder, commands of `tm`, and what a killed supervisor leaves behind.

use std::{
    collections::BTreeSet,
    env, fs,
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid},
};
use tempfile::TempDir;
use tm_core::api::{Reply, Request, Stats};
use tm_supervisor::{daemon::Client, store::disk::Roots};

pub(crate) const FLOW: &str = "crash";
/// Relative to the home, so that no path is too long for a socket.
pub(crate) const SOCKET: &str = "data/queue/tm.sock";
const PATIENCE: Duration = Duration::from_secs(60);

const FLOW_TEXT: &str = "flow:
  id: crash
  steps:
    - id: work
      component: step.wasm
      limits: { memory_mb: 16 }
      retries: { max_attempts: 100, base_ms: 1, factor: 1.0, jitter_ms: 0, max_delay_ms: 1 }
";

/// Past the harness, which shows what a test prints only when it fails.
pub(crate) fn say(line: &str) {
    // Nothing is left to tell a caller that has closed standard error.
    let _ = writeln!(std::io::stderr(), "{line}");
}

pub(crate) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(0)
}

/// Waits until something holds; a failure names it.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "after {PATIENCE:?} still not: {what}");
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// A folder with the flow and a queue of its own, on the disk of the build: memory would make a sync take no time.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        let home = Self(TempDir::with_prefix_in("crash-", env!("CARGO_TARGET_TMPDIR")).expect("a folder"));
        let flows = home.path("flows");
        fs::create_dir(&flows).expect("a folder");
        let step = wat::parse_str(include_str!("step.wat")).expect("a component's text");
        fs::write(flows.join("step.wasm"), step).expect("the component");
        fs::write(flows.join("crash.yaml"), FLOW_TEXT).expect("the flow");
        home
    }

    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(relative)
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots::below(&self.path("data"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tm"));
        command.args(arguments).current_dir(self.0.path()).env_clear().env("HOME", self.0.path());
        command.env("PATH", "/usr/bin:/bin").env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, which must be success.
    pub(crate) fn tm(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(arguments).output().expect("tm runs");
        let text = String::from_utf8(stdout).expect("UTF-8");
        let said = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "tm {}: {status}\n{text}\n{said}", arguments.join(" "));
        text
    }

    /// This test program again, as a client with a plan.
    pub(crate) fn client(&self, plan: &crate::client::Plan) -> Child {
        let said = OpenOptions::new().create(true).append(true).open(self.path("clients.log")).expect("a file");
        Command::new(env::current_exe().expect("this program"))
            .args(["client_process", "--exact", "--ignored", "--nocapture"])
            .env(crate::client::PLAN, serde_json::to_string(plan).expect("JSON"))
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(said.try_clone().expect("a file"))
            .stderr(said)
            .spawn()
            .expect("a client")
    }

    /// What clients and supervisors said, for a failed test.
    pub(crate) fn said(&self) -> String {
        ["clients.log", "supervisor.log"]
            .map(|name| format!("{name}:\n{}", fs::read_to_string(self.path(name)).unwrap_or_default()))
            .join("\n")
    }
}

/// A supervisor that is ready.
pub(crate) struct Supervisor {
    child: Child,
    /// Held open: its end would be a broken pipe to the supervisor.
    _stdout: BufReader<ChildStdout>,
}

impl Supervisor {
    pub(crate) fn start(home: &Home) -> Self {
        let said: File =
            OpenOptions::new().create(true).append(true).open(home.path("supervisor.log")).expect("a file");
        let mut command = home.command(&["workers", "start", "-n", "2", "--concurrency", "8"]);
        let mut child = command
            .arg("--allow-weaker-confinement")
            .env("TM_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn()
            .expect("a supervisor");
        let mut stdout = BufReader::new(child.stdout.take().expect("its output"));
        let timeout = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        let spoke = poll(&mut [PollFd::new(stdout.get_ref(), PollFlags::IN)], Some(&timeout)).expect("poll");
        let mut ready = String::new();
        if spoke > 0 {
            stdout.read_line(&mut ready).expect("a line");
        }
        // It answers clients just before it says so: one of them may have killed it by then.
        let killed =
            |child: &mut Child| child.wait().is_ok_and(|status| status.signal() == Some(Signal::KILL.as_raw()));
        if !ready.starts_with("worker supervisor running") && (spoke == 0 || !killed(&mut child)) {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no supervisor: {ready}\n{}", home.said());
        }
        Self { child, _stdout: stdout }
    }

    /// Kills it, if nobody has, and waits until all that it had started is gone too. Returns how many processes that were.
    pub(crate) fn kill(&mut self) -> usize {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("its end");
        orphans_gone()
    }

    /// Whether somebody else killed it.
    pub(crate) fn is_dead(&mut self) -> bool {
        self.child.try_wait().expect("its end").is_some()
    }

    /// Drains it; nothing of it stays behind.
    pub(crate) fn stop(mut self, home: &Home) {
        home.tm(&["workers", "stop"]);
        assert!(self.child.wait().expect("its end").success(), "{}", home.said());
        assert_eq!(orphans(), BTreeSet::new(), "a drained supervisor left processes behind");
    }

    fn ask(&self, home: &Home, request: &Request) -> Reply {
        let mut client = Client::connect(&home.roots().queue).expect("a connection");
        client.call(request).expect("an answer")
    }

    pub(crate) fn stats(&self, home: &Home) -> Stats {
        match self.ask(home, &Request::Stats) {
            Reply::Stats(stats) => stats,
            other => panic!("not stats: {other:?}"),
        }
    }

    /// The processes of its workers.
    pub(crate) fn workers(&self, home: &Home) -> Vec<u32> {
        match self.ask(home, &Request::Workers) {
            Reply::Workers(rows) => rows.into_iter().map(|row| row.pid).collect(),
            other => panic!("not workers: {other:?}"),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills a worker; whether it was still there.
pub(crate) fn kill_worker(pid: u32) -> bool {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    kill_process(pid, Signal::KILL).is_ok()
}

/// From now on, processes whose parent ends become this one's children: none can hide.
pub(crate) fn inherit_orphans() {
    set_child_subreaper(Some(getpid())).expect("a subreaper");
}

/// Children of this process that are no clients: called only when no supervisor and no command runs.
fn orphans() -> BTreeSet<i32> {
    let own = getpid().as_raw_nonzero().get();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while it is looked at.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        let parent = rest.split_whitespace().nth(1).and_then(|parent| parent.parse().ok());
        if parent == Some(own) && !is_client(name) {
            found.insert(pid);
        }
    }
    found
}

/// Whether the beginning of a `stat` line names this test program.
fn is_client(stat: &str) -> bool {
    let own = env::current_exe().expect("this program");
    let own = own.file_name().and_then(|name| name.to_str()).expect("its name");
    // The kernel keeps 15 bytes.
    stat.split_once('(').is_some_and(|(_, name)| own.starts_with(name))
}

/// Waits for the end of all that a killed supervisor had started: workers end when their socket does.
fn orphans_gone() -> usize {
    let mut seen: BTreeSet<i32> = BTreeSet::new();
    eventually("every process of a killed supervisor ends by itself", || {
        let left = orphans();
        for &pid in &left {
            // Reaps it if it has ended.
            let _ = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
        }
        seen.extend(&left);
        left.is_empty()
    });
    seen.len()
}
