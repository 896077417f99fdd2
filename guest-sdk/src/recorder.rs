//! The capabilities in native unit tests: everything goes to a recorder of the current thread.
//!
//! A test of the standard harness has a thread of its own, so tests do not see each other's records.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::artifacts::{ArtifactError, CHUNK_BYTES, Entry};
use crate::log::Level;

#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) lines: Vec<(Level, String)>,
    pub(crate) progress: Vec<(u8, Option<String>)>,
    pub(crate) written: BTreeMap<String, Vec<u8>>,
    /// By step, then by name: what the steps that this one needs left behind.
    pub(crate) provided: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pub(crate) cancel_requested: bool,
}

thread_local! {
    static RECORDER: RefCell<Recorder> = RefCell::default();
}

pub(crate) fn with<T>(f: impl FnOnce(&mut Recorder) -> T) -> T {
    RECORDER.with_borrow_mut(f)
}

pub(crate) fn emit(level: Level, message: &str) {
    with(|r| r.lines.push((level, message.to_owned())));
}

pub(crate) fn report(percent: u8, message: Option<&str>) {
    with(|r| r.progress.push((percent, message.map(str::to_owned))));
}

pub(crate) fn requested() -> bool {
    with(|r| r.cancel_requested)
}

pub(crate) fn create(name: &str) -> Result<Writer, ArtifactError> {
    check_name(name)?;
    if with(|r| r.written.contains_key(name)) {
        return Err(ArtifactError::AlreadyExists(name.to_owned()));
    }
    Ok(Writer { name: name.to_owned(), bytes: Vec::new() })
}

pub(crate) fn open(step: &str, name: &str) -> Result<Reader, ArtifactError> {
    check_name(name)?;
    with(|r| r.provided.get(step).and_then(|of_step| of_step.get(name)).cloned())
        .map(|bytes| Reader { bytes, at: 0 })
        .ok_or_else(|| ArtifactError::NotFound(name.to_owned()))
}

pub(crate) fn entries(step: &str) -> Result<Vec<Entry>, ArtifactError> {
    with(|r| {
        let of_step = r.provided.get(step).ok_or_else(|| ArtifactError::NotFound(step.to_owned()))?;
        Ok(of_step.iter().map(|(name, b)| Entry { name: name.clone(), size_bytes: b.len() as u64 }).collect())
    })
}

pub(crate) struct Writer {
    name: String,
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<(), ArtifactError> {
        with(|r| r.written.insert(self.name, self.bytes));
        Ok(())
    }
}

pub(crate) struct Reader {
    bytes: Vec<u8>,
    at: usize,
}

impl Reader {
    pub(crate) fn read(&mut self, max_bytes: u32) -> Result<Vec<u8>, ArtifactError> {
        let rest = &self.bytes[self.at..];
        let piece = &rest[..rest.len().min(max_bytes as usize).min(CHUNK_BYTES)];
        self.at += piece.len();
        Ok(piece.to_vec())
    }
}

/// The host's rule for names, so that a test refuses what the host would.
fn check_name(name: &str) -> Result<(), ArtifactError> {
    let part_ok = |part: &str| !part.is_empty() && part != ".." && part != ".";
    if name.len() <= 255 && !name.chars().any(char::is_control) && name.split('/').all(part_ok) {
        Ok(())
    } else {
        Err(ArtifactError::InvalidName(name.to_owned()))
    }
}
