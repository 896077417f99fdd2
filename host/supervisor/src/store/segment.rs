//! One segment file: its name, its lines, and the `.idx` beside it.
//!
//! A segment is lines of frames ([`tm_core::record::codec`]); newlines between and after them are room that was
//! reserved ahead, and mean nothing. The `.idx` is derived, never the truth: it is believed only when it agrees.

use memchr::memmem;
use serde::{Deserialize, Serialize};
use tm_core::record::codec::{FORMAT, MARK, SEGMENTS_END};

use super::{
    disk::{Disk, DiskError, How, Later, read_whole},
    sealed::{seal, unseal},
};

/// A line longer than this is damage.
pub const LINE_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Room is written in steps of at most this. Each step is a sync of its own: on a busy two-core machine 256 KiB was a
/// fifth slower than this at 256 frames a commit, without a shorter tail that could be measured.
pub(super) const ROOM_STEP_BYTES: u64 = 1024 * 1024;
const CHUNK_BYTES: usize = 1024 * 1024;
/// The first read of a segment: often only its first record is wanted.
const FIRST_CHUNK_BYTES: usize = 64 * 1024;
const INDEX_MAX_BYTES: u64 = 1024 * 1024 * 1024;

#[must_use]
pub fn path(no: u64) -> String {
    format!("queue/segment-{no:06}.log")
}

#[must_use]
pub fn index_path(no: u64) -> String {
    format!("queue/segment-{no:06}.idx")
}

/// The number in a segment's file name; none for every other name.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    number_after("segment-", name)
}

/// The number in a `.log` file's name that begins like this, as it is written.
fn number_after(prefix: &str, name: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(".log")?;
    let no = digits.parse().ok()?;
    (format!("{no:06}") == digits && no < SEGMENTS_END).then_some(no)
}

/// The segments in the queue folder, oldest first, with their file sizes.
pub(super) fn list<D: Disk>(disk: &D) -> Result<Vec<(u64, u64)>, DiskError> {
    list_after(disk, "segment-")
}

/// The `.log` files in the queue folder whose names begin like this, by number, with their sizes.
pub(super) fn list_after<D: Disk>(disk: &D, prefix: &str) -> Result<Vec<(u64, u64)>, DiskError> {
    let entries = disk.list("queue")?.into_iter();
    let mut found: Vec<_> =
        entries.filter_map(|entry| Some((number_after(prefix, &entry.name)?, entry.size_bytes))).collect();
    found.sort_unstable();
    Ok(found)
}

/// Reads a segment line by line with bounded memory.
pub(super) struct Lines<'d, D: Disk> {
    disk: &'d D,
    file: D::File,
    buffer: Vec<u8>,
    /// Where the unread part of the buffer begins.
    start: usize,
    /// No newline stands before this place of the buffer.
    searched: usize,
    /// Of `start` in the file.
    offset: u64,
    /// Of the file when it was opened; nothing beyond is read.
    size: u64,
    ended: bool,
    crc: u32,
}

pub(super) struct Line<'l> {
    pub(super) offset: u64,
    /// Without the newline.
    pub(super) bytes: &'l [u8],
    pub(super) end: LineEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineEnd {
    Newline,
    /// The file ends here.
    File,
    /// Too long for a frame; cut before the next place where one could begin.
    TooLong,
}

impl<'d, D: Disk> Lines<'d, D> {
    pub(super) fn open(disk: &'d D, path: &str) -> Result<Self, DiskError> {
        Self::open_at(disk, path, 0)
    }

    /// Begins at a place where a line does.
    pub(super) fn open_at(disk: &'d D, path: &str, offset: u64) -> Result<Self, DiskError> {
        let file = disk.open(path, How::Read)?;
        let size = disk.size(&file)?;
        Ok(Self { disk, file, buffer: Vec::new(), start: 0, searched: 0, offset, size, ended: false, crc: 0 })
    }

    /// CRC-32C of the file up to the end of the last line.
    pub(super) const fn crc(&self) -> u32 {
        self.crc
    }

    /// The next line that is not empty.
    pub(super) fn next(&mut self) -> Result<Option<Line<'_>>, DiskError> {
        loop {
            let padding = self.buffer[self.start..].iter().take_while(|&&byte| byte == b'\n').count();
            self.consume(padding);
            if self.start < self.buffer.len() || self.ended {
                break;
            }
            self.fill()?;
        }
        let (bytes, end) = loop {
            let from = self.searched.max(self.start);
            if let Some(place) = memchr::memchr(b'\n', &self.buffer[from..]) {
                break (from + place - self.start, LineEnd::Newline);
            }
            self.searched = self.buffer.len();
            let held = self.buffer.len() - self.start;
            if held > LINE_MAX_BYTES {
                let next = memmem::find(&self.buffer[self.start + 1..], MARK);
                break (next.map_or(held - MARK.len(), |place| place + 1), LineEnd::TooLong);
            }
            if self.ended {
                if held == 0 {
                    return Ok(None);
                }
                break (held, LineEnd::File);
            }
            self.fill()?;
        };
        let (offset, start) = (self.offset, self.start);
        self.consume(bytes + usize::from(end == LineEnd::Newline));
        Ok(Some(Line { offset, bytes: &self.buffer[start..start + bytes], end }))
    }

    fn consume(&mut self, bytes: usize) {
        self.crc = crc32c::crc32c_append(self.crc, &self.buffer[self.start..self.start + bytes]);
        self.start += bytes;
        self.offset += bytes as u64;
    }

    fn fill(&mut self) -> Result<(), DiskError> {
        self.buffer.drain(..self.start);
        self.searched = self.searched.saturating_sub(self.start);
        self.start = 0;
        let held = self.buffer.len();
        let from = self.offset + held as u64;
        let chunk = if from == 0 { FIRST_CHUNK_BYTES } else { CHUNK_BYTES };
        let left = usize::try_from(self.size.saturating_sub(from)).map_or(chunk, |left| left.min(chunk));
        self.buffer.resize(held + left, 0);
        let got = self.disk.read_at(&self.file, from, &mut self.buffer[held..])?;
        self.buffer.truncate(held + got);
        self.ended = got < left || from + got as u64 >= self.size;
        Ok(())
    }
}

/// What a segment holds, gathered while it is written or read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Where its last record ends.
    pub(super) covered_bytes: u64,
    pub(super) crc: u32,
    pub(super) first: Option<u64>,
    pub(super) last: Option<u64>,
    pub(super) offsets: Vec<u64>,
}

impl Contents {
    /// Notes a record at `offset`.
    pub(super) fn record(&mut self, sequence: u64, offset: u64) {
        self.first.get_or_insert(sequence);
        self.last = Some(sequence);
        self.offsets.push(offset);
    }

    /// The sidecar's bytes: one line of JSON with its own checksum first, as a frame has it.
    pub(super) fn index(&self, no: u64) -> Vec<u8> {
        let mut before = 0;
        let steps = self.offsets.iter().map(|&offset| offset - std::mem::replace(&mut before, offset)).collect();
        let index = Index {
            format: FORMAT,
            segment: no,
            covered_bytes: self.covered_bytes,
            crc32c: self.crc,
            first: self.first,
            last: self.last,
            records: self.offsets.len() as u64,
            offset_steps: steps,
        };
        seal(&index)
    }

    /// Writes the sidecar in the background.
    pub(super) fn write_index<D: Disk>(&self, disk: &D, no: u64) {
        disk.later(Later::Derive { path: index_path(no), bytes: self.index(no) });
    }
}

/// The `.idx` file. Offsets stand as differences, the first from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) format: u32,
    pub(super) segment: u64,
    pub(super) covered_bytes: u64,
    /// Of the segment's bytes up to `covered_bytes`.
    pub(super) crc32c: u32,
    pub(super) first: Option<u64>,
    pub(super) last: Option<u64>,
    pub(super) records: u64,
    pub(super) offset_steps: Vec<u64>,
}

impl Index {
    /// The sidecar of a segment when it is whole, by its own checksum.
    pub(super) fn load<D: Disk>(disk: &D, no: u64) -> Option<Self> {
        let bytes = read_whole(disk, &index_path(no), INDEX_MAX_BYTES).ok()?;
        let index: Self = unseal(&bytes)?;
        (index.segment == no && index.format == FORMAT).then_some(index)
    }

    /// Whether there is a sidecar that is not whole. One that is merely behind its segment is.
    pub(super) fn is_damaged<D: Disk>(disk: &D, no: u64) -> bool {
        read_whole(disk, &index_path(no), INDEX_MAX_BYTES).is_ok() && Self::load(disk, no).is_none()
    }

    pub(super) fn agrees(&self, contents: &Contents) -> bool {
        (self.covered_bytes, self.crc32c, self.first, self.last, self.records)
            == (contents.covered_bytes, contents.crc, contents.first, contents.last, contents.offsets.len() as u64)
    }
}
