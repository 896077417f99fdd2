//! Starts real worker processes and speaks the supervisor's side of the wire.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tm_core::{
    id::{RunId, TaskRef},
    json::Json,
    limits::{Limits, NATIVE_MAX_BYTES},
    wire::{
        Body, CompileInit, Confinement, ExecuteInit, Failure, Folder, FolderRole, FromWorker, Init, Inspection,
        Outcome, Report, Required, Start, StartContext, StartGrants, ToWorker,
    },
};
use tm_worker::packet::{self, Receiver};

/// What a worker holds beside its guests: program, engine, code of loaded components.
const BASE_BYTES: u64 = 64 << 20;

/// A worker process and the supervisor's end of its socket.
pub(crate) struct Worker {
    pub(crate) child: Child,
    pub(crate) socket: OwnedFd,
    receiver: Receiver,
    waiting: std::collections::VecDeque<(FromWorker, Option<OwnedFd>)>,
    pub(crate) confinement: Confinement,
    attempt: u32,
}

/// How a worker is started.
pub(crate) struct Setup {
    pub(crate) folders: Vec<(Folder, PathBuf)>,
    pub(crate) concurrency: u32,
    pub(crate) memory_max_mb: u32,
    pub(crate) stack_max_kb: u32,
    pub(crate) required: Required,
    pub(crate) heartbeat_ms: u64,
    pub(crate) walls: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            folders: Vec::new(),
            concurrency: 4,
            memory_max_mb: 128,
            stack_max_kb: 1024,
            required: Required::default(),
            heartbeat_ms: 5000,
            walls: "both",
        }
    }
}

impl Setup {
    pub(crate) fn init(&self) -> Init {
        Init::Execute(ExecuteInit {
            folders: self.folders.iter().map(|(folder, _)| folder.clone()).collect(),
            concurrency: self.concurrency,
            heartbeat_ms: self.heartbeat_ms,
            memory_max_mb: self.memory_max_mb,
            stack_max_kb: self.stack_max_kb,
            required: self.required,
            allow_weaker: false,
        })
    }

    pub(crate) fn open_folders(&self) -> Vec<OwnedFd> {
        self.folders.iter().map(|(_, path)| File::open(path).expect("a folder").into()).collect()
    }
}

pub(crate) fn granted(path: &Path, write: bool) -> (Folder, PathBuf) {
    (Folder { role: FolderRole::Granted, write }, path.to_owned())
}

pub(crate) fn place(role: FolderRole, path: &Path) -> (Folder, PathBuf) {
    (Folder { role, write: role != FolderRole::Results }, path.to_owned())
}

/// Starts the test program with its end of a fresh socket pair at descriptor 3.
pub(crate) fn spawn(arguments: &[&str], stdout: bool) -> (Child, OwnedFd) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tm-worker-test"));
    command.args(arguments);
    if stdout {
        command.stdout(std::process::Stdio::piped());
    }
    attach(command)
}

pub(crate) fn attach(mut command: Command) -> (Child, OwnedFd) {
    use std::os::unix::process::CommandExt;
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket pair");
    let raw = theirs.as_raw_fd();
    // SAFETY: between fork and exec only dup2 or fcntl are called, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let moved = if raw == 3 { libc::fcntl(3, libc::F_SETFD, 0) } else { libc::dup2(raw, 3) };
            if moved < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    (command.spawn().expect("the worker program"), ours)
}

impl Worker {
    pub(crate) fn start(setup: &Setup) -> Self {
        let (child, socket) = spawn(&["__worker", setup.walls], false);
        Self::attached(child, socket, setup)
    }

    /// The worker that a started process becomes.
    pub(crate) fn attached(child: Child, socket: OwnedFd, setup: &Setup) -> Self {
        packet::send_messages(socket.as_fd(), &[setup.init()], &setup.open_folders()).expect("Init is sent");
        let confinement = Confinement {
            landlock_abi: None,
            seccomp: false,
            missing: Vec::new(),
            memory_bound_bytes: 0,
            compatibility: String::new(),
        };
        let mut worker = Self {
            child,
            socket,
            receiver: Receiver::new(),
            waiting: std::collections::VecDeque::new(),
            confinement,
            attempt: 0,
        };
        match worker.next().0 {
            FromWorker::Ready(confinement) => worker.confinement = confinement,
            other => panic!("not ready: {other:?}"),
        }
        worker
    }

    /// The next message of any kind.
    pub(crate) fn next(&mut self) -> (FromWorker, Option<OwnedFd>) {
        while self.waiting.is_empty() {
            let packet = self.receiver.receive(self.socket.as_fd()).expect("a packet");
            let mut packet = packet.expect("the worker lives");
            for message in packet.messages::<FromWorker>().expect("messages") {
                let brings = match &message {
                    FromWorker::Compiled { .. } => true,
                    FromWorker::Report(report) => {
                        matches!(report.outcome, Outcome::Succeeded { output: Body::Fd { .. }, .. })
                    }
                    _ => false,
                };
                let fd = brings.then(|| packet.fd().expect("its descriptor"));
                self.waiting.push_back((message, fd));
            }
        }
        self.waiting.pop_front().expect("a message")
    }

    pub(crate) fn send(&self, messages: &[ToWorker], fds: &[OwnedFd]) {
        packet::send_messages(self.socket.as_fd(), messages, fds).expect("a packet is sent");
    }

    pub(crate) fn load(&mut self, number: u32, native: &[u8]) {
        let artefact = packet::sealed("native", native).expect("a memfd");
        self.send(&[ToWorker::Load { component: number }], &[artefact]);
        loop {
            match self.next().0 {
                FromWorker::Heartbeat { .. } => {}
                FromWorker::Loaded { component } => return assert_eq!(component, number),
                other => panic!("not loaded: {other:?}"),
            }
        }
    }

    /// The start of a task with its own number; attempts count up.
    pub(crate) fn start_of(&mut self, component: u32, input: &str) -> Start {
        self.attempt += 1;
        let task = TaskRef { run: RunId(7), step: 0, item: None };
        Start {
            task,
            attempt: self.attempt,
            component,
            context: StartContext {
                flow_id: "hostile".to_owned(),
                step_id: "step".to_owned(),
                max_attempts: 5,
                deadline_ms: 0,
                trace_parent: None,
            },
            input: Body::Inline(Json::parse(input).expect("JSON")),
            limits: Limits::DEFAULT,
            grants: StartGrants::default(),
            in_flight: 1,
        }
    }

    /// Runs one attempt to its report, skipping progress.
    pub(crate) fn run(&mut self, start: Start) -> Report {
        let attempt = start.attempt;
        self.send(&[ToWorker::Start(Box::new(start))], &[]);
        self.report_of(attempt)
    }

    pub(crate) fn report_of(&mut self, attempt: u32) -> Report {
        loop {
            match self.next() {
                (FromWorker::Report(report), _) if report.attempt == attempt => return *report,
                (FromWorker::Progress { .. } | FromWorker::Heartbeat { .. } | FromWorker::Report(_), _) => {}
                (other, _) => panic!("unexpected: {other:?}"),
            }
        }
    }

    /// The process is the one that was started, and never held more than the bound that it printed, beside its program.
    pub(crate) fn stays_in_bounds(&mut self) {
        assert!(self.child.try_wait().expect("a child").is_none(), "the worker died");
        let (peak, bound) = (self.peak_resident_bytes(), self.confinement.memory_bound_bytes + BASE_BYTES);
        assert!(peak <= bound, "resident {peak}, bound {bound}");
    }

    /// The largest resident set that this process ever had.
    fn peak_resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
        kib * 1024
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn failure(report: &Report) -> &Failure {
    match &report.outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("did not fail: {other:?}"),
    }
}

pub(crate) fn output(report: &Report) -> String {
    match &report.outcome {
        Outcome::Succeeded { output: Body::Inline(json), .. } => json.get().to_owned(),
        other => panic!("did not succeed: {other:?}"),
    }
}

/// What the compile role answered.
pub(crate) struct Compiled {
    pub(crate) inspection: Option<Inspection>,
    pub(crate) native: Option<Vec<u8>>,
    pub(crate) failed: Option<(String, String)>,
}

pub(crate) fn compile_with(bytes: &[u8], change: impl FnOnce(&mut CompileInit)) -> Compiled {
    let mut init = CompileInit {
        allow_weaker: false,
        cpu_seconds_max: 60,
        memory_max_mb: 4096,
        compile: true,
        native_max_bytes: NATIVE_MAX_BYTES,
    };
    change(&mut init);
    let (mut child, socket) = spawn(&["__worker", "both"], false);
    let component = packet::sealed("component", bytes).expect("a memfd");
    packet::send_messages(socket.as_fd(), &[Init::Compile(init)], &[component]).expect("Init is sent");
    let mut compiled = Compiled { inspection: None, native: None, failed: None };
    let mut receiver = Receiver::new();
    while let Ok(Some(mut packet)) = receiver.receive(socket.as_fd()) {
        for message in packet.messages::<FromWorker>().expect("messages") {
            match message {
                FromWorker::Inspected(found) => compiled.inspection = Some(*found),
                FromWorker::Compiled { size_bytes, .. } => {
                    let fd = packet.fd().expect("the artefact");
                    compiled.native = Some(packet::read_whole(fd.as_fd(), size_bytes).expect("its bytes"));
                }
                FromWorker::CompileFailed { code, message } => compiled.failed = Some((code, message)),
                other => panic!("unexpected: {other:?}"),
            }
        }
    }
    child.wait().expect("the compile process ends");
    compiled
}

/// The native artefact of a guest, compiled once per test run: `hostile`, `compute`, or a text of `tests/guests/wat`.
pub(crate) fn native(name: &str) -> Vec<u8> {
    static NATIVE: OnceLock<Mutex<HashMap<String, Vec<u8>>>> = OnceLock::new();
    let mut known = NATIVE.get_or_init(Mutex::default).lock().expect("no test panics with this lock");
    if let Some(native) = known.get(name) {
        return native.clone();
    }
    let compiled = compile_with(&component(name), |_| {});
    let native = compiled.native.unwrap_or_else(|| panic!("{name} does not compile: {:?}", compiled.failed));
    known.insert(name.to_owned(), native.clone());
    native
}

fn guests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests")
}

/// The bytes of a guest component.
pub(crate) fn component(name: &str) -> Vec<u8> {
    let text = guests().join(format!("wat/{name}.wat"));
    if text.exists() {
        return wat::parse_file(text).expect("a component's text");
    }
    std::fs::read(built().join(format!("{name}.wasm"))).expect("the guest is built")
}

/// Builds the Rust guests once per test run; takes a moment only when their source changed.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--target", "wasm32-wasip2", "--manifest-path"])
            .arg(guests().join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .status();
        assert!(status.is_ok_and(|status| status.success()), "the guests do not build: run scripts/setup");
        target.join("wasm32-wasip2/release")
    })
}

/// How long `work` took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let done = work();
    (done, begun.elapsed())
}
