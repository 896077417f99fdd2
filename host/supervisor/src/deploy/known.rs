//! Components by their files: a file that did not change is not read or inspected again.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt,
    time::{SystemTime, UNIX_EPOCH},
};

use tm_core::{id::Digest, limits::COMPONENT_MAX_BYTES, wire::Inspection};

use crate::workers::sealed::{self, SealedError};

/// Files that are remembered.
const KNOWN_MAX_COUNT: usize = 4096;
/// A file that changed this shortly ago may change again within one tick of the file system's clock (4 ms with 250 Hz).
const SETTLED_NS: i128 = 50_000_000;

/// Says what a component is, in a confined process of its own (I8). The pool does.
pub trait Inspect {
    /// `component` is a sealed memory file.
    ///
    /// # Errors
    /// When it is no component, or its inspection took too much.
    fn inspect(&self, component: BorrowedFd<'_>) -> Result<Inspection, InspectError>;
}

/// Why a component is not known.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("cannot read the component: {0}")]
    Read(#[from] io::Error),
    #[error("the component has {size_bytes} bytes, at most {COMPONENT_MAX_BYTES} are allowed")]
    TooLarge { size_bytes: u64 },
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// `code` is COMPILE_FAILED or COMPILE_LIMIT.
    #[error("{message}")]
    Refused { code: &'static str, message: String },
    #[error("the inspecting process failed: {reason}")]
    Process { reason: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        })
    }

    fn settled(&self) -> bool {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i128::try_from(since.as_nanos()).is_ok_and(|now| now - self.changed_ns > SETTLED_NS)
    }
}

/// Files whose content is known, by device, inode, size, modification and change time.
#[derive(Debug, Default)]
pub struct KnownFiles {
    files: HashMap<Stamp, Inspection>,
}

/// A component, and its bytes in a sealed memory file when the file was read just now.
#[derive(Debug)]
pub struct Component {
    pub inspection: Inspection,
    pub bytes: Option<OwnedFd>,
}

impl KnownFiles {
    /// What a component file is. The digest is computed here, never taken from the inspecting process.
    ///
    /// # Errors
    /// When it cannot be read, is too large, or is no component.
    pub fn component(&mut self, file: &File, inspect: &dyn Inspect) -> Result<Component, InspectError> {
        let stamp = Stamp::of(file)?;
        if let Some(inspection) = self.files.get(&stamp) {
            return Ok(Component { inspection: inspection.clone(), bytes: None });
        }
        let settled = stamp.settled();
        let bytes = read(file, stamp.size)?;
        let digest = Digest::of(&bytes);
        let sealed = sealed::make(&bytes)?;
        drop(bytes);
        let inspection = Inspection { digest, ..inspect.inspect(sealed.as_fd())? };
        if settled && Stamp::of(file)? == stamp {
            if self.files.len() >= KNOWN_MAX_COUNT {
                self.files.clear();
            }
            self.files.insert(stamp, inspection.clone());
        }
        Ok(Component { inspection, bytes: Some(sealed) })
    }

    /// Forgets a component, so that its bytes are read again: its stored copy is gone.
    pub fn forget(&mut self, digest: Digest) {
        self.files.retain(|_, inspection| inspection.digest != digest);
    }
}

fn read(file: &File, size_bytes: u64) -> Result<Vec<u8>, InspectError> {
    if size_bytes > COMPONENT_MAX_BYTES {
        return Err(InspectError::TooLarge { size_bytes });
    }
    // By position through a file of its own: the sender may share the offset.
    let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0));
    let at = At { file, offset: 0 };
    at.take(COMPONENT_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > COMPONENT_MAX_BYTES {
        return Err(InspectError::TooLarge { size_bytes: bytes.len() as u64 });
    }
    Ok(bytes)
}

struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, time::Duration};
    use tm_core::wire::Required;

    #[derive(Default)]
    struct Counting(Cell<u32>);

    impl Inspect for Counting {
        fn inspect(&self, _: BorrowedFd<'_>) -> Result<Inspection, InspectError> {
            self.0.set(self.0.get() + 1);
            let digest = Digest([9; 32]);
            let (imports, exports, import_faults) = (vec![], vec![], vec![]);
            Ok(Inspection { digest, imports, exports, import_faults, required: Required::default() })
        }
    }

    #[test]
    fn an_unchanged_file_is_inspected_once_and_a_changed_one_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wasm");
        std::fs::write(&path, b"one").unwrap();
        let (mut known, inspect) = (KnownFiles::default(), Counting::default());
        let look = |known: &mut KnownFiles| known.component(&File::open(&path).unwrap(), &inspect).unwrap();
        // Not settled yet: looked at, not remembered.
        let first = look(&mut known);
        assert_eq!(first.inspection.digest, Digest::of(b"one"), "the digest is the supervisor's own");
        let bounded = std::time::Instant::now() + Duration::from_secs(10);
        while look(&mut known).bytes.is_some() {
            assert!(std::time::Instant::now() < bounded, "the file settles");
        }
        let count = inspect.0.get();
        assert!(look(&mut known).bytes.is_none());
        assert_eq!(inspect.0.get(), count);
        std::fs::write(&path, b"two").unwrap();
        let look = |known: &mut KnownFiles| known.component(&File::open(&path).unwrap(), &inspect).unwrap();
        assert_eq!(look(&mut known).inspection.digest, Digest::of(b"two"));
        assert_eq!(inspect.0.get(), count + 1);
    }
}
