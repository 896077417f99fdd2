//! The bytes of a simulated file: data, then newlines that are only counted (the log reserves many). Copied on write.

use std::sync::Arc;

#[derive(Clone, Default)]
pub(crate) struct Content {
    data: Arc<Vec<u8>>,
    newlines: u64,
}

fn place(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        self.data.len() as u64 + self.newlines
    }

    /// What is more than reserved room.
    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let whole = place(self.len().saturating_sub(offset)).min(into.len());
        let data = self.data.get(place(offset)..).unwrap_or_default();
        let from_data = data.len().min(whole);
        into[..from_data].copy_from_slice(&data[..from_data]);
        into[from_data..whole].fill(b'\n');
        whole
    }

    pub(crate) fn fill(&mut self, offset: u64, len: u64) {
        let (data_len, end) = (self.data.len() as u64, offset + len);
        if offset < data_len {
            let until = place(end.min(data_len));
            Arc::make_mut(&mut self.data)[place(offset)..until].fill(b'\n');
        }
        self.newlines = self.newlines.max(end.saturating_sub(data_len));
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let before = self.len();
        let (from, to) = (place(offset), place(offset) + bytes.len());
        let data = Arc::make_mut(&mut self.data);
        if data.len() < to {
            let newlines = from.min(place(before));
            data.resize(newlines.max(data.len()), b'\n');
            // A hole, when earlier bytes never reached the disk.
            data.resize(to.max(data.len()), 0);
        }
        data[from..to].copy_from_slice(bytes);
        self.newlines = before.max(self.data.len() as u64) - self.data.len() as u64;
    }

    pub(crate) fn cut(&mut self, bytes: u64) {
        let data_len = self.data.len() as u64;
        if bytes <= data_len {
            Arc::make_mut(&mut self.data).truncate(place(bytes));
            self.newlines = 0;
        } else {
            self.newlines = bytes - data_len;
        }
    }
}
