//! Sealed memory files: bytes that travel between processes and that neither side can change afterwards.

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create},
    io::{Errno, pread, write},
};

/// Whoever holds such a file can neither write, shorten nor lengthen it: reading it cannot fault, and what was checked
/// stays as it was.
const NEEDED: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    #[error("cannot make a memory file of {size_bytes} bytes: {source}")]
    Make { size_bytes: u64, source: Errno },
    #[error("cannot read a memory file: {0}")]
    Read(Errno),
    #[error("a descriptor is not a memory file sealed against writing, shortening and growing")]
    NotSealed,
    #[error("a memory file has {actual_bytes} bytes, announced were {announced_bytes}")]
    OtherSize { actual_bytes: u64, announced_bytes: u64 },
    #[error("a memory file has {actual_bytes} bytes, allowed are {max_bytes}")]
    TooLarge { actual_bytes: u64, max_bytes: u64 },
}

/// Makes a sealed memory file that holds `bytes`; its offset is at the end, so readers read from 0 by position.
///
/// # Errors
/// When the kernel has no descriptor or no memory for it.
pub fn make(bytes: &[u8]) -> Result<OwnedFd, SealedError> {
    let fail = |source| SealedError::Make { size_bytes: bytes.len() as u64, source };
    let fd = memfd_create("tm", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(fail)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        match write(&fd, rest) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            Err(source) => return Err(fail(source)),
        }
    }
    fcntl_add_seals(&fd, NEEDED | SealFlags::SEAL).map_err(fail)?;
    Ok(fd)
}

/// Checks that a received descriptor is a sealed memory file of the announced size.
///
/// # Errors
/// When it is anything else: a pipe that would block its reader, a file that its sender can still change.
pub fn check(fd: impl AsFd, announced_bytes: u64) -> Result<(), SealedError> {
    let fd = fd.as_fd();
    if !fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(NEEDED)) {
        return Err(SealedError::NotSealed);
    }
    let actual_bytes = size_bytes(fd)?;
    if actual_bytes != announced_bytes {
        return Err(SealedError::OtherSize { actual_bytes, announced_bytes });
    }
    Ok(())
}

/// Reads a whole memory file from 0, wherever its offset stands.
///
/// # Errors
/// When it is larger than `max_bytes` or cannot be read.
pub fn read(fd: impl AsFd, max_bytes: u64) -> Result<Vec<u8>, SealedError> {
    let fd = fd.as_fd();
    let actual_bytes = size_bytes(fd)?;
    if actual_bytes > max_bytes {
        return Err(SealedError::TooLarge { actual_bytes, max_bytes });
    }
    let mut bytes = vec![0; usize::try_from(actual_bytes).unwrap_or(usize::MAX)];
    let mut done = 0;
    while done < bytes.len() {
        match pread(fd, &mut bytes[done..], done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(source) => return Err(SealedError::Read(source)),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

fn size_bytes(fd: impl AsFd) -> Result<u64, SealedError> {
    Ok(u64::try_from(fstat(fd).map_err(SealedError::Read)?.st_size).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_can_be_read_and_not_changed() {
        let fd = make(b"hello").unwrap();
        check(&fd, 5).unwrap();
        assert_eq!(read(&fd, 5).unwrap(), b"hello");
        assert_eq!(write(&fd, b"x"), Err(Errno::PERM));
        assert!(matches!(read(&fd, 4), Err(SealedError::TooLarge { actual_bytes: 5, max_bytes: 4 })));
    }

    #[test]
    fn what_its_sender_can_still_change_is_refused() {
        let open = memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(matches!(check(&open, 0), Err(SealedError::NotSealed)));
        let (pipe, _writer) = rustix::pipe::pipe().unwrap();
        assert!(matches!(check(&pipe, 0), Err(SealedError::NotSealed)));
        assert!(matches!(check(make(b"ab").unwrap(), 3), Err(SealedError::OtherSize { actual_bytes: 2, .. })));
    }
}
