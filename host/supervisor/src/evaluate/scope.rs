//! The part of the scope that an expression names: only that is converted.

use std::collections::BTreeMap;

use minijinja::value::Value as Jinja;
use serde_json::Value;

use super::{SCOPE_MAX_BYTES, json};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Name(String),
    Index(usize),
}

/// `steps.list.output.pages[0]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path(Vec<Key>);

impl Path {
    pub(super) fn find<'a>(&self, scope: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(scope, |value, key| match key {
            Key::Name(name) => value.get(name),
            Key::Index(index) => value.get(index),
        })
    }
}

/// Words of the language that are no names.
const KEYWORDS: [&str; 14] =
    ["true", "false", "none", "True", "False", "None", "null", "and", "or", "not", "in", "is", "if", "else"];

/// An expression that is one path and nothing else.
pub(super) fn plain_path(expression: &str) -> Option<Path> {
    let (path, end) = path_at(expression, 0)?;
    let Some(Key::Name(root)) = path.0.first() else { return None };
    (end == expression.len() && !KEYWORDS.contains(&root.as_str())).then_some(path)
}

/// All paths that a text names, outside its strings.
fn paths_in(expression: &str) -> Vec<(Path, usize)> {
    let bytes = expression.as_bytes();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => at = string_end(bytes, at, quote),
            b'.' => at = word_end(bytes, skip_space(bytes, at + 1)).max(at + 1),
            byte if is_word(byte) => match path_at(expression, at) {
                Some((path, end)) => {
                    at = end;
                    found.push((path, end));
                }
                None => at = word_end(bytes, at),
            },
            _ => at += 1,
        }
    }
    found
}

/// The path that starts at a byte, and where it ends.
fn path_at(text: &str, start: usize) -> Option<(Path, usize)> {
    let bytes = text.as_bytes();
    if bytes.get(start)?.is_ascii_digit() {
        return None;
    }
    let mut end = word_end(bytes, start);
    if end == start {
        return None;
    }
    let mut keys = vec![Key::Name(text[start..end].to_owned())];
    loop {
        let mark = skip_space(bytes, end);
        match bytes.get(mark) {
            Some(b'.') => {
                let name = skip_space(bytes, mark + 1);
                let after = word_end(bytes, name);
                if after == name || bytes[name].is_ascii_digit() {
                    break;
                }
                keys.push(Key::Name(text[name..after].to_owned()));
                end = after;
            }
            Some(b'[') => {
                let Some((key, after)) = subscript(text, mark + 1) else { break };
                keys.push(key);
                end = after;
            }
            _ => break,
        }
    }
    Some((Path(keys), end))
}

/// `"name"]` or `3]`.
fn subscript(text: &str, start: usize) -> Option<(Key, usize)> {
    let bytes = text.as_bytes();
    let at = skip_space(bytes, start);
    let (key, after) = match *bytes.get(at)? {
        quote @ (b'"' | b'\'') => {
            let end = string_end(bytes, at, quote);
            let name = text.get(at + 1..end.checked_sub(1)?)?;
            (!name.contains('\\')).then(|| (Key::Name(name.to_owned()), end))?
        }
        _ => {
            let end = word_end(bytes, at);
            (Key::Index(text[at..end].parse().ok()?), end)
        }
    };
    let close = skip_space(bytes, after);
    (bytes.get(close) == Some(&b']')).then_some((key, close + 1))
}

fn string_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn skip_space(bytes: &[u8], start: usize) -> usize {
    start + bytes[start.min(bytes.len())..].iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

fn word_end(bytes: &[u8], start: usize) -> usize {
    start + bytes[start.min(bytes.len())..].iter().take_while(|&&byte| is_word(byte)).count()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The name to show for an undefined value: the first path that the scope lacks and that nothing provides for.
pub(super) fn missing(expression: &str, scope: &Value) -> String {
    let provided = |end: usize| {
        let rest = expression[end..].trim_start();
        let word = rest.trim_start_matches('|').trim_start();
        rest.starts_with("is ") || (rest.starts_with('|') && (word.starts_with("default") || word.starts_with("d(")))
    };
    let name = |path: &Path| {
        let mut shown = String::new();
        for key in &path.0 {
            match key {
                Key::Name(name) if shown.is_empty() => shown.push_str(name),
                Key::Name(name) if name.bytes().all(is_word) => shown.extend([".", name]),
                Key::Name(name) => shown.push_str(&format!("[\"{name}\"]")),
                Key::Index(index) => shown.push_str(&format!("[{index}]")),
            }
        }
        shown
    };
    paths_in(expression)
        .iter()
        .filter(|(path, end)| {
            let keyword = matches!(path.0.first(), Some(Key::Name(root)) if KEYWORDS.contains(&root.as_str()));
            !keyword && path.find(scope).is_none() && !provided(*end) && !is_called(expression, path, *end)
        })
        .map(|(path, _)| name(path))
        .next()
        .unwrap_or_else(|| "a value".to_owned())
}

/// Functions, filters, tests and keyword arguments are single words that the scope does not have to hold.
fn is_called(expression: &str, path: &Path, end: usize) -> bool {
    let [Key::Name(word)] = path.0.as_slice() else { return false };
    let before = expression[..end - word.len()].trim_end();
    let after = expression[end..].trim_start();
    let keyword_argument = after.starts_with('=') && !after.starts_with("==");
    after.starts_with('(')
        || keyword_argument
        || before.ends_with('|')
        || before.ends_with(" is")
        || before.ends_with(" not")
}

/// The paths of an expression as a tree.
#[derive(Debug, Default)]
pub(super) struct Paths {
    whole: bool,
    children: BTreeMap<String, Paths>,
}

impl Paths {
    pub(super) fn of(expression: &str) -> Self {
        let mut root = Self::default();
        for (path, _) in paths_in(expression) {
            let names = path.0.iter().map_while(|key| match key {
                Key::Name(name) => Some(name),
                Key::Index(_) => None,
            });
            names.fold(&mut root, |node, name| node.children.entry(name.clone()).or_default()).whole = true;
        }
        root
    }

    /// The named part of the scope and its size; `None` when that is too large.
    pub(super) fn context(&self, scope: &Value) -> Option<(Jinja, usize)> {
        let mut left = SCOPE_MAX_BYTES;
        let context = self.pick(scope, &mut left)?;
        Some((context, SCOPE_MAX_BYTES - left))
    }

    fn pick(&self, value: &Value, left: &mut usize) -> Option<Jinja> {
        let Value::Object(fields) = value else { return json::to_value(value, left) };
        if self.whole {
            return json::to_value(value, left);
        }
        let mut picked = Vec::with_capacity(self.children.len());
        for (name, child) in &self.children {
            if let Some(field) = fields.get(name) {
                picked.push((name.as_str(), child.pick(field, left)?));
            }
        }
        Some(Jinja::from_pairs(picked))
    }
}
