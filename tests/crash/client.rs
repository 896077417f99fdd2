//! A client process: enqueues its keys with a window of requests ahead, and writes every acknowledgement into a file of
//! its own, outside the queue, the moment it arrives.
//!
//! It sends again what was not acknowledged, to the same supervisor's successor or as its own successor. A connection
//! that ended is read to its end first: what the supervisor said is recorded, so a key that the log holds without an
//! acknowledgement was being committed.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    net::sockopt::socket_peercred,
    process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use tm_core::{
    api::{EnqueueRequest, Reply, Request},
    id::RunId,
    json::Json,
};

use crate::house::{FLOW, SOCKET};

/// The variable that holds a client's [`Plan`] as JSON.
pub(crate) const PLAN: &str = "TM_CRASH_CLIENT";
/// The lines for a connection that was made, and for one that was read to its end.
const BEGUN: &str = "+";
const ENDED: &str = "~";
/// Of the tasks of a round with busy steps, every so many take a while.
const BUSY_EVERY: u32 = 16;
const BUSY_BYTES: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Where acknowledgements are recorded.
    pub(crate) acks: PathBuf,
    pub(crate) round: u32,
    pub(crate) client: u32,
    pub(crate) keys: u32,
    /// Requests ahead of their answers.
    pub(crate) window: usize,
    pub(crate) busy_steps: bool,
    /// The client kills its supervisor itself, when it gets its acknowledgement of this number: the moment closest to
    /// one that there is.
    pub(crate) kills_at: Option<u32>,
}

impl Plan {
    pub(crate) fn all_keys(&self) -> Vec<String> {
        let kind = if self.busy_steps { "busy" } else { "idle" };
        (0..self.keys).map(|no| format!("{kind}-{:03}-{}-{no:05}", self.round, self.client)).collect()
    }
}

/// The input that belongs to a key.
pub(crate) fn input_of(key: &str) -> String {
    let no: u32 = key.rsplit('-').next().and_then(|no| no.parse().ok()).expect("a key ends with its number");
    let busy = key.starts_with("busy") && no.is_multiple_of(BUSY_EVERY);
    let load = if busy { "x".repeat(BUSY_BYTES) } else { String::new() };
    format!(r#"{{"key":"{key}","load":"{load}"}}"#)
}

pub(crate) fn request_of(key: &str) -> Request {
    Request::Enqueue(Box::new(EnqueueRequest {
        idempotency_key: Some(key.to_owned()),
        ..EnqueueRequest::of("default", FLOW, Json::parse(&input_of(key)).expect("JSON"))
    }))
}

/// What a client has recorded so far.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    /// In the order of the acknowledgements; a key may be here twice.
    pub(crate) acks: Vec<(String, RunId)>,
    /// There is a connection that may have more to tell.
    pub(crate) connected: bool,
}

/// Bytes of a recorded acknowledgement: a key, a run, and what separates them.
const RECORD_BYTES: u64 = 16 + 1 + 26 + 1;

/// How many acknowledgements are recorded, without reading them.
pub(crate) fn count(acks: &Path) -> u64 {
    fs::metadata(acks).map_or(0, |file| file.len() / RECORD_BYTES)
}

pub(crate) fn recorded(acks: &Path) -> Recorded {
    let mut found = Recorded::default();
    // Absent before the client's first record; a last line without its end was cut by the client's own death.
    let text = fs::read_to_string(acks).unwrap_or_default();
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        match line.split_once(' ') {
            Some((key, run)) => found.acks.push((key.to_owned(), run.parse().expect("a run"))),
            None => {
                assert!([BEGUN, ENDED].contains(&line), "{line}");
                found.connected = line == BEGUN;
            }
        }
    }
    found
}

/// Enqueues until every key of the plan is acknowledged.
pub(crate) fn run(plan: &Plan) {
    let before: Vec<_> = recorded(&plan.acks).acks.into_iter().map(|(key, _)| key).collect();
    let mut rest: VecDeque<_> = plan.all_keys().into_iter().filter(|key| !before.contains(key)).collect();
    let mut record = OpenOptions::new().create(true).append(true).open(&plan.acks).expect("the client's record");
    while !rest.is_empty() {
        let stream = connected();
        // Nothing was sent before this line, so a client without it has nothing more to be told.
        writeln!(record, "{BEGUN}").expect("recorded");
        exchange(&stream, plan, &mut rest, &mut record);
        writeln!(record, "{ENDED}").expect("recorded");
    }
}

fn connected() -> UnixStream {
    let begun = Instant::now();
    loop {
        match UnixStream::connect(SOCKET) {
            Ok(stream) => return stream,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "nobody listens at {SOCKET}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends and records until all is acknowledged or the connection has ended; what is open stays in `rest`.
fn exchange(stream: &UnixStream, plan: &Plan, rest: &mut VecDeque<String>, record: &mut File) {
    // Names the process itself: a number could belong to another one by then.
    let supervisor = socket_peercred(stream).ok().and_then(|peer| pidfd_open(peer.pid, PidfdFlags::empty()).ok());
    let mut answers = BufReader::new(stream);
    let mut writer = stream;
    let mut sent = 0;
    let mut alive = true;
    let mut line = Vec::new();
    while !rest.is_empty() {
        // A window is far below a socket's buffer: sending never waits for reading.
        while alive && sent < plan.window.min(rest.len()) {
            let mut request = serde_json::to_vec(&request_of(&rest[sent])).expect("JSON");
            request.push(b'\n');
            alive = writer.write_all(&request).is_ok();
            sent += usize::from(alive);
        }
        line.clear();
        if answers.read_until(b'\n', &mut line).is_err() || line.last() != Some(&b'\n') {
            return;
        }
        let run = match serde_json::from_slice(&line).expect("a reply") {
            Reply::Enqueued { run } | Reply::Duplicate { run, .. } => run,
            other => panic!("not an acknowledgement: {other:?}"),
        };
        let key = rest.pop_front().expect("a request in flight");
        sent -= 1;
        if plan.kills_at == Some(plan.keys - u32::try_from(rest.len()).expect("few")) {
            let supervisor = supervisor.as_ref().expect("the supervisor's process");
            // It may have been killed by another client; its answer came before.
            let _ = pidfd_send_signal(supervisor, Signal::KILL);
        }
        // One write per acknowledgement: recorded even if this process is killed next.
        record.write_all(format!("{key} {run}\n").as_bytes()).expect("recorded");
    }
}
