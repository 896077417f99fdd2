//! Artefacts: written below this attempt's staging folder, read from the results of the steps it needs.
//!
//! Layout of staging: `STAGING/NAME`; what is not finished stands below `STAGING/.tm-partial/` and is removed with it.
//! Names starting with `.tm-` are the host's: the supervisor's manifest stands beside the artefacts.

use std::{collections::BTreeMap, fs::File, io, os::fd::OwnedFd, sync::Arc};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags},
    io::Errno,
};
use tm_core::wire::{ArtifactEntry, ReadableStep, Start, staging_path};
use wasmtime::component::{ComponentType, Lower};

use super::{ctx::Tripped, verdict::bounded};
use crate::serve::Folders;

const NAME_MAX_BYTES: usize = 255;
/// What the report may spend on naming artefacts, so that it fits into one packet.
const LIST_MAX_BYTES: usize = 100 * 1024;
/// JSON around one name in the report.
const ENTRY_OVERHEAD_BYTES: usize = 40;
/// Entries that one `entries` call answers.
const ENTRIES_MAX: usize = 100_000;
/// Folders below folders: a name has 255 bytes, so no honest tree is deeper.
const DEPTH_MAX: usize = 128;
const PARTIAL: &str = ".tm-partial";
const RESERVED: &str = ".tm-";

#[derive(Debug, ComponentType, Lower)]
#[component(variant)]
pub enum ArtifactError {
    #[component(name = "invalid-name")]
    InvalidName(String),
    #[component(name = "not-found")]
    NotFound(String),
    #[component(name = "already-exists")]
    AlreadyExists(String),
    #[component(name = "limit-exceeded")]
    LimitExceeded,
    #[component(name = "io")]
    Io(String),
}

impl ArtifactError {
    #[must_use]
    pub fn io(error: &io::Error) -> Self {
        Self::Io(bounded(&error.to_string(), 200))
    }

    fn of(errno: Errno) -> Self {
        Self::io(&errno.into())
    }
}

/// A finish that failed, and the limit that it reached, if one.
pub struct FinishFailed {
    pub error: ArtifactError,
    pub tripped: Option<Tripped>,
}

/// One artefact being written.
pub struct Writer {
    name: String,
    partial: String,
    pub file: Arc<File>,
    pub size_bytes: u64,
    finished: bool,
}

/// One artefact being read.
pub struct Reader {
    pub file: File,
}

/// The artefacts of one attempt.
pub struct Artifacts {
    folders: Arc<Folders>,
    may_write: bool,
    path: String,
    run: String,
    readable: Vec<ReadableStep>,
    limit_mb: u32,
    used_bytes: u64,
    staging: Option<OwnedFd>,
    partials: u32,
    finished: BTreeMap<String, u64>,
    listed_bytes: usize,
}

impl Artifacts {
    #[must_use]
    pub fn new(start: &Start, folders: &Arc<Folders>) -> Self {
        Self {
            folders: Arc::clone(folders),
            may_write: start.grants.artifacts,
            path: if start.grants.artifacts { staging_path(&start.task_name(), start.attempt) } else { String::new() },
            run: if start.grants.readable.is_empty() { String::new() } else { start.task.run.to_string() },
            readable: start.grants.readable.clone(),
            limit_mb: start.limits.artifacts_mb,
            used_bytes: 0,
            staging: None,
            partials: 0,
            finished: BTreeMap::new(),
            listed_bytes: 0,
        }
    }

    /// Starts an artefact.
    ///
    /// # Errors
    /// For a name that is not one, a name that exists, or a disk that fails.
    pub fn create(&mut self, name: &str) -> Result<Writer, ArtifactError> {
        check_name(name)?;
        if !self.may_write {
            return Err(ArtifactError::Io("writing artefacts is not granted".to_owned()));
        }
        if self.finished.contains_key(name) {
            return Err(ArtifactError::AlreadyExists(name.to_owned()));
        }
        self.partials += 1;
        let partial = format!("{PARTIAL}/{}", self.partials);
        let staging = self.staging().map_err(ArtifactError::of)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = open_beneath(staging, &partial, flags).map_err(ArtifactError::of)?;
        Ok(Writer { name: name.to_owned(), partial, file: Arc::new(file.into()), size_bytes: 0, finished: false })
    }

    /// Counts bytes that are about to be written.
    ///
    /// # Errors
    /// When they do not fit any more; nothing is counted then.
    pub fn charge(&mut self, bytes: u64) -> Result<(), Tripped> {
        let after = self.used_bytes.saturating_add(bytes);
        if after > u64::from(self.limit_mb) << 20 {
            return Err(Tripped::Artifacts { limit_mb: self.limit_mb });
        }
        self.used_bytes = after;
        Ok(())
    }

    /// Puts a written artefact at its name.
    ///
    /// # Errors
    /// When it is empty, one artefact too many, its name is taken, or the disk fails.
    pub fn finish(&mut self, writer: &mut Writer) -> Result<(), FinishFailed> {
        let plain = |error| FinishFailed { error, tripped: None };
        if writer.finished {
            return Err(plain(ArtifactError::AlreadyExists(writer.name.clone())));
        }
        if writer.size_bytes == 0 {
            let error = ArtifactError::Io("an artefact of zero bytes".to_owned());
            return Err(FinishFailed { error, tripped: Some(Tripped::ArtifactEmpty) });
        }
        self.listed_bytes += writer.name.len() + ENTRY_OVERHEAD_BYTES;
        if self.listed_bytes > LIST_MAX_BYTES {
            let error = ArtifactError::LimitExceeded;
            return Err(FinishFailed { error, tripped: Some(Tripped::ArtifactCount) });
        }
        let staging = self.staging().map_err(|errno| plain(ArtifactError::of(errno)))?;
        let target = parent_of(staging, &writer.name).map_err(|errno| plain(ArtifactError::of(errno)))?;
        let last = writer.name.rsplit('/').next().unwrap_or(&writer.name);
        rustix::fs::renameat_with(staging, &writer.partial, &target, last, RenameFlags::NOREPLACE).map_err(
            |errno| {
                plain(match errno {
                    Errno::EXIST => ArtifactError::AlreadyExists(writer.name.clone()),
                    errno => ArtifactError::of(errno),
                })
            },
        )?;
        writer.finished = true;
        self.finished.insert(writer.name.clone(), writer.size_bytes);
        Ok(())
    }

    /// A writer that was dropped: without `finish` its artefact does not exist and costs nothing.
    pub fn abandon(&mut self, writer: &Writer) {
        if writer.finished {
            return;
        }
        self.used_bytes = self.used_bytes.saturating_sub(writer.size_bytes);
        if let Some(staging) = &self.staging {
            // What stays is removed with the attempt's folder.
            let _ = rustix::fs::unlinkat(staging, &writer.partial, AtFlags::empty());
        }
    }

    /// Opens an artefact of a needed step; of a fan-out, of its first item that has it.
    ///
    /// # Errors
    /// When there is none, or the step is not needed by this one.
    pub fn open(&self, step: &str, name: &str) -> Result<Reader, ArtifactError> {
        check_name(name)?;
        for folder in self.places(step)? {
            match self.open_result(&format!("{folder}/{name}"), OFlags::RDONLY | OFlags::CLOEXEC) {
                Ok(file) => return Ok(Reader { file }),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(ArtifactError::of(errno)),
            }
        }
        Err(ArtifactError::NotFound(format!("{step}/{name}")))
    }

    /// Names and sizes of a needed step's artefacts, by name.
    ///
    /// # Errors
    /// When the step is not needed by this one.
    pub fn entries(&self, step: &str) -> Result<Vec<(String, u64)>, ArtifactError> {
        let mut found = BTreeMap::new();
        for folder in self.places(step)? {
            match self.open_result(&folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC) {
                Ok(dir) => walk(dir.into(), "", 0, &mut found).map_err(ArtifactError::of)?,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(ArtifactError::of(errno)),
            }
        }
        Ok(found.into_iter().collect())
    }

    /// What was finished, and the staging folder cleared of what was not.
    #[must_use]
    pub fn conclude(&mut self) -> Vec<ArtifactEntry> {
        if let Some(staging) = self.staging.take() {
            for partial in 1..=self.partials {
                let _ = rustix::fs::unlinkat(&staging, format!("{PARTIAL}/{partial}"), AtFlags::empty());
            }
            let _ = rustix::fs::unlinkat(&staging, PARTIAL, AtFlags::REMOVEDIR);
        }
        std::mem::take(&mut self.finished)
            .into_iter()
            .map(|(name, size_bytes)| ArtifactEntry { name, size_bytes })
            .collect()
    }

    /// The staging folder of this attempt, made when it is first needed.
    fn staging(&mut self) -> Result<&OwnedFd, Errno> {
        if self.staging.is_none() {
            let base = self.folders.staging().ok_or(Errno::NOENT)?;
            make_dir(base, &self.path)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = open_beneath(base, &self.path, flags)?;
            make_dir(&dir, PARTIAL)?;
            self.staging = Some(dir);
        }
        self.staging.as_ref().ok_or(Errno::NOENT)
    }

    /// The folders below Results where a step's artefacts stand.
    fn places(&self, step: &str) -> Result<Vec<String>, ArtifactError> {
        let known = self.readable.iter().find(|readable| readable.step_id == step);
        let known = known.ok_or_else(|| ArtifactError::NotFound(bounded(step, NAME_MAX_BYTES)))?;
        Ok(match known.items {
            None => vec![format!("{}/{step}", self.run)],
            Some(items) => (0..items).map(|item| format!("{}/{step}[{item}]", self.run)).collect(),
        })
    }

    fn open_result(&self, path: &str, flags: OFlags) -> Result<File, Errno> {
        let results = self.folders.results().ok_or(Errno::NOENT)?;
        open_beneath(results, path, flags).map(File::from)
    }
}

/// No path leaves `base`, and no symbolic link is followed.
fn open_beneath(base: &impl std::os::fd::AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o600) } else { Mode::empty() };
    rustix::fs::openat2(base, path, flags, mode, resolve)
}

fn make_dir(base: &impl std::os::fd::AsFd, path: &str) -> Result<(), Errno> {
    match rustix::fs::mkdirat(base, path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The folder in which a name's last part stands, made with its parents.
fn parent_of(base: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = open_beneath(base, ".", flags)?;
    let mut parts = name.split('/').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            break;
        }
        make_dir(&dir, part)?;
        dir = open_beneath(&dir, part, flags)?;
    }
    Ok(dir)
}

/// A relative path of at most 255 bytes without `.`, `..`, empty parts, control characters or the host's prefix.
fn check_name(name: &str) -> Result<(), ArtifactError> {
    let part_is_fit = |part: &str| !part.is_empty() && part != "." && part != "..";
    let fit = name.len() <= NAME_MAX_BYTES
        && !name.starts_with(RESERVED)
        && !name.chars().any(|c| c.is_control() || c == '\\')
        && name.split('/').all(part_is_fit);
    if fit { Ok(()) } else { Err(ArtifactError::InvalidName(bounded(name, NAME_MAX_BYTES))) }
}

fn walk(dir: OwnedFd, prefix: &str, depth: usize, found: &mut BTreeMap<String, u64>) -> Result<(), Errno> {
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name == "." || name == ".." || (depth == 0 && name.starts_with(RESERVED)) || found.len() >= ENTRIES_MAX {
            continue;
        }
        let path = format!("{prefix}{name}");
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                found.entry(path).or_insert(u64::try_from(stat.st_size).unwrap_or(0));
            }
            FileType::Directory if depth < DEPTH_MAX => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                walk(open_beneath(&dir, name, flags)?, &format!("{path}/"), depth + 1, found)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_or_hide_are_refused() {
        for name in ["", "/a", "a//b", "../a", "a/..", "a/./b", "a\nb", ".tm-manifest", &"x".repeat(256)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["a", "a/b/c.html", ".nojekyll", "ä"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }
}
