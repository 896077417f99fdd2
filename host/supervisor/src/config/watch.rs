//! The ceiling as the configuration file says it now: a revocation reaches runs in flight at their next lease.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Ceilings, Settings};

/// What tells one content of a file from another: inode, size, modification and change time.
type Stamp = Option<(u64, u64, i64, i64, i64, i64)>;

/// Re-reads the file when it changed; a `stat` when it did not.
#[derive(Debug)]
pub struct WatchedCeilings {
    path: PathBuf,
    stamp: Stamp,
    ceilings: Ceilings,
}

impl WatchedCeilings {
    /// Starts from settings that were just loaded from `path`.
    #[must_use]
    pub fn new(path: &Path, settings: &Settings) -> Self {
        Self { path: path.to_owned(), stamp: stamp(path), ceilings: settings.ceilings.clone() }
    }

    /// The ceilings in force. A file that became invalid changes nothing and is logged once.
    pub fn current(&mut self) -> &Ceilings {
        let now = stamp(&self.path);
        if now != self.stamp {
            self.stamp = now;
            match Settings::load(&self.path) {
                Ok(settings) => self.ceilings = settings.ceilings,
                Err(error) => {
                    tracing::warn!(%error, "the configuration changed and is invalid; the ceilings stay as they were");
                }
            }
        }
        &self.ceilings
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_an_invalid_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace_config.toml");
        let mut watched = WatchedCeilings::new(&path, &Settings::load(&path).unwrap());
        assert_eq!(*watched.current(), Ceilings::BuiltIn);
        std::fs::write(&path, "[tenants.a]\n").unwrap();
        let Ceilings::Tenants(tenants) = watched.current() else { panic!("the file has tenants now") };
        assert!(tenants.contains_key("a"));
        std::fs::write(&path, "[tenants.b]\nweight = \"heavy\"\n").unwrap();
        let Ceilings::Tenants(tenants) = watched.current() else { panic!("an invalid file is not believed") };
        assert!(tenants.contains_key("a"));
    }
}
