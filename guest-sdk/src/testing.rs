//! For native unit tests of a step: run it on JSON, and look at what it did with the capabilities.
//!
//! The records belong to the current thread, that is, to one test.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::log::Level;
use crate::recorder::with;
use crate::{Context, Json, StepError};

/// Runs a step on a JSON value, through the same code that the host's call takes.
///
/// # Errors
/// What the step returns, and `InvalidInput` when `input` does not have its shape.
pub fn run<In: DeserializeOwned, Out: Serialize>(
    step: impl FnOnce(&Context, Json<In>) -> Result<Json<Out>, StepError>,
    ctx: &Context,
    input: Value,
) -> Result<Value, StepError> {
    let text = crate::rt::run_json(step, ctx, &input.to_string())?;
    Ok(serde_json::from_str(&text).expect("serde_json wrote it"))
}

/// The lines that were logged, in order.
pub fn lines() -> Vec<(Level, String)> {
    with(|r| r.lines.clone())
}

/// The progress that was reported, in order.
pub fn progress() -> Vec<(u8, Option<String>)> {
    with(|r| r.progress.clone())
}

/// The content of a finished artefact.
pub fn artifact(name: &str) -> Option<Vec<u8>> {
    with(|r| r.written.get(name).cloned())
}

/// The names of all finished artefacts.
pub fn artifact_names() -> Vec<String> {
    with(|r| r.written.keys().cloned().collect())
}

/// Puts an artefact where the step finds it, as if the step `step` had written it.
pub fn provide(step: &str, name: &str, bytes: impl Into<Vec<u8>>) {
    with(|r| r.provided.entry(step.to_owned()).or_default().insert(name.to_owned(), bytes.into()));
}

/// From now on `cancel::requested` says yes.
pub fn request_cancel() {
    with(|r| r.cancel_requested = true);
}
