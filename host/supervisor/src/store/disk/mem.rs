//! Memory in place of files: the same verbs, nothing durable. For `--queue memory`, `tm run` and tests.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Seek, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
};

use super::{Disk, DiskError, Entry, How, Kind, ROOTS};

#[derive(Clone)]
pub struct MemDisk {
    nodes: Arc<Mutex<BTreeMap<String, Node>>>,
}

#[derive(Clone)]
enum Node {
    Folder,
    File(Content),
}

type Content = Arc<Mutex<Vec<u8>>>;

pub struct MemFile {
    content: Content,
    path: String,
}

impl Default for MemDisk {
    fn default() -> Self {
        let nodes = ROOTS.iter().map(|root| ((*root).to_owned(), Node::Folder)).collect();
        Self { nodes: Arc::new(Mutex::new(nodes)) }
    }
}

/// A panic in another thread leaves whole values here: every change is one call.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn error(path: &str, errno: Errno) -> DiskError {
    DiskError::of(path, errno.into())
}

fn place(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn is_folder(nodes: &BTreeMap<String, Node>, path: &str) -> Result<(), DiskError> {
    match nodes.get(path) {
        Some(Node::Folder) => Ok(()),
        Some(Node::File(_)) => Err(error(path, Errno::NOTDIR)),
        None => Err(error(path, Errno::NOENT)),
    }
}

fn parent_exists(nodes: &BTreeMap<String, Node>, path: &str) -> Result<(), DiskError> {
    let (folder, name) = path.rsplit_once('/').ok_or_else(|| error(path, Errno::INVAL))?;
    if matches!(name, "" | "." | "..") {
        return Err(error(path, Errno::INVAL));
    }
    is_folder(nodes, folder)
}

impl Disk for MemDisk {
    type File = MemFile;

    fn open(&self, path: &str, how: How) -> Result<MemFile, DiskError> {
        let mut nodes = locked(&self.nodes);
        parent_exists(&nodes, path)?;
        let content = match (nodes.get(path), how) {
            (Some(Node::Folder), _) => return Err(error(path, Errno::ISDIR)),
            (Some(Node::File(_)), How::CreateNew) => return Err(error(path, Errno::EXIST)),
            (Some(Node::File(content)), How::Replace) => {
                locked(content).clear();
                content.clone()
            }
            (Some(Node::File(content)), How::Read | How::Write) => content.clone(),
            (None, How::Read | How::Write) => return Err(error(path, Errno::NOENT)),
            (None, How::CreateNew | How::Replace) => {
                let content = Content::default();
                nodes.insert(path.to_owned(), Node::File(content.clone()));
                content
            }
        };
        Ok(MemFile { content, path: path.to_owned() })
    }

    fn read_at(&self, file: &MemFile, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        let content = locked(&file.content);
        let rest = content.get(place(offset)..).unwrap_or_default();
        let got = rest.len().min(into.len());
        into[..got].copy_from_slice(&rest[..got]);
        Ok(got)
    }

    fn write_at(&self, file: &MemFile, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut content = locked(&file.content);
        let (from, to) = (place(offset), place(offset).saturating_add(bytes.len()));
        if content.len() < to {
            let more = to - content.len();
            content
                .try_reserve(more)
                .map_err(|_| DiskError::Full { path: file.path.clone(), source: io::ErrorKind::OutOfMemory.into() })?;
            content.resize(to, 0);
        }
        content[from..to].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self, _: &MemFile) -> Result<(), DiskError> {
        Ok(())
    }

    fn size(&self, file: &MemFile) -> Result<u64, DiskError> {
        Ok(locked(&file.content).len() as u64)
    }

    fn truncate(&self, file: &MemFile, bytes: u64) -> Result<(), DiskError> {
        locked(&file.content).resize(place(bytes), 0);
        Ok(())
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, DiskError> {
        let nodes = locked(&self.nodes);
        is_folder(&nodes, folder)?;
        let prefix = format!("{folder}/");
        let below = nodes.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        let mut entries: Vec<_> = below
            .filter(|(path, _)| !path[prefix.len()..].contains('/'))
            .map(|(path, node)| {
                let (kind, size_bytes) = match node {
                    Node::Folder => (Kind::Folder, 0),
                    Node::File(content) => (Kind::File, locked(content).len() as u64),
                };
                Entry { name: path[prefix.len()..].to_owned(), kind, size_bytes, modified_ms: 0 }
            })
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create_folder(&self, folder: &str) -> Result<(), DiskError> {
        let mut nodes = locked(&self.nodes);
        if nodes.contains_key(folder) {
            return is_folder(&nodes, folder);
        }
        parent_exists(&nodes, folder)?;
        nodes.insert(folder.to_owned(), Node::Folder);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut nodes = locked(&self.nodes);
        parent_exists(&nodes, to)?;
        let node = nodes.get(from).cloned().ok_or_else(|| error(from, Errno::NOENT))?;
        match (&node, nodes.get(to)) {
            (Node::File(_), Some(Node::Folder)) => return Err(error(to, Errno::ISDIR)),
            (Node::Folder, Some(Node::File(_))) => return Err(error(to, Errno::NOTDIR)),
            (Node::Folder, Some(Node::Folder)) if nodes.keys().any(|path| is_below(path, to)) => {
                return Err(error(to, Errno::NOTEMPTY));
            }
            _ => {}
        }
        let moved: Vec<_> = nodes.keys().filter(|path| *path == from || is_below(path, from)).cloned().collect();
        for path in moved {
            if let Some(node) = nodes.remove(&path) {
                nodes.insert(format!("{to}{}", &path[from.len()..]), node);
            }
        }
        Ok(())
    }

    fn unlink(&self, path: &str) -> Result<(), DiskError> {
        let mut nodes = locked(&self.nodes);
        match nodes.get(path) {
            None => Err(error(path, Errno::NOENT)),
            Some(Node::Folder) => Err(error(path, Errno::ISDIR)),
            Some(Node::File(_)) => {
                nodes.remove(path);
                Ok(())
            }
        }
    }

    fn remove_folder(&self, folder: &str) -> Result<(), DiskError> {
        let mut nodes = locked(&self.nodes);
        is_folder(&nodes, folder)?;
        if nodes.keys().any(|path| is_below(path, folder)) {
            return Err(error(folder, Errno::NOTEMPTY));
        }
        nodes.remove(folder);
        Ok(())
    }

    fn sync_folder(&self, folder: &str) -> Result<(), DiskError> {
        is_folder(&locked(&self.nodes), folder)
    }

    fn descriptor(&self, path: &str) -> Result<OwnedFd, DiskError> {
        let file = self.open(path, How::Read)?;
        sealed(&locked(&file.content)).map_err(|source| DiskError::of(path, source))
    }
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// A memory file that nobody can change any more.
fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("tm", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(file.as_fd(), seals)?;
    Ok(file.into())
}
