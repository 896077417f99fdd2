//! A flow file as the one who hands it over opens it: its text, its own faults, and the components that are there.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use tm_core::{
    flow::{evaluate::Evaluate, spec::FlowSpec},
    limits::FLOW_TEXT_MAX_BYTES,
};

use super::{
    component::{self, Missing},
    resolve::Source,
    text::{FlowFault, FlowText},
};

/// Opens a regular file for reading. Anything else is refused at once: nobody waits for the other end of a pipe.
///
/// # Errors
/// When it is something else, or cannot be opened.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    let found = file.metadata()?;
    match (found.is_file(), found.is_dir()) {
        (true, _) => Ok(file),
        (false, true) => Err(io::ErrorKind::IsADirectory.into()),
        (false, false) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// The text of a flow file, of one that is too long no more than shows that it is.
///
/// # Errors
/// When it cannot be read, or is not UTF-8.
pub fn text_of(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open_regular(path)?.take(FLOW_TEXT_MAX_BYTES + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// A flow file that was opened with its components, whatever is wrong with it.
#[derive(Debug)]
pub struct Opened {
    pub text: String,
    /// Absolute.
    pub path: PathBuf,
    /// As messages name it.
    pub shown: PathBuf,
    /// As far as it is readable.
    pub spec: Option<FlowSpec>,
    /// Of the text alone.
    pub faults: Vec<FlowFault>,
    /// One per step of `spec`, in the order of the text.
    pub components: Vec<Result<File, Missing>>,
    /// Where each was found; as the flow has it when it was not.
    pub names: Vec<PathBuf>,
}

impl Opened {
    /// # Errors
    /// When the file cannot be read; what is wrong with its text is told in the [`Opened`].
    pub fn open(path: &Path, evaluate: &dyn Evaluate) -> io::Result<Self> {
        let absolute = path.canonicalize()?;
        let text = text_of(&absolute)?;
        let (flow, faults) = FlowText::read_partly(&text, path, evaluate);
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        let (mut components, mut names) = (Vec::new(), Vec::new());
        for step in flow.iter().flat_map(|flow| &flow.spec.steps) {
            match component::open(path, folder, &step.component) {
                Ok((name, file)) => {
                    names.push(name);
                    components.push(Ok(file));
                }
                Err(missing) => {
                    names.push(PathBuf::from(&step.component));
                    components.push(Err(missing));
                }
            }
        }
        let spec = flow.map(|flow| flow.spec);
        Ok(Self { text, path: absolute, shown: path.to_owned(), spec, faults, components, names })
    }

    /// Whether nothing was found wrong so far.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.faults.is_empty() && self.components.iter().all(Result::is_ok)
    }

    /// For [`super::resolve`].
    #[must_use]
    pub fn source<'a>(&'a self, tenant: &'a str) -> Source<'a> {
        Source { tenant, text: &self.text, path: &self.path, shown: &self.shown, components: &self.components }
    }
}
