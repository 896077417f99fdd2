//! The form of a flow: which keys stand where, with what kind of value. All faults of the form are found in one pass,
//! and what is readable in spite of them is judged too.

use serde_json::{Map, Value};
use tm_core::flow::{names, spec::FlowSpec};

use super::tree::{Again, Node, Place, Tree, place_of};

/// Faults that are told at once; a file with more has been told enough.
const FAULTS_MAX: usize = 100;

/// What a key holds.
enum Kind {
    Text,
    /// From 0 to here.
    Whole(u64),
    Number,
    Flag,
    Any,
    OneOf(&'static [&'static str]),
    List(&'static Kind),
    Table(&'static [Key]),
    /// A name, or a table.
    Named(&'static [Key]),
}

struct Key {
    name: &'static str,
    kind: Kind,
    must: bool,
}

const fn must(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, must: true }
}

const fn may(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, must: false }
}

const WHOLE: Kind = Kind::Whole(u64::MAX);
const SHORT: Kind = Kind::Whole(u32::MAX as u64);

const FILE: &[Key] = &[must("flow", Kind::Table(FLOW))];
const FLOW: &[Key] = &[
    must("id", Kind::Text),
    may("version", Kind::Text),
    may("description", Kind::Text),
    may("run_timeout_ms", WHOLE),
    must("steps", Kind::List(&Kind::Table(STEP))),
];
const STEP: &[Key] = &[
    must("id", Kind::Text),
    must("component", Kind::Text),
    may("needs", Kind::List(&Kind::Text)),
    may("when", Kind::Text),
    may("for_each", Kind::Text),
    may("max_parallel", SHORT),
    may("input", Kind::Any),
    may("limits", Kind::Table(LIMITS)),
    may("retries", Kind::Table(RETRIES)),
    may("grants", Kind::Table(GRANTS)),
];
const LIMITS: &[Key] = &[
    may("fuel", WHOLE),
    may("memory_mb", SHORT),
    may("timeout_ms", WHOLE),
    may("stack_kb", SHORT),
    may("output_kb", SHORT),
    may("log_kb", SHORT),
    may("scratch_mb", SHORT),
    may("artifacts_mb", SHORT),
];
const RETRIES: &[Key] = &[
    may("max_attempts", SHORT),
    may("base_ms", WHOLE),
    may("factor", Kind::Number),
    may("jitter_ms", WHOLE),
    may("max_delay_ms", WHOLE),
];
const GRANTS: &[Key] = &[
    may("files", Kind::List(&Kind::Table(FILES))),
    may("env", Kind::List(&Kind::Named(VARIABLE))),
    may("scratch", Kind::Flag),
    may("artifacts", Kind::Flag),
    may("clocks", Kind::Flag),
    may("random", Kind::Flag),
];
const FILES: &[Key] = &[
    must("host", Kind::Text),
    must("guest", Kind::Text),
    may("mode", Kind::OneOf(&["read", "write"])),
    may("max_mb", SHORT),
];
const VARIABLE: &[Key] = &[must("name", Kind::Text), must("from", Kind::OneOf(&["caller", "host"]))];

/// A fault of the form; its path begins at the file.
pub(super) struct FormFault {
    pub path: String,
    pub place: Place,
    pub message: String,
    pub hint: Option<String>,
}

/// A flow's form.
pub(super) struct Form {
    pub faults: Vec<FormFault>,
    /// Paths of what is missing or of another kind.
    pub unread: Vec<String>,
    /// The flow as far as it can be read: what stands at the unread paths is empty.
    pub flow: Option<FlowSpec>,
}

pub(super) fn read(tree: &Tree) -> Form {
    let mut reader = Reader { faults: Vec::new(), unread: Vec::new() };
    for Again { path, name, place, first } in tree.again() {
        let message = format!("key '{}' stands here again, first at {}:{}", names::shorten(&name), first.0, first.1);
        reader.fault(&path, place, message, Some("keep one of them".to_owned()));
    }
    let mut file = reader.table(FILE, tree, "");
    let flow = file.get_mut("flow").map(Value::take).and_then(|flow| serde_json::from_value(flow).ok());
    reader.faults.truncate(FAULTS_MAX);
    Form { faults: reader.faults, unread: reader.unread, flow }
}

struct Reader {
    faults: Vec<FormFault>,
    unread: Vec<String>,
}

impl Reader {
    fn fault(&mut self, path: &str, place: Place, message: String, hint: Option<String>) {
        if self.faults.len() <= FAULTS_MAX {
            self.faults.push(FormFault { path: path.to_owned(), place, message, hint });
        }
    }

    /// The value, when it is of this kind.
    fn value(&mut self, kind: &Kind, tree: &Tree, path: &str) -> Option<Value> {
        match (kind, tree.node()) {
            (Kind::Any, _) => return Some(plain(tree)),
            (Kind::Table(keys) | Kind::Named(keys), Node::Map { .. }) => {
                return Some(self.table(keys, tree, path).into());
            }
            (Kind::List(kind), Node::List(items)) => {
                let item = |(at, item)| self.value(kind, item, &format!("{path}[{at}]")).unwrap_or(kind.blank());
                return Some(items.iter().enumerate().map(item).collect());
            }
            (Kind::Text | Kind::Named(_), Node::Leaf(value)) => match value {
                Value::String(_) => return Some(value.clone()),
                Value::Number(_) | Value::Bool(_) => return Some(value.to_string().into()),
                _ => {}
            },
            (Kind::OneOf(words), Node::Leaf(value)) if value.as_str().is_some_and(|word| words.contains(&word)) => {
                return Some(value.clone());
            }
            (Kind::Whole(most), Node::Leaf(value)) if value.as_u64().is_some_and(|number| number <= *most) => {
                return Some(value.clone());
            }
            (Kind::Number, Node::Leaf(value)) if value.is_number() => return Some(value.clone()),
            (Kind::Flag, Node::Leaf(value)) if value.is_boolean() => return Some(value.clone()),
            _ => {}
        }
        let name = path.rsplit('.').next().unwrap_or(path);
        let message = format!("{name} must be {}, this is {}", kind.words(), found(tree.node()));
        let near = match (kind, tree.node()) {
            (Kind::OneOf(words), Node::Leaf(Value::String(word))) => names::nearest(word, words.iter().copied()),
            _ => None,
        };
        self.fault(path, tree.place(), message, near);
        self.unread.push(path.to_owned());
        None
    }

    /// The keys that are known and readable, those that must be there in any case.
    fn table(&mut self, keys: &[Key], tree: &Tree, path: &str) -> Map<String, Value> {
        let at = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let mut values = Map::new();
        let fields = match tree.node() {
            Node::Map { fields, .. } => fields.as_slice(),
            _ => &[],
        };
        let mut meant = String::new();
        let mut blanks = Vec::new();
        for (written, value) in fields {
            let name = written.value.as_str();
            let Some(key) = keys.iter().find(|key| key.name == name) else {
                let known = || keys.iter().map(|key| key.name);
                let near = names::nearest(name, known());
                meant.extend(near.as_deref());
                let hint = near.unwrap_or_else(|| format!("known here: {}", known().collect::<Vec<_>>().join(", ")));
                let message = format!("unknown key '{}'", names::shorten(name));
                self.fault(&at(name), place_of(&written.referenced), message, Some(hint));
                continue;
            };
            if let Some(value) = self.value(&key.kind, value, &at(name)) {
                values.insert(name.to_owned(), value);
            }
        }
        for key in keys.iter().filter(|key| key.must && !values.contains_key(key.name)) {
            if !fields.iter().any(|(written, _)| written.value == key.name) {
                if !meant.contains(&format!("'{}'", key.name)) {
                    self.fault(&at(key.name), tree.place(), format!("key '{}' is missing", key.name), None);
                }
                self.unread.push(at(key.name));
            }
            blanks.push((key.name.to_owned(), key.kind.blank()));
        }
        values.extend(blanks);
        values
    }
}

impl Kind {
    fn words(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Whole(u64::MAX) => "a whole number".to_owned(),
            Self::Whole(most) => format!("a whole number up to {most}"),
            Self::Number => "a number".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Any => "any value".to_owned(),
            Self::OneOf(words) => words.join(" or "),
            Self::List(_) => "a list".to_owned(),
            Self::Table(_) => "a table of keys".to_owned(),
            Self::Named(_) => "a name or a table of keys".to_owned(),
        }
    }

    /// What stands for a value that cannot be read, so that the rest can be judged.
    fn blank(&self) -> Value {
        match self {
            Self::List(_) => Value::Array(Vec::new()),
            Self::Table(keys) => {
                let blanks = keys.iter().filter(|key| key.must).map(|key| (key.name.to_owned(), key.kind.blank()));
                Value::Object(blanks.collect())
            }
            Self::OneOf(words) => words.first().copied().unwrap_or_default().into(),
            Self::Whole(_) | Self::Number => 0.into(),
            Self::Flag => false.into(),
            Self::Text | Self::Any | Self::Named(_) => "".into(),
        }
    }
}

fn found(node: &Node) -> String {
    match node {
        Node::Leaf(Value::Null) => "nothing".to_owned(),
        Node::Leaf(Value::String(text)) => format!("the text '{}'", names::shorten(text)),
        Node::Leaf(value) => value.to_string(),
        Node::List(_) => "a list".to_owned(),
        Node::Map { .. } => "a table of keys".to_owned(),
    }
}

fn plain(tree: &Tree) -> Value {
    match tree.node() {
        Node::Leaf(value) => value.clone(),
        Node::List(items) => items.iter().map(plain).collect(),
        Node::Map { fields, .. } => fields.iter().map(|(key, value)| (key.value.clone(), plain(value))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;
    use tm_core::flow::spec;

    /// The keys that serde reads into a type, from what it says to one that it does not know.
    fn read_by_serde<T: DeserializeOwned>() -> Vec<String> {
        let Err(error) = serde_json::from_str::<T>(r#"{"?": 1}"#) else { panic!("takes any key") };
        let text = error.to_string();
        text.split('`').skip(3).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_tables_hold_the_keys_that_are_read() {
        for (table, read) in [
            (FILE, read_by_serde::<spec::FlowFile>()),
            (FLOW, read_by_serde::<spec::FlowSpec>()),
            (STEP, read_by_serde::<spec::StepSpec>()),
            (LIMITS, read_by_serde::<spec::LimitsSpec>()),
            (RETRIES, read_by_serde::<spec::RetriesSpec>()),
            (GRANTS, read_by_serde::<spec::GrantsSpec>()),
            (FILES, read_by_serde::<spec::FilesSpec>()),
            (VARIABLE, read_by_serde::<spec::EnvFrom>()),
        ] {
            let names: Vec<&str> = table.iter().map(|key| key.name).collect();
            assert_eq!(names, read);
        }
    }

    #[test]
    fn what_must_be_there_is_what_a_flow_cannot_be_read_without() {
        for (text, sound) in [
            ("flow: { id: f, steps: [ { id: a, component: x } ] }", true),
            ("flow: { id: f, steps: [ { id: a } ] }", false),
            ("flow: { id: f, steps: [ { component: x } ] }", false),
            ("flow: { id: f }", false),
            ("flow: { steps: [] }", false),
            ("flow: { id: f, steps: [ { id: 5, component: x, version: 1.0 } ] }", false),
            ("flow: { id: 5, version: 1.0, steps: [] }", true),
        ] {
            assert_eq!(serde_saphyr::from_str::<spec::FlowFile>(text).is_ok(), sound, "{text}");
            assert_eq!(read(&Tree::of(text).unwrap()).faults.is_empty(), sound, "{text}");
        }
    }
}
