//! How a command ends: the exit code, and `error:` with its `hint:` on standard error.
//!
//! 0 done · 1 the task or command failed, nothing matched · 2 usage · 3 configuration or flow invalid · 4 busy, not
//! running, full, no queue · 5 data damaged · 70 our bug.

use std::{fmt, io, path::Path, process::ExitCode};

use tm_core::api::{ApiError, ErrorKind, Reply};

/// A command that did what it should, or that says by its code alone that a run did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    /// Exit 1; what there is to say has been printed.
    Failed,
    /// Exit 5; what is damaged has been printed.
    Damaged,
    /// Exit 3; the faults have been printed.
    Invalid,
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        match end {
            End::Done => Self::SUCCESS,
            End::Failed => Self::from(code(ErrorKind::Failed)),
            End::Damaged => Self::from(code(ErrorKind::Damaged)),
            End::Invalid => Self::from(code(ErrorKind::Invalid)),
        }
    }
}

pub(crate) type Outcome = Result<End, Failure>;

/// The exit code of a kind of error.
pub(crate) const fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Failed => 1,
        ErrorKind::Usage => 2,
        ErrorKind::Invalid => 3,
        ErrorKind::Busy => 4,
        ErrorKind::Damaged => 5,
        ErrorKind::Internal => 70,
    }
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// Standard output was closed by its reader: no failure, nothing is printed.
    quiet: bool,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, quiet: false }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Busy, message)
    }

    /// A reply of another kind than the request has: the two sides disagree, which is our bug.
    pub(crate) fn unexpected(request: &'static str, reply: &Reply) -> Self {
        let reply = serde_json::to_string(reply).unwrap_or_default();
        Self::new(ErrorKind::Internal, format!("the answer to {request} is of another kind: {reply:.200}"))
    }

    /// `cannot <verb> <path>: <reason>`.
    pub(crate) fn io(verb: &str, path: &Path, error: &io::Error) -> Self {
        Self::failed(format!("cannot {verb} {}: {}", path.display(), reason(error)))
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints `error: …` and `hint: …`, and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if self.quiet {
            return ExitCode::SUCCESS;
        }
        let mut faults = faults(&self.message);
        let last = faults.pop().unwrap_or_default();
        // Nothing is left to tell a caller that has closed standard error as well.
        let _ = faults.iter().try_for_each(|fault| super::render::error(fault, None));
        let _ = super::render::error(last, self.hint.as_deref());
        ExitCode::from(code(self.kind))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let message = match error.code {
            // With several faults it is not known whose code it is.
            Some(code) if !error.message.starts_with(&code) && faults(&error.message).len() == 1 => {
                format!("{code}: {}", error.message)
            }
            _ => error.message,
        };
        let hint = error.hint.or_else(|| error.retry_after_ms.map(|ms| format!("try again in {ms} ms")));
        Self { kind: error.kind, message, hint, quiet: false }
    }
}

/// Errors of writing to standard output: a closed pipe ends the command quietly.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self { quiet: true, ..Self::failed(String::new()) }
        } else {
            Self::failed(format!("cannot write to standard output: {}", reason(&error)))
        }
    }
}

/// The faults of a message, each with the lines that show its place: these begin with a space.
fn faults(message: &str) -> Vec<&str> {
    let ends = message.match_indices('\n').map(|(at, _)| at).filter(|at| !message[at + 1..].starts_with(' '));
    let (mut begin, mut faults) = (0, Vec::new());
    for end in ends {
        faults.push(&message[begin..end]);
        begin = end + 1;
    }
    faults.push(&message[begin..]);
    faults
}

/// The text of an I/O error in lower case and without the number that std appends.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_lower_case_and_has_no_number() {
        assert_eq!(reason(&io::Error::from_raw_os_error(2)), "no such file or directory");
        assert_eq!(reason(&io::Error::from_raw_os_error(13)), "permission denied");
    }

    #[test]
    fn each_fault_is_an_error_with_the_lines_that_show_it() {
        assert_eq!(
            faults("f:1:2: a\n   |\n 1 | x\n hint: y\nf:2:1: b"),
            ["f:1:2: a\n   |\n 1 | x\n hint: y", "f:2:1: b"]
        );
        assert_eq!((faults("one"), faults("")), (vec!["one"], vec![""]));
    }

    #[test]
    fn a_refusal_names_its_code_once() {
        let error = |message: &str| ApiError {
            kind: ErrorKind::Busy,
            code: Some("QUEUE_FULL".into()),
            message: message.into(),
            hint: None,
            retry_after_ms: Some(500),
        };
        let failure = Failure::from(error("the queue holds 10 tasks"));
        assert_eq!(failure.message, "QUEUE_FULL: the queue holds 10 tasks");
        assert_eq!(failure.hint.as_deref(), Some("try again in 500 ms"));
        assert_eq!(Failure::from(error("QUEUE_FULL: no room")).message, "QUEUE_FULL: no room");
    }
}
