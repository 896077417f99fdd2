//! `tm.sock` in the queue directory: bound by whoever holds the queue's lock, never taken from a live supervisor.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt},
};
use tm_core::id::Digest;

use super::patience::GIVE_UP;

pub const SOCKET_NAME: &str = "tm.sock";
const RUNTIME_FOLDER: &str = "tm";
/// `sun_path` holds 108 bytes with the closing zero (unix(7)).
const ADDRESS_MAX_BYTES: usize = 107;

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("another supervisor answers at {}", path.display())]
    Live { path: PathBuf },
    #[error("{} is in the way: it is not a socket", path.display())]
    NotASocket { path: PathBuf },
    #[error("the file system of {} holds no sockets: {source}", path.display())]
    NoSockets { path: PathBuf, source: io::Error },
    #[error("cannot listen at {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Listens at the queue's socket; a stale one (nobody answers) is replaced.
///
/// On a file system that holds no sockets it stands in `$XDG_RUNTIME_DIR/tm` instead, named by the queue's path. The
/// caller holds the queue's lock, so nobody else is about to bind it (I9).
///
/// # Errors
/// When a live process answers there, something else lies there, or the file system refuses.
pub fn bind(queue_dir: &Path) -> Result<UnixListener, ListenError> {
    bind_or_else(queue_dir, runtime_dir().as_deref(), |address| UnixListener::bind(address))
}

fn bind_or_else(
    queue_dir: &Path,
    runtime_dir: Option<&Path>,
    first: impl FnOnce(&Path) -> io::Result<UnixListener>,
) -> Result<UnixListener, ListenError> {
    match Place::in_queue(queue_dir).bind(first) {
        Err(ListenError::Io { path, source }) if holds_no_sockets(&source) => {
            let Some(runtime_dir) = runtime_dir else { return Err(ListenError::NoSockets { path, source }) };
            let place = Place::in_runtime(queue_dir, runtime_dir, true)
                .map_err(|source| ListenError::Io { path: runtime_dir.join(RUNTIME_FOLDER), source })?;
            place.bind(|address| UnixListener::bind(address))
        }
        done => done,
    }
}

/// Refuses a queue whose socket is answered: its supervisor lives, whatever became of the file of its lock (I9).
///
/// # Errors
/// [`ListenError::Live`].
pub fn refuse_live(queue_dir: &Path) -> Result<(), ListenError> {
    match connect(queue_dir) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Ok(()),
        Ok(_) | Err(_) => Err(ListenError::Live { path: queue_dir.join(SOCKET_NAME) }),
    }
}

/// Connects to the queue's socket.
///
/// # Errors
/// `NotFound`: there is none. `ConnectionRefused`: it is stale. `WouldBlock`: it took no connection for 30 s.
pub fn connect(queue_dir: &Path) -> io::Result<UnixStream> {
    connect_or_else(queue_dir, runtime_dir().as_deref())
}

fn connect_or_else(queue_dir: &Path, runtime_dir: Option<&Path>) -> io::Result<UnixStream> {
    match (Place::in_queue(queue_dir).connect(), runtime_dir) {
        (Err(error), Some(runtime_dir)) if error.kind() == io::ErrorKind::NotFound => {
            // Without a folder there is no socket in it; one that others can write to is not believed.
            Place::in_runtime(queue_dir, runtime_dir, false).map_err(|_| error)?.connect()
        }
        (done, _) => done,
    }
}

fn runtime_dir() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// bind(2) makes a node of a kind that file systems of other worlds (vfat, CIFS, some in user space) do not have.
fn holds_no_sockets(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| [Errno::PERM, Errno::NOSYS, Errno::OPNOTSUPP].contains(&errno))
}

/// Where a queue's socket stands.
struct Place {
    folder: PathBuf,
    name: String,
}

impl Place {
    fn in_queue(queue_dir: &Path) -> Self {
        Self { folder: queue_dir.to_owned(), name: SOCKET_NAME.to_owned() }
    }

    /// In a folder that is this user's alone.
    fn in_runtime(queue_dir: &Path, runtime_dir: &Path, make: bool) -> io::Result<Self> {
        let real = queue_dir.canonicalize()?;
        let folder = runtime_dir.join(RUNTIME_FOLDER);
        if make {
            match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        let meta = folder.symlink_metadata()?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not a folder of this user alone"));
        }
        Ok(Self { folder, name: format!("{}.sock", Digest::of(real.as_os_str().as_bytes())) })
    }

    fn bind(&self, bind: impl FnOnce(&Path) -> io::Result<UnixListener>) -> Result<UnixListener, ListenError> {
        let path = self.folder.join(&self.name);
        let fail = |source| ListenError::Io { path: path.clone(), source };
        match path.symlink_metadata() {
            Ok(meta) if !meta.file_type().is_socket() => return Err(ListenError::NotASocket { path }),
            Ok(_) => match self.connect() {
                Ok(_) => return Err(ListenError::Live { path }),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(&path).map_err(fail)?;
                }
                Err(error) => return Err(fail(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        let listener = self.at_address(bind).map_err(fail)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        Ok(listener)
    }

    fn connect(&self) -> io::Result<UnixStream> {
        self.at_address(|address| {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            // Where as many wait as the listener allows, connect(2) waits too.
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(GIVE_UP))?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(address)?)?;
            Ok(UnixStream::from(socket))
        })
    }

    /// Runs with an address that fits: the path itself, or through a descriptor of the folder.
    fn at_address<T>(&self, run: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        let path = self.folder.join(&self.name);
        if path.as_os_str().len() <= ADDRESS_MAX_BYTES {
            return run(&path);
        }
        let folder: OwnedFd =
            rustix::fs::open(&self.folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        run(Path::new(&format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), self.name)))
    }
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
    #[test]
    fn where_no_socket_can_stand_the_runtime_folder_of_the_user_holds_it() {
        let (queue, runtime) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (queue_dir, runtime_dir) = (queue.path(), Some(runtime.path()));
        let refuse = |_: &Path| Err(io::Error::from(Errno::PERM));
        let kind = |runtime_dir| connect_or_else(queue_dir, runtime_dir).unwrap_err().kind();
        assert!(matches!(bind_or_else(queue_dir, None, refuse), Err(ListenError::NoSockets { .. })));
        assert_eq!(kind(runtime_dir), io::ErrorKind::NotFound);
        let listener = bind_or_else(queue_dir, runtime_dir, refuse).unwrap();
        connect_or_else(&queue_dir.join("."), runtime_dir).unwrap();
        assert!(matches!(bind_or_else(queue_dir, runtime_dir, refuse), Err(ListenError::Live { .. })));
        let other = tempfile::tempdir().unwrap();
        let _its_own = bind_or_else(other.path(), runtime_dir, refuse).unwrap();
        drop(listener);
        assert_eq!(kind(runtime_dir), io::ErrorKind::ConnectionRefused);
        let _replaced = bind_or_else(queue_dir, runtime_dir, refuse).unwrap();
        // Others could stand in it: neither used nor believed.
        let open = std::fs::Permissions::from_mode(0o770);
        std::fs::set_permissions(runtime.path().join(RUNTIME_FOLDER), open).unwrap();
        assert!(matches!(bind_or_else(queue_dir, runtime_dir, refuse), Err(ListenError::Io { .. })));
        assert_eq!(kind(runtime_dir), io::ErrorKind::NotFound);
    }
}
