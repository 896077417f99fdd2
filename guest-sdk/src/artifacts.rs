//! Files that outlive the step: written by it, readable by the steps that need it. Needs the grant `artifacts`.
//!
//! An artefact exists once its writer is finished; a failed attempt leaves none. Names may contain `/`, are 1 to 255
//! bytes, relative, and have no `..`, empty part or control character.

use std::{fmt, io};

use crate::backend;

/// The most that one call carries to or from the host; larger buffers are split here.
pub const CHUNK_BYTES: usize = 1024 * 1024;

/// Why an artefact could not be written or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArtifactError {
    /// The name breaks the rules above.
    InvalidName(String),
    /// No such artefact, or no such step among the needs.
    NotFound(String),
    /// This attempt already wrote one of that name.
    AlreadyExists(String),
    /// `artifacts_mb` is used up; the attempt ends as ARTIFACTS_EXCEEDED.
    LimitExceeded,
    /// The host could not read or write.
    Io(String),
}

impl fmt::Display for ArtifactError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArtifactError::InvalidName(name) => write!(f, "artefact name '{name}' is not allowed"),
            ArtifactError::NotFound(name) => write!(f, "artefact '{name}' does not exist"),
            ArtifactError::AlreadyExists(name) => write!(f, "artefact '{name}' exists already"),
            ArtifactError::LimitExceeded => f.write_str("the limit artifacts_mb is used up"),
            ArtifactError::Io(why) => write!(f, "artefact I/O failed: {why}"),
        }
    }
}

impl std::error::Error for ArtifactError {}

/// The name and size of an artefact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub size_bytes: u64,
}

/// Writes a whole artefact.
///
/// # Errors
/// As [`create`] and [`Writer::finish`].
pub fn write(name: &str, bytes: impl AsRef<[u8]>) -> Result<(), ArtifactError> {
    let mut writer = create(name)?;
    writer.write(bytes.as_ref())?;
    writer.finish()
}

/// Starts an artefact that is written piece by piece.
///
/// # Errors
/// `InvalidName`, `AlreadyExists`, `Io`.
pub fn create(name: &str) -> Result<Writer, ArtifactError> {
    backend::create(name).map(Writer)
}

/// Reads a whole artefact of a step that this step needs; of a fan-out, of any of its items.
///
/// # Errors
/// As [`open`].
pub fn read(step: &str, name: &str) -> Result<Vec<u8>, ArtifactError> {
    let mut reader = open(step, name)?;
    let mut all = Vec::new();
    loop {
        let piece = reader.read(CHUNK_BYTES as u32)?;
        if piece.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&piece);
    }
}

/// Opens an artefact of a step that this step needs, to read it piece by piece.
///
/// # Errors
/// `InvalidName`, `NotFound`, `Io`.
pub fn open(step: &str, name: &str) -> Result<Reader, ArtifactError> {
    backend::open(step, name).map(Reader)
}

/// The artefacts of a step that this step needs, by name.
///
/// # Errors
/// `NotFound` when the step is not among the needs, `Io`.
pub fn entries(step: &str) -> Result<Vec<Entry>, ArtifactError> {
    backend::entries(step)
}

/// An artefact being written. Dropped without [`Writer::finish`], it does not exist.
pub struct Writer(backend::Writer);

impl Writer {
    /// Appends bytes.
    ///
    /// # Errors
    /// `LimitExceeded`, `Io`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        bytes.chunks(CHUNK_BYTES).try_for_each(|piece| self.0.write(piece))
    }

    /// Completes the artefact.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(self) -> Result<(), ArtifactError> {
        self.0.finish()
    }
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Writer::write(self, bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An artefact being read.
pub struct Reader(backend::Reader);

impl Reader {
    /// The next piece of at most `max_bytes` (and at most 1 MiB); empty at the end.
    ///
    /// # Errors
    /// `Io`.
    pub fn read(&mut self, max_bytes: u32) -> Result<Vec<u8>, ArtifactError> {
        self.0.read(max_bytes)
    }
}

impl io::Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = Reader::read(self, buffer.len().min(CHUNK_BYTES) as u32).map_err(io::Error::other)?;
        buffer[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }
}
