//! Places in the configuration's text: what an error names.

use std::{ops::Range, path::Path};

use serde::Deserialize;
use tm_core::flow::names::nearest;
use toml::Spanned;

use super::{ConfigError, Problem, units};

/// Seconds, as the flags take them, or a duration with its unit.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a duration like \"10s\", or whole seconds, is needed")]
pub(super) enum Span {
    Seconds(u64),
    Text(String),
}

/// The file that an error names.
pub(super) struct Place<'a> {
    pub(super) text: &'a str,
    pub(super) path: &'a Path,
}

impl Place<'_> {
    fn at(&self, span: Range<usize>, problem: Problem) -> ConfigError {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        ConfigError::Invalid {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            problem,
        }
    }

    pub(super) fn range(&self, span: Range<usize>, key: String, message: String) -> ConfigError {
        self.at(span, Problem::OutOfRange { key, message })
    }

    pub(super) fn within<T: Copy + PartialOrd + std::fmt::Display>(
        &self,
        key: &str,
        value: &Spanned<T>,
        least: T,
        most: T,
    ) -> Result<T, ConfigError> {
        let found = *value.get_ref();
        if found < least || found > most {
            return Err(self.range(value.span(), key.to_owned(), format!("{found} is not between {least} and {most}")));
        }
        Ok(found)
    }

    pub(super) fn span(&self, key: &str, span: &Spanned<Span>) -> Result<u64, ConfigError> {
        let ms = match span.get_ref() {
            Span::Seconds(seconds) => seconds.checked_mul(1000).ok_or_else(|| "too long".to_owned()),
            Span::Text(text) => units::duration_ms(text).map_err(|error| error.to_string()),
        };
        ms.map_err(|message| self.range(span.span(), key.to_owned(), message))
    }

    /// Where a key stands inside a table's text; the table itself when it is not found.
    pub(super) fn key_within(&self, table: Range<usize>, key: &str) -> Range<usize> {
        let rest = self.text.get(table.start..).unwrap_or_default();
        let found = rest.match_indices(key).find(|(at, _)| rest[at + key.len()..].trim_start().starts_with('='));
        found.map_or(table.clone(), |(at, _)| table.start + at..table.start + at + key.len())
    }

    /// The key whose value begins there, with its table, as far as lines tell.
    fn key_before(&self, at: usize) -> String {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let key = self.text[line_start..].split(['=', '\n']).next().unwrap_or_default().trim();
        let table = before.lines().rev().find_map(|line| {
            let line = line.split('#').next().unwrap_or_default().trim();
            line.strip_prefix('[')?.strip_suffix(']').filter(|name| !name.contains(['[', '=', ',']))
        });
        table.map_or_else(|| key.to_owned(), |table| format!("{}.{key}", table.trim()))
    }

    pub(super) fn of_toml(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or(0..0);
        let message = error.message();
        let problem = if let Some(rest) = message.strip_prefix("unknown field `") {
            let (name, rest) = rest.split_once('`').unwrap_or((rest, ""));
            let known = rest.split('`').skip(1).step_by(2);
            Problem::UnknownKey { key: name.to_owned(), hint: nearest(name, known) }
        } else if message.starts_with("invalid ")
            || message.starts_with("unknown variant")
            || message.starts_with("wanted ")
            || message.contains("needed")
        {
            Problem::Type { key: self.key_before(span.start), message: in_words(message) }
        } else {
            Problem::Syntax { message: message.replace('\n', ", ") }
        };
        self.at(span, problem)
    }
}

/// What serde says of a value, without the names of Rust's types.
fn in_words(message: &str) -> String {
    message
        .replace("expected u64", "expected a whole number from 0")
        .replace("expected u32", "expected a whole number from 0 to 4294967295")
        .replace("expected f64", "expected a number")
        .replace("wanted string or table", "expected a string")
}
