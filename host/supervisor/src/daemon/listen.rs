//! `tm.sock` in the queue directory: bound by whoever holds the queue's lock, never taken from a live supervisor.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

pub const SOCKET_NAME: &str = "tm.sock";
/// `sun_path` holds 108 bytes with the closing zero (unix(7)).
const ADDRESS_MAX_BYTES: usize = 107;

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("another supervisor answers at {}", path.display())]
    Live { path: PathBuf },
    #[error("{} is in the way: it is not a socket", path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot listen at {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Listens at the queue's socket; a stale one (nobody answers) is replaced.
///
/// The caller holds the queue's lock, so nobody else is about to bind it (I9).
///
/// # Errors
/// When a live process answers there, something else lies there, or the file system refuses.
pub fn bind(queue_dir: &Path) -> Result<UnixListener, ListenError> {
    let path = queue_dir.join(SOCKET_NAME);
    let fail = |source| ListenError::Io { path: path.clone(), source };
    match path.symlink_metadata() {
        Ok(meta) if !meta.file_type().is_socket() => return Err(ListenError::NotASocket { path }),
        Ok(_) => match connect(queue_dir) {
            Ok(_) => return Err(ListenError::Live { path }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path).map_err(fail)?;
            }
            Err(error) => return Err(fail(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    let listener = at_address(queue_dir, |address| UnixListener::bind(address)).map_err(fail)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Connects to the queue's socket.
///
/// # Errors
/// `NotFound`: there is none. `ConnectionRefused`: it is stale.
pub fn connect(queue_dir: &Path) -> io::Result<UnixStream> {
    at_address(queue_dir, |address| UnixStream::connect(address))
}

/// Runs with an address that fits: the path itself, or through a descriptor of the folder.
fn at_address<T>(queue_dir: &Path, run: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = queue_dir.join(SOCKET_NAME);
    if path.as_os_str().len() <= ADDRESS_MAX_BYTES {
        return run(&path);
    }
    let folder: OwnedFd =
        rustix::fs::open(queue_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    run(Path::new(&format!("/proc/self/fd/{}/{SOCKET_NAME}", folder.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_socket_is_never_taken_and_a_stale_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(connect(folder.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        let first = bind(folder.path()).unwrap();
        assert!(matches!(bind(folder.path()), Err(ListenError::Live { .. })));
        drop(first);
        assert_eq!(connect(folder.path()).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let _second = bind(folder.path()).unwrap();
        connect(folder.path()).unwrap();
        let mode = std::fs::metadata(folder.path().join(SOCKET_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_folder_with_a_long_path_has_a_socket_too() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(200));
        std::fs::create_dir(&long).unwrap();
        let _listener = bind(&long).unwrap();
        connect(&long).unwrap();
    }

    #[test]
    fn something_else_in_the_way_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(SOCKET_NAME), "mine").unwrap();
        assert!(matches!(bind(folder.path()), Err(ListenError::NotASocket { .. })));
    }
}
