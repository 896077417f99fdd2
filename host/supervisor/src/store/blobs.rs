//! Payloads above the inline bound: content-addressed files `store/blobs/<aa>/<digest>`.
//!
//! A blob is durable before an event names it, pinned while a request names it, and removed only when nothing live can
//! name it (I10). What is read is checked against its name (I11).

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tm_core::{id::Digest, json::Json};

use super::disk::{self, Disk, DiskError, How, Kind, read_whole};

/// No payload is larger: outputs, inputs and the lists of fan-outs all have smaller bounds.
pub const BLOB_MAX_BYTES: u64 = 1024 * 1024 * 1024;
const FOLDER: &str = "store/blobs";

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{file} is damaged: its content does not have the digest that is its name")]
    Damaged { file: String },
}

/// The blobs of one store; clones share their pins.
#[derive(Clone)]
pub struct BlobStore<D: Disk> {
    disk: D,
    pins: Arc<Mutex<BTreeMap<Digest, u64>>>,
    parts: Arc<AtomicU64>,
}

/// Keeps a blob from being swept while a request names it.
pub struct Pin {
    digest: Digest,
    pins: Arc<Mutex<BTreeMap<Digest, u64>>>,
}

impl Pin {
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = locked(&self.pins);
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub files: u64,
    pub bytes: u64,
}

/// Counts stay right when a holder panics: every change is one statement.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn path(digest: &Digest) -> String {
    let name = digest.to_string();
    format!("{FOLDER}/{}/{name}", &name[..2])
}

impl<D: Disk> BlobStore<D> {
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(disk: D) -> Result<Self, DiskError> {
        disk::create_folders(&disk, FOLDER)?;
        Ok(Self { disk, pins: Arc::default(), parts: Arc::default() })
    }

    /// For reading only: makes no folder (I12).
    #[must_use]
    pub fn reading(disk: D) -> Self {
        Self { disk, pins: Arc::default(), parts: Arc::default() }
    }

    /// Stores bytes durably and pins them; the pin may go once the event that names them is synced.
    ///
    /// # Errors
    /// [`DiskError::Full`] among others; nothing stays then.
    pub fn put(&self, bytes: &[u8]) -> Result<Pin, DiskError> {
        let digest = Digest::of(bytes);
        // Before looking, so that no sweep comes between.
        let pin = self.pin(digest);
        let path = path(&digest);
        if self.get(&digest).is_ok() {
            // It may have been written by a process that died before the name was durable.
            self.disk.sync(&self.disk.open(&path, How::Read)?)?;
            self.disk.sync_folder(path.rsplit_once('/').map_or(FOLDER, |(folder, _)| folder))?;
            return Ok(pin);
        }
        let (folder, _) = path.rsplit_once('/').unwrap_or((FOLDER, ""));
        disk::create_folders(&self.disk, folder)?;
        let part = format!("{path}.{}.tmp", self.parts.fetch_add(1, Ordering::Relaxed));
        let written = self.disk.open(&part, How::Replace).and_then(|file| {
            self.disk.write_at(&file, 0, bytes)?;
            self.disk.sync(&file)
        });
        if let Err(error) = written.and_then(|()| self.disk.rename(&part, &path)) {
            // The first error is the one that matters; the next sweep takes what stays.
            let _ = self.disk.unlink(&part);
            return Err(error);
        }
        Ok(pin)
    }

    /// Keeps a blob from being swept.
    #[must_use]
    pub fn pin(&self, digest: Digest) -> Pin {
        *locked(&self.pins).entry(digest).or_insert(0) += 1;
        Pin { digest, pins: self.pins.clone() }
    }

    /// # Errors
    /// [`BlobError::Damaged`] names the file; [`DiskError::NotFound`] when it is missing.
    pub fn get(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        let path = path(digest);
        let bytes = read_whole(&self.disk, &path, BLOB_MAX_BYTES)?;
        if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err(BlobError::Damaged { file: self.disk.shown(&path) }) }
    }

    /// A read-only descriptor for a worker, of a blob whose content was checked just now.
    ///
    /// # Errors
    /// As [`BlobStore::get`].
    pub fn open(&self, digest: &Digest) -> Result<OwnedFd, BlobError> {
        self.get(digest)?;
        Ok(self.disk.descriptor(&path(digest))?)
    }

    /// Removes what nothing names: neither `live` nor a pin. Also what interrupted writes left, so call it with
    /// `writers` false only while nobody writes (at start).
    ///
    /// # Errors
    /// Those of the disk; the rest stays until the next sweep.
    pub fn sweep(&self, live: &dyn Fn(&Digest) -> bool, writers: bool) -> Result<Swept, DiskError> {
        let mut swept = Swept::default();
        for shard in self.disk.list(FOLDER)?.into_iter().filter(|entry| entry.kind == Kind::Folder) {
            let folder = format!("{FOLDER}/{}", shard.name);
            for entry in self.disk.list(&folder)? {
                let digest = entry.name.parse::<Digest>().ok();
                // The pins stay locked over the removal: a put of the same content waits, and then writes it anew.
                let pins = locked(&self.pins);
                let needed = digest.map_or(writers || !entry.name.ends_with(".tmp"), |digest| {
                    pins.contains_key(&digest) || live(&digest)
                });
                if !needed {
                    self.disk.unlink(&format!("{folder}/{}", entry.name))?;
                    swept.files += 1;
                    swept.bytes += entry.size_bytes;
                }
            }
        }
        Ok(swept)
    }
}

/// For decisions, on the loop, which also sweeps: nothing comes between the put and the commit.
impl<D: Disk> tm_core::flow::advance::Blobs for BlobStore<D> {
    fn read(&self, digest: &Digest) -> Option<Json> {
        let read = self.get(digest).inspect_err(|error| tracing::warn!(%error, "a payload cannot be read"));
        Json::parse(std::str::from_utf8(&read.ok()?).ok()?).ok()
    }

    fn put(&self, json: &Json) -> Option<Digest> {
        let put = Self::put(self, json.get().as_bytes());
        put.inspect_err(|error| tracing::warn!(%error, "a payload goes into the log instead"))
            .ok()
            .map(|pin| pin.digest())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::{
        super::{disk::MemDisk, faults::FaultDisk},
        *,
    };

    #[test]
    fn a_blob_is_found_by_its_digest_and_a_damaged_one_is_named_and_mended_by_the_next_put() {
        let disk = MemDisk::default();
        let blobs = BlobStore::new(disk.clone()).unwrap();
        let digest = blobs.put(b"[1,2]").unwrap().digest();
        assert_eq!(blobs.get(&digest).unwrap(), b"[1,2]");
        let file = disk.open(&path(&digest), How::Write).unwrap();
        disk.write_at(&file, 1, b"7").unwrap();
        let error = blobs.get(&digest).unwrap_err();
        assert!(error.to_string().contains(&digest.to_string()), "{error}");
        assert!(blobs.open(&digest).is_err());
        blobs.put(b"[1,2]").unwrap();
        assert_eq!(blobs.get(&digest).unwrap(), b"[1,2]");
    }

    #[test]
    fn a_sweep_keeps_what_is_live_or_pinned() {
        let blobs = BlobStore::new(MemDisk::default()).unwrap();
        let (live, pinned) = (blobs.put(b"live").unwrap().digest(), blobs.put(b"pinned").unwrap());
        let dead = blobs.put(b"dead").unwrap().digest();
        assert_eq!(blobs.sweep(&|digest| *digest == live, true).unwrap(), Swept { files: 1, bytes: 4 });
        assert!(blobs.get(&dead).is_err());
        assert!(blobs.get(&live).is_ok() && blobs.get(&pinned.digest()).is_ok());
        drop(pinned);
        assert_eq!(blobs.sweep(&|_| false, true).unwrap().files, 2);
    }

    #[test]
    fn on_a_full_disk_nothing_stays_of_a_blob() {
        let disk = FaultDisk::new(MemDisk::default());
        let blobs = BlobStore::new(disk.clone()).unwrap();
        disk.quota.store(3, SeqCst);
        assert!(blobs.put(b"too long").err().is_some_and(|error| error.is_full()));
        let shard = path(&Digest::of(b"too long"));
        assert!(disk.list(shard.rsplit_once('/').unwrap().0).unwrap().is_empty());
    }

    #[test]
    fn what_interrupted_writes_left_goes_at_the_start() {
        let disk = MemDisk::default();
        let blobs = BlobStore::new(disk.clone()).unwrap();
        let digest = blobs.put(b"x").unwrap().digest();
        disk.open(&format!("{}.9.tmp", path(&digest)), How::Replace).unwrap();
        assert_eq!(blobs.sweep(&|_| true, true).unwrap().files, 0);
        assert_eq!(blobs.sweep(&|_| true, false).unwrap().files, 1);
    }
}
