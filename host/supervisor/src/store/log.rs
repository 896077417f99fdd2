//! The log: frames appended to segments, made durable once per commit, dropped from the old end once nothing needs them.
//!
//! Room is reserved ahead by writing newlines, so a commit overwrites blocks that the file owns already: it cannot run
//! out of space (I7; a copy-on-write file system weakens that) and costs less than growing the file. A failed write or
//! sync poisons the log: nobody knows what is on the disk, and only opening it again can tell.

use serde::{Deserialize, Serialize};
use tm_core::{
    queue::event::Frame,
    record::codec::{self, FORMAT},
    time::Millis,
};

use super::{
    disk::{self, Disk, DiskError, How, Later},
    meta::{META, Meta, opened},
    recover::{self, Found, Recovery},
    repair,
    segment::{self, Contents, Index, LINE_MAX_BYTES, ROOM_STEP_BYTES},
    spare::{self, Spare},
};

pub(super) const OFFSET: &str = "queue/queue.offset";
/// What one commit may have left behind in doubt: it is written again at the next opening.
const DOUBT_BYTES: u64 = 16 * 1024 * 1024;

/// When a commit is made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsync {
    #[default]
    Always,
    /// At most this long after it, in milliseconds of logged time. A power loss takes what came since (weakens I1, I6).
    Interval(u64),
    /// When the system likes to (weakens I1, I6).
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// A segment that has reached this is closed at the next reservation.
    pub segment_max_bytes: u64,
    pub fsync: Fsync,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_max_bytes: 64 * 1024 * 1024, fsync: Fsync::Always }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{file} is of format {format}, this program knows up to {known}")]
    Newer { file: String, format: u64, known: u32 },
    /// Not damage: its checksum and its form are right.
    #[error("{file} has a record at byte {offset} that is whole, and that this program cannot read: {why}")]
    Unknown { file: String, offset: u64, why: String },
    /// An earlier failure; open the log again.
    #[error(
        "the log of {queue} is closed because a write failed: start again, so that recovery can tell what is on the disk"
    )]
    Poisoned { queue: String },
    /// Nothing of it was written. A decision that makes such a frame must put payloads into blobs.
    #[error("a frame of {bytes} bytes was appended, {max} are allowed")]
    TooLong { bytes: u64, max: u64 },
}

/// A segment that is no longer written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    pub no: u64,
    /// Of the file.
    pub bytes: u64,
}

/// `queue.offset`: where the next record goes. Derived, for people and tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Offset {
    segment: u64,
    offset: u64,
    next_sequence: u64,
}

pub struct Log<D: Disk> {
    disk: D,
    options: LogOptions,
    active: Active<D>,
    closed: Vec<SegmentInfo>,
    /// Encoded frames for `active.end`.
    pending: Vec<u8>,
    next_sequence: u64,
    last_at: Millis,
    synced_at: Millis,
    /// Something was written since the last sync.
    unsynced: bool,
    too_long: Option<u64>,
    poisoned: bool,
    /// The oldest segment that something may still need.
    oldest: u64,
    /// `queue.meta` tells of no room in the active segment yet.
    untold: bool,
    /// Bytes that were appended since it was opened.
    appended_bytes: u64,
    spare: Spare,
}

struct Active<D: Disk> {
    no: u64,
    file: D::File,
    /// Where the next commit goes.
    end: u64,
    /// The file's length: from `end` on it is newlines.
    room: u64,
    contents: Contents,
}

impl LogError {
    /// Whether the disk had no room: nothing was written.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Disk(error) if error.is_full())
    }
}

impl<D: Disk> Log<D> {
    /// Opens the log for its one writer, who holds the lock.
    ///
    /// Replays every frame in order into `each` with the number of its segment, cuts a torn tail, copies damage to
    /// `queue/damaged/`, rebuilds indexes that do not agree. What is replayed is durable when this returns.
    ///
    /// # Errors
    /// When the disk fails or the log is of a newer program ([`LogError::Newer`], [`LogError::Unknown`]).
    pub fn open(disk: D, options: LogOptions, each: &mut dyn FnMut(Frame, u64)) -> Result<(Self, Recovery), LogError> {
        let mut meta = Meta::load(&disk)?;
        let (recovery, mut found) = recover::replay_ahead(&disk, each)?;
        for damage in &recovery.damaged {
            tracing::warn!(file = %damage.file, byte = damage.offset, bytes = damage.bytes, why = %damage.why, "damage in the log was skipped");
            repair::keep_aside(&disk, damage);
        }
        spare::remove(&disk)?;
        if let [.., before, last] = found.as_slice()
            && is_barely_begun(before, last)
            // Where a later one is missing, this one would be missed with it.
            && meta.as_ref().is_none_or(|meta| meta.active_segment <= last.no)
        {
            if let Some(meta) = meta.as_mut().filter(|meta| meta.active_segment == last.no) {
                // First, so that the segment is not missed when it is gone.
                (meta.active_segment, meta.room_bytes) = (before.no, before.file_bytes);
                disk::replace(&disk, META, &meta.bytes())?;
            }
            disk.unlink(&segment::path(last.no))?;
            disk.sync_folder("queue")?;
            found.pop();
        }
        let opened = opened(meta.as_ref(), &found);
        let active = match found.pop_if(|_| opened.resumes) {
            Some(last) => resume(&disk, last)?,
            None => Active::create(&disk, opened.meta.active_segment, 0)?,
        };
        for closed in found.iter().filter(|closed| !closed.index_agrees) {
            closed.contents.write_index(&disk, closed.no);
        }
        if Index::is_damaged(&disk, active.no) {
            active.contents.write_index(&disk, active.no);
        }
        let log = Self {
            active,
            closed: found.iter().map(|found| SegmentInfo { no: found.no, bytes: found.file_bytes }).collect(),
            pending: Vec::new(),
            next_sequence: recovery.next_sequence,
            last_at: recovery.last_at,
            synced_at: recovery.last_at,
            unsynced: false,
            too_long: None,
            poisoned: false,
            oldest: opened.meta.oldest_segment,
            untold: opened.meta.room_bytes == 0,
            appended_bytes: 0,
            spare: Spare::None,
            disk,
            options,
        };
        if !meta.is_some_and(|meta| meta.names_the_same(&opened.meta)) {
            log.write_meta();
        }
        Ok((log, recovery))
    }

    /// What the next frame gets.
    #[must_use]
    pub const fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// The number of the segment that frames go to.
    #[must_use]
    pub const fn segment(&self) -> u64 {
        self.active.no
    }

    /// Oldest first.
    #[must_use]
    pub fn closed(&self) -> &[SegmentInfo] {
        &self.closed
    }

    /// Of all segments, with the room that is reserved.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.closed.iter().map(|closed| closed.bytes).sum::<u64>() + self.active.room
    }

    /// Of all segments, without the room that is reserved.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.closed.iter().map(|closed| closed.bytes).sum::<u64>() + self.active.end
    }

    /// Of the disk below, all files together.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.disk.syncs()
    }

    /// Of the frames that wait for the next commit.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.pending.len() as u64
    }

    /// Makes sure that `bytes` more can be appended without the disk filling up. A full segment is closed here.
    ///
    /// `Ok(false)`: there is no room, and nothing was reserved; try again later.
    ///
    /// # Errors
    /// Those of [`Log::commit`]; closing a segment commits what was appended.
    pub fn ensure(&mut self, bytes: u64) -> Result<bool, LogError> {
        self.usable()?;
        let end = self.active.end + self.pending.len() as u64;
        let max = self.options.segment_max_bytes;
        // Rather a somewhat longer segment than waiting for the next one.
        let may_wait = end < max.saturating_add(max / 4);
        if end >= max && !(may_wait && self.spare.is_making(&self.disk)) && self.rotate(bytes)? {
            return Ok(true);
        }
        self.prepare(bytes);
        let wanted = self.active.end + self.pending.len() as u64 + bytes;
        if wanted <= self.active.room {
            return Ok(true);
        }
        let step = self.room_step();
        let reserved = self.active.reserve(&self.disk, wanted, step).and_then(|reserved| {
            // What was taken ahead is given back before anything waits for room.
            let again = !reserved && self.spare.give_back(&self.disk)?;
            if again { self.active.reserve(&self.disk, wanted, step) } else { Ok(reserved) }
        });
        let reserved = self.poisoning(reserved)?;
        if reserved && std::mem::take(&mut self.untold) {
            self.write_meta();
        }
        Ok(reserved)
    }

    /// Has the next segment made beside the caller once the active one is half full, with `bytes` of room behind what a
    /// segment holds. A command that appends little and ends begins none.
    fn prepare(&mut self, bytes: u64) {
        let max = self.options.segment_max_bytes;
        if self.active.end >= max / 2 && self.appended_bytes >= max / 4 {
            self.spare.prepare(&self.disk, max.saturating_add(bytes));
        }
    }

    /// Closes the active segment, so that it can be compacted, and begins one with `bytes` of room. False: no room.
    ///
    /// # Errors
    /// Those of [`Log::commit`].
    pub fn close_segment(&mut self, bytes: u64) -> Result<bool, LogError> {
        self.usable()?;
        self.rotate(bytes)
    }

    /// Takes a frame into the next commit; returns the segment that it goes to.
    pub fn append(&mut self, frame: &Frame) -> u64 {
        let before = self.pending.len();
        codec::encode(frame, self.next_sequence, &mut self.pending);
        let bytes = self.pending.len() - before;
        if bytes > LINE_MAX_BYTES {
            self.too_long = Some(bytes as u64);
        }
        self.active.contents.record(self.next_sequence, self.active.end + before as u64);
        self.next_sequence += 1;
        self.last_at = self.last_at.max(frame.at);
        self.active.no
    }

    /// Writes what was appended and makes it durable with one sync, as [`LogOptions::fsync`] says.
    ///
    /// # Errors
    /// Any failure poisons the log: every later call answers [`LogError::Poisoned`]. Never try again.
    pub fn commit(&mut self) -> Result<(), LogError> {
        self.write()?;
        let due = match self.options.fsync {
            Fsync::Always => true,
            Fsync::Interval(ms) => self.last_at.since(self.synced_at) >= ms,
            Fsync::Never => false,
        };
        if due { self.sync() } else { Ok(()) }
    }

    /// With [`Fsync::Interval`]: syncs when it is time, and says when to come again.
    ///
    /// # Errors
    /// As [`Log::commit`].
    pub fn sync_due(&mut self, now: Millis) -> Result<Option<Millis>, LogError> {
        let Fsync::Interval(ms) = self.options.fsync else { return Ok(None) };
        if !self.unsynced {
            return Ok(None);
        }
        let due = self.synced_at.plus(ms);
        if now < due {
            return Ok(Some(due));
        }
        self.last_at = self.last_at.max(now);
        self.sync().map(|()| None)
    }

    /// Forgets the oldest closed segment, whose live records the caller has appended again and committed. Its file goes
    /// in the background; when the power goes first, its records are replayed once more before their newer ones.
    ///
    /// # Errors
    /// As [`Log::commit`].
    pub fn drop_oldest(&mut self) -> Result<(), LogError> {
        self.write()?;
        self.sync()?;
        if self.closed.is_empty() {
            return Ok(());
        }
        let oldest = self.closed.remove(0);
        self.oldest = self.closed.first().map_or(self.active.no, |oldest| oldest.no);
        self.write_meta();
        self.disk.later(Later::Unlink { path: segment::path(oldest.no) });
        self.disk.later(Later::Unlink { path: segment::index_path(oldest.no) });
        Ok(())
    }

    /// The clean stop: what was appended is durable, the index and the derived files are written.
    ///
    /// # Errors
    /// As [`Log::commit`].
    pub fn close(mut self) -> Result<(), LogError> {
        self.write()?;
        self.sync()?;
        self.active.contents.write_index(&self.disk, self.active.no);
        self.write_meta();
        self.disk.settle();
        self.spare.give_back(&self.disk)?;
        Ok(())
    }

    fn usable(&self) -> Result<(), LogError> {
        if self.poisoned { Err(LogError::Poisoned { queue: self.disk.shown("queue") }) } else { Ok(()) }
    }

    fn poisoning<T>(&mut self, done: Result<T, DiskError>) -> Result<T, LogError> {
        self.poisoned |= done.is_err();
        Ok(done?)
    }

    fn write(&mut self) -> Result<(), LogError> {
        self.usable()?;
        if let Some(bytes) = self.too_long {
            self.poisoned = true;
            return Err(LogError::TooLong { bytes, max: LINE_MAX_BYTES as u64 });
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = self.disk.write_at(&self.active.file, self.active.end, &self.pending);
        self.poisoning(written)?;
        self.unsynced = true;
        let active = &mut self.active;
        active.end += self.pending.len() as u64;
        active.room = active.room.max(active.end);
        active.contents.crc = crc32c::crc32c_append(active.contents.crc, &self.pending);
        active.contents.covered_bytes = active.end;
        self.appended_bytes += self.pending.len() as u64;
        self.pending.clear();
        self.pending.shrink_to(ROOM_STEP_BYTES as usize);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogError> {
        if self.unsynced {
            let synced = self.disk.sync(&self.active.file);
            self.poisoning(synced)?;
            self.unsynced = false;
            self.synced_at = self.last_at;
        }
        Ok(())
    }

    fn room_step(&self) -> u64 {
        (self.options.segment_max_bytes / 4).clamp(4096, ROOM_STEP_BYTES)
    }

    /// Closes the active segment and begins the next one with `bytes` of room. False: no room for that.
    fn rotate(&mut self, bytes: u64) -> Result<bool, LogError> {
        // First, so that bad bytes at the end of a closed segment are never an unfinished commit.
        self.write()?;
        self.sync()?;
        let (no, room) = (self.active.no + 1, bytes.max(self.room_step()));
        let taken = match self.spare.take(&self.disk, &segment::path(no), room) {
            Ok(Some((file, room))) => Ok(Active { no, file, end: 0, room, contents: Contents::default() }),
            Ok(None) => Active::create(&self.disk, no, room),
            Err(error) => Err(error),
        };
        let next = match taken {
            Err(error) if error.is_full() => return Ok(false),
            taken => self.poisoning(taken)?,
        };
        let old = std::mem::replace(&mut self.active, next);
        // Before `queue.meta` names the next one: with more room in the old one than in that, it would be taken back.
        self.disk.later(Later::Cut { path: segment::path(old.no), bytes: old.end });
        old.contents.write_index(&self.disk, old.no);
        self.closed.push(SegmentInfo { no: old.no, bytes: old.end });
        self.write_meta();
        Ok(true)
    }

    fn write_meta(&self) {
        let (active_segment, room_bytes) = (self.active.no, self.active.room);
        let meta = Meta { format: FORMAT, oldest_segment: self.oldest, active_segment, room_bytes };
        let next_sequence = self.next_sequence;
        let offset = Offset { segment: active_segment, offset: self.active.end, next_sequence };
        let mut line = serde_json::to_vec(&offset).unwrap_or_default();
        line.push(b'\n');
        for (path, bytes) in [(META, meta.bytes()), (OFFSET, line)] {
            self.disk.later(Later::Derive { path: path.into(), bytes });
        }
    }
}

impl<D: Disk> Active<D> {
    fn create(disk: &D, no: u64, room: u64) -> Result<Self, DiskError> {
        let path = segment::path(no);
        let file = disk.open(&path, How::CreateNew)?;
        let mut active = Self { no, file, end: 0, room: 0, contents: Contents::default() };
        let made = active.reserve(disk, room, room).and_then(|fits| {
            if !fits {
                return Err(DiskError::Full {
                    path: disk.shown(&path),
                    source: std::io::ErrorKind::StorageFull.into(),
                });
            }
            disk.sync(&active.file)?;
            disk.sync_folder("queue")
        });
        if let Err(error) = made {
            // The name must be gone for good before the segment before it is written to again: a torn commit in a segment
            // that is not the newest would be taken for damage.
            disk.unlink(&path)?;
            disk.sync_folder("queue")?;
            return Err(error);
        }
        Ok(active)
    }

    /// Writes newlines up to `wanted`, or a step more when there is room for it.
    fn reserve(&mut self, disk: &D, wanted: u64, step: u64) -> Result<bool, DiskError> {
        if wanted <= self.room {
            return Ok(true);
        }
        for target in [wanted.max(self.room.saturating_add(step)), wanted] {
            match disk::blank(disk, &self.file, self.room, target - self.room) {
                Ok(()) => {
                    disk.sync(&self.file)?;
                    self.room = target;
                    return Ok(true);
                }
                Err(error) if error.is_full() => disk.truncate(&self.file, self.room)?,
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Whether the newest segment is what a rotation left that did not get far: without records, and with less room than the
/// segment before it still holds in reserve (I7).
fn is_barely_begun(before: &Found, last: &Found) -> bool {
    let spare = before.file_bytes.saturating_sub(before.contents.covered_bytes);
    let is_empty = last.contents.first.is_none() && last.torn.is_none() && !last.foreign;
    is_empty && !before.foreign && last.file_bytes < spare
}

/// Opens the newest segment for writing, without its torn tail, and makes durable what was read of it.
fn resume<D: Disk>(disk: &D, found: Found) -> Result<Active<D>, DiskError> {
    let file = disk.open(&segment::path(found.no), How::Write)?;
    let mut active = Active {
        no: found.no,
        file,
        end: found.contents.covered_bytes,
        room: found.file_bytes,
        contents: found.contents,
    };
    if let Some((offset, bytes)) = found.torn {
        // Overwritten, not cut off: the room behind it is what was reserved for the ends of running attempts (I7).
        disk::blank(disk, &active.file, offset, bytes)?;
        disk.sync(&active.file)?;
    }
    if found.open_line {
        disk.write_at(&active.file, active.end, b"\n")?;
        active.end += 1;
        active.room = active.room.max(active.end);
        active.contents.covered_bytes = active.end;
        active.contents.crc = crc32c::crc32c_append(active.contents.crc, b"\n");
    }
    if !found.index_agrees {
        // After a failed sync the system may hold pages that are not on the disk and that it believes to be clean, and
        // a length that is not there either.
        let from = active.end.saturating_sub(DOUBT_BYTES);
        let mut doubt = vec![0; usize::try_from(active.end - from).unwrap_or(0)];
        let got = disk.read_at(&active.file, from, &mut doubt)?;
        disk.write_at(&active.file, from, &doubt[..got])?;
        disk::blank(disk, &active.file, active.end, active.room - active.end)?;
        disk.sync(&active.file)?;
        disk.sync_folder("queue")?;
    }
    Ok(active)
}
