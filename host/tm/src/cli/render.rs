//! What commands print: lines for people, JSON for programs, colour only on a terminal.

mod letters;

pub(crate) use letters::{letter, letter_detail};

use std::{
    env, fmt,
    io::{self, IsTerminal as _, Write},
};

use serde::{Serialize, Serializer};
use tm_core::{
    api::{AttemptRow, RunDetail, RunEnd, RunRow, RunState, Stats, TaskError, TaskRow, TaskState},
    id::{Attempt, RunId},
    json::Json,
    time::Millis,
};

/// One JSON value on a line of its own.
pub(crate) fn json_line<T: Serialize + ?Sized>(out: &mut impl Write, value: &T) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

/// A number of things: `1 record`, `2 records`. For nouns that take an s.
pub(crate) fn count(number: impl fmt::Display + PartialEq + From<u8>, noun: &str) -> String {
    let plural = if number == 1.into() { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// `error: …` and `hint: …` on standard error.
pub(crate) fn error(message: &str, hint: Option<&str>) -> io::Result<()> {
    let mut err = io::stderr().lock();
    let colour = err.is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (red, cyan, plain) = if colour { ("\x1b[1;31m", "\x1b[1;36m", "\x1b[0m") } else { ("", "", "") };
    writeln!(err, "{red}error:{plain} {message}")?;
    hint.map_or(Ok(()), |hint| writeln!(err, "{cyan}hint:{plain} {hint}"))
}

/// A point in time, in RFC 3339.
struct When(Millis);

impl Serialize for When {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&self.0)
    }
}

/// `backend=… depth=… ready=… inflight=… lag_seconds=…`.
pub(crate) fn stats(out: &mut impl Write, stats: &Stats, json: bool) -> io::Result<()> {
    if json {
        return json_line(out, stats);
    }
    writeln!(
        out,
        "backend={} depth={} ready={} inflight={} lag_seconds={:.3}",
        stats.backend, stats.depth, stats.ready, stats.inflight, stats.lag_seconds
    )?;
    stats.held_back.as_ref().map_or(Ok(()), |why| writeln!(out, "note: nothing is leased: {why}"))
}

/// How a run ended.
#[derive(Serialize)]
struct EndLine<'a> {
    status: RunState,
    run_id: RunId,
    output: &'a Option<Json>,
    exec_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: &'a Option<TaskError>,
}

/// `{"status","run_id","output","exec_ms"}`, and `"error"` when the run did not succeed.
pub(crate) fn end(out: &mut impl Write, end: &RunEnd) -> io::Result<()> {
    let RunEnd { run_id, status, output, exec_ms, error } = end;
    json_line(out, &EndLine { status: *status, run_id: *run_id, output, exec_ms: *exec_ms, error })
}

#[derive(Serialize)]
struct RowLine<'a> {
    run_id: RunId,
    flow_id: &'a str,
    tenant: &'a str,
    state: RunState,
    enqueued_at: When,
    priority: u8,
    tasks_done: u64,
    tasks_total: u64,
}

impl<'a> RowLine<'a> {
    fn of(row: &'a RunRow) -> Self {
        Self {
            run_id: row.run_id,
            flow_id: &row.flow_id,
            tenant: &row.tenant,
            state: row.state,
            enqueued_at: When(row.enqueued_at),
            priority: row.priority,
            tasks_done: row.tasks_done,
            tasks_total: row.tasks_total,
        }
    }
}

/// `tm queue ls`: page by page.
pub(crate) struct Runs(Option<Table<7>>);

impl Runs {
    pub(crate) fn new(json: bool) -> Self {
        Self((!json).then(|| Table::new(["RUN", "STATE", "FLOW", "TENANT", "PRIORITY", "TASKS", "ENQUEUED"])))
    }

    pub(crate) fn print(&mut self, out: &mut impl Write, rows: &[RunRow]) -> io::Result<()> {
        let Some(table) = &mut self.0 else { return rows.iter().try_for_each(|row| json_line(out, &RowLine::of(row))) };
        let cells = rows.iter().map(|row| {
            [
                row.run_id.to_string(),
                run_state(row.state).to_owned(),
                row.flow_id.clone(),
                row.tenant.clone(),
                row.priority.to_string(),
                format!("{}/{}", row.tasks_done, row.tasks_total),
                row.enqueued_at.to_string(),
            ]
        });
        table.print(out, &cells.collect::<Vec<_>>())
    }
}

#[derive(Serialize)]
struct RunLine<'a> {
    run_id: RunId,
    flow_id: &'a str,
    flow_digest: &'a str,
    tenant: &'a str,
    state: RunState,
    enqueued_at: When,
    ended_at: Option<When>,
    priority: u8,
    idempotency_key: &'a Option<String>,
    env: &'a [(String, String)],
    headers: &'a Option<Json>,
    input: &'a Option<Json>,
    held_back: &'a Option<String>,
    tasks: Vec<TaskLine<'a>>,
}

#[derive(Serialize)]
struct TaskLine<'a> {
    task_id: &'a str,
    step: &'a str,
    state: TaskState,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: &'a Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<u8>,
    #[serde(skip_serializing_if = "is_zero")]
    attempts_left_out: u32,
    attempts: Vec<AttemptLine<'a>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct AttemptLine<'a> {
    attempt: Attempt,
    started_at: When,
    ended_at: Option<When>,
    worker: u64,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: &'a Option<String>,
    fuel: u64,
    peak_memory_bytes: u64,
}

impl<'a> From<&'a TaskRow> for TaskLine<'a> {
    fn from(task: &'a TaskRow) -> Self {
        let attempt = |row: &'a AttemptRow| AttemptLine {
            attempt: row.attempt,
            started_at: When(row.started_at),
            ended_at: row.ended_at.map(When),
            worker: row.worker,
            outcome: &row.outcome,
            code: &row.code,
            fuel: row.fuel,
            peak_memory_bytes: row.peak_memory_bytes,
        };
        Self {
            task_id: &task.task_id,
            step: &task.step,
            state: task.state,
            waiting_for: &task.waiting_for,
            percent: task.percent,
            attempts_left_out: task.attempts_left_out,
            attempts: task.attempts.iter().map(attempt).collect(),
        }
    }
}

/// `tm queue show`.
pub(crate) fn run(out: &mut impl Write, run: &RunDetail, json: bool) -> io::Result<()> {
    if json {
        return json_line(
            out,
            &RunLine {
                run_id: run.run_id,
                flow_id: &run.flow_id,
                flow_digest: &run.flow_digest,
                tenant: &run.tenant,
                state: run.state,
                enqueued_at: When(run.enqueued_at),
                ended_at: run.ended_at.map(When),
                priority: run.priority,
                idempotency_key: &run.idempotency_key,
                env: &run.env,
                headers: &run.headers,
                input: &run.input,
                held_back: &run.held_back,
                tasks: run.tasks.iter().map(TaskLine::from).collect(),
            },
        );
    }
    let mut field = |name: &str, value: &dyn fmt::Display| writeln!(out, "{name:<9} {value}");
    field("run", &run.run_id)?;
    field("flow", &format_args!("{} ({:.12})", run.flow_id, run.flow_digest))?;
    field("tenant", &run.tenant)?;
    field("state", &run_state(run.state))?;
    field("enqueued", &run.enqueued_at)?;
    run.ended_at.map_or(Ok(()), |at| field("ended", &at))?;
    field("priority", &run.priority)?;
    run.idempotency_key.as_ref().map_or(Ok(()), |key| field("key", key))?;
    run.env.iter().try_for_each(|(name, value)| field("env", &format_args!("{name}={value}")))?;
    run.headers.as_ref().map_or(Ok(()), |headers| field("headers", &headers.get()))?;
    run.input.as_ref().map_or(Ok(()), |input| field("input", &input.get()))?;
    run.held_back.as_ref().map_or(Ok(()), |why| field("note", &format_args!("nothing is leased: {why}")))?;
    writeln!(out)?;
    let cells = run.tasks.iter().flat_map(task_cells);
    let head = ["STEP", "STATE", "ATTEMPT", "OUTCOME", "CODE", "MS", "WAITING FOR"];
    Table::new(head).print(out, &cells.collect::<Vec<_>>())
}

/// One row per attempt; a task without attempts has one row too.
fn task_cells(task: &TaskRow) -> Vec<[String; 7]> {
    let step = task.task_id.split_once('.').map_or(task.step.as_str(), |(_, step)| step);
    let state = match task.percent {
        Some(percent) if task.state == TaskState::Leased => format!("{} {percent}%", task_state(task.state)),
        _ => task_state(task.state).to_owned(),
    };
    let waiting = task.waiting_for.clone().unwrap_or_default();
    if task.attempts.is_empty() {
        let none = String::new;
        return vec![[step.to_owned(), state, none(), none(), none(), none(), waiting]];
    }
    let last = task.attempts.len() - 1;
    let left_out = (task.attempts_left_out > 0).then(|| {
        let mut row: [String; 7] = Default::default();
        (row[0], row[3]) = (step.to_owned(), format!("{} earlier left out", task.attempts_left_out));
        row
    });
    let row = |(place, attempt): (usize, &AttemptRow)| {
        [
            if place == 0 && left_out.is_none() { step.to_owned() } else { String::new() },
            if place == last { state.clone() } else { String::new() },
            attempt.attempt.to_string(),
            attempt.outcome.clone(),
            attempt.code.clone().unwrap_or_default(),
            attempt.ended_at.map(|ended| ended.since(attempt.started_at).to_string()).unwrap_or_default(),
            if place == last { waiting.clone() } else { String::new() },
        ]
    };
    let rows: Vec<_> = task.attempts.iter().enumerate().map(row).collect();
    left_out.into_iter().chain(rows).collect()
}

pub(crate) fn run_state(state: RunState) -> &'static str {
    match state {
        RunState::Active => "active",
        RunState::Stalled => "stalled",
        RunState::Succeeded => "succeeded",
        RunState::Failed => "failed",
        RunState::Cancelled => "cancelled",
    }
}

fn task_state(state: TaskState) -> &'static str {
    match state {
        TaskState::Waiting => "waiting",
        TaskState::Ready => "ready",
        TaskState::Delayed => "delayed",
        TaskState::Leased => "leased",
        TaskState::Succeeded => "succeeded",
        TaskState::Dead => "dead",
        TaskState::Skipped => "skipped",
        TaskState::Cancelled => "cancelled",
    }
}

/// Prints rows in columns as wide as their widest cell so far, two spaces apart, nothing behind the last.
struct Table<const N: usize> {
    /// Printed before the first rows.
    head: Option<[&'static str; N]>,
    widths: [usize; N],
}

impl<const N: usize> Table<N> {
    fn new(head: [&'static str; N]) -> Self {
        Self { head: Some(head), widths: head.map(str::len) }
    }

    fn print(&mut self, out: &mut impl Write, rows: &[[String; N]]) -> io::Result<()> {
        for (column, width) in self.widths.iter_mut().enumerate() {
            let cells = rows.iter().map(|row| row[column].chars().count());
            *width = cells.chain([*width]).max().unwrap_or_default();
        }
        let widths = self.widths;
        let mut line = |cells: [&str; N]| {
            let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())
        };
        self.head.take().map_or(Ok(()), &mut line)?;
        rows.iter().try_for_each(|row| line(std::array::from_fn(|column| row[column].as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn detail() -> RunDetail {
        let attempt = |attempt, ended_at, outcome: &str| AttemptRow {
            attempt,
            started_at: Millis(1_000),
            ended_at,
            worker: 1,
            outcome: outcome.into(),
            code: (outcome == "retry").then(|| "TRAP".into()),
            fuel: 7,
            peak_memory_bytes: 65_536,
        };
        RunDetail {
            run_id: RunId(1),
            flow_id: "f".into(),
            flow_digest: "0123456789abcdef".into(),
            tenant: "default".into(),
            state: RunState::Active,
            enqueued_at: Millis(0),
            ended_at: None,
            priority: 5,
            idempotency_key: Some("k".into()),
            env: vec![("FAIL_RATE".into(), "0.5".into())],
            headers: None,
            input: Some(Json::parse("{\"big\": 12345678901234567890.25}").unwrap()),
            held_back: None,
            tasks: vec![
                TaskRow {
                    task_id: format!("{}.a[3]", RunId(1)),
                    step: "a".into(),
                    state: TaskState::Leased,
                    waiting_for: None,
                    percent: Some(40),
                    attempts_left_out: 0,
                    attempts: vec![attempt(1, Some(Millis(1_250)), "retry"), attempt(2, None, "running")],
                },
                TaskRow {
                    task_id: format!("{}.b", RunId(1)),
                    step: "b".into(),
                    state: TaskState::Waiting,
                    waiting_for: Some("a".into()),
                    percent: None,
                    attempts_left_out: 0,
                    attempts: Vec::new(),
                },
            ],
        }
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0_u64, 1, 2].map(|number| count(number, "record")), ["0 records", "1 record", "2 records"]);
    }

    #[test]
    fn a_run_shows_each_attempt() {
        insta::assert_snapshot!(text(|out| run(out, &detail(), false)), @r#"
        run       00000000000000000000000001
        flow      f (0123456789ab)
        tenant    default
        state     active
        enqueued  1970-01-01T00:00:00.000Z
        priority  5
        key       k
        env       FAIL_RATE=0.5
        input     {"big": 12345678901234567890.25}

        STEP  STATE       ATTEMPT  OUTCOME  CODE  MS   WAITING FOR
        a[3]              1        retry    TRAP  250
              leased 40%  2        running
        b     waiting                                  a
        "#);
    }

    #[test]
    fn a_full_disk_is_told_in_a_line_and_in_json() {
        let why = Some("the queue's disk has no room".to_owned());
        let held = RunDetail { held_back: why.clone(), ..detail() };
        assert!(
            text(|out| run(out, &held, false))
                .contains("\nnote      nothing is leased: the queue's disk has no room\n")
        );
        assert!(text(|out| run(out, &held, true)).contains(r#""held_back":"the queue's disk has no room""#));
        let counted = Stats { held_back: why, ..Stats::default() };
        let lines = text(|out| stats(out, &counted, false));
        assert!(lines.ends_with("\nnote: nothing is leased: the queue's disk has no room\n"), "{lines}");
        assert!(text(|out| stats(out, &counted, true)).contains(r#""held_back":"the queue's disk has no room""#));
        assert_eq!(text(|out| stats(out, &Stats::default(), false)).lines().count(), 1);
    }

    #[test]
    fn attempts_that_are_not_kept_are_counted() {
        let mut detail = detail();
        detail.tasks[0].attempts_left_out = 9;
        let table = text(|out| run(out, &detail, false));
        let rows: Vec<_> = table.lines().skip_while(|line| !line.starts_with("STEP")).skip(1).collect();
        assert!(rows[0].starts_with("a[3]") && rows[0].ends_with("9 earlier left out"), "{table}");
        assert!(rows[1].trim_start().starts_with("1 "), "{table}");
        assert!(text(|out| run(out, &detail, true)).contains(r#""attempts_left_out":9,"attempts":[{"attempt":1"#));
    }

    #[test]
    fn json_has_times_in_rfc_3339_and_carries_payloads_unchanged() {
        let line = text(|out| run(out, &detail(), true));
        assert!(line.contains(r#""started_at":"1970-01-01T00:00:01.000Z","ended_at":"1970-01-01T00:00:01.250Z""#));
        assert!(line.contains(r#""input":{"big": 12345678901234567890.25}"#));
        assert_eq!(line.lines().count(), 1);
    }
}
