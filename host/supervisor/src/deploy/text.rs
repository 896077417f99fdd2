//! A flow's text (YAML, of which JSON is a part): its definition, and where each part of it stands.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use tm_core::{
    api::{ApiError, ErrorKind},
    flow::{
        evaluate::Evaluate,
        spec::{FlowFile, FlowSpec},
        validate::{Fault, validate},
    },
    limits::FLOW_TEXT_MAX_BYTES,
};

use super::{
    form::{self, Form, FormFault},
    tree::{Place, Tree},
};

/// A flow that was read and has no fault of its own.
#[derive(Debug)]
pub struct FlowText {
    pub spec: FlowSpec,
    path: PathBuf,
    lines: Lines,
    places: Option<Tree>,
}

type Lines = Vec<String>;

/// Why a flow cannot be registered: all that was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", rendered(.faults))]
pub struct DeployError {
    pub faults: Vec<FlowFault>,
}

/// One fault, with its place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowFault {
    pub file: PathBuf,
    /// From 1; 0 when the fault is not of one place.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
    /// A code of the host's table, where one fits.
    pub code: Option<&'static str>,
    pub message: String,
    pub hint: Option<String>,
    /// The line of the text, without its end.
    pub source: Option<String>,
}

impl fmt::Display for FlowFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: {}", self.file.display(), self.message)?;
        } else {
            write!(f, "{}:{}:{}: {}", self.file.display(), self.line, self.column, self.message)?;
        }
        if let Some(source) = &self.source {
            let number = self.line.to_string();
            let room = " ".repeat(number.len());
            let before: String = source
                .chars()
                .take(usize::try_from(self.column.saturating_sub(1)).unwrap_or(0))
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            write!(f, "\n {room} |\n {number} | {source}\n {room} | {before}^")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\n hint: {hint}"),
            None => Ok(()),
        }
    }
}

fn rendered(faults: &[FlowFault]) -> String {
    let texts: Vec<String> = faults.iter().map(FlowFault::to_string).collect();
    texts.join("\n")
}

impl DeployError {
    /// As a reply: the first code that there is, all faults in the message.
    #[must_use]
    pub fn to_api(&self) -> ApiError {
        ApiError {
            kind: ErrorKind::Invalid,
            code: self.faults.iter().find_map(|fault| fault.code).map(str::to_owned),
            message: self.to_string(),
            hint: None,
            retry_after_ms: None,
        }
    }
}

impl FlowText {
    /// Reads and validates a flow's text; `path` is only for messages.
    ///
    /// # Errors
    /// All faults of the form (unknown keys, wrong kinds) and of the content, as far as it is readable; a fault of the
    /// syntax alone.
    pub fn read(text: &str, path: &Path, evaluate: &dyn Evaluate) -> Result<Self, DeployError> {
        if text.len() as u64 > FLOW_TEXT_MAX_BYTES {
            let message = format!("{} bytes, a flow has at most {FLOW_TEXT_MAX_BYTES}", text.len());
            return Err(DeployError { faults: vec![FlowFault::of_file(path, message)] });
        }
        let lines: Lines = text.lines().map(str::to_owned).collect();
        let places = Tree::of(text);
        let spec = match serde_saphyr::from_str::<FlowFile>(text) {
            Ok(file) => file.flow,
            Err(error) => {
                let faults = unreadable(&error, places.as_ref(), evaluate);
                let located = |(fault, place)| located(path, &lines, place, fault, None);
                return Err(DeployError { faults: faults.into_iter().map(located).collect() });
            }
        };
        let flow = Self { spec, path: path.to_owned(), lines, places };
        let faults = validate(&flow.spec, evaluate);
        if faults.is_empty() {
            return Ok(flow);
        }
        Err(DeployError { faults: faults.into_iter().map(|fault| flow.locate(fault, None)).collect() })
    }

    /// A fault of a path, at its place; the nearest enclosing part when the path itself is not written.
    #[must_use]
    pub fn locate(&self, fault: Fault, code: Option<&'static str>) -> FlowFault {
        let place = self.places.as_ref().map_or((0, 0), |tree| tree.find(&in_file(&fault.path)));
        located(&self.path, &self.lines, place, fault, code)
    }
}

impl FlowFault {
    /// A fault of the whole file.
    #[must_use]
    pub fn of_file(path: &Path, message: String) -> Self {
        Self { file: path.to_owned(), line: 0, column: 0, code: None, message, hint: None, source: None }
    }
}

/// The path of a fault of a flow, from the file's beginning.
fn in_file(path: &str) -> String {
    format!("flow.{path}")
}

fn located(path: &Path, lines: &Lines, place: Place, fault: Fault, code: Option<&'static str>) -> FlowFault {
    let (line, column) = place;
    let source = usize::try_from(line).ok().and_then(|line| lines.get(line.checked_sub(1)?)).cloned();
    FlowFault { file: path.to_owned(), line, column, code, message: fault.message, hint: fault.hint, source }
}

/// The faults of a text that is not a flow: those of its form, and those of the content that can be read all the same.
fn unreadable(error: &serde_saphyr::Error, tree: Option<&Tree>, evaluate: &dyn Evaluate) -> Vec<(Fault, Place)> {
    let parsers = parser_fault(error);
    let Some(tree) = tree else { return vec![parsers] };
    let Form { faults: form, unread, flow } = form::read(tree);
    // A key that stands twice, a number out of its type: what only the parser sees.
    let mut faults: Vec<_> =
        if form.is_empty() || parsers.0.message.contains("duplicate") { vec![parsers] } else { vec![] };
    // What stands for an unreadable part has faults of its own, and so has who needs a step without a readable id.
    let follows = |fault: &Fault| {
        let path = in_file(&fault.path);
        let nameless = unread.iter().any(|bad| bad.ends_with("].id")) && fault.message.contains("unknown step");
        nameless || unread.iter().any(|bad| path.strip_prefix(bad.as_str()).is_some_and(is_boundary))
    };
    let content = flow.map_or_else(Vec::new, |flow| validate(&flow, evaluate));
    let content: Vec<_> = content.into_iter().filter(|fault| !follows(fault)).collect();
    let plain = |FormFault { path, place, message, hint }| (Fault { path, message, hint }, place);
    faults.extend(form.into_iter().map(plain));
    faults.extend(content.into_iter().map(|fault| {
        let place = tree.find(&in_file(&fault.path));
        (fault, place)
    }));
    faults.sort_by_key(|(_, place)| *place);
    faults
}

/// Whether a path goes on into a part, and not with another name that begins alike.
fn is_boundary(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with(['.', '['])
}

fn parser_fault(error: &serde_saphyr::Error) -> (Fault, Place) {
    let plain = error.without_snippet();
    let place = plain.location().map_or((0, 0), |place| (place.line(), place.column()));
    let mut message = plain.to_string().replace('\n', " ");
    if let Some(at) = message.find(" at line ") {
        message.truncate(at);
    }
    let message = message.trim_start_matches("error: ").trim().to_owned();
    (Fault { path: String::new(), message, hint: None }, place)
}
