//! `tm run`: a flow in memory, by one confined worker; `--detached` enqueues instead.

use tm_core::{api::EnqueueRequest, json::Json};
use tm_supervisor::run::{Options, run_once};

use crate::cli::{
    args::{EnqueueFlags, RunArgs},
    commands::{enqueue, queue_runs},
    exit::{Failure, Outcome},
    flow::{FlowFile, present},
    render, settings, values,
};

pub(crate) fn run(args: RunArgs) -> Outcome {
    if args.detached {
        return enqueue::one(&args.flow, &args.input, &args.flags, &args.folders, args.json.json);
    }
    if let Some(flag) = needs_a_queue(&args.flags) {
        return Err(
            Failure::usage(format!("{flag} needs a queue")).hint("enqueue the run: tm run --detached, or tm enqueue")
        );
    }
    let input = values::input(&args.input)?;
    let tenant = args.flags.tenant.tenant;
    let path = std::path::Path::new(&args.flow);
    let flow = FlowFile::open(path, &tenant, args.folders.config.as_deref(), args.allow_weaker_confinement).map_err(
        |failure| {
            let takes = "tm run takes a file; a registered flow is run by: tm run --detached";
            if path.exists() { failure } else { failure.hint(takes) }
        },
    )?;
    let options = Options {
        settings: settings::load(args.folders.config.as_deref())?,
        config: settings::path(args.folders.config.as_deref()),
        roots: args.folders.roots(),
        runtime: "flows".into(),
        runtime_named: false,
        pid_file: "tm-workers.pid".into(),
        worker_user: None,
        allow_weaker: args.allow_weaker_confinement,
    };
    let request = request(&flow, &tenant, input);
    let components = flow.components.into_iter().map(Into::into).collect();
    let once = run_once(&options, flow.request, components, request, args.out.as_deref())?;
    once.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    if let Some(out) = &args.out {
        eprintln!("copied {} to {}", render::count(once.copied, "file"), out.display());
    }
    queue_runs::ended(&once.end)
}

fn request(flow: &FlowFile, tenant: &str, input: Json) -> EnqueueRequest {
    EnqueueRequest { env: present(&flow.caller_env), ..EnqueueRequest::of(tenant, &flow.id, input) }
}

/// The first flag that means nothing without a queue.
fn needs_a_queue(flags: &EnqueueFlags) -> Option<&'static str> {
    let given = [
        (flags.idempotency_key.is_some(), "--idempotency-key"),
        (flags.headers.is_some(), "--headers"),
        (flags.trace.is_some(), "--trace"),
        (flags.delay.is_some(), "--delay"),
        (flags.at.is_some(), "--at"),
        (flags.priority.is_some(), "--priority"),
        (flags.wait, "--wait"),
        (flags.backend.queue.is_some(), "--queue"),
    ];
    given.into_iter().find_map(|(given, flag)| given.then_some(flag))
}
