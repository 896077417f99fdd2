//! The host of `wasi:filesystem`: wasmtime's own functions, each behind the counters where it can add to a folder.

use std::{fs::File as OsFile, os::unix::fs::MetadataExt, sync::Arc};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use wasmtime::component::Resource;
use wasmtime_wasi::{
    filesystem::{Descriptor, WasiFilesystemCtxView},
    p2::{
        DynInputStream, DynOutputStream, FsError, FsResult, ReaddirIterator,
        bindings::filesystem::{
            preopens,
            types::{
                self, Advice, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, ErrorCode, Filesize,
                HostDescriptor, HostDirectoryEntryStream, MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
            },
        },
    },
};

use super::{Budget, CountedStream, Files, Found, open::open};

/// The host of `wasi:filesystem`: wasmtime's own, behind the counters.
pub struct CountedFiles<'a> {
    pub view: WasiFilesystemCtxView<'a>,
    pub files: &'a mut Files,
}

impl CountedFiles<'_> {
    fn budget(&self, fd: &Resource<Descriptor>) -> FsResult<Arc<Budget>> {
        self.files.owners.get(&fd.rep()).cloned().ok_or_else(|| ErrorCode::BadDescriptor.into())
    }

    fn file(&self, fd: &Resource<Descriptor>) -> FsResult<Arc<OsFile>> {
        match self.view.table.get(fd)? {
            Descriptor::File(file) if file.perms.write_not_permitted() => Err(ErrorCode::NotPermitted.into()),
            Descriptor::File(file) => Ok(Arc::clone(&file.file)),
            Descriptor::Dir(_) => Err(ErrorCode::BadDescriptor.into()),
        }
    }

    /// What stands at a name, itself and not where a link leads.
    fn look(&self, fd: &Resource<Descriptor>, path: &str) -> Option<Found> {
        let Ok(Descriptor::Dir(dir)) = self.view.table.get(fd) else { return None };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::openat2(&*dir.dir, path, flags, Mode::empty(), ResolveFlags::BENEATH).ok()?;
        let meta = OsFile::from(found).metadata().ok()?;
        let id = (meta.dev(), meta.ino());
        let held = meta.nlink() > 1 || self.files.is_open(id);
        Some(Found { id, freed_bytes: if meta.is_file() && !held { meta.len() } else { 0 } })
    }

    /// Whether names can be made below this folder at all; where not, wasmtime's own refusal is the answer.
    fn may_make(&self, fd: &Resource<Descriptor>) -> bool {
        matches!(self.view.table.get(fd), Ok(Descriptor::Dir(dir)) if !dir.perms.write_not_permitted())
    }

    /// Not wasmtime's own, which would wait for the other end of a pipe.
    fn open(
        &mut self,
        fd: &Resource<Descriptor>,
        path_flags: PathFlags,
        path: &str,
        open_flags: OpenFlags,
        flags: DescriptorFlags,
    ) -> FsResult<Resource<Descriptor>> {
        let opened = match self.view.table.get(fd)? {
            Descriptor::Dir(dir) => open(dir, path_flags, path, open_flags, flags)?,
            Descriptor::File(_) => return Err(ErrorCode::NotDirectory.into()),
        };
        Ok(self.view.table.push(opened)?)
    }

    fn same_budget(&self, one: &Resource<Descriptor>, other: &Resource<Descriptor>) -> FsResult<Arc<Budget>> {
        let budget = self.budget(one)?;
        if Arc::ptr_eq(&budget, &self.budget(other)?) { Ok(budget) } else { Err(ErrorCode::CrossDevice.into()) }
    }

    fn stream(&mut self, fd: &Resource<Descriptor>, at: Option<Filesize>) -> FsResult<Resource<DynOutputStream>> {
        let stream: DynOutputStream = Box::new(CountedStream { file: self.file(fd)?, at, budget: self.budget(fd)? });
        Ok(self.view.table.push(stream)?)
    }
}

impl preopens::Host for CountedFiles<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        self.files.make_scratch()?;
        let mut directories = Vec::with_capacity(self.files.preopens.len());
        for preopen in &self.files.preopens {
            let fd = self.view.table.push(Descriptor::Dir(preopen.dir.clone()))?;
            self.files.owners.insert(fd.rep(), Arc::clone(&preopen.budget));
            directories.push((fd, preopen.guest.clone()));
        }
        Ok(directories)
    }
}

impl types::Host for CountedFiles<'_> {
    fn convert_error_code(&mut self, err: FsError) -> wasmtime::Result<ErrorCode> {
        self.view.convert_error_code(err)
    }

    fn filesystem_error_code(&mut self, err: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        self.view.filesystem_error_code(err)
    }
}

impl HostDescriptor for CountedFiles<'_> {
    async fn set_size(&mut self, fd: Resource<Descriptor>, size: Filesize) -> FsResult<()> {
        let (file, budget) = (self.file(&fd)?, self.budget(&fd)?);
        let before = file.metadata()?.len();
        budget.grow(&file, size)?;
        self.view.set_size(fd, size).await?;
        budget.give_back(before.saturating_sub(size));
        Ok(())
    }

    async fn write(&mut self, fd: Resource<Descriptor>, buf: Vec<u8>, offset: Filesize) -> FsResult<Filesize> {
        self.budget(&fd)?.grow(&*self.file(&fd)?, offset.saturating_add(buf.len() as u64))?;
        self.view.write(fd, buf, offset).await
    }

    fn write_via_stream(&mut self, fd: Resource<Descriptor>, at: Filesize) -> FsResult<Resource<DynOutputStream>> {
        self.stream(&fd, Some(at))
    }

    fn append_via_stream(&mut self, fd: Resource<Descriptor>) -> FsResult<Resource<DynOutputStream>> {
        self.stream(&fd, None)
    }

    async fn open_at(
        &mut self,
        fd: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        open_flags: OpenFlags,
        flags: DescriptorFlags,
    ) -> FsResult<Resource<Descriptor>> {
        let budget = self.budget(&fd)?;
        let borrowed = || Resource::new_borrow(fd.rep());
        let mut cut_bytes = 0;
        let mut makes = false;
        if open_flags.intersects(OpenFlags::CREATE | OpenFlags::TRUNCATE) {
            match self.view.stat_at(borrowed(), path_flags, path.clone()).await {
                Ok(stat) if matches!(stat.type_, DescriptorType::RegularFile) => cut_bytes = stat.size,
                Ok(_) => {}
                Err(_) => makes = open_flags.contains(OpenFlags::CREATE) && self.may_make(&fd),
            }
        }
        if makes {
            budget.name_made()?;
        }
        let opened = self.open(&fd, path_flags, &path, open_flags, flags);
        if opened.is_err() && makes {
            budget.name_removed();
        }
        let opened = opened?;
        if open_flags.contains(OpenFlags::TRUNCATE) {
            budget.give_back(cut_bytes);
        }
        if let Descriptor::File(file) = self.view.table.get(&opened)? {
            self.files.remember(&file.file.clone());
        }
        self.files.owners.insert(opened.rep(), budget);
        Ok(opened)
    }

    fn drop(&mut self, fd: Resource<Descriptor>) -> wasmtime::Result<()> {
        self.files.owners.remove(&fd.rep());
        HostDescriptor::drop(&mut self.view, fd)
    }

    async fn create_directory_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<()> {
        if !self.may_make(&fd) {
            return self.view.create_directory_at(fd, path).await;
        }
        let budget = self.budget(&fd)?;
        budget.name_made()?;
        let made = self.view.create_directory_at(fd, path).await;
        if made.is_err() {
            budget.name_removed();
        }
        made
    }

    async fn remove_directory_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<()> {
        let budget = self.budget(&fd)?;
        self.view.remove_directory_at(fd, path).await?;
        budget.name_removed();
        Ok(())
    }

    async fn unlink_file_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<()> {
        let budget = self.budget(&fd)?;
        let found = self.look(&fd, &path);
        self.view.unlink_file_at(fd, path).await?;
        budget.give_back(found.map_or(0, |found| found.freed_bytes));
        budget.name_removed();
        Ok(())
    }

    async fn rename_at(
        &mut self,
        fd: Resource<Descriptor>,
        old_path: String,
        new_fd: Resource<Descriptor>,
        new_path: String,
    ) -> FsResult<()> {
        let budget = self.same_budget(&fd, &new_fd)?;
        let (source, target) = (self.look(&fd, &old_path), self.look(&new_fd, &new_path));
        self.view.rename_at(fd, old_path, new_fd, new_path).await?;
        // Two names of one file: renaming one onto the other removes nothing.
        if let Some(target) = target.filter(|target| source.is_none_or(|source| source.id != target.id)) {
            budget.give_back(target.freed_bytes);
            budget.name_removed();
        }
        Ok(())
    }

    async fn link_at(
        &mut self,
        fd: Resource<Descriptor>,
        old_path_flags: PathFlags,
        old_path: String,
        new_fd: Resource<Descriptor>,
        new_path: String,
    ) -> FsResult<()> {
        let budget = self.same_budget(&fd, &new_fd)?;
        if self.may_make(&new_fd) {
            budget.name_made()?;
        }
        self.view.link_at(fd, old_path_flags, old_path, new_fd, new_path).await
    }

    /// Landlock refuses it too: a link that leads outside would wait there for another reader.
    async fn symlink_at(&mut self, _fd: Resource<Descriptor>, _old: String, _new: String) -> FsResult<()> {
        Err(ErrorCode::NotPermitted.into())
    }

    async fn advise(
        &mut self,
        fd: Resource<Descriptor>,
        offset: Filesize,
        len: Filesize,
        advice: Advice,
    ) -> FsResult<()> {
        self.view.advise(fd, offset, len, advice).await
    }

    async fn sync_data(&mut self, fd: Resource<Descriptor>) -> FsResult<()> {
        self.view.sync_data(fd).await
    }

    async fn sync(&mut self, fd: Resource<Descriptor>) -> FsResult<()> {
        self.view.sync(fd).await
    }

    async fn get_flags(&mut self, fd: Resource<Descriptor>) -> FsResult<DescriptorFlags> {
        self.view.get_flags(fd).await
    }

    async fn get_type(&mut self, fd: Resource<Descriptor>) -> FsResult<DescriptorType> {
        self.view.get_type(fd).await
    }

    async fn set_times(
        &mut self,
        fd: Resource<Descriptor>,
        access: NewTimestamp,
        modification: NewTimestamp,
    ) -> FsResult<()> {
        self.view.set_times(fd, access, modification).await
    }

    async fn set_times_at(
        &mut self,
        fd: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        access: NewTimestamp,
        modification: NewTimestamp,
    ) -> FsResult<()> {
        if !path_flags.contains(PathFlags::SYMLINK_FOLLOW) || !self.may_make(&fd) {
            return self.view.set_times_at(fd, path_flags, path, access, modification).await;
        }
        // Wasmtime opens the path for it.
        let opened = self.open(&fd, path_flags, &path, OpenFlags::empty(), DescriptorFlags::READ)?;
        let set = self.view.set_times(Resource::new_borrow(opened.rep()), access, modification).await;
        self.view.table.delete(opened)?;
        set
    }

    async fn read(&mut self, fd: Resource<Descriptor>, len: Filesize, offset: Filesize) -> FsResult<(Vec<u8>, bool)> {
        self.view.read(fd, len, offset).await
    }

    fn read_via_stream(&mut self, fd: Resource<Descriptor>, offset: Filesize) -> FsResult<Resource<DynInputStream>> {
        self.view.read_via_stream(fd, offset)
    }

    async fn read_directory(&mut self, fd: Resource<Descriptor>) -> FsResult<Resource<ReaddirIterator>> {
        self.view.read_directory(fd).await
    }

    async fn stat(&mut self, fd: Resource<Descriptor>) -> FsResult<DescriptorStat> {
        self.view.stat(fd).await
    }

    async fn stat_at(
        &mut self,
        fd: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
    ) -> FsResult<DescriptorStat> {
        self.view.stat_at(fd, path_flags, path).await
    }

    async fn readlink_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<String> {
        self.view.readlink_at(fd, path).await
    }

    async fn is_same_object(&mut self, a: Resource<Descriptor>, b: Resource<Descriptor>) -> wasmtime::Result<bool> {
        self.view.is_same_object(a, b).await
    }

    async fn metadata_hash(&mut self, fd: Resource<Descriptor>) -> FsResult<MetadataHashValue> {
        self.view.metadata_hash(fd).await
    }

    async fn metadata_hash_at(
        &mut self,
        fd: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
    ) -> FsResult<MetadataHashValue> {
        self.view.metadata_hash_at(fd, path_flags, path).await
    }
}

impl HostDirectoryEntryStream for CountedFiles<'_> {
    async fn read_directory_entry(&mut self, stream: Resource<ReaddirIterator>) -> FsResult<Option<DirectoryEntry>> {
        self.view.read_directory_entry(stream).await
    }

    fn drop(&mut self, stream: Resource<ReaddirIterator>) -> wasmtime::Result<()> {
        HostDirectoryEntryStream::drop(&mut self.view, stream)
    }
}
