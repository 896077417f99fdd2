//! Every bound, with its unit and its relation to the others.

use serde::{Deserialize, Serialize};

use crate::time::Millis;

/// Payloads above this go into blobs.
pub const INLINE_MAX_BYTES: u64 = 64 * 1024;
/// The largest input of a run, and the largest rendered input of a task.
pub const INPUT_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// One packet between supervisor and worker: messages are batched up to this.
pub const PACKET_MAX_BYTES: usize = 160 * 1024;
/// Messages in one packet.
pub const PACKET_MAX_MESSAGES: usize = 1024;
/// Descriptors in one packet (the kernel's SCM_MAX_FD is 253).
pub const PACKET_MAX_FDS: usize = 64;
/// One request or reply line between client and supervisor.
pub const API_LINE_MAX_BYTES: usize = 20 * 1024 * 1024;
pub const STEPS_PER_FLOW_MAX: usize = 256;
pub const ITEMS_PER_FAN_OUT_MAX: usize = 10_000;
/// A flow's YAML or JSON text.
pub const FLOW_TEXT_MAX_BYTES: u64 = 1024 * 1024;
/// A component's bytes.
pub const COMPONENT_MAX_BYTES: u64 = 128 * 1024 * 1024;
/// A native artefact's bytes.
pub const NATIVE_MAX_BYTES: u64 = 512 * 1024 * 1024;
pub const ERROR_CODE_MAX_BYTES: usize = 64;
pub const ERROR_MESSAGE_MAX_BYTES: usize = 4 * 1024;
pub const IDEMPOTENCY_KEY_MAX_BYTES: usize = 256;
pub const HEADERS_MAX_BYTES: usize = 16 * 1024;
/// The latest start of a run: the end of the times that RFC 3339 writes in every offset, 9999-12-30T22:00:00Z.
pub const READY_AT_MAX: Millis = Millis(253_402_207_200_000);
pub const PRIORITY_MAX: u8 = 9;
pub const PRIORITY_DEFAULT: u8 = 5;
/// Inputs that one turn of the loop takes.
pub const INPUTS_PER_TURN_MAX: usize = 256;
/// Two WORKER_LOST in company do not count as failures, a third does.
pub const LOST_IN_COMPANY_MAX: u8 = 2;
pub const RATE_LIMITED_MAX_MS: u64 = 24 * 3600 * 1000;
/// Bytes reserved in the log when a task is leased, so that its end fits on a full disk (I7).
pub const END_RESERVE_BYTES: u64 = INLINE_MAX_BYTES + 2 * ERROR_MESSAGE_MAX_BYTES as u64 + 4 * 1024;

/// Inputs of steps that one decision makes itself, on the loop; more is made beside it. They stand in the frame of a
/// success, which has no messages: its end is reserved all the same (I7).
pub const AT_ONCE_MAX_BYTES: u64 = 2 * ERROR_MESSAGE_MAX_BYTES as u64;

const _: () =
    assert!(INLINE_MAX_BYTES < PACKET_MAX_BYTES as u64 / 2, "an inline payload fits into a packet beside its envelope");
const _: () = assert!(INPUT_MAX_BYTES < API_LINE_MAX_BYTES as u64, "an input fits into a request");

/// What one attempt of a step may use. All values are resolved; a flow asks with [`crate::flow::spec::LimitsSpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Units of wasmtime fuel, about one per executed instruction.
    pub fuel: u64,
    /// Over all memories and tables of the store, and the bytes that the host buffers for it.
    pub memory_mb: u32,
    pub timeout_ms: u64,
    pub stack_kb: u32,
    pub output_kb: u32,
    /// Standard output, standard error and log together; cut with a marker, never an error.
    pub log_kb: u32,
    pub scratch_mb: u32,
    pub artifacts_mb: u32,
}

impl Limits {
    pub const DEFAULT: Self = Self {
        fuel: 10_000_000_000,
        memory_mb: 128,
        timeout_ms: 30_000,
        stack_kb: 1024,
        output_kb: 1024,
        log_kb: 64,
        scratch_mb: 64,
        artifacts_mb: 256,
    };
    /// The ceiling without a `[tenants]` table.
    pub const CEILING: Self = Self {
        fuel: 1_000_000_000_000,
        memory_mb: 1024,
        timeout_ms: 3_600_000,
        stack_kb: 8 * 1024,
        output_kb: 16 * 1024,
        log_kb: 1024,
        scratch_mb: 1024,
        artifacts_mb: 4096,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
