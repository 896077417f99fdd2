//! A worker for tests: this test binary, executed again with a behaviour in its environment.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tm_core::{
    code::Class,
    id::{Digest, TaskRef},
    json::Json,
    limits::PACKET_MAX_BYTES,
    wire::{Body, Confinement, FromWorker, Init, Inspection, Outcome, Report, Required, Start, ToWorker, Usage, codec},
};

use crate::workers::{
    child::{Program, SOCKET_FD, Spawner},
    link::{Inbox, receive_raw, send_raw},
    profile::WorkerUser,
    sealed,
};

const BEHAVIOUR: &str = "TM_FAKE_WORKER";

/// This binary as a worker that behaves so; as root it becomes `nobody`, as workers do.
pub(crate) fn program(behaviour: &str) -> Program {
    Program {
        path: "/proc/self/exe".into(),
        args: ["workers::tests::fake::worker_process", "--exact", "--nocapture"].map(Into::into).into(),
        env: vec![(BEHAVIOUR.into(), behaviour.into())],
        user: WorkerUser::resolve(None).unwrap(),
    }
}

pub(crate) fn spawner(behaviour: &str) -> Arc<Spawner> {
    Arc::new(Spawner::start(program(behaviour)).unwrap())
}

pub(crate) fn confinement() -> Confinement {
    Confinement {
        landlock_abi: Some(7),
        seccomp: true,
        missing: Vec::new(),
        memory_bound_bytes: 1 << 20,
        compatibility: "ab".into(),
    }
}

#[test]
fn worker_process() {
    let Ok(behaviour) = std::env::var(BEHAVIOUR) else { return };
    if let Some(scenario) = behaviour.strip_prefix("scenario ") {
        super::scenario(scenario);
        std::process::exit(0);
    }
    // SAFETY: the spawner put the socket there, and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(SOCKET_FD) };
    Fake { socket, behaviour, inbox: Inbox::default() }.run();
}

struct Fake {
    socket: OwnedFd,
    behaviour: String,
    inbox: Inbox,
}

fn packet(messages: &[FromWorker]) -> Vec<u8> {
    messages.iter().flat_map(|message| codec::write(message).unwrap()).collect()
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

impl Fake {
    fn run(mut self) -> ! {
        match self.behaviour.as_str() {
            "park" => park(),
            "die early" => {
                eprintln!("out of luck");
                std::process::exit(7)
            }
            "unable" => {
                self.send(&[FromWorker::Unable { reason: "no walls here".into() }], &[]);
                park()
            }
            _ => {}
        }
        let (first, fds) = self.receive();
        let init: Vec<Init> = codec::read(&first).unwrap();
        match &init[0] {
            Init::Execute(init) => {
                assert_eq!(init.folders.len(), fds.len(), "a descriptor for each folder");
                self.execute(init.heartbeat_ms)
            }
            Init::Compile(init) => self.compile(init.compile, &fds[0]),
        }
    }

    fn receive(&mut self) -> (Vec<u8>, Vec<OwnedFd>) {
        match receive_raw(self.socket.as_fd(), &mut self.inbox) {
            Ok(Some((bytes, fds))) => (bytes.to_vec(), fds),
            // The end of the socket is the end of a worker.
            _ => std::process::exit(0),
        }
    }

    fn send(&self, messages: &[FromWorker], fds: &[OwnedFd]) {
        send_raw(self.socket.as_fd(), &packet(messages), fds).unwrap();
    }

    fn execute(mut self, heartbeat_ms: u64) -> ! {
        let mut confinement = confinement();
        if self.behaviour == "weak" {
            (confinement.landlock_abi, confinement.missing) = (None, vec!["landlock".into()]);
        }
        if self.behaviour == "huge" {
            confinement.memory_bound_bytes = 1 << 30;
        }
        self.send(&[FromWorker::Ready(confinement)], &[]);
        if self.behaviour != "silent" {
            let socket = self.socket.try_clone().unwrap();
            std::thread::spawn(move || {
                let beat = packet(&[FromWorker::Heartbeat { running: 0, memory_bytes: 4096 }]);
                while send_raw(socket.as_fd(), &beat, &[]).is_ok() {
                    std::thread::sleep(Duration::from_millis(heartbeat_ms));
                }
            });
        }
        if self.behaviour == "deaf" {
            park();
        }
        loop {
            let (bytes, fds) = self.receive();
            let messages: Vec<ToWorker> = codec::read(&bytes).unwrap();
            let mut fds = fds.into_iter();
            for message in messages {
                match message {
                    ToWorker::Load { component } => {
                        drop(fds.next().unwrap());
                        self.send(&[FromWorker::Loaded { component }], &[]);
                    }
                    ToWorker::Unload { .. } => {}
                    ToWorker::Start(start) => self.start(&start, &mut fds),
                    ToWorker::Cancel { task, attempt, .. } => {
                        let failure = tm_core::wire::Failure {
                            by_host: true,
                            class: Class::Fatal,
                            code: "CANCELLED".into(),
                            message: String::new(),
                            retry_after_ms: None,
                        };
                        self.report(task, attempt, Outcome::Failed(failure), &[]);
                    }
                }
            }
        }
    }

    fn start(&self, start: &Start, fds: &mut impl Iterator<Item = OwnedFd>) {
        let input = match &start.input {
            Body::Inline(json) => json.clone(),
            Body::Fd { size_bytes } => {
                let bytes = sealed::read(fds.next().unwrap(), *size_bytes).unwrap();
                Json::parse(std::str::from_utf8(&bytes).unwrap()).unwrap()
            }
        };
        let done = |output, artifacts| Outcome::Succeeded { output: Body::Inline(output), artifacts };
        let socket = self.socket.as_fd();
        match self.behaviour.as_str() {
            "silent" | "hold" => {}
            "garbage" => send_raw(socket, b"\xffnot a message", &[]).unwrap(),
            "oversize" => send_raw(socket, &vec![b' '; PACKET_MAX_BYTES + 1], &[]).unwrap(),
            "many descriptors" => send_many(socket),
            "unannounced descriptor" => {
                let bytes = packet(&[FromWorker::Loaded { component: 1 }]);
                send_raw(socket, &bytes, &[sealed::make(b"x").unwrap()]).unwrap();
            }
            "unsealed descriptor" => {
                let (pipe, _writer) = rustix::pipe::pipe().unwrap();
                let body = Outcome::Succeeded { output: Body::Fd { size_bytes: 9 }, artifacts: Vec::new() };
                self.report(start.task, start.attempt, body, &[pipe]);
            }
            "other role" => self.send(&[FromWorker::Inspected(Box::new(inspection(b"")))], &[]),
            "report and die" => {
                self.report(start.task, start.attempt, done(input, Vec::new()), &[]);
                eprintln!("bye");
                std::process::abort();
            }
            "talk and die" => {
                (0..100).for_each(|component| self.send(&[FromWorker::Loaded { component }], &[]));
                std::process::exit(0);
            }
            "large output" => {
                let text = Json::of(&"x".repeat(200_000));
                let fd = sealed::make(text.get().as_bytes()).unwrap();
                let body = Body::Fd { size_bytes: text.size_bytes() };
                self.report(
                    start.task,
                    start.attempt,
                    Outcome::Succeeded { output: body, artifacts: Vec::new() },
                    &[fd],
                );
            }
            "probe" => self.report(start.task, start.attempt, done(Json::of(&probe()), Vec::new()), &[]),
            _ => self.report(start.task, start.attempt, done(input, Vec::new()), &[]),
        }
    }

    fn report(&self, task: TaskRef, attempt: u32, outcome: Outcome, fds: &[OwnedFd]) {
        let report = Report { task, attempt, outcome, usage: Usage::default(), log: String::new() };
        self.send(&[FromWorker::Report(Box::new(report))], fds);
    }

    fn compile(self, compile: bool, component: &OwnedFd) -> ! {
        let bytes = sealed::read(component, 1 << 20).unwrap();
        match self.behaviour.as_str() {
            "burn" => loop {
                std::hint::black_box(bytes.iter().map(|&b| u64::from(b)).sum::<u64>());
            },
            "hang" => park(),
            "swallow" => {
                let most = usize::try_from(isize::MAX).unwrap() / 4;
                std::hint::black_box(Vec::<u8>::with_capacity(std::hint::black_box(most)));
                park()
            }
            "killed" => {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
                park()
            }
            "refuse" => {
                let message = "not a component:\n a core module".to_owned();
                self.send(&[FromWorker::CompileFailed { code: "COMPILE_FAILED".into(), message }], &[]);
                park()
            }
            _ => {}
        }
        self.send(&[FromWorker::Inspected(Box::new(inspection(&bytes)))], &[]);
        if compile {
            let native = b"native code";
            let compatibility = if self.behaviour == "bad name" { "../x" } else { "00ff" }.to_owned();
            let compiled = FromWorker::Compiled { size_bytes: native.len() as u64, compatibility };
            self.send(&[compiled], &[sealed::make(native).unwrap()]);
        }
        park()
    }
}

fn inspection(bytes: &[u8]) -> Inspection {
    let (imports, exports, import_faults) = (Vec::new(), Vec::new(), Vec::new());
    Inspection { digest: Digest::of(bytes), imports, exports, import_faults, required: Required::default() }
}

/// More descriptors than a packet may have; `send_raw` would not even do it.
fn send_many(socket: BorrowedFd<'_>) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let file = sealed::make(b"x").unwrap();
    let fds = vec![file.as_fd(); 80];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(80))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[std::io::IoSlice::new(b"[]")], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// What the process has: descriptors, variables, user, limits.
fn probe() -> serde_json::Value {
    let fds: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    let env: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    let mut limits = String::new();
    File::open("/proc/self/limits").unwrap().read_to_string(&mut limits).unwrap();
    let mut status = String::new();
    File::open("/proc/self/status").unwrap().read_to_string(&mut status).unwrap();
    std::io::stderr().write_all(b"probed").unwrap();
    serde_json::json!({ "fds": fds, "env": env, "limits": limits, "status": status,
        "session": rustix::process::getsid(None).unwrap() == rustix::process::getpid() })
}
