//! A flow with its components and folders resolved, judged and held against the ceiling: what the queue registers.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use tm_core::{
    code::{CAPABILITY_DENIED, COMPILE_FAILED},
    flow::{
        evaluate::Evaluate,
        order::topological_order,
        spec::{EnvSpec, FilesSpec, FlowDef, GrantsDef, GrantsSpec, StepDef},
        validate::Fault,
    },
    id::Digest,
    json::Json,
    limits::{ITEMS_PER_FAN_OUT_MAX, Limits},
    wire::Required,
};

use super::{
    capabilities,
    component::Missing,
    known::{Component, Inspect, InspectError, KnownFiles},
    text::{DeployError, FlowFault, FlowText},
};
use crate::config::{Ceilings, Denied, Settings, units::MIB};

/// A flow as it was handed over.
pub struct Source<'a> {
    pub tenant: &'a str,
    /// YAML or JSON.
    pub text: &'a str,
    /// The flow file, absolute.
    pub path: &'a Path,
    /// As faults name it.
    pub shown: &'a Path,
    /// One per step, in the order of the text.
    pub components: &'a [Result<File, Missing>],
}

/// A flow that may be registered.
#[derive(Debug)]
pub struct Resolved {
    pub def: FlowDef,
    /// Grants without a use.
    pub warnings: Vec<String>,
    /// The bytes of components that were read just now, sealed. Those not here were known already.
    pub components: BTreeMap<Digest, OwnedFd>,
}

/// Reads a flow, resolves it, and judges all that it asks for.
///
/// # Errors
/// All faults that were found, in the order of the text: of the text, of the components, of the folders, of the ceiling.
/// A component whose place can be read is looked at whatever else is wrong.
pub fn resolve(
    source: &Source<'_>,
    settings: &Settings,
    ceilings: &Ceilings,
    evaluate: &dyn Evaluate,
    known: &mut KnownFiles,
    inspect: &dyn Inspect,
) -> Result<Resolved, DeployError> {
    let (flow, mut faults) = FlowText::read_partly(source.text, source.shown, evaluate);
    let Some(flow) = flow else { return Err(DeployError::of(faults)) };
    let (steps, components) = (flow.spec.steps.len(), source.components.len());
    if steps != components {
        // Whoever read the text otherwise has told its faults already, or is told them here.
        if faults.is_empty() {
            let message = format!("{steps} steps came with {components} components");
            faults.push(FlowFault::of_file(source.shown, message));
        }
        return Err(DeployError::of(faults));
    }
    let mut room = Room {
        folder: source.path.parent().unwrap_or(Path::new("/")),
        tenant: source.tenant,
        ceilings,
        flow: &flow,
        faults,
        warnings: Vec::new(),
        components: BTreeMap::new(),
    };
    // In the order of the text, so that the faults are; the definition's order is the topological one.
    let mut resolved: Vec<Option<(Digest, Required, GrantsDef)>> = Vec::with_capacity(flow.spec.steps.len());
    for (place, component) in source.components.iter().enumerate() {
        resolved.push(room.step(place, component, known, inspect));
    }
    if !room.faults.is_empty() {
        return Err(DeployError::of(room.faults));
    }
    let retries = settings.retry_base(&flow.spec.id);
    let order = topological_order(&flow.spec);
    let mut steps = Vec::with_capacity(order.len());
    for &place in &order {
        let step = &flow.spec.steps[place];
        let Some((component, required, grants)) = resolved[place].take() else { continue };
        let needs = step.needs.iter().filter_map(|need| {
            let at = order.iter().position(|&place| flow.spec.steps[place].id == *need)?;
            u16::try_from(at).ok()
        });
        steps.push(StepDef {
            id: step.id.clone(),
            component,
            required,
            needs: needs.collect(),
            when: step.when.as_deref().map(|when| when.trim().to_owned()),
            for_each: step.for_each.as_deref().map(|list| list.trim().to_owned()),
            max_parallel: step.max_parallel.unwrap_or(u32::try_from(ITEMS_PER_FAN_OUT_MAX).unwrap_or(u32::MAX)),
            input: step.input.as_ref().map(Json::of),
            limits: step.limits.over(&Limits::DEFAULT),
            retries: step.retries.over(&retries),
            grants,
        });
    }
    let (warnings, components) = (room.warnings, room.components);
    let mut def = FlowDef {
        id: flow.spec.id.clone(),
        version: flow.spec.version.clone(),
        run_timeout_ms: flow.spec.run_timeout_ms,
        digest: Digest([0; 32]),
        caller_env: caller_env(&steps),
        steps,
    };
    // Over everything but itself; fields stand in a fixed order and maps are sorted.
    def.digest = Digest::of(Json::of(&def).get().as_bytes());
    Ok(Resolved { def, warnings, components })
}

fn caller_env(steps: &[StepDef]) -> Vec<String> {
    let mut names: Vec<String> = steps
        .iter()
        .flat_map(|step| step.grants.env.iter())
        .filter(|variable| variable.from_caller())
        .map(|variable| variable.name().to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

struct Room<'a> {
    folder: &'a Path,
    tenant: &'a str,
    ceilings: &'a Ceilings,
    flow: &'a FlowText,
    faults: Vec<FlowFault>,
    warnings: Vec<String>,
    components: BTreeMap<Digest, OwnedFd>,
}

impl Room<'_> {
    /// A fault of a part that has none of its own yet.
    fn fault(&mut self, code: Option<&'static str>, path: String, message: String, hint: Option<String>) {
        if !self.flow.is_flawed(&path) {
            self.faults.push(self.flow.locate(Fault { path, message, hint }, code));
        }
    }

    /// None when the step has a fault, which then stands in `faults`.
    fn step(
        &mut self,
        place: usize,
        component: &Result<File, Missing>,
        known: &mut KnownFiles,
        inspect: &dyn Inspect,
    ) -> Option<(Digest, Required, GrantsDef)> {
        let step = &self.flow.spec.steps[place];
        let path = format!("steps[{place}]");
        let name = if step.id.is_empty() { &path } else { &step.id };
        let before = self.faults.len();
        let grants = self.grants(&path, &step.grants);
        let limits = step.limits.over(&Limits::DEFAULT);
        for denied in self.ceilings.excesses(self.tenant, Some(self.folder), name, &grants, &limits) {
            let at = match &denied {
                Denied::Excess { asked, .. } if asked.starts_with("limits.") => {
                    format!("{path}.{}", asked.split(':').next().unwrap_or("limits"))
                }
                Denied::Excess { .. } => format!("{path}.grants"),
                Denied::UnknownTenant { .. } | Denied::OnlyDefault { .. } => "id".to_owned(),
            };
            self.fault(Some(CAPABILITY_DENIED), at, denied.to_string(), None);
        }
        let at = format!("{path}.component");
        if self.flow.is_flawed(&at) {
            return None;
        }
        let file = match component {
            Ok(file) => file,
            Err(Missing { message, hint }) => {
                self.fault(None, at, message.clone(), hint.clone());
                return None;
            }
        };
        let Component { inspection, bytes } = match known.component(file, inspect) {
            Ok(component) => component,
            Err(error) => {
                let code = match &error {
                    InspectError::Refused { code, .. } => Some(*code),
                    InspectError::TooLarge { .. } => Some(COMPILE_FAILED),
                    _ => None,
                };
                self.fault(code, at, format!("component '{}': {error}", step.component), None);
                return None;
            }
        };
        let (faults, warnings) = capabilities::judge(&path, name, &inspection, &grants);
        // A grant that is written wrongly is not missing.
        let unclear = self.flow.has_flaws_within(&format!("{path}.grants"));
        for (code, fault) in faults.into_iter().filter(|(_, fault)| !(unclear && fault.path.ends_with(".grants"))) {
            self.fault(Some(code), fault.path, fault.message, fault.hint);
        }
        self.warnings.extend(warnings);
        let least = inspection.required.memory_min_bytes;
        if least > u64::from(limits.memory_mb) * MIB {
            let message = format!(
                "component '{}' starts with {} MiB of memory, memory_mb is {}",
                step.component,
                least.div_ceil(MIB),
                limits.memory_mb
            );
            self.fault(Some(CAPABILITY_DENIED), format!("{path}.limits.memory_mb"), message, None);
        }
        if let Some(bytes) = bytes {
            self.components.insert(inspection.digest, bytes);
        }
        (self.faults.len() == before).then_some((inspection.digest, inspection.required, grants))
    }

    fn grants(&mut self, path: &str, asked: &GrantsSpec) -> GrantsDef {
        let mut files = Vec::new();
        for (at, wanted) in asked.files.iter().enumerate() {
            if self.flow.has_flaws_within(&format!("{path}.grants.files[{at}]")) {
                continue;
            }
            match self.host_folder(&wanted.host) {
                Ok(host) => files.push(FilesSpec { host, guest: normal(&wanted.guest), ..wanted.clone() }),
                Err(message) => {
                    let hint = "host is relative to the flow file".to_owned();
                    self.fault(None, format!("{path}.grants.files[{at}].host"), message, Some(hint));
                }
            }
        }
        let env = asked.env.iter().enumerate();
        let env = env.filter(|(at, _)| !self.flow.has_flaws_within(&format!("{path}.grants.env[{at}]")));
        let env: Vec<EnvSpec> = env.map(|(_, wanted)| wanted.clone()).collect();
        GrantsDef {
            files,
            env,
            scratch: asked.scratch,
            artifacts: asked.artifacts,
            clocks: asked.clocks,
            random: asked.random,
        }
    }

    /// Absolute and without symlinks.
    fn host_folder(&self, host: &str) -> Result<String, String> {
        let path: PathBuf = self.folder.join(host);
        let resolved = path.canonicalize().map_err(|error| format!("folder {}: {error}", path.display()))?;
        if !resolved.is_dir() {
            return Err(format!("{} is not a folder", resolved.display()));
        }
        resolved.into_os_string().into_string().map_err(|_| format!("folder {} is not UTF-8", path.display()))
    }
}

fn normal(guest: &str) -> String {
    guest.trim_end_matches('/').to_owned()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
