//! The argument FLOW: a file, which is registered, or the id of a registered flow.

use std::{
    env,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use tm_core::{
    api::{RegisterRequest, Reply, Request},
    flow::validate::Fault,
    limits::FLOW_TEXT_MAX_BYTES,
};
use tm_supervisor::{
    deploy::{DeployError, FlowFault, FlowText, component},
    evaluate::MiniJinja,
};

use super::{
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
    /// The caller's variables that the flow asks for, as this process has them.
    pub(crate) env: Vec<(String, String)>,
}

impl Flow {
    /// A path when it exists as a file, else an id.
    ///
    /// # Errors
    /// What is wrong with the file; a text that is neither a file nor can be an id.
    pub(crate) fn open(argument: &str, tenant: &str) -> Result<Self, Failure> {
        let path = Path::new(argument);
        if path.is_file() {
            return FlowFile::open(path, tenant).map(Self::File);
        }
        if path.is_dir() {
            return Err(Failure::usage(format!("{argument} is a folder; a flow is a file or an id")));
        }
        if tm_core::id::is_name(argument) && !looks_like_a_file(path) {
            return Ok(Self::Id(argument.to_owned()));
        }
        Err(Failure::failed(format!("no flow file {argument}"))
            .hint("a flow is a YAML or JSON file, or the id of a registered flow"))
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
                        Ok(Known { id: file.id, env: present(&file.caller_env) })
                    }
                    other => Err(Failure::unexpected("a registration", &other)),
                }
            }
            Self::Id(id) => {
                let request = Request::FlowEnv { tenant: tenant.to_owned(), flow: id.clone() };
                match session.ask(&request)? {
                    Reply::FlowEnv(names) => Ok(Known { id, env: present(&names) }),
                    other => Err(Failure::unexpected("a flow's variables", &other)),
                }
            }
        }
    }
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
    /// Reads a flow file, checks it, and opens its components.
    ///
    /// # Errors
    /// Exit 3: every fault of the text, or every component that is not there.
    pub(crate) fn open(path: &Path, tenant: &str) -> Result<Self, Failure> {
        match Self::open_partly(path, tenant)? {
            Ok((flow, missing)) if missing.is_empty() => Ok(flow),
            Ok((_, faults)) => Err(DeployError { faults }.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`FlowFile::open`], but goes on without components: an empty file stands for each one that is missing, which
    /// is named among the faults.
    ///
    /// # Errors
    /// When the file cannot be read; inside, the faults of its text.
    pub(crate) fn open_partly(
        path: &Path,
        tenant: &str,
    ) -> Result<Result<(Self, Vec<FlowFault>), DeployError>, Failure> {
        let text = read(path)?;
        let flow = match FlowText::read(&text, path, &MiniJinja::new()) {
            Ok(flow) => flow,
            Err(error) => return Ok(Err(error)),
        };
        let absolute = path.canonicalize().map_err(|error| Failure::io("find", path, &error))?;
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        let mut request = RegisterRequest {
            tenant: tenant.to_owned(),
            text,
            path: absolute.display().to_string(),
            components: Vec::with_capacity(flow.spec.steps.len()),
        };
        let mut components = Vec::with_capacity(flow.spec.steps.len());
        let mut faults = Vec::new();
        for (place, step) in flow.spec.steps.iter().enumerate() {
            match open_component(path, folder, &step.component) {
                Ok((file, artifact)) => {
                    components.push(file);
                    request.components.push(artifact.display().to_string());
                }
                Err((message, hint)) => {
                    let fault = Fault { path: format!("steps[{place}].component"), message, hint };
                    faults.push(flow.locate(fault, None));
                    let empty = Path::new("/dev/null");
                    components.push(File::open(empty).map_err(|error| Failure::io("open", empty, &error))?);
                    request.components.push(step.component.clone());
                }
            }
        }
        let grants = flow.spec.steps.iter().flat_map(|step| &step.grants.env);
        let mut caller_env: Vec<String> =
            grants.filter(|variable| variable.from_caller()).map(|variable| variable.name().to_owned()).collect();
        caller_env.sort();
        caller_env.dedup();
        Ok(Ok((Self { request, components, id: flow.spec.id, caller_env }, faults)))
    }
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
    let flow = FlowText::read(&read(path)?, path, &MiniJinja::new())?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let steps = flow.spec.steps.iter().map(|step| folder.join(&step.component));
    Ok(steps.filter(|path| path.extension().is_none_or(|extension| extension != "wasm")).collect())
}

/// A flow's text, which is bounded.
fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FLOW_TEXT_MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| Failure::invalid(format!("cannot read {}: {}", path.display(), reason(&error))))?;
    Ok(text)
}

/// An open component with its path; else what is wrong and what to do.
fn open_component(flow: &Path, folder: &Path, component: &str) -> Result<(File, PathBuf), (String, Option<String>)> {
    let artifact = component::locate(folder, component).map_err(|error| (error.to_string(), error.hint(flow)))?;
    match File::open(&artifact) {
        Ok(file) => Ok((file, artifact)),
        Err(error) => Err((format!("cannot read {}: {}", artifact.display(), reason(&error)), None)),
    }
}
