//! The `.idx` of a results segment: where each run and each key stands, to be searched on the disk.
//!
//! A line of JSON with its own checksum ([`Header`]); a Bloom filter of the keys' hashes; the digests of blobs that
//! results name, 32 bytes each; pages of runs, pages of keys. A page is 4,096 bytes: entries in ascending order, zeroes,
//! and in the last four bytes the CRC-32C of the others, little-endian. An entry of a run: its id (16 bytes), its offset
//! (4); of a key: its hash (8), its offset (4); big-endian. The file is derived: it is believed only when its header
//! agrees with the segment and a page with its own sum; otherwise it is made again from the segment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use memchr::memmem;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tm_core::{
    id::{Digest, RunId},
    json::Payload,
    queue::results::key_hash,
    record::codec::MARK,
    time::Millis,
};

use super::{
    super::{
        disk::{Disk, How},
        log::LogError,
        sealed::{seal, unseal},
        segment::Lines,
    },
    parse,
    record::{Record, ResultLine},
};

pub(super) const PAGE_BYTES: usize = 4096;
const SUM_BYTES: usize = 4;
const RUN_BYTES: usize = 20;
const KEY_BYTES: usize = 12;
const RUNS_PER_PAGE: usize = (PAGE_BYTES - SUM_BYTES) / RUN_BYTES;
const KEYS_PER_PAGE: usize = (PAGE_BYTES - SUM_BYTES) / KEY_BYTES;
const HEADER_MAX_BYTES: usize = 4096;
pub(super) const FORMAT: u32 = 1;
/// Places in one damaged line that are tried as the beginning of a record.
const PLACES_MAX: usize = 64;
/// Bits of the filter for each key, and how many of them a key sets: one in a hundred foreign keys passes.
const FILTER_BITS_PER_KEY: usize = 10;
const FILTER_PROBES: u64 = 7;

/// What a results segment holds, gathered while it is written or read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    pub(super) runs: BTreeMap<RunId, u32>,
    pub(super) keys: BTreeSet<(u64, u32)>,
    pub(super) blobs: BTreeSet<Digest>,
    pub(super) expires_last: Millis,
    /// Of records that have more than a key.
    pub(super) full_bytes: u64,
    /// Where the last record ends.
    pub(super) covered_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    format: u32,
    segment: u64,
    pub(super) covered_bytes: u64,
    pub(super) runs: u64,
    pub(super) keys: u64,
    blobs: u64,
    pub(super) first: RunId,
    pub(super) last: RunId,
    /// When the last of its results expires.
    pub(super) expires_last: Millis,
    /// Of records that have more than a key.
    pub(super) full_bytes: u64,
    /// The hash of nothing: tells whether the keys were hashed with this queue's secret.
    secret_check: u64,
    filter_words: u64,
    /// CRC-32C of the filter and of the blobs.
    filter_crc32c: u32,
    blobs_crc32c: u32,
}

/// The `.idx` as lookups use it.
#[derive(Clone, Debug)]
pub(super) struct Index {
    pub(super) header: Header,
    filter: Vec<u64>,
    header_bytes: u64,
    /// The whole file, while it may not be on the disk yet.
    whole: Option<Arc<[u8]>>,
}

/// A page or a header that is not what was written.
#[derive(Debug)]
pub(super) struct BadIndex;

impl Header {
    /// Of all that stands behind it.
    fn tables_bytes(&self) -> Option<u64> {
        let pages = |entries: u64, per_page: usize| entries.div_ceil(per_page as u64).checked_mul(PAGE_BYTES as u64);
        let (filter, blobs) = (self.filter_words.checked_mul(8)?, self.blobs.checked_mul(32)?);
        let (runs, keys) = (pages(self.runs, RUNS_PER_PAGE)?, pages(self.keys, KEYS_PER_PAGE)?);
        filter.checked_add(blobs)?.checked_add(runs)?.checked_add(keys)
    }
}

impl Entries {
    pub(super) fn note(&mut self, line: &ResultLine<'_>, hash: Option<u64>, offset: u32, end: u64) {
        self.runs.insert(line.run.id, offset);
        self.keys.extend(hash.map(|hash| (hash, offset)));
        self.blobs.extend(line.run.output.as_ref().and_then(Payload::blob));
        self.expires_last = self.expires_last.max(line.run.expires_at);
        if line.run.output.is_some() || !line.run.tasks.is_empty() {
            self.full_bytes += end - u64::from(offset);
        }
        self.covered_bytes = end;
    }

    /// Gathers a segment's records; calls `bad` with the place and length of every line that is not one.
    ///
    /// # Errors
    /// When it cannot be read, or holds a record of a newer program.
    pub(super) fn scan<D: Disk>(
        disk: &D,
        path: &str,
        secret: &[u8; 16],
        bad: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LogError> {
        Self::scan_from(0, disk, path, secret, bad)
    }

    /// As [`Entries::scan`], of what stands from `from` on.
    pub(super) fn scan_from<D: Disk>(
        from: u64,
        disk: &D,
        path: &str,
        secret: &[u8; 16],
        bad: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LogError> {
        let mut entries = Self::default();
        let mut lines = Lines::open_at(disk, path, from)?;
        while let Some(line) = lines.next()? {
            let (offset, end) = (line.offset, line.offset + line.bytes.len() as u64 + 1);
            let found = match parse(disk, path, offset, line.bytes)? {
                Some(record) => Some((0, record)),
                // A damaged newline makes one line of two: the second one is whole.
                None => memmem::find_iter(line.bytes, MARK).take(PLACES_MAX).find_map(|place| {
                    Some((place as u64, Record::parse(&[&line.bytes[place..], b"\n"].concat()).ok()?))
                }),
            };
            let (bad_bytes, record) =
                found.map_or((line.bytes.len() as u64, None), |(place, record)| (place, Some(record)));
            if bad_bytes > 0 {
                bad(offset, bad_bytes);
            }
            if let (Some(record), Ok(place)) = (record, u32::try_from(offset + bad_bytes)) {
                let line = record.line();
                entries.note(&line, line.key_hash(secret), place, end);
            }
        }
        Ok(entries)
    }

    /// The file's bytes, and what lookups need of them.
    pub(super) fn index(&self, segment: u64, secret: &[u8; 16]) -> Index {
        let filter = filter_of(&self.keys);
        let filter_bytes: Vec<u8> = filter.iter().flat_map(|word| word.to_be_bytes()).collect();
        let blobs: Vec<u8> = self.blobs.iter().flat_map(|digest| digest.0).collect();
        let header = Header {
            format: FORMAT,
            segment,
            covered_bytes: self.covered_bytes,
            runs: self.runs.len() as u64,
            keys: self.keys.len() as u64,
            blobs: self.blobs.len() as u64,
            first: self.runs.first_key_value().map_or(RunId(u128::MAX), |(run, _)| *run),
            last: self.runs.last_key_value().map_or(RunId(0), |(run, _)| *run),
            expires_last: self.expires_last,
            full_bytes: self.full_bytes,
            secret_check: key_hash(secret, "", "", ""),
            filter_words: filter.len() as u64,
            filter_crc32c: crc32c::crc32c(&filter_bytes),
            blobs_crc32c: crc32c::crc32c(&blobs),
        };
        let mut whole = seal(&header);
        let header_bytes = whole.len() as u64;
        whole.extend(filter_bytes);
        whole.extend(blobs);
        let runs = self.runs.iter().map(|(run, offset)| [&run.0.to_be_bytes()[..], &offset.to_be_bytes()].concat());
        pages(&mut whole, runs, RUNS_PER_PAGE);
        let keys = self.keys.iter().map(|(hash, offset)| [&hash.to_be_bytes()[..], &offset.to_be_bytes()].concat());
        pages(&mut whole, keys, KEYS_PER_PAGE);
        Index { header, filter, header_bytes, whole: Some(whole.into()) }
    }
}

fn pages(out: &mut Vec<u8>, entries: impl Iterator<Item = Vec<u8>>, per_page: usize) {
    let mut entries = entries.peekable();
    while entries.peek().is_some() {
        let start = out.len();
        entries.by_ref().take(per_page).for_each(|entry| out.extend(entry));
        out.resize(start + PAGE_BYTES - SUM_BYTES, 0);
        let sum = crc32c::crc32c(&out[start..]);
        out.extend(sum.to_le_bytes());
    }
}

fn filter_of(keys: &BTreeSet<(u64, u32)>) -> Vec<u64> {
    let mut filter = vec![0u64; (keys.len() * FILTER_BITS_PER_KEY).div_ceil(64)];
    let bits = filter.len() as u64 * 64;
    for (hash, _) in keys {
        for bit in probes(*hash, bits) {
            filter[(bit / 64) as usize] |= 1 << (bit % 64);
        }
    }
    filter
}

/// Double hashing: the two halves of the hash are two hashes.
fn probes(hash: u64, bits: u64) -> impl Iterator<Item = u64> {
    let (left, right) = (hash & 0xFFFF_FFFF, (hash >> 32) | 1);
    (0..FILTER_PROBES).map(move |probe| left.wrapping_add(probe.wrapping_mul(right)) % bits)
}

/// The format that an index says it has, when its header is whole.
pub(super) fn format<D: Disk>(disk: &D, path: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Format {
        format: u64,
    }
    let file = disk.open(path, How::Read).ok()?;
    Some(header::<D, Format>(disk, &file).ok()?.0.format)
}

/// How long its segment was when an index was written, when its header is whole.
pub(super) fn covered_bytes<D: Disk>(disk: &D, path: &str, segment: u64) -> Option<u64> {
    let file = disk.open(path, How::Read).ok()?;
    let (header, _): (Header, u64) = header::<D, _>(disk, &file).ok()?;
    (header.format == FORMAT && header.segment == segment).then_some(header.covered_bytes)
}

/// The line that an index begins with, and how long it is.
fn header<D: Disk, T: DeserializeOwned>(disk: &D, file: &D::File) -> Result<(T, u64), BadIndex> {
    let mut head = vec![0; HEADER_MAX_BYTES];
    let got = disk.read_at(file, 0, &mut head).map_err(|_| BadIndex)?;
    let end = memchr::memchr(b'\n', &head[..got]).ok_or(BadIndex)? + 1;
    Ok((unseal(&head[..end]).ok_or(BadIndex)?, end as u64))
}

impl Index {
    /// Reads header and filter, and asks for the length; nothing else is read before it is asked for.
    pub(super) fn load<D: Disk>(
        disk: &D,
        path: &str,
        segment: u64,
        bytes: u64,
        secret: &[u8; 16],
    ) -> Result<Self, BadIndex> {
        let file = disk.open(path, How::Read).map_err(|_| BadIndex)?;
        let (header, header_bytes): (Header, u64) = header(disk, &file)?;
        let agrees = header.format == FORMAT
            && header.segment == segment
            && header.covered_bytes == bytes
            && header.secret_check == key_hash(secret, "", "", "");
        let tables_bytes = header.tables_bytes().ok_or(BadIndex)?;
        if !agrees || disk.size(&file).ok() != header_bytes.checked_add(tables_bytes) {
            return Err(BadIndex);
        }
        let filter = read(disk, &file, header_bytes, usize::try_from(header.filter_words * 8).map_err(|_| BadIndex)?)?;
        if crc32c::crc32c(&filter) != header.filter_crc32c {
            return Err(BadIndex);
        }
        let filter =
            filter.chunks_exact(8).filter_map(|word| Some(u64::from_be_bytes(word.try_into().ok()?))).collect();
        Ok(Self { header, filter, header_bytes, whole: None })
    }

    pub(super) fn whole(&self) -> Option<&Arc<[u8]>> {
        self.whole.as_ref()
    }

    /// From now on the file on the disk is read.
    pub(super) fn let_go(&mut self) {
        self.whole = None;
    }

    fn blobs_at(&self) -> u64 {
        self.header_bytes + self.header.filter_words * 8
    }

    fn run_pages_at(&self) -> u64 {
        self.blobs_at() + self.header.blobs * 32
    }

    fn key_pages_at(&self) -> u64 {
        self.run_pages_at() + self.header.runs.div_ceil(RUNS_PER_PAGE as u64) * PAGE_BYTES as u64
    }

    /// Whether a key of this hash may be here.
    pub(super) fn may_hold(&self, hash: u64) -> bool {
        let bits = self.filter.len() as u64 * 64;
        bits > 0 && probes(hash, bits).all(|bit| self.filter[(bit / 64) as usize] & 1 << (bit % 64) != 0)
    }
}

fn read<D: Disk>(disk: &D, file: &D::File, offset: u64, bytes: usize) -> Result<Vec<u8>, BadIndex> {
    let mut buffer = vec![0; bytes];
    let got = disk.read_at(file, offset, &mut buffer).map_err(|_| BadIndex)?;
    if got == bytes { Ok(buffer) } else { Err(BadIndex) }
}

/// The pages of one index, read as they are needed; the last one stays.
pub(super) struct Pages<'i, D: Disk> {
    index: &'i Index,
    disk: &'i D,
    file: Option<D::File>,
    held: Option<(u64, Vec<u8>)>,
}

impl<'i, D: Disk> Pages<'i, D> {
    pub(super) fn open(index: &'i Index, disk: &'i D, path: &str) -> Result<Self, BadIndex> {
        let file = match &index.whole {
            Some(_) => None,
            None => Some(disk.open(path, How::Read).map_err(|_| BadIndex)?),
        };
        Ok(Self { index, disk, file, held: None })
    }

    fn bytes(&self, offset: u64, bytes: usize) -> Result<Vec<u8>, BadIndex> {
        match (&self.file, &self.index.whole) {
            (Some(file), _) => read(self.disk, file, offset, bytes),
            (None, Some(whole)) => {
                let start = usize::try_from(offset).map_err(|_| BadIndex)?;
                whole.get(start..start + bytes).map(<[u8]>::to_vec).ok_or(BadIndex)
            }
            (None, None) => Err(BadIndex),
        }
    }

    /// The entry at `place` of the table that begins at `table`.
    fn entry<const N: usize>(&mut self, table: u64, per_page: usize, place: u64) -> Result<[u8; N], BadIndex> {
        let offset = table + place / per_page as u64 * PAGE_BYTES as u64;
        if self.held.as_ref().is_none_or(|(at, _)| *at != offset) {
            let page = self.bytes(offset, PAGE_BYTES)?;
            let (entries, sum) = page.split_at(PAGE_BYTES - SUM_BYTES);
            if crc32c::crc32c(entries).to_le_bytes() != sum {
                return Err(BadIndex);
            }
            self.held = Some((offset, page));
        }
        let (_, page) = self.held.as_ref().ok_or(BadIndex)?;
        let start = (place % per_page as u64) as usize * N;
        page.get(start..start + N).and_then(|entry| entry.try_into().ok()).ok_or(BadIndex)
    }

    /// The run at `place`, and its offset.
    pub(super) fn run(&mut self, place: u64) -> Result<(RunId, u32), BadIndex> {
        let entry: [u8; RUN_BYTES] = self.entry(self.index.run_pages_at(), RUNS_PER_PAGE, place)?;
        let (run, offset) = entry.split_at(16);
        let run = u128::from_be_bytes(run.try_into().map_err(|_| BadIndex)?);
        Ok((RunId(run), u32::from_be_bytes(offset.try_into().map_err(|_| BadIndex)?)))
    }

    fn key(&mut self, place: u64) -> Result<(u64, u32), BadIndex> {
        let entry: [u8; KEY_BYTES] = self.entry(self.index.key_pages_at(), KEYS_PER_PAGE, place)?;
        let (hash, offset) = entry.split_at(8);
        let hash = u64::from_be_bytes(hash.try_into().map_err(|_| BadIndex)?);
        Ok((hash, u32::from_be_bytes(offset.try_into().map_err(|_| BadIndex)?)))
    }

    /// How many runs are not above `run`.
    pub(super) fn runs_up_to(&mut self, run: RunId) -> Result<u64, BadIndex> {
        partition(self.index.header.runs, |place| Ok(self.run(place)?.0 <= run))
    }

    /// The offset of a run's record.
    pub(super) fn offset_of(&mut self, run: RunId) -> Result<Option<u32>, BadIndex> {
        let Some(place) = self.runs_up_to(run)?.checked_sub(1) else { return Ok(None) };
        let (found, offset) = self.run(place)?;
        Ok((found == run).then_some(offset))
    }

    /// The offsets of records whose keys have this hash, newest first.
    pub(super) fn offsets_of_key(&mut self, hash: u64) -> Result<Vec<u32>, BadIndex> {
        let keys = self.index.header.keys;
        let mut place = partition(keys, |place| Ok(self.key(place)?.0 < hash))?;
        let mut offsets = Vec::new();
        while place < keys {
            let (found, offset) = self.key(place)?;
            if found != hash {
                break;
            }
            offsets.push(offset);
            place += 1;
        }
        offsets.reverse();
        Ok(offsets)
    }

    /// Reads all of it.
    pub(super) fn check(&mut self) -> Result<(), BadIndex> {
        self.blobs()?;
        (0..self.index.header.runs).step_by(RUNS_PER_PAGE).try_for_each(|place| self.run(place).map(drop))?;
        (0..self.index.header.keys).step_by(KEYS_PER_PAGE).try_for_each(|place| self.key(place).map(drop))
    }

    /// The digests of blobs that its results name.
    pub(super) fn blobs(&self) -> Result<Vec<Digest>, BadIndex> {
        let count = usize::try_from(self.index.header.blobs).map_err(|_| BadIndex)?;
        let bytes = self.bytes(self.index.blobs_at(), count * 32)?;
        if crc32c::crc32c(&bytes) != self.index.header.blobs_crc32c {
            return Err(BadIndex);
        }
        Ok(bytes.chunks_exact(32).filter_map(|digest| Some(Digest(digest.try_into().ok()?))).collect())
    }
}

/// The first place of `0..count` of which `before` does not hold.
fn partition(count: u64, mut before: impl FnMut(u64) -> Result<bool, BadIndex>) -> Result<u64, BadIndex> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle)? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}
