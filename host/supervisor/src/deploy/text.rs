//! A flow's text (YAML, of which JSON is a part): its definition, and where each part of it stands.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;
use tm_core::{
    api::{ApiError, ErrorKind},
    flow::{
        evaluate::Evaluate,
        spec::{FlowFile, FlowSpec},
        validate::{Fault, nearest, validate},
    },
    limits::FLOW_TEXT_MAX_BYTES,
};

/// A flow that was read and has no fault of its own.
#[derive(Debug)]
pub struct FlowText {
    pub spec: FlowSpec,
    path: PathBuf,
    lines: Vec<String>,
    places: Option<Tree>,
}

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
    /// The first fault of the form (syntax, unknown key, wrong type), else all faults of the content.
    pub fn read(text: &str, path: &Path, evaluate: &dyn Evaluate) -> Result<Self, DeployError> {
        if text.len() as u64 > FLOW_TEXT_MAX_BYTES {
            let message = format!("{} bytes, a flow has at most {FLOW_TEXT_MAX_BYTES}", text.len());
            return Err(DeployError { faults: vec![FlowFault::of_file(path, message)] });
        }
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let spec = match serde_saphyr::from_str::<FlowFile>(text) {
            Ok(file) => file.flow,
            Err(error) => return Err(DeployError { faults: vec![form_fault(&error, path, &lines)] }),
        };
        let places = serde_saphyr::from_str::<Tree>(text).ok();
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
        let (line, column) = self.places.as_ref().map_or((0, 0), |tree| {
            let mut names = vec![Name::Key("flow".to_owned())];
            names.extend(names_of(&fault.path));
            find(tree, &names)
        });
        let source = usize::try_from(line).ok().and_then(|line| self.lines.get(line.checked_sub(1)?)).cloned();
        let file = self.path.clone();
        FlowFault { file, line, column, code, message: fault.message, hint: fault.hint, source }
    }
}

impl FlowFault {
    /// A fault of the whole file.
    #[must_use]
    pub fn of_file(path: &Path, message: String) -> Self {
        Self { file: path.to_owned(), line: 0, column: 0, code: None, message, hint: None, source: None }
    }
}

fn form_fault(error: &serde_saphyr::Error, path: &Path, lines: &[String]) -> FlowFault {
    let plain = error.without_snippet();
    let (line, column) = plain.location().map_or((0, 0), |place| (place.line(), place.column()));
    let mut message = plain.to_string().replace('\n', " ");
    if let Some(at) = message.find(" at line ") {
        message.truncate(at);
    }
    let message = message.trim_start_matches("error: ").trim().to_owned();
    let hint = message.split_once("unknown field `").and_then(|(_, rest)| {
        let (name, rest) = rest.split_once('`')?;
        let known = rest.split_once("expected ")?.1.trim_start_matches("one of ");
        nearest(name, known.split(", "))
    });
    let source = usize::try_from(line).ok().and_then(|line| lines.get(line.checked_sub(1)?)).cloned();
    FlowFault { file: path.to_owned(), line, column, code: None, message, hint, source }
}

enum Name {
    Key(String),
    Index(usize),
}

/// `steps[2].needs[0]`.
fn names_of(path: &str) -> Vec<Name> {
    path.split(['.', '[', ']'])
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().map_or_else(|_| Name::Key(part.to_owned()), Name::Index))
        .collect()
}

fn find(tree: &Tree, names: &[Name]) -> (u64, u64) {
    let mut here = tree;
    let mut place = (tree.0.referenced.line(), tree.0.referenced.column());
    for name in names {
        let next = match (&here.0.value, name) {
            (Node::Map(fields), Name::Key(key)) => {
                fields.iter().find(|(name, _)| name.value == *key).map(|(name, value)| {
                    // A block stands at its key, a value at itself.
                    let leaf = matches!(value.0.value, Node::Leaf);
                    let at = if leaf { &value.0.referenced } else { &name.referenced };
                    ((at.line(), at.column()), value)
                })
            }
            (Node::List(items), Name::Index(index)) => {
                items.get(*index).map(|item| ((item.0.referenced.line(), item.0.referenced.column()), item))
            }
            _ => None,
        };
        let Some((at, value)) = next else { break };
        (place, here) = (at, value);
    }
    place
}

/// The text's shape, with the place of everything.
#[derive(Debug)]
struct Tree(Box<Spanned<Node>>);

#[derive(Debug)]
enum Node {
    Leaf,
    List(Vec<Tree>),
    Map(Vec<(Spanned<String>, Tree)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Spanned::deserialize(d).map(|spanned| Self(Box::new(spanned)))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Shape)
    }
}

struct Shape;

macro_rules! leaves {
    ($($visit:ident: $type:ty),+) => {
        $(fn $visit<E>(self, _: $type) -> Result<Node, E> { Ok(Node::Leaf) })+
    };
}

impl<'de> Visitor<'de> for Shape {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    leaves!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128, visit_f64: f64,
            visit_str: &str, visit_bytes: &[u8]);

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
        Node::deserialize(d)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Map(fields))
    }
}
