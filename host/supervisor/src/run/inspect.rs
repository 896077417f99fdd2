//! The inspection that deploying asks for: by the compiler's processes, and remembered by the component's digest.
//!
//! What is remembered lies in the store, `store/inspections/<component>.json`: one line with the digest of the next, then
//! the inspection with the version that made it. A file that is not exactly that is as good as none.

use std::{
    collections::BTreeSet,
    os::{fd::BorrowedFd, unix::fs::MetadataExt as _},
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tm_core::{id::Digest, limits::COMPONENT_MAX_BYTES, wire::Inspection};

use crate::{
    deploy::{Inspect, InspectError},
    store::disk::{self, Disk, DiskError, read_whole},
    workers::{
        compile::{CompileError, Compiler},
        sealed,
    },
};

const FOLDER: &str = "store/inspections";
/// Imports and exports are names; a component with more of them is inspected anew.
const KEPT_MAX_BYTES: u64 = 1024 * 1024;

impl Inspect for Compiler {
    fn inspect(&self, component: BorrowedFd<'_>) -> Result<Inspection, InspectError> {
        Self::inspect(self, component).map_err(|error| match error {
            CompileError::Refused { code, message } => InspectError::Refused { code, message },
            other => InspectError::Process { reason: other.to_string() },
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Kept {
    /// Another version may find other things.
    version: String,
    inspection: Inspection,
}

/// Asks only for components that this store has not seen.
pub(super) struct Remembered<D: Disk> {
    /// None: others can write to the store, so nothing in it is believed.
    disk: Option<D>,
    inspect: Arc<dyn Inspect + Send + Sync>,
}

impl<D: Disk> Remembered<D> {
    /// Remembers in a store that `is_private`: this user's, and writable for nobody else.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(super) fn new(disk: D, is_private: bool, inspect: Arc<dyn Inspect + Send + Sync>) -> Result<Self, DiskError> {
        let disk = is_private.then_some(disk);
        disk.as_ref().map_or(Ok(()), |disk| disk::create_folders(disk, FOLDER))?;
        Ok(Self { disk, inspect })
    }

    fn recall(&self, component: &Digest) -> Option<Inspection> {
        let bytes = read_whole(self.disk.as_ref()?, &path(component), KEPT_MAX_BYTES).ok()?;
        let (digest, text) = std::str::from_utf8(&bytes).ok()?.split_once('\n')?;
        let kept: Kept =
            serde_json::from_str(text).ok().filter(|_| digest.parse() == Ok(Digest::of(text.as_bytes())))?;
        let same = kept.version == env!("CARGO_PKG_VERSION") && kept.inspection.digest == *component;
        same.then_some(kept.inspection)
    }

    fn keep(&self, inspection: &Inspection) {
        let Some(disk) = &self.disk else { return };
        let kept = Kept { version: env!("CARGO_PKG_VERSION").into(), inspection: inspection.clone() };
        let Ok(text) = serde_json::to_string(&kept) else { return };
        let file = format!("{}\n{text}", Digest::of(text.as_bytes()));
        if let Err(error) = disk::replace(disk, &path(&inspection.digest), file.as_bytes()) {
            tracing::warn!(%error, "an inspection cannot be kept: the next registration inspects again");
        }
    }
}

impl<D: Disk> Inspect for Remembered<D> {
    fn inspect(&self, component: BorrowedFd<'_>) -> Result<Inspection, InspectError> {
        let digest = Digest::of(&sealed::read(component, COMPONENT_MAX_BYTES)?);
        if let Some(known) = self.recall(&digest) {
            return Ok(known);
        }
        let inspection = Inspection { digest, ..self.inspect.inspect(component)? };
        self.keep(&inspection);
        Ok(inspection)
    }
}

/// Removes what is remembered of components that nothing names any more.
pub(super) fn forget<D: Disk>(disk: &D, live: &BTreeSet<Digest>) -> Result<(), DiskError> {
    let entries = match disk.list(FOLDER) {
        Err(error) if error.is_not_found() => return Ok(()),
        listed => listed?,
    };
    for entry in entries {
        let component = entry.name.strip_suffix(".json").and_then(|name| name.parse().ok());
        if !component.is_some_and(|component| live.contains(&component)) {
            disk.unlink(&format!("{FOLDER}/{}", entry.name))?;
        }
    }
    Ok(())
}

/// Whether a folder is this user's and nobody else can write to it.
pub(super) fn is_private(folder: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    folder.metadata().is_ok_and(|meta| meta.uid() == own && meta.mode() & 0o022 == 0)
}

fn path(component: &Digest) -> String {
    format!("{FOLDER}/{component}.json")
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::AsFd as _,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use tm_core::wire::Required;

    use super::*;
    use crate::store::disk::{How, MemDisk};

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Inspect for Counting {
        fn inspect(&self, _: BorrowedFd<'_>) -> Result<Inspection, InspectError> {
            self.0.fetch_add(1, SeqCst);
            let exports = vec!["tracemind:flow/step".into()];
            let (imports, import_faults) = (vec![], vec![]);
            Ok(Inspection { digest: Digest::of(b""), imports, exports, import_faults, required: Required::default() })
        }
    }

    #[test]
    fn a_component_is_inspected_once_and_again_when_what_is_kept_is_damaged_or_forgotten() {
        let (disk, counting) = (MemDisk::default(), Arc::new(Counting::default()));
        let look_in = |is_private: bool| {
            let component = sealed::make(b"component").unwrap();
            let found = Remembered::new(disk.clone(), is_private, counting.clone())
                .unwrap()
                .inspect(component.as_fd())
                .unwrap();
            assert_eq!((found.digest, found.exports.len()), (Digest::of(b"component"), 1));
            counting.0.load(SeqCst)
        };
        let look = || look_in(true);
        assert_eq!((look(), look()), (1, 1));
        let path = path(&Digest::of(b"component"));
        let good = read_whole(&disk, &path, KEPT_MAX_BYTES).unwrap();
        let flipped = |at: usize| {
            let mut bad = good.clone();
            bad[at] ^= 1;
            bad
        };
        let other = Kept {
            version: env!("CARGO_PKG_VERSION").into(),
            inspection: Inspection {
                digest: Digest::of(b"other"),
                ..counting.inspect(sealed::make(b"").unwrap().as_fd()).unwrap()
            },
        };
        let other = serde_json::to_string(&other).unwrap();
        let other = format!("{}\n{other}", Digest::of(other.as_bytes())).into_bytes();
        let (cut, doubled) = (good[..good.len() / 2].to_vec(), [good.as_slice(), &good].concat());
        for (how, bad) in [
            ("flipped in front", flipped(0)),
            ("flipped in the middle", flipped(70)),
            ("flipped at the end", flipped(good.len() - 4)),
            ("cut", cut),
            ("emptied", Vec::new()),
            ("doubled", doubled),
            ("swapped", other),
        ] {
            disk.write_at(&disk.open(&path, How::Replace).unwrap(), 0, &bad).unwrap();
            let before = counting.0.load(SeqCst);
            assert_eq!((look(), look()), (before + 1, before + 1), "{how}");
        }
        let before = counting.0.load(SeqCst);
        forget(&disk, &BTreeSet::from([Digest::of(b"component")])).unwrap();
        assert_eq!(look(), before);
        forget(&disk, &BTreeSet::new()).unwrap();
        assert_eq!(look(), before + 1);
        assert_eq!((look_in(false), look_in(false)), (before + 2, before + 3));
    }
}
