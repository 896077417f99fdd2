//! Opening a guest's path without ever waiting for it: regular files and folders, and nothing else.
//!
//! A pipe without another end, a socket, a device or a file under a lease would hold up the one thread that runs all
//! guests. So a path is only held at first (`O_PATH` opens nothing), what it leads to is looked at, and that very thing is
//! opened through its descriptor: whoever puts another in its place meanwhile changes nothing.

use std::{
    fs::File as OsFile,
    io::ErrorKind,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use wasmtime_wasi::{
    OpenMode,
    filesystem::{Descriptor, Dir, File},
    p2::{
        FsResult,
        bindings::filesystem::types::{DescriptorFlags, ErrorCode, OpenFlags, PathFlags},
    },
};

use crate::confine;

/// Tries while somebody renames or removes on the way.
const TRIES: usize = 8;
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// What stands at a path below the folder, opened as the flags of `wasi:filesystem` say.
pub(super) fn open(
    dir: &Dir,
    path_flags: PathFlags,
    path: &str,
    open_flags: OpenFlags,
    flags: DescriptorFlags,
) -> FsResult<Descriptor> {
    let create = open_flags.contains(OpenFlags::CREATE);
    let write = create || open_flags.contains(OpenFlags::TRUNCATE) || flags.contains(DescriptorFlags::WRITE);
    let read = flags.contains(DescriptorFlags::READ) || !flags.contains(DescriptorFlags::WRITE);
    let sync = DescriptorFlags::FILE_INTEGRITY_SYNC
        | DescriptorFlags::DATA_INTEGRITY_SYNC
        | DescriptorFlags::REQUESTED_WRITE_SYNC;
    if flags.intersects(sync) {
        return Err(ErrorCode::Unsupported.into());
    }
    let folder = open_flags.contains(OpenFlags::DIRECTORY);
    if folder && open_flags != OpenFlags::DIRECTORY {
        return Err(ErrorCode::Invalid.into());
    }
    if write && dir.perms.write_not_permitted() {
        return Err(ErrorCode::NotPermitted.into());
    }
    let access = match (read, write) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        (_, false) => OFlags::RDONLY,
    };
    let mut with = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    with.set(OFlags::TRUNC, open_flags.contains(OpenFlags::TRUNCATE));
    let follow = path_flags.contains(PathFlags::SYMLINK_FOLLOW);
    let exclusive = create && open_flags.contains(OpenFlags::EXCLUSIVE);

    let (opened, is_folder) = file(dir, path, follow, create, exclusive, with)?;
    if folder && !is_folder {
        return Err(ErrorCode::NotDirectory.into());
    }
    let mut mode = OpenMode::empty();
    mode.set(OpenMode::READ, read);
    mode.set(OpenMode::WRITE, write);
    Ok(if is_folder {
        Descriptor::Dir(Dir::new(opened, dir.perms, mode, true))
    } else {
        Descriptor::File(File::new(opened, dir.perms, mode, true))
    })
}

/// The open file, and whether it is a folder.
fn file(dir: &Dir, path: &str, follow: bool, create: bool, exclusive: bool, with: OFlags) -> FsResult<(OsFile, bool)> {
    for _ in 0..TRIES {
        if !exclusive {
            match held(dir, path, follow) {
                Ok(held) => return reopened(&held, with),
                Err(Errno::NOENT) if create => {}
                Err(Errno::AGAIN) => continue,
                Err(errno) => return Err(refused(errno).into()),
            }
        }
        // Exclusive, so that it is a new file and nothing else.
        let made = with.difference(OFlags::TRUNC) | OFlags::CREATE | OFlags::EXCL;
        match rustix::fs::openat2(&*dir.dir, path, made, Mode::from_raw_mode(0o666), BENEATH) {
            Ok(file) => return Ok((file.into(), false)),
            Err(Errno::AGAIN) => {}
            Err(Errno::EXIST) if !exclusive => {}
            Err(errno) => return Err(refused(errno).into()),
        }
    }
    Err(std::io::Error::from(ErrorKind::ResourceBusy).into())
}

fn held(dir: &Dir, path: &str, follow: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !follow);
    rustix::fs::openat2(&*dir.dir, path, flags, Mode::empty(), BENEATH)
}

fn reopened(held: &OwnedFd, with: OFlags) -> FsResult<(OsFile, bool)> {
    let stat = rustix::fs::fstat(held.as_fd()).map_err(refused)?;
    let is_folder = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => false,
        FileType::Directory => true,
        FileType::Symlink => return Err(ErrorCode::Loop.into()),
        _ => return Err(ErrorCode::NotPermitted.into()),
    };
    let opened = rustix::fs::open(confine::own_path(held), with, Mode::empty()).map_err(refused)?;
    Ok((opened.into(), is_folder))
}

fn refused(errno: Errno) -> ErrorCode {
    match errno {
        // A path that leads outside.
        Errno::XDEV => ErrorCode::NotPermitted,
        // A lease of another process.
        Errno::AGAIN => ErrorCode::Busy,
        errno => std::io::Error::from(errno).into(),
    }
}
