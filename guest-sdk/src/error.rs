//! Why a step did not succeed, named by what the host does next.

use std::fmt;

use crate::artifacts::ArtifactError;

/// The failure of a step. The host bounds `code` to 64 bytes and `message` to 4 KiB.
///
/// A code is a short constant in capitals (`UPSTREAM_DOWN`): people filter dead letters by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepError {
    /// Tried again with backoff until the attempts are used up.
    Retryable { code: String, message: String, retry_after_ms: Option<u64> },
    /// Tried again, not before `retry_after_ms`; does not count as a failure.
    RateLimited { code: String, message: String, retry_after_ms: Option<u64> },
    /// The input is at fault: dead-lettered at once.
    InvalidInput { code: String, message: String },
    /// No attempt will ever succeed: dead-lettered at once.
    Fatal { code: String, message: String },
}

impl StepError {
    /// Another attempt may cure it.
    pub fn retryable(code: impl Into<String>, message: impl Into<String>) -> StepError {
        StepError::Retryable { code: code.into(), message: message.into(), retry_after_ms: None }
    }

    /// Another attempt may cure it, but none before `ms` milliseconds have passed.
    pub fn retry_after(ms: u64, code: impl Into<String>, message: impl Into<String>) -> StepError {
        StepError::Retryable { code: code.into(), message: message.into(), retry_after_ms: Some(ms) }
    }

    /// Somebody asked to come back in `ms` milliseconds. The code is `RATE_LIMITED`.
    pub fn rate_limited(ms: u64, message: impl Into<String>) -> StepError {
        StepError::RateLimited { code: "RATE_LIMITED".to_owned(), message: message.into(), retry_after_ms: Some(ms) }
    }

    /// The same input will always be refused.
    pub fn invalid_input(code: impl Into<String>, message: impl Into<String>) -> StepError {
        StepError::InvalidInput { code: code.into(), message: message.into() }
    }

    /// No attempt will ever succeed.
    pub fn fatal(code: impl Into<String>, message: impl Into<String>) -> StepError {
        StepError::Fatal { code: code.into(), message: message.into() }
    }

    pub fn code(&self) -> &str {
        match self {
            StepError::Retryable { code, .. }
            | StepError::RateLimited { code, .. }
            | StepError::InvalidInput { code, .. }
            | StepError::Fatal { code, .. } => code,
        }
    }

    pub fn message(&self) -> &str {
        match self {
            StepError::Retryable { message, .. }
            | StepError::RateLimited { message, .. }
            | StepError::InvalidInput { message, .. }
            | StepError::Fatal { message, .. } => message,
        }
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.message())
    }
}

impl std::error::Error for StepError {}

/// `?` on an artefact: host I/O may be cured by another attempt, everything else is the step's own doing.
impl From<ArtifactError> for StepError {
    fn from(error: ArtifactError) -> StepError {
        match error {
            ArtifactError::Io(_) => StepError::retryable("ARTIFACT_IO", error.to_string()),
            ArtifactError::InvalidName(_) => StepError::fatal("ARTIFACT_NAME", error.to_string()),
            ArtifactError::NotFound(_) => StepError::fatal("ARTIFACT_NOT_FOUND", error.to_string()),
            ArtifactError::AlreadyExists(_) => StepError::fatal("ARTIFACT_EXISTS", error.to_string()),
            ArtifactError::LimitExceeded => StepError::fatal("ARTIFACT_LIMIT", error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artefact_that_could_not_be_read_by_the_host_is_tried_again() {
        assert!(matches!(ArtifactError::Io("disk".into()).into(), StepError::Retryable { .. }));
        assert!(matches!(ArtifactError::NotFound("a".into()).into(), StepError::Fatal { .. }));
    }

    #[test]
    fn a_rate_limit_carries_its_delay_and_a_fixed_code() {
        let error = StepError::rate_limited(1500, "slow down");
        assert_eq!(error.code(), "RATE_LIMITED");
        assert!(matches!(error, StepError::RateLimited { retry_after_ms: Some(1500), .. }));
    }
}
