//! What does not fit between a component's imports, the grants of its step and this host.

use tm_core::{
    code::{CAPABILITY_DENIED, COMPILE_FAILED},
    flow::{spec::GrantsDef, validate::Fault},
    interfaces::{FLOW_SERIES, FLOW_VERSION, Interface, Needs},
    wire::Inspection,
};

/// What to do about a function that this host does not have, or has with another type.
const OTHERWISE: &str = "build the component against this host's interfaces: WASI 0.2 and wit/";

/// What does not fit between a step's component and its grants, both ways. `path` is the step's, `steps[2]`.
///
/// Faults, each with its code, are imports without a grant, imports that this host does not have or has otherwise, and a
/// missing `step`; warnings are grants that the component has no use for.
#[must_use]
pub fn judge(
    path: &str,
    step: &str,
    inspection: &Inspection,
    grants: &GrantsDef,
) -> (Vec<(&'static str, Fault)>, Vec<String>) {
    let mut faults = Vec::new();
    let mut used = Vec::new();
    for import in &inspection.imports {
        match needs_of(import) {
            Err((message, hint)) => {
                faults.push((CAPABILITY_DENIED, Fault { path: format!("{path}.component"), message, hint }));
            }
            Ok(needs) if granted(needs, grants) => used.push(needs),
            Ok(needs) => {
                let message = format!("step '{step}' imports {import} without a grant for it");
                let hint = match needs {
                    Needs::Folders => {
                        "add files or scratch to its grants, or build it without the file system".to_owned()
                    }
                    _ => format!("add {}: true to its grants", name_of(needs)),
                };
                faults.push((CAPABILITY_DENIED, Fault { path: format!("{path}.grants"), message, hint: Some(hint) }));
            }
        }
    }
    for message in &inspection.import_faults {
        let (path, hint) = (format!("{path}.component"), Some(OTHERWISE.to_owned()));
        faults.push((CAPABILITY_DENIED, Fault { path, message: message.clone(), hint }));
    }
    if let Some(fault) = missing_step(path, inspection) {
        faults.push((COMPILE_FAILED, fault));
    }
    let environment = inspection.imports.iter().any(|import| import.starts_with("wasi:cli/environment@"));
    let unused = [
        ("files", !grants.files.is_empty() && !used.contains(&Needs::Folders)),
        ("env", !grants.env.is_empty() && !environment),
        ("scratch", grants.scratch && !used.contains(&Needs::Folders)),
        ("artifacts", grants.artifacts && !used.contains(&Needs::Artifacts)),
        ("clocks", grants.clocks && !used.contains(&Needs::Clocks)),
        ("random", grants.random && !used.contains(&Needs::Random)),
    ];
    let warnings = unused
        .into_iter()
        .filter(|(_, unused)| *unused)
        .map(|(grant, _)| format!("step '{step}' is granted {grant}, but its component does not import it"))
        .collect();
    (faults, warnings)
}

fn needs_of(import: &str) -> Result<Needs, (String, Option<String>)> {
    let unknown = || (format!("imports {import}, which this host does not offer"), None);
    let interface = Interface::parse(import).ok_or_else(unknown)?;
    if let Some(offered) = interface.other_version() {
        let message = format!("imports {import}; this host offers {}@{offered}", interface.package);
        return Err((message, Some("build the component against that version".to_owned())));
    }
    interface.needs().ok_or_else(unknown)
}

fn granted(needs: Needs, grants: &GrantsDef) -> bool {
    match needs {
        Needs::Baseline => true,
        Needs::Artifacts => grants.artifacts,
        Needs::Clocks => grants.clocks,
        Needs::Random => grants.random,
        Needs::Folders => grants.scratch || !grants.files.is_empty(),
    }
}

fn name_of(needs: Needs) -> &'static str {
    match needs {
        Needs::Baseline => "nothing",
        Needs::Artifacts => "artifacts",
        Needs::Clocks => "clocks",
        Needs::Random => "random",
        Needs::Folders => "files",
    }
}

fn missing_step(path: &str, inspection: &Inspection) -> Option<Fault> {
    let prefix = "tracemind:flow/step@";
    let mut other = None;
    for export in &inspection.exports {
        match export.strip_prefix(prefix) {
            Some(version) if version.starts_with(FLOW_SERIES) => return None,
            Some(version) => other = Some(version),
            None => {}
        }
    }
    let wanted = format!("{prefix}{FLOW_VERSION}");
    let (message, hint) = match other {
        Some(version) => (
            format!("exports {prefix}{version}; this host runs {wanted}"),
            "build the component against that version".to_owned(),
        ),
        None => (
            format!("the component does not export {wanted}"),
            "a step exports it through the SDK's #[step], or as the world pure-step of wit/".to_owned(),
        ),
    };
    Some(Fault { path: format!("{path}.component"), message, hint: Some(hint) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tm_core::{flow::spec::EnvSpec, id::Digest, wire::Required};

    fn inspection(imports: &[&str], exports: &[&str]) -> Inspection {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Inspection {
            digest: Digest([0; 32]),
            imports: owned(imports),
            exports: owned(exports),
            import_faults: Vec::new(),
            required: Required::default(),
        }
    }

    const STEP: &[&str] = &["tracemind:flow/step@0.1.0"];

    fn faults(imports: &[&str], exports: &[&str], grants: &GrantsDef) -> Vec<String> {
        let (faults, _) = judge("steps[0]", "s", &inspection(imports, exports), grants);
        faults.into_iter().map(|(_, fault)| fault.message).collect()
    }

    #[test]
    fn the_baseline_needs_no_grant() {
        let imports = [
            "wasi:io/streams@0.2.6",
            "wasi:cli/environment@0.2.0",
            "wasi:random/insecure-seed@0.2.3",
            "tracemind:flow/types@0.1.0",
            "tracemind:flow/log@0.1.9",
        ];
        assert!(faults(&imports, STEP, &GrantsDef::default()).is_empty());
    }

    #[test]
    fn each_import_beyond_it_needs_its_grant() {
        let none = GrantsDef::default();
        for (import, grants) in [
            ("wasi:clocks/monotonic-clock@0.2.6", GrantsDef { clocks: true, ..none.clone() }),
            ("wasi:random/random@0.2.6", GrantsDef { random: true, ..none.clone() }),
            ("wasi:random/insecure@0.2.6", GrantsDef { random: true, ..none.clone() }),
            ("wasi:filesystem/preopens@0.2.6", GrantsDef { scratch: true, ..none.clone() }),
            ("tracemind:flow/artifacts@0.1.0", GrantsDef { artifacts: true, ..none.clone() }),
        ] {
            assert_eq!(faults(&[import], STEP, &none), [format!("step 's' imports {import} without a grant for it")]);
            assert!(faults(&[import], STEP, &grants).is_empty(), "{import}");
        }
    }

    #[test]
    fn unknown_interfaces_and_other_versions_are_refused_by_name() {
        let all = GrantsDef { clocks: true, random: true, scratch: true, artifacts: true, ..GrantsDef::default() };
        for import in ["wasi:sockets/tcp@0.2.6", "wasi:cli/run@0.2.6", "acme:x/y", "print", "tracemind:flow/mail@0.1.0"]
        {
            assert_eq!(faults(&[import], STEP, &all), [format!("imports {import}, which this host does not offer")]);
        }
        assert_eq!(
            faults(&["wasi:clocks/monotonic-clock@0.3.0", "tracemind:flow/log@0.2.0"], STEP, &all),
            [
                "imports wasi:clocks/monotonic-clock@0.3.0; this host offers wasi:clocks@0.2",
                "imports tracemind:flow/log@0.2.0; this host offers tracemind:flow@0.1.0"
            ]
        );
    }

    #[test]
    fn what_this_host_has_otherwise_is_a_fault_of_the_component() {
        let import_faults = vec!["imports wasi:cli/exit@0.2.0, but its exit has another type".to_owned()];
        let inspection = Inspection { import_faults, ..inspection(&["wasi:cli/exit@0.2.0"], STEP) };
        let (faults, _) = judge("steps[0]", "s", &inspection, &GrantsDef::default());
        let [(code, fault)] = &faults[..] else { panic!("{faults:?}") };
        assert_eq!((*code, fault.path.as_str()), (CAPABILITY_DENIED, "steps[0].component"));
        assert_eq!(fault.message, inspection.import_faults[0]);
    }

    #[test]
    fn a_component_without_the_step_is_refused() {
        let none = GrantsDef::default();
        assert_eq!(
            faults(&[], &["wasi:cli/run@0.2.0"], &none),
            ["the component does not export tracemind:flow/step@0.1.0"]
        );
        assert_eq!(
            faults(&[], &["tracemind:flow/step@0.2.0"], &none),
            ["exports tracemind:flow/step@0.2.0; this host runs tracemind:flow/step@0.1.0"]
        );
        let found = judge("steps[0]", "s", &inspection(&["acme:x/y"], &[]), &none).0;
        let codes: Vec<_> = found.into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, [CAPABILITY_DENIED, COMPILE_FAILED], "nothing that a grant could mend");
    }

    #[test]
    fn grants_without_a_use_are_warned_of() {
        let grants = GrantsDef { clocks: true, env: vec![EnvSpec::Host("A".into())], ..GrantsDef::default() };
        let (faults, warnings) = judge("steps[0]", "s", &inspection(&["wasi:io/poll@0.2.0"], STEP), &grants);
        assert!(faults.is_empty());
        assert_eq!(
            warnings,
            [
                "step 's' is granted env, but its component does not import it",
                "step 's' is granted clocks, but its component does not import it"
            ]
        );
    }
}
