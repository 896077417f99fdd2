//! The argument FLOW: a file, which is registered, or the id of a registered flow.

use std::{
    env,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use tm_core::api::{RegisterRequest, Reply, Request};
use tm_supervisor::{
    deploy::{DeployError, FlowText, Opened, text_of},
    evaluate::MiniJinja,
};

use super::{
    checker::Checker,
    client::{Need, Session},
    exit::{Failure, reason},
};

/// What FLOW names.
pub(crate) enum Flow {
    File(FlowFile),
    Id(String),
}

/// A flow file with its components open: permissions and paths are the caller's.
pub(crate) struct FlowFile {
    pub(crate) request: RegisterRequest,
    pub(crate) components: Vec<File>,
    pub(crate) id: String,
    pub(crate) caller_env: Vec<String>,
}

/// A flow that the queue knows.
pub(crate) struct Known {
    pub(crate) id: String,
    /// The caller's variables that the flow asks for, as this process has them; none while the queue was not asked for
    /// their names.
    pub(crate) env: Option<Vec<(String, String)>>,
}

impl Flow {
    /// A path when something is there, else an id.
    ///
    /// # Errors
    /// Exit 3: what is wrong with the file; a text that is neither a file nor can be an id.
    pub(crate) fn open(argument: &str, tenant: &str, config: Option<&Path>) -> Result<Self, Failure> {
        let path = Path::new(argument);
        if !is_missing(path) {
            return FlowFile::open(path, tenant, config, false).map(Self::File);
        }
        if tm_core::id::is_name(argument) && !looks_like_a_file(path) {
            return Ok(Self::Id(argument.to_owned()));
        }
        Err(no_file(path).hint("a flow is a YAML or JSON file, or the id of a registered flow"))
    }

    /// A file may begin a queue; an id is nothing without one.
    pub(crate) fn need(&self) -> Need {
        match self {
            Self::File(_) => Need::Create,
            Self::Id(_) => Need::Change,
        }
    }

    /// Registers a file; asks which variables a flow wants. What it prints as a warning goes to standard error.
    ///
    /// # Errors
    /// What the queue answers: an unknown id with near names, a flow that is refused.
    pub(crate) fn register(self, session: &mut Session<'_>, tenant: &str) -> Result<Known, Failure> {
        match self {
            Self::File(file) => {
                let request = Request::Register(Box::new(file.request));
                match session.ask_with(&request, &file.components)? {
                    Reply::Registered { warnings, new, .. } => {
                        // A flow that was registered before has had its warnings said.
                        if new {
                            warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
                        }
                        Ok(Known { id: file.id, env: Some(present(&file.caller_env)) })
                    }
                    other => Err(Failure::unexpected("a registration", &other)),
                }
            }
            Self::Id(id) => {
                let request = Request::FlowEnv { tenant: tenant.to_owned(), flow: id.clone() };
                match session.ask(&request)? {
                    Reply::FlowEnv(names) => Ok(Known { id, env: Some(present(&names)) }),
                    other => Err(Failure::unexpected("a flow's variables", &other)),
                }
            }
        }
    }
}

/// Whether nothing is there, as opposed to something that cannot be looked at.
fn is_missing(path: &Path) -> bool {
    let error = path.metadata().err().map(|error| error.kind());
    matches!(error, Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename))
}

fn no_file(path: &Path) -> Failure {
    Failure::invalid(format!("no flow file {}", path.display()))
}

fn looks_like_a_file(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// The named variables of this process; those that are not set or not text are left out.
pub(crate) fn present(names: &[String]) -> Vec<(String, String)> {
    names.iter().filter_map(|name| Some((name.clone(), env::var(name).ok()?))).collect()
}

impl FlowFile {
    /// Reads a flow file, checks it, and opens its components. `config` and `allow_weaker` are for the check.
    ///
    /// # Errors
    /// Exit 3, when the text has a fault or a component is not there: every fault, those of the other components too.
    pub(crate) fn open(path: &Path, tenant: &str, config: Option<&Path>, allow_weaker: bool) -> Result<Self, Failure> {
        let flow = opened(path)?;
        if !flow.is_whole() {
            Checker::new(config, allow_weaker)?.check(&flow, tenant)?;
        }
        let Opened { text, path, spec, components, names, .. } = flow;
        let request = RegisterRequest {
            tenant: tenant.to_owned(),
            text,
            path: path.display().to_string(),
            components: names.iter().map(|name| name.display().to_string()).collect(),
        };
        let steps = spec.iter().flat_map(|spec| &spec.steps);
        let mut caller_env: Vec<String> = steps
            .flat_map(|step| &step.grants.env)
            .filter(|variable| variable.from_caller())
            .map(|variable| variable.name().to_owned())
            .collect();
        caller_env.sort();
        caller_env.dedup();
        let id = spec.map(|spec| spec.id).unwrap_or_default();
        Ok(Self { request, components: components.into_iter().flatten().collect(), id, caller_env })
    }
}

/// Opens a flow file with its components, whatever is wrong with them.
///
/// # Errors
/// Exit 3: when it cannot be read.
pub(crate) fn opened(path: &Path) -> Result<Opened, Failure> {
    Opened::open(path, &MiniJinja::new()).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    if is_missing(path) {
        return no_file(path);
    }
    if error.kind() == io::ErrorKind::IsADirectory {
        return Failure::invalid(format!("{} is a folder; a flow is a file", path.display()));
    }
    Failure::invalid(format!("cannot read {}: {}", path.display(), reason(error)))
}

impl From<DeployError> for Failure {
    fn from(error: DeployError) -> Self {
        error.to_api().into()
    }
}

/// The folders that hold the steps of a flow, as far as they are built from source.
///
/// # Errors
/// Exit 3: every fault of the text.
pub(crate) fn step_folders(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let text = text_of(path).map_err(|error| unreadable(path, &error))?;
    let flow = FlowText::read(&text, path, &MiniJinja::new())?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let steps = flow.spec.steps.iter().map(|step| folder.join(&step.component));
    Ok(steps.filter(|path| path.extension().is_none_or(|extension| extension != "wasm")).collect())
}
