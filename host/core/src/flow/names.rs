//! Names as messages show them: bounded, and with the nearest known one proposed.

use alloc::{
    format,
    string::{String, ToString},
    vec,
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

/// Levenshtein's distance, over characters; two neighbours that changed places are one mistake.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut before: Vec<usize> = Vec::new();
    for i in 0..a.len() {
        let mut next = vec![i + 1];
        for j in 0..b.len() {
            let mut least = (row[j] + usize::from(a[i] != b[j])).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = core::mem::replace(&mut row, next);
    }
    row[b.len()]
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
