//! Damage set aside, and the queue made whole around it.

use tm_core::queue::state::State;

use super::{
    disk::{self, Disk, DiskError, How},
    dlq::{Dlq, DlqError, Place},
    log::{Log, LogError, LogOptions},
    meta::META,
    recover::{ACCEPTED, Accepted, Damage, Why},
    results::{self, ResultStore},
    sealed::seal,
    segment,
    verify::{Action, Report, look},
};

const FOLDER: &str = "queue/damaged";
const CHUNK_BYTES: usize = 1024 * 1024;

/// Makes the log whole around its damage, or with `dry_run` only says how.
///
/// Damaged bytes are copied to `queue/damaged/`, then overwritten with newlines; what is lost with them is written down
/// there and not named again; a file of another log is moved there. A torn tail is cut and indexes are rebuilt, as
/// opening does. Files of pending dead letters that are damaged or gone are written again. Nobody else may write: hold
/// the locks.
///
/// # Errors
/// Those of the disk; what was done before stays done, and repeating it goes on.
pub fn repair<D: Disk>(disk: &D, dry_run: bool) -> Result<Report, LogError> {
    let (mut report, unwritten) = look(disk)?;
    for damage in &report.log.damaged {
        let file = damage.file.clone();
        match damage.why {
            Why::ForeignSegment { .. } => report.actions.push(Action::MoveAway { file }),
            _ if damage.bytes > 0 => {
                report.actions.push(Action::Blank { file, offset: damage.offset, bytes: damage.bytes });
            }
            _ => {}
        }
    }
    for damaged in &report.damaged_results {
        let (file, offset, bytes) = (damaged.file.clone(), damaged.offset, damaged.bytes + damaged.missing_bytes);
        report.actions.push(Action::Blank { file, offset, bytes });
    }
    let dlq = Dlq::reading(disk.clone());
    report
        .actions
        .extend(unwritten.iter().map(|entry| Action::WriteLetter { file: dlq.shown(Place::Pending, &entry.entry_id) }));
    if dry_run {
        return Ok(report);
    }
    accept(disk, &report.log.damaged)?;
    let oldest = segment::list(disk)?.first().map(|&(no, _)| no);
    for damage in &report.log.damaged {
        match damage.why {
            Why::ForeignSegment { .. } => {
                move_away(disk, damage)?;
                if oldest == Some(damage.segment) {
                    remove(disk, META)?;
                }
            }
            // Opening writes it again, without the segments that are accepted as gone.
            Why::MissingStart | Why::MissingAll => remove(disk, META)?,
            _ => blank(disk, &segment::path(damage.segment), damage.offset, damage.bytes)?,
        }
    }
    for damaged in &report.damaged_results {
        let path = results::path(damaged.segment);
        match damaged.missing_bytes {
            0 => blank(disk, &path, damaged.offset, damaged.bytes)?,
            missing_bytes => extend(disk, &path, damaged.offset, missing_bytes)?,
        }
        remove(disk, &results::index_path(damaged.segment))?;
    }
    // Cuts the tail, rebuilds indexes, writes the derived files.
    let mut state = State::default();
    let (log, _) = Log::open(disk.clone(), LogOptions::default(), &mut |frame, segment| state.replay(&frame, segment))?;
    let results = ResultStore::write(disk.clone(), state.secret, &state.results, u64::MAX)?;
    results.check_indexes();
    results.write_indexes();
    results.close()?;
    log.close()?;
    for entry in &unwritten {
        match Dlq::open(disk.clone())?.file(entry) {
            Err(DlqError::Disk(error)) => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "the file of a dead letter cannot be written again"),
            Ok(()) => {}
        }
    }
    Ok(report)
}

/// Writes down what is lost, before the damage that explains it goes.
fn accept<D: Disk>(disk: &D, damaged: &[Damage]) -> Result<(), DiskError> {
    let lost: Vec<_> = damaged.iter().filter_map(|damage| damage.lost).collect();
    let segments: Vec<_> = damaged
        .iter()
        .filter_map(|damage| match damage.why {
            Why::Missing { first, last } => Some((first, last)),
            Why::ForeignSegment { .. } => Some((damage.segment, damage.segment)),
            _ => None,
        })
        .collect();
    if lost.is_empty() && segments.is_empty() {
        return Ok(());
    }
    disk::create_folders(disk, FOLDER)?;
    let mut accepted = Accepted::load(disk);
    accepted.lost.extend(lost);
    accepted.segments.extend(segments);
    disk::replace(disk, ACCEPTED, &seal(&accepted))
}

/// Removes a file, when it is there.
fn remove<D: Disk>(disk: &D, path: &str) -> Result<(), DiskError> {
    match disk.unlink(path) {
        Err(error) if error.is_not_found() => Ok(()),
        done => done,
    }
}

fn move_away<D: Disk>(disk: &D, damage: &Damage) -> Result<(), DiskError> {
    disk::create_folders(disk, FOLDER)?;
    let from = segment::path(damage.segment);
    disk.rename(&from, &format!("{FOLDER}/{}", from.rsplit('/').next().unwrap_or_default()))
}

fn blank<D: Disk>(disk: &D, path: &str, offset: u64, bytes: u64) -> Result<(), DiskError> {
    if bytes == 0 {
        return Ok(());
    }
    copy_aside(disk, path, offset, bytes)?;
    newlines(disk, &disk.open(path, How::Write)?, offset, bytes)
}

/// Makes a file that is gone or too short as long as it was, without records.
fn extend<D: Disk>(disk: &D, path: &str, offset: u64, bytes: u64) -> Result<(), DiskError> {
    let file = match disk.open(path, How::Write) {
        Err(error) if error.is_not_found() => disk.open(path, How::CreateNew)?,
        file => file?,
    };
    newlines(disk, &file, offset, bytes)?;
    disk.sync_folder("queue")
}

fn newlines<D: Disk>(disk: &D, file: &D::File, offset: u64, count: u64) -> Result<(), DiskError> {
    let newlines = vec![b'\n'; CHUNK_BYTES];
    let mut done = 0;
    while done < count {
        let bytes = usize::try_from(count - done).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
        disk.write_at(file, offset + done, &newlines[..bytes])?;
        done += bytes as u64;
    }
    disk.sync(file)
}

/// Copies damaged bytes to `queue/damaged/`, once. Failing is no reason not to open: the bytes also stay where they are.
pub(super) fn keep_aside<D: Disk>(disk: &D, damage: &Damage) {
    if damage.bytes == 0 {
        return;
    }
    if let Err(error) = copy_aside(disk, &segment::path(damage.segment), damage.offset, damage.bytes) {
        tracing::warn!(%error, "damaged bytes could not be copied to the folder damaged");
    }
}

fn copy_aside<D: Disk>(disk: &D, path: &str, offset: u64, bytes: u64) -> Result<(), DiskError> {
    disk::create_folders(disk, FOLDER)?;
    let name = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".log");
    let to = match disk.open(&format!("{FOLDER}/{name}-{offset}.bin"), How::CreateNew) {
        Err(DiskError::Exists { .. }) => return Ok(()),
        created => created?,
    };
    let from = disk.open(path, How::Read)?;
    let mut done = 0;
    let mut buffer = vec![0; CHUNK_BYTES];
    while done < bytes {
        let wanted = usize::try_from(bytes - done).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
        let got = disk.read_at(&from, offset + done, &mut buffer[..wanted])?;
        if got == 0 {
            break;
        }
        disk.write_at(&to, done, &buffer[..got])?;
        done += got as u64;
    }
    disk.sync(&to)?;
    disk.sync_folder(FOLDER)
}
