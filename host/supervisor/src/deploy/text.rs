//! A flow's text (YAML, of which JSON is a part): its definition, and where each part of it stands.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use tm_core::{
    api::{ApiError, ErrorKind},
    flow::{
        evaluate::Evaluate,
        names::shorten,
        spec::{FlowFile, FlowSpec},
        validate::{Fault, validate},
    },
    limits::{FLOW_TEXT_MAX_BYTES, STEPS_PER_FLOW_MAX},
};

use super::{
    form::{self, Form, FormFault},
    tree::{Place, Tree},
};

/// A flow that was read, as far as it is readable.
#[derive(Debug)]
pub struct FlowText {
    /// What stands for an unreadable part is empty.
    pub spec: FlowSpec,
    path: PathBuf,
    lines: Lines,
    places: Option<Tree>,
    /// Paths of the parts that have faults.
    flawed: Vec<String>,
}

type Lines = Vec<String>;
type Placed = Vec<(Place, Fault)>;

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
    /// In the order of the text, each once.
    #[must_use]
    pub fn of(mut faults: Vec<FlowFault>) -> Self {
        faults.sort_by_key(|fault| (fault.line, fault.column));
        faults.dedup();
        Self { faults }
    }

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
    /// All its faults, as [`FlowText::read_partly`] finds them.
    pub fn read(text: &str, path: &Path, evaluate: &dyn Evaluate) -> Result<Self, DeployError> {
        match Self::read_partly(text, path, evaluate) {
            (Some(flow), faults) if faults.is_empty() => Ok(flow),
            (_, faults) => Err(DeployError::of(faults)),
        }
    }

    /// Reads and validates a flow's text as far as it goes: all faults of the form (unknown keys, keys that stand twice,
    /// wrong kinds) and of the content, and what can be read in spite of them. A fault of the syntax stands alone, without a
    /// flow, and so does a flow with more steps than there may be.
    pub fn read_partly(text: &str, path: &Path, evaluate: &dyn Evaluate) -> (Option<Self>, Vec<FlowFault>) {
        if text.len() as u64 > FLOW_TEXT_MAX_BYTES {
            let message = format!("{} bytes, a flow has at most {FLOW_TEXT_MAX_BYTES}", text.len());
            return (None, vec![FlowFault::of_file(path, message)]);
        }
        let lines = lines_of(text);
        let (places, syntax) = match Tree::of(text) {
            Ok(tree) => (Some(tree), None),
            Err(error) => (None, Some(error)),
        };
        let (spec, faults) = match serde_saphyr::from_str::<FlowFile>(text) {
            Ok(file) => {
                let faults = validate(&file.flow, evaluate).into_iter();
                let placed = faults.map(|fault| placed(places.as_ref(), fault)).collect();
                (Some(file.flow), placed)
            }
            // The reader of flows stops at what it does not know, which may stand before the fault of the syntax.
            Err(error) => unreadable(&syntax.unwrap_or(error), places.as_ref(), evaluate),
        };
        let paths = faults.iter().map(|(_, fault)| fault.path.clone());
        let flawed = paths.filter(|path| !path.is_empty()).collect();
        let located = |(place, fault)| located(path, &lines, place, fault, None);
        let faults = faults.into_iter().map(located).collect();
        let spec = spec.filter(|spec| spec.steps.len() <= STEPS_PER_FLOW_MAX);
        let flow = spec.map(|spec| Self { spec, path: path.to_owned(), lines, places, flawed });
        (flow, faults)
    }

    /// Whether a part, or one that it belongs to, has a fault: what follows from that is no fault of its own.
    #[must_use]
    pub fn is_flawed(&self, path: &str) -> bool {
        let path = in_file(path);
        self.flawed.iter().any(|flawed| is_within(&path, flawed))
    }

    /// Whether a part or something in it has a fault.
    #[must_use]
    pub fn has_flaws_within(&self, path: &str) -> bool {
        let whole = in_file(path);
        self.is_flawed(path) || self.flawed.iter().any(|flawed| is_within(flawed, &whole))
    }

    /// A fault of a path, at its place; the nearest enclosing part when the path itself is not written.
    #[must_use]
    pub fn locate(&self, fault: Fault, code: Option<&'static str>) -> FlowFault {
        let (place, fault) = placed(self.places.as_ref(), fault);
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

/// The lines as YAML counts them: a carriage return alone ends one, too.
fn lines_of(text: &str) -> Lines {
    text.replace("\r\n", "\n").split_terminator(['\n', '\r']).map(str::to_owned).collect()
}

/// The path of a fault of a flow, from the file's beginning.
fn in_file(path: &str) -> String {
    format!("flow.{path}")
}

/// A fault of a flow with its place; its path then begins at the file.
fn placed(tree: Option<&Tree>, fault: Fault) -> (Place, Fault) {
    let path = in_file(&fault.path);
    (tree.map_or((0, 0), |tree| tree.find(&path)), Fault { path, ..fault })
}

fn located(path: &Path, lines: &Lines, place: Place, fault: Fault, code: Option<&'static str>) -> FlowFault {
    // What has no place is about the whole text.
    let (line, column) = if place.0 == 0 { (1, 1) } else { place };
    let source = usize::try_from(line).ok().and_then(|line| lines.get(line.checked_sub(1)?)).cloned();
    FlowFault { file: path.to_owned(), line, column, code, message: fault.message, hint: fault.hint, source }
}

/// The faults of a text that is not a flow: those of its form, and those of the content that can be read all the same.
fn unreadable(error: &serde_saphyr::Error, tree: Option<&Tree>, evaluate: &dyn Evaluate) -> (Option<FlowSpec>, Placed) {
    let parsers = parser_fault(error);
    let Some(tree) = tree else { return (None, vec![parsers]) };
    let Form { faults: form, unread, flow } = form::read(tree);
    // Of keys that stand twice the parser alone sees those that are numbers.
    let twice = matches!(error.without_snippet(), serde_saphyr::Error::DuplicateMappingKey { .. });
    let own = twice && form.iter().all(|fault| fault.place != parsers.0);
    let mut faults = if form.is_empty() || own { vec![parsers] } else { vec![] };
    // What stands for an unreadable part has faults of its own, and so has who needs a step without a readable id.
    let follows = |fault: &Fault| {
        let nameless = unread.iter().any(|bad| bad.ends_with("].id")) && fault.message.contains("unknown step");
        nameless || unread.iter().any(|bad| is_within(&in_file(&fault.path), bad))
    };
    let content = flow.as_ref().map_or_else(Vec::new, |flow| validate(flow, evaluate));
    let content = content.into_iter().filter(|fault| !follows(fault));
    let plain = |FormFault { path, place, message, hint }| (place, Fault { path, message, hint });
    faults.extend(form.into_iter().map(plain));
    faults.extend(content.map(|fault| placed(Some(tree), fault)));
    (flow, faults)
}

/// Whether a path is that of a part or of something in it, and not of another part whose name begins alike.
fn is_within(path: &str, part: &str) -> bool {
    path.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn parser_fault(error: &serde_saphyr::Error) -> (Place, Fault) {
    let plain = error.without_snippet();
    let place = plain.location().map_or((0, 0), |place| (place.line(), place.column()));
    if let serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } = plain {
        let message = format!("key '{}' stands here again", shorten(key));
        return (place, Fault { path: String::new(), message, hint: Some("keep one of them".to_owned()) });
    }
    let mut message = plain.to_string().replace('\n', " ");
    if let Some(at) = message.find(" at line ") {
        message.truncate(at);
    }
    let message = message.trim_start_matches("error: ").trim().to_owned();
    (place, Fault { path: String::new(), message, hint: None })
}
