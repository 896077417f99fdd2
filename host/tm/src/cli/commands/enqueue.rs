//! `tm enqueue`: one run, or a batch of JSON lines, pipelined.

use std::{
    io::{self, Write as _},
    path::Path,
};

use tm_core::{
    api::{EnqueueRequest, ErrorKind, Reply, Request, RunEnd, RunState},
    json::Json,
};

use crate::cli::{
    args::{EnqueueArgs, EnqueueFlags, Folders},
    client::{Need, Session, refuse_before_a_queue_is_made},
    commands::{batch, queue_runs},
    exit::{End, Failure, Outcome},
    flow::{Flow, Known, present},
    render, values,
};

pub(crate) fn run(args: &EnqueueArgs) -> Outcome {
    match &args.batch {
        None => one(&args.flow, &args.input, &args.flags, &args.folders, args.json.json),
        Some(lines) => many(args, lines),
    }
}

/// Enqueues one run and says what became of it; with `--wait`, how it ended.
pub(crate) fn one(flow: &str, input: &str, flags: &EnqueueFlags, folders: &Folders, json: bool) -> Outcome {
    // Everything that can be wrong with the arguments is found before the queue is touched.
    let template = Template::of(flags)?;
    let input = values::input(input)?;
    let tenant = &flags.tenant.tenant;
    let flow = Flow::open(flow, tenant, folders.config.as_deref())?;
    let need = if flags.wait { Need::Wait } else { flow.need() };
    if let (Need::Create, Flow::File(file)) = (need, &flow) {
        let known = Known { id: file.id.clone(), env: Some(present(&file.caller_env)) };
        let enqueue = template.clone().request(&known, tenant, input.clone());
        let requests = vec![Request::Register(Box::new(file.request.clone())), Request::Enqueue(Box::new(enqueue))];
        refuse_before_a_queue_is_made(folders, flags.backend.queue, requests, &file.components)?;
    }
    let mut session = Session::open(folders, flags.backend.queue, need)?;
    let known = match flow {
        // Few flows ask anything of their caller: whether this one does comes with the answer.
        Flow::Id(id) => Known { id, env: None },
        file @ Flow::File(_) => file.register(&mut session, tenant)?,
    };
    let mut request = template.request(&known, tenant, input);
    let mut reply = session.ask(&Request::Enqueue(Box::new(request.clone())))?;
    if let (Reply::FlowEnv(names), true) = (&reply, request.asks_env) {
        (request.env, request.asks_env) = (present(names), false);
        reply = session.ask(&Request::Enqueue(Box::new(request)))?;
    }
    if flags.wait { wait(&mut session, reply, &known.id, json) } else { accepted(&reply, &known.id, json) }
}

fn many(args: &EnqueueArgs, lines: &Path) -> Outcome {
    let template = Template::of(&args.flags)?;
    let tenant = &args.flags.tenant.tenant;
    let flow = Flow::open(&args.flow, tenant, args.folders.config.as_deref())?;
    let source = batch::open(lines)?;
    if let Flow::File(file) = &flow {
        let register = Request::Register(Box::new(file.request.clone()));
        refuse_before_a_queue_is_made(&args.folders, args.flags.backend.queue, vec![register], &file.components)?;
    }
    let mut session = Session::open(&args.folders, args.flags.backend.queue, flow.need())?;
    let known = flow.register(&mut session, tenant)?;
    let done = batch::run(source, &mut session, |line| {
        line.over(&template).map(|(own, input)| own.request(&known, tenant, input))
    });
    // Every reply is out and durable, and the process ends: taking apart a large queue in memory would only take time.
    std::mem::forget(session);
    done
}

/// What all runs of one command share, from its flags.
#[derive(Clone)]
pub(crate) struct Template {
    pub(crate) idempotency_key: Option<String>,
    pub(crate) headers: Option<Json>,
    pub(crate) trace: Option<Json>,
    pub(crate) at: Option<tm_core::time::Millis>,
    pub(crate) delay_ms: Option<u64>,
    pub(crate) priority: Option<u8>,
}

impl Template {
    fn of(flags: &EnqueueFlags) -> Result<Self, Failure> {
        let object =
            |text: &Option<String>, flag: &str| text.as_ref().map(|text| values::object(text, flag)).transpose();
        let key = flags.idempotency_key.as_ref().map(|key| values::key(key, "--idempotency-key"));
        let trace = object(&flags.trace, "--trace")?;
        if trace.as_ref().is_some_and(|trace| !has_traceparent(trace)) {
            return Err(Failure::usage("--trace has no 'traceparent' as W3C Trace Context writes it")
                .hint("--trace '{\"traceparent\": \"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\"}'"));
        }
        Ok(Self {
            idempotency_key: key.transpose()?,
            headers: object(&flags.headers, "--headers")?,
            trace,
            at: flags.at,
            delay_ms: flags.delay,
            priority: flags.priority,
        })
    }

    fn request(self, flow: &Known, tenant: &str, input: Json) -> EnqueueRequest {
        EnqueueRequest {
            tenant: tenant.to_owned(),
            flow: flow.id.clone(),
            input,
            idempotency_key: self.idempotency_key,
            headers: self.headers,
            trace: self.trace,
            at: self.at,
            delay_ms: self.delay_ms,
            priority: self.priority,
            env: flow.env.clone().unwrap_or_default(),
            asks_env: flow.env.is_none(),
        }
    }
}

/// Whether the trace names a parent as W3C Trace Context level 1 writes it: version, trace, span and flags in lower-case
/// hexadecimal. Versions after 00 may say more behind that.
fn has_traceparent(trace: &Json) -> bool {
    #[derive(serde::Deserialize)]
    struct Trace {
        traceparent: String,
    }
    let Ok(Trace { traceparent }) = serde_json::from_str(trace.get()) else { return false };
    let parts: Vec<&str> = traceparent.split('-').collect();
    let [version, trace, span, flags, more @ ..] = parts.as_slice() else { return false };
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let is_id = |text: &str, length| is_hex(text, length) && text.bytes().any(|byte| byte != b'0');
    let is_version = is_hex(version, 2) && *version != "ff" && (more.is_empty() || *version != "00");
    is_version && is_id(trace, 32) && is_id(span, 16) && is_hex(flags, 2)
}

/// Says what the queue answered.
fn accepted(reply: &Reply, flow: &str, json: bool) -> Outcome {
    let mut out = io::stdout().lock();
    match reply {
        Reply::Enqueued { run } if json => {
            render::json_line(&mut out, &EnqueuedLine { id: run, flow_id: flow, status: "enqueued" })?;
        }
        Reply::Enqueued { run } => writeln!(out, "enqueued task {run} for flow '{flow}'")?,
        Reply::Duplicate { run, state, result } if json => {
            let line = DuplicateLine { id: run, flow_id: flow, status: "duplicate", state: *state, result };
            render::json_line(&mut out, &line)?;
        }
        Reply::Duplicate { result: Some(result), .. } => {
            writeln!(out, "duplicate request (served from idempotency cache)\n{}", result.get())?;
        }
        Reply::Duplicate { run, state: RunState::Active, .. } => {
            writeln!(out, "duplicate request (task {run} is still in flight)")?;
        }
        Reply::Duplicate { run, state, .. } => {
            writeln!(out, "duplicate request (task {run} is {})", render::run_state(*state))?;
        }
        other => return Err(Failure::unexpected("an enqueue", other)),
    }
    Ok(End::Done)
}

#[derive(serde::Serialize)]
struct EnqueuedLine<'a> {
    id: &'a tm_core::id::RunId,
    flow_id: &'a str,
    status: &'a str,
}

/// A result is carried as it is: a `json!` would round its numbers.
#[derive(serde::Serialize)]
struct DuplicateLine<'a> {
    id: &'a tm_core::id::RunId,
    flow_id: &'a str,
    status: &'a str,
    state: RunState,
    result: &'a Option<Json>,
}

fn wait(session: &mut Session<'_>, reply: Reply, flow: &str, json: bool) -> Outcome {
    let run = match &reply {
        Reply::Enqueued { run } => *run,
        Reply::Duplicate { run, result: Some(result), .. } => {
            let output = Some(result.clone());
            let end = RunEnd { run_id: *run, status: RunState::Succeeded, output, exec_ms: 0, error: None };
            if !json {
                writeln!(io::stdout(), "duplicate request (served from idempotency cache)")?;
            }
            return queue_runs::ended(&end);
        }
        Reply::Duplicate { run, .. } => *run,
        other => return Err(Failure::unexpected("an enqueue", other)),
    };
    if !json {
        accepted(&reply, flow, false)?;
        io::stdout().flush()?;
    }
    let ended = session.ask(&Request::Wait { run }).map_err(|failure| match failure.kind {
        ErrorKind::Busy => {
            failure.hint(format!("run {run} is queued; once a supervisor runs: tm queue result {run} --wait"))
        }
        _ => failure,
    });
    match ended? {
        Reply::Ended(end) => queue_runs::ended(&end),
        other => Err(Failure::unexpected("a wait", &other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_one_of_w3c_trace_context() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let has = |parent: &str| has_traceparent(&Json::parse(&format!("{{\"traceparent\": \"{parent}\"}}")).unwrap());
        assert!(has(&format!("00-{trace}-{span}-01")) && has(&format!("01-{trace}-{span}-00-more")));
        let upper = trace.to_uppercase();
        for bad in [
            "x".to_owned(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{upper}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
        ] {
            assert!(!has(&bad), "{bad}");
        }
        assert!(!has_traceparent(&Json::parse("{}").unwrap()));
    }
}
