//! What a client sends: bytes cut into lines, lines made into requests with their descriptors.

use std::{fs::File, os::fd::OwnedFd, time::Duration};

use tm_core::{
    api::Request,
    limits::{API_LINE_MAX_BYTES, STEPS_PER_FLOW_MAX},
};
use tm_supervisor::daemon::Requests;

use crate::{Target, Verdict, measure::within};

pub const TARGET: Target = Target { name: "client", run, words: WORDS, mend: None, len_max: 128 * 1024 };

const WORDS: &[&str] = &[
    "\n",
    "\"Ping\"\n",
    "\"Stats\"\n",
    "{\"Wait\":{\"run\":\"01234567890123456789012345\"}}\n",
    "\"components\":[\"a\"]",
    "\"input\":",
    "\"at\":",
    "null",
    "\r\n",
    "\\ud800",
    "[",
    "{",
    "}",
];
/// A read takes 64 KiB, and the buffer grows by doubling.
const BYTES: usize = 512 * 1024;
const BYTES_PER_BYTE: usize = 16;
const TIME_MAX: Duration = Duration::from_secs(2);
/// Descriptors that come with the first bytes.
const FDS: usize = 3;

/// Requests as they are written, or why a line is none.
type Heard = Vec<Result<(String, usize), String>>;

fn run(bytes: &[u8]) -> Verdict {
    let whole = within("cutting", BYTES + BYTES_PER_BYTE * bytes.len(), TIME_MAX, || hear(bytes, usize::MAX));
    for piece in [1, 7, 4096] {
        // A long line in short pieces is moved once for each of them.
        if bytes.len() / piece < 1024 {
            assert_eq!(hear(bytes, piece), whole, "the same in pieces of {piece}");
        }
    }
    let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(whole.len(), lines, "one answer a line");
    let fds: usize = whole.iter().flatten().map(|(_, fds)| fds).sum();
    assert!(fds <= FDS);
    for (text, _) in whole.iter().flatten() {
        let again: Request = serde_json::from_str(text).expect("what was written can be read");
        assert_eq!(&written(&again), text);
    }
    if whole.iter().any(Result::is_ok) { Verdict::Taken } else { Verdict::Refused }
}

fn hear(bytes: &[u8], piece: usize) -> Heard {
    let mut requests = Requests::default();
    let mut fds: Vec<OwnedFd> = (0..FDS).filter_map(|_| File::open("/dev/null").ok().map(OwnedFd::from)).collect();
    let mut heard = Heard::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let room = requests.room();
        let count = room.len().min(piece).min(rest.len());
        room[..count].copy_from_slice(&rest[..count]);
        requests.received(count, std::mem::take(&mut fds));
        rest = &rest[count..];
        while let Some(next) = requests.take() {
            heard.push(next.map(|(request, fds)| {
                let wanted = match &request {
                    Request::Register(register) => register.components.len(),
                    _ => 0,
                };
                assert!(fds.len() == wanted && wanted <= STEPS_PER_FLOW_MAX);
                (written(&request), fds.len())
            }));
        }
        assert_eq!(requests.excess(), None, "{} bytes are below {API_LINE_MAX_BYTES}", bytes.len());
    }
    heard
}

fn written(request: &Request) -> String {
    serde_json::to_string(request).expect("a request is JSON")
}
