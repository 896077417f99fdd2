//! What a guest tries with capabilities: files, links, clocks, randomness, artefacts.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, SystemTime};

use tm_guest::prelude::*;

use crate::{Do, Seen};

static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];

pub(crate) fn act(ctx: &Context, wish: Do) -> Seen {
    match wish {
        Do::Read { path } => read(&path),
        Do::Write { path, bytes } => write(&path, bytes),
        Do::Scratch { bytes } => write("/scratch/file", bytes),
        Do::List { path } => list(&path),
        Do::Stat { path } => {
            fs::metadata(path).map(|m| json!({"bytes": m.len(), "dir": m.is_dir(), "file": m.is_file()})).map_err(say)
        }
        Do::Mkdir { path } => fs::create_dir(path).map(Value::from).map_err(say),
        Do::Remove { path } => fs::remove_file(path).map(Value::from).map_err(say),
        Do::Rename { from, to } => fs::rename(from, to).map(Value::from).map_err(say),
        Do::Symlink { path, to } => links::symlink_at(&to, &path).map_err(say).and_then(|()| read(&path)),
        Do::Hardlink { path, to } => fs::hard_link(to, &path).map_err(say).and_then(|()| read(&path)),
        Do::Sparse { path, bytes } => {
            File::create(path).and_then(|file| file.set_len(bytes)).map(|()| bytes.into()).map_err(say)
        }
        Do::WriteAt { path, offset } => write_at(&path, offset),
        Do::Touch { path } => links::touch(&path).map(Value::from).map_err(say),
        Do::Tick { path, every_ms, count } => {
            let mut file = File::options().append(true).create(true).open(path).map_err(say)?;
            for _ in 0..count {
                writeln!(file, "{}", ctx.attempt).map_err(say)?;
                std::thread::sleep(Duration::from_millis(every_ms));
            }
            Ok(count.into())
        }
        Do::ManyFiles { path, count } => {
            for n in 0..count {
                File::create(format!("{path}/{n}")).map_err(|why| format!("after {n} files: {why}"))?;
            }
            Ok(count.into())
        }
        Do::KeepOpen { path, count } => {
            let mut open = Vec::new();
            for n in 0..count {
                open.push(File::open(&path).map_err(|why| format!("after {n} files: {why}"))?);
            }
            Ok(open.len().into())
        }
        Do::SleepMs { ms } => {
            std::thread::sleep(Duration::from_millis(ms));
            Ok(ms.into())
        }
        Do::Clock {} => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(|why| why.to_string())?;
            Ok((now.as_millis() as u64).into())
        }
        Do::Random {} => random(),
        Do::Artifact { name, bytes, finish } => artifact(&name, bytes, finish),
        Do::ManyArtifacts { count } => {
            let mut open = Vec::new();
            for n in 0..count {
                let started = artifacts::create(&format!("many/{n}"));
                open.push(started.map_err(|why| format!("after {n} artefacts: {why}"))?);
            }
            Ok(open.len().into())
        }
        Do::ReadArtifact { step, name } => {
            artifacts::read(&step, &name).map(|bytes| bytes.len().into()).map_err(|why| why.to_string())
        }
        Do::ListArtifacts { step } => artifacts::entries(&step)
            .map(|entries| entries.into_iter().map(|e| json!([e.name, e.size_bytes])).collect())
            .map_err(|why| why.to_string()),
        _ => Err("not a capability".to_owned()),
    }
}

fn say(why: std::io::Error) -> String {
    why.to_string()
}

fn read(path: &str) -> Seen {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned().into()).map_err(say)
}

fn list(path: &str) -> Seen {
    let entries = fs::read_dir(path).map_err(say)?;
    let names: Result<Vec<_>, _> = entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned())).collect();
    let mut names = names.map_err(say)?;
    names.sort_unstable();
    Ok(names.into())
}

fn write(path: &str, bytes: u64) -> Seen {
    let mut file = File::create(path).map_err(say)?;
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(PIECE.len() as u64);
        file.write_all(&PIECE[..piece as usize]).map_err(|why| format!("after {} bytes: {why}", bytes - left))?;
        left -= piece;
    }
    file.sync_all().map_err(say)?;
    Ok(bytes.into())
}

fn write_at(path: &str, offset: u64) -> Seen {
    let mut file = File::options().write(true).create(true).truncate(false).open(path).map_err(say)?;
    file.seek(SeekFrom::Start(offset)).map_err(say)?;
    file.write_all(b"x").and_then(|()| file.sync_all()).map_err(say)?;
    Ok(offset.into())
}

fn artifact(name: &str, bytes: u64, finish: bool) -> Seen {
    let mut writer = artifacts::create(name).map_err(|why| why.to_string())?;
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(PIECE.len() as u64);
        writer.write(&PIECE[..piece as usize]).map_err(|why| format!("after {} bytes: {why}", bytes - left))?;
        left -= piece;
    }
    if finish {
        writer.finish().map_err(|why| why.to_string())?;
    }
    Ok(bytes.into())
}

/// wasi-libc's `getentropy` is `wasi:random/random`; natively the system's own source.
fn random() -> Seen {
    let mut bytes = [0_u8; 16];
    links::entropy(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>().into())
}

#[cfg(target_arch = "wasm32")]
mod links {
    //! Calls that wasi-libc has and std does not offer for this target.

    use std::ffi::{CString, c_char, c_int, c_void};
    use std::io::{Error, Result};

    /// Of wasi-libc.
    const AT_FDCWD: c_int = -2;

    unsafe extern "C" {
        fn utimensat(at: c_int, path: *const c_char, times: *const c_void, flags: c_int) -> c_int;
        fn symlink(to: *const c_char, path: *const c_char) -> c_int;
        fn getentropy(buffer: *mut c_void, bytes: usize) -> c_int;
    }

    pub(crate) fn symlink_at(to: &str, path: &str) -> Result<()> {
        let (to, path) = (CString::new(to)?, CString::new(path)?);
        // SAFETY: both are strings with a terminator that outlive the call.
        if unsafe { symlink(to.as_ptr(), path.as_ptr()) } == 0 { Ok(()) } else { Err(Error::last_os_error()) }
    }

    pub(crate) fn touch(path: &str) -> Result<()> {
        let path = CString::new(path)?;
        // SAFETY: a string with a terminator that outlives the call; no times mean now.
        let code = unsafe { utimensat(AT_FDCWD, path.as_ptr(), std::ptr::null(), 0) };
        if code == 0 { Ok(()) } else { Err(Error::last_os_error()) }
    }

    pub(crate) fn entropy(buffer: &mut [u8]) -> std::result::Result<(), String> {
        // SAFETY: the pointer and the length are those of one slice.
        let code = unsafe { getentropy(buffer.as_mut_ptr().cast(), buffer.len()) };
        if code == 0 { Ok(()) } else { Err(Error::last_os_error().to_string()) }
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod links {
    //! The same calls where the crate's own tests run.

    use std::io::Result;

    pub(crate) fn symlink_at(to: &str, path: &str) -> Result<()> {
        std::os::unix::fs::symlink(to, path)
    }

    pub(crate) fn touch(path: &str) -> Result<()> {
        std::fs::File::open(path)?.set_modified(std::time::SystemTime::now())
    }

    pub(crate) fn entropy(_buffer: &mut [u8]) -> std::result::Result<(), String> {
        Err("only a guest has it".to_owned())
    }
}
