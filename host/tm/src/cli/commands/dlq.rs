//! `tm dlq …`: lists dead letters, puts them back, or gives them up.

use std::{
    io::{self, BufRead as _, BufWriter, IsTerminal as _, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use tm_core::{
    api::{DlqAction, DlqFilter, DlqOutcome, ErrorKind, Reply, Request},
    time::Millis,
};

use crate::cli::{
    args::{DlqActionArgs, DlqLsArgs, DlqShowArgs},
    client::{Need, Session},
    exit::{End, Failure, Outcome},
    render,
};

/// Purges that are asked for ahead of their answers.
const ASKED_AT_ONCE: usize = 4096;

/// `tm dlq ls`: JSON lines, newest first.
pub(crate) fn ls(args: DlqLsArgs) -> Outcome {
    let mut session = Session::open(&args.folders, None, Need::Read)?;
    let since = args.since.map(|span_ms| Millis(now().0.saturating_sub(span_ms)));
    let (flow, code) = (args.filter.flow, args.filter.code);
    let mut filter = DlqFilter { since, flow, code, limit: args.limit, below: None };
    let mut out = BufWriter::new(io::stdout().lock());
    loop {
        match session.ask(&Request::DlqList(filter.clone()))? {
            Reply::DlqEntries { entries, below } => {
                entries.iter().try_for_each(|entry| render::letter(&mut out, entry))?;
                filter.limit = filter.limit.saturating_sub(entries.len() as u64);
                filter.below = below;
            }
            other => return Err(Failure::unexpected("a list of dead letters", &other)),
        }
        if filter.below.is_none() {
            out.flush()?;
            return Ok(End::Done);
        }
    }
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// `tm dlq show`.
pub(crate) fn show(args: DlqShowArgs) -> Outcome {
    let mut session = Session::open(&args.folders, None, Need::Read)?;
    match session.ask(&Request::DlqShow { entry: args.entry })? {
        Reply::DlqEntries { entries, .. } => {
            let mut out = BufWriter::new(io::stdout().lock());
            entries.iter().try_for_each(|entry| render::letter_detail(&mut out, entry, args.json.json))?;
            out.flush()?;
            Ok(End::Done)
        }
        other => Err(Failure::unexpected("a dead letter", &other)),
    }
}

/// `tm dlq requeue`.
pub(crate) fn requeue(args: &DlqActionArgs) -> Outcome {
    change(args, &Request::DlqRequeue(action(args, &args.pattern, args.dry_run)))
}

/// `tm dlq purge`: asks first, and then purges what it has shown and no more.
pub(crate) fn purge(args: &DlqActionArgs) -> Outcome {
    if args.dry_run || args.yes {
        return change(args, &Request::DlqPurge(action(args, &args.pattern, args.dry_run)));
    }
    let mut shown = Vec::new();
    let request = Request::DlqPurge(action(args, &args.pattern, true));
    let mut part = |mut outcomes: Vec<DlqOutcome>| {
        shown.append(&mut outcomes);
        Ok(())
    };
    let last = done(Session::change_in_parts(&args.folders, args.backend.queue, &request, &mut part)?)?;
    shown.extend(last);
    confirm(&shown)?;
    let mut session = Session::open(&args.folders, args.backend.queue, Need::Change)?;
    let mut printed = Printed::new(args);
    for some in shown.chunks(ASKED_AT_ONCE) {
        let purge = |shown: &DlqOutcome| Request::DlqPurge(action(args, &shown.entry_id, false));
        let requests: Vec<_> = some.iter().map(purge).collect();
        let mut replies = Vec::new();
        let asked = session.ask_all(&requests, &mut replies);
        for (shown, reply) in some.iter().zip(replies) {
            printed.print(&purged(shown, reply)?)?;
        }
        asked?;
    }
    printed.end()
}

/// What became of an entry that was shown: somebody else may have taken it since.
fn purged(shown: &DlqOutcome, reply: Reply) -> Result<Vec<DlqOutcome>, Failure> {
    match reply {
        Reply::Error(error) if error.kind == ErrorKind::Failed => {
            let why = Some("no longer pending".to_owned());
            Ok(vec![DlqOutcome { outcome: "skipped".into(), why, ..shown.clone() }])
        }
        Reply::Error(error) => Err(error.into()),
        reply => done(reply),
    }
}

/// Asks for a change of many entries and prints what was done as it is done.
fn change(args: &DlqActionArgs, request: &Request) -> Outcome {
    let mut printed = Printed::new(args);
    let mut part = |outcomes: Vec<DlqOutcome>| printed.print(&outcomes);
    let last = Session::change_in_parts(&args.folders, args.backend.queue, request, &mut part)?;
    printed.print(&done(last)?)?;
    printed.end()
}

fn action(args: &DlqActionArgs, pattern: &str, dry_run: bool) -> DlqAction {
    let (flow, code) = (args.filter.flow.clone(), args.filter.code.clone());
    DlqAction { pattern: pattern.to_owned(), all: args.all, dry_run, flow, code }
}

fn done(reply: Reply) -> Result<Vec<DlqOutcome>, Failure> {
    match reply {
        Reply::DlqDone(outcomes) => Ok(outcomes),
        other => Err(Failure::unexpected("dead letters", &other)),
    }
}

/// Wants the word `purge`, from a terminal or a pipe.
fn confirm(shown: &[DlqOutcome]) -> Result<(), Failure> {
    let mut err = io::stderr().lock();
    for entry in shown {
        let _ = writeln!(err, "{} {}", entry.entry_id, entry.task_id);
    }
    let what = if shown.len() == 1 { "this entry" } else { "these entries" };
    let _ = write!(err, "purging ends the run of {what} as failed. Type purge to go on: ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    // A terminal has shown the end of the answer's line, a pipe shows nothing.
    if !(io::stdin().is_terminal() && answer.ends_with('\n')) {
        let _ = writeln!(err);
    }
    if read.is_ok() && answer.trim() == "purge" {
        return Ok(());
    }
    Err(Failure::failed("not confirmed: nothing was purged").hint("type the word purge, or pass --yes"))
}

/// Prints `requeued ENTRY -> task ID`, `purged ENTRY`, `skipped ENTRY (why)`.
struct Printed {
    json: bool,
    entries: usize,
    skipped: usize,
}

impl Printed {
    fn new(args: &DlqActionArgs) -> Self {
        Self { json: args.json.json, entries: 0, skipped: 0 }
    }

    fn print(&mut self, outcomes: &[DlqOutcome]) -> Result<(), Failure> {
        let mut out = BufWriter::new(io::stdout().lock());
        for outcome in outcomes {
            if self.json {
                render::json_line(&mut out, outcome)?;
            } else {
                writeln!(out, "{}", line(outcome))?;
            }
            self.entries += 1;
            self.skipped += usize::from(outcome.outcome == "skipped");
        }
        Ok(out.flush()?)
    }

    /// Exit 1 when nothing was done.
    fn end(self) -> Outcome {
        Ok(if self.entries > 0 && self.skipped == self.entries { End::Failed } else { End::Done })
    }
}

fn line(outcome: &DlqOutcome) -> String {
    let DlqOutcome { entry_id, task_id, outcome, why } = outcome;
    match (outcome.as_str(), why) {
        ("requeued" | "would requeue", None) => format!("{outcome} {entry_id} -> task {task_id}"),
        (_, None) => format!("{outcome} {entry_id}"),
        (_, Some(why)) => format!("{outcome} {entry_id} ({why})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_line() {
        let outcome = |outcome: &str, why: Option<&str>| DlqOutcome {
            entry_id: "dlq-1-0".into(),
            task_id: "R.s".into(),
            outcome: outcome.into(),
            why: why.map(Into::into),
        };
        assert_eq!(line(&outcome("requeued", None)), "requeued dlq-1-0 -> task R.s");
        assert_eq!(line(&outcome("would requeue", None)), "would requeue dlq-1-0 -> task R.s");
        assert_eq!(line(&outcome("purged", None)), "purged dlq-1-0");
        assert_eq!(line(&outcome("skipped", Some("key held by R2"))), "skipped dlq-1-0 (key held by R2)");
    }
}
