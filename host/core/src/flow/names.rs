//! Names as messages show them: bounded, and with the nearest known one proposed.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

/// A hint with the nearest of the known names, within a third of its length.
#[must_use]
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let bound = (name.chars().count() / 3).max(1);
    known
        .filter(|other| other.len().abs_diff(name.len()) <= bound)
        .map(|other| (distance(name, other), other))
        .filter(|(distance, _)| *distance <= bound)
        .min()
        .map(|(_, other)| format!("did you mean '{other}'?"))
}

/// Levenshtein's distance, over characters.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = core::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}

/// A name as a message shows it: bounded, without control characters.
#[must_use]
pub fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
    if shown.len() < text.len() {
        shown = shown.trim_end().to_string() + "…";
    }
    shown
}
