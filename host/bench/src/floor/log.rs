//! The least log: a file of written zeros, one write and one fdatasync per commit, a checksum-sized header per record.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::Outcome;

/// Written ahead, so that no commit changes the file's length or its blocks.
const SEGMENT_BYTES: u64 = 64 << 20;

pub(crate) struct Log {
    file: File,
    path: PathBuf,
    end: u64,
    pending: Vec<u8>,
    pub(crate) syncs: u64,
}

impl Log {
    pub(crate) fn create(folder: &Path) -> Outcome<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join("floor.log");
        let file = File::options().create(true).truncate(true).write(true).open(&path)?;
        let zeros = vec![0; 1 << 20];
        for at in (0..SEGMENT_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, at)?;
        }
        file.sync_all()?;
        Ok(Self { file, path, end: 0, pending: Vec::new(), syncs: 0 })
    }

    pub(crate) fn append(&mut self, record: &[u8]) {
        self.pending.extend_from_slice(&(record.len() as u64).to_le_bytes());
        self.pending.extend_from_slice(record);
    }

    /// Everything appended is on the disk when this returns. The end of the file goes on at its start, as a preallocated
    /// next segment would.
    pub(crate) fn commit(&mut self) -> Outcome<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if self.end + self.pending.len() as u64 > SEGMENT_BYTES {
            self.end = 0;
        }
        self.file.write_all_at(&self.pending, self.end)?;
        self.file.sync_data()?;
        self.syncs += 1;
        self.end += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
