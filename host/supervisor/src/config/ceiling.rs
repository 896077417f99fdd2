//! The operator's ceiling: what a tenant's flows may ask for at most. Cheap, because it is asked again at every lease.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use tm_core::{
    flow::spec::{EnvSpec, FilesSpec, GrantsDef, Mode},
    limits::Limits,
};

/// The ceilings of all tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ceilings {
    /// Without a `[tenants]` table: one tenant, `default`; read-only folders below the flow file's folder, scratch,
    /// artefacts, clocks, random, variables of the caller, the limits of [`Limits::CEILING`].
    #[default]
    BuiltIn,
    Tenants(BTreeMap<String, Ceiling>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceiling {
    pub folders: Vec<Folder>,
    /// Variables of the supervisor that may be passed on; those of the caller always may.
    pub env: Vec<String>,
    pub limits: Limits,
    pub scratch: bool,
    pub artifacts: bool,
    pub clocks: bool,
    pub random: bool,
}

/// An allowed folder, with all that lies below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// As the configuration has it.
    pub shown: String,
    /// Absolute; symlinks are resolved at every check.
    pub path: PathBuf,
    pub mode: Mode,
}

/// A flow asks for more than its tenant is allowed. Code CAPABILITY_DENIED.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("tenant '{tenant}' is not in the [tenants] of the configuration")]
    UnknownTenant { tenant: String },
    #[error("without a [tenants] table there is only the tenant 'default', not '{tenant}'")]
    OnlyDefault { tenant: String },
    #[error("step '{step}' asks {asked}; tenant '{tenant}' allows: {allowed}")]
    Excess { step: String, asked: String, tenant: String, allowed: String },
}

pub const DEFAULT_TENANT: &str = "default";

impl Ceilings {
    /// The variables of the supervisor that some tenant may be given.
    pub fn env_names(&self) -> impl Iterator<Item = &str> {
        let ceilings = match self {
            Self::BuiltIn => None,
            Self::Tenants(ceilings) => Some(ceilings.values()),
        };
        ceilings.into_iter().flatten().flat_map(|ceiling| ceiling.env.iter().map(String::as_str))
    }

    /// Whether one step's grants and limits stay below the tenant's ceiling.
    ///
    /// `flow_folder` is the flow file's folder while the flow is being loaded; afterwards it is `None`, and folders that the
    /// built-in ceiling allowed then stay allowed.
    ///
    /// # Errors
    /// The first excess.
    pub fn check(
        &self,
        tenant: &str,
        flow_folder: Option<&Path>,
        step: &str,
        grants: &GrantsDef,
        limits: &Limits,
    ) -> Result<(), Denied> {
        self.excesses(tenant, flow_folder, step, grants, limits).into_iter().next().map_or(Ok(()), Err)
    }

    /// All excesses of one step.
    #[must_use]
    pub fn excesses(
        &self,
        tenant: &str,
        flow_folder: Option<&Path>,
        step: &str,
        grants: &GrantsDef,
        limits: &Limits,
    ) -> Vec<Denied> {
        let built_in;
        let ceiling = match self {
            Self::BuiltIn if tenant != DEFAULT_TENANT => {
                return vec![Denied::OnlyDefault { tenant: tenant.to_owned() }];
            }
            Self::BuiltIn => {
                built_in = Ceiling::built_in(flow_folder);
                &built_in
            }
            Self::Tenants(tenants) => match tenants.get(tenant) {
                Some(ceiling) => ceiling,
                None => return vec![Denied::UnknownTenant { tenant: tenant.to_owned() }],
            },
        };
        let excess = |asked: String, allowed: String| Denied::Excess {
            step: step.to_owned(),
            asked,
            tenant: tenant.to_owned(),
            allowed,
        };
        let mut denied = Vec::new();
        let any_folder = matches!(self, Self::BuiltIn) && flow_folder.is_none();
        for files in &grants.files {
            let allowed = if any_folder { files.mode == Mode::Read } else { ceiling.allows(files) };
            if !allowed {
                denied.push(excess(
                    format!("files: {} ({})", files.host, mode_name(files.mode)),
                    ceiling.folders_shown(),
                ));
            }
        }
        for variable in &grants.env {
            if !variable.from_caller() && !ceiling.env.iter().any(|name| name == variable.name()) {
                let (EnvSpec::Host(name) | EnvSpec::From(tm_core::flow::spec::EnvFrom { name, .. })) = variable;
                denied.push(excess(format!("env: {name}"), shown(&ceiling.env)));
            }
        }
        for (name, asked, allowed) in [
            ("scratch", grants.scratch, ceiling.scratch),
            ("artifacts", grants.artifacts, ceiling.artifacts),
            ("clocks", grants.clocks, ceiling.clocks),
            ("random", grants.random, ceiling.random),
        ] {
            if asked && !allowed {
                denied.push(excess(name.to_owned(), format!("no {name}")));
            }
        }
        for (key, asked, most) in excesses(limits, &ceiling.limits) {
            denied.push(excess(format!("limits.{key}: {asked}"), most.to_string()));
        }
        let room = u64::from(ceiling.limits.scratch_mb);
        for files in grants.files.iter().filter(|files| files.mode == Mode::Write && u64::from(files.max_mb) > room) {
            denied.push(excess(format!("files.max_mb: {} for {}", files.max_mb, files.guest), room.to_string()));
        }
        denied
    }
}

impl Ceiling {
    fn built_in(flow_folder: Option<&Path>) -> Self {
        let folder = |path: &Path| Folder {
            shown: "folders below the flow file's".to_owned(),
            path: path.to_owned(),
            mode: Mode::Read,
        };
        Self {
            folders: flow_folder.map(folder).into_iter().collect(),
            env: Vec::new(),
            limits: Limits::CEILING,
            scratch: true,
            artifacts: true,
            clocks: true,
            random: true,
        }
    }

    /// Both paths without symlinks, so that neither side can lead elsewhere.
    fn allows(&self, files: &FilesSpec) -> bool {
        let asked = Path::new(&files.host);
        self.folders.iter().any(|folder| {
            files.mode <= folder.mode && folder.path.canonicalize().is_ok_and(|allowed| asked.starts_with(allowed))
        })
    }

    fn folders_shown(&self) -> String {
        let names: Vec<String> =
            self.folders.iter().map(|folder| format!("{} ({})", folder.shown, mode_name(folder.mode))).collect();
        shown(&names)
    }
}

fn shown(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Read => "read",
        Mode::Write => "write",
    }
}

/// The limits that are over a ceiling: key, value, ceiling.
#[must_use]
pub fn excesses(limits: &Limits, ceiling: &Limits) -> Vec<(&'static str, u64, u64)> {
    [
        ("fuel", limits.fuel, ceiling.fuel),
        ("memory_mb", limits.memory_mb.into(), ceiling.memory_mb.into()),
        ("timeout_ms", limits.timeout_ms, ceiling.timeout_ms),
        ("stack_kb", limits.stack_kb.into(), ceiling.stack_kb.into()),
        ("output_kb", limits.output_kb.into(), ceiling.output_kb.into()),
        ("log_kb", limits.log_kb.into(), ceiling.log_kb.into()),
        ("scratch_mb", limits.scratch_mb.into(), ceiling.scratch_mb.into()),
        ("artifacts_mb", limits.artifacts_mb.into(), ceiling.artifacts_mb.into()),
    ]
    .into_iter()
    .filter(|(_, asked, most)| asked > most)
    .collect()
}
