//! From exec to the first packet: the early steps, `Init`, and the role that it names.

use std::{
    os::fd::{AsFd, FromRawFd, OwnedFd},
    process::ExitCode,
};

use tm_core::wire::{FromWorker, Init};

use crate::{
    confine::{self, ConfineError, Walls},
    packet::{self, PacketError, Receiver},
    sandbox::{compile, engine::EngineError},
    serve,
};

/// `argv[1]` of a worker process.
pub const ROLE: &str = "__worker";

/// Where the supervisor puts a worker's end of the socket pair.
const SOCKET_FD: i32 = 3;

/// Why a process could not become a worker.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error("the first packet must be one Init message, with one descriptor per folder or for the component")]
    NotInit,
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("runtime: {0}")]
    Runtime(std::io::Error),
}

/// The socket that the supervisor left at descriptor 3. For the worker role's `main` only, once.
#[must_use]
pub fn inherited_socket() -> OwnedFd {
    // SAFETY: the role's contract: descriptor 3 is this process's end of the socket pair, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(SOCKET_FD) }
}

/// The program of a worker process; call it first in `main`, before any thread exists.
///
/// What cannot become a worker says so with [`FromWorker::Unable`] and ends with 1; a closed socket ends with 0.
#[must_use]
pub fn main_worker(socket: OwnedFd) -> ExitCode {
    main_worker_with(socket, Walls::BOTH)
}

/// As [`main_worker`], with fewer walls: for tests that show what each wall holds alone.
#[must_use]
pub fn main_worker_with(socket: OwnedFd, walls: Walls) -> ExitCode {
    match become_worker(&socket, walls) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let unable = FromWorker::Unable { reason: error.to_string() };
            // The supervisor may be gone; there is nobody else to tell.
            let _ = packet::send_messages(socket.as_fd(), &[unable], &[]);
            ExitCode::FAILURE
        }
    }
}

fn become_worker(socket: &OwnedFd, walls: Walls) -> Result<(), StartError> {
    use std::os::fd::AsRawFd;
    confine::early(socket.as_raw_fd())?;
    let mut receiver = Receiver::new();
    let Some(packet) = receiver.receive(socket.as_fd())? else { return Ok(()) };
    let init = packet.messages::<Init>()?.pop().ok_or(StartError::NotInit)?;
    let fds: Vec<OwnedFd> = packet.fds.collect();
    match init {
        Init::Execute(init) => {
            if fds.len() != init.folders.len() {
                return Err(StartError::NotInit);
            }
            serve::execute(socket, receiver, init, fds, walls)
        }
        Init::Compile(init) => {
            let component = fds.into_iter().next().ok_or(StartError::NotInit)?;
            compile::single_use(socket, &init, &component, walls)
        }
    }
}
