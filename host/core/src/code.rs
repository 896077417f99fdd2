//! The table of error codes and what follows each. A code outside this table fails the tidy test.

use serde::{Deserialize, Serialize};

/// What the queue does after an attempt did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Tried again with backoff; counts as a failure.
    Retryable,
    /// Tried again not before the given time; does not count as a failure.
    RateLimited,
    /// Dead-lettered at once: the input is at fault.
    InvalidInput,
    /// Dead-lettered at once.
    Fatal,
}

macro_rules! codes {
    ($($name:ident = $class:ident : $about:literal),+ $(,)?) => {
        $(#[doc = $about] pub const $name: &str = stringify!($name);)+
        /// All codes of the host with their class and meaning, in the order of the reference page.
        pub const TABLE: &[(&str, Class, &str)] = &[$(($name, Class::$class, $about)),+];
    };
}

codes! {
    RATE_LIMITED = RateLimited: "The step asked to be tried later; not a failure.",
    FUEL_EXHAUSTED = Fatal: "The step used up its fuel; the same input would again.",
    MEMORY_EXCEEDED = Fatal: "The step wanted more memory than memory_mb.",
    STACK_OVERFLOW = Fatal: "The step recursed deeper than its stack.",
    OUTPUT_TOO_LARGE = Fatal: "The step's output is larger than output_kb.",
    SCRATCH_EXCEEDED = Fatal: "The step wrote more than scratch_mb, or more than max_mb into a folder.",
    ARTIFACTS_EXCEEDED = Fatal: "The step's artefacts are larger than artifacts_mb.",
    TIMEOUT = Retryable: "The attempt ran longer than timeout_ms.",
    TRAP = Retryable: "The step trapped: a panic, an unreachable instruction, an access out of bounds.",
    ARTIFACT_EMPTY = Retryable: "The step finished an artefact of zero bytes.",
    OUTPUT_INVALID = Fatal: "The step's output is not JSON.",
    TEMPLATE_ERROR = Fatal: "An input template or a condition failed, or its result is too large.",
    RUN_TIMEOUT = Fatal: "The run's time, run_timeout_ms, was up; what waited or ran of it ended.",
    HOST_ERROR = Retryable: "The host could not do its part for the step.",
    DISK_FULL = Retryable: "The host had no room to store what the step made.",
    WORKER_LOST = Retryable: "The worker process died or was killed while the step ran.",
    RETRIES_EXHAUSTED = Fatal: "max_attempts failures; last_code says what the last one was.",
    CANCELLED = Fatal: "The run was cancelled.",
    INPUT_TOO_LARGE = Fatal: "The input is larger than 16 MiB.",
    CAPABILITY_DENIED = Fatal: "The flow asks for more than the operator allows, or imports what it did not ask for.",
    COMPILE_FAILED = Fatal: "The component cannot be read, compiled or called as a step.",
    COMPILE_LIMIT = Fatal: "Compiling the component took more time or memory than allowed.",
    QUEUE_FULL = RateLimited: "The queue holds hard_depth tasks, or its disk has no room.",
    // What a step answers without a code of its own.
    STEP_FAILED = Retryable: "The step failed and gave no code.",
    INVALID_INPUT = InvalidInput: "The step refused its input.",
}

/// The class of a host code; `None` for a code of a step.
#[must_use]
pub fn class_of(code: &str) -> Option<Class> {
    TABLE.iter().find(|row| row.0 == code).map(|row| row.1)
}
