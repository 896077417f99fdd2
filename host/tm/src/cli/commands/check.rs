//! `tm check`: every fault of a flow and its components, with line and column; grants both ways.

use std::{
    io::{self, Write as _},
    path::Path,
    sync::Arc,
};

use serde::Serialize;
use tm_supervisor::{
    config::Settings,
    deploy::{DeployError, FlowFault, KnownFiles, Resolved, Source, resolve},
    evaluate::MiniJinja,
    run::RunError,
    workers::{
        PoolError,
        child::{Program, Spawner},
        compile::{CompileSettings, Compiler},
        profile::WorkerUser,
    },
};

use crate::cli::{
    args::CheckArgs,
    exit::{End, Failure, Outcome},
    flow::FlowFile,
    render, settings,
};

pub(crate) fn run(args: &CheckArgs) -> Outcome {
    let settings = settings::load(args.config.as_deref())?;
    let compiler = compiler(args.allow_weaker_confinement)?;
    // Flows share components: each file is inspected once.
    let mut known = KnownFiles::default();
    let mut end = End::Done;
    for path in &args.flows {
        let checked = check(path, &args.tenant.tenant, &settings, &compiler, &mut known)?;
        if !checked.faults.is_empty() {
            end = End::Invalid;
        }
        checked.print(path, args.json.json)?;
    }
    Ok(end)
}

/// Guest bytes are read in confined processes, as when a flow is registered (I8).
fn compiler(allow_weaker: bool) -> Result<Compiler, Failure> {
    let user = WorkerUser::resolve(None).map_err(RunError::from)?;
    let spawner = Spawner::start(Program::this_binary(user)).map_err(|error| RunError::from(PoolError::from(error)))?;
    let settings = CompileSettings { allow_weaker, ..CompileSettings::default() };
    Ok(Compiler::new(Arc::new(spawner), settings).map_err(RunError::from)?)
}

#[derive(Default)]
struct Checked {
    resolved: Option<Resolved>,
    faults: Vec<FlowFault>,
}

fn check(
    path: &Path,
    tenant: &str,
    settings: &Settings,
    compiler: &Compiler,
    known: &mut KnownFiles,
) -> Result<Checked, Failure> {
    let (flow, missing) = match FlowFile::open_partly(path, tenant)? {
        Ok(opened) => opened,
        Err(DeployError { faults }) => return Ok(Checked { resolved: None, faults }),
    };
    let source =
        Source { tenant, text: &flow.request.text, path: Path::new(&flow.request.path), components: &flow.components };
    let mut faults = missing;
    match resolve(&source, settings, &settings.ceilings, &MiniJinja::new(), known, compiler) {
        Ok(resolved) if faults.is_empty() => Ok(Checked { resolved: Some(resolved), faults }),
        Ok(_) => Ok(Checked { resolved: None, faults }),
        Err(DeployError { faults: found }) => {
            // What stands in for a missing component is faulty too, at the same place.
            let places: Vec<_> = faults.iter().map(|fault| (fault.line, fault.column)).collect();
            faults.extend(found.into_iter().filter(|fault| !places.contains(&(fault.line, fault.column))));
            faults.iter_mut().for_each(|fault| path.clone_into(&mut fault.file));
            faults.sort_by_key(|fault| (fault.line, fault.column));
            Ok(Checked { resolved: None, faults })
        }
    }
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
            let steps = resolved.def.steps.len();
            let plural = if steps == 1 { "" } else { "s" };
            writeln!(out, "{}: flow '{}' with {steps} step{plural} is good", path.display(), resolved.def.id)?;
        }
        warnings.iter().try_for_each(|warning| writeln!(out, "{}: warning: {warning}", path.display()))
    }
}
