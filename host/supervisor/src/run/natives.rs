//! Native artefacts: found in the store's cache or compiled beside the loop, kept as sealed memory files for workers.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc::Sender},
};

use tm_core::{
    code,
    limits::{COMPONENT_MAX_BYTES, NATIVE_MAX_BYTES},
};

use super::{Happening, RunError, catalogue::ComponentKey, jobs::Lane, payloads::StoredBlobs};
use crate::{
    store::{blobs::BlobError, disk::Disk, native::Native},
    workers::{
        compile::{CompileError, Compiler},
        sealed::{self, SealedError},
    },
};

/// The smallest component there is: compiling it tells what artefacts this build of the engine takes.
const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Why there is no native artefact.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failed {
    /// The component is at fault, for good: its tasks are dead-lettered with a code of the table.
    #[error("{message}")]
    Component { code: &'static str, message: String },
    /// The host is: it has no memory file, no process or no disk for it now. It is tried again, and the tasks wait.
    #[error("{why}")]
    Host { why: String },
    /// The compiling process failed, and it is not clear whose fault that is: it is tried again a few times.
    #[error("{why}")]
    Process { why: String },
}

impl Failed {
    pub(crate) fn host(why: impl ToString) -> Self {
        Self::Host { why: why.to_string() }
    }
}

impl From<CompileError> for Failed {
    fn from(error: CompileError) -> Self {
        match error {
            CompileError::Refused { code, message } => Self::Component { code, message },
            CompileError::Process { .. } => Self::Process { why: error.to_string() },
            other => Self::host(other),
        }
    }
}

impl From<BlobError> for Failed {
    fn from(error: BlobError) -> Self {
        let lost = match &error {
            BlobError::Damaged { .. } => true,
            BlobError::Disk(error) => error.is_not_found(),
        };
        let message = format!("the component's bytes are lost: {error}");
        if lost { Self::Component { code: code::COMPILE_FAILED, message } } else { Self::host(error) }
    }
}

pub(super) struct Natives<D: Disk> {
    cache: Native<D>,
    blobs: StoredBlobs<D>,
    compiler: Arc<Compiler>,
    /// Names the artefacts that this build takes; asked for once.
    compatibility: Option<String>,
    here: BTreeMap<ComponentKey, OwnedFd>,
    lane: Lane,
    seal: Seal,
}

/// Makes the memory files that workers are given.
type Seal = fn(&[u8]) -> Result<OwnedFd, SealedError>;

impl<D: Disk> Natives<D> {
    pub(super) fn new(disk: D, blobs: StoredBlobs<D>, compiler: Arc<Compiler>) -> Result<Self, RunError> {
        let lane = Lane::start("tm-compile").map_err(RunError::Thread)?;
        let (cache, here) = (Native::new(disk)?, BTreeMap::new());
        Ok(Self { cache, blobs, compiler, compatibility: None, here, lane, seal: sealed::make })
    }

    /// Names the artefacts that this build takes, when anything can be compiled here at all: in a process with all walls.
    pub(super) fn compatibility(&mut self) -> Result<String, Failed> {
        if let Some(known) = &self.compatibility {
            return Ok(known.clone());
        }
        let sealed = sealed::make(EMPTY_COMPONENT).map_err(Failed::host)?;
        let native = self.compiler.compile(sealed.as_fd()).map_err(Failed::host)?;
        Ok(self.compatibility.insert(native.compatibility).clone())
    }

    /// Finds the artefact in the cache.
    ///
    /// # Errors
    /// When nothing at all can be compiled here, or there is no memory file for it.
    pub(super) fn find(&mut self, key: &ComponentKey) -> Result<bool, Failed> {
        let compatibility = self.compatibility()?;
        match self.cache.load(&key.0, &compatibility, &key.1) {
            Ok(Some(bytes)) => {
                let fd = (self.seal)(&bytes).map_err(Failed::host)?;
                self.here.insert(key.clone(), fd);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                tracing::warn!(component = %key.1, %error, "the cache of native artefacts cannot be read");
                Ok(false)
            }
        }
    }

    /// Compiles beside the loop; [`Happening::Compiled`] brings the outcome.
    pub(super) fn compile(&self, key: ComponentKey, happenings: Sender<Happening>) {
        let (blobs, compiler, cache) = (self.blobs.clone(), Arc::clone(&self.compiler), self.cache.clone());
        let seal = self.seal;
        self.lane.give(move || {
            let outcome = compile(&key, &blobs, &compiler, &cache, seal);
            // Nobody listens any more when the supervisor stops.
            let _ = happenings.send(Happening::Compiled { key, outcome });
        });
    }

    pub(super) fn keep(&mut self, key: &ComponentKey, native: OwnedFd) {
        self.here.insert(key.clone(), native);
    }

    /// A descriptor for a worker.
    pub(super) fn open(&self, key: &ComponentKey) -> Result<OwnedFd, String> {
        let fd = self.here.get(key).ok_or("the native artefact is not here")?;
        fd.try_clone().map_err(|error| error.to_string())
    }
}

fn compile<D: Disk>(
    key: &ComponentKey,
    blobs: &StoredBlobs<D>,
    compiler: &Compiler,
    cache: &Native<D>,
    seal: Seal,
) -> Result<OwnedFd, Failed> {
    let bytes = blobs.store().get(&key.1)?;
    if bytes.len() as u64 > COMPONENT_MAX_BYTES {
        let message = format!("the component has {} bytes", bytes.len());
        return Err(Failed::Component { code: code::COMPILE_FAILED, message });
    }
    let component = seal(&bytes).map_err(Failed::host)?;
    let native = compiler.compile(component.as_fd())?;
    let bytes = sealed::read(&native.artefact, NATIVE_MAX_BYTES);
    let bytes = bytes.map_err(|error| Failed::Process { why: error.to_string() })?;
    if let Err(error) = cache.put(&key.0, &native.compatibility, &key.1, &bytes) {
        tracing::warn!(component = %key.1, %error, "a native artefact cannot be cached: the next start compiles again");
    }
    Ok(native.artefact)
}

#[cfg(test)]
mod tests {
    use tm_core::id::Digest;

    use super::*;
    use crate::{
        store::{blobs::BlobStore, disk::MemDisk},
        workers::{
            child::{Program, Spawner},
            compile::CompileSettings,
        },
    };

    fn no_memory(bytes: &[u8]) -> Result<OwnedFd, SealedError> {
        Err(SealedError::Make { size_bytes: bytes.len() as u64, source: rustix::io::Errno::MFILE })
    }

    /// Natives without a program that could compile, and a component whose bytes are stored.
    fn natives() -> (Natives<MemDisk>, ComponentKey) {
        let disk = MemDisk::default();
        let blobs = StoredBlobs::new(BlobStore::new(disk.clone()).unwrap());
        let component = blobs.put_bytes(b"component").unwrap();
        let nowhere = Program { path: "/nowhere".into(), args: vec![], env: vec![], user: None };
        let spawner = Arc::new(Spawner::start(nowhere).unwrap());
        let compiler = Arc::new(Compiler::new(spawner, CompileSettings::default()).unwrap());
        let mut natives = Natives::new(disk, blobs, compiler).unwrap();
        natives.compatibility = Some("00ff".into());
        (natives, ("default".into(), component))
    }

    fn compiled(natives: &Natives<MemDisk>, key: &ComponentKey) -> Failed {
        let (sender, outcomes) = std::sync::mpsc::channel();
        natives.compile(key.clone(), sender);
        match outcomes.recv().unwrap() {
            Happening::Compiled { outcome, .. } => outcome.unwrap_err(),
            _ => panic!("another happening"),
        }
    }

    #[test]
    fn an_artefact_for_which_the_host_has_no_memory_file_is_not_the_components_fault() {
        let (mut natives, key) = natives();
        natives.cache.put(&key.0, "00ff", &key.1, b"native").unwrap();
        natives.seal = no_memory;
        let failed = natives.find(&key).unwrap_err();
        assert!(matches!(&failed, Failed::Host { why } if why.contains("memory file")), "{failed:?}");
        let failed = compiled(&natives, &key);
        assert!(matches!(&failed, Failed::Host { why } if why.contains("memory file")), "{failed:?}");
        natives.seal = sealed::make;
        assert_eq!(natives.find(&key), Ok(true), "the next time there is");
        assert!(natives.open(&key).is_ok());
    }

    #[test]
    fn whose_fault_it_is_that_nothing_was_compiled_decides_what_follows() {
        let (natives, key) = natives();
        let failed = compiled(&natives, &key);
        assert!(matches!(failed, Failed::Host { .. }), "no process: {failed:?}");
        let failed = compiled(&natives, &("default".into(), Digest::of(b"lost")));
        assert!(matches!(failed, Failed::Component { code: code::COMPILE_FAILED, .. }), "no bytes: {failed:?}");
        let died = CompileError::Process { reason: "exit 101".into() };
        assert!(matches!(Failed::from(died), Failed::Process { .. }));
        let refused = CompileError::Refused { code: code::COMPILE_LIMIT, message: String::new() };
        assert!(matches!(Failed::from(refused), Failed::Component { code: code::COMPILE_LIMIT, .. }));
    }
}
