//! `tm queue ls`, `show`, `result`, `cancel`, `forget-key`: one question to the queue each.

use std::io::{self, BufWriter, Write as _};

use serde_json::json;
use tm_core::api::{ListRequest, Reply, Request, RunEnd, RunState};

use crate::cli::{
    args::{CancelArgs, ForgetKeyArgs, LsArgs, ResultArgs, ShowArgs},
    client::{Need, Session},
    exit::{End, Failure, Outcome},
    render,
};

/// `tm queue ls`.
pub(crate) fn ls(args: LsArgs) -> Outcome {
    let mut session = Session::open(&args.folders, None, Need::Read)?;
    let mut request = ListRequest { state: Some(args.state), flow: args.flow, limit: args.limit, below: None };
    let mut printed = render::Runs::new(args.json.json);
    let mut out = BufWriter::new(io::stdout().lock());
    loop {
        match session.ask(&Request::List(request.clone()))? {
            Reply::Runs { rows, below } => {
                printed.print(&mut out, &rows)?;
                request.limit = request.limit.saturating_sub(rows.len() as u64);
                request.below = below;
            }
            other => return Err(Failure::unexpected("a list", &other)),
        }
        if request.below.is_none() {
            out.flush()?;
            return Ok(End::Done);
        }
    }
}

/// `tm queue show`.
pub(crate) fn show(args: ShowArgs) -> Outcome {
    let mut session = Session::open(&args.folders, None, Need::Read)?;
    match session.ask(&Request::Show { id: args.id })? {
        Reply::Run(run) => {
            let mut out = BufWriter::new(io::stdout().lock());
            render::run(&mut out, &run, args.json.json)?;
            out.flush()?;
            Ok(End::Done)
        }
        other => Err(Failure::unexpected("a question for a run", &other)),
    }
}

/// `tm queue result`.
pub(crate) fn result(args: ResultArgs) -> Outcome {
    let need = if args.wait { Need::Wait } else { Need::Read };
    let mut session = Session::open(&args.folders, None, need)?;
    let request = if args.wait {
        match session.ask(&Request::Show { id: args.id })? {
            Reply::Run(run) => Request::Wait { run: run.run_id },
            other => return Err(Failure::unexpected("a question for a run", &other)),
        }
    } else {
        Request::Result { id: args.id }
    };
    match session.ask(&request)? {
        Reply::Ended(end) => ended(&end),
        other => Err(Failure::unexpected("a question for a result", &other)),
    }
}

/// Prints how a run ended; anything but success is exit 1.
pub(crate) fn ended(end: &RunEnd) -> Outcome {
    render::end(&mut io::stdout().lock(), end)?;
    Ok(if end.status == RunState::Succeeded { End::Done } else { End::Failed })
}

/// `tm queue cancel`.
pub(crate) fn cancel(args: CancelArgs) -> Outcome {
    match Session::change(&args.folders, None, &Request::Cancel { id: args.id })? {
        Reply::Cancelled { run } => {
            let mut out = io::stdout().lock();
            if args.json.json {
                render::json_line(&mut out, &json!({ "run_id": run, "state": "cancelled" }))?;
            } else {
                writeln!(out, "cancelled run {run}")?;
            }
            Ok(End::Done)
        }
        other => Err(Failure::unexpected("a cancellation", &other)),
    }
}

/// `tm queue forget-key`.
pub(crate) fn forget_key(args: ForgetKeyArgs) -> Outcome {
    let ForgetKeyArgs { flow, key, tenant, json, folders } = args;
    let request = Request::ForgetKey { tenant: tenant.tenant, flow: flow.clone(), key: key.clone() };
    match Session::change(&folders, None, &request)? {
        Reply::Forgotten { existed: true } => {
            let mut out = io::stdout().lock();
            if json.json {
                render::json_line(&mut out, &json!({ "flow": flow, "key": key, "forgotten": true }))?;
            } else {
                writeln!(out, "forgot key '{key}' of flow '{flow}'")?;
            }
            Ok(End::Done)
        }
        Reply::Forgotten { existed: false } => Err(Failure::failed(format!("flow '{flow}' holds no key '{key}'"))),
        other => Err(Failure::unexpected("forgetting a key", &other)),
    }
}
