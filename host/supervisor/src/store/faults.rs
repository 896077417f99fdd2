//! A disk in memory that fails on demand, for the tests of this room.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use super::disk::{Disk, DiskError, Entry, How, MemDisk};

#[derive(Clone)]
pub(crate) struct FaultDisk {
    pub(crate) inner: MemDisk,
    /// Bytes by which files may still grow.
    pub(crate) quota: Arc<AtomicU64>,
    pub(crate) fail_sync: Arc<AtomicBool>,
    pub(crate) syncs: Arc<AtomicU64>,
    /// Calls that change something.
    pub(crate) changes: Arc<AtomicU64>,
}

impl FaultDisk {
    pub(crate) fn new(inner: MemDisk) -> Self {
        Self {
            inner,
            quota: Arc::new(AtomicU64::new(u64::MAX)),
            fail_sync: Arc::default(),
            syncs: Arc::default(),
            changes: Arc::default(),
        }
    }

    fn error(errno: rustix::io::Errno) -> DiskError {
        DiskError::of("a file", errno.into())
    }

    fn changed(&self) {
        self.changes.fetch_add(1, SeqCst);
    }
}

impl Disk for FaultDisk {
    type File = <MemDisk as Disk>::File;

    fn open(&self, path: &str, how: How) -> Result<Self::File, DiskError> {
        if matches!(how, How::CreateNew | How::Replace) {
            self.changed();
        }
        self.inner.open(path, how)
    }
    fn read_at(&self, file: &Self::File, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        self.inner.read_at(file, offset, into)
    }
    fn write_at(&self, file: &Self::File, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.changed();
        let grows = (offset + bytes.len() as u64).saturating_sub(self.inner.size(file)?);
        let quota = self.quota.load(SeqCst);
        if grows > quota {
            // As a real disk does: what fits is written.
            let fits = bytes.len() - usize::try_from(grows - quota).unwrap_or(0);
            self.inner.write_at(file, offset, &bytes[..fits])?;
            self.quota.store(0, SeqCst);
            return Err(Self::error(rustix::io::Errno::NOSPC));
        }
        self.quota.store(quota - grows, SeqCst);
        self.inner.write_at(file, offset, bytes)
    }
    fn sync(&self, file: &Self::File) -> Result<(), DiskError> {
        self.syncs.fetch_add(1, SeqCst);
        if self.fail_sync.load(SeqCst) {
            return Err(Self::error(rustix::io::Errno::IO));
        }
        self.inner.sync(file)
    }
    fn size(&self, file: &Self::File) -> Result<u64, DiskError> {
        self.inner.size(file)
    }
    fn truncate(&self, file: &Self::File, bytes: u64) -> Result<(), DiskError> {
        self.changed();
        let freed = self.inner.size(file)?.saturating_sub(bytes);
        let quota = self.quota.load(SeqCst);
        self.quota.store(quota.saturating_add(freed), SeqCst);
        self.inner.truncate(file, bytes)
    }
    fn list(&self, folder: &str) -> Result<Vec<Entry>, DiskError> {
        self.inner.list(folder)
    }
    fn create_folder(&self, folder: &str) -> Result<(), DiskError> {
        self.changed();
        self.inner.create_folder(folder)
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.changed();
        self.inner.rename(from, to)
    }
    fn unlink(&self, path: &str) -> Result<(), DiskError> {
        self.changed();
        let freed = self.inner.size(&self.inner.open(path, How::Read)?)?;
        self.inner.unlink(path)?;
        let quota = self.quota.load(SeqCst);
        self.quota.store(quota.saturating_add(freed), SeqCst);
        Ok(())
    }
    fn remove_folder(&self, folder: &str) -> Result<(), DiskError> {
        self.changed();
        self.inner.remove_folder(folder)
    }
    fn sync_folder(&self, folder: &str) -> Result<(), DiskError> {
        self.inner.sync_folder(folder)
    }
    fn descriptor(&self, path: &str) -> Result<OwnedFd, DiskError> {
        self.inner.descriptor(path)
    }
}
