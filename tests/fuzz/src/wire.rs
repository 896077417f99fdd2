//! What a worker sends: a packet through a real socket pair, its messages, and its reports made into inputs of the queue.

use std::{cell::RefCell, io::IoSlice, mem::MaybeUninit, time::Duration};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use tm_core::{
    flow::advance::Blobs,
    id::Digest,
    json::{Json, Payload},
    limits::{ERROR_CODE_MAX_BYTES, ERROR_MESSAGE_MAX_BYTES, INLINE_MAX_BYTES, PACKET_MAX_BYTES, PACKET_MAX_FDS},
    queue::effect,
    wire::{Body, FromWorker, Outcome, codec},
};
use tm_supervisor::{
    run::report_of,
    workers::{
        link::{Inbox, Link, LinkError, Received},
        sealed,
    },
};

use crate::{Target, Verdict, measure::within};

pub const TARGET: Target = Target { name: "wire", run, words: WORDS, mend: None, len_max: PACKET_MAX_BYTES + 1024 };

const WORDS: &[&str] = &[
    "\0",
    "\x01",
    "\x02",
    "\x03",
    "\x04",
    "\x05",
    "\x06",
    "\x07",
    "\x7f",
    // Payloads: a length before JSON text.
    "\x04null",
    "\x02{}",
    "\x08\"\\ud800\"",
    "[",
    "]",
    ",",
];
/// What stands behind a list's count in memory, against its bytes: an empty text takes one byte there and 24 here.
const BYTES_PER_BYTE: usize = 64;
/// Messages beside their texts: at most 1,024 of 170 bytes, in lists that grow by doubling; and what a list is given in
/// advance for its count.
const BYTES: usize = 2 * 1024 * 1024;
const TIME_MAX: Duration = Duration::from_secs(2);
/// The output that the step may have.
const OUTPUT_MAX_BYTES: u64 = 100 * 1024;
/// Bodies that the target makes for a packet that announces them; a longer one is not what was announced.
const BODY_MAX_BYTES: u64 = 200 * 1024;

thread_local! {
    static INBOX: RefCell<Inbox> = RefCell::default();
}

fn run(bytes: &[u8]) -> Verdict {
    let messages = codec::read::<FromWorker>(bytes);
    let announced: Vec<u64> = messages.iter().flatten().filter_map(announced).collect();
    let right: Vec<OwnedFd> = announced.iter().take(PACKET_MAX_FDS).filter_map(|&size| body(size)).collect();
    match receive(bytes, &right) {
        Some(Ok(received)) => {
            assert_eq!((right.len(), received.len()), (announced.len(), messages.as_ref().map_or(0, Vec::len)));
            received.into_iter().for_each(taken);
        }
        Some(Err(LinkError::Malformed(_))) => assert!(messages.is_err()),
        Some(Err(LinkError::PacketTooLarge)) => assert!(bytes.len() > PACKET_MAX_BYTES),
        Some(Err(LinkError::Closed)) => assert!(bytes.is_empty(), "an empty packet ends the link"),
        Some(Err(LinkError::BadDescriptor(_))) => assert!(announced.iter().any(|&size| size > BODY_MAX_BYTES)),
        Some(Err(LinkError::OtherDescriptors { .. })) => assert!(announced.len() > PACKET_MAX_FDS),
        Some(Err(error)) => panic!("{error}"),
        // Larger than the socket takes at all.
        None => assert!(bytes.len() > PACKET_MAX_BYTES),
    }
    if !announced.is_empty() && bytes.len() <= PACKET_MAX_BYTES {
        let none = receive(bytes, &[]).expect("a packet that fits");
        assert!(matches!(none, Err(LinkError::OtherDescriptors { .. })), "{none:?}");
    }
    if messages.is_ok_and(|messages| !messages.is_empty()) { Verdict::Taken } else { Verdict::Refused }
}

fn announced(message: &FromWorker) -> Option<u64> {
    match message {
        FromWorker::Compiled { size_bytes, .. } => Some(*size_bytes),
        FromWorker::Report(report) => match &report.outcome {
            Outcome::Succeeded { output: Body::Fd { size_bytes }, .. } => Some(*size_bytes),
            _ => None,
        },
        _ => None,
    }
}

/// A sealed file of so many bytes, JSON from two on.
fn body(size_bytes: u64) -> Option<OwnedFd> {
    let mut bytes = vec![b'x'; usize::try_from(size_bytes.min(BODY_MAX_BYTES)).ok()?];
    if let [first, .., last] = bytes.as_mut_slice() {
        (*first, *last) = (b'"', b'"');
    }
    sealed::make(&bytes).ok()
}

/// One packet through a socket pair of its own; none when the socket does not take it.
fn receive(bytes: &[u8], fds: &[OwnedFd]) -> Option<Result<Vec<Received>, LinkError>> {
    let (ours, theirs) = Link::pair().expect("a socket pair");
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    match sendmsg(&theirs, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
        Err(Errno::MSGSIZE) => return None,
        sent => drop(sent.expect("sent")),
    }
    INBOX.with_borrow_mut(|inbox| {
        let received = within("receiving", BYTES + BYTES_PER_BYTE * bytes.len(), TIME_MAX, || ours.receive(inbox));
        Some(received.map(|received| received.expect("a packet is there")))
    })
}

struct Anywhere;

impl Blobs for Anywhere {
    fn read(&self, _: &Digest) -> Option<Json> {
        None
    }

    fn put(&self, json: &Json) -> Option<Digest> {
        Some(Digest::of(json.get().as_bytes()))
    }
}

/// A message is what it says when it is written again, and a report stays within the bounds of a record.
fn taken(received: Received) {
    let Received { message, fds } = received;
    let bytes = codec::write(&message).expect("a message has bytes");
    let again = codec::read::<FromWorker>(&bytes).expect("what was written can be read");
    assert_eq!(
        again.iter().flat_map(|again| codec::write(again).expect("a message has bytes")).collect::<Vec<_>>(),
        bytes
    );
    let FromWorker::Report(report) = message else { return };
    let report = within("a report", BYTES + 4 * (bytes.len() + OUTPUT_MAX_BYTES as usize), TIME_MAX, || {
        report_of(*report, &fds, OUTPUT_MAX_BYTES, &Anywhere)
    });
    match &report.outcome {
        effect::Outcome::Failed(failure) => {
            // Each replaced control character has three bytes.
            assert!(failure.code.len() <= 3 * ERROR_CODE_MAX_BYTES && !failure.code.is_empty());
            assert!(failure.message.len() <= 3 * ERROR_MESSAGE_MAX_BYTES);
            assert!(!failure.message.contains('\u{1b}') && !failure.code.contains('\u{1b}'));
        }
        effect::Outcome::Succeeded { output, .. } => match output {
            Payload::Inline(json) => {
                assert!(json.size_bytes() <= INLINE_MAX_BYTES && !json.get().contains('\n'));
                Json::parse(json.get()).expect("an output is JSON");
            }
            Payload::Blob(blob) => assert!(blob.size_bytes <= OUTPUT_MAX_BYTES),
        },
        effect::Outcome::NotStarted => {}
    }
}
