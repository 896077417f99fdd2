//! Large payloads on the store's disk, as the core asks for them.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tm_core::{
    flow::advance::{Blobs, payload_of},
    id::Digest,
    json::{Json, Payload},
};

use crate::store::{
    blobs::{BlobError, BlobStore, Pin},
    disk::{Disk, DiskError},
};

/// The store's blobs behind the core's seam. Clones are the same store.
///
/// What is put stays pinned until [`StoredBlobs::unpin`]: an event that names it may not be synced yet (I10).
#[derive(Clone)]
pub(super) struct StoredBlobs<D: Disk> {
    store: BlobStore<D>,
    pins: Arc<Mutex<Vec<Pin>>>,
    puts: Arc<AtomicU64>,
}

impl<D: Disk> StoredBlobs<D> {
    pub(super) fn new(store: BlobStore<D>) -> Self {
        Self { store, pins: Arc::default(), puts: Arc::default() }
    }

    pub(super) const fn store(&self) -> &BlobStore<D> {
        &self.store
    }

    pub(super) fn open(&self, digest: &Digest) -> Result<OwnedFd, BlobError> {
        self.store.open(digest)
    }

    pub(super) fn put_bytes(&self, bytes: &[u8]) -> Result<Digest, DiskError> {
        let pin = self.store.put(bytes)?;
        let digest = pin.digest();
        self.pins().push(pin);
        self.puts.fetch_add(1, Ordering::Relaxed);
        Ok(digest)
    }

    /// How often something was put since the start.
    pub(super) fn puts(&self) -> u64 {
        self.puts.load(Ordering::Relaxed)
    }

    /// A request's input as a payload.
    pub(super) fn payload(&self, json: Json) -> Payload {
        payload_of(json, self)
    }

    /// Nothing waits to name what was put so far.
    pub(super) fn unpin(&self) {
        self.pins().clear();
    }

    fn pins(&self) -> MutexGuard<'_, Vec<Pin>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Disk> Blobs for StoredBlobs<D> {
    fn read(&self, digest: &Digest) -> Option<Json> {
        match self.store.get(digest) {
            Ok(bytes) => Json::parse(std::str::from_utf8(&bytes).ok()?).ok(),
            Err(error) => {
                tracing::warn!(%digest, %error, "a blob cannot be read");
                None
            }
        }
    }

    fn put(&self, json: &Json) -> Option<Digest> {
        match self.put_bytes(json.get().as_bytes()) {
            Ok(digest) => Some(digest),
            Err(error) => {
                tracing::warn!(%error, "a large payload cannot be stored as a blob");
                None
            }
        }
    }
}
