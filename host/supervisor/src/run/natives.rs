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
    store::{disk::Disk, native::Native},
    workers::{
        compile::{CompileError, Compiler},
        sealed,
    },
};

/// The smallest component there is: compiling it tells what artefacts this build of the engine takes.
const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Why there is no native artefact: a code of the table and a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl From<CompileError> for Failed {
    fn from(error: CompileError) -> Self {
        match error {
            CompileError::Refused { code, message } => Self { code, message },
            other => failed(other.to_string()),
        }
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
}

impl<D: Disk> Natives<D> {
    pub(super) fn new(disk: D, blobs: StoredBlobs<D>, compiler: Arc<Compiler>) -> Result<Self, RunError> {
        let lane = Lane::start("tm-compile").map_err(RunError::Thread)?;
        Ok(Self { cache: Native::new(disk)?, blobs, compiler, compatibility: None, here: BTreeMap::new(), lane })
    }

    /// Names the artefacts that this build takes, when anything can be compiled here at all: in a process with all walls.
    pub(super) fn compatibility(&mut self) -> Result<String, Failed> {
        if let Some(known) = &self.compatibility {
            return Ok(known.clone());
        }
        let sealed = sealed::make(EMPTY_COMPONENT).map_err(|error| failed(error.to_string()))?;
        let native = self.compiler.compile(sealed.as_fd()).map_err(Failed::from)?;
        Ok(self.compatibility.insert(native.compatibility).clone())
    }

    /// Finds the artefact in the cache.
    ///
    /// # Errors
    /// When nothing at all can be compiled here.
    pub(super) fn find(&mut self, key: &ComponentKey) -> Result<bool, Failed> {
        let compatibility = self.compatibility()?;
        match self.cache.load(&key.0, &compatibility, &key.1) {
            Ok(Some(bytes)) => {
                let fd = sealed::make(&bytes).map_err(|error| failed(error.to_string()))?;
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
        self.lane.give(move || {
            let outcome = compile(&key, &blobs, &compiler, &cache);
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
) -> Result<OwnedFd, Failed> {
    let bytes =
        blobs.store().get(&key.1).map_err(|error| failed(format!("the component's blob {}: {error}", key.1)))?;
    if bytes.len() as u64 > COMPONENT_MAX_BYTES {
        return Err(failed(format!("the component has {} bytes", bytes.len())));
    }
    let component = sealed::make(&bytes).map_err(|error| failed(error.to_string()))?;
    let native = compiler.compile(component.as_fd()).map_err(Failed::from)?;
    let bytes = sealed::read(&native.artefact, NATIVE_MAX_BYTES).map_err(|error| failed(error.to_string()))?;
    if let Err(error) = cache.put(&key.0, &native.compatibility, &key.1, &bytes) {
        tracing::warn!(component = %key.1, %error, "a native artefact cannot be cached: the next start compiles again");
    }
    Ok(native.artefact)
}

fn failed(message: String) -> Failed {
    Failed { code: code::COMPILE_FAILED, message }
}
