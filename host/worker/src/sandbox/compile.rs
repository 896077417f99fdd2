//! The single-use process that inspects and compiles one component: no grant, no guest, its own limits.

use std::{
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use tm_core::{
    code,
    limits::{COMPONENT_MAX_BYTES, ERROR_MESSAGE_MAX_BYTES},
    wire::{CompileInit, FromWorker},
};

use super::{engine, inspect, verdict::bounded};
use crate::{
    confine::{self, Role, Walls},
    packet::{self, PacketError},
    start::StartError,
};

/// How often the processor time is looked at; SIGXCPU follows a second later.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Inspects, then compiles when asked, answers, and returns: the process ends with it.
///
/// A process that dies without [`FromWorker::CompileFailed`] (out of memory, SIGXCPU) reached its limit.
///
/// # Errors
/// When it cannot be confined, or the supervisor is gone.
pub fn single_use(socket: &OwnedFd, init: &CompileInit, component: &OwnedFd, which: Walls) -> Result<(), StartError> {
    let engine = engine::compiler()?;
    confine::limit_compile(init)?;
    confine::walls(Role::Compile, which, &[], init.allow_weaker)?;
    watch_processor_time(socket, init.cpu_seconds_max)?;
    let socket = socket.as_fd();
    let bytes = packet::read_whole(component.as_fd(), COMPONENT_MAX_BYTES).map_err(PacketError::from)?;
    match inspect::inspect(&engine, &bytes, init.compile) {
        Ok(found) => packet::send_messages(socket, &[FromWorker::Inspected(Box::new(found))], &[])?,
        Err(error) => return fail(socket, error.code(), &error.to_string()),
    }
    if !init.compile {
        return Ok(());
    }
    let native = match engine.precompile_component(&bytes) {
        Ok(native) => native,
        Err(error) => return fail(socket, code::COMPILE_FAILED, &format!("the component does not compile: {error:#}")),
    };
    let size_bytes = native.len() as u64;
    if size_bytes > init.native_max_bytes {
        let message = format!("the native artefact has {size_bytes} bytes, {} are allowed", init.native_max_bytes);
        return fail(socket, code::COMPILE_LIMIT, &message);
    }
    let artefact = packet::sealed("native", &native).map_err(PacketError::from)?;
    let compiled = FromWorker::Compiled { size_bytes, compatibility: engine::compatibility(&engine) };
    Ok(packet::send_messages(socket, &[compiled], &[artefact])?)
}

fn fail(socket: BorrowedFd<'_>, code: &str, message: &str) -> Result<(), StartError> {
    let message = bounded(message, ERROR_MESSAGE_MAX_BYTES);
    Ok(packet::send_messages(socket, &[FromWorker::CompileFailed { code: code.to_owned(), message }], &[])?)
}

/// SIGXCPU would end the process without a word: this thread says COMPILE_LIMIT first.
fn watch_processor_time(socket: &OwnedFd, seconds_max: u64) -> Result<(), StartError> {
    let socket = socket.try_clone().map_err(StartError::Runtime)?;
    let watch = move || {
        let spent = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
            Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
        };
        let limit = Duration::from_secs(seconds_max).saturating_sub(2 * LOOK_EVERY);
        while spent() < limit {
            std::thread::sleep(LOOK_EVERY);
        }
        let message = format!("compiling took more than {seconds_max} s of processor time");
        let _ = fail(socket.as_fd(), code::COMPILE_LIMIT, &message);
        let _ = std::io::stderr().flush();
        std::process::exit(0);
    };
    std::thread::Builder::new().name("limit".to_owned()).spawn(watch).map_err(StartError::Runtime)?;
    Ok(())
}
