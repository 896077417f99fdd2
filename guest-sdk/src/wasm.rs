//! The SDK's side of `wit/flow.wit`, and the conversions between its types and those that a step sees.
//!
//! The bindings are generated here once, for the world that has everything; the linker drops the imports that a step
//! does not call, so a component's imports are what it uses.

use serde::{Serialize, de::DeserializeOwned};

use crate::artifacts::{ArtifactError, Entry};
use crate::log::Level;
use crate::rt::{Json, run_json};

#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "full-step",
        pub_export_macro: true,
        runtime_path: "::tm_guest::wasm::wit_bindgen::rt",
    });
}

pub use bindings::exports::tracemind::flow::step::{Context, Guest, StepError};
use bindings::tracemind::flow::types::{Failure, RetryableFailure};
use bindings::tracemind::flow::{artifacts as wit, cancel, log, progress};
pub use wit_bindgen;

pub type Input = String;

/// Where the host's call arrives.
pub fn enter<In: DeserializeOwned, Out: Serialize>(
    step: impl FnOnce(&crate::Context, Json<In>) -> Result<Json<Out>, crate::StepError>,
    ctx: Context,
    input: Input,
) -> Result<String, StepError> {
    crate::panic::install_hook();
    Ok(run_json(step, &ctx.into(), &input)?)
}

pub(crate) fn emit(level: Level, message: &str) {
    let level = match level {
        Level::Trace => log::Level::Trace,
        Level::Debug => log::Level::Debug,
        Level::Info => log::Level::Info,
        Level::Warn => log::Level::Warn,
        Level::Error => log::Level::Error,
    };
    log::emit(level, message);
}

pub(crate) fn report(percent: u8, message: Option<&str>) {
    progress::report(percent, message);
}

pub(crate) fn requested() -> bool {
    cancel::requested()
}

pub(crate) fn create(name: &str) -> Result<Writer, ArtifactError> {
    Ok(Writer(wit::create(name)?))
}

pub(crate) fn open(step: &str, name: &str) -> Result<Reader, ArtifactError> {
    Ok(Reader(wit::open(step, name)?))
}

pub(crate) fn entries(step: &str) -> Result<Vec<Entry>, ArtifactError> {
    let entries = wit::entries(step)?;
    Ok(entries.into_iter().map(|e| Entry { name: e.name, size_bytes: e.size_bytes }).collect())
}

pub(crate) struct Writer(wit::Writer);

impl Writer {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        Ok(self.0.write(bytes)?)
    }

    pub(crate) fn finish(self) -> Result<(), ArtifactError> {
        Ok(self.0.finish()?)
    }
}

pub(crate) struct Reader(wit::Reader);

impl Reader {
    pub(crate) fn read(&mut self, max_bytes: u32) -> Result<Vec<u8>, ArtifactError> {
        Ok(self.0.read(max_bytes)?)
    }
}

impl From<wit::ArtifactError> for ArtifactError {
    fn from(error: wit::ArtifactError) -> ArtifactError {
        match error {
            wit::ArtifactError::InvalidName(name) => ArtifactError::InvalidName(name),
            wit::ArtifactError::NotFound(name) => ArtifactError::NotFound(name),
            wit::ArtifactError::AlreadyExists(name) => ArtifactError::AlreadyExists(name),
            wit::ArtifactError::LimitExceeded => ArtifactError::LimitExceeded,
            wit::ArtifactError::Io(why) => ArtifactError::Io(why),
        }
    }
}

impl From<Context> for crate::Context {
    fn from(c: Context) -> crate::Context {
        crate::Context {
            run_id: c.run_id,
            flow_id: c.flow_id,
            step_id: c.step_id,
            task_id: c.task_id,
            attempt: c.attempt,
            max_attempts: c.max_attempts,
            idempotency_key: c.idempotency_key,
            deadline_ms: c.deadline_ms,
            trace_parent: c.trace_parent,
        }
    }
}

impl From<crate::StepError> for StepError {
    fn from(error: crate::StepError) -> StepError {
        match error {
            crate::StepError::Retryable { code, message, retry_after_ms } => {
                StepError::Retryable(RetryableFailure { code, message, retry_after_ms })
            }
            crate::StepError::RateLimited { code, message, retry_after_ms } => {
                StepError::RateLimited(RetryableFailure { code, message, retry_after_ms })
            }
            crate::StepError::InvalidInput { code, message } => StepError::InvalidInput(Failure { code, message }),
            crate::StepError::Fatal { code, message } => StepError::Fatal(Failure { code, message }),
        }
    }
}
