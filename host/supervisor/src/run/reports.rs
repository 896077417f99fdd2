//! What a worker says, made into inputs. Everything from a worker is bounded and checked here or in the core (I3).

use std::os::fd::OwnedFd;

use tm_core::{
    code::{self, Class},
    flow::advance::{Blobs, payload_of},
    json::Json,
    limits::{ERROR_CODE_MAX_BYTES, ERROR_MESSAGE_MAX_BYTES, INLINE_MAX_BYTES},
    queue::effect::{Outcome, Report},
    wire::{self, Body, Failure},
};

use crate::{store::artifacts::ArtifactError, workers::sealed};

/// A report with its bodies as payloads. `output_max_bytes` is the step's own limit.
pub fn report_of(report: wire::Report, fds: &[OwnedFd], output_max_bytes: u64, blobs: &dyn Blobs) -> Report {
    let wire::Report { task, attempt, outcome, usage, .. } = report;
    let outcome = match outcome {
        wire::Outcome::NotStarted { .. } => Outcome::NotStarted,
        wire::Outcome::Failed(failure) => Outcome::Failed(bounded(failure)),
        wire::Outcome::Succeeded { output, artifacts } => match read(output, fds, output_max_bytes) {
            Err(failure) => Outcome::Failed(*failure),
            Ok(json) => {
                let large = json.size_bytes() > INLINE_MAX_BYTES;
                match payload_of(json, blobs) {
                    tm_core::json::Payload::Inline(_) if large => Outcome::Failed(host_failure(
                        code::DISK_FULL,
                        Class::Retryable,
                        "the store's disk has no room for the step's output".into(),
                    )),
                    output => Outcome::Succeeded { output, artifacts },
                }
            }
        },
    };
    Report { task, attempt, outcome, usage }
}

fn read(output: Body, fds: &[OwnedFd], max_bytes: u64) -> Result<Json, Box<Failure>> {
    let too_large = |bytes: u64| {
        let message = format!("the output has {bytes} bytes, output_kb allows {max_bytes}");
        Box::new(host_failure(code::OUTPUT_TOO_LARGE, Class::Fatal, message))
    };
    let invalid = |why: String| Box::new(host_failure(code::OUTPUT_INVALID, Class::Fatal, why));
    match output {
        Body::Inline(json) if json.size_bytes() > max_bytes => Err(too_large(json.size_bytes())),
        Body::Inline(json) => Ok(json),
        Body::Fd { size_bytes } if size_bytes > max_bytes => Err(too_large(size_bytes)),
        Body::Fd { .. } => {
            let fd = fds.first().ok_or_else(|| invalid("the output's descriptor is missing".into()))?;
            let bytes = sealed::read(fd, max_bytes).map_err(|error| invalid(error.to_string()))?;
            let text = String::from_utf8(bytes).map_err(|error| invalid(error.to_string()))?;
            Json::parse(&text).map_err(|error| invalid(format!("the output is not JSON: {error}")))
        }
    }
}

/// What follows when artefacts cannot be published.
pub(super) fn artifact_failure(error: &ArtifactError) -> Failure {
    let (code, class) = match error {
        ArtifactError::Empty { .. } => (code::ARTIFACT_EMPTY, Class::Retryable),
        ArtifactError::TooLarge { .. } | ArtifactError::TooMany => (code::ARTIFACTS_EXCEEDED, Class::Fatal),
        ArtifactError::Disk(error) if error.is_full() => (code::DISK_FULL, Class::Retryable),
        _ => (code::HOST_ERROR, Class::Retryable),
    };
    host_failure(code, class, error.to_string())
}

pub(super) fn host_failure(code: &str, class: Class, message: String) -> Failure {
    Failure { by_host: true, class, code: code.into(), message, retry_after_ms: None }
}

/// A failure within the bounds of a record: texts cut, control characters replaced, the class of a host code ours.
fn bounded(mut failure: Failure) -> Failure {
    failure.code = clean(&failure.code, ERROR_CODE_MAX_BYTES);
    failure.message = clean(&failure.message, ERROR_MESSAGE_MAX_BYTES);
    if failure.code.is_empty() {
        failure.code = code::STEP_FAILED.into();
    }
    if failure.by_host {
        failure.class = code::class_of(&failure.code).unwrap_or(failure.class);
    }
    failure
}

fn clean(text: &str, max_bytes: usize) -> String {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_worker_are_cut_and_cleaned() {
        let long = format!("\u{1b}[31m{}é", "x".repeat(ERROR_MESSAGE_MAX_BYTES - 6));
        let failure = bounded(Failure {
            by_host: true,
            class: Class::Retryable,
            code: code::FUEL_EXHAUSTED.into(),
            message: long,
            retry_after_ms: None,
        });
        assert!(failure.message.len() <= ERROR_MESSAGE_MAX_BYTES + 2 && !failure.message.contains('\u{1b}'));
        assert_eq!(failure.class, Class::Fatal, "the class of a host code is the table's");
    }
}
