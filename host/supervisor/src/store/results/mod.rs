//! Results segments: runs that ended, in files of their own, found by offset and not loaded at a start.
//!
//! `queue/results-000001.log` holds one line per run ([`record`]), in the order in which they left memory; the `.idx`
//! beside it says where ([`index`]). A run is written here while the log still tells of it. Once the files are synced,
//! `ResultsKept` in the log says so, and compaction need not copy what ended before. Files are never rewritten: one goes
//! as a whole when all of it has expired, or when all of them are larger than `results_max_mb`, the oldest first; keys
//! that still hold are then written once more, without their results.

mod index;
mod lookup;
mod record;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    cmp::Ordering,
    collections::BTreeMap,
};

use tm_core::{
    id::RunId,
    queue::{results::ResultsMark, run::FinishedRun},
    time::Millis,
};

pub use record::ResultLine;

use self::{
    index::{Entries, Index},
    record::{BadRecord, Record},
};
use super::{
    disk::{Beside, Disk, DiskError, How, Later, sync_all},
    log::LogError,
    segment::{self, Lines},
};

/// Of a segment, at most; smaller when `results_max_mb` is.
const SEGMENT_MAX_BYTES: u64 = 16 * 1024 * 1024;
const SEGMENT_MIN_BYTES: u64 = 4 * 1024;
/// Segments of which all results together may have the size of the bound, at least.
const SEGMENTS_MIN: u64 = 8;
/// Closed segments whose indexes stay in memory, until they are surely on the disk.
const WHOLE_INDEXES: usize = 2;
/// Segments without their files, or that end too early, that are named at once: a repair names the next ones.
const MISSING_MAX: usize = 4096;
/// What the runs that a turn keeps take as lines, mostly.
const LINES_BYTES: usize = 256 * 1024;
/// Bytes that wait for a sync before one is begun beside the loop. Few, because commits of the log wait behind them on
/// the disk.
const UNSYNCED_BYTES: u64 = 1024 * 1024;

#[must_use]
pub fn path(no: u64) -> String {
    format!("queue/results-{no:06}.log")
}

#[must_use]
pub fn index_path(no: u64) -> String {
    format!("queue/results-{no:06}.idx")
}

/// The results segments in the queue folder, oldest first, with their sizes.
pub(super) fn list<D: Disk>(disk: &D) -> Result<Vec<(u64, u64)>, DiskError> {
    segment::list_after(disk, "results-")
}

/// Refuses the results of a newer program by what their files begin with; a record in the middle of a segment refuses
/// them when it is read.
///
/// # Errors
/// [`LogError::Newer`], [`LogError::Unknown`], and when they cannot be read.
pub(super) fn refuse_newer<D: Disk>(disk: &D) -> Result<(), LogError> {
    for (no, _) in list(disk)? {
        let known = index::FORMAT;
        if let Some(format) = index::format(disk, &index_path(no)).filter(|format| *format > known.into()) {
            return Err(LogError::Newer { file: disk.shown(&index_path(no)), format, known });
        }
        if let Some(line) = Lines::open(disk, &path(no))?.next()? {
            parse(disk, &path(no), line.offset, line.bytes)?;
        }
    }
    Ok(())
}

/// The record of a line without its newline; none when the line is damaged.
fn parse<D: Disk>(disk: &D, path: &str, offset: u64, line: &[u8]) -> Result<Option<Record>, LogError> {
    match Record::parse(&[line, b"\n"].concat()) {
        Ok(record) => Ok(Some(record)),
        Err(BadRecord::Damaged) => Ok(None),
        Err(BadRecord::Unknown(why)) => Err(LogError::Unknown { file: disk.shown(path), offset, why }),
    }
}

/// A closed segment.
struct Closed {
    no: u64,
    bytes: u64,
    /// Made again from the segment when it turns out to be damaged.
    index: RefCell<Index>,
}

/// The segment that is written.
struct Open<D: Disk> {
    no: u64,
    file: D::File,
    entries: Entries,
}

/// The segment that is being forgotten, and how far.
#[derive(Clone, Copy)]
struct Leaving {
    no: u64,
    offset: u64,
    /// Its keys still hold: there were too many results.
    early: bool,
}

/// All results segments of a queue.
pub struct ResultStore<D: Disk> {
    disk: D,
    secret: [u8; 16],
    closed: Vec<Closed>,
    open: Option<Open<D>>,
    next_no: u64,
    /// The newest segment and how much of it there was, as the log tells it.
    kept: (u64, u64),
    segment_max_bytes: u64,
    max_bytes: u64,
    leaving: Option<Leaving>,
    /// Segments that were written to since they were synced.
    unsynced: Vec<u64>,
    unsynced_bytes: u64,
    /// A name in the folder is not durable yet.
    created: bool,
    beside: Option<Beside>,
    /// Where a walk over the runs is: the next lookup is for this one.
    hint: Cell<Option<(RunId, u64, u32)>>,
}

impl<D: Disk> ResultStore<D> {
    /// Opens the segments that `mark` does not call gone, to read them. An index that does not agree is made again in
    /// memory.
    ///
    /// # Errors
    /// When the queue folder or a segment without a good index cannot be read, or a segment is of a newer program
    /// ([`LogError::Newer`], [`LogError::Unknown`]).
    pub fn read(disk: D, secret: [u8; 16], mark: &ResultsMark) -> Result<Self, LogError> {
        refuse_newer(&disk)?;
        let mut closed = Vec::new();
        let mut next_no = mark.segment.max(mark.dropped.last().copied().unwrap_or(0)).max(mark.oldest.max(1) - 1) + 1;
        for (no, bytes) in list(&disk)? {
            next_no = next_no.max(no + 1);
            if mark.is_gone(no) {
                continue;
            }
            let index = match Index::load(&disk, &index_path(no), no, bytes, &secret) {
                Ok(index) => index,
                Err(_) => rebuilt(&disk, no, bytes, &secret)?,
            };
            closed.push(Closed { no, bytes, index: RefCell::new(index) });
        }
        Ok(Self {
            disk,
            secret,
            closed,
            open: None,
            next_no,
            kept: (mark.segment, mark.bytes),
            segment_max_bytes: SEGMENT_MAX_BYTES,
            max_bytes: u64::MAX,
            leaving: None,
            unsynced: Vec::new(),
            unsynced_bytes: 0,
            created: false,
            beside: None,
            hint: Cell::new(None),
        })
    }

    /// Opens them to write: what was left of forgotten segments goes, what a crash left unfinished is cut, indexes that were
    /// made again are written. All of them together are to hold no more than `max_bytes`.
    ///
    /// # Errors
    /// As [`ResultStore::read`].
    pub fn write(disk: D, secret: [u8; 16], mark: &ResultsMark, max_bytes: u64) -> Result<Self, LogError> {
        // Before anything of it goes.
        refuse_newer(&disk)?;
        for (no, _) in list(&disk)?.into_iter().filter(|(no, _)| mark.is_gone(*no)) {
            unlink(&disk, no);
        }
        for tail in unfinished(&disk, &secret, mark)? {
            // Before the log tells of more behind it, of which it would be damage.
            let file = disk.open(&path(tail.segment), How::Write)?;
            disk.truncate(&file, tail.offset)?;
            disk.sync(&file)?;
        }
        let mut store = Self::read(disk, secret, mark)?;
        store.max_bytes = max_bytes;
        store.segment_max_bytes = (max_bytes / SEGMENTS_MIN).clamp(SEGMENT_MIN_BYTES, SEGMENT_MAX_BYTES);
        store.write_indexes();
        Ok(store)
    }

    /// Writes the indexes that were made again. That of a segment which has lost its end stays: it alone tells of it,
    /// until a repair.
    pub(super) fn write_indexes(&self) {
        for closed in &self.closed {
            let path = index_path(closed.no);
            let had_bytes = match closed.no.cmp(&self.kept.0) {
                Ordering::Less => index::covered_bytes(&self.disk, &path, closed.no).unwrap_or(0),
                Ordering::Equal => self.kept.1,
                // Its end may never have been synced.
                Ordering::Greater => 0,
            };
            if let Some(whole) = closed.index.borrow().whole().filter(|_| had_bytes <= closed.bytes) {
                self.disk.later(Later::Derive { path, bytes: whole.to_vec() });
            }
        }
    }

    /// Segments whose indexes did not agree with them.
    pub(super) fn rebuilt(&self) -> impl Iterator<Item = u64> {
        self.closed.iter().filter(|closed| closed.index.borrow().whole().is_some()).map(|closed| closed.no)
    }

    /// Of all records that have more than a key.
    #[must_use]
    pub fn full_bytes(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |open| open.entries.full_bytes);
        open + self.closed.iter().map(|closed| closed.index.borrow().header.full_bytes).sum::<u64>()
    }

    /// The newest segment, and how much of it there is; never less than the log told, so that what is lost goes on
    /// being missed.
    #[must_use]
    pub fn mark(&self) -> (u64, u64) {
        let closed = self.closed.last().map_or((self.next_no - 1, 0), |closed| (closed.no, closed.bytes));
        self.open.as_ref().map_or(closed, |open| (open.no, open.entries.covered_bytes)).max(self.kept)
    }

    /// Writes runs that ended. They are found from now on, and durable after [`ResultStore::sync`].
    ///
    /// # Errors
    /// [`DiskError::Full`]: nothing of them is here. Any other: nothing is known of what was written; stop for good.
    pub fn append<'r>(&mut self, runs: impl Iterator<Item = ResultLine<'r>>) -> Result<(), LogError> {
        let (mut lines, mut ends) = (Vec::with_capacity(LINES_BYTES), Vec::new());
        for ended in runs {
            let start = lines.len();
            ended.write(&mut lines);
            ends.push((ended, start, lines.len()));
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.ensure_open()?;
        let Some(open) = &mut self.open else { return Ok(()) };
        let begin = open.entries.covered_bytes;
        if let Err(error) = self.disk.write_at(&open.file, begin, &lines) {
            // Bytes behind the last record would stand between it and the next one.
            self.disk.truncate(&open.file, begin)?;
            return Err(error.into());
        }
        for (ended, start, end) in ends {
            let offset = u32::try_from(begin + start as u64).unwrap_or(u32::MAX);
            open.entries.note(&ended, ended.key_hash(&self.secret), offset, begin + end as u64);
        }
        if self.unsynced.last() != Some(&open.no) {
            self.unsynced.push(open.no);
        }
        self.unsynced_bytes += lines.len() as u64;
        if open.entries.covered_bytes >= self.segment_max_bytes {
            self.close_open();
        }
        Ok(())
    }

    /// The newest segment goes on when it is not full; else one is made.
    fn ensure_open(&mut self) -> Result<(), LogError> {
        if self.open.is_some() {
            return Ok(());
        }
        let leaving = self.leaving.map(|leaving| leaving.no);
        let goes_on = |last: &&Closed| {
            let is_short = (last.no, last.bytes) < self.kept;
            last.bytes < self.segment_max_bytes / 2 && leaving != Some(last.no) && !is_short
        };
        if let Some(last) = self.closed.last().filter(goes_on) {
            let no = last.no;
            let entries = Entries::scan(&self.disk, &path(no), &self.secret, &mut |_, _| {})?;
            // Damage behind the last record stays where it is.
            if entries.covered_bytes == last.bytes {
                let file = self.disk.open(&path(no), How::Write)?;
                self.closed.pop();
                self.open = Some(Open { no, file, entries });
                return Ok(());
            }
        }
        let no = self.next_no;
        let file = self.disk.open(&path(no), How::CreateNew)?;
        (self.next_no, self.created) = (no + 1, true);
        self.open = Some(Open { no, file, entries: Entries::default() });
        Ok(())
    }

    fn close_open(&mut self) {
        let Some(open) = self.open.take() else { return };
        let index = open.entries.index(open.no, &self.secret);
        if let Some(whole) = index.whole() {
            self.disk.later(Later::Derive { path: index_path(open.no), bytes: whole.to_vec() });
        }
        let bytes = open.entries.covered_bytes;
        self.closed.push(Closed { no: open.no, bytes, index: RefCell::new(index) });
        let written = self.closed.len().saturating_sub(WHOLE_INDEXES);
        self.closed[..written].iter().for_each(|closed| closed.index.borrow_mut().let_go());
    }

    /// Begins to sync beside the caller what was written, when it is much or `now` is true. Tells whether a sync that was begun
    /// has not ended yet.
    ///
    /// # Errors
    /// When one failed: never try again, stop for good.
    pub fn sync_beside(&mut self, now: bool) -> Result<bool, DiskError> {
        if let Some(beside) = &mut self.beside {
            match beside.poll() {
                None => return Ok(true),
                Some(synced) => {
                    self.beside = None;
                    synced?;
                }
            }
        }
        if self.unsynced.is_empty() || (!now && self.unsynced_bytes < UNSYNCED_BYTES) {
            return Ok(false);
        }
        // The one that is written is named again with its next record.
        let files: Vec<_> = std::mem::take(&mut self.unsynced).into_iter().map(path).collect();
        self.unsynced_bytes = 0;
        self.beside = Some(self.disk.beside(Box::new(move |disk| sync_all(disk, &files))));
        Ok(true)
    }

    /// Makes everything durable that was written.
    ///
    /// # Errors
    /// Never try again: stop for good.
    pub fn sync(&mut self) -> Result<(), DiskError> {
        if let Some(beside) = self.beside.take() {
            beside.wait()?;
        }
        for no in self.unsynced.drain(..) {
            match &self.open {
                Some(open) if open.no == no => self.disk.sync(&open.file)?,
                _ => self.disk.sync(&self.disk.open(&path(no), How::Write)?)?,
            }
        }
        self.unsynced_bytes = 0;
        if std::mem::take(&mut self.created) {
            self.disk.sync_folder("queue")?;
        }
        Ok(())
    }

    /// The clean stop: the index of the open segment is written.
    ///
    /// # Errors
    /// As [`ResultStore::sync`].
    pub fn close(mut self) -> Result<(), DiskError> {
        self.sync()?;
        self.close_open();
        Ok(())
    }

    /// When the next segment expires.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        let open =
            self.open.as_ref().filter(|open| !open.entries.runs.is_empty()).map(|open| open.entries.expires_last);
        self.closed.iter().map(|closed| closed.index.borrow().header.expires_last).chain(open).min()
    }

    /// The segment that is to be forgotten next.
    fn due(&mut self, now: Millis) -> Option<Leaving> {
        let early = self.next_deadline().is_none_or(|at| at > now);
        if early && self.full_bytes() <= self.max_bytes {
            return None;
        }
        let find = |store: &Self| {
            let due = store.closed.iter().find(|closed| {
                let header = &closed.index.borrow().header;
                if early { header.full_bytes > 0 } else { header.expires_last <= now }
            });
            due.map(|closed| Leaving { no: closed.no, offset: 0, early })
        };
        find(self).or_else(|| {
            self.close_open();
            find(self)
        })
    }

    /// Forgets runs of a segment that has expired, or of the oldest one when there is too much; at most `most` at once.
    /// `gone` learns of each. Returns the number of a segment that has become unneeded: the caller logs that, then
    /// [`ResultStore::drop_segment`].
    ///
    /// # Errors
    /// Those of [`ResultStore::append`], and a record of a newer program: its segment stays.
    pub fn forget(
        &mut self,
        now: Millis,
        most: usize,
        gone: &mut dyn FnMut(&FinishedRun),
    ) -> Result<Option<u64>, LogError> {
        let Some(leaving) = self.leaving.or_else(|| self.due(now)) else { return Ok(None) };
        let (mut records, mut offset) = (Vec::new(), leaving.offset);
        let mut lines = Lines::open_at(&self.disk, &path(leaving.no), leaving.offset)?;
        while records.len() < most
            && let Some(line) = lines.next()?
        {
            offset = line.offset + line.bytes.len() as u64 + 1;
            records.extend(parse(&self.disk, &path(leaving.no), line.offset, line.bytes)?);
        }
        drop(lines);
        records.iter().for_each(|record| gone(&record.run));
        if leaving.early {
            records.retain(|record| record.run.key.is_some() && record.run.expires_at > now);
            for record in &mut records {
                (record.run.output, record.run.tasks) = (None, Vec::new());
            }
            self.append(records.iter().map(Record::line))?;
        }
        let through = offset == leaving.offset;
        self.leaving = Some(Leaving { offset, ..leaving });
        Ok(through.then_some(leaving.no))
    }

    /// Whether a segment is being forgotten.
    #[must_use]
    pub fn is_forgetting(&self) -> bool {
        self.leaving.is_some()
    }

    /// Removes a segment of which [`ResultStore::forget`] said that it is unneeded.
    pub fn drop_segment(&mut self, no: u64) {
        self.leaving = None;
        self.closed.retain(|closed| closed.no != no);
        self.unsynced.retain(|unsynced| *unsynced != no);
        unlink(&self.disk, no);
    }
}

fn unlink<D: Disk>(disk: &D, no: u64) {
    disk.later(Later::Unlink { path: path(no) });
    disk.later(Later::Unlink { path: index_path(no) });
}

/// The index of a segment, made from its records.
fn rebuilt<D: Disk>(disk: &D, no: u64, bytes: u64, secret: &[u8; 16]) -> Result<Index, LogError> {
    let mut entries = Entries::scan(disk, &path(no), secret, &mut |offset, bytes| {
        tracing::warn!(file = %disk.shown(&path(no)), byte = offset, bytes, "no record of a result");
    })?;
    entries.covered_bytes = bytes;
    Ok(entries.index(no, secret))
}

/// The end of a results segment that was never finished.
pub(super) struct Tail {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// What a crash left behind the last records that it left, as far as the log does not tell of it: opening to write cuts it.
///
/// # Errors
/// When a segment cannot be read, or holds a record of a newer program.
pub(super) fn unfinished<D: Disk>(disk: &D, secret: &[u8; 16], mark: &ResultsMark) -> Result<Vec<Tail>, LogError> {
    let mut tails = Vec::new();
    for (segment, bytes) in list(disk)?.into_iter().filter(|(no, _)| *no >= mark.segment && !mark.is_gone(*no)) {
        let told_bytes = if segment == mark.segment { mark.bytes } else { 0 };
        if bytes <= told_bytes {
            continue;
        }
        // Where bytes were lost or came to it before, what is told of ends inside a line that may be a record.
        let from = if begins_a_line(disk, segment, told_bytes)? { told_bytes } else { 0 };
        let entries = Entries::scan_from(from, disk, &path(segment), secret, &mut |_, _| {})?;
        let offset = entries.covered_bytes.max(told_bytes);
        if offset < bytes {
            tails.push(Tail { segment, offset, bytes: bytes - offset });
        }
    }
    Ok(tails)
}

fn begins_a_line<D: Disk>(disk: &D, segment: u64, offset: u64) -> Result<bool, LogError> {
    let Some(before) = offset.checked_sub(1) else { return Ok(true) };
    let mut byte = [0];
    let read = disk.read_at(&disk.open(&path(segment), How::Read)?, before, &mut byte)?;
    Ok(read == 0 || byte == *b"\n")
}

/// A stretch of a results segment that is no record, or a segment that is not there.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DamagedResults {
    pub file: String,
    pub offset: u64,
    pub bytes: u64,
    /// Nothing is there: the file is gone, or ends here, and the log tells of so much more at least.
    pub missing_bytes: u64,
    #[serde(skip)]
    pub(super) segment: u64,
}

/// Reads all results segments and names what is damaged. What was never said to be kept may be unfinished, and is not
/// damage.
///
/// # Errors
/// When the queue folder or a segment cannot be read, or holds a record of a newer program.
pub(super) fn damaged<D: Disk>(
    disk: &D,
    secret: &[u8; 16],
    mark: &ResultsMark,
) -> Result<Vec<DamagedResults>, LogError> {
    let mut damaged = Vec::new();
    let mut name = |no: u64, offset: u64, bytes: u64, missing_bytes: u64| {
        damaged.push(DamagedResults { file: disk.shown(&path(no)), offset, bytes, missing_bytes, segment: no });
    };
    let found: BTreeMap<u64, u64> = list(disk)?.into_iter().collect();
    let missing = (mark.oldest.max(1)..=mark.segment).filter(|no| !mark.is_gone(*no)).filter_map(|no| {
        // An index was written when its segment was whole.
        let indexed_bytes = index::covered_bytes(disk, &index_path(no), no).unwrap_or(1);
        let kept_bytes = if no == mark.segment { mark.bytes } else { indexed_bytes };
        let bytes = found.get(&no).copied().unwrap_or(0);
        (bytes < kept_bytes).then(|| (no, bytes, kept_bytes - bytes))
    });
    missing.take(MISSING_MAX).for_each(|(no, bytes, missing_bytes)| name(no, bytes, 0, missing_bytes));
    for no in found.keys().copied().filter(|no| *no <= mark.segment && !mark.is_gone(*no)) {
        Entries::scan(disk, &path(no), secret, &mut |offset, bytes| {
            if no < mark.segment || offset < mark.bytes {
                name(no, offset, bytes, 0);
            }
        })?;
    }
    Ok(damaged)
}
