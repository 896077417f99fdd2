//! What an expression or a template names, found in its text alone.
//!
//! The core does not know the expression language, only the marks that the contract fixes: `{{ … }}`, quotes, brackets,
//! `steps.NAME` and `steps["NAME"]`.

use alloc::{string::String, vec::Vec};

/// The expression of a string that is one `{{ expression }}` and nothing else: such a string keeps the JSON type.
#[must_use]
pub fn sole_expression(text: &str) -> Option<&str> {
    let text = text.trim();
    let inner = text.strip_prefix("{{")?;
    let end = expression_end(inner)?;
    (end + 2 == inner.len()).then(|| inner[..end].trim())
}

/// Whether a string has anything to render.
#[must_use]
pub fn is_template(text: &str) -> bool {
    text.contains("{{") || text.contains("{%")
}

/// A template's literal texts and expressions, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    Literal(&'a str),
    Expression(&'a str),
}

/// Splits a template; `None` when a `{{` has no end.
#[must_use]
pub fn parts(template: &str) -> Option<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some(start) = rest.find("{{") {
        if start > 0 {
            parts.push(Part::Literal(&rest[..start]));
        }
        let inner = &rest[start + 2..];
        let end = expression_end(inner)?;
        parts.push(Part::Expression(inner[..end].trim()));
        rest = &inner[end + 2..];
    }
    if !rest.is_empty() {
        parts.push(Part::Literal(rest));
    }
    Some(parts)
}

/// Where the `}}` of an expression stands: outside quotes and brackets.
fn expression_end(inner: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in Marks::new(inner) {
        match byte {
            b'}' if depth == 0 => return inner[at..].starts_with("}}").then_some(at),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// The steps that a text names as `steps.NAME` or `steps["NAME"]`, in order, repeats included.
#[must_use]
pub fn steps_named_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut before = 0u8;
    for (at, byte) in Marks::new(text) {
        if byte == b's' && !is_word(before) && before != b'.' {
            let rest = &text[at..];
            if let Some(after) = rest.strip_prefix("steps")
                && let Some(name) = name_after(after.trim_start())
            {
                names.push(name.into());
            }
        }
        before = byte;
    }
    names
}

/// The whole of a name with dashes that was written after `steps.`, when `name` is its start.
#[must_use]
pub fn dashed_name(text: &str, name: &str) -> Option<String> {
    let start = text.find(&alloc::format!("steps.{name}-"))? + "steps.".len();
    let rest = &text[start..];
    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).unwrap_or(rest.len());
    Some(rest[..end].into())
}

fn name_after(rest: &str) -> Option<&str> {
    if let Some(dotted) = rest.strip_prefix('.') {
        let dotted = dotted.trim_start();
        let end = dotted.bytes().position(|byte| !is_word(byte)).unwrap_or(dotted.len());
        return (end > 0).then(|| &dotted[..end]);
    }
    let quoted = rest.strip_prefix('[')?.trim_start();
    let quote = quoted.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let name = &quoted[1..];
    let end = name.find(quote)?;
    name[end + 1..].trim_start().starts_with(']').then(|| &name[..end])
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The bytes of an expression that stand outside its string literals.
pub struct Marks<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Marks<'a> {
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        Self { bytes: text.as_bytes(), at: 0 }
    }
}

impl Iterator for Marks<'_> {
    type Item = (usize, u8);

    fn next(&mut self) -> Option<(usize, u8)> {
        let at = self.at;
        let byte = *self.bytes.get(at)?;
        self.at += 1;
        if matches!(byte, b'"' | b'\'') {
            while let Some(&inside) = self.bytes.get(self.at) {
                self.at += if inside == b'\\' { 2 } else { 1 };
                if inside == byte {
                    break;
                }
            }
        }
        Some((at, byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_expression_alone_is_told_from_text_around_it() {
        assert_eq!(sole_expression(" {{ input.a }} "), Some("input.a"));
        assert_eq!(sole_expression(r#"{{ "}}" ~ {"a": {"b": 1}} }}"#), Some(r#""}}" ~ {"a": {"b": 1}}"#));
        for other in ["{{ a }} {{ b }}", "x {{ a }}", "{{ a }}!", "{{ a", "a", "{{ 'x }}"] {
            assert_eq!(sole_expression(other), None, "{other}");
        }
    }

    #[test]
    fn a_template_splits_into_its_parts() {
        assert_eq!(
            parts("a {{ b }}{{ c }} d"),
            Some(alloc::vec![Part::Literal("a "), Part::Expression("b"), Part::Expression("c"), Part::Literal(" d")])
        );
        assert_eq!(parts("a {{ b"), None);
    }

    #[test]
    fn steps_are_named_by_dot_and_by_bracket_and_not_inside_strings() {
        let text = r#"steps.a.output ~ steps["b-c"].output ~ 'steps.no' ~ input.steps.no ~ mysteps.no ~ steps . d"#;
        assert_eq!(steps_named_in(text), ["a", "b-c", "d"]);
        assert_eq!(dashed_name("1 + steps.docs-list.output", "docs"), Some("docs-list".into()));
    }
}
