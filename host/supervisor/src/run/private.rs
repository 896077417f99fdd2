//! A folder in memory for queues that need not survive: `tm run` and `--queue memory`.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::RunError;
use crate::{daemon::pid_file::start_time, store::disk::Roots};

const PREFIX: &str = "tm-memory-";

/// A private folder on the machine's memory file system (else the temporary folder), removed when dropped.
#[derive(Debug)]
pub(super) struct Private {
    path: PathBuf,
}

impl Private {
    /// # Errors
    /// When no folder can be made.
    pub(super) fn make() -> Result<Self, RunError> {
        let mut failed = None;
        for base in [PathBuf::from("/dev/shm"), std::env::temp_dir()] {
            sweep(&base);
            let pid = std::process::id();
            let path = base.join(format!("{PREFIX}{pid}-{}", start_time(pid).unwrap_or(0)));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(source) => failed = Some(RunError::Folder { path, source }),
            }
        }
        Err(failed.unwrap_or(RunError::Lonely))
    }

    pub(super) fn roots(&self) -> Roots {
        Roots::below(&self.path)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "a temporary folder stays");
        }
    }
}

/// Removes folders of processes that were killed. Failures leave them for the next one.
fn sweep(base: &Path) {
    let left = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        let (pid, start) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let alive = start_time(pid.parse().ok()?) == Some(start.parse().ok()?);
        (!alive).then(|| entry.path())
    };
    for path in std::fs::read_dir(base).into_iter().flatten().filter_map(left) {
        let _still_there = std::fs::remove_dir_all(path);
    }
}
