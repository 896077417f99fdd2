//! Files of the repository and a reader of Rust text that tells code, strings and comments apart.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The top of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The files below the root with one of these extensions (`""`: files without one), sorted; no build outputs.
pub(crate) fn walk(extensions: &[&str]) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![root()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap_or_default());
            let kind = entry.file_type().unwrap();
            let skipped = name == "target" || (name.starts_with('.') && name != ".ci");
            if kind.is_dir() && !skipped {
                folders.push(path);
            } else if kind.is_file() && !skipped {
                let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
                if extensions.contains(&extension) {
                    files.push(path);
                }
            }
        }
    }
    files.sort();
    files
}

/// A path as the repository has it.
pub(crate) fn name_of(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}

/// A Rust file.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
    /// The text with comments and the insides of strings blanked, line by line as the text.
    code: String,
    strings: Vec<(usize, String)>,
}

impl Source {
    pub(crate) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let (code, strings) = split(&text);
        Self { name: name_of(path), text, code, strings }
    }

    /// Whether the whole file is a test.
    pub(crate) fn is_test_file(&self) -> bool {
        let stem = self.name.trim_end_matches(".rs");
        self.name.contains("/tests/") || stem.ends_with("tests") || self.name.starts_with("tests/")
    }

    /// Lines from 1, without comments and the insides of strings.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().zip(1..).map(|(line, number)| (number, line))
    }

    /// As [`Source::code`], up to the tests: by convention a file's tests are its last item.
    pub(crate) fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.tests_from();
        self.code().take_while(move |(number, _)| *number < tests)
    }

    /// The strings before the tests, with their lines.
    pub(crate) fn strings(&self) -> impl Iterator<Item = (usize, &String)> {
        let tests = self.tests_from();
        self.strings.iter().map(|(number, text)| (*number, text)).filter(move |(number, _)| *number < tests)
    }

    fn tests_from(&self) -> usize {
        let lines: Vec<&str> = self.code.lines().collect();
        let module = |at: usize| lines.get(at + 1).is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'));
        let from = (0..lines.len()).find(|&at| lines[at].starts_with("#[cfg(test)]") && module(at));
        from.map_or(usize::MAX, |at| at + 1)
    }
}

/// Code with blanked comments and strings, and the strings with their lines.
fn split(text: &str) -> (String, Vec<(usize, String)>) {
    let chars: Vec<char> = text.chars().collect();
    let (mut code, mut strings) = (String::with_capacity(text.len()), Vec::new());
    let (mut at, mut line) = (0, 1);
    let blank = |code: &mut String, c: char| code.push(if c == '\n' { '\n' } else { ' ' });
    while at < chars.len() {
        let rest = &chars[at..];
        let end = if rest.starts_with(&['/', '/']) {
            at + rest.iter().position(|&c| c == '\n').unwrap_or(rest.len())
        } else if rest.starts_with(&['/', '*']) {
            at + comment_length(rest)
        } else if let Some((open, close, raw)) = string_opening(&chars, at) {
            let length = string_length(&chars[at + open..], close, raw);
            strings.push((line, chars[at + open..at + open + length].iter().collect()));
            at + open + length + close + 1
        } else if let Some(length) = char_length(rest) {
            at + length
        } else {
            code.push(chars[at]);
            line += usize::from(chars[at] == '\n');
            at += 1;
            continue;
        };
        let end = end.min(chars.len());
        for &c in &chars[at..end] {
            blank(&mut code, c);
            line += usize::from(c == '\n');
        }
        at = end;
    }
    (code, strings)
}

fn comment_length(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// For a string that begins at `at`: characters up to its content, hashes behind its closing quote, whether it is raw.
fn string_opening(chars: &[char], at: usize) -> Option<(usize, usize, bool)> {
    if chars[at] == '"' {
        return Some((1, 0, false));
    }
    let starts_word = at == 0 || !(chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    let mut next = at;
    if starts_word && matches!(chars[next], 'b' | 'c') {
        next += 1;
    }
    if starts_word && chars.get(next) == Some(&'r') {
        let hashes = chars[next + 1..].iter().take_while(|&&c| c == '#').count();
        return (chars.get(next + 1 + hashes) == Some(&'"')).then_some((next + 2 + hashes - at, hashes, true));
    }
    (next > at && chars.get(next) == Some(&'"')).then_some((2, 0, false))
}

fn string_length(content: &[char], hashes: usize, raw: bool) -> usize {
    let mut at = 0;
    while at < content.len() {
        if !raw && content[at] == '\\' {
            at += 2;
        } else if content[at] == '"' && content[at + 1..].iter().take_while(|&&c| c == '#').count() >= hashes {
            return at;
        } else {
            at += 1;
        }
    }
    content.len()
}

/// A character in quotes; a lifetime is none.
fn char_length(rest: &[char]) -> Option<usize> {
    match rest {
        ['\'', '\\', _, ..] => rest[3..].iter().position(|&c| c == '\'').map(|end| end + 4),
        ['\'', _, '\'', ..] => Some(3),
        _ => None,
    }
}

/// Whether a call stands in a line, and not as the end of a longer name.
pub(crate) fn has_call(line: &str, call: &str) -> bool {
    line.match_indices(call)
        .any(|(at, _)| call.starts_with('.') || !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Whether a word stands in a text, not as part of a longer one.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| !text[..at].ends_with(part) && !text[at + word.len()..].starts_with(part))
}

/// The keys of `[dependencies]` of a manifest, also of those for one target.
pub(crate) fn dependencies(manifest: &Path) -> Vec<String> {
    table(manifest, "dependencies")
}

/// The keys of `[dev-dependencies]` of a manifest.
pub(crate) fn dev_dependencies(manifest: &Path) -> Vec<String> {
    table(manifest, "dev-dependencies")
}

fn table(manifest: &Path, name: &str) -> Vec<String> {
    let (text, mut inside, mut keys) = (fs::read_to_string(manifest).unwrap(), false, Vec::new());
    for line in text.lines() {
        if let Some(head) = line.strip_prefix('[') {
            let head = head.trim_end_matches(']');
            inside = head == name || (head.starts_with("target.") && head.ends_with(&format!(".{name}")));
        } else if inside && !line.starts_with('#') {
            keys.extend(line.split(['=', '.', ' ']).next().filter(|key| !key.is_empty()).map(str::to_owned));
        }
    }
    keys
}

/// The targets of the links of a Markdown text, outside of code.
pub(crate) fn links(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let bare: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
        for piece in bare.split("](").skip(1) {
            found.extend(piece.split([')', ' ']).next().map(str::to_owned));
        }
    }
    found
}
