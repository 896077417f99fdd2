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
    render,
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
    print(&report, "would ", args.json.json)?;
    Ok(if report.is_damaged() { End::Damaged } else { End::Done })
}

/// `tm queue repair`: needs the queue for itself.
pub(crate) fn repair(args: &RepairArgs) -> Outcome {
    let disk = existing(&args.folders)?;
    if args.dry_run {
        let report = repair::repair(&disk, true)?;
        print(&report, "would ", args.json.json)?;
        return Ok(if report.is_damaged() { End::Damaged } else { End::Done });
    }
    recover::refuse_newer_program(&disk)?;
    // A folder that is gone is made, as opening does.
    let disk = RealDisk::create(&args.folders.roots())?;
    let locks = Locks::acquire(&args.folders.roots(), Role::Repair, PATIENCE)?;
    listen::refuse_live(&args.folders.queue_dir).map_err(RunError::from)?;
    let report = repair::repair(&disk, false)?;
    drop(locks);
    print(&report, "", args.json.json)?;
    Ok(if report.stays_damaged() { End::Damaged } else { End::Done })
}

fn existing(folders: &Folders) -> Result<RealDisk, Failure> {
    folders.check()?;
    if !folders.roots().hold_a_queue() {
        return Err(Failure::no_queue(&folders.queue_dir));
    }
    Ok(RealDisk::existing(&folders.roots())?)
}

fn print(report: &Report, would: &str, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        return render::json_line(&mut out, report);
    }
    writeln!(out, "{} records in {} segments", report.log.frames, report.log.segments)?;
    report.log.damaged.iter().try_for_each(|damage| damaged(&mut out, damage))?;
    report.damaged_results.iter().try_for_each(|damage| unreadable(&mut out, damage))?;
    report.damaged_letters.iter().try_for_each(|file| writeln!(out, "damaged {file}: not a dead letter"))?;
    report
        .missing_letters
        .iter()
        .try_for_each(|file| writeln!(out, "damaged {file}: a dead letter's file is missing"))?;
    report.damaged_blobs.iter().try_for_each(|blob| writeln!(out, "damaged {}: {}", blob.file, words(&blob.why)))?;
    report.broken.iter().try_for_each(|rule| writeln!(out, "broken rule: {rule}"))?;
    report.actions.iter().try_for_each(|action| acted(&mut out, action, would))?;
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
    write!(out, "damaged {} at byte {}, {} bytes: {}", damage.file, damage.offset, damage.bytes, damage.why)?;
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
        0 => writeln!(out, "damaged {file} at byte {offset}, {bytes} bytes: no record of a result"),
        _ => writeln!(
            out,
            "damaged {file} at byte {offset}: {missing_bytes} bytes or more are missing, with the results in them"
        ),
    }
}

fn acted(out: &mut impl Write, action: &Action, would: &str) -> io::Result<()> {
    match action {
        Action::Cut { file, offset, bytes } => {
            writeln!(out, "{would}cut {bytes} bytes of an unfinished tail: {file} at byte {offset}")
        }
        Action::KeepAside { file, offset, bytes } => {
            writeln!(out, "{would}copy {bytes} damaged bytes to the folder damaged: {file} at byte {offset}")
        }
        Action::RebuildIndex { file } => writeln!(out, "{would}rebuild {file}"),
        Action::Blank { file, offset, bytes } => {
            writeln!(out, "{would}blank {bytes} damaged bytes: {file} at byte {offset}")
        }
        Action::MoveAway { file } => writeln!(out, "{would}move to the folder damaged: {file}"),
        Action::WriteLetter { file } => writeln!(out, "{would}write {file} again"),
    }
}
