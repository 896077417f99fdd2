//! Compiled components: `store/native/<tenant>/<compatibility>/<component>-<artefact>`, both digests in the name.
//!
//! Loading one is trusting it (it is machine code), so only the supervisor writes here, tenants are apart, and what is
//! loaded is checked against its name. Losing one only costs a compilation.

use std::os::fd::OwnedFd;

use tm_core::{
    id::{Digest, is_name},
    limits::NATIVE_MAX_BYTES,
};

use super::disk::{self, Disk, DiskError, Entry, Kind, read_whole};

const FOLDER: &str = "store/native";

#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("'{name}' cannot be a folder's name")]
    BadName { name: String },
    #[error("a native artefact of {bytes} bytes, {NATIVE_MAX_BYTES} are allowed")]
    TooLarge { bytes: u64 },
}

/// A cached artefact that was not read yet.
#[derive(Debug)]
pub struct NativeFile {
    pub fd: OwnedFd,
    pub size_bytes: u64,
    /// What its bytes must have: check before loading.
    pub digest: Digest,
}

#[derive(Clone)]
pub struct Native<D: Disk> {
    disk: D,
}

impl<D: Disk> Native<D> {
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(disk: D) -> Result<Self, DiskError> {
        disk::create_folders(&disk, FOLDER)?;
        Ok(Self { disk })
    }

    /// Keeps an artefact in place of an older one of the same component.
    ///
    /// # Errors
    /// [`NativeError::TooLarge`], [`DiskError::Full`] and others; nothing is kept then.
    pub fn put(&self, tenant: &str, compatibility: &str, component: &Digest, bytes: &[u8]) -> Result<(), NativeError> {
        if bytes.len() as u64 > NATIVE_MAX_BYTES {
            return Err(NativeError::TooLarge { bytes: bytes.len() as u64 });
        }
        let folder = folder(tenant, compatibility)?;
        disk::create_folders(&self.disk, &folder)?;
        let name = format!("{component}-{}", Digest::of(bytes));
        let older = self.find(&folder, component)?.filter(|(entry, _)| entry.name != name);
        disk::replace(&self.disk, &format!("{folder}/{name}"), bytes)?;
        if let Some((older, _)) = older {
            self.disk.unlink(&format!("{folder}/{}", older.name))?;
        }
        Ok(())
    }

    /// The artefact's descriptor, its content unchecked.
    ///
    /// # Errors
    /// Those of the disk; none when it is not cached.
    pub fn open(
        &self,
        tenant: &str,
        compatibility: &str,
        component: &Digest,
    ) -> Result<Option<NativeFile>, NativeError> {
        let folder = folder(tenant, compatibility)?;
        let Some((entry, digest)) = self.find(&folder, component)? else { return Ok(None) };
        let fd = self.disk.descriptor(&format!("{folder}/{}", entry.name))?;
        Ok(Some(NativeFile { fd, size_bytes: entry.size_bytes, digest }))
    }

    /// The artefact's bytes, checked. A damaged one is removed with a warning, as if it had never been cached.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn load(&self, tenant: &str, compatibility: &str, component: &Digest) -> Result<Option<Vec<u8>>, NativeError> {
        let folder = folder(tenant, compatibility)?;
        let Some((entry, digest)) = self.find(&folder, component)? else { return Ok(None) };
        let path = format!("{folder}/{}", entry.name);
        let bytes = read_whole(&self.disk, &path, NATIVE_MAX_BYTES)?;
        if Digest::of(&bytes) == digest {
            return Ok(Some(bytes));
        }
        tracing::warn!(file = %self.disk.shown(&path), "a damaged native artefact is removed and compiled again");
        self.disk.unlink(&path)?;
        Ok(None)
    }

    fn find(&self, folder: &str, component: &Digest) -> Result<Option<(Entry, Digest)>, DiskError> {
        let entries = match self.disk.list(folder) {
            Err(error) if error.is_not_found() => return Ok(None),
            listed => listed?,
        };
        let prefix = format!("{component}-");
        Ok(entries.into_iter().filter(|entry| entry.kind == Kind::File).find_map(|entry| {
            let digest = entry.name.strip_prefix(&prefix)?.parse().ok()?;
            Some((entry, digest))
        }))
    }
}

fn folder(tenant: &str, compatibility: &str) -> Result<String, NativeError> {
    for name in [tenant, compatibility] {
        if !is_name(name) {
            return Err(NativeError::BadName { name: name.to_owned() });
        }
    }
    Ok(format!("{FOLDER}/{tenant}/{compatibility}"))
}

#[cfg(test)]
mod tests {
    use super::{
        super::disk::{How, MemDisk},
        *,
    };

    #[test]
    fn an_artefact_is_cached_per_tenant_and_compatibility_and_a_damaged_one_is_forgotten() {
        let disk = MemDisk::default();
        let native = Native::new(disk.clone()).unwrap();
        let component = Digest::of(b"component");
        native.put("a", "00ff", &component, b"code").unwrap();
        assert_eq!(native.load("a", "00ff", &component).unwrap().as_deref(), Some(&b"code"[..]));
        assert_eq!(native.load("b", "00ff", &component).unwrap(), None);
        assert_eq!(native.load("a", "00fe", &component).unwrap(), None);
        native.put("a", "00ff", &component, b"newer").unwrap();
        let file = native.open("a", "00ff", &component).unwrap().unwrap();
        assert_eq!((file.size_bytes, file.digest), (5, Digest::of(b"newer")));
        let path = format!("store/native/a/00ff/{component}-{}", Digest::of(b"newer"));
        disk.write_at(&disk.open(&path, How::Write).unwrap(), 0, b"N").unwrap();
        assert_eq!(native.load("a", "00ff", &component).unwrap(), None);
        assert!(native.open("a", "00ff", &component).unwrap().is_none());
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused() {
        let native = Native::new(MemDisk::default()).unwrap();
        assert!(matches!(native.load("..", "00", &Digest::of(b"")), Err(NativeError::BadName { .. })));
    }
}
