//! Reading the log back: which records are good, which bytes are damage, and which are a tail that was never finished.
//!
//! Nothing read is trusted (I11). A record must be whole (checksum) and in its place (sequence). A bad tail without a
//! good record after it was being written when the power went: it is cut. Every other bad byte is damage: skipped,
//! named by file and place, kept aside. Reading alone changes nothing (I12).

use std::{collections::BTreeSet, sync::mpsc, thread};

use memchr::memmem;
use serde::{Deserialize, Serialize, Serializer};
use tm_core::{
    queue::event::{Event, Frame},
    record::codec::{self, BadLine, FORMAT, MARK},
    time::Millis,
};

use super::{
    disk::{Disk, read_whole},
    log::LogError,
    meta::Meta,
    results,
    sealed::unseal,
    segment::{self, Contents, Index, LineEnd, Lines},
};

/// Places in one damaged line that are tried as the beginning of a record.
const CANDIDATES_MAX: usize = 4096;
/// No record is shorter: `{"c":"01234567","s":0,"t":0,"e":[]}`.
const RECORD_MIN_BYTES: u64 = 35;
/// Numbers above this cannot be: at a million records a second they would take centuries.
const SEQUENCE_MAX: u64 = 1 << 53;
/// A log that is smaller is read where it is taken in.
const AHEAD_MIN_BYTES: u64 = 8 * 1024 * 1024;
/// What the reading is ahead of the taking in, at most: batches, and frames in each.
const AHEAD_BATCHES: usize = 8;
const AHEAD_FRAMES: usize = 512;
const ACCEPTED_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// What opening found, besides the frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// Frames that were replayed.
    pub frames: u64,
    pub segments: u64,
    /// Of the tail that was never finished.
    pub cut_bytes: u64,
    pub damaged: Vec<Damage>,
    /// The newest frame's time.
    pub last_at: Millis,
    /// What the next frame gets.
    pub next_sequence: u64,
}

/// One stretch of a segment that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub file: String,
    pub offset: u64,
    /// 0 when nothing is there: records are missing.
    pub bytes: u64,
    /// The records that are missing because of it, first and last.
    pub lost: Option<(u64, u64)>,
    #[serde(serialize_with = "in_words")]
    pub why: Why,
    /// The segment, for repair.
    #[serde(skip)]
    pub(super) segment: u64,
}

fn in_words<S: Serializer>(why: &Why, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(why)
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("not a record: {0}")]
    Line(BadLine),
    #[error("a line longer than {} bytes", segment::LINE_MAX_BYTES)]
    TooLong,
    #[error("record {sequence} is here a second time, where {expected} should be")]
    Doubled { sequence: u64, expected: u64 },
    #[error("record {sequence} is of another log: {expected} should be here")]
    Foreign { sequence: u64, expected: u64 },
    #[error("the whole file is of another log: it begins with record {first}")]
    ForeignSegment { first: u64 },
    #[error("records are missing here")]
    Gap,
    #[error("records are missing at the end, as the segment's index knows")]
    MissingEnd,
    #[error("segments before this one are missing, as queue.meta knows")]
    MissingStart,
    #[error("the file is missing{}", and_more(.first, .last))]
    Missing { first: u64, last: u64 },
    #[error("the file was made {room_bytes} bytes long and has {file_bytes}: records may be missing at its end")]
    Short { file_bytes: u64, room_bytes: u64 },
    #[error("every segment is missing, as queue.meta knows")]
    MissingAll,
}

fn and_more(first: &u64, last: &u64) -> String {
    if last == first { String::new() } else { format!(", with those after it up to segment {last}") }
}

/// Lost records and files that `repair` has accepted: they are not named again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Accepted {
    pub(super) lost: BTreeSet<(u64, u64)>,
    /// Numbers of segments, first and last.
    #[serde(default)]
    pub(super) segments: BTreeSet<(u64, u64)>,
}

pub(super) const ACCEPTED: &str = "queue/damaged/accepted.json";

impl Accepted {
    /// Whether all of these segments were accepted as gone, at once or one after the other.
    fn has_segments(&self, first: u64, last: u64) -> bool {
        let mut next = first;
        for &(from, to) in &self.segments {
            if from <= next && next <= to {
                next = to.saturating_add(1);
            }
        }
        next > last
    }

    /// What was accepted; nothing when the file is not whole, by its own checksum: then all is named again.
    pub(super) fn load<D: Disk>(disk: &D) -> Self {
        read_whole(disk, ACCEPTED, ACCEPTED_MAX_BYTES).ok().and_then(|bytes| unseal(&bytes)).unwrap_or_default()
    }
}

/// A segment as it was found.
pub(super) struct Found {
    pub(super) no: u64,
    pub(super) file_bytes: u64,
    pub(super) contents: Contents,
    /// Nothing of it is believed.
    pub(super) foreign: bool,
    /// A torn tail, with its length.
    pub(super) torn: Option<(u64, u64)>,
    /// The last good record lacks its newline.
    pub(super) open_line: bool,
    pub(super) index_agrees: bool,
}

/// Replays the log and changes nothing: for `stats` of a queue that nobody owns, and for `verify`.
///
/// # Errors
/// When the queue folder cannot be read, or it is of a newer program.
pub fn read<D: Disk>(disk: &D, each: &mut dyn FnMut(Frame, u64)) -> Result<Recovery, LogError> {
    replay_ahead(disk, each).map(|(recovery, _)| recovery)
}

/// As [`replay`], with the reading on a thread of its own when there is much to read: what is decoded there is taken in here.
pub(super) fn replay_ahead<D: Disk>(
    disk: &D,
    each: &mut dyn FnMut(Frame, u64),
) -> Result<(Recovery, Vec<Found>), LogError> {
    let bytes: u64 = segment::list(disk)?.iter().map(|(_, bytes)| bytes).sum();
    if bytes < AHEAD_MIN_BYTES {
        return replay(disk, each);
    }
    let (batches, decoded) = mpsc::sync_channel::<Vec<(Frame, u64)>>(AHEAD_BATCHES);
    thread::scope(|scope| {
        let reader = thread::Builder::new().name("tm-replay".into()).spawn_scoped(scope, move || {
            let mut batch = Vec::with_capacity(AHEAD_FRAMES);
            let found = replay(disk, &mut |frame, segment| {
                batch.push((frame, segment));
                if batch.len() == AHEAD_FRAMES {
                    // The other end is there until this thread has ended.
                    let _ = batches.send(std::mem::replace(&mut batch, Vec::with_capacity(AHEAD_FRAMES)));
                }
            });
            let _ = batches.send(batch);
            found
        });
        let Ok(reader) = reader else { return replay(disk, each) };
        for batch in decoded {
            batch.into_iter().for_each(|(frame, segment)| each(frame, segment));
        }
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub(super) fn replay<D: Disk>(disk: &D, each: &mut dyn FnMut(Frame, u64)) -> Result<(Recovery, Vec<Found>), LogError> {
    let segments = segment::list(disk)?;
    let meta = Meta::load(disk)?;
    let mut firsts = Vec::with_capacity(segments.len());
    for &(no, _) in &segments {
        firsts.push(first_sequence(disk, no)?);
    }
    let ours = ascending(&firsts);
    let accepted = Accepted::load(disk);
    let mut replay = Replay {
        disk,
        each,
        recovery: Recovery { segments: segments.len() as u64, ..Recovery::default() },
        accepted,
        expected: None,
        held: None,
        ceiling: SEQUENCE_MAX,
        bad: None,
        contents: Contents::default(),
        open_line: false,
    };
    if let (Some(meta), Some(&(no, _))) = (&meta, segments.first())
        && no > meta.oldest_segment
    {
        replay.damage(no, 0, 0, None, Why::MissingStart);
    }
    if let (Some(meta), true) = (&meta, segments.is_empty()) {
        replay.damage(meta.oldest_segment, 0, 0, None, Why::MissingAll);
    }
    let known = meta.as_ref().map_or(0, |meta| meta.active_segment);
    let mut found = Vec::with_capacity(segments.len());
    for (place, &(no, file_bytes)) in segments.iter().enumerate() {
        // A rotation syncs what it closes: only the active segment can have a torn tail.
        let last = place + 1 == segments.len() && known <= no;
        if let Some(before) = place.checked_sub(1).and_then(|before| segments.get(before)) {
            replay.missing(before.0 + 1, no - 1, no);
        }
        if let Some(first) = firsts[place]
            && !ours[place]
        {
            replay.damage(no, 0, file_bytes, None, Why::ForeignSegment { first });
            let contents = Contents::default();
            found.push(Found {
                no,
                file_bytes,
                contents,
                foreign: true,
                torn: None,
                open_line: false,
                index_agrees: true,
            });
            continue;
        }
        let later = (place + 1..segments.len()).find(|&later| ours[later] && firsts[later].is_some());
        replay.ceiling = later.and_then(|later| firsts[later]).unwrap_or(SEQUENCE_MAX);
        found.push(replay.segment(no, file_bytes, last)?);
        let ended = replay.recovery.damaged.iter().any(|bad| bad.segment == no && bad.why == Why::MissingEnd);
        if let Some(meta) = meta.as_ref().filter(|meta| meta.active_segment == no && meta.room_bytes > file_bytes)
            && last
            && !ended
        {
            replay.damage(no, file_bytes, 0, None, Why::Short { file_bytes, room_bytes: meta.room_bytes });
        }
    }
    if let Some(&(newest, _)) = segments.last() {
        replay.missing(newest + 1, known, newest);
    }
    replay.recovery.next_sequence = replay.expected.unwrap_or(1);
    Ok((replay.recovery, found))
}

/// Refuses the queue of a newer program by what its files begin with, before anything is done to them. A record in the
/// middle of a segment refuses it when the log is read.
///
/// # Errors
/// [`LogError::Newer`], [`LogError::Unknown`]. What cannot be read is told by who opens it.
pub fn refuse_newer_program<D: Disk>(disk: &D) -> Result<(), LogError> {
    let looked = Meta::load(disk).and_then(|_| {
        let segments = segment::list(disk)?;
        segments.iter().try_for_each(|&(no, _)| first_sequence(disk, no).map(drop))?;
        results::refuse_newer(disk)
    });
    match looked {
        Err(LogError::Disk(_)) => Ok(()),
        other => other,
    }
}

/// The sequence that a segment is known by: of its first good record behind which a higher one or none comes.
///
/// That record counts, or one with a higher sequence does, as [`Replay::good`] goes by the same: what goes on behind the
/// segment is higher than both, and never makes it foreign.
fn first_sequence<D: Disk>(disk: &D, no: u64) -> Result<Option<u64>, LogError> {
    let mut lines = Lines::open(disk, &segment::path(no))?;
    let mut first = None;
    while let Some(line) = lines.next()? {
        let offset = line.offset;
        match codec::decode(line.bytes) {
            Ok((sequence, frame)) if sequence < SEQUENCE_MAX => {
                refuse_newer(disk, no, &frame)?;
                if first.is_some_and(|first| first < sequence) {
                    break;
                }
                first = Some(sequence);
            }
            Ok(_) => {}
            Err(why) => refuse_unknown(disk, no, offset, &why)?,
        }
    }
    Ok(first)
}

/// Which segments form the longest ascending row (the one that ends lowest among equals): the others are foreign.
fn ascending(firsts: &[Option<u64>]) -> Vec<bool> {
    // Patience sorting: `tails[n]` is the place with the lowest number that ends a row of n + 1.
    let mut tails: Vec<usize> = Vec::new();
    let mut before = vec![None; firsts.len()];
    for (place, first) in firsts.iter().enumerate() {
        let Some(first) = first else { continue };
        let row = tails.partition_point(|&tail| firsts[tail].is_some_and(|tail| tail < *first));
        before[place] = row.checked_sub(1).map(|row| tails[row]);
        if row == tails.len() {
            tails.push(place);
        } else if firsts[tails[row]] != Some(*first) {
            // Of two with the same number the older name counts.
            tails[row] = place;
        }
    }
    let mut ours: Vec<_> = firsts.iter().map(Option::is_none).collect();
    let mut next = tails.last().copied();
    while let Some(place) = next {
        ours[place] = true;
        next = before[place];
    }
    ours
}

struct Bad {
    offset: u64,
    end: u64,
    /// Of the file up to `end`.
    crc: u32,
    why: Why,
}

struct Good {
    sequence: u64,
    frame: Frame,
    offset: u64,
    end: u64,
    crc: u32,
}

struct Replay<'r, D: Disk> {
    disk: &'r D,
    each: &'r mut dyn FnMut(Frame, u64),
    recovery: Recovery,
    accepted: Accepted,
    /// None before the first record.
    expected: Option<u64>,
    /// A record that jumps ahead; the next one tells whether records are missing or this one is foreign.
    held: Option<Good>,
    /// The first record of the next segment: no record of this one reaches it.
    ceiling: u64,
    bad: Option<Bad>,
    contents: Contents,
    open_line: bool,
}

impl<D: Disk> Replay<'_, D> {
    fn damage(&mut self, no: u64, offset: u64, bytes: u64, lost: Option<(u64, u64)>, why: Why) {
        let file = self.disk.shown(&segment::path(no));
        self.recovery.damaged.push(Damage { file, offset, bytes, lost, why, segment: no });
    }

    /// Names segments whose files are not there; `beside` is the one that is next to the gap.
    fn missing(&mut self, first: u64, last: u64, beside: u64) {
        if first > last || self.accepted.has_segments(first, last) {
            return;
        }
        self.damage(beside, 0, 0, None, Why::Missing { first, last });
        if let Some(damage) = self.recovery.damaged.last_mut() {
            damage.file = self.disk.shown(&segment::path(first));
        }
    }

    fn segment(&mut self, no: u64, file_bytes: u64, last: bool) -> Result<Found, LogError> {
        let index = Index::load(self.disk, no);
        let mut lines = Lines::open(self.disk, &segment::path(no))?;
        self.contents = Contents::default();
        self.open_line = false;
        while let Some(line) = lines.next()? {
            let (offset, end) = (line.offset, line.end);
            let after = offset + line.bytes.len() as u64 + u64::from(end == LineEnd::Newline);
            let outcome = match end {
                LineEnd::TooLong => Err(Why::TooLong),
                LineEnd::Newline | LineEnd::File => match codec::decode(line.bytes) {
                    Ok((sequence, frame)) => Ok((0, sequence, frame)),
                    Err(why) => {
                        refuse_unknown(self.disk, no, offset, &why)?;
                        self.within(line.bytes).ok_or(Why::Line(why))
                    }
                },
            };
            let crc = lines.crc();
            self.open_line = end == LineEnd::File;
            match outcome {
                Ok((place, sequence, frame)) => {
                    if place > 0 {
                        self.extend_bad(offset, offset + place, crc, Why::Line(BadLine::Checksum));
                    }
                    refuse_newer(self.disk, no, &frame)?;
                    self.good(no, Good { sequence, frame, offset: offset + place, end: after, crc });
                }
                Err(why) => self.extend_bad(offset, after, crc, why),
            }
        }
        if let Some(held) = self.held.take() {
            self.accept(no, held);
        }
        let torn = self.end_of_segment(no, last, index.as_ref());
        let contents = std::mem::take(&mut self.contents);
        let index_agrees = index.is_some_and(|index| index.agrees(&contents));
        Ok(Found { no, file_bytes, contents, foreign: false, torn, open_line: self.open_line, index_agrees })
    }

    /// A record inside a damaged line, whose own beginning was a line's end before the damage.
    fn within(&self, line: &[u8]) -> Option<(u64, u64, Frame)> {
        // A record that is held is told to be foreign only by one that has a line of its own.
        let held = self.held.as_ref().map(|held| held.sequence.saturating_add(1));
        let next = held.or(self.expected);
        memmem::find_iter(line, MARK).filter(|&place| place > 0).take(CANDIDATES_MAX).find_map(|place| {
            let (sequence, frame) = codec::decode(&line[place..]).ok()?;
            let place = place as u64;
            // Payloads are a tenant's own text and may look like a record. What is lost before a real one fits into
            // the bytes before it.
            let plausible = |next: u64| (next..=next.saturating_add(1 + place / RECORD_MIN_BYTES)).contains(&sequence);
            next.is_none_or(plausible).then_some((place, sequence, frame))
        })
    }

    fn extend_bad(&mut self, offset: u64, end: u64, crc: u32, why: Why) {
        match &mut self.bad {
            Some(bad) => (bad.end, bad.crc) = (end, crc),
            None => self.bad = Some(Bad { offset, end, crc, why }),
        }
    }

    fn good(&mut self, no: u64, good: Good) {
        let bad = self.bad.take();
        let expected = self.expected.unwrap_or(good.sequence);
        if let Some(bad) = bad {
            // What is lost with it shows when the next record is accepted.
            self.damage(no, bad.offset, bad.end - bad.offset, None, bad.why);
        }
        if good.sequence < expected {
            self.strange(no, &good, Why::Doubled { sequence: good.sequence, expected });
        } else if let Some(held) = self.held.take() {
            if good.sequence > held.sequence {
                self.accept(no, held);
            } else {
                self.strange(no, &held, Why::Foreign { sequence: held.sequence, expected });
            }
            self.good(no, good);
        } else if good.sequence > expected {
            self.held = Some(good);
        } else {
            self.accept(no, good);
        }
    }

    /// A whole record that does not belong here: named, and not written over.
    fn strange(&mut self, no: u64, record: &Good, why: Why) {
        self.damage(no, record.offset, record.end - record.offset, None, why);
        self.cover(record);
    }

    fn cover(&mut self, record: &Good) {
        // One that was held comes after those behind it.
        if record.end > self.contents.covered_bytes {
            (self.contents.covered_bytes, self.contents.crc) = (record.end, record.crc);
        }
    }

    fn accept(&mut self, no: u64, good: Good) {
        // Asked no earlier: what a segment holds is the same before and after another one begins behind it.
        if good.sequence >= self.ceiling {
            let expected = self.expected.unwrap_or(good.sequence);
            return self.strange(no, &good, Why::Foreign { sequence: good.sequence, expected });
        }
        if let Some(expected) = self.expected
            && good.sequence > expected
        {
            let lost = (expected, good.sequence - 1);
            let begins = self.contents.first.is_none();
            let ends_here = |bad: &&mut Damage| {
                let before = bad.bytes > 0 && bad.offset + bad.bytes == good.offset;
                bad.segment == no && (before || (begins && matches!(bad.why, Why::Missing { .. })))
            };
            match self.recovery.damaged.iter_mut().rev().take(4).find(ends_here) {
                Some(bad) => bad.lost = Some(lost),
                None if self.accepted.lost.contains(&lost) => {}
                None => self.damage(no, good.offset, 0, Some(lost), Why::Gap),
            }
        }
        self.expected = Some(good.sequence + 1);
        self.contents.record(good.sequence, good.offset);
        self.cover(&good);
        self.recovery.frames += 1;
        self.recovery.last_at = self.recovery.last_at.max(good.frame.at);
        (self.each)(good.frame, no);
    }

    /// Decides what the bytes after the last good record are.
    fn end_of_segment(&mut self, no: u64, last: bool, index: Option<&Index>) -> Option<(u64, u64)> {
        let known_end = index.map_or(0, |index| index.covered_bytes);
        let known_last = index.and_then(|index| index.last);
        let lost = match (self.expected, known_last) {
            (Some(expected), Some(known)) if known >= expected => Some((expected, known)),
            (None, Some(known)) => Some((index.and_then(|index| index.first).unwrap_or(known), known)),
            _ => None,
        };
        match self.bad.take() {
            // Bytes that were whole at a rotation or a clean stop were not being written when the power went.
            Some(bad) if last && bad.offset >= known_end => {
                self.open_line = false;
                self.recovery.cut_bytes += bad.end - bad.offset;
                return Some((bad.offset, bad.end - bad.offset));
            }
            Some(bad) => {
                (self.contents.covered_bytes, self.contents.crc) = (bad.end, bad.crc);
                self.damage(no, bad.offset, bad.end - bad.offset, lost, bad.why);
            }
            None => {
                if let Some(lost) = lost.filter(|lost| !self.accepted.lost.contains(lost)) {
                    self.damage(no, self.contents.covered_bytes, 0, Some(lost), Why::MissingEnd);
                }
            }
        }
        None
    }
}

fn refuse_newer<D: Disk>(disk: &D, no: u64, frame: &Frame) -> Result<(), LogError> {
    let newer = frame.events.iter().find_map(|event| match event {
        Event::Created { format, .. } if *format > FORMAT => Some(*format),
        _ => None,
    });
    newer.map_or(Ok(()), |format| Err(newer_format(disk, no, format.into())))
}

/// Refuses a whole record that cannot be read: leaving it out would be reading half of what was written.
fn refuse_unknown<D: Disk>(disk: &D, no: u64, offset: u64, why: &BadLine) -> Result<(), LogError> {
    match why {
        BadLine::Unknown { format: Some(format), .. } if *format > u64::from(FORMAT) => {
            Err(newer_format(disk, no, *format))
        }
        BadLine::Unknown { why, .. } => {
            Err(LogError::Unknown { file: disk.shown(&segment::path(no)), offset, why: why.clone() })
        }
        _ => Ok(()),
    }
}

fn newer_format<D: Disk>(disk: &D, no: u64, format: u64) -> LogError {
    LogError::Newer { file: disk.shown(&segment::path(no)), format, known: FORMAT }
}
