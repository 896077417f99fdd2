//! The gate for components: what the inspecting process reads of any bytes before it asks an engine. Here its function is
//! called directly.

use std::time::Duration;

use tm_core::{
    id::Digest,
    limits::{ERROR_MESSAGE_MAX_BYTES, PACKET_MAX_BYTES},
    wire::{FromWorker, codec},
};

use crate::{Target, Verdict, measure::within};

/// The worker's own source, without wasmtime: that would be compiled anew, with the flags that count coverage, for nothing.
#[path = "../../../host/worker/src/sandbox/contract.rs"]
pub mod contract;
#[path = "../../../host/worker/src/sandbox/walk.rs"]
pub mod walk;

pub const TARGET: Target = Target { name: "gate", run, words: WORDS, mend: None, len_max: 64 * 1024 };

const WORDS: &[&str] = &[
    "\0asm\x0d\0\x01\0",
    "\0asm\x01\0\0\0",
    "tracemind:flow/step@0.1.0",
    "wasi:io/streams@0.2.6",
    "run",
    "\x01",
    "\0",
    "\x7f",
];
/// The validator's types, against the bytes that they are written in.
const BYTES_PER_BYTE: usize = 1024;
/// The validator makes room for what a section announces, up to a million of most things, of 110 bytes each.
const BYTES: usize = 256 * 1024 * 1024;
const TIME_MAX: Duration = Duration::from_secs(5);

fn run(bytes: &[u8]) -> Verdict {
    let inspect = || walk::walk(bytes).map(|(walk, _)| walk.inspection(bytes, Vec::new()));
    let look = || within("inspecting", BYTES + BYTES_PER_BYTE * bytes.len(), TIME_MAX, inspect);
    let found = look();
    match (&found, &look()) {
        (Ok(one), Ok(other)) => assert_eq!(one, other),
        (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string()),
        (one, other) => panic!("refused and described: {one:?}, {other:?}"),
    }
    match found {
        Ok(found) => {
            assert_eq!(found.digest, Digest::of(bytes));
            let message = FromWorker::Inspected(Box::new(found));
            let packet = codec::write(&message).expect("a message has bytes");
            assert!(packet.len() <= PACKET_MAX_BYTES, "{} bytes do not fit into a packet", packet.len());
            Verdict::Taken
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.is_empty() && message.len() <= ERROR_MESSAGE_MAX_BYTES, "{} bytes", message.len());
            Verdict::Refused
        }
    }
}
