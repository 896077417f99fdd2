//! `tm dlq …`: lists dead letters, puts them back, or gives them up.

use std::{
    io::{self, BufRead as _, BufWriter, IsTerminal as _, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use tm_core::{
    api::{DlqAction, DlqFilter, DlqOutcome, Reply, Request},
    time::Millis,
};

use crate::cli::{
    args::{DlqActionArgs, DlqLsArgs, DlqShowArgs},
    client::{Need, Session},
    exit::{End, Failure, Outcome},
    render,
};

/// `tm dlq ls`: JSON lines, newest first.
pub(crate) fn ls(args: DlqLsArgs) -> Outcome {
    let mut session = Session::open(&args.folders, None, Need::Read)?;
    let since = args.since.map(|span_ms| Millis(now().0.saturating_sub(span_ms)));
    let filter = DlqFilter { since, flow: args.filter.flow, code: args.filter.code, limit: args.limit };
    match session.ask(&Request::DlqList(filter))? {
        Reply::DlqEntries(entries) => {
            let mut out = BufWriter::new(io::stdout().lock());
            entries.iter().try_for_each(|entry| render::letter(&mut out, entry))?;
            out.flush()?;
            Ok(End::Done)
        }
        other => Err(Failure::unexpected("a list of dead letters", &other)),
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
        Reply::DlqEntries(entries) => {
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
    let request = Request::DlqRequeue(action(args, &args.pattern, args.dry_run));
    let outcomes = done(Session::change(&args.folders, args.backend.queue, &request)?)?;
    print(&outcomes, args)
}

/// `tm dlq purge`: asks first, and then purges what it has shown and no more.
pub(crate) fn purge(args: &DlqActionArgs) -> Outcome {
    let change = |dry_run| {
        let request = Request::DlqPurge(action(args, &args.pattern, dry_run));
        done(Session::change(&args.folders, args.backend.queue, &request)?)
    };
    if args.dry_run || args.yes {
        return print(&change(args.dry_run)?, args);
    }
    let shown = change(true)?;
    confirm(&shown)?;
    let mut session = Session::open(&args.folders, args.backend.queue, Need::Change)?;
    let mut outcomes = Vec::with_capacity(shown.len());
    for entry in &shown {
        outcomes.extend(done(session.ask(&Request::DlqPurge(action(args, &entry.entry_id, false)))?)?);
    }
    print(&outcomes, args)
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

/// `requeued ENTRY -> task ID`, `purged ENTRY`, `skipped ENTRY (why)`; exit 1 when nothing was done.
fn print(outcomes: &[DlqOutcome], args: &DlqActionArgs) -> Outcome {
    let mut out = BufWriter::new(io::stdout().lock());
    for outcome in outcomes {
        if args.json.json {
            render::json_line(&mut out, outcome)?;
        } else {
            writeln!(out, "{}", line(outcome))?;
        }
    }
    out.flush()?;
    let all_skipped = !outcomes.is_empty() && outcomes.iter().all(|outcome| outcome.outcome == "skipped");
    Ok(if all_skipped { End::Failed } else { End::Done })
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
