//! `tm check`: every fault of a flow and its components, with line and column; grants both ways.

use std::{
    io::{self, Write as _},
    path::Path,
};

use serde::Serialize;
use tm_supervisor::deploy::{DeployError, FlowFault, Resolved};

use crate::cli::{
    args::CheckArgs,
    checker::Checker,
    exit::{End, Outcome},
    flow::opened,
    render,
};

pub(crate) fn run(args: &CheckArgs) -> Outcome {
    let mut checker = Checker::new(args.config.as_deref(), args.allow_weaker_confinement)?;
    let mut end = End::Done;
    for path in &args.flows {
        let checked = match checker.check(&opened(path)?, &args.tenant.tenant) {
            Ok(resolved) => Checked { resolved: Some(resolved), faults: Vec::new() },
            Err(DeployError { faults }) => Checked { resolved: None, faults },
        };
        if !checked.faults.is_empty() {
            end = End::Invalid;
        }
        checked.print(path, args.json.json)?;
    }
    Ok(end)
}

struct Checked {
    resolved: Option<Resolved>,
    faults: Vec<FlowFault>,
}

#[derive(Serialize)]
struct CheckLine<'a> {
    path: &'a Path,
    ok: bool,
    flow_id: Option<&'a str>,
    digest: Option<String>,
    warnings: &'a [String],
    faults: Vec<FaultLine<'a>>,
}

#[derive(Serialize)]
struct FaultLine<'a> {
    line: u64,
    column: u64,
    code: Option<&'a str>,
    message: &'a str,
    hint: Option<&'a str>,
}

impl Checked {
    fn print(&self, path: &Path, json: bool) -> io::Result<()> {
        let warnings = self.resolved.as_ref().map(|resolved| resolved.warnings.as_slice()).unwrap_or_default();
        let mut out = io::stdout().lock();
        if json {
            let faults = self.faults.iter().map(|fault| FaultLine {
                line: fault.line,
                column: fault.column,
                code: fault.code,
                message: &fault.message,
                hint: fault.hint.as_deref(),
            });
            let def = self.resolved.as_ref().map(|resolved| &resolved.def);
            let line = CheckLine {
                path,
                ok: self.faults.is_empty(),
                flow_id: def.map(|def| def.id.as_str()),
                digest: def.map(|def| def.digest.to_string()),
                warnings,
                faults: faults.collect(),
            };
            return render::json_line(&mut out, &line);
        }
        for fault in &self.faults {
            render::error(&fault.to_string(), None)?;
        }
        if let Some(resolved) = &self.resolved {
            let steps = render::count(resolved.def.steps.len(), "step");
            writeln!(out, "{}: flow '{}' with {steps} is good", path.display(), resolved.def.id)?;
        }
        warnings.iter().try_for_each(|warning| writeln!(out, "{}: warning: {warning}", path.display()))
    }
}
