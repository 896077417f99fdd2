//! Dead letters, as lines and in full.

use std::{
    fmt,
    io::{self, Write},
};

use serde::Serialize;
use tm_core::{
    api::{DlqEntry, TaskError},
    id::{Attempt, RunId},
};

use super::{When, json_line};

/// A dead letter as `tm dlq ls` prints it.
#[derive(Serialize)]
struct LetterLine<'a> {
    entry_id: &'a str,
    run_id: RunId,
    task_id: &'a str,
    flow_id: &'a str,
    attempt: Attempt,
    timestamp: When,
    error: &'a TaskError,
}

/// `tm dlq ls`: one line.
pub(crate) fn letter(out: &mut impl Write, entry: &DlqEntry) -> io::Result<()> {
    json_line(
        out,
        &LetterLine {
            entry_id: &entry.entry_id,
            run_id: entry.run_id,
            task_id: &entry.task_id,
            flow_id: &entry.flow_id,
            attempt: entry.attempt,
            timestamp: When(entry.timestamp),
            error: &entry.error,
        },
    )
}

/// `tm dlq show`: all that is known.
#[derive(Serialize)]
struct LetterDetail<'a> {
    #[serde(flatten)]
    line: LetterLine<'a>,
    tenant: &'a str,
    failures: u32,
    state: &'a str,
    consumed_at: Option<When>,
}

/// `tm dlq show`.
pub(crate) fn letter_detail(out: &mut impl Write, entry: &DlqEntry, json: bool) -> io::Result<()> {
    if json {
        let line = LetterLine {
            entry_id: &entry.entry_id,
            run_id: entry.run_id,
            task_id: &entry.task_id,
            flow_id: &entry.flow_id,
            attempt: entry.attempt,
            timestamp: When(entry.timestamp),
            error: &entry.error,
        };
        let (tenant, failures, state) = (&*entry.tenant, entry.failures, &*entry.state);
        let consumed_at = entry.consumed_at.map(When);
        return json_line(out, &LetterDetail { line, tenant, failures, state, consumed_at });
    }
    let mut field = |name: &str, value: &dyn fmt::Display| writeln!(out, "{name:<9} {value}");
    field("entry", &entry.entry_id)?;
    field("state", &entry.state)?;
    entry.consumed_at.map_or(Ok(()), |at| field("consumed", &at))?;
    field("task", &entry.task_id)?;
    field("flow", &entry.flow_id)?;
    field("tenant", &entry.tenant)?;
    field("died", &entry.timestamp)?;
    field("attempt", &format_args!("{} ({})", entry.attempt, super::count(entry.failures, "failure")))?;
    field("reason", &entry.error.reason)?;
    field("code", &entry.error.code)?;
    entry.error.last_code.as_ref().map_or(Ok(()), |code| field("last code", code))?;
    field("message", &entry.error.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tm_core::time::Millis;

    fn text(print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_dead_letter_has_the_documented_keys() {
        let entry = DlqEntry {
            entry_id: "dlq-1-0".into(),
            run_id: RunId(1),
            task_id: "T".into(),
            flow_id: "f".into(),
            tenant: "t".into(),
            attempt: 3,
            failures: 2,
            timestamp: Millis(0),
            state: "pending".into(),
            consumed_at: None,
            error: TaskError {
                code: "RETRIES_EXHAUSTED".into(),
                message: "m".into(),
                retryable: false,
                reason: "max_attempts".into(),
                last_code: Some("TRAP".into()),
            },
        };
        insta::assert_snapshot!(text(|out| letter(out, &entry)), @r#"{"entry_id":"dlq-1-0","run_id":"00000000000000000000000001","task_id":"T","flow_id":"f","attempt":3,"timestamp":"1970-01-01T00:00:00.000Z","error":{"error_code":"RETRIES_EXHAUSTED","error_message":"m","retryable":false,"reason":"max_attempts","last_code":"TRAP"}}"#);
        insta::assert_snapshot!(text(|out| letter_detail(out, &entry, true)), @r#"{"entry_id":"dlq-1-0","run_id":"00000000000000000000000001","task_id":"T","flow_id":"f","attempt":3,"timestamp":"1970-01-01T00:00:00.000Z","error":{"error_code":"RETRIES_EXHAUSTED","error_message":"m","retryable":false,"reason":"max_attempts","last_code":"TRAP"},"tenant":"t","failures":2,"state":"pending","consumed_at":null}"#);
    }
}
