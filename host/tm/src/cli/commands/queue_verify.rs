//! `tm queue verify` and `repair`: what is damaged, what opening and repair would do, and doing it.

use std::{
    io::{self, Write},
    time::Duration,
};

use tm_supervisor::{
    daemon::listen,
    run::RunError,
    store::{
        blobs::BlobError,
        disk::RealDisk,
        lock::{Lock, Locks, Role},
        recover::{self, Damage},
        repair,
        results::DamagedResults,
        verify::{self, Action, Report},
    },
};

use crate::cli::{
    args::{Folders, RepairArgs, VerifyArgs},
    exit::{End, Failure, Outcome},
    render::{self, count},
};

/// How long a command that is just writing is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// `tm queue verify`: reads, and changes nothing (I12).
pub(crate) fn verify(args: &VerifyArgs) -> Outcome {
    let disk = existing(&args.folders)?;
    if let Some(holder) = Lock::holder(&args.folders.queue_dir)? {
        eprintln!(
            "warning: {} process {} is writing: what it has not finished shows as an unfinished tail",
            holder.role, holder.pid
        );
    }
    let report = verify::verify(&disk)?;
    print(&report, false, args.json.json)?;
    Ok(if report.is_damaged() { End::Damaged } else { End::Done })
}

/// `tm queue repair`: needs the queue for itself.
pub(crate) fn repair(args: &RepairArgs) -> Outcome {
    let disk = existing(&args.folders)?;
    if args.dry_run {
        let report = repair::repair(&disk, true)?;
        print(&report, false, args.json.json)?;
        return Ok(if report.is_damaged() { End::Damaged } else { End::Done });
    }
    recover::refuse_newer_program(&disk)?;
    // A folder that is gone is made, as opening does.
    let disk = RealDisk::create(&args.folders.roots())?;
    let locks = Locks::acquire(&args.folders.roots(), Role::Repair, PATIENCE)?;
    listen::refuse_live(&args.folders.queue_dir).map_err(RunError::from)?;
    let report = repair::repair(&disk, false)?;
    drop(locks);
    print(&report, true, args.json.json)?;
    Ok(if report.stays_damaged() { End::Damaged } else { End::Done })
}

fn existing(folders: &Folders) -> Result<RealDisk, Failure> {
    folders.check()?;
    if !folders.roots().hold_a_queue() {
        return Err(Failure::no_queue(&folders.queue_dir));
    }
    Ok(RealDisk::existing(&folders.roots())?)
}

/// Prints what is damaged, and what was or would be done about it.
fn print(report: &Report, done: bool, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        return render::json_line(&mut out, report);
    }
    writeln!(out, "{} in {}", count(report.log.frames, "record"), count(report.log.segments, "segment"))?;
    report.log.damaged.iter().try_for_each(|damage| damaged(&mut out, damage))?;
    report.damaged_results.iter().try_for_each(|damage| unreadable(&mut out, damage))?;
    report.damaged_letters.iter().try_for_each(|file| writeln!(out, "damaged {file}: not a dead letter"))?;
    report
        .missing_letters
        .iter()
        .try_for_each(|file| writeln!(out, "damaged {file}: a dead letter's file is missing"))?;
    report.damaged_blobs.iter().try_for_each(|blob| writeln!(out, "damaged {}: {}", blob.file, words(&blob.why)))?;
    report.broken.iter().try_for_each(|rule| writeln!(out, "broken rule: {rule}"))?;
    report.actions.iter().try_for_each(|action| acted(&mut out, action, done))?;
    if report.is_damaged() {
        return Ok(());
    }
    writeln!(out, "no damage")
}

/// Why a blob cannot be read, without its name.
fn words(why: &BlobError) -> String {
    match why {
        BlobError::Damaged { .. } => "its content does not have the digest that is its name".into(),
        BlobError::Disk(error) if error.is_not_found() => "a payload or component that is needed is missing".into(),
        BlobError::Disk(error) => error.to_string(),
    }
}

fn damaged(out: &mut impl Write, damage: &Damage) -> io::Result<()> {
    let bytes = count(damage.bytes, "byte");
    write!(out, "damaged {} at byte {}, {bytes}: {}", damage.file, damage.offset, damage.why)?;
    match damage.lost {
        Some((first, last)) if first == last => writeln!(out, "; record {first} is lost"),
        Some((first, last)) => writeln!(out, "; records {first} to {last} are lost"),
        None => writeln!(out),
    }
}

fn unreadable(
    out: &mut impl Write,
    DamagedResults { file, offset, bytes, missing_bytes, .. }: &DamagedResults,
) -> io::Result<()> {
    match missing_bytes {
        0 => writeln!(out, "damaged {file} at byte {offset}, {}: no record of a result", count(*bytes, "byte")),
        _ => writeln!(
            out,
            "damaged {file} at byte {offset}: missing {} or more, with the results there",
            count(*missing_bytes, "byte")
        ),
    }
}

fn acted(out: &mut impl Write, action: &Action, done: bool) -> io::Result<()> {
    let verb = |would, did| if done { did } else { would };
    match action {
        Action::Cut { file, offset, bytes } => {
            let (cut, bytes) = (verb("would cut", "cut"), count(*bytes, "byte"));
            writeln!(out, "{cut} {bytes} of an unfinished tail: {file} at byte {offset}")
        }
        Action::KeepAside { file, offset, bytes } => {
            let (copied, bytes) = (verb("would copy", "copied"), count(*bytes, "damaged byte"));
            writeln!(out, "{copied} {bytes} to the folder damaged: {file} at byte {offset}")
        }
        Action::RebuildIndex { file } => writeln!(out, "{} {file}", verb("would rebuild", "rebuilt")),
        Action::Blank { file, offset, bytes } => {
            let (blanked, bytes) = (verb("would blank", "blanked"), count(*bytes, "damaged byte"));
            writeln!(out, "{blanked} {bytes}: {file} at byte {offset}")
        }
        Action::MoveAway { file } => writeln!(out, "{} to the folder damaged: {file}", verb("would move", "moved")),
        Action::WriteLetter { file } => writeln!(out, "{} {file} again", verb("would write", "wrote")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_told_as_done_and_what_would_be_as_that() {
        let file = || "queue/segment-000001.log".to_owned();
        let aside = Action::KeepAside { file: file(), offset: 7, bytes: 203 };
        let line = |action: &Action, done| {
            let mut out = Vec::new();
            acted(&mut out, action, done).unwrap();
            String::from_utf8(out).unwrap()
        };
        let rest = "203 damaged bytes to the folder damaged: queue/segment-000001.log at byte 7\n";
        assert_eq!(line(&aside, true), format!("copied {rest}"));
        assert_eq!(line(&aside, false), format!("would copy {rest}"));
        let rest = "1 byte of an unfinished tail: queue/segment-000001.log at byte 9\n";
        assert_eq!(line(&Action::Cut { file: file(), offset: 9, bytes: 1 }, false), format!("would cut {rest}"));
    }
}
